/* kernels/simd/grid_avx2.c: grid_body.h for AVX2: 8 lanes, 16 registers.
 *
 * 4-bit codes: maddubs gives pairs of products in 16 bits (at most 2 x 15 x 127), and the 8 pairs of a
 * block are added in 16 bits: modulo 2^16 that is exact as long as the end fits. It begins at -8 sum(x)
 * of the lane's own inputs, so the end is a sum of 16 products of at most 8 x 127. 8-bit codes: |w| times
 * x with the sign of w, 2 x 128 x 127 at most, widened to 32 bits at once. */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define VL 8
#define MANY 4
#define WIDE 8 /* sums of a block in registers at most */
enum { WORDS = 8, SINGLE = 1 };
#define LOCAL static inline __attribute__((always_inline))

typedef __m256i vi;
typedef __m256 vf;

LOCAL vi load_codes(const char *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

LOCAL void store_codes(char *p, vi v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, v);
}

LOCAL vi load_word(const int8_t *p)
{
    int32_t w;
    memcpy(&w, p, 4);
    return _mm256_set1_epi32(w);
}

LOCAL vi low4(vi v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

LOCAL vi high4(vi v)
{
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

LOCAL vi shift_right(vi v, int n)
{
    return _mm256_srli_epi32(v, n);
}

LOCAL vi lookup(vi table, vi n)
{
    return _mm256_shuffle_epi8(table, n);
}

LOCAL vi table_of(const int8_t *p)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
}

LOCAL vi begin(int32_t start)
{
    return _mm256_set1_epi32(start);
}

/* Keeps a chain of sums a chain: gcc would compute all products of a block first, and spill them. */
LOCAL vi in_order(vi sum)
{
    __asm__("" : "+x"(sum));
    return sum;
}

LOCAL vi dot_u(vi sum, vi w, vi x)
{
    return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)));
}

LOCAL vi end_u(vi sum)
{
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

LOCAL vi dot_s(vi sum, vi w, vi x)
{
    vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
}

LOCAL vi end_s(vi sum)
{
    return sum;
}

LOCAL vi splat32(int32_t n)
{
    return _mm256_set1_epi32(n);
}

LOCAL vi sub32(vi a, vi b)
{
    return _mm256_sub_epi32(a, b);
}

LOCAL vi load_bytes(const char *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

LOCAL vf to_float(vi v)
{
    return _mm256_cvtepi32_ps(v);
}

LOCAL vf splat_f(float f)
{
    return _mm256_set1_ps(f);
}

LOCAL vf mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

LOCAL vf fma_f(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

LOCAL vf fnma_f(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

LOCAL vf load_f(const void *p)
{
    return _mm256_loadu_ps(p);
}

LOCAL void store_f(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}

LOCAL vf load_scale(int32_t dtype, const char *p)
{
    if (dtype == TURBO_F32)
        return _mm256_loadu_ps((const float *)(const void *)p);
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (dtype == TURBO_F16)
        return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

typedef struct float_table {
    vf low, high;
} float_table;

LOCAL float_table float_table_of(const float *t)
{
    return (float_table){_mm256_loadu_ps(t), _mm256_loadu_ps(t + 8)};
}

LOCAL vf table4(const float_table *t, vi n)
{
    vf high = _mm256_castsi256_ps(_mm256_slli_epi32(n, 28)); /* bit 3 chooses the half */
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t->low, n),
                            _mm256_permutevar8x32_ps(t->high, n), high);
}

LOCAL vf table8(const float *t, vi n)
{
    return _mm256_i32gather_ps(t, _mm256_and_si256(n, _mm256_set1_epi32(255)), 4);
}

/* Byte i of each lane as a float of sign, exponent and fraction: moved into place, copies of the sign
 * masked away, and scaled. */
LOCAL vf bits8(const turbok_tiles *w, vi codes, int i)
{
    vi v = _mm256_sra_epi32(_mm256_slli_epi32(codes, 24 - 8 * i), _mm_cvtsi32_si128(w->float_bits));
    v = _mm256_and_si256(v, _mm256_set1_epi32(w->float_mask | (int32_t)0x80000000u));
    return mul(_mm256_castsi256_ps(v), splat_f(w->float_unit));
}

LOCAL void extremes(const float *x, int64_t n, float *most, float *strange)
{
    const vf size = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    vf m = splat_f(0), s = splat_f(0);
    for (int64_t i = 0; i < n; i += VL) {
        vf v = load_f(x + i);
        m = _mm256_max_ps(_mm256_and_ps(v, size), m);
        s = _mm256_add_ps(s, _mm256_sub_ps(v, v));
    }
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    *most = _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
    *strange = _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/* Codes of n (16 or 32) numbers; their sum, and what sums with 4-bit codes begin with: -8 times the sums of
 * inputs 0, 1 and 2, 3 of the words, as two numbers of 16 bits. */
LOCAL int32_t to_codes(const float *x, int64_t n, float inverse, int8_t *q, turbok_grid_kind kind,
                       int32_t *start)
{
    vf inv = splat_f(inverse);
    vi pairs = splat32(0);
    for (int64_t i = 0; i < n; i += 16) {
        vi a = _mm256_cvtps_epi32(mul(load_f(x + i), inv));
        vi b = _mm256_cvtps_epi32(mul(load_f(x + i + 8), inv));
        vi h = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        __m128i c = _mm_packs_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
        _mm_storeu_si128((__m128i *)(void *)(q + i), c);
        pairs = _mm256_add_epi32(pairs, _mm256_madd_epi16(h, _mm256_set1_epi16(1)));
    }
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    int32_t even = _mm_cvtsi128_si32(s), odd = _mm_extract_epi32(s, 1);
    uint32_t both = ((uint32_t)(-8 * even) & 0xffffu) | (uint32_t)(-8 * odd) << 16;
    *start = kind == TURBOK_GRID_U4 ? (int32_t)both : 0;
    return even + odd;
}

#include "simd/grid_body.h"

const turbok_grid_prim turbok_grid_avx2 = {.quantize = quantize, .stripe = stripe};
#endif
