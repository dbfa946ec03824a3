/* kernels/bench/bench.c: what the machine can do, and how near the kernels come.
 *
 * Read bandwidth and fp32 multiply-add peak are measured first, then linear layers (GEMV for decode,
 * GEMM for prefill) of the InternLM2-1.8B shapes, then whole decode steps with random bf16 weights
 * against the bandwidth of the same run. Rounds of bandwidth and kernels alternate, medians are
 * reported: the machine may be noisy. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "internal.h"

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

/* ---- read bandwidth ------------------------------------------------------------------------------- */

typedef struct reader {
    const uint64_t *p;
    size_t n; /* words */
    _Atomic uint64_t sink;
} reader;

static void read_range(void *ctx, int64_t from, int64_t to, int thread)
{
    reader *r = ctx;
    typedef uint64_t v8 __attribute__((vector_size(64)));
    const v8 *p = (const v8 *)(const void *)r->p;
    v8 a = {0}, b = {0}, c = {0}, d = {0};
    (void)thread;
    for (size_t i = (size_t)from * 512; i < (size_t)to * 512; i += 4) { /* 32 KiB an item */
        __builtin_prefetch(&p[i + 32]);
        __builtin_prefetch(&p[i + 33]);
        __builtin_prefetch(&p[i + 34]);
        __builtin_prefetch(&p[i + 35]);
        a ^= p[i];
        b ^= p[i + 1];
        c ^= p[i + 2];
        d ^= p[i + 3];
    }
    a ^= b ^ c ^ d;
    r->sink ^= a[0] ^ a[7];
}

static double bandwidth(turbok_device *d, reader *r)
{
    int64_t items = (int64_t)(r->n * 8 / 32768) - 1;
    double t = now();
    turbok_pool_for(d->exec.pool, items, items / 32, read_range, r);
    return (double)items * 32768 / (now() - t);
}

/* ---- peak ------------------------------------------------------------------------------------------- */

static void peak_range(void *ctx, int64_t from, int64_t to, int thread)
{
    turbok_device *d = ctx;
    static const float w[64 * TURBOK_TILE]; /* zeros: stays in the first-level cache */
    float x[6 * 64] = {0}, acc[6 * TURBOK_TILE] = {0};
    (void)thread;
    for (int64_t i = from; i < to; i++)
        d->exec.prim->gemm_tile(TURBO_F32, w, x, 64, 6, 64, acc);
}

static double peak_flops(turbok_device *d)
{
    const int64_t n = 40000;
    double t = now();
    turbok_pool_for(d->exec.pool, n, n / 64, peak_range, d);
    return (double)n * 2 * 6 * 64 * TURBOK_TILE / (now() - t);
}

/* ---- linear layers ------------------------------------------------------------------------------------ */

static turbo_linear *random_linear(turbok_device *d, int32_t dtype, int64_t out, int64_t in)
{
    turbo_linear *w = NULL;
    turbo_err err;
    size_t es = dtype == TURBO_F32 ? 4 : 2, row = (size_t)in * es;
    char *data = malloc((size_t)out * row);
    if (!data)
        return NULL;
    uint32_t seed = 1;
    for (int64_t i = 0; i < in; i++) { /* one random row, repeated: values do not change the speed */
        seed = seed * 1664525u + 1013904223u;
        float f = (float)(seed >> 8) / (float)(1 << 24) - 0.5f;
        turbok_prim_scalar.narrow(dtype, &f, 1, data + (size_t)i * es);
    }
    for (int64_t r = 1; r < out; r++)
        memcpy(data + (size_t)r * row, data, row);
    if (turbok_linear_new(d, dtype, data, out, in, NULL, TURBO_F32, 0, &w, &err))
        fprintf(stderr, "bench: %s\n", err.text);
    free(data);
    return w;
}

typedef struct options {
    bool json, quick, step;
    int threads;
    turbok_isa isa;
} options;

