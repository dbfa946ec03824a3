/* kernels/nn/attention.c: causal attention over the paged KV cache.
 *
 * Online softmax (arXiv 2205.14135) over chunks of 64 keys that begin at multiples of 64, whatever
 * the block size and however a prompt was cut: the bits of a row depend on its position and cache
 * only. A work item is one KV head and up to 64 query rows of one sequence (tokens times the heads
 * that share the KV head), so that a chunk of K and V is read once for all of them. Scores and sums
 * run on the primitive of the linear layers, in place where the block size allows it.
 *
 * Of a quantised cache the codes themselves are multiplied: with k = scale u + zero,
 *   q.k = scale (q.u) + zero sum(q)   and   sum p v = sum (p scale) u + sum(p zero),
 * so a code costs one conversion and scale and zero are applied once a key instead of once an element. */
#include <math.h>
#include <string.h>

#include "internal.h"

typedef struct attn_job {
    turbo_exec *x;
    const turbo_attn *a;
    const turbo_batch *b;
    const float *q; /* [T,H,D] */
    float *out;     /* [T,H,D] */
    int32_t heads;  /* query heads of one item */
    int32_t splits; /* items that share a KV head: more than one when its group exceeds 64 heads */
    int32_t tokens; /* query tokens of one item */
} attn_job;

typedef struct attn_item {
    int32_t seq, kv_head, head0, heads; /* query heads head0 .. head0+heads-1 */
    int32_t t0, t1;                     /* tokens of the batch */
} attn_item;

static int64_t items_of(const attn_job *j, int32_t seq)
{
    int64_t n = j->b->cu_seqlens[seq + 1] - j->b->cu_seqlens[seq];
    return (n + j->tokens - 1) / j->tokens * j->a->n_kv * j->splits;
}

static int32_t tiles_of(int32_t D)
{
    return (D + TURBOK_TILE - 1) / TURBOK_TILE;
}

static int32_t first_key(const turbo_attn *a, int32_t pos)
{
    return a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
}

/* Where 64 keys or values from position `from` on can be read: the cache itself when a chunk lies in
 * one block, a copy in fp32 otherwise. Keys [D][64], values [64][Dp].
 * Only tokens before `to` have been written. */
typedef struct chunk {
    const char *data;
    int32_t dtype; /* as gemm_tile takes it */
    int64_t ld;
    float *scale, *zero; /* of codes, [64] and room for 64 more; NULL: numbers */
    const char
        *next; /* where the chunk behind this one lies, NULL when it is copied or there is none */
} chunk;

/* What the cache holds, as gemm_tile reads it. */
static int32_t tile_type(int32_t dtype, bool value)
{
    if (dtype == TURBOK_KV_INT4)
        return value ? TURBOK_U4_SPLIT : TURBOK_U4_PAIR;
    return dtype == TURBOK_KV_INT8 ? TURBO_U8 : dtype;
}

/* Scales and zeros of tokens from .. to-1. */
static void fetch_params(const attn_job *j, const attn_item *it, bool value, int32_t from,
                         int32_t to, float *scale, float *zero)
{
    const turbok_kv_pool *p = j->b->kv->pool;
    int32_t bt = p->dims.block_tokens, n;
    for (; from < to; from += n, scale += n, zero += n) {
        n = bt - from % bt < to - from ? bt - from % bt : to - from;
        turbok_kv_params(j->x->prim, &p->dims,
                         turbok_kv_plane(p, j->b->kv->tables[it->seq], j->a->layer, value,
                                         it->kv_head, from),
                         from % bt, n, scale, zero);
    }
}

/* Where the chunk that begins at token `from` can be read in the cache itself, or NULL. Values whose rows do
 * not fill whole tiles are read in place too: the last lanes of a tile then hold what lies behind the row,
 * and nobody looks at them. Only the end of the whole cache must not be passed. */
