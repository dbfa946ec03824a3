/* kernels/cuda/steps.c: the inputs of a step on the device, and what comes back. Engine thread.
 *
 * All inputs lie one behind the other, packed for the step's T, S and R, so that one copy brings them over: first
 * what the rows ask of sampling, then numbers of 32 bits. Of a step that only decodes, T, S and R are rounded up
 * to the bucket and the step, drawing included, is recorded once a bucket and replayed: graph.c. Nothing here
 * allocates once steps are open.
 *
 * A step may be packed while the one before it runs: pinned memory and recordings are there twice, everything on
 * the device once, because the stream keeps the order. */
#include <stdlib.h>
#include <string.h>

#include "cuda/graph.h"
#include "cuda/state.h"

#define BLAS_BYTES ((size_t)32 << 20)

static int32_t stride_of(const turbok_steps *s)
{
    return (int32_t)(((int64_t)s->max_len + s->block_tokens - 1) / s->block_tokens);
}

/* Bytes of the inputs of a step. */
static size_t packed(size_t T, size_t S, size_t R, size_t stride)
{
    return R * sizeof(turbok_cu_sample_row) +
           (4 * T + (S + 1) + 2 * S + R + S * stride) * sizeof(int32_t);
}

static size_t inputs_bytes(const turbok_steps *s)
{
    size_t S = (size_t)s->max_seqs;
    return turbok_alloc_size(packed((size_t)s->max_tokens, S, S, (size_t)stride_of(s)));
}

static size_t attention_bytes(const turbok_steps *s)
{
    return turbok_alloc_size(
        turbok_cu_attention_bytes(s->max_tokens, s->max_seqs, s->n_heads, s->head_dim, s->max_len));
}

static size_t wq_bytes(const turbok_cuda *s, const turbok_steps *steps)
{
    return steps->quantised ? turbok_alloc_size(turbok_cuda_coded_scratch(s->cu, steps->max_tokens))
                            : 0;
}

static size_t picture_bytes(const turbok_steps *s)
{
    return s->picture_bytes ? turbok_alloc_size(TURBOK_CUDA_VALUES + (size_t)s->picture_bytes) : 0;
}

uint64_t turbok_cuda_steps_bytes(const turbok_device *d, const turbok_steps *s)
{
    const turbok_cuda *self = d->exec.self;
    return inputs_bytes(s) + attention_bytes(s) + wq_bytes(self, s) + picture_bytes(s) +
           turbok_cuda_draw_bytes(s) + (self->act == TURBO_F32 ? 0 : BLAS_BYTES);
}

turbo_status turbok_cuda_steps_open(turbok_device *d, const turbok_steps *steps, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    free(s->coder); /* all matrices are there */
    s->coder = NULL;
    s->coder_bytes = 0;
    s->steps = *steps;
    s->stride = stride_of(steps);
    s->inputs_bytes = inputs_bytes(steps);
    s->scratch_bytes = attention_bytes(steps);
    s->inputs = turbok_alloc(d, TURBOK_MEM_SCRATCH, s->inputs_bytes);
    /* Memory of a device comes zeroed: attention counts finished pieces in it. */
    s->scratch = turbok_alloc(d, TURBOK_MEM_SCRATCH, s->scratch_bytes);
    if (s->act != TURBO_F32)
        s->blas_space = turbok_alloc(d, TURBOK_MEM_SCRATCH, BLAS_BYTES);
    if (steps->quantised) /* zeroed like the other: products count finished pieces too */
        s->wq_scratch = turbok_alloc(d, TURBOK_MEM_SCRATCH, wq_bytes(s, steps));
    if (steps->picture_bytes)
        s->pictures = turbok_alloc(d, TURBOK_MEM_SCRATCH, picture_bytes(steps));
    int r = 0;
    for (int i = 0; i < AHEAD; i++) {
        s->host_inputs[i] = turbok_pinned_new(d, s->inputs_bytes);
        r = r ? r : s->cu->drv.event_create(&s->done[i], TURBOK_CU_EVENT_NO_TIMING);
    }
    s->pad = calloc(6 * (size_t)steps->max_seqs + 1, sizeof *s->pad);
    if (r)
        return turbok_cu_result(&s->cu->drv, r, "no event to wait for", err);
    if (!turbok_cuda_draw_open(d) || !s->inputs || !s->scratch || !s->host_inputs[0] ||
        !s->host_inputs[1] || !s->pad || (s->act != TURBO_F32 && !s->blas_space) ||
        (steps->quantised && !s->wq_scratch) || (steps->picture_bytes && !s->pictures))
        return turbok_fail(
            err, TURBO_ENOMEM,
            "the device is full: no memory for steps of %d tokens and %d sequences; lower "
            "max_batch_size or max_prefill_token_num",
            steps->max_tokens, steps->max_seqs);
    turbok_blas_space(s->blas, s->blas_space, BLAS_BYTES);
    return turbok_cu_wait(s->cu, err);
}

