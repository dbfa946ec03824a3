/* kernels/simd/avx2.c: body.h for AVX2 + FMA + F16C: 8 floats a vector, 16 registers. */
#include "prim.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/quant.h"

#define VW 8
#define NV 2

#define LOCAL static inline __attribute__((always_inline))

LOCAL __m256 vfma(__m256 a, __m256 b, __m256 c)
{
    return _mm256_fmadd_ps(a, b, c);
}

LOCAL __m256 load_bf16(const char *p)
{
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

LOCAL __m256 load_f16(const char *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

LOCAL __m256i bytes(const char *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

LOCAL __m256 load_u8(const char *p)
{
    return _mm256_cvtepi32_ps(bytes(p));
}

/* The low or the high nibbles. */
LOCAL __m256 load_u4(const char *p, int high)
{
    __m256i b = bytes(p);
    return _mm256_cvtepi32_ps(high ? _mm256_srli_epi32(b, 4)
                                   : _mm256_and_si256(b, _mm256_set1_epi32(15)));
}

LOCAL void store_f16(char *p, __m256 v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

LOCAL void store_bf16(char *p, __m256 v)
{
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(
        _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    r = _mm256_blendv_epi8(r, quiet, nan);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(packed));
}

#include "simd/body.h"

LOCAL void store_u8(uint8_t *p, vi codes)
{
    __m256i v = (__m256i)codes;
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(h, h));
}

LOCAL __m256 smaller(__m256 a, __m256 b)
{
    return _mm256_min_ps(a, b);
}

LOCAL __m256 larger(__m256 a, __m256 b)
{
    return _mm256_max_ps(a, b);
}

#include "simd/encode_body.h"

const turbok_prim turbok_prim_avx2 = {
    .name = "avx2",
    .gemm_tile = gemm_tile,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .activate = activate,
    .gated = gated,
    .widen = widen,
    .narrow = narrow,
    .softmax = softmax,
    .quantize = quantize,
    .encode = encode,
    .scores = scores,
    .weights = weights,
    .grid = &turbok_grid_avx2,
};
#endif
