/* plugins/samp-std/vec.c: the passes over a whole vocabulary, eight entries at a time.
 *
 * Written once in the compiler's vector types and built for AVX-512, AVX2 and whatever the build aims
 * at; which one runs is seen at run time. The order of every sum is fixed by the eight lanes and not
 * by the width of a register, and nothing is contracted, so all of them give the same bits. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "samp.h"

typedef float v8f __attribute__((vector_size(32), aligned(4)));
typedef int32_t v8i __attribute__((vector_size(32), aligned(4)));
typedef double v8d __attribute__((vector_size(64), aligned(8)));
typedef uint64_t v8u __attribute__((vector_size(64), aligned(8)));
typedef int64_t v8l __attribute__((vector_size(64), aligned(8)));

#define INLINE static inline __attribute__((always_inline))

#define STRETCH 1024

#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fee00000p-1 /* 21 zeros at its end: n times it is exact */
#define LN2_LOW 0x1.a39ef35793c76p-33
#define ROUND 0x1.8p52 /* adding it rounds to a whole number, which then stands in the low bits */
#define TOO_SMALL -600.0

/* w = exp(x) for x <= 0 within two units of the last place; 0 below -600 and for NaN.
 * x = n ln 2 + r, exp(x) = 2^n exp(r), |r| <= ln 2 / 2: twelve terms of the series are enough. */
INLINE void exp8(const v8d *x, v8d *w)
{
    v8d t = *x * LOG2_E + ROUND, n = t - ROUND;
    v8d r = (*x - n * LN2_HIGH) - n * LN2_LOW;
    v8d p = r * (1.0 / 479001600) + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    v8u two_n = ((v8u)t << 52) + (1023ull << 52);
    *w = (v8d)((v8u)(p * (v8d)two_n) & (v8u)(v8l)(*x >= TOO_SMALL));
}

/* The same for one. */
double samp_weight(float logit, double best, double inv_t)
{
    v8d x = (v8d){0} + ((double)logit - best) * inv_t, w;
    exp8(&x, &w);
    return w[0];
}

INLINE void max8(v8f *m, const v8f *v)
{
    v8i larger = *v > *m;
    *m = (v8f)(((v8i)*v & larger) | ((v8i)*m & ~larger));
}

INLINE float top8(const v8f *v)
{
    float m = (*v)[0];
    for (int k = 1; k < 8; k++)
        m = (*v)[k] > m ? (*v)[k] : m;
    return m;
}

/* The largest of n logits, n a multiple of 32; *sound loses its bits when one is NaN or +inf. */
INLINE float block_max(const float *l, int32_t n, v8i *sound)
{
    /* Four maxima, or each would wait for the one before; names, or they would live in memory. */
    v8f m0 = (v8f){0} - INFINITY, m1 = m0, m2 = m0, m3 = m0;
    for (int32_t i = 0; i < n; i += 32) {
        v8f v0, v1, v2, v3;
        memcpy(&v0, l + i, sizeof v0);
        memcpy(&v1, l + i + 8, sizeof v1);
        memcpy(&v2, l + i + 16, sizeof v2);
        memcpy(&v3, l + i + 24, sizeof v3);
        *sound &= (v0 <= FLT_MAX) & (v1 <= FLT_MAX) & (v2 <= FLT_MAX) & (v3 <= FLT_MAX);
        max8(&m0, &v0);
        max8(&m1, &v1);
        max8(&m2, &v2);
        max8(&m3, &v3);
    }
    max8(&m0, &m1);
    max8(&m2, &m3);
    max8(&m0, &m2);
    return top8(&m0);
}

/* The block that begins at entry `at` of n; the last is filled up with what is never chosen. */
INLINE const float *block_of(const float *l, int32_t n, int32_t at, float space[SAMP_BLOCK])
{
    if (n - at >= SAMP_BLOCK)
        return l + at;
    for (int i = 0; i < SAMP_BLOCK; i++)
        space[i] = i < n - at ? l[at + i] : -INFINITY;
    return space;
}

/* Where to look for the first of the largest logits. */
INLINE bool best_block(const float *l, int32_t n, int32_t *from, float *best)
{
    v8i sound = (v8i){0} - 1;
    float space[SAMP_BLOCK];
    *best = -INFINITY;
    *from = 0;
    for (int32_t at = 0, step; at < n; at += step) {
        /* Long stretches: comparing across the lanes costs as much as 64 entries. */
        step = n - at >= STRETCH ? STRETCH : n - at >= SAMP_BLOCK ? (n - at) & -32 : SAMP_BLOCK;
        float m = n - at >= SAMP_BLOCK
                      ? block_max(l + at, step, &sound)
                      : block_max(block_of(l, n, at, space), SAMP_BLOCK, &sound);
        if (m > *best) {
            *best = m;
            *from = at;
        }
    }
    int32_t all = -1;
    for (int k = 0; k < 8; k++)
        all &= sound[k];
    return all != 0;
}

