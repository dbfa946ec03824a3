/* kernels/measure.c: see measure.h. */
#include "measure.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"
#include "timing.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define STEP 256 /* bytes of one turn of the loop */
#define AHEAD 2048 /* prefetched this far ahead, as the kernels do */
#define ITEM (32u << 10) /* bytes of one work item */
#define MOST_ROUNDS 32

/* ---- read bandwidth ------------------------------------------------------------------------------- */

turbo_status turbok_reader_new(turbok_device *d, size_t bytes, turbok_reader *out, turbo_err *err)
{
    (void)d; /* not a device's memory: it is no part of any plan */
    *out = (turbok_reader){.bytes = bytes / ITEM * ITEM};
    out->mapped = out->bytes + AHEAD;
    out->p = mmap(NULL, out->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!out->bytes || out->p == MAP_FAILED) {
        if (out->p != MAP_FAILED)
            munmap(out->p, out->mapped);
        out->p = NULL;
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a buffer of %zu MiB to measure with",
                           bytes >> 20);
    }
    madvise(out->p, out->mapped, MADV_HUGEPAGE);
    memset(out->p, 1, out->mapped); /* pages never written would all be the one page of zeros */
    return TURBO_OK;
}

void turbok_reader_free(turbok_reader *r)
{
    if (r->p)
        munmap(r->p, r->mapped);
    r->p = NULL;
}

typedef struct read_job {
    const char *p;
    turbok_isa isa;
    _Atomic uint32_t sink; /* so that no loop can be left out */
} read_job;

/* Reads [p, p + n): vector loads, four chains or more, nothing else. */
#define READ(name, attributes, vec, load, combine)                                                 \
    attributes static uint32_t name(const char *p, size_t n)                                       \
    {                                                                                              \
        enum { V = STEP / sizeof(vec) };                                                           \
        vec a[V];                                                                                  \
        memset(a, 0, sizeof a);                                                                    \
        for (size_t i = 0; i < n; i += STEP) {                                                     \
            for (size_t k = 0; k < STEP; k += 64)                                                  \
                __builtin_prefetch(p + i + k + AHEAD);                                             \
            _Pragma("GCC unroll 16") for (size_t k = 0; k < V; k++) a[k] =                         \
                combine(a[k], load((const void *)(p + i + k * sizeof(vec))));                      \
        }                                                                                          \
        uint32_t w = 0, word;                                                                      \
        for (size_t k = 0; k < sizeof a; k += sizeof word) {                                       \
            memcpy(&word, (const char *)a + k, sizeof word);                                       \
            w |= word;                                                                             \
        }                                                                                          \
        return w;                                                                                  \
    }
#if defined(__x86_64__)
#define FOR(isa) __attribute__((target(isa)))
READ(read_avx512, FOR("avx512f"), __m512i, _mm512_load_si512, _mm512_or_si512)
READ(read_avx2, FOR("avx2"), __m256i, _mm256_load_si256, _mm256_or_si256)
#elif defined(__aarch64__)
READ(read_neon, , uint8x16_t, vld1q_u8, vorrq_u8)
#endif

static uint32_t read_words(const char *p, size_t n)
{
    uint64_t a = 0, b = 0, c = 0, d = 0, v[4];
    for (size_t i = 0; i < n; i += sizeof v) {
        memcpy(v, p + i, sizeof v);
        a |= v[0];
        b |= v[1];
        c |= v[2];
        d |= v[3];
    }
    return (uint32_t)(a | b | c | d);
}

static void read_range(void *ctx, int64_t from, int64_t to, int thread)
{
    read_job *j = ctx;
    const char *p = j->p + (size_t)from * ITEM;
    size_t n = (size_t)(to - from) * ITEM;
    (void)thread;
#if defined(__x86_64__)
    if (j->isa != TURBOK_ISA_SCALAR) {
        j->sink |= j->isa == TURBOK_ISA_AVX512 ? read_avx512(p, n) : read_avx2(p, n);
        return;
    }
#elif defined(__aarch64__)
    if (j->isa == TURBOK_ISA_NEON) {
        j->sink |= read_neon(p, n);
        return;
    }
#endif
    j->sink |= read_words(p, n);
}

double turbok_read_bandwidth(turbok_device *d, const turbok_reader *r)
{
    read_job j = {.p = r->p, .isa = d->isa};
    int64_t items = (int64_t)(r->bytes / ITEM);
    double t = now();
    turbok_pool_for(d->exec.pool, items, items / 32 ? items / 32 : 1, read_range, &j);
    return (double)items * ITEM / (now() - t);
}

