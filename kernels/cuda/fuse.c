/* kernels/cuda/fuse.c: norms of few rows, and RoPE of few tokens, that are no kernel of their own. A step of one sequence waits
 * for the beginning and end of each kernel, so the sum h += delta becomes the end of the product that makes delta, the
 * norm the beginning of the product that takes it, and RoPE with the KV write that of attention. A product and heads are
 * therefore kept until the next op, and a norm until its output is read by something else or no longer wanted. Numbers in memory are, whenever an op reads them, those that
 * the ops one after the other give. Engine thread. */
#include "cuda/state.h"

/* Is the first byte of an array in rows [T,E] of activations? */
static bool within(const turbok_cuda *s, const void *p, const void *rows, int32_t T, int64_t E)
{
    uintptr_t at = (uintptr_t)p, from = (uintptr_t)rows;
    return at >= from && at < from + (uintptr_t)T * (uintptr_t)E * turbok_dtype_size(s->act);
}

bool turbok_cuda_apart(const turbok_cuda *s, const void *p, int64_t n, const void *q, int64_t m)
{
    const uintptr_t a = (uintptr_t)p, b = (uintptr_t)q, each = turbok_dtype_size(s->act);
    return a + (uintptr_t)n * each <= b || b + (uintptr_t)m * each <= a;
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

void turbok_cuda_reads(turbok_cuda *s, const void *p)
{
    turbok_cuda_settle(s);
    if (s->norm.h && within(s, p, s->norm.out, s->norm.T, s->norm.E))
        launch_norm(s);
}

void turbok_cuda_writes(turbok_cuda *s, const void *p)
{
    const turbok_cuda_norm *n = &s->norm;
    turbok_cuda_settle(s);
    if (n->h && within(s, p, n->h, n->T, n->E))
        launch_norm(s);
    else if (n->h && p == n->out)
        s->norm.h = NULL; /* nobody reads it any more */
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
    bool few = fuses(s, T) && E % 8 == 0 && E >= s->cu->fused_width && E <= TURBOK_CU_BESIDE_INPUTS;
    /* A product of h itself must have read all of it before any is added to. */
    if (p.w && few && delta == p.y && p.T == T && p.w->out == E &&
        turbok_cuda_apart(s, p.x, T * p.w->in, h, (int64_t)T * E)) {
        const turbok_cu_beside b = {.h = h};
        s->kept.w = NULL;
        if (s->norm.h && out == s->norm.out)
            s->norm.h = NULL;
        turbok_cuda_writes(s, h);
        if (beside(s, p.w, p.x, T, s->act, p.y, &b))
            delta = NULL;
        else
            turbok_cuda_multiply(s, p.w, p.x, T, s->act, p.y);
    }
    turbok_cuda_reads(s, h);
    if (delta)
        turbok_cuda_reads(s, delta);
    turbok_cuda_writes(s, out);
    if (delta)
        turbok_cuda_writes(s, h);
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
    turbok_cu_beside b;
    turbok_cuda_writes(s, out);
    if (turbok_cuda_normed(s, in, T, w->in, &b) &&
        turbok_cuda_apart(s, s->norm.h, T * w->in, out, T * w->out) &&
        beside(s, w, s->norm.h, T, out_dtype, out, &b))
        return;
    turbok_cuda_reads(s, in);
    if (out_dtype == s->act && turbok_cuda_fuses(s, w, T))
        s->kept = (turbok_cuda_product){.w = w, .x = in, .y = out, .T = T};
    else
        turbok_cuda_multiply(s, w, in, T, out_dtype, out);
}

void turbok_cuda_turn(turbok_cuda *s, const turbok_cu_attn *at, const void *qkv, void *q)
{
    turbok_cuda_reads(s, qkv);
    turbok_cuda_writes(s, q);
    s->heads = (turbok_cuda_heads){.qkv = qkv, .q = q, .at = *at};
    /* Between two steps nobody would miss what was kept. */
    if (!s->stepping || s->batch.max_new != 1)
        turbok_cuda_settle(s);
}

void turbok_cuda_attend(turbok_cuda *s, const turbok_cu_attn *at, const void *q, void *out)
{
    const turbok_cuda_heads h = s->heads;
    const int64_t T = s->batch.T, Q = T * at->n_heads * at->kv.head_dim,
                  all = Q + 2 * T * at->kv.n_kv * at->kv.head_dim;
    if (h.qkv && h.q == q && h.at.layer == at->layer && h.at.n_heads == at->n_heads &&
        h.at.layout == at->layout && h.at.cosine == at->cosine &&
        turbok_cuda_apart(s, h.qkv, all, out, Q) && turbok_cuda_apart(s, q, Q, out, Q) &&
        turbok_cuda_apart(s, h.qkv, all, q, Q)) {
        s->heads.qkv = NULL;
        turbok_cuda_writes(s, out);
        if (turbok_cu_attention_turned(s->cu, s->act, at, &s->batch, h.qkv, h.q, out))
            return;
        s->heads.qkv = h.qkv;
    }
    turbok_cuda_reads(s, q);
    turbok_cuda_writes(s, out);
    turbok_cu_attention(s->cu, s->act, at, &s->batch, q, out, s->scratch, s->scratch_bytes);
}
