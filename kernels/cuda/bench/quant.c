/* kernels/cuda/bench/quant.c: bench-gpu's products with matrices of 4 and 8 bits: bytes are codes, scales,
 * zeros and activations, against the read kernel of the same run. */
#include "bench-gpu.h"

#include "cuda/wq.h"

typedef struct quant_job {
    turbok_cu_wq w, up; /* placed anew for each copy */
    turbok_cu_ptr base, base_up;
    void *x, *y, *scratch;
    int32_t T, copies;
    bool gated;
} quant_job;

static void multiply(void *ctx)
{
    quant_job *j = ctx;
    for (int32_t i = 0; i < j->copies; i++) {
        turbok_cu_wq_place(&j->w, j->base + (uint64_t)i * j->w.bytes);
        if (!j->gated) {
            turbok_cu_wq_linear(cu, TURBO_BF16, &j->w, j->x, j->T, TURBO_BF16, j->y, j->w.out,
                                j->scratch);
            continue;
        }
        turbok_cu_wq_place(&j->up, j->base_up + (uint64_t)i * j->up.bytes);
        if (!turbok_cu_wq_gated(cu, TURBO_BF16, &j->w, &j->up, TURBO_ACT_SILU, j->x, j->T, j->y,
                                j->scratch, NULL))
            turbok_cu_note(cu, TURBOK_CU_INVALID, "a gated product is not covered");
    }
}

/* Random codes and scales; zeros in their range. */
static turbok_cu_ptr images(const turbok_cu_wq *w, int32_t copies)
{
    void *p = numbers((int64_t)(w->bytes / 2) * copies, 0.02f);
    for (int32_t i = 0; i < copies && w->zero; i++)
        turbok_cu_fill(cu, turbok_cu_at(p) + (uint64_t)i * w->bytes + w->zero_at, 8,
                       (size_t)(w->tiles * w->groups * 16));
    return turbok_cu_at(p);
}

/* A format: group 0 is one scale a row. */
typedef struct kind {
    const char *name;
    int32_t bits, group;
    bool zero;
} kind;
/* AWQ and GPTQ; quantize = "int4", "int8"; int8 with a scale a row. */
static const kind kinds[] = {{"w4 g128 zeros", 4, 128, true},
                             {"w4 g32", 4, 32, false},
                             {"w8 g32", 8, 32, false},
                             {"w8 rows", 8, 0, false}};

static bool plan_of(const kind *f, int64_t out, int64_t in, turbok_cu_wq *w)
{
    static const uint8_t some;
    turbok_grid g = {
        .bits = f->bits,
        .group = f->group ? f->group : (int32_t)in,
        .scale_dtype = TURBO_BF16,
        .offset = f->bits == 4 ? 8 : 128,
        .zero = f->zero ? &some : NULL,
    };
    turbo_err err = {""};
    turbo_status st = turbok_cu_wq_plan(&g, out, in, false, w, &err);
    if (st)
        fprintf(stderr, "bench-gpu: %s\n", err.text);
    return !st;
}

static double bytes_of(const turbok_cu_wq *w)
{
    return (double)(w->out * w->in) * w->bits / 8 +
           (double)(w->out * w->groups) * (w->zero ? 3 : 2);
}