static const char *in_place(const attn_job *j, const attn_item *it, bool value, int32_t from)
{
    const turbok_kv_pool *p = j->b->kv->pool;
    int32_t bt = p->dims.block_tokens, D = j->a->head_dim, type = tile_type(p->dims.dtype, value);
    if (bt % TURBOK_CHUNK || (type == TURBOK_U4_SPLIT && D % TURBOK_TILE))
        return NULL;
    size_t slot = (size_t)(from % bt), per = (size_t)(value ? D : 1);
    const char *at =
        turbok_kv_plane(p, j->b->kv->tables[it->seq], j->a->layer, value, it->kv_head, from) +
        (type == TURBOK_U4_PAIR ? slot : turbok_bytes(type, slot * per));
    size_t reach = turbok_bytes(type, (size_t)((TURBOK_CHUNK - 1) * D + tiles_of(D) * TURBOK_TILE));
    return value && reach > (size_t)(p->map + p->map_bytes - at) ? NULL : at;
}

static chunk fetch_keys(const attn_job *j, const attn_item *it, int32_t from, int32_t to,
                        turbok_scratch *s)
{
    const turbok_kv_pool *p = j->b->kv->pool;
    const turbok_kv_table *t = j->b->kv->tables[it->seq];
    int32_t bt = p->dims.block_tokens, D = j->a->head_dim, start = from;
    bool coded = turbok_kv_coded(p->dims.dtype);
    size_t es = coded ? 1 : turbok_dtype_size(p->dims.dtype); /* bytes from a token to the next */
    float *tmp = s->k;
    chunk c = {.dtype = tile_type(p->dims.dtype, false), .ld = bt};
    if (coded) {
        c.scale = s->par;
        c.zero = s->par + 2 * TURBOK_CHUNK;
        fetch_params(j, it, false, from, to, c.scale, c.zero);
    }
    c.data = in_place(j, it, false, from);
    if (c.data)
        return c;
    memset(tmp, 0, (size_t)D * TURBOK_CHUNK * sizeof *tmp);
    while (from < to) {
        int32_t end = (from / bt + 1) * bt;
        end = end < to ? end : to;
        const char *plane = turbok_kv_plane(p, t, j->a->layer, false, it->kv_head, from);
        for (int32_t i = 0; i < D; i++) {
            float *to_row = tmp + i * TURBOK_CHUNK + (from - start);
            if (coded)
                turbok_kv_key_codes(&p->dims, plane, i, from % bt, end - from, to_row);
            else
                j->x->prim->widen(p->dims.dtype,
                                  plane + ((size_t)i * (size_t)bt + (size_t)(from % bt)) * es,
                                  end - from, to_row);
        }
        from = end;
    }
    c.data = (const char *)tmp;
    c.dtype = TURBO_F32;
    c.ld = TURBOK_CHUNK;
    return c;
}

static chunk fetch_values(const attn_job *j, const attn_item *it, int32_t from, int32_t to,
                          turbok_scratch *s)
{
    const turbok_kv_pool *p = j->b->kv->pool;
    const turbok_kv_table *t = j->b->kv->tables[it->seq];
    int32_t bt = p->dims.block_tokens, D = j->a->head_dim;
    size_t Dp = (size_t)tiles_of(D) * TURBOK_TILE;
    chunk c = {.dtype = tile_type(p->dims.dtype, true), .ld = D};
    if (turbok_kv_coded(p->dims.dtype)) {
        c.scale = s->par + 4 * TURBOK_CHUNK;
        c.zero = s->par + 6 * TURBOK_CHUNK;
        fetch_params(j, it, true, from, to, c.scale, c.zero);
    }
    c.data = in_place(j, it, true, from);
    if (c.data)
        return c;
    float *row = s->v;
    for (; from < to; from++, row += Dp) {
        const char *plane = turbok_kv_plane(p, t, j->a->layer, true, it->kv_head, from);
        if (c.scale)
            turbok_kv_value_codes(&p->dims, plane, from % bt, row);
        else
            j->x->prim->widen(p->dims.dtype,
                              plane + turbok_bytes(c.dtype, (size_t)(from % bt) * (size_t)D), D,
                              row);
        memset(row + D, 0, (Dp - (size_t)D) * sizeof *row);
    }
    c.data = (const char *)s->v;
    c.dtype = TURBO_F32;
    c.ld = (int64_t)Dp;
    return c;
}

