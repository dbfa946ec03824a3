/* kernels/nn/attention.c: causal attention over the paged KV cache.
 *
 * Online softmax (arXiv 2205.14135) over chunks of 64 keys that begin at multiples of 64, whatever
 * the block size and however a prompt was cut: the bits of a row depend on its position and cache
 * only. A work item is one KV head and up to 64 query rows of one sequence (tokens times the heads
 * that share the KV head), so a chunk of K and V is widened once and used by all of them. */
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

/* Widens keys or values [from, to) of a head into rows of D floats. */
static void fetch(const attn_job *j, const attn_item *it, bool value, int32_t from, int32_t to,
                  float *dst)
{
    const turbok_kv_pool *p = j->b->kv->pool;
    const turbok_kv_table *t = j->b->kv->tables[it->seq];
    int32_t bt = p->dims.block_tokens, D = j->a->head_dim;
    while (from < to) { /* tokens of one block lie side by side */
        int32_t end = (from / bt + 1) * bt;
        end = end < to ? end : to;
        j->x->prim->widen(p->dims.dtype, turbok_kv_at(p, t, j->a->layer, value, it->kv_head, from),
                          (int64_t)(end - from) * D, dst);
        dst += (size_t)(end - from) * (size_t)D;
        from = end;
    }
}

static int32_t first_key(const turbo_attn *a, int32_t pos)
{
    return a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
}

/* One query row against the keys [c0, c1) that are in the scratch. */
static void row_chunk(const attn_job *j, turbok_scratch *s, int32_t row, const float *q, int32_t pos,
                      int32_t c0, int32_t c1)
{
    int32_t D = j->a->head_dim, lo = first_key(j->a, pos), hi = pos + 1;
    lo = lo > c0 ? lo : c0;
    hi = hi < c1 ? hi : c1;
    if (lo >= hi)
        return;
    const turbok_prim *prim = j->x->prim;
    int64_t n = hi - lo;
    const float *k = s->k + (size_t)(lo - c0) * (size_t)D, *v = s->v + (size_t)(lo - c0) * (size_t)D;
    prim->scores(q, k, n, D, j->a->scale, s->s);
    float m = s->m[row];
    for (int64_t i = 0; i < n; i++)
        m = s->s[i] > m ? s->s[i] : m;
    float shrink = s->m[row] > -INFINITY ? expf(s->m[row] - m) : 0.0f;
    s->l[row] = s->l[row] * shrink + prim->softmax(s->s, n, m);
    s->m[row] = m;
    prim->mix(s->acc + (size_t)row * (size_t)D, shrink, s->s, v, n, D);
}

static void run_item(const attn_job *j, const attn_item *it, turbok_scratch *s)
{
    const turbo_attn *a = j->a;
    int32_t D = a->head_dim, rows = (it->t1 - it->t0) * it->heads;
    int32_t last = j->b->positions[it->t1 - 1];
    int32_t begin = first_key(a, j->b->positions[it->t0]) / TURBOK_CHUNK * TURBOK_CHUNK;
    memset(s->acc, 0, (size_t)rows * (size_t)D * sizeof(float));
    for (int32_t r = 0; r < rows; r++) {
        s->m[r] = -INFINITY;
        s->l[r] = 0;
    }
    for (int32_t c = begin; c <= last; c += TURBOK_CHUNK) {
        int32_t end = c + TURBOK_CHUNK < last + 1 ? c + TURBOK_CHUNK : last + 1;
        fetch(j, it, false, c, end, s->k);
        fetch(j, it, true, c, end, s->v);
        for (int32_t t = it->t0, r = 0; t < it->t1; t++)
            for (int32_t h = 0; h < it->heads; h++, r++) {
                size_t at = ((size_t)t * (size_t)a->n_heads + (size_t)(it->head0 + h)) * (size_t)D;
                row_chunk(j, s, r, j->q + at, j->b->positions[t], c, end);
            }
    }
    for (int32_t t = it->t0, r = 0; t < it->t1; t++)
        for (int32_t h = 0; h < it->heads; h++, r++) {
            size_t at = ((size_t)t * (size_t)a->n_heads + (size_t)(it->head0 + h)) * (size_t)D;
            float inv = 1.0f / s->l[r];
            for (int32_t i = 0; i < D; i++)
                j->out[at + (size_t)i] = s->acc[(size_t)r * (size_t)D + (size_t)i] * inv;
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
