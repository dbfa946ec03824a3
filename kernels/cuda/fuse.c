/* kernels/cuda/fuse.c: norms of few rows, and RoPE of few tokens, that are no kernel of their own. A step of one sequence waits
 * for the beginning and end of each kernel, so the sum h += delta becomes the end of the product that makes delta, the
 * norm the beginning of the product that takes it, and RoPE with the KV write that of attention. A product and heads are
 * therefore kept until the next op, and a norm until its output is read by something else or no longer wanted. Numbers in memory are, whenever an op reads them, those that
 * the ops one after the other give. Engine thread. */
#include "cuda/state.h"

turbok_cuda_span turbok_cuda_rows(const turbok_cuda *s, const void *p, int64_t rows, int64_t width)
{
    return (turbok_cuda_span){(uintptr_t)p,
                              (size_t)rows * (size_t)width * turbok_dtype_size(s->act)};
}

bool turbok_cuda_apart(turbok_cuda_span a, turbok_cuda_span b)
{
    return a.at + a.bytes <= b.at || b.at + b.bytes <= a.at;
}

static bool covers(turbok_cuda_span a, turbok_cuda_span b)
{
    return a.at <= b.at && b.at + b.bytes <= a.at + a.bytes;
}

/* What the norm that was not launched yet takes, and what it gives. */
static turbok_cuda_span norm_takes(const turbok_cuda *s)
{
    return turbok_cuda_rows(s, s->norm.h, s->norm.T, s->norm.E);
}
static turbok_cuda_span norm_gives(const turbok_cuda *s)
{
    return turbok_cuda_rows(s, s->norm.out, s->norm.T, s->norm.E);
}

static bool fuses(const turbok_cuda *s, int32_t T)
{
    return T <= TURBOK_CU_BESIDE_ROWS && s->act != TURBO_F32 && !s->cu->deterministic;
}

bool turbok_cuda_fuses(const turbok_cuda *s, const turbo_linear *w, int32_t T)
{
    enum { CODED_ROWS = 1 }; /* by measurement; two are faster with norms that are kernels */
    return fuses(s, T) && !w->parts && (T <= CODED_ROWS || !turbok_cuda_coded(w));
}

/* y = w x with what is beside it; false: not in one launch. */
static bool beside(turbok_cuda *s, const turbo_linear *w, const void *x, int32_t T,
                   int32_t out_dtype, void *y, const turbok_cu_beside *b)
{
    const turbok_cu_wq *q = turbok_cuda_coded(w);
    if (!turbok_cuda_fuses(s, w, T))
        return false;
    return q ? turbok_cu_wq_beside(s->cu, s->act, q, x, T, out_dtype, y, b)
             : turbok_cu_gemv_beside(s->cu, s->act, w->data, w->dtype, w->bias, (int32_t)w->out,
                                     (int32_t)w->in, x, T, out_dtype, y, b);
}

void turbok_cuda_settle(turbok_cuda *s)
{
    const turbok_cuda_product p = s->kept;
    const void *qkv = s->heads.qkv;
    s->kept.w = NULL;
    s->heads.qkv = NULL;
    if (p.w)
        turbok_cuda_multiply(s, p.w, p.x, p.T, s->act, p.y);
    if (qkv)
        turbok_cu_rope_store(s->cu, s->act, &s->heads.at, &s->batch, qkv, s->heads.q);
}

/* The norm becomes a kernel after all. */
static void launch_norm(turbok_cuda *s)
{
    const turbok_cuda_norm n = s->norm;
    s->norm.h = NULL;
    turbok_cu_rmsnorm(s->cu, s->act, n.h, NULL, n.w, n.eps, n.T, n.E, n.out);
}

void turbok_cuda_reads(turbok_cuda *s, turbok_cuda_span of)
{
    turbok_cuda_settle(s);
    if (s->norm.h && !turbok_cuda_apart(of, norm_gives(s)))
        launch_norm(s);
}

void turbok_cuda_writes(turbok_cuda *s, turbok_cuda_span of)
{
    turbok_cuda_settle(s);
    if (!s->norm.h)
        return;
    const turbok_cuda_span gives = norm_gives(s);
    if (turbok_cuda_apart(of, norm_takes(s)) && covers(of, gives))
        s->norm.h = NULL; /* nobody reads it any more */
    else if (!turbok_cuda_apart(of, norm_takes(s)) || !turbok_cuda_apart(of, gives))
        launch_norm(s);
}

void turbok_cuda_flush(turbok_cuda *s)
{
    turbok_cuda_settle(s);
    if (s->norm.h)
        launch_norm(s);
}