/* bf16: seconds of cuBLASLt for the same product, which then is the limit; or 0. */
static void one(const char *name, const kind *f, int64_t out, int64_t in, int32_t T, bool gated,
                double bf16)
{
    quant_job j = {.T = T, .gated = gated};
    char what[32], of[96];
    if (!plan_of(f, out, in, &j.w))
        return;
    j.up = j.w;
    /* far more than the second cache */
    uint64_t enough = quick ? j.w.bytes : bf16 > 0 ? (uint64_t)256 << 20 : (uint64_t)1 << 30;
    j.copies = (int32_t)((enough + j.w.bytes - 1) / j.w.bytes);
    j.base = images(&j.w, j.copies);
    j.base_up = gated ? images(&j.up, j.copies) : 0;
    j.x = numbers(T * in, 1);
    j.y = room((size_t)(T * out) * 2);
    j.scratch = room(turbok_cu_wq_scratch(cu, in, T));
    turbok_cu_fill(cu, turbok_cu_at(j.scratch), 0, TURBOK_CU_WQ_COUNTERS);
    double s = seconds(multiply, &j, 9) / j.copies;
    double bytes = bytes_of(&j.w);
    snprintf(what, sizeof what, "%s %s", f->name, gated ? "gated" : T > 8 ? "gemm" : "gemv");
    snprintf(of, sizeof of, "%s %lld x %lld, T %d", name, (long long)out, (long long)in, T);
    if (bf16 > 0)
        report(what, of, s, 0, 2.0 * T * (double)(out * in), 2.0 * T * (double)(out * in) / bf16);
    else if (T <= 64)
        report(what, of, s, bytes * (gated ? 2 : 1) + 2.0 * T * (double)(in + out), 0, read_rate);
    else
        report(what, of, s, 0, 2.0 * T * (double)(out * in), 0);
    give((void *)(uintptr_t)j.base);
    if (gated)
        give((void *)(uintptr_t)j.base_up);
    give(j.x);
    give(j.y);
    give(j.scratch);
}

/* ---- a whole step ------------------------------------------------------------------------------------- */

typedef struct quant_model {
    turbok_cu_wq q[4]; /* qkv, wo, gate and up, down; placed anew for each layer */
    turbok_cu_ptr images[5]; /* [layers], up beside gate */
    turbok_cu_wq head; /* bits 0: dense, bf16 */
    void *dense_head, *scratch, *other; /* other: [T,I] of up, where no kernel joins it with gate */
} quant_model;

static bool product(void *ctx, int which, int32_t layer, const void *x, int32_t T, void *y,
                    const turbok_cu_beside *b)
{
    quant_model *m = ctx;
    turbok_cu_wq *w = &m->q[which];
    turbok_cu_wq_place(w, m->images[which] + (uint64_t)layer * w->bytes);
    if (which != QUANT_GATED && b)
        return turbok_cu_wq_beside(cu, TURBO_BF16, w, x, T, TURBO_BF16, y, b);
    if (which != QUANT_GATED) {
        turbok_cu_wq_linear(cu, TURBO_BF16, w, x, T, TURBO_BF16, y, w->out, m->scratch);
        return true;
    }
    turbok_cu_wq up = *w;
    turbok_cu_wq_place(&up, m->images[4] + (uint64_t)layer * w->bytes);
    const bool one =
        turbok_cu_wq_gated(cu, TURBO_BF16, w, &up, TURBO_ACT_SILU, x, T, y, m->scratch, b);
    if (one || b)
        return one;
    turbok_cu_wq_linear(cu, TURBO_BF16, w, x, T, TURBO_BF16, y, w->out, m->scratch);
    turbok_cu_wq_linear(cu, TURBO_BF16, &up, x, T, TURBO_BF16, m->other, w->out, m->scratch);
    turbok_cu_activate(cu, TURBO_BF16, TURBO_ACT_SILU, y, m->other, (int64_t)T * w->out, y);
    return true;
}

static void head_of(void *ctx, const shape *s, const void *x, int32_t R, float *logits)
{
    quant_model *m = ctx;
    turbok_cu_wq_linear(cu, TURBO_BF16, &m->head, x, R, TURBO_F32, logits, s->V, m->scratch);
}

