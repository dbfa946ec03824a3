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
        if (!turbok_cu_wq_gated(cu, TURBO_BF16, &j->w, &j->up, TURBO_ACT_SILU, j->x, j->T, j->y))
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

static void one(const char *name, int bits, int64_t out, int64_t in, int32_t T, bool gated)
{
    static const uint8_t some;
    turbok_grid g = {
        .bits = bits,
        .group = bits == 4 ? 128 : (int32_t)in,
        .scale_dtype = TURBO_BF16,
        .offset = 128,
        .zero = bits == 4 ? &some : NULL,
    };
    quant_job j = {.T = T, .gated = gated};
    turbo_err err = {""};
    char what[32], of[96];
    if (turbok_cu_wq_plan(&g, out, in, false, &j.w, &err)) {
        fprintf(stderr, "bench-gpu: %s\n", err.text);
        return;
    }
    j.up = j.w;
    uint64_t enough = quick ? j.w.bytes : (uint64_t)1 << 30; /* far more than the second cache */
    j.copies = (int32_t)((enough + j.w.bytes - 1) / j.w.bytes);
    j.base = images(&j.w, j.copies);
    j.base_up = gated ? images(&j.up, j.copies) : 0;
    j.x = numbers(T * in, 1);
    j.y = room((size_t)(T * out) * 2);
    j.scratch = room(turbok_cu_wq_scratch(cu, in, T));
    turbok_cu_fill(cu, turbok_cu_at(j.scratch), 0, TURBOK_CU_WQ_COUNTERS);
    double s = seconds(multiply, &j, 9) / j.copies;
    double bytes = (double)(out * in) * bits / 8 + (double)(out * j.w.groups) * (j.w.zero ? 3 : 2);
    snprintf(what, sizeof what, "w%d %s", bits, gated ? "gated" : T > 8 ? "gemm" : "gemv");
    snprintf(of, sizeof of, "%s %lld x %lld, T %d", name, (long long)out, (long long)in, T);
    if (T <= 64)
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

void bench_quant(void)
{
    static const int32_t rows[] = {1, 8, 16, 32, 64, 256};
    const shape *m = &shapes[1];
    for (int bits = 4; bits <= 8; bits += 4)
        for (int k = 0; k < (quick ? 3 : 6); k++) {
            int64_t I = quick ? 256 : m->I, E = quick ? 256 : m->E;
            int64_t qkv = quick ? 64 : (m->H + 2 * m->K) * m->D;
            one(m->name, bits, qkv, E, rows[k], false);
            one(m->name, bits, E, E, rows[k], false);
            if (rows[k] <= 8)
                one(m->name, bits, I, E, rows[k], true);
            else
                one(m->name, bits, I, E, rows[k], false);
            one(m->name, bits, E, I, rows[k], false);
        }
}
