/* kernels/bench/grids.c: see grids.h. The caller's thread. Codes are noise, scales are all the same:
 * neither changes the speed. */
#include "grids.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "timing.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { E = 2048, QKV = 4096, I = 8192, V = 92544, PREFILL = 512, LOOP = 4096, CHAINS = 10 };

/* ---- peak of the integer instructions ----------------------------------------------------------------- */

#if defined(__x86_64__)
/* Chains in registers: products of bytes added in 16 bits (4-bit codes), or widened first (8-bit codes). */
__attribute__((target("avx2"))) static int chains(bool wide)
{
    __m256i a[CHAINS], w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(5), one = _mm256_set1_epi16(1);
    for (int i = 0; i < CHAINS; i++)
        a[i] = _mm256_setzero_si256();
    for (int n = 0; n < LOOP; n++)
#pragma GCC unroll 10
        for (int i = 0; i < CHAINS; i++) {
            __m256i p = _mm256_maddubs_epi16(w, x);
            __asm__("" : "+x"(w)); /* or the product is computed once */
            a[i] = wide ? _mm256_add_epi32(a[i], _mm256_madd_epi16(p, one))
                        : _mm256_add_epi16(a[i], p);
            __asm__("" : "+x"(a[i]));
        }
    for (int i = 1; i < CHAINS; i++)
        a[0] = _mm256_add_epi32(a[0], a[i]);
    return _mm256_extract_epi32(a[0], 0);
}
#endif

typedef struct peak_job {
    bool wide;
    _Atomic int sink;
} peak_job;

static void peak_range(void *ctx, int64_t from, int64_t to, int thread)
{
    peak_job *p = ctx;
    (void)thread;
    for (int64_t i = from; i < to; i++) {
#if defined(__x86_64__)
        p->sink += chains(p->wide);
#else
        p->sink += 1;
#endif
    }
}

/* Operations a second of all threads; 0 where the instructions are not known. */
static double int_peak(turbok_device *d, bool wide)
{
    if (d->isa != TURBOK_ISA_AVX2 && d->isa != TURBOK_ISA_AVX512)
        return 0;
    const int64_t n = 400;
    peak_job p = {.wide = wide};
    double t = now();
    turbok_pool_for(d->exec.pool, n, 8, peak_range, &p);
    return (double)n * LOOP * CHAINS * 64 / (now() - t);
}

/* ---- layers ---------------------------------------------------------------------------------------------- */

typedef struct shape_1_8b {
    turbo_linear *w[24][5], *head;
    double bytes;
    float *x, *y, *s, *z;
    int layers;
} shape_1_8b;

static turbo_linear *noise(turbok_device *d, const turbok_grid *g, int64_t out, int64_t in)
{
    turbo_linear *w = NULL;
    turbo_err err;
    turbok_grid own = *g;
    if (turbok_grid_new(d, &own, out, in, NULL, TURBO_F32, 0, &w, &err))
        fprintf(stderr, "bench: %s\n", err.text);
    return w;
}

static bool shape_open(turbok_device *d, shape_1_8b *m, int bits, int layers)
{
    static const int64_t shapes[5][2] = {{QKV, E}, {E, E}, {I, E}, {I, E}, {E, I}};
    const size_t cells = (size_t)V * E, scales = cells / 32;
    uint8_t *codes = calloc(cells, 1);
    uint16_t *scale = calloc(scales, sizeof *scale);
    *m = (shape_1_8b){.layers = layers};
    if (codes && scale) {
        uint64_t seed = 1;
        for (size_t i = 0; i < cells * (size_t)bits / 8; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            codes[i] = (uint8_t)(seed >> 56);
        }
        for (size_t i = 0; i < scales; i++)
            scale[i] = 0x2000; /* 2^-7 */
        const turbok_grid g = {.bits = bits,
                               .group = 32,
                               .scale_dtype = TURBO_F16,
                               .offset = bits == 8 ? 128 : 8,
                               .codes = codes,
                               .scale = scale};
        m->head = noise(d, &g, V, E);
        m->bytes = m->head ? (double)m->head->data_bytes : 0;
        for (int l = 0; l < layers; l++)
            for (int k = 0; k < 5; k++) {
                m->w[l][k] = noise(d, &g, shapes[k][0], shapes[k][1]);
                m->bytes += m->w[l][k] ? (double)m->w[l][k]->data_bytes : 0;
            }
    }
    free(codes);
    free(scale);
    m->x = calloc((size_t)PREFILL * E, sizeof(float));
    m->y = calloc((size_t)PREFILL * QKV, sizeof(float));
    m->s = calloc((size_t)PREFILL * 2 * I, sizeof(float));
    m->z = calloc((size_t)8 * V, sizeof(float));
    for (size_t i = 0; m->x && i < (size_t)PREFILL * E; i++)
        m->x[i] = (float)(i % 101) * 0.02f - 1.0f;
    return m->head && m->w[layers - 1][4] && m->x && m->y && m->s && m->z;
}