/* head: its format, or NULL: bf16. Steps of one sequence, or of more. */
static void quant_step(const shape *s, const kind *f, const kind *head, bool single)
{
    static const int32_t batches[] = {1, 8, 16, 64, 256};
    enum { MOST = 256 };
    const int64_t dims[4][2] = {{(s->H + 2 * s->K) * s->D, s->E},
                                {s->E, s->H * s->D},
                                {s->I, s->E},
                                {s->E, s->I}};
    quant_model m = {0};
    double bytes = 0;
    for (int i = 0; i < 4; i++) {
        if (!plan_of(f, dims[i][0], dims[i][1], &m.q[i]))
            return;
        m.images[i] = images(&m.q[i], s->L);
        bytes += bytes_of(&m.q[i]) * s->L * (i == QUANT_GATED ? 2 : 1);
    }
    m.images[4] = images(&m.q[QUANT_GATED], s->L);
    if (head && plan_of(head, s->V, s->E, &m.head))
        turbok_cu_wq_place(&m.head, images(&m.head, 1));
    m.dense_head = numbers((int64_t)s->V * s->E, 0.02f);
    m.scratch = room(turbok_cu_wq_scratch(cu, s->I, MOST));
    m.other = room((size_t)s->I * MOST * 2);
    turbok_cu_fill(cu, turbok_cu_at(m.scratch), 0, TURBOK_CU_WQ_COUNTERS);
    bytes += m.head.bits ? bytes_of(&m.head) : 2.0 * s->V * s->E;
    const products p = {product,     m.head.bits ? head_of : NULL, &m, m.dense_head, bytes,
                        f->bits == 4};
    char text[96];
    snprintf(text, sizeof text, "%s %s, head %s", s->name, f->name, head ? head->name : "bf16");
    for (int i = single ? 0 : 1; i < (single ? 1 : quick ? 2 : 5); i++)
        step_with(s, &p, batches[i], text);
    for (int i = 0; i < 5; i++)
        give((void *)(uintptr_t)m.images[i]);
    if (m.head.bits)
        give((void *)(uintptr_t)m.head.m.codes);
    give(m.dense_head);
    give(m.scratch), give(m.other);
}

void quant_steps(bool single)
{
    const shape *m = shape_at(1);
    quant_step(m, &kinds[0], NULL, single);
    quant_step(m, &kinds[1], &kinds[2], single);
    quant_step(m, &kinds[2], &kinds[2], single);
}

void bench_quant(void)
{
    static const int32_t rows[] = {1, 8, 16, 32, 64, 256};
    const shape *m = shape_at(1);
    open_blas();
    quant_steps(false);
    for (size_t f = 0; f < sizeof kinds / sizeof kinds[0]; f++)
        for (int k = 0; k < (quick ? 3 : kinds[f].group == 32 ? 2 : 6); k++) {
            one(m->name, &kinds[f], (m->H + 2 * m->K) * m->D, m->E, rows[k], false, 0);
            one(m->name, &kinds[f], m->E, m->E, rows[k], false, 0);
            one(m->name, &kinds[f], m->I, m->E, rows[k], rows[k] <= 8, 0);
            one(m->name, &kinds[f], m->E, m->I, rows[k], false, 0);
        }
}

/* Many rows, beside the fastest bf16 product of cuBLASLt for the shape: its rate is the limit. */
void bench_quant_rows(void)
{
    static const int32_t rows[] = {16, 64, 128, 256, 2048};
    static const kind all[] = {{"w4 g128 zeros", 4, 128, true},
                               {"w4 g32", 4, 32, false},
                               {"w8 rows", 8, 0, false},
                               {"w8 g32", 8, 32, false}};
    const shape *m = shape_at(1);
    const int32_t dims[4][2] = {{(m->H + 2 * m->K) * m->D, m->E},
                                {m->E, m->H * m->D},
                                {m->I, m->E},
                                {m->E, m->I}};
    for (int i = 0; i < (quick ? 1 : 5); i++)
        for (int d = 0; d < 4; d++) {
            const double best = dense_best(dims[d][0], dims[d][1], rows[i]);
            for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
                one(m->name, &all[k], dims[d][0], dims[d][1], rows[i], false, best);
        }
}
