/* kernels/cuda/bench/dense.c: bench-gpu's dense products of 16 rows and more, bf16: how the engine multiplies (the
 * algorithm of cuBLASLt that blas.c keeps for a shape), our own kernels, and the fastest of those that
 * cuBLASLt proposes, each measured. Without the library the own kernel is how the engine multiplies. */
#include "bench-gpu.h"

#include <string.h>

turbok_blas *blas;

void open_blas(void)
{
    enum { SPACE = 32 << 20 }; /* as steps.c has */
    static bool opened;
    turbo_err err;
    if (opened)
        return;
    opened = true;
    if (turbok_blas_open(cu, &blas, &err))
        fprintf(stderr, "bench-gpu: %s\n", err.text);
    turbok_blas_space(blas, room(SPACE), SPACE);
    printf("products of more than %d rows: %s\n", TURBOK_CU_GEMV_ROWS,
           blas ? "cuBLASLt" : "own kernels");
}

void dense(const void *w, int32_t out, int32_t in, const void *x, int32_t T, int32_t type, void *y)
{
    if (blas && T > TURBOK_CU_GEMV_ROWS) {
        if (!turbok_cu_gemm_suits(cu, T, out, in) ||
            !turbok_cu_gemm_wide(cu, TURBO_BF16, w, NULL, TURBO_BF16, NULL, out, in, x, T, type, y,
                                 NULL))
            turbok_blas_gemm(blas, TURBO_BF16, w, out, in, x, T, type, y);
        return;
    }
    (T <= TURBOK_CU_GEMV_ROWS ? turbok_cu_gemv : turbok_cu_gemm)(cu, TURBO_BF16, w, TURBO_BF16,
                                                                 NULL, out, in, x, T, type, y);
}

bool dense_gated(const void *gate, const void *up, int32_t out, int32_t in, const void *x,
                 int32_t T, void *y)
{
    return T > TURBOK_CU_GEMV_ROWS && turbok_cu_gemm_joins(cu, T, blas) &&
           turbok_cu_gemm_wide(cu, TURBO_BF16, gate, up, TURBO_BF16, NULL, out, in, x, T,
                               TURBO_BF16, y, NULL);
}

bool dense_turned(const void *qkv, int32_t in, const void *x, const turbok_cu_attn *at,
                  const turbok_cu_batch *b, void *q)
{
    const int32_t out = (at->n_heads + 2 * at->kv.n_kv) * at->kv.head_dim;
    return turbok_cu_gemm_turns(cu, b->T, out) &&
           turbok_cu_gemm_turned(cu, TURBO_BF16, qkv, TURBO_BF16, NULL, in, x, at, b, q);
}

typedef struct dense_job {
    char *w;
    void *x, *y;
    int64_t bytes; /* of a matrix */
    int32_t out, in, T, copies;
    int which; /* of the library's kernels */
    bool own;
} dense_job;

static void make_job(dense_job *j)
{
    j->bytes = (int64_t)j->out * j->in * 2;
    int64_t enough = quick ? j->bytes : (int64_t)256 << 20; /* several times the second cache */
    j->copies = (int32_t)((enough + j->bytes - 1) / j->bytes);
    j->w = numbers(j->bytes / 2 * j->copies, 0.02f);
    j->x = numbers((int64_t)j->T * j->in, 1);
    j->y = room((size_t)j->T * (size_t)j->out * 2);
}

static void free_job(dense_job *j)
{
    give(j->w), give(j->x), give(j->y);
}

static void multiply_all(void *ctx)
{
    dense_job *j = ctx;
    for (int32_t i = 0; i < j->copies; i++) {
        const char *w = j->w + i * j->bytes;
        if (j->own)
            turbok_cu_gemm(cu, TURBO_BF16, w, TURBO_BF16, NULL, j->out, j->in, j->x, j->T,
                           TURBO_BF16, j->y);
        else
            turbok_blas_gemm(blas, TURBO_BF16, w, j->out, j->in, j->x, j->T, TURBO_BF16, j->y);
    }
}

