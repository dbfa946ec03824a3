/* kernels/simd/avx512.c: body.h for AVX-512 F, BW, DQ, VL: 16 floats a vector, 32 registers. */
#include "prim.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/quant.h"

#define VW 16
#define NV 4

#define LOCAL static inline __attribute__((always_inline))

LOCAL __m512 vfma(__m512 a, __m512 b, __m512 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

LOCAL __m512 load_bf16(const char *p)
{
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

LOCAL __m512 load_f16(const char *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

LOCAL __m512i bytes(const char *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

LOCAL __m512 load_u8(const char *p)
{
    return _mm512_cvtepi32_ps(bytes(p));
}

/* The low or the high nibbles, out of a table: it looks at the low 4 bits of a lane only. */
LOCAL __m512 load_u4(const char *p, int high)
{
    const __m512 digits = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i b = bytes(p);
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(b, 4) : b, digits);
}

LOCAL void store_f16(char *p, __m512 v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

LOCAL void store_bf16(char *p, __m512 v)
{
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(
        _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(r));
}

#include "simd/body.h"

LOCAL void store_u8(uint8_t *p, vi codes)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8((__m512i)codes));
}

LOCAL __m512 smaller(__m512 a, __m512 b)
{
    return _mm512_min_ps(a, b);
}

LOCAL __m512 larger(__m512 a, __m512 b)
{
    return _mm512_max_ps(a, b);
}

#include "simd/encode_body.h"

#define PRIMITIVES                                                                                 \
    .gemm_tile = gemm_tile, .rmsnorm = rmsnorm, .layernorm = layernorm, .activate = activate,      \
    .gated = gated, .widen = widen, .narrow = narrow, .softmax = softmax, .quantize = quantize,    \
    .scores = scores, .weights = weights, .encode = encode

const turbok_prim turbok_prim_avx512 = {.name = "avx512", .grid = &turbok_grid_avx512, PRIMITIVES};
const turbok_prim turbok_prim_avx512_vnni = {.name = "avx512 vnni",
                                             .grid = &turbok_grid_avx512_vnni,
                                             PRIMITIVES};
#endif
