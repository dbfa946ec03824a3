/* kernels/weights.c: weight handles: repacking into tiles, vectors. Caller's thread and the pool. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static bool is_float(int32_t dtype)
{
    return dtype == TURBO_F32 || dtype == TURBO_F16 || dtype == TURBO_BF16;
}

static bool sizes(int32_t dtype, int64_t out, int64_t in, int64_t *tiles, size_t *bytes)
{
    if (out < 1 || in < 1 || out > INT32_MAX || in > INT32_MAX || !is_float(dtype))
        return false;
    *tiles = (out + TURBOK_TILE - 1) / TURBOK_TILE;
    size_t n;
    return !__builtin_mul_overflow((size_t)*tiles * TURBOK_TILE, (size_t)in, &n) &&
           !__builtin_mul_overflow(n, turbok_dtype_size(dtype), bytes);
}

uint64_t turbok_linear_bytes(const turbok_device *d, int32_t dtype, int64_t out, int64_t in,
                             bool has_bias, uint32_t flags)
{
    int64_t tiles;
    size_t bytes;
    const turbok_part whole = {.rows = out, .bias = has_bias ? &whole : NULL};
    if (d && d->backend)
        return d->backend->rows_bytes(dtype, &whole, 1, in, flags, NULL);
    (void)flags;
    if (!sizes(dtype, out, in, &tiles, &bytes))
        return 0;
    return turbok_alloc_size(bytes) +
           (has_bias ? (uint64_t)tiles * TURBOK_TILE * sizeof(float) : 0);
}

#define SCAN_PIECE ((int64_t)1 << 20)

typedef struct scan {
    const char *data;
    int64_t bytes;
    int32_t dtype;
    _Atomic bool bad;
} scan;

static void scan_pieces(void *ctx, int64_t from, int64_t to, int thread)
{
    scan *s = ctx;
    int64_t end = to * SCAN_PIECE < s->bytes ? to * SCAN_PIECE : s->bytes;
    (void)thread;
    if (!turbok_all_finite(s->dtype, s->data + from * SCAN_PIECE,
                           (size_t)(end - from * SCAN_PIECE)))
        atomic_store(&s->bad, true);
}

static bool finite_part(turbok_device *d, const turbok_part *p, int32_t dtype, int64_t in)
{
    scan s = {p->data, p->rows * in * (int64_t)turbok_dtype_size(dtype), dtype, false};
    turbok_pool_for(d->exec.pool, (s.bytes + SCAN_PIECE - 1) / SCAN_PIECE, 1, scan_pieces, &s);
    return !atomic_load(&s.bad);
}

typedef struct repack {
    const turbo_linear *w;
    const turbok_part *parts; /* data [rows,in] row-major, any alignment */
    int32_t n;
} repack;

static const char *source_row(const repack *r, int64_t row, size_t row_bytes)
{
    int32_t i = 0;
    while (row >= r->parts[i].rows)
        row -= r->parts[i++].rows;
    return (const char *)r->parts[i].data + (size_t)row * row_bytes;
}

/* Vectors that every 64-bit CPU has: 8 rows by 8 numbers of 16 bits become 8 columns. */
typedef uint16_t half8 __attribute__((vector_size(16)));
typedef uint32_t word4 __attribute__((vector_size(16)));
typedef uint64_t pair2 __attribute__((vector_size(16)));

static inline half8 load_half8(const char *p)
{
    half8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* col[k] = number k of the 8 rows, which lie `at` bytes behind src[0..7]. */
static inline void turn_8x8(const char *const *src, size_t at, half8 col[8])
{
    word4 two[8]; /* [k/2 of two rows a word][rows 2i, 2i+1] */
    pair2 four[8];
    for (int i = 0; i < 4; i++) {
        half8 a = load_half8(src[2 * i] + at), b = load_half8(src[2 * i + 1] + at);
        two[i] = (word4)__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
        two[i + 4] = (word4)__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 2) {
        four[i] = (pair2)__builtin_shufflevector(two[i], two[i + 1], 0, 4, 1, 5);
        four[i + 1] = (pair2)__builtin_shufflevector(two[i], two[i + 1], 2, 6, 3, 7);
    }
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 2; i++) {
            pair2 low = four[4 * h + i], high = four[4 * h + 2 + i];
            col[4 * h + 2 * i] = (half8)__builtin_shufflevector(low, high, 0, 2);
            col[4 * h + 2 * i + 1] = (half8)__builtin_shufflevector(low, high, 1, 3);
        }
}