/* Microseconds of one product, in each of the three ways; 0: there is no such way here. */
typedef struct dense_time {
    double engine, own, best;
    int proposals, which; /* which of them is the best */
} dense_time;

static dense_time one_shape(int32_t out, int32_t in, int32_t T, bool with_own)
{
    dense_job j = {.out = out, .in = in, .T = T};
    dense_time t = {0};
    make_job(&j);
    if (blas)
        t.engine = seconds(multiply_all, &j, 9) / j.copies * 1e6;
    while (blas && turbok_blas_choose(blas, TURBO_BF16, out, in, T, TURBO_BF16, t.proposals)) {
        double us = seconds(multiply_all, &j, 5) / j.copies * 1e6;
        if (!t.proposals || us < t.best) {
            t.best = us;
            t.which = t.proposals;
        }
        t.proposals++;
    }
    if (blas)
        turbok_blas_choose(blas, TURBO_BF16, out, in, T, TURBO_BF16, 0);
    j.own = true;
    if (with_own || !blas)
        t.own = seconds(multiply_all, &j, 5) / j.copies * 1e6;
    if (!blas)
        t.engine = t.own;
    free_job(&j);
    return t;
}

typedef struct joined_job {
    char *gate, *up;
    void *x, *y, *other;
    int64_t bytes;
    int32_t out, in, T, copies;
    bool apart;
} joined_job;

static void join_all(void *ctx)
{
    joined_job *j = ctx;
    for (int32_t i = 0; i < j->copies; i++) {
        const char *gate = j->gate + i * j->bytes, *up = j->up + i * j->bytes;
        if (!j->apart && turbok_cu_gemm_wide(cu, TURBO_BF16, gate, up, TURBO_BF16, NULL, j->out,
                                             j->in, j->x, j->T, TURBO_BF16, j->y, NULL))
            continue;
        dense(gate, j->out, j->in, j->x, j->T, TURBO_BF16, j->y);
        dense(up, j->out, j->in, j->x, j->T, TURBO_BF16, j->other);
        turbok_cu_activate(cu, TURBO_BF16, TURBO_ACT_SILU, j->y, j->other, (int64_t)j->T * j->out,
                           j->y);
    }
}

/* Gate, up and SiLU as the library's products and a kernel, and in one launch, in turns. */
static void joined(const shape *m, int32_t T)
{
    joined_job j = {.out = m->I, .in = m->E, .T = T};
    double apart[2], one[2], flop = 4.0 * T * j.out * j.in;
    char of[64];
    j.bytes = (int64_t)j.out * j.in * 2;
    j.copies = quick ? 1 : (int32_t)((((int64_t)128 << 20) + j.bytes - 1) / j.bytes);
    j.gate = numbers(j.bytes / 2 * j.copies, 0.02f);
    j.up = numbers(j.bytes / 2 * j.copies, 0.02f);
    j.x = numbers((int64_t)T * j.in, 1);
    j.y = room((size_t)T * (size_t)j.out * 2);
    j.other = room((size_t)T * (size_t)j.out * 2);
    for (int i = 0; i < 2; i++) {
        j.apart = true;
        apart[i] = seconds(join_all, &j, 9) / j.copies;
        j.apart = false;
        one[i] = seconds(join_all, &j, 9) / j.copies;
    }
    printf("%-5s gate, up and SiLU, %d rows: apart %.1f, %.1f us, in one launch %.1f, %.1f us\n",
           m->name, T, apart[0] * 1e6, apart[1] * 1e6, one[0] * 1e6, one[1] * 1e6);
    snprintf(of, sizeof of, "%s, T %d", m->name, T);
    record("dense, gate and up", of, (one[0] + one[1]) / 2, 0, flop,
           flop * 2 / (apart[0] + apart[1]));
    give(j.gate), give(j.up), give(j.x), give(j.y), give(j.other);
}

