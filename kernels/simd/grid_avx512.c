/* kernels/simd/grid_avx512.c: grid_body.h for AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers. Compiled a second
 * time with VNNI, whose dot product adds four products of bytes in 32 bits without saturation: 8-bit codes
 * become unsigned by + 128, and sums begin at -128 sum(x). Without it as in grid_avx2.c. */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define VL 16
#define MANY 4
#define WIDE 16 /* sums of a block in registers at most */
enum { WORDS = 8, SINGLE = 1 };
#define LOCAL static inline __attribute__((always_inline))

typedef __m512i vi;
typedef __m512 vf;

LOCAL vi load_codes(const char *p)
{
    return _mm512_loadu_si512(p);
}

LOCAL void store_codes(char *p, vi v)
{
    _mm512_storeu_si512(p, v);
}

LOCAL vi load_word(const int8_t *p)
{
    int32_t w;
    memcpy(&w, p, 4);
    return _mm512_set1_epi32(w);
}

LOCAL vi low4(vi v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

LOCAL vi high4(vi v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}

LOCAL vi shift_right(vi v, int n)
{
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128(n));
}

LOCAL vi lookup(vi table, vi n)
{
    return _mm512_shuffle_epi8(table, n);
}

LOCAL vi table_of(const int8_t *p)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
}

LOCAL vi begin(int32_t start)
{
    return _mm512_set1_epi32(start);
}

/* Keeps a chain of sums a chain: gcc would compute all products of a block first, and spill them. */
LOCAL vi in_order(vi sum)
{
    __asm__("" : "+v"(sum));
    return sum;
}

#ifdef __AVX512VNNI__
LOCAL vi dot_u(vi sum, vi w, vi x)
{
    return in_order(_mm512_dpbusd_epi32(sum, w, x));
}

LOCAL vi end_u(vi sum)
{
    return sum;
}

LOCAL vi dot_s(vi sum, vi w, vi x)
{
    return in_order(_mm512_dpbusd_epi32(sum, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x));
}
#else
LOCAL vi dot_u(vi sum, vi w, vi x)
{
    return in_order(_mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x)));
}

LOCAL vi end_u(vi sum)
{
    return _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
}

LOCAL vi dot_s(vi sum, vi w, vi x)
{
    vi turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    vi pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
    return in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
}
#endif

LOCAL vi end_s(vi sum)
{
    return sum;
}

LOCAL vi splat32(int32_t n)
{
    return _mm512_set1_epi32(n);
}

LOCAL vi sub32(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}

LOCAL vi load_bytes(const char *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

LOCAL vf to_float(vi v)
{
    return _mm512_cvtepi32_ps(v);
}

LOCAL vf splat_f(float f)
{
    return _mm512_set1_ps(f);
}

LOCAL vf mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

LOCAL vf fma_f(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

LOCAL vf fnma_f(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

LOCAL vf load_f(const void *p)
{
    return _mm512_loadu_ps(p);
}

LOCAL void store_f(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}

LOCAL vf load_scale(int32_t dtype, const char *p)
{
    if (dtype == TURBO_F32)
        return _mm512_loadu_ps(p);
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (dtype == TURBO_F16)
        return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

typedef struct float_table {
    vf entry;
} float_table;

LOCAL float_table float_table_of(const float *t)
{
    return (float_table){_mm512_loadu_ps(t)};
}

LOCAL vf table4(const float_table *t, vi n)
{
    return _mm512_permutexvar_ps(n, t->entry); /* looks at the low 4 bits only */
}

LOCAL vf table8(const float *t, vi n)
{
    return _mm512_i32gather_ps(_mm512_and_si512(n, _mm512_set1_epi32(255)), t, 4);
}

/* Byte i of each lane as a float of sign, exponent and fraction: moved into place, copies of the sign
 * masked away, and scaled. */
LOCAL vf bits8(const turbok_tiles *w, vi codes, int i)
{
    vi top = _mm512_sll_epi32(codes, _mm_cvtsi32_si128(24 - 8 * i));
    vi v = _mm512_sra_epi32(top, _mm_cvtsi32_si128(w->float_bits));
    v = _mm512_and_si512(v, _mm512_set1_epi32(w->float_mask | (int32_t)0x80000000u));
    return mul(_mm512_castsi512_ps(v), splat_f(w->float_unit));
}

LOCAL void extremes(const float *x, int64_t n, float *most, float *strange)
{
    vf m = splat_f(0), s = splat_f(0);
    for (int64_t i = 0; i < n; i += VL) {
        vf v = load_f(x + i);
        m = _mm512_max_ps(_mm512_abs_ps(v), m); /* of a NaN and m: m */
        s = _mm512_add_ps(s, _mm512_sub_ps(v, v));
    }
    *most = _mm512_reduce_max_ps(m);
    *strange = _mm512_reduce_add_ps(s);
}

/* Codes of n (16 or 32) numbers; their sum, and what sums begin with. Without VNNI: -8 times the sums of
 * inputs 0, 1 and 2, 3 of the words, as two numbers of 16 bits. */
LOCAL int32_t to_codes(const float *x, int64_t n, float inverse, int8_t *q, turbok_grid_kind kind,
                       int32_t *start)
{
    vi sum = splat32(0);
    for (int64_t i = 0; i < n; i += VL) {
        vi c = _mm512_cvtps_epi32(mul(load_f(x + i), splat_f(inverse)));
        _mm_storeu_si128((__m128i *)(void *)(q + i), _mm512_cvtsepi32_epi8(c));
        sum = _mm512_add_epi32(sum, c);
    }
    int32_t even = _mm512_mask_reduce_add_epi32(0x3333, sum);
    int32_t odd = _mm512_mask_reduce_add_epi32(0xcccc, sum);
#ifdef __AVX512VNNI__
    *start = kind == TURBOK_GRID_U4 ? -8 * (even + odd) : -128 * (even + odd);
#else
    uint32_t both = ((uint32_t)(-8 * even) & 0xffffu) | (uint32_t)(-8 * odd) << 16;
    *start = kind == TURBOK_GRID_U4 ? (int32_t)both : 0;
#endif
    return even + odd;
}

#include "simd/grid_body.h"

#ifdef __AVX512VNNI__
const turbok_grid_prim turbok_grid_avx512_vnni = {.quantize = quantize, .stripe = stripe};
#else
const turbok_grid_prim turbok_grid_avx512 = {.quantize = quantize, .stripe = stripe};
#endif
#endif