/* 8 lanes of k in [k0, k0 + 32), one cache line of each row: of rows that lie a power of two apart, the first-level
 * cache holds no more at once. */
static void repack_halves(const char *const *src, int64_t k0, char *dst)
{
    for (int64_t k = k0; k < k0 + 32; k += 8) {
        half8 col[8];
        turn_8x8(src, (size_t)k * 2, col);
        for (int64_t i = 0; i < 8; i++)
            memcpy(dst + (size_t)(k + i) * TURBOK_TILE * 2, &col[i], sizeof col[i]);
    }
    for (int i = 0; i < 8; i++)
        __builtin_prefetch(src[i] + (size_t)k0 * 2 + 256);
}

/* 8 lanes of k in [k0, k1), of any type; rows beyond the matrix (NULL) are zeros. */
static void repack_slowly(const char *const *src, int64_t k0, int64_t k1, size_t es, char *dst)
{
    for (size_t lane = 0; lane < 8; lane++)
        for (int64_t k = k0; k < k1; k++) {
            char *to = dst + ((size_t)k * TURBOK_TILE + lane) * es;
            if (!src[lane])
                memset(to, 0, es);
            else if (es == 2)
                memcpy(to, src[lane] + (size_t)k * 2, 2);
            else
                memcpy(to, src[lane] + (size_t)k * 4, 4);
        }
}

/* Tile by tile: 64 rows of the source become columns. */
static void repack_tiles(void *ctx, int64_t from, int64_t to, int thread)
{
    const repack *r = ctx;
    const turbo_linear *w = r->w;
    size_t es = turbok_dtype_size(w->dtype);
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        char *dst = (char *)w->data + (size_t)t * (size_t)w->in * TURBOK_TILE * es;
        const char *src[TURBOK_TILE];
        for (int64_t lane = 0; lane < TURBOK_TILE; lane++) {
            int64_t row = t * TURBOK_TILE + lane;
            src[lane] = row < w->out ? source_row(r, row, (size_t)w->in * es) : NULL;
        }
        for (int64_t k0 = 0; k0 < w->in; k0 += 32) {
            int64_t k1 = k0 + 32 < w->in ? k0 + 32 : w->in;
            for (size_t lane = 0; lane < TURBOK_TILE; lane += 8) {
                if (es == 2 && k1 - k0 == 32 && src[lane + 7])
                    repack_halves(src + lane, k0, dst + lane * 2);
                else
                    repack_slowly(src + lane, k0, k1, es, dst + lane * es);
            }
        }
    }
}

turbo_status turbok_fill_bias(turbok_device *d, turbo_linear *w, const turbok_part *parts,
                              int32_t n)
{
    size_t bytes = (size_t)w->tiles * TURBOK_TILE * sizeof(float);
    int64_t at = 0;
    w->bias = turbok_alloc(d, TURBOK_MEM_LINEAR, bytes);
    if (!w->bias)
        return TURBO_ENOMEM;
    memset(w->bias, 0, bytes);
    for (int32_t i = 0; i < n; at += parts[i++].rows)
        if (parts[i].bias)
            turbok_prim_scalar.widen(parts[i].bias_dtype, parts[i].bias, parts[i].rows,
                                     w->bias + at);
    return TURBO_OK;
}

turbo_status turbok_linear_rows_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                    int32_t n, int64_t in, uint32_t flags, turbo_linear **res,
                                    turbo_err *err)
{
    (void)flags; /* a table is read from the tiles: no second copy */
    bool has_bias = false, known = true;
    if (d->backend)
        return d->backend->linear_rows_new(d, dtype, parts, n, in, flags, res, err);
    if (turbok_rows_to_code(parts, n))
        return turbok_rows_coded_new(d, dtype, parts, n, in, flags, res, err);
    if (turbok_rows_gridded(parts, n))
        return turbok_rows_grid_new(d, dtype, parts, n, in, flags, res, err);
    turbo_linear *w = calloc(1, sizeof *w);
    if (!w)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
    w->dtype = dtype;
    w->in = in;
    for (int32_t i = 0; i < n; i++) {
        known = known && parts[i].rows > 0 && !(parts[i].bias && !is_float(parts[i].bias_dtype)) &&
                !__builtin_add_overflow(w->out, parts[i].rows, &w->out);
        has_bias = has_bias || parts[i].bias;
    }
    int64_t out = w->out;
    if (!known || !sizes(dtype, out, in, &w->tiles, &w->data_bytes)) {
        free(w);
        return turbok_fail(err, TURBO_EINVAL,
                           "a matrix of %lld x %lld of type %d cannot be stored; f32, f16 and bf16 can",
                           (long long)out, (long long)in, dtype);
    }
    for (int32_t i = 0; i < n; i++)
        if (parts[i].finite && !finite_part(d, &parts[i], dtype, in)) {
            free(w);
            return turbok_fail(err, TURBO_EDATA, "a number is not finite");
        }
    w->data = turbok_alloc(d, TURBOK_MEM_LINEAR, w->data_bytes);
    if (!w->data || (has_bias && turbok_fill_bias(d, w, parts, n))) {
        size_t mib = w->data_bytes >> 20;
        turbok_linear_free(d, w);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a matrix of %lld x %lld (%zu MiB)",
                           (long long)out, (long long)in, mib);
    }
    repack r = {w, parts, n};
    turbok_pool_for(d->exec.pool, w->tiles, 1, repack_tiles, &r);
    *res = w;
    return TURBO_OK;
}