static void bench_linear(turbok_device *d, const options *o, reader *r, int32_t dtype, int64_t out,
                         int64_t in)
{
    static const char *const names[] = {"f32", "f16", "bf16"};
    int rounds = o->quick ? 3 : 7;
    turbo_linear *w = random_linear(d, dtype, out, in);
    if (!w)
        return;
    const int T = 128;
    float *x = calloc((size_t)T * (size_t)in, 4), *y = calloc((size_t)T * (size_t)out, 4);
    double gemv[16], gemm[16], bw[16];
    for (int i = 0; i < rounds && x && y; i++) {
        bw[i] = bandwidth(d, r);
        int reps = 0;
        double t = now(), dt;
        do {
            turbok_op_linear(turbok_device_exec(d), w, x, 1, y);
            dt = now() - t;
        } while (++reps < 3 || dt < 0.05);
        gemv[i] = (double)w->data_bytes * reps / dt;
        t = now();
        turbok_op_linear(turbok_device_exec(d), w, x, T, y);
        gemm[i] = 2.0 * T * (double)out * (double)in / (now() - t);
    }
    double b = median(bw, rounds), v = median(gemv, rounds), m = median(gemm, rounds);
    const char *form = o->json ? "{\"op\":\"linear\",\"dtype\":\"%s\",\"out\":%lld,\"in\":%lld,"
                                 "\"gemv_bytes_s\":%.4g,\"of_bandwidth\":%.3f,\"gemm_flops\":%.4g}\n"
                               : "linear %-4s %6lld x %5lld   T=1 %6.2f GB/s  %5.2f of bandwidth   "
                                 "T=128 %7.2f GFLOP/s\n";
    printf(form, names[dtype], (long long)out, (long long)in, o->json ? v : v * 1e-9, v / b,
           o->json ? m : m * 1e-9);
    fflush(stdout);
    free(x);
    free(y);
    turbok_linear_free(d, w);
}

/* All linear layers of one decode step of the 1.8B shape: the bytes that every token has to read. */
static void bench_step(turbok_device *d, const options *o, reader *r)
{
    enum { E = 2048, QKV = 4096, I = 8192, V = 92544 };
    const int layers = o->quick ? 4 : 24, rounds = o->quick ? 3 : 5;
    turbo_linear *w[24][5] = {{0}}, *head = random_linear(d, TURBO_BF16, V, E);
    double bytes = head ? (double)head->data_bytes : 0;
    bool ok = head != NULL;
    for (int l = 0; l < layers && ok; l++) {
        const int64_t shapes[5][2] = {{QKV, E}, {E, E}, {I, E}, {I, E}, {E, I}};
        for (int k = 0; k < 5 && ok; k++) {
            w[l][k] = random_linear(d, TURBO_BF16, shapes[k][0], shapes[k][1]);
            ok = w[l][k] != NULL;
            bytes += ok ? (double)w[l][k]->data_bytes : 0;
        }
    }
    float *x = calloc(E, 4), *y = calloc(QKV, 4), *s = calloc(2 * I, 4), *z = calloc(V, 4);
    double step[8], bw[8];
    turbo_exec *ex = turbok_device_exec(d);
    for (int i = 0; i < rounds && ok && x && y && s && z; i++) {
        bw[i] = bandwidth(d, r);
        double t = now();
        for (int l = 0; l < layers; l++) {
            turbok_op_linear(ex, w[l][0], x, 1, y);
            turbok_op_linear(ex, w[l][1], y, 1, x);
            turbok_op_gated_mlp(ex, w[l][2], w[l][3], w[l][4], TURBO_ACT_SILU, x, 1, s, y);
        }
        turbok_op_logits(ex, head, x, 1, z);
        step[i] = now() - t;
    }
    if (ok) {
        double b = median(bw, rounds), t = median(step, rounds);
        printf(o->json ? "{\"op\":\"decode_step\",\"layers\":%d,\"bytes\":%.0f,\"seconds\":%.5f,"
                         "\"tokens_s\":%.2f,\"bytes_s\":%.4g,\"of_bandwidth\":%.3f}\n"
                       : "decode step, %d layers of the 1.8B shape, bf16: %.2e bytes in %.4f s: %.2f "
                         "tokens/s, %.3g bytes/s, %.2f of bandwidth\n",
               layers, bytes, t, 1 / t, bytes / t, bytes / t / b);
    } else {
        fprintf(stderr, "bench: not enough memory for the 1.8B shape\n");
    }
    for (int l = 0; l < layers; l++)
        for (int k = 0; k < 5; k++)
            turbok_linear_free(d, w[l][k]);
    turbok_linear_free(d, head);
    free(x);
    free(y);
    free(s);
    free(z);
}

