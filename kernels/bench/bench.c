/* kernels/bench/bench.c: what the machine can do, and how near the kernels come.
 *
 * Read bandwidth and fp32 multiply-add peak (measure.h) are measured first, then linear layers (GEMV for decode,
 * GEMM for prefill) of the InternLM2-1.8B shapes, then whole decode steps with random bf16 weights
 * against the bandwidth of the same run. The machine may be noisy: a share of the bandwidth is taken
 * against readings just before and just after, and medians over rounds are reported. A matrix that
 * fits a cache can exceed the bandwidth of memory. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grids.h"
#include "internal.h"
#include "measure.h"
#include "timing.h"

/* ---- linear layers ------------------------------------------------------------------------------------ */

static turbo_linear *random_linear(turbok_device *d, int32_t dtype, int64_t out, int64_t in)
{
    turbo_linear *w = NULL;
    turbo_err err;
    size_t es = dtype == TURBO_F32 ? 4 : 2, row = (size_t)in * es;
    char *data = calloc((size_t)out, row);
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
    bool json, quick, step, linear, help;
    int threads, bits; /* bits: of --weights, 0 without */
    turbok_isa isa;
} options;

/* Seconds of one call, over at least 30 ms of calls. */
static double time_linear(turbo_exec *ex, const turbo_linear *w, const float *x, int T, float *y)
{
    int reps = 0;
    double t = now(), dt;
    do {
        turbok_op_linear(ex, w, x, T, y);
        dt = now() - t;
    } while (++reps < 3 || dt < 0.03);
    return dt / reps;
}

static void bench_linear(turbok_device *d, const options *o, const turbok_reader *r, int32_t dtype,
                         int64_t out, int64_t in)
{
    static const char *const names[] = {"f32", "f16", "bf16"};
    int rounds = o->quick ? 3 : 7;
    turbo_linear *w = random_linear(d, dtype, out, in);
    if (!w)
        return;
    const int T = 128;
    float *x = calloc((size_t)T * (size_t)in, 4), *y = calloc((size_t)T * (size_t)out, 4);
    turbo_exec *ex = turbok_device_exec(d);
    double gemv[16], few[16], gemm[16], bw[16], fl[16];
    if (x && y) {
        for (int64_t i = 0; i < T * in; i++)
            x[i] = 0.5f; /* pages never written would all be the one page of zeros */
        turbok_op_linear(ex, w, x, T, y);
    }
    for (int i = 0; i < rounds && x && y; i++) {
        bw[i] = 0.5 * turbok_read_bandwidth(d, r);
        fl[i] = turbok_fma_peak(d);
        gemv[i] = (double)w->data_bytes / time_linear(ex, w, x, 1, y);
        bw[i] = gemv[i] / (bw[i] + 0.5 * turbok_read_bandwidth(d, r));
        few[i] = (double)w->data_bytes / time_linear(ex, w, x, 4, y);
        gemm[i] = 2.0 * T * (double)out * (double)in / time_linear(ex, w, x, T, y);
        fl[i] = fl[i] > 0 ? gemm[i] / fl[i] : 0;
    }
    double b = median(bw, rounds), v = median(gemv, rounds), m = median(gemm, rounds);
    double p = median(fl, rounds), v4 = median(few, rounds);
    if (o->json)
        printf("{\"op\":\"linear\",\"dtype\":\"%s\",\"out\":%lld,\"in\":%lld,\"t1_bytes_s\":%.4g,"
               "\"t1_of_bandwidth\":%.3f,\"t4_bytes_s\":%.4g,\"t128_flops\":%.4g,"
               "\"t128_of_peak\":%.3f}\n",
               names[dtype], (long long)out, (long long)in, v, b, v4, m, p);
    else
        printf("linear %-4s %6lld x %5lld  T=1 %6.1f GB/s, %4.2f of bandwidth  T=4 %6.1f GB/s  "
               "T=128 %6.1f GFLOP/s, %4.2f of peak\n",
               names[dtype], (long long)out, (long long)in, v * 1e-9, b, v4 * 1e-9, m * 1e-9, p);
    fflush(stdout);
    free(x);
    free(y);
    turbok_linear_free(d, w);
}

