/* kernels/kv/pool.c: the KV region, its free list and reference counts.
 * Block b holds, for each layer: K as [K,D,block_tokens], then V as [K,block_tokens,D]. Keys lie
 * transposed so that the scores of 64 keys are 64 lanes of one multiply-add, read in place. With
 * quantised types a plane (K or V of one layer and head) is laid out by kv/quant.c. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

static bool good_dims(const turbok_kv_dims *d)
{
    return d->n_layers >= 1 && d->n_layers <= 4096 && d->n_kv >= 1 && d->n_kv <= 4096 &&
           d->head_dim >= 1 && d->head_dim <= 4096 && d->block_tokens >= 8 &&
           d->block_tokens <= 1024 && d->block_tokens % 8 == 0 &&
           (d->dtype == TURBO_F32 || d->dtype == TURBO_F16 || d->dtype == TURBO_BF16 ||
            d->dtype == TURBOK_KV_INT8 || (d->dtype == TURBOK_KV_INT4 && d->head_dim % 2 == 0));
}

const char *turbok_kv_type_name(int32_t dtype)
{
    switch (dtype) {
    case TURBO_F32: return "f32";
    case TURBO_F16: return "f16";
    case TURBO_BF16: return "bf16";
    case TURBOK_KV_INT8: return "int8";
    case TURBOK_KV_INT4: return "int4";
    default: return "?";
    }
}

uint64_t turbok_kv_block_bytes(const turbok_kv_dims *d)
{
    uint64_t n = 2;
    if (!good_dims(d) || __builtin_mul_overflow(n, (uint64_t)d->n_layers, &n) ||
        __builtin_mul_overflow(n, (uint64_t)d->n_kv, &n) ||
        __builtin_mul_overflow(n, (uint64_t)turbok_kv_plane_bytes(d), &n))
        return 0;
    return n;
}

/* Reference counts and free list. */
static size_t lists_bytes(int32_t n_blocks)
{
    return 2 * (size_t)n_blocks * sizeof(int32_t);
}

uint64_t turbok_kv_index_bytes(const turbok_kv_dims *d, int32_t n_blocks, bool prefix)
{
    if (!good_dims(d) || n_blocks < 1)
        return 0;
    return lists_bytes(n_blocks) + (prefix ? turbok_prefix_bytes(n_blocks, d->block_tokens) : 0);
}

static char *take_map(turbok_device *d, size_t bytes)
{
    if (d->backend)
        return d->backend->take(d, bytes);
    /* Pages are taken when they are first written; the size was measured to fit before. */
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    madvise(map, bytes, MADV_HUGEPAGE); /* advice: fewer TLB misses when it is taken */
    return map;
}

static void release_map(turbok_device *d, char *map, size_t bytes)
{
    if (!map)
        return;
    if (d->backend)
        d->backend->give(d, map, bytes);
    else
        munmap(map, bytes);
}

turbo_status turbok_kv_pool_new(turbok_device *d, const turbok_kv_dims *dims, int32_t n_blocks,
                                turbok_kv_pool **out, turbo_err *err)
{
    uint64_t block = turbok_kv_block_bytes(dims), total;
    if (!block || n_blocks < 1 || __builtin_mul_overflow(block, (uint64_t)n_blocks, &total) ||
        total > SIZE_MAX / 2)
        return turbok_fail(err, TURBO_EINVAL,
                           "a KV cache of %d blocks of %llu bytes is not possible", n_blocks,
                           (unsigned long long)block);
    turbo_status st = turbok_scratch_fit(d, dims->head_dim, err);
    if (st)
        return st;
    turbok_kv_pool *p = calloc(1, sizeof *p);
    if (p) {
        p->refs = calloc(1, lists_bytes(n_blocks));
        p->map = take_map(d, total);
    }
    if (!p || !p->refs || !p->map) {
        if (p) {
            free(p->refs);
            release_map(d, p->map, total);
        }
        free(p);
        return turbok_fail(
            err, TURBO_ENOMEM,
            "no memory for a KV cache of %llu MiB; lower cache_max_entry_count, or end what "
            "else uses the memory",
            (unsigned long long)(total >> 20));
    }
    d->mem[TURBOK_MEM_KV] += total;
    d->mem[TURBOK_MEM_KV_INDEX] += lists_bytes(n_blocks);
    p->device = d;
    p->dims = *dims;
    p->free_list = p->refs + n_blocks;
    p->n_blocks = p->n_free = n_blocks;
    p->block_bytes = block;
    p->map_bytes = total;
    for (int32_t i = 0; i < n_blocks; i++)
        p->free_list[i] = n_blocks - 1 - i;
    *out = p;
    return TURBO_OK;
}

void turbok_kv_pool_free(turbok_kv_pool *p)
{
    if (!p)
        return;
    turbok_kv_swap_free(p);
    release_map(p->device, p->map, p->map_bytes);
    p->device->mem[TURBOK_MEM_KV] -= p->map_bytes;
    turbok_prefix_free(p);
    free(p->refs);
    p->device->mem[TURBOK_MEM_KV_INDEX] -= lists_bytes(p->n_blocks);
    free(p);
}

