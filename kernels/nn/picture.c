/* kernels/nn/picture.c: the ops of towers that look at whole pictures: patches, positions, and attention
 * in which every token sees every other.
 *
 * The attention runs online softmax (arXiv 2205.14135) over chunks of 64 keys, as nn/attention.c does,
 * with keys and values copied out of the rows of the projection. A work item is one head of one picture
 * and up to 64 query tokens. The bits of a row depend on its picture only. */
#include <math.h>
#include <string.h>

#include "internal.h"

typedef struct full_job {
    turbo_exec *x;
    const float *qkv; /* [N,T,3,H,D] */
    float *out; /* [N,T,H,D] */
    int32_t T, H, D, parts;
    float scale;
} full_job;

static int32_t tiles_of(int32_t D)
{
    return (D + TURBOK_TILE - 1) / TURBOK_TILE;
}

/* which: 0 the query, 1 the key, 2 the value of token t and head h. */
static const float *row_of(const full_job *j, int64_t n, int32_t t, int which, int32_t h)
{
    int64_t row = n * j->T + t;
    return j->qkv + ((row * 3 + which) * j->H + h) * j->D;
}

/* Keys [D][64] and values [64][Dp] of tokens [from, to). */
static void fetch(const full_job *j, int64_t n, int32_t h, int32_t from, int32_t to,
                  turbok_scratch *s)
{
    int32_t D = j->D, Dp = tiles_of(D) * TURBOK_TILE;
    if (to - from < TURBOK_CHUNK)
        memset(s->k, 0, (size_t)D * TURBOK_CHUNK * sizeof *s->k);
    for (int32_t t = from; t < to; t++) {
        const float *k = row_of(j, n, t, 1, h);
        float *v = s->v + (size_t)(t - from) * (size_t)Dp;
        for (int32_t i = 0; i < D; i++)
            s->k[i * TURBOK_CHUNK + (t - from)] = k[i];
        memcpy(v, row_of(j, n, t, 2, h), (size_t)D * sizeof *v);
        memset(v + D, 0, (size_t)(Dp - D) * sizeof *v);
    }
}

/* Up to 6 query rows over one chunk of n keys. */
static void rows_chunk(const full_job *j, turbok_scratch *s, int32_t row, int rows, int32_t n)
{
    const turbok_prim *prim = j->x->prim;
    int32_t D = j->D, Dp = tiles_of(D) * TURBOK_TILE;
    float *sc = s->s + row * TURBOK_CHUNK;
    memset(sc, 0, (size_t)rows * TURBOK_CHUNK * sizeof *sc);
    prim->gemm_tile(TURBO_F32, s->k, TURBOK_CHUNK, s->q + (size_t)row * (size_t)D, D, rows, D, sc,
                    NULL);
    for (int r = 0; r < rows; r++) {
        float before = s->m[row + r];
        float sum = prim->softmax(sc + r * TURBOK_CHUNK, n, j->scale, &s->m[row + r]);
        float shrink = before > -INFINITY ? expf(before - s->m[row + r]) : 0.0f;
        s->l[row + r] = s->l[row + r] * shrink + sum;
        for (int32_t c = 0; c < tiles_of(D) && shrink < 1; c++) {
            float *acc = s->acc + (c * TURBOK_QROWS + row + r) * TURBOK_TILE;
            for (int i = 0; i < TURBOK_TILE; i++)
                acc[i] *= shrink;
        }
    }
    for (int32_t c = 0; c < tiles_of(D); c++)
        prim->gemm_tile(TURBO_F32, s->v + c * TURBOK_TILE, Dp, sc, TURBOK_CHUNK, rows, n,
                        s->acc + (c * TURBOK_QROWS + row) * TURBOK_TILE, NULL);
}

