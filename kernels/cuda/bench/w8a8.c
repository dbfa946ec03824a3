/* kernels/cuda/bench/w8a8.c: bench-gpu's products of codes with codes: activations in bf16 become codes, and the two are
 * multiplied, together and each alone. The limit is twice the rate of the fastest bf16 product of cuBLASLt for the same
 * shape in this run: the tensor cores do twice as much in 8 bits. */
#include "bench-gpu.h"

#include "cuda/w8a8.h"

typedef struct coded_job {
    turbok_cu_wq w;
    turbok_cu_ptr base;
    turbok_cu_coded_rows rows;
    void *x, *y, *scratch, *partial, *room;
    uint64_t partial_bytes;
    int32_t T, copies;
    bool code, multiply;
} coded_job;

static void work(void *ctx)
{
    coded_job *j = ctx;
    for (int32_t i = 0; i < j->copies; i++) {
        turbok_cu_wq_place(&j->w, j->base + (uint64_t)i * j->w.bytes);
        if (j->code)
            j->rows = turbok_cu_w8a8_code(cu, TURBO_BF16, &j->w, j->x, j->T, j->room);
        if (j->multiply)
            turbok_cu_w8a8_linear(cu, &j->w, &j->rows, TURBO_BF16, j->y, j->w.out, j->scratch,
                                  j->partial, j->partial_bytes);
    }
}

typedef struct coded_kind {
    const char *name;
    bool e4m3;
    int32_t group; /* 0: one scale a row */
} coded_kind;
static const coded_kind kinds[] = {{"int8 rows", false, 0},
                                   {"fp8 rows", true, 0},
                                   {"fp8 128 x 128", true, 128}};

static void one(const char *name, const coded_kind *k, int32_t out, int32_t in, int32_t T,
                double limit)
{
    static const uint8_t some;
    const turbok_grid g = {.bits = 8,
                           .group = k->group ? k->group : in,
                           .offset = 128,
                           .table = k->e4m3 ? (const float *)(const void *)&some : NULL,
                           .coded_inputs = 1};
    coded_job j = {.T = T, .partial_bytes = (uint64_t)cu->sm_count << 17};
    turbo_err err = {""};
    char what[40], of[96];
    if (turbok_cu_wq_plan(&g, out, in, false, &j.w, &err)) {
        fprintf(stderr, "bench-gpu: %s\n", err.text);
        return;
    }
    if (k->e4m3)
        j.w.kind = TURBOK_CU_Q_E4M3;
    if (!turbok_cu_w8a8_covers(cu, &j.w, TURBO_BF16, T)) {
        printf("%s: not on this card\n", k->name);
        return;
    }
    uint64_t enough = quick ? j.w.bytes : (uint64_t)256 << 20; /* several times the second cache */
    j.copies = (int32_t)((enough + j.w.bytes - 1) / j.w.bytes);
    j.base = turbok_cu_at(numbers((int64_t)(j.w.bytes / 2) * j.copies, 0.02f));
    j.x = numbers((int64_t)T * in, 1);
    j.y = room((size_t)T * (size_t)out * 2);
    j.room = room(turbok_cu_w8a8_bytes(in, T));
    j.partial = room(j.partial_bytes);
    j.scratch = room(TURBOK_CU_WQ_COUNTERS);
    turbok_cu_fill(cu, turbok_cu_at(j.scratch), 0, TURBOK_CU_WQ_COUNTERS);
    snprintf(of, sizeof of, "%s %d x %d, T %d", name, out, in, T);
    const double flop = 2.0 * T * out * in;
    j.code = j.multiply = true;
    snprintf(what, sizeof what, "w8a8 %s", k->name);
    report(what, of, seconds(work, &j, 9) / j.copies, 0, flop, limit);
    j.code = false;
    snprintf(what, sizeof what, "%s, product", k->name);
    report(what, of, seconds(work, &j, 9) / j.copies, 0, flop, limit);
    j.code = true, j.multiply = false;
    snprintf(what, sizeof what, "%s, codes", k->name);
    report(what, of, seconds(work, &j, 9) / j.copies, 3.0 * T * in, 0, read_rate);
    give((void *)(uintptr_t)j.base);
    give(j.x), give(j.y), give(j.room), give(j.partial), give(j.scratch);
}

void bench_w8a8(void)
{
    static const int32_t rows[] = {64, 256, 2048};
    const shape *m = shape_at(1);
    const int32_t dims[4][2] = {{(m->H + 2 * m->K) * m->D, m->E},
                                {m->E, m->H * m->D},
                                {m->I, m->E},
                                {m->E, m->I}};
    for (int i = 0; i < (quick ? 1 : 3); i++)
        for (int d = 0; d < 4; d++) {
            const double best = dense_best(dims[d][0], dims[d][1], rows[i]);
            const double flop = 2.0 * rows[i] * dims[d][0] * dims[d][1];
            for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++)
                one(m->name, &kinds[k], dims[d][0], dims[d][1], rows[i],
                    best > 0 ? 2 * flop / best : 0);
        }
}