/* Up to 6 query rows, all of which see the keys [lo, hi) of a chunk. */
static void rows_chunk(const attn_job *j, turbok_scratch *s, int32_t row, int rows, int32_t lo,
                       int32_t hi, chunk k, chunk v)
{
    const turbok_prim *prim = j->x->prim;
    int32_t D = j->a->head_dim;
    float *sc = s->s + row * TURBOK_CHUNK;
    memset(sc, 0, (size_t)rows * TURBOK_CHUNK * sizeof *sc);
    prim->gemm_tile(k.dtype, k.data, k.ld, s->q + (size_t)row * (size_t)D, D, rows, D, sc, k.next);
    for (int r = 0; r < rows; r++) {
        float before = s->m[row + r], *sr = sc + r * TURBOK_CHUNK;
        if (k.scale)
            prim->scores(sr, k.scale, k.zero, s->qsum[row + r]);
        if (lo)
            memmove(sr, sr + lo, (size_t)(hi - lo) * sizeof *sr);
        float sum = prim->softmax(sr, hi - lo, j->a->scale, &s->m[row + r]);
        float shrink = before > -INFINITY ? expf(before - s->m[row + r]) : 0.0f;
        s->l[row + r] = s->l[row + r] * shrink + sum;
        if (v.scale)
            s->z[row + r] =
                s->z[row + r] * shrink + prim->weights(sr, hi - lo, v.scale + lo, v.zero + lo);
        for (int32_t c = 0; c < tiles_of(D) && shrink < 1; c++) {
            float *acc = s->acc + (c * TURBOK_QROWS + row + r) * TURBOK_TILE;
            for (int i = 0; i < TURBOK_TILE; i++)
                acc[i] *= shrink;
        }
    }
    for (int32_t c = 0; c < tiles_of(D); c++) {
        size_t at = turbok_bytes(v.dtype, (size_t)(lo * v.ld + c * TURBOK_TILE));
        prim->gemm_tile(v.dtype, v.data + at, v.ld, sc, TURBOK_CHUNK, rows, hi - lo,
                        s->acc + (c * TURBOK_QROWS + row) * TURBOK_TILE,
                        v.next ? v.next + at : NULL);
    }
}

/* The keys of chunk c that token t of the batch sees, relative to the chunk. */
static void visible(const attn_job *j, int32_t t, int32_t c, int32_t *lo, int32_t *hi)
{
    int32_t pos = j->b->positions[t], first = first_key(j->a, pos);
    *lo = first > c ? first - c : 0;
    *hi = pos + 1 - c < TURBOK_CHUNK ? pos + 1 - c : TURBOK_CHUNK;
}

static void item_chunk(const attn_job *j, const attn_item *it, turbok_scratch *s, int32_t c,
                       chunk k, chunk v)
{
    int32_t rows = (it->t1 - it->t0) * it->heads, n;
    for (int32_t r = 0; r < rows; r += n) {
        int32_t lo, hi, lo2, hi2;
        visible(j, it->t0 + r / it->heads, c, &lo, &hi);
        for (n = 1; n < TURBOK_TILE_ROWS && r + n < rows; n++) {
            visible(j, it->t0 + (r + n) / it->heads, c, &lo2, &hi2);
            if (lo2 != lo || hi2 != hi)
                break;
        }
        if (lo >= hi)
            continue;
        rows_chunk(j, s, r, n, lo, hi, k, v);
        k.next = v.next = NULL; /* once is enough */
    }
}

/* Eight chains in a fixed order: the same on every instruction set. */
static float sum_of(const float *q, int32_t D)
{
    float part[8] = {0};
    for (int32_t i = 0; i < D; i++)
        part[i % 8] += q[i];
    return ((part[0] + part[4]) + (part[2] + part[6])) +
           ((part[1] + part[5]) + (part[3] + part[7]));
}