static void run_item(const full_job *j, int64_t n, int32_t h, int32_t t0, int32_t t1,
                     turbok_scratch *s)
{
    int32_t D = j->D, rows = t1 - t0;
    for (int32_t r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->l[r] = 0;
        memcpy(s->q + (size_t)r * (size_t)D, row_of(j, n, t0 + r, 0, h), (size_t)D * sizeof *s->q);
    }
    for (int32_t c = 0; c < tiles_of(D); c++)
        memset(s->acc + c * TURBOK_QROWS * TURBOK_TILE, 0,
               (size_t)rows * TURBOK_TILE * sizeof *s->acc);
    for (int32_t c = 0; c < j->T; c += TURBOK_CHUNK) {
        int32_t end = c + TURBOK_CHUNK < j->T ? c + TURBOK_CHUNK : j->T;
        fetch(j, n, h, c, end, s);
        for (int32_t r = 0; r < rows; r += TURBOK_TILE_ROWS)
            rows_chunk(j, s, r, rows - r < TURBOK_TILE_ROWS ? rows - r : TURBOK_TILE_ROWS, end - c);
    }
    for (int32_t r = 0; r < rows; r++) {
        float *out = j->out + ((n * j->T + t0 + r) * j->H + h) * D, inv = 1.0f / s->l[r];
        for (int32_t i = 0; i < D; i++)
            out[i] =
                s->acc[(i / TURBOK_TILE * TURBOK_QROWS + r) * TURBOK_TILE + i % TURBOK_TILE] * inv;
    }
}

static void full_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const full_job *j = ctx;
    for (int64_t i = from; i < to; i++) {
        int32_t part = (int32_t)(i % j->parts), h = (int32_t)(i / j->parts % j->H);
        int32_t t0 = part * TURBOK_QROWS, t1 = t0 + TURBOK_QROWS;
        run_item(j, i / j->parts / j->H, h, t0, t1 < j->T ? t1 : j->T, &j->x->scratch[thread]);
    }
}

void turbok_op_attention_full(turbo_exec *x, const void *qkv, int32_t N, int32_t T, int32_t H,
                              int32_t D, float scale, void *out)
{
    full_job j = {.x = x, .qkv = qkv, .out = out, .T = T, .H = H, .D = D, .scale = scale};
    j.parts = (T + TURBOK_QROWS - 1) / TURBOK_QROWS;
    turbok_pool_for(x->pool, (int64_t)N * H * j.parts, 1, full_range, &j);
}

/* ---- rows ------------------------------------------------------------------------------------- */

typedef struct patch_job {
    const uint8_t *pixels;
    const float *value;
    float *out;
    int32_t height, width, size, down, across;
} patch_job;

static void patch_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const patch_job *j = ctx;
    (void)thread;
    for (int64_t p = from; p < to; p++) {
        int64_t n = p / (j->down * j->across);
        int32_t y = (int32_t)(p / j->across % j->down) * j->size;
        int32_t x = (int32_t)(p % j->across) * j->size;
        float *out = j->out + p * 3 * j->size * j->size;
        for (int c = 0; c < 3; c++)
            for (int32_t i = 0; i < j->size; i++) {
                const uint8_t *in = j->pixels + ((n * j->height + y + i) * j->width + x) * 3 + c;
                for (int32_t k = 0; k < j->size; k++)
                    *out++ = j->value[c * 256 + in[3 * k]];
            }
    }
}

void turbok_op_patches(turbo_exec *x, const uint8_t *pixels, int32_t N, int32_t height,
                       int32_t width, int32_t size, const float *value, void *out)
{
    patch_job j = {pixels, value, out, height, width, size, height / size, width / size};
    turbok_pool_for(x->pool, (int64_t)N * j.down * j.across, 16, patch_range, &j);
}

typedef struct position_job {
    const float *in, *first, *position;
    float *out;
    int32_t P, E;
} position_job;

static void position_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const position_job *j = ctx;
    (void)thread;
    for (int64_t r = from; r < to; r++) {
        int64_t n = r / (j->P + 1), p = r % (j->P + 1);
        const float *in = p ? j->in + (n * j->P + p - 1) * j->E : j->first;
        const float *at = j->position + p * j->E;
        for (int32_t i = 0; i < j->E; i++)
            j->out[r * j->E + i] = in[i] + at[i];
    }
}

void turbok_op_position_rows(turbo_exec *x, const void *in, const turbo_vector *first,
                             const turbo_vector *position, int32_t N, int32_t P, int32_t E,
                             void *out)
{
    position_job j = {in, first->data, position->data, out, P, E};
    turbok_pool_for(x->pool, (int64_t)N * (P + 1), 16, position_range, &j);
}

void turbok_op_add(turbo_exec *x, void *h, const void *delta, int32_t T, int32_t E)
{
    float *to = h;
    const float *from = delta;
    (void)x;
    for (int64_t i = 0; i < (int64_t)T * E; i++)
        to[i] += from[i];
}