static void usage(void)
{
    puts("usage: kernels/bench/bench [options]\n"
         "Measures read bandwidth, fp32 peak, linear layers and a decode step of the InternLM2-1.8B\n"
         "shape (random weights), all in one run. Medians of alternating rounds.\n"
         "  --quick       fewer rounds, 4 layers, a smaller buffer\n"
         "  --json        one JSON object a line\n"
         "  --no-step     leave the decode step out (it needs 4 GiB)\n"
         "  --threads N   compute threads (0: all CPUs)\n"
         "  --isa NAME    auto, scalar, avx2, avx512");
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"json", 0, NULL, 'j'}, {"quick", 0, NULL, 'q'}, {"no-step", 0, NULL, 's'},
        {"threads", 1, NULL, 't'}, {"isa", 1, NULL, 'i'}, {"help", 0, NULL, 'h'}, {NULL, 0, NULL, 0}};
    options o = {.step = true};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        if (c == 'j')
            o.json = true;
        else if (c == 'q')
            o.quick = true;
        else if (c == 's')
            o.step = false;
        else if (c == 't')
            o.threads = (int)strtol(optarg, NULL, 10);
        else if (c == 'i')
            o.isa = !strcmp(optarg, "scalar") ? TURBOK_ISA_SCALAR
                    : !strcmp(optarg, "avx2") ? TURBOK_ISA_AVX2
                    : !strcmp(optarg, "avx512") ? TURBOK_ISA_AVX512
                                                : TURBOK_ISA_AUTO;
        else {
            usage();
            return c == 'h' ? 0 : 64;
        }
    }
    turbok_device *d = NULL;
    turbo_err err;
    turbok_device_opts opts = {.isa = o.isa, .threads = o.threads, .spin_us = -1};
    if (turbok_device_open(&opts, &d, &err)) {
        fprintf(stderr, "bench: %s\n", err.text);
        return 64;
    }
    reader r = {.n = (size_t)(o.quick ? 32 : 128) << 20};
    uint64_t *buf = turbok_alloc(d, r.n * 8);
    if (!buf)
        return 71;
    memset(buf, 1, r.n * 8);
    r.p = buf;
    double bw[9], fl[9];
    for (int i = 0; i < 9; i++) {
        bw[i] = bandwidth(d, &r);
        fl[i] = peak_flops(d);
    }
    printf(o.json ? "{\"device\":\"%s\",\"read_bytes_s\":%.4g,\"fma_flops\":%.4g}\n"
                  : "%s: read bandwidth %.4g bytes/s, fp32 multiply-add peak %.4g FLOP/s\n",
           turbok_device_name(d), median(bw, 9), median(fl, 9));
    fflush(stdout);
    static const int64_t shapes[][2] = {{4096, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}, {92544, 2048}};
    for (int t = 0; t < 3; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            if (!o.quick || (t == TURBO_BF16 && s < 4))
                bench_linear(d, &o, &r, t, shapes[s][0], shapes[s][1]);
    if (o.step)
        bench_step(d, &o, &r);
    turbok_release(d, buf, r.n * 8);
    turbok_device_close(d);
    return 0;
}