INLINE double block_depth(const float *l, int32_t n, int32_t at, double top, double inv)
{
    float space[SAMP_BLOCK];
    v8i sound = {0};
    return (top - (double)block_max(block_of(l, n, at, space), SAMP_BLOCK, &sound)) * inv;
}

INLINE void weigh(const float *l, double best, double inv_t, double w[SAMP_BLOCK])
{
    for (int i = 0; i < SAMP_BLOCK; i += 8) {
        v8f v;
        v8d x, y;
        memcpy(&v, l + i, sizeof v);
        x = (__builtin_convertvector(v, v8d) - best) * inv_t;
        exp8(&x, &y);
        memcpy(w + i, &y, sizeof y);
    }
}

INLINE double block_sums(const float *l, int32_t n, double best, double inv_t, double *sums)
{
    double total = 0, w[SAMP_BLOCK];
    float space[SAMP_BLOCK];
    v8i sound = {0};
    for (int32_t b = 0; b * SAMP_BLOCK < n; b++) {
        const float *at = block_of(l, n, b * SAMP_BLOCK, space);
        v8d sum = {0};
        sums[b] = 0;
        if (((double)block_max(at, SAMP_BLOCK, &sound) - best) * inv_t < -SAMP_DEPTH)
            continue;
        weigh(at, best, inv_t, w);
        for (int i = 0; i < SAMP_BLOCK; i += 8) {
            v8d v;
            memcpy(&v, w + i, sizeof v);
            sum += v;
        }
        sums[b] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        total += sums[b];
    }
    return total;
}

#define BUILD(suffix, attribute)                                                                   \
    attribute static bool best_##suffix(const float *l, int32_t n, int32_t *from, float *best)     \
    {                                                                                              \
        return best_block(l, n, from, best);                                                       \
    }                                                                                              \
    attribute static double sums_##suffix(const float *l, int32_t n, double best, double inv_t,    \
                                          double *sums)                                            \
    {                                                                                              \
        return block_sums(l, n, best, inv_t, sums);                                                \
    }                                                                                              \
    attribute static double depth_##suffix(const float *l, int32_t n, int32_t at, double top,      \
                                           double inv)                                             \
    {                                                                                              \
        return block_depth(l, n, at, top, inv);                                                    \
    }

BUILD(plain, )
#ifdef __x86_64__
BUILD(avx2, __attribute__((target("avx2"))))
BUILD(avx512, __attribute__((target("avx512f,avx512dq,avx512vl,prefer-vector-width=512"))))
#define HAS(isa) __builtin_cpu_supports(isa)
#define CHOOSE(f, ...)                                                                            \
    (HAS("avx512dq") && HAS("avx512vl") ? f##_avx512(__VA_ARGS__)                                 \
     : HAS("avx2")                      ? f##_avx2(__VA_ARGS__)                                   \
                                        : f##_plain(__VA_ARGS__))
#else
#define CHOOSE(f, ...) f##_plain(__VA_ARGS__)
#endif

turbo_status samp_argmax(const float *l, int32_t n, int32_t *best)
{
    int32_t i;
    float m;
    *best = -1;
    if (!CHOOSE(best, l, n, &i, &m) || isinf(m))
        return TURBO_EDATA;
    while (l[i] < m)
        i++;
    *best = i;
    return TURBO_OK;
}

double samp_depth(const float *key, int32_t n, int32_t at, double top, double inv)
{
    return CHOOSE(depth, key, n, at, top, inv);
}

double samp_sums(const float *l, int32_t n, double best, double inv_t, double *sums)
{
    return CHOOSE(sums, l, n, best, inv_t, sums);
}

int32_t samp_in_block(const float *l, int32_t n, int32_t b, double best, double inv_t, double from,
                      double to)
{
    double w[SAMP_BLOCK];
    float space[SAMP_BLOCK];
    int32_t last = -1;
    weigh(block_of(l, n, b * SAMP_BLOCK, space), best, inv_t, w);
    for (int32_t i = 0; i < SAMP_BLOCK; i++) {
        if (!(w[i] > 0))
            continue;
        last = b * SAMP_BLOCK + i;
        from += w[i];
        if (from > to)
            break;
    }
    return last;
}