void turbok_cuda_steps_close(turbok_device *d)
{
    turbok_cuda *s = d->exec.self;
    turbok_cuda_graphs_free(s);
    turbok_cuda_draw_close(d);
    turbok_release(d, TURBOK_MEM_SCRATCH, s->inputs, s->inputs_bytes);
    turbok_release(d, TURBOK_MEM_SCRATCH, s->scratch, s->scratch_bytes);
    turbok_release(d, TURBOK_MEM_SCRATCH, s->blas_space, BLAS_BYTES);
    turbok_release(d, TURBOK_MEM_SCRATCH, s->wq_scratch, wq_bytes(s, &s->steps));
    turbok_release(d, TURBOK_MEM_SCRATCH, s->pictures, picture_bytes(&s->steps));
    for (int i = 0; i < AHEAD; i++) {
        turbok_pinned_free(d, s->host_inputs[i], s->inputs_bytes);
        if (s->done[i])
            (void)s->cu->drv.event_destroy(s->done[i]);
    }
    free(s->pad);
}

/* The next n numbers of the packed inputs: where they are written, and their address on the device. */
static int32_t *next(turbok_cuda *s, size_t *at, size_t n, const int32_t **on_device)
{
    int32_t *host = (int32_t *)(void *)(s->host_inputs[s->begun % AHEAD] + *at);
    *on_device = (const int32_t *)(const void *)(s->inputs + *at);
    *at += n * sizeof(int32_t);
    return host;
}

static void copy(int32_t *to, const int32_t *from, int32_t n, int32_t padded)
{
    memcpy(to, from, (size_t)n * sizeof *to);
    memset(to + n, 0, (size_t)(padded - n) * sizeof *to);
}

/* Packs b, padded to T, S and R, into pinned memory and describes it. */
static void pack(turbok_cuda *s, const turbo_batch *b, const turbok_row *rows, int32_t T, int32_t S,
                 int32_t R)
{
    turbok_cu_batch *o = &s->batch;
    turbok_cu_sample_row *ask = (void *)s->host_inputs[s->begun % AHEAD];
    size_t at = (size_t)R * sizeof *ask;
    turbok_cuda_draw_rows(s, rows, b->n_rows, R, ask);
    *o = (turbok_cu_batch){
        .T = T, .S = S, .R = R, .table_stride = s->stride, .drawn = turbok_cuda_drawn(s)};
    copy(next(s, &at, (size_t)T, &o->tokens), b->tokens, b->n_tokens, T);
    copy(next(s, &at, (size_t)T, &o->positions), b->positions, b->n_tokens, T);
    int32_t *seq_of = next(s, &at, (size_t)T, &o->seq_of);
    int32_t *embed = next(s, &at, (size_t)T, &o->embed_index);
    int32_t *cu = next(s, &at, (size_t)S + 1, &o->cu_seqlens);
    copy(next(s, &at, (size_t)S, &o->kv_lens), b->kv_lens, b->n_seqs, S);
    copy(next(s, &at, (size_t)S, &o->rope_lens), b->rope_lens, b->n_seqs, S);
    copy(next(s, &at, (size_t)R, &o->row_index), b->row_index, b->n_rows, R);
    int32_t *tables = next(s, &at, (size_t)S * (size_t)s->stride, &o->tables);
    if (b->embed_rows) {
        copy(embed, b->embed_index, b->n_tokens, T);
        o->embed_rows = b->embed_rows;
    } else {
        o->embed_index = NULL;
    }
    for (int32_t i = 0; i < S; i++) {
        int32_t from = i < b->n_seqs ? b->cu_seqlens[i] : b->n_tokens;
        int32_t to = i < b->n_seqs ? b->cu_seqlens[i + 1] : b->n_tokens;
        const turbok_kv_table *t = i < b->n_seqs ? b->kv->tables[i] : NULL;
        cu[i] = from;
        for (int32_t k = from; k < to; k++)
            seq_of[k] = i;
        o->max_new = to - from > o->max_new ? to - from : o->max_new;
        if (t) {
            o->max_kv = b->kv_lens[i] > o->max_kv ? b->kv_lens[i] : o->max_kv;
            copy(tables + (size_t)i * (size_t)s->stride, t->blocks,
                 t->n < s->stride ? t->n : s->stride, s->stride);
        } else {
            memset(tables + (size_t)i * (size_t)s->stride, 0, (size_t)s->stride * sizeof *tables);
        }
    }
    cu[S] = b->n_tokens;
    for (int32_t k = b->n_tokens; k < T; k++)
        seq_of[k] = -1;
    s->upload_bytes = at;
}