static void shape_close(turbok_device *d, shape_1_8b *m)
{
    for (int l = 0; l < m->layers; l++)
        for (int k = 0; k < 5; k++)
            turbok_linear_free(d, m->w[l][k]);
    turbok_linear_free(d, m->head);
    free(m->x);
    free(m->y);
    free(m->s);
    free(m->z);
}

/* Seconds of T rows over `layers` layers, and the head when it is wanted. */
static double run_layers(turbok_device *d, const shape_1_8b *m, int layers, int T, bool head)
{
    turbo_exec *ex = turbok_device_exec(d);
    double t = now();
    for (int l = 0; l < layers; l++) {
        turbok_op_linear(ex, m->w[l][0], m->x, T, m->y);
        turbok_op_linear(ex, m->w[l][1], m->x, T, m->y);
        turbok_op_gated_mlp(ex, m->w[l][2], m->w[l][3], m->w[l][4], TURBO_ACT_SILU, m->x, T, m->s,
                            m->y);
    }
    if (head)
        turbok_op_logits(ex, m->head, m->x, T, m->z);
    return now() - t;
}

void bench_grids(turbok_device *d, const turbok_reader *r, int bits, int layers, int rounds,
                 bool json)
{
    const double ops = 2.0 * ((double)(QKV + E) * E + 3.0 * E * I);
    double one[32], eight[32], fill[32], share[32], ratio[32], of_peak[32];
    shape_1_8b m;
    rounds = rounds > 32 ? 32 : rounds;
    if (shape_open(d, &m, bits, layers)) {
        (void)run_layers(d, &m, layers, 1, true);
        for (int i = 0; i < rounds; i++) {
            double bw = 0.5 * turbok_read_bandwidth(d, r);
            one[i] = run_layers(d, &m, layers, 1, true);
            share[i] = m.bytes / one[i] / (bw + 0.5 * turbok_read_bandwidth(d, r));
            eight[i] = run_layers(d, &m, layers, 8, true);
            ratio[i] = 8 * one[i] / eight[i];
            double peak = 0.5 * int_peak(d, bits == 8);
            fill[i] = PREFILL * ops / run_layers(d, &m, 1, PREFILL, false);
            peak += 0.5 * int_peak(d, bits == 8);
            of_peak[i] = peak > 0 ? fill[i] / peak : 0;
        }
        printf(
            json ? "{\"op\":\"decode_step\",\"weights\":\"int%d\",\"layers\":%d,\"bytes\":%.0f,"
                   "\"seconds\":%.5f,\"of_bandwidth\":%.3f,\"batch8_of_batch1\":%.2f,"
                   "\"prefill_ops\":%.4g,\"prefill_of_peak\":%.3f}\n"
                 : "int%d, groups of 32, %d layers of the 1.8B shape, %.3g bytes: decode %.4f s, "
                   "%.2f "
                   "of bandwidth; batch 8 %.2f times the tokens of batch 1; prefill 512 %.3g op/s, "
                   "%.2f of the peak of the instructions\n",
            bits, layers, m.bytes, median(one, rounds), median(share, rounds),
            median(ratio, rounds), median(fill, rounds), median(of_peak, rounds));
        fflush(stdout);
    } else {
        fputs("bench: not enough memory for the 1.8B shape\n", stderr);
    }
    shape_close(d, &m);
}