/* ---- peak ------------------------------------------------------------------------------------------- */

#define PEAK_LOOP 4096

/* Independent chains of fused multiply-adds in registers: nothing but the arithmetic units. */
#define PEAK(name, attributes, reg, vec, set1, fma, chains)                                        \
    attributes static float name(float f)                                                          \
    {                                                                                              \
        vec a[chains], m = set1(f), c = set1(1e-3f);                                               \
        _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++)                                  \
        {                                                                                          \
            a[i] = c;                                                                              \
            __asm__("" : "+" reg(a[i])); /* or all chains become one */                            \
        }                                                                                          \
        for (int n = 0; n < PEAK_LOOP; n++) {                                                      \
            _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++) a[i] = fma(a[i], m, c);      \
        }                                                                                          \
        _Pragma("GCC unroll 24") for (int i = 0; i < chains; i++) c += a[i];                       \
        return c[0];                                                                               \
    }
#if defined(__x86_64__)
PEAK(peak_avx512, FOR("avx512f"), "v", __m512, _mm512_set1_ps, _mm512_fmadd_ps, 24)
PEAK(peak_avx2, FOR("avx2,fma"), "v", __m256, _mm256_set1_ps, _mm256_fmadd_ps, 12)
#elif defined(__aarch64__)
#define NEON_FMA(a, m, c) vfmaq_f32(c, a, m)
PEAK(peak_neon, , "w", float32x4_t, vdupq_n_f32, NEON_FMA, 24)
#endif

/* The same with one number at a time, as the scalar reference works. */
static float peak_scalar(float f)
{
    enum { CHAINS = 8 };
    float a[CHAINS], sum = 0;
    for (int i = 0; i < CHAINS; i++)
        a[i] = 1e-3f * (float)(i + 1);
    for (int n = 0; n < PEAK_LOOP; n++)
        for (int i = 0; i < CHAINS; i++)
            a[i] = a[i] * f + 1e-3f;
    for (int i = 0; i < CHAINS; i++)
        sum += a[i];
    return sum;
}

typedef struct peak_job {
    turbok_isa isa;
    _Atomic uint32_t sink;
} peak_job;

static void peak_range(void *ctx, int64_t from, int64_t to, int thread)
{
    peak_job *p = ctx;
    float f = 0;
    (void)thread;
    for (int64_t i = from; i < to; i++) {
#if defined(__x86_64__)
        if (p->isa != TURBOK_ISA_SCALAR) {
            f += p->isa == TURBOK_ISA_AVX512 ? peak_avx512(0.5f) : peak_avx2(0.5f);
            continue;
        }
#elif defined(__aarch64__)
        if (p->isa == TURBOK_ISA_NEON) {
            f += peak_neon(0.5f);
            continue;
        }
#endif
        f += peak_scalar(0.5f);
    }
    p->sink += f > 1;
}

double turbok_fma_peak(turbok_device *d)
{
    const int64_t n = 1000;
    peak_job p = {.isa = d->isa};
    int per = d->isa == TURBOK_ISA_AVX512 ? 24 * 16
              : d->isa == TURBOK_ISA_AVX2 ? 12 * 8
              : d->isa == TURBOK_ISA_NEON ? 24 * 4
                                          : 8;
    double t = now();
    turbok_pool_for(d->exec.pool, n, 16, peak_range, &p);
    return (double)n * 2 * PEAK_LOOP * per / (now() - t);
}

/* ---- both ------------------------------------------------------------------------------------------- */

turbo_status turbok_measure(turbok_device *d, size_t buffer_bytes, int rounds, turbok_speed *out,
                            turbo_err *err)
{
    double read[MOST_ROUNDS], fma[MOST_ROUNDS];
    turbok_reader r;
    if (rounds < 1 || rounds > MOST_ROUNDS)
        return turbok_fail(err, TURBO_EINVAL, "%d rounds of measuring; 1 to %d are possible",
                           rounds, MOST_ROUNDS);
    turbo_status st = turbok_reader_new(d, buffer_bytes, &r, err);
    if (st)
        return st;
    for (int i = 0; i < rounds; i++) {
        read[i] = turbok_read_bandwidth(d, &r);
        fma[i] = turbok_fma_peak(d);
    }
    turbok_reader_free(&r);
    *out = (turbok_speed){median(read, rounds), median(fma, rounds)};
    return TURBO_OK;
}