static void describe_kv(turbok_cuda *s, const turbok_kv_pool *p)
{
    s->kv = (turbok_cu_kv){
        .base = p->map,
        .block_bytes = p->block_bytes,
        .plane_bytes = turbok_kv_plane_bytes(&p->dims),
        .block_tokens = p->dims.block_tokens,
        .n_kv = p->dims.n_kv,
        .head_dim = p->dims.head_dim,
        .dtype = p->dims.dtype,
    };
}

turbo_status turbok_cuda_step_begin(turbok_device *d, const turbo_batch *b, const turbok_row *rows,
                                    turbo_batch *as, bool *replay, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    *as = *b;
    *replay = s->replaying = false;
    if (!s->inputs || b->n_tokens > s->steps.max_tokens || b->n_seqs > s->steps.max_seqs)
        return turbok_fail(err, TURBO_EINTERNAL,
                           "a step of %d tokens is larger than steps were opened for", b->n_tokens);
    if (s->begun - s->waited >= AHEAD)
        return turbok_fail(err, TURBO_EINTERNAL, "%d steps were begun and not waited for", AHEAD);
    turbok_cu_note(s->cu, s->cu->drv.ctx_set(s->cu->ctx), "the CUDA context cannot be used");
    turbok_cuda_flush(s); /* of what looked at a picture */
    s->stepping = true;
    describe_kv(s, b->kv->pool);
    int bucket = turbok_cuda_bucket(s, b);
    if (bucket < 0) {
        pack(s, b, rows, b->n_tokens, b->n_seqs, b->n_rows);
    } else {
        int32_t n = turbok_cuda_bucket_size(s, bucket);
        pack(s, b, rows, n, n, n);
        turbok_cuda_pad(s, b, n, as);
        s->batch.max_kv = turbok_cuda_bucket_keys(s, bucket);
    }
    s->row_index = as->row_index;
    if (bucket >= 0) {
        turbo_status st = turbok_cuda_graph_begin(s, bucket, replay, err);
        s->replaying = *replay;
        if (st || *replay)
            return st;
    }
    turbok_cu_to_device(s->cu, turbok_cu_at(s->inputs), s->host_inputs[s->begun % AHEAD],
                        s->upload_bytes);
    return turbok_cu_status(s->cu, err);
}

void turbok_cuda_step_drop(turbok_device *d)
{
    turbok_cuda *s = d->exec.self;
    s->kept.w = NULL;
    s->norm.h = NULL;
    s->heads.qkv = NULL;
    s->stepping = false;
    turbok_cuda_graph_drop(s);
    /* The next step packs its inputs where those of this one are. */
    (void)turbok_cu_wait(s->cu, NULL);
}

/* The logits of rows that nobody drew from, neighbours together. */
static void logits_to_host(turbok_cuda *s, const float *logits, const turbok_row *rows, int32_t R,
                           float *host)
{
    size_t V = (size_t)s->steps.vocab;
    for (int32_t i = 0, end; i < R; i = end + 1) {
        for (end = i; end < R && (!rows || rows[end].place < 0); end++)
            ;
        turbok_cu_to_host(s->cu, host + (size_t)i * V, turbok_cu_at(logits + (size_t)i * V),
                          (size_t)(end - i) * V * sizeof *logits);
    }
}

turbo_status turbok_cuda_step_end(turbok_device *d, float *logits, turbok_row *rows, int32_t R,
                                  float *host, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    size_t turn = s->begun % AHEAD;
    turbok_cuda_settle(s);
    s->stepping = false;
    s->norm.h = NULL; /* nobody reads it any more */
    if (s->recording >= 0 || (s->drawing && !s->replaying))
        turbok_cuda_draw(s, (const turbok_cu_sample_row *)(void *)s->inputs, s->batch.R, logits,
                         s->host_drawn[turn]);
    if (s->recording >= 0) {
        turbo_status st = turbok_cuda_graph_end(s, err);
        if (st)
            return st;
    }
    logits_to_host(s, logits, rows, R, host);
    if (!turbok_cu_bad(s->cu))
        turbok_cu_note(s->cu, s->cu->drv.event_record(s->done[turn], s->cu->stream),
                       "the end of a step cannot be marked");
    s->begun++;
    return turbok_cu_status(s->cu, err);
}

turbo_status turbok_cuda_step_wait(turbok_device *d, turbok_row *rows, int32_t R, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    size_t turn = s->waited++ % AHEAD;
    const int32_t *drawn = s->host_drawn[turn];
    if (!turbok_cu_bad(s->cu))
        turbok_cu_note(s->cu, s->cu->drv.event_synchronize(s->done[turn]), "the device failed");
    for (int32_t i = 0; rows && i < R; i++) {
        if (rows[i].place < 0)
            continue;
        rows[i].token = drawn[i];
        rows[i].status = (turbo_status)drawn[s->steps.max_seqs + i];
    }
    return turbok_cu_status(s->cu, err);
}