typedef struct matrix {
    const char *name;
    int32_t out, in, times; /* how often a layer has it */
} matrix;

static void matrices(const shape *m, matrix out[4])
{
    out[0] = (matrix){"qkv", (m->H + 2 * m->K) * m->D, m->E, 1};
    out[1] = (matrix){"out", m->E, m->H * m->D, 1};
    out[2] = (matrix){"gate, up", m->I, m->E, 2};
    out[3] = (matrix){"down", m->E, m->I, 1};
}

double dense_best(int32_t out, int32_t in, int32_t T)
{
    open_blas();
    return blas ? one_shape(out, in, T, false).best * 1e-6 : 0;
}

static void multiply_best(void *ctx)
{
    dense_job *j = ctx;
    turbok_blas_choose(blas, TURBO_BF16, j->out, j->in, j->T, TURBO_BF16, j->which);
    multiply_all(j);
    turbok_blas_choose(blas, TURBO_BF16, j->out, j->in, j->T, TURBO_BF16, 0);
}

double dense_layer(const shape *m, int32_t T, timed *beside)
{
    enum { MATRICES = 4, ROUNDS = 9 };
    matrix all[MATRICES];
    dense_job jobs[MATRICES];
    timed turns[MATRICES + 1];
    const int n = blas ? MATRICES : 0;
    double s = 0;
    matrices(m, all);
    for (int i = 0; i < n; i++) {
        jobs[i] = (dense_job){.out = all[i].out, .in = all[i].in, .T = T};
        jobs[i].which = one_shape(jobs[i].out, jobs[i].in, T, false).which;
        make_job(&jobs[i]);
        turns[i] = (timed){multiply_best, &jobs[i], 0};
    }
    turns[n] = *beside;
    in_turns(turns, n + 1, ROUNDS);
    *beside = turns[n];
    for (int i = 0; i < n; i++) {
        s += turns[i].seconds / jobs[i].copies * all[i].times;
        free_job(&jobs[i]);
    }
    return s;
}

void bench_dense(void)
{
    static const int32_t rows[] = {16, 64, 128, 512, 2048};
    open_blas();
    printf("%-5s %-9s %6s x %5s %5s %10s %10s %10s %9s %8s %8s\n", "", "product", "out", "in",
           "rows", "engine us", "own us", "best us", "of", "engine", "own");
    for (int i = 0; i < (quick ? 1 : SHAPES); i++)
        for (int k = 0; k < (quick ? 2 : 5); k++) {
            const shape *m = shape_at(i);
            matrix all[4];
            const int32_t T = rows[k];
            double engine = 0, best = 0;
            matrices(m, all);
            for (int n = 0; n < 4; n++) {
                const matrix *x = &all[n];
                dense_time t = one_shape(x->out, x->in, T, true);
                char of[96];
                engine += t.engine * x->times;
                best += t.best * x->times;
                printf("%-5s %-9s %6d x %5d %5d %10.2f %10.2f %10.2f %4d / %2d %8.3f %8.3f\n",
                       m->name, x->name, x->out, x->in, T, t.engine, t.own, t.best,
                       blas ? t.which + 1 : 0, t.proposals, t.best / t.engine, t.best / t.own);
                snprintf(of, sizeof of, "%s %s %d x %d, T %d", m->name, x->name, x->out, x->in, T);
                double flop = 2.0 * T * x->out * x->in;
                record("dense, engine", of, t.engine * 1e-6, 0, flop, flop / t.best * 1e6);
                record("dense, own", of, t.own * 1e-6, 0, flop, flop / t.best * 1e6);
                if (blas)
                    record("dense, cuBLASLt", of, t.best * 1e-6, 0, flop, 0);
            }
            if (blas)
                printf("%-5s a layer, %d rows: engine %.1f us, best %.1f us, %.3f\n", m->name, T,
                       engine, best, best / engine);
            joined(m, T);
            fflush(stdout);
        }
}