int32_t turbok_kv_pool_total(const turbok_kv_pool *p)
{
    return p->n_blocks;
}

int32_t turbok_kv_pool_block_tokens(const turbok_kv_pool *p)
{
    return p->dims.block_tokens;
}

const turbok_kv_dims *turbok_kv_pool_dims(const turbok_kv_pool *p)
{
    return &p->dims;
}

int32_t turbok_kv_pool_free_count(const turbok_kv_pool *p)
{
    return p->n_free;
}

int32_t turbok_kv_block_get(turbok_kv_pool *p)
{
    int32_t b = p->n_free ? p->free_list[--p->n_free] : turbok_prefix_evict(p);
    if (b < 0)
        return -1;
#ifdef TURBOK_DEBUG
    if (!p->device->backend)
        memset(p->map + (size_t)b * p->block_bytes, 0xff, p->block_bytes); /* NaN in every type */
#endif
    p->refs[b] = 1;
    return b;
}

void turbok_kv_block_ref(turbok_kv_pool *p, int32_t block)
{
    p->refs[block]++;
}

int32_t turbok_kv_block_refs(const turbok_kv_pool *p, int32_t block)
{
    return p->refs[block];
}

void turbok_kv_block_read(const turbok_kv_pool *p, int32_t block, void *out)
{
    const char *from = p->map + (size_t)block * p->block_bytes;
    if (p->device->backend)
        p->device->backend->block_read(p->device, out, from, p->block_bytes);
    else
        memcpy(out, from, p->block_bytes);
}

void turbok_kv_block_write(turbok_kv_pool *p, int32_t block, const void *in)
{
    char *to = p->map + (size_t)block * p->block_bytes;
    if (p->device->backend)
        p->device->backend->block_write(p->device, to, in, p->block_bytes);
    else
        memcpy(to, in, p->block_bytes);
}

void turbok_kv_block_put(turbok_kv_pool *p, int32_t block)
{
    if (!--p->refs[block] && !turbok_prefix_keep(p, block))
        p->free_list[p->n_free++] = block;
}

char *turbok_kv_plane(const turbok_kv_pool *p, const turbok_kv_table *t, int32_t layer, bool value,
                      int32_t head, int32_t pos)
{
    const turbok_kv_dims *d = &p->dims;
    size_t row = ((size_t)layer * 2 + value) * (size_t)d->n_kv + (size_t)head;
    return p->map + (size_t)t->blocks[pos / d->block_tokens] * p->block_bytes +
           row * turbok_kv_plane_bytes(d);
}

void turbok_kv_write(const turbok_prim *prim, const turbok_kv_pool *p, const turbok_kv_table *t,
                     int32_t layer, bool value, int32_t head, int32_t pos, const float *in,
                     float *tmp)
{
    char *plane = turbok_kv_plane(p, t, layer, value, head, pos);
    size_t es = turbok_dtype_size(p->dims.dtype), bt = (size_t)p->dims.block_tokens;
    size_t slot = (size_t)pos % bt, D = (size_t)p->dims.head_dim;
    if (turbok_kv_coded(p->dims.dtype)) {
        turbok_kv_code(prim, &p->dims, plane, value, (int32_t)slot, in, (uint8_t *)tmp);
        return;
    }
    if (value) {
        prim->narrow(p->dims.dtype, in, (int64_t)D, plane + slot * D * es);
        return;
    }
    prim->narrow(p->dims.dtype, in, (int64_t)D, tmp);
    for (size_t i = 0; i < D; i++) { /* a column: keys lie transposed, see the head of this file */
        if (es == 2)
            memcpy(plane + (i * bt + slot) * 2, (const char *)tmp + i * 2, 2);
        else
            memcpy(plane + (i * bt + slot) * 4, (const char *)tmp + i * 4, 4);
    }
}

void turbok_kv_read(const turbok_kv_pool *p, const turbok_kv_table *t, int32_t layer, int32_t pos,
                    bool value, float *out)
{
    const turbok_kv_dims *d = &p->dims;
    const turbok_prim *prim = &turbok_prim_scalar;
    size_t bt = (size_t)d->block_tokens, slot = (size_t)pos % bt, D = (size_t)d->head_dim;
    for (int32_t h = 0; h < d->n_kv; h++, out += D) {
        const char *plane = turbok_kv_plane(p, t, layer, value, h, pos);
        if (turbok_kv_coded(d->dtype)) {
            turbok_kv_row(d, plane, value, (int32_t)slot, out);
            continue;
        }
        for (size_t i = 0; i < D; i++)
            prim->widen(d->dtype,
                        plane +
                            (value ? slot * D + i : i * bt + slot) * turbok_dtype_size(d->dtype),
                        1, out + i);
    }
}