void turbok_cuda_rmsnorm(turbok_cuda *s, void *h, const void *delta, const float *w, float eps,
                         int32_t T, int32_t E, void *out)
{
    const turbok_cuda_product p = s->kept;
    const turbok_cuda_span sums = turbok_cuda_rows(s, h, T, E), to = turbok_cuda_rows(s, out, T, E);
    bool few = fuses(s, T) && E % 8 == 0 && E >= s->cu->fused_width && E <= TURBOK_CU_BESIDE_INPUTS;
    /* A product of h itself must have read all of it before any is added to. */
    if (p.w && few && delta == p.y && p.T == T && p.w->out == E &&
        turbok_cuda_apart(turbok_cuda_rows(s, p.x, T, p.w->in), sums)) {
        const turbok_cu_beside b = {.h = h};
        s->kept.w = NULL;
        turbok_cuda_reads(s, sums);
        if (s->norm.h && covers(to, norm_gives(s)))
            s->norm.h = NULL;
        turbok_cuda_writes(s, sums);
        if (beside(s, p.w, p.x, T, s->act, p.y, &b))
            delta = NULL;
        else
            turbok_cuda_multiply(s, p.w, p.x, T, s->act, p.y);
    }
    turbok_cuda_reads(s, sums);
    if (delta)
        turbok_cuda_reads(s, turbok_cuda_rows(s, delta, T, E));
    turbok_cuda_writes(s, to);
    if (delta)
        turbok_cuda_writes(s, sums);
    if (few && !delta && s->norm.h)
        launch_norm(s); /* two in a row, into two places */
    if (few && !delta)
        s->norm = (turbok_cuda_norm){.h = h, .w = w, .out = out, .eps = eps, .T = T, .E = E};
    else
        turbok_cu_rmsnorm(s->cu, s->act, h, delta, w, eps, T, E, out);
}

bool turbok_cuda_normed(turbok_cuda *s, const void *in, int32_t T, int64_t E, turbok_cu_beside *b)
{
    const turbok_cuda_norm *n = &s->norm;
    *b = (turbok_cu_beside){.norm = n->w, .eps = n->eps};
    return n->h && in == n->out && T == n->T && E == n->E;
}

void turbok_cuda_product_of(turbok_cuda *s, const turbo_linear *w, const void *in, int32_t T,
                            int32_t out_dtype, void *out)
{
    const size_t bytes = (size_t)T * (size_t)w->out * turbok_dtype_size(out_dtype);
    turbok_cu_beside b;
    turbok_cuda_writes(s, (turbok_cuda_span){(uintptr_t)out, bytes});
    if (turbok_cuda_normed(s, in, T, w->in, &b) && beside(s, w, s->norm.h, T, out_dtype, out, &b))
        return;
    turbok_cuda_reads(s, turbok_cuda_rows(s, in, T, w->in));
    if (out_dtype == s->act && turbok_cuda_fuses(s, w, T))
        s->kept = (turbok_cuda_product){.w = w, .x = in, .y = out, .T = T};
    else
        turbok_cuda_multiply(s, w, in, T, out_dtype, out);
}

/* Queries of a batch, and all heads. */
static turbok_cuda_span queries(const turbok_cuda *s, const turbok_cu_attn *at, const void *q)
{
    return turbok_cuda_rows(s, q, s->batch.T, (int64_t)at->n_heads * at->kv.head_dim);
}
static turbok_cuda_span all_heads(const turbok_cuda *s, const turbok_cu_attn *at, const void *qkv)
{
    return turbok_cuda_rows(s, qkv, s->batch.T,
                            ((int64_t)at->n_heads + 2 * at->kv.n_kv) * at->kv.head_dim);
}

void turbok_cuda_turn(turbok_cuda *s, const turbok_cu_attn *at, const void *qkv, void *q)
{
    turbok_cuda_reads(s, all_heads(s, at, qkv));
    turbok_cuda_writes(s, queries(s, at, q));
    s->heads = (turbok_cuda_heads){.qkv = qkv, .q = q, .at = *at};
    /* Between two steps nobody would miss what was kept. */
    if (!s->stepping || s->batch.max_new != 1)
        turbok_cuda_settle(s);
}

void turbok_cuda_attend(turbok_cuda *s, const turbok_cu_attn *at, const void *q, void *out)
{
    const turbok_cuda_heads h = s->heads;
    const turbok_cuda_span from = queries(s, at, q), all = all_heads(s, at, h.qkv),
                           to = queries(s, at, out);
    if (h.qkv && h.q == q && h.at.layer == at->layer && h.at.n_heads == at->n_heads &&
        h.at.layout == at->layout && h.at.cosine == at->cosine && turbok_cuda_apart(all, to) &&
        turbok_cuda_apart(from, to) && turbok_cuda_apart(all, from)) {
        s->heads.qkv = NULL;
        turbok_cuda_writes(s, to);
        if (turbok_cu_attention_turned(s->cu, s->act, at, &s->batch, h.qkv, h.q, out))
            return;
        s->heads.qkv = h.qkv;
    }
    turbok_cuda_reads(s, from);
    turbok_cuda_writes(s, to);
    turbok_cu_attention(s->cu, s->act, at, &s->batch, q, out, s->scratch, s->scratch_bytes);
}