static void run_item(const attn_job *j, const attn_item *it, turbok_scratch *s)
{
    const turbo_attn *a = j->a;
    int32_t D = a->head_dim, rows = (it->t1 - it->t0) * it->heads;
    int32_t last = j->b->positions[it->t1 - 1];
    int32_t begin = first_key(a, j->b->positions[it->t0]) / TURBOK_CHUNK * TURBOK_CHUNK;
    for (int32_t r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->l[r] = s->z[r] = 0;
        size_t at = (size_t)(it->t0 + r / it->heads) * (size_t)a->n_heads +
                    (size_t)(it->head0 + r % it->heads);
        memcpy(s->q + (size_t)r * (size_t)D, j->q + at * (size_t)D, (size_t)D * sizeof *s->q);
        s->qsum[r] = sum_of(s->q + (size_t)r * (size_t)D, D);
    }
    for (int32_t c = 0; c < tiles_of(D); c++)
        memset(s->acc + c * TURBOK_QROWS * TURBOK_TILE, 0,
               (size_t)rows * TURBOK_TILE * sizeof *s->acc);
    for (int32_t c = begin; c <= last; c += TURBOK_CHUNK) {
        int32_t end = c + TURBOK_CHUNK < last + 1 ? c + TURBOK_CHUNK : last + 1;
        chunk k = fetch_keys(j, it, c, end, s), v = fetch_values(j, it, c, end, s);
        if (c + TURBOK_CHUNK <= last) {
            k.next = in_place(j, it, false, c + TURBOK_CHUNK);
            v.next = in_place(j, it, true, c + TURBOK_CHUNK);
        }
        item_chunk(j, it, s, c, k, v);
    }
    for (int32_t r = 0; r < rows; r++) {
        size_t at = (size_t)(it->t0 + r / it->heads) * (size_t)a->n_heads +
                    (size_t)(it->head0 + r % it->heads);
        float inv = 1.0f / s->l[r], z = s->z[r];
        for (int32_t i = 0; i < D; i++)
            j->out[at * (size_t)D + (size_t)i] =
                (s->acc[(i / TURBOK_TILE * TURBOK_QROWS + r) * TURBOK_TILE + i % TURBOK_TILE] + z) *
                inv;
    }
}

static void attn_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const attn_job *j = ctx;
    const turbo_attn *a = j->a;
    int32_t g = a->n_heads / a->n_kv, seq = 0;
    int64_t base = 0;
    for (int64_t i = from; i < to; i++) {
        while (i - base >= items_of(j, seq))
            base += items_of(j, seq++);
        int64_t k = i - base;
        int32_t split = (int32_t)(k % j->splits), head = (int32_t)(k / j->splits % a->n_kv);
        int32_t part = (int32_t)(k / j->splits / a->n_kv);
        attn_item it = {.seq = seq, .kv_head = head, .head0 = head * g + split * j->heads};
        it.heads = g - split * j->heads < j->heads ? g - split * j->heads : j->heads;
        it.t0 = j->b->cu_seqlens[seq] + part * j->tokens;
        it.t1 = it.t0 + j->tokens;
        if (it.t1 > j->b->cu_seqlens[seq + 1])
            it.t1 = j->b->cu_seqlens[seq + 1];
        run_item(j, &it, &j->x->scratch[thread]);
    }
}

void turbok_op_attention(turbo_exec *x, const turbo_attn *a, const turbo_batch *b, const void *q,
                         void *out)
{
    int32_t g = a->n_heads / a->n_kv;
    attn_job j = {.x = x, .a = a, .b = b, .q = q, .out = out};
    j.heads = g < TURBOK_QROWS ? g : TURBOK_QROWS;
    j.splits = (g + j.heads - 1) / j.heads;
    j.tokens = TURBOK_QROWS / j.heads;
    int64_t n = 0;
    for (int32_t s = 0; s < b->n_seqs; s++)
        n += items_of(&j, s);
    turbok_pool_for(x->pool, n, 1, attn_range, &j);
}