/* All linear layers of one decode step of the 1.8B shape: the bytes that every token has to read. */
static void bench_step(turbok_device *d, const options *o, const turbok_reader *r)
{
    enum { E = 2048, QKV = 4096, I = 8192, V = 92544 };
    const int layers = o->quick ? 4 : 24, rounds = o->quick ? 3 : 7;
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
        bw[i] = turbok_read_bandwidth(d, r);
        double t = now();
        for (int l = 0; l < layers; l++) {
            turbok_op_linear(ex, w[l][0], x, 1, y);
            turbok_op_linear(ex, w[l][1], y, 1, x);
            turbok_op_gated_mlp(ex, w[l][2], w[l][3], w[l][4], TURBO_ACT_SILU, x, 1, s, y);
        }
        turbok_op_logits(ex, head, x, 1, z);
        step[i] = now() - t;
        bw[i] = bytes / step[i] / (0.5 * bw[i] + 0.5 * turbok_read_bandwidth(d, r));
    }
    if (ok) {
        double b = median(bw, rounds), t = median(step, rounds);
        printf(o->json ? "{\"op\":\"decode_step\",\"layers\":%d,\"bytes\":%.0f,\"seconds\":%.5f,"
                         "\"tokens_s\":%.2f,\"bytes_s\":%.4g,\"of_bandwidth\":%.3f}\n"
                       : "decode step, %d layers of the 1.8B shape, bf16: %.2e bytes in %.4f s: %.2f "
                         "tokens/s, %.3g bytes/s, %.2f of bandwidth\n",
               layers, bytes, t, 1 / t, bytes / t, b);
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

/* ---- attention ------------------------------------------------------------------------------------------ */

/* The 1.8B shape: 16 query heads, 8 KV heads of 128. Several layers, or the quantised cache of a long
 * sequence would stay in the third-level cache, where it does not stay when a model runs. */
enum { H = 16, K = 8, D = 128, BT = 64, LAYERS = 4, KV_TYPES = 3 };
static const int32_t kv_types[KV_TYPES] = {TURBO_BF16, TURBOK_KV_INT8, TURBOK_KV_INT4};

typedef struct cache {
    turbok_kv_pool *pool;
    turbok_kv_table table;
    double bytes; /* of keys and values a layer */
    double seconds[16], share[16]; /* of one layer; of the bandwidth */
} cache;

static void cache_close(cache *c)
{
    if (c->pool)
        turbok_kv_table_free(&c->table, c->pool);
    turbok_kv_pool_free(c->pool);
}

/* len tokens; all zeros, which is a valid content of every type. */
static bool cache_open(turbok_device *d, cache *c, int32_t dtype, int32_t len)
{
    const turbok_kv_dims dims = {LAYERS, K, D, BT, dtype};
    turbo_err err;
    *c = (cache){0};
    if (turbok_kv_pool_new(d, &dims, len / BT + 1, &c->pool, &err) ||
        turbok_kv_table_init(&c->table, c->pool, len, &err) ||
        !turbok_kv_table_reserve(&c->table, c->pool, len))
        return false;
    memset(c->pool->map, 0, c->pool->map_bytes);
    c->bytes = (double)turbok_kv_block_bytes(&dims) / BT / LAYERS * len;
    return true;
}

/* Seconds of one layer, over at least 30 ms. */
static double time_attention(turbok_device *d, const turbo_batch *b, const float *q, float *out)
{
    turbo_attn a = {.size = sizeof a, .n_heads = H, .n_kv = K, .head_dim = D, .scale = 0.088f};
    double t = now();
    int reps = 0;
    do
        for (a.layer = 0; a.layer < LAYERS; a.layer++)
            turbok_op_attention(turbok_device_exec(d), &a, b, q, out);
    while (++reps < 2 || now() - t < 0.03);
    return (now() - t) / (reps * LAYERS);
}

static void print_attention(const options *o, cache *c, int type, int rounds, int32_t T,
                            int32_t len, double bf16)
{
    double sec = median(c->seconds, rounds);
    double flops = 4.0 * H * D * (double)T * ((double)len - 0.5 * T);
    printf(o->json
               ? "{\"op\":\"attention\",\"kv\":\"%s\",\"tokens\":%d,\"len\":%d,\"seconds\":%.4g,"
                 "\"kv_bytes_s\":%.4g,\"of_bandwidth\":%.3f,\"flops\":%.4g,\"of_bf16\":%.3f}\n"
               : "attention %-4s T=%-4d len %-5d  %.4g s, keys and values %.3g bytes/s (%.2f of "
                 "bandwidth), %.3g FLOP/s, %.2f of the time of bf16\n",
           turbok_kv_type_name(kv_types[type]), T, len, sec, c->bytes / sec,
           median(c->share, rounds), flops / sec, bf16);
    fflush(stdout);
}

/* T new tokens of one sequence that ends at len, over caches of each type, in turns. Decode is judged
 * by the bytes of keys and values it has to read, prefill by its multiply-adds (causal: only the keys
 * a query sees count). The last column is the median of the ratios of each round. */
static void bench_attention(turbok_device *d, const options *o, const turbok_reader *r, int32_t T,
                            int32_t len)
{
    cache c[KV_TYPES] = {{0}};
    float *q = calloc((size_t)T * H * D, 4), *out = calloc((size_t)T * H * D, 4);
    int32_t *pos = calloc((size_t)T, sizeof *pos), cu[2] = {0, T};
    int rounds = o->quick ? 3 : 9;
    bool ok = q && out && pos;
    for (int k = 0; k < KV_TYPES && ok; k++)
        ok = cache_open(d, &c[k], kv_types[k], len);
    for (int32_t t = 0; t < T && ok; t++)
        pos[t] = len - T + t;
    for (int i = 0; i < rounds && ok; i++)
        for (int k = 0; k < KV_TYPES; k++) {
            turbok_kv_table *tables[1] = {&c[k].table};
            struct turbo_kv kv = {c[k].pool, tables};
            turbo_batch b = {.size = sizeof b,
                             .n_tokens = T,
                             .n_seqs = 1,
                             .positions = pos,
                             .cu_seqlens = cu,
                             .kv_lens = &len,
                             .rope_lens = &len,
                             .kv = &kv};
            double bw = 0.5 * turbok_read_bandwidth(d, r);
            c[k].seconds[i] = time_attention(d, &b, q, out);
            c[k].share[i] = c[k].bytes / c[k].seconds[i] / (bw + 0.5 * turbok_read_bandwidth(d, r));
        }
    double ratio[KV_TYPES][16];
    for (int k = 0; k < KV_TYPES && ok; k++)
        for (int i = 0; i < rounds; i++)
            ratio[k][i] = c[k].seconds[i] / c[0].seconds[i];
    for (int k = 0; k < KV_TYPES && ok; k++)
        print_attention(o, &c[k], k, rounds, T, len, median(ratio[k], rounds));
    if (!ok)
        fputs("bench: no memory for the attention case\n", stderr);
    for (int k = 0; k < KV_TYPES; k++)
        cache_close(&c[k]);
    free(q);
    free(out);
    free(pos);
}

static void usage(void)
{
    puts("usage: kernels/bench/bench [options]\n"
         "Measures read bandwidth, fp32 peak, linear layers and a decode step of the "
         "InternLM2-1.8B\n"
         "shape (random weights), all in one run. Medians of alternating rounds.\n"
         "  --quick       fewer rounds, 4 layers, a smaller buffer\n"
         "  --json        one JSON object a line\n"
         "  --no-step     leave the decode step out (it needs 4 GiB)\n"
         "  --attention   attention only: bf16, int8 and int4 caches in turns\n"
         "  --weights T   only the layers of a model: bf16, int8 or int4\n"
         "  --threads N   compute threads (0: all CPUs)\n"
         "  --isa NAME    auto, scalar, avx2, avx512, neon");
}

/* 0, or -1 after a message. */
static int parse(int argc, char **argv, options *o)
{
    static const struct option longs[] = {{"json", 0, NULL, 'j'},    {"quick", 0, NULL, 'q'},
                                          {"no-step", 0, NULL, 's'}, {"attention", 0, NULL, 'a'},
                                          {"threads", 1, NULL, 't'}, {"weights", 1, NULL, 'w'},
                                          {"isa", 1, NULL, 'i'},     {"help", 0, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    static const char *const isas[] = {"auto", "scalar", "avx2", "avx512", "neon"};
    for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
        if (c == 'j') {
            o->json = true;
        } else if (c == 'q') {
            o->quick = true;
        } else if (c == 's') {
            o->step = false;
        } else if (c == 'a') {
            o->linear = o->step = false;
        } else if (c == 'h') {
            o->help = true;
        } else if (c == 't') {
            char *end;
            long n = strtol(optarg, &end, 10);
            if (end == optarg || *end || n < 0 || n > 256) {
                fprintf(stderr, "bench: --threads is '%s'; 0 to 256 are possible\n", optarg);
                return -1;
            }
            o->threads = (int)n;
        } else if (c == 'w') {
            o->bits = !strcmp(optarg, "int8")   ? 8
                      : !strcmp(optarg, "int4") ? 4
                      : !strcmp(optarg, "bf16") ? 16
                                                : 0;
            if (!o->bits) {
                fprintf(stderr, "bench: --weights is '%s'; bf16, int8 or int4\n", optarg);
                return -1;
            }
        } else if (c == 'i') {
            int k = 0;
            while (k < 5 && strcmp(optarg, isas[k]))
                k++;
            if (k == 5) {
                fprintf(stderr, "bench: --isa is '%s'; auto, scalar, avx2, avx512 or neon\n",
                        optarg);
                return -1;
            }
            o->isa = (turbok_isa)k;
        } else {
            return -1;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "bench: '%s' is no option; see --help\n", argv[optind]);
        return -1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    options o = {.step = true, .linear = true};
    if (parse(argc, argv, &o))
        return 64;
    if (o.help) {
        usage();
        return 0;
    }
    turbok_device *d = NULL;
    turbo_err err;
    turbok_device_opts opts = {.isa = o.isa, .threads = o.threads, .spin_us = -1};
    if (turbok_device_open(&opts, &d, &err)) {
        fprintf(stderr, "bench: %s\n", err.text);
        return 64;
    }
    turbok_reader r;
    if (turbok_reader_new(d, (size_t)(o.quick ? 256 : 1024) << 20, &r, &err)) {
        fprintf(stderr, "bench: %s\n", err.text);
        return 71;
    }
    double bw[9], fl[9];
    for (int i = 0; i < 9; i++) {
        bw[i] = turbok_read_bandwidth(d, &r);
        fl[i] = turbok_fma_peak(d);
    }
    printf(o.json ? "{\"device\":\"%s\",\"read_bytes_s\":%.4g,\"fma_flops\":%.4g}\n"
                  : "%s: read bandwidth %.4g bytes/s, fp32 multiply-add peak %.4g FLOP/s\n",
           turbok_device_name(d), median(bw, 9), median(fl, 9));
    fflush(stdout);
    if (o.bits) {
        if (o.bits == 16)
            bench_step(d, &o, &r);
        else
            bench_grids(d, &r, o.bits, o.quick ? 4 : 24, o.quick ? 5 : 9, o.json);
        turbok_reader_free(&r);
        turbok_device_close(d);
        return 0;
    }
    static const int64_t shapes[][2] = {{4096, 2048}, {2048, 2048}, {8192, 2048}, {2048, 8192}, {92544, 2048}};
    for (int t = 0; t < 3 && o.linear; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            if (!o.quick || (t == TURBO_BF16 && s < 4))
                bench_linear(d, &o, &r, t, shapes[s][0], shapes[s][1]);
    bench_attention(d, &o, &r, 1, 16384);
    bench_attention(d, &o, &r, o.quick ? 256 : 512, 2048);
    if (o.step)
        bench_step(d, &o, &r);
    turbok_reader_free(&r);
    turbok_device_close(d);
    return 0;
}
