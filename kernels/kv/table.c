/* kernels/kv/table.c: block tables: which block holds which tokens of a sequence. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static int32_t blocks_for(const turbok_kv_pool *p, int32_t tokens)
{
    return (int32_t)(((int64_t)tokens + p->dims.block_tokens - 1) / p->dims.block_tokens);
}

turbo_status turbok_kv_table_init(turbok_kv_table *t, const turbok_kv_pool *p, int32_t max_tokens,
                                  turbo_err *err)
{
    *t = (turbok_kv_table){0};
    if (max_tokens < 1)
        return turbok_fail(err, TURBO_EINVAL, "a block table needs room for a token");
    t->cap = blocks_for(p, max_tokens);
    t->blocks = calloc((size_t)t->cap, sizeof *t->blocks);
    if (!t->blocks)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a block table");
    return TURBO_OK;
}

void turbok_kv_table_free(turbok_kv_table *t, turbok_kv_pool *p)
{
    turbok_kv_table_truncate(t, p, 0);
    free(t->blocks);
    *t = (turbok_kv_table){0};
}

/* Must the block that holds position t->len be copied before it is written? */
static bool must_copy(const turbok_kv_table *t, const turbok_kv_pool *p)
{
    int32_t i = t->len / p->dims.block_tokens, slot = t->len % p->dims.block_tokens;
    return slot && i < t->n && turbok_prefix_shared(p, t->blocks[i], slot);
}

int32_t turbok_kv_table_needs(const turbok_kv_table *t, const turbok_kv_pool *p, int32_t n_tokens)
{
    int32_t more = blocks_for(p, n_tokens) - t->n;
    return (more > 0 ? more : 0) + (n_tokens > t->len && must_copy(t, p));
}

bool turbok_kv_table_reserve(turbok_kv_table *t, turbok_kv_pool *p, int32_t n_tokens)
{
    int32_t need = blocks_for(p, n_tokens), vacant = p->n_free + turbok_kv_pool_cached_count(p);
    int32_t wants = turbok_kv_table_needs(t, p, n_tokens);
    if (need > t->cap)
        return false;
    /* When a single block is missing, cached content that nobody else uses is overwritten. */
    if (wants == vacant + 1 && n_tokens > t->len && must_copy(t, p) &&
        p->refs[t->blocks[t->len / p->dims.block_tokens]] == 1) {
        turbok_kv_withdraw(p, t->blocks[t->len / p->dims.block_tokens]);
        wants--;
    }
    if (wants > vacant)
        return false;
    if (n_tokens > t->len && must_copy(t, p)) {
        int32_t *at = &t->blocks[t->len / p->dims.block_tokens], fresh = turbok_kv_block_get(p);
        char *to = p->map + (size_t)fresh * p->block_bytes;
        const char *from = p->map + (size_t)*at * p->block_bytes;
        if (p->device->backend)
            p->device->backend->block_copy(p->device, to, from, p->block_bytes);
        else
            memcpy(to, from, p->block_bytes);
        turbok_kv_block_put(p, *at);
        *at = fresh;
    }
    while (t->n < need)
        t->blocks[t->n++] = turbok_kv_block_get(p);
    return true;
}

void turbok_kv_table_truncate(turbok_kv_table *t, turbok_kv_pool *p, int32_t n_tokens)
{
    int32_t keep = blocks_for(p, n_tokens);
    while (t->n > keep)
        turbok_kv_block_put(p, t->blocks[--t->n]);
    if (t->len > n_tokens)
        t->len = n_tokens;
}
