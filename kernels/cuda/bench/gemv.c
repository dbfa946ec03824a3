/* kernels/cuda/bench/gemv.c: bench-gpu's products of few rows with bf16 matrices, against the read kernel of the same
 * run. */
#include "bench-gpu.h"

typedef struct product {
    char *w, *up, *x, *y;
    int64_t bytes; /* of a matrix */
    int32_t out, in, T, copies;
    bool gated;
} product;

static void multiply_all(void *ctx)
{
    product *p = ctx;
    for (int32_t i = 0; i < p->copies; i++) {
        const char *w = p->w + i * p->bytes;
        if (p->gated)
            turbok_cu_gemv_gated(cu, TURBO_BF16, w, p->up + i * p->bytes, TURBO_BF16,
                                 TURBO_ACT_SILU, p->out, p->in, p->x, p->T, p->y, NULL);
        else
            turbok_cu_gemv(cu, TURBO_BF16, w, TURBO_BF16, NULL, p->out, p->in, p->x, p->T,
                           TURBO_BF16, p->y);
    }
}

static void one_product(const char *name, int32_t out, int32_t in, int32_t T, bool gated)
{
    product p = {.out = out, .in = in, .T = T, .gated = gated};
    char text[96];
    p.bytes = (int64_t)out * in * 2;
    int64_t enough = quick ? p.bytes : (int64_t)2 << 30; /* far more than the second cache */
    p.copies = (int32_t)((enough + p.bytes - 1) / p.bytes);
    p.w = numbers(p.bytes / 2 * p.copies, 0.02f);
    p.up = gated ? numbers(p.bytes / 2 * p.copies, 0.02f) : NULL;
    p.x = numbers((int64_t)T * in, 1);
    p.y = room((size_t)T * (size_t)out * 2);
    double s = seconds(multiply_all, &p, 9) / p.copies;
    snprintf(text, sizeof text, "%s %d x %d, T %d", name, out, in, T);
    report(gated ? "gemv gated" : "gemv", text, s,
           (double)p.bytes * (gated ? 2 : 1) + 2.0 * T * (in + out), 0, read_rate);
    give(p.w), give(p.x), give(p.y);
    if (gated)
        give(p.up);
}

void bench_gemv(void)
{
    for (int i = 0; i < SHAPES; i++) {
        const shape *m = &shapes[i];
        static const int32_t rows[] = {1, 8};
        for (int k = 0; k < 2; k++) {
            one_product(m->name, (m->H + 2 * m->K) * m->D, m->E, rows[k], false);
            one_product(m->name, m->E, m->H * m->D, rows[k], false);
            one_product(m->name, m->I, m->E, rows[k], true);
            one_product(m->name, m->E, m->I, rows[k], false);
            one_product(m->name, m->V, m->E, rows[k], false);
            if (quick)
                return;
        }
    }
}