turbo_status turbok_linear_new(turbok_device *d, int32_t dtype, const void *data, int64_t out,
                               int64_t in, const void *bias, int32_t bias_dtype, uint32_t flags,
                               turbo_linear **res, turbo_err *err)
{
    const turbok_part whole = {.data = data, .rows = out, .bias = bias, .bias_dtype = bias_dtype};
    return turbok_linear_rows_new(d, dtype, &whole, 1, in, flags, res, err);
}

/* Memory of a matrix: its own, or part of an image. */
static void give_up(turbok_device *d, const turbo_linear *w, void *p, size_t bytes)
{
    if (!w->mapped)
        turbok_release(d, TURBOK_MEM_LINEAR, p, bytes);
    else if (p)
        d->mem[TURBOK_MEM_LINEAR] -= turbok_alloc_size(bytes);
}

void turbok_linear_free(turbok_device *d, turbo_linear *w)
{
    if (!w)
        return;
    if (d->backend) {
        d->backend->linear_free(d, w);
        return;
    }
    for (int32_t i = 0; i < w->n_parts; i++)
        turbok_linear_free(d, w->parts[i]);
    free(w->parts);
    if (w->grid)
        give_up(d, w, w->grid->perm, (size_t)w->in * sizeof *w->grid->perm);
    free(w->grid);
    give_up(d, w, w->data, w->data_bytes);
    give_up(d, w, w->bias, (size_t)w->tiles * TURBOK_TILE * sizeof(float));
    free(w);
}

int64_t turbok_linear_out(const turbo_linear *w)
{
    return w->out;
}

int64_t turbok_linear_in(const turbo_linear *w)
{
    return w->in;
}

uint64_t turbok_vector_bytes(int64_t n)
{
    return n < 1 || n > INT32_MAX ? 0 : turbok_alloc_size((size_t)n * sizeof(float));
}

turbo_status turbok_vector_new(turbok_device *d, int32_t dtype, const void *data, int64_t n,
                               turbo_vector **res, turbo_err *err)
{
    if (n < 1 || n > INT32_MAX || !is_float(dtype))
        return turbok_fail(err, TURBO_EINVAL,
                           "a vector of %lld of type %d cannot be stored; f32, f16 and bf16 can",
                           (long long)n, dtype);
    turbo_vector *v = calloc(1, sizeof *v);
    if (v)
        v->data = turbok_alloc(d, TURBOK_MEM_VECTOR, (size_t)n * sizeof(float));
    if (!v || !v->data) {
        free(v);
        return turbok_fail(err, TURBO_ENOMEM,
                           "no memory for a vector of %lld; use a smaller model, or end what else "
                           "uses the memory",
                           (long long)n);
    }
    v->n = n;
    float *wide = v->data;
    if (d->backend && !(wide = calloc((size_t)n, sizeof *wide))) {
        turbok_vector_free(d, v);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a vector of %lld", (long long)n);
    }
    turbok_prim_scalar.widen(dtype, data, n, wide);
    if (d->backend) {
        d->backend->upload(d, v->data, wide, (size_t)n * sizeof *wide);
        free(wide);
    }
    *res = v;
    return TURBO_OK;
}

void turbok_vector_free(turbok_device *d, turbo_vector *v)
{
    if (!v)
        return;
    turbok_release(d, TURBOK_MEM_VECTOR, v->data, (size_t)v->n * sizeof(float));
    free(v);
}
