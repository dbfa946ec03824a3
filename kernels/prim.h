/* kernels/prim.h: the primitives that each instruction set implements, and that nn/ builds ops from.
 *
 * cpu/ref.c is the scalar reference and the judge; simd/body.h is one text compiled once for each
 * instruction set. A table is chosen when a device opens. All of them obey one rule: the bits of a
 * result depend on the inputs of its row only, so accumulation orders are fixed and never depend on
 * how many rows are computed together. */
#ifndef TURBOK_PRIM_H
#define TURBOK_PRIM_H

#include <stddef.h>
#include <stdint.h>

#include "grid.h"
#include "turbok.h"

/* A weight matrix [out,in] is stored in tiles of 64 output rows: tile t holds in*64 elements, element
 * (k, lane) = W[64*t + lane][k]. So 64 outputs advance over k together, each with one chain of
 * multiply-adds in the order of k, and a thread streams one contiguous piece of memory. Rows beyond
 * `out` in the last tile are zero. */
#define TURBOK_TILE 64
#define TURBOK_TILE_ROWS 6 /* activation rows that one call of gemm_tile takes at most */

/* Types that only gemm_tile reads, beside TURBO_F32, _F16, _BF16 and TURBO_U8: codes of 4 bits. */
enum {
    TURBOK_U4_PAIR =
        16, /* two k share a byte: element (k, lane) = nibble k%2 of w[k/2*ldw + lane] */
    TURBOK_U4_SPLIT = 17 /* (k, lane) = nibble lane/32 of w[k*ldw/2 + lane%32] */
};

typedef struct turbok_prim {
    const char *name;
    /* acc[r][lane] += sum over k in [0,n) of x[r*ldx + k] * w[k*ldw + lane], k ascending, fused
     * multiply-add, 64 lanes. rows 1..6; acc is [rows][64]. Used on weight tiles (ldw 64) and on the
     * KV cache: scores are q times K^T, the sum of values is p times V. Codes count as the numbers 0
     * to 255 or 15. n is even with U4_PAIR. The lines of `ahead`, laid out as w, are brought into the
     * cache in step with those of w: what will be read next. NULL: nothing is. */
    void (*gemm_tile)(int32_t dtype, const void *w, int64_t ldw, const float *x, int64_t ldx,
                      int rows, int64_t n, float *acc, const void *ahead);
    /* h += delta (delta may be NULL); out = h * rsqrt(mean(h^2) + eps) * w. out may be delta or h. */
    void (*rmsnorm)(float *h, const float *delta, const float *w, float eps, int64_t n, float *out);
    /* h += delta (may be NULL); out = (h - mean) / sqrt(mean((h - mean)^2) + eps) * w + bias. */
    void (*layernorm)(float *h, const float *delta, const float *w, const float *bias, float eps,
                      int64_t n, float *out);
    /* out = act(in); out may be in. act: TURBO_ACT_*. */
    void (*activate)(int32_t act, const float *in, int64_t n, float *out);
    /* out = act(gate) * up; out may be either input. act: TURBO_ACT_*. */
    void (*gated)(int32_t act, const float *gate, const float *up, int64_t n, float *out);
    /* [n] of dtype to f32 and back, rounding to nearest even. */
    void (*widen)(int32_t dtype, const void *in, int64_t n, float *out);
    void (*narrow)(int32_t dtype, const float *in, int64_t n, void *out);
    /* One step of an online softmax: *m becomes the maximum of *m and scale * s[j], j < n <= 64;
     * s[j] = exp(scale * s[j] - *m); returns their sum. s has room for 64; those from n on may be
     * overwritten. */
    float (*softmax)(float *s, int64_t n, float scale, float *m);
    /* One row of K or V, [n] f32, as codes of `bits` (8 or 4) bits, one a byte, and its parameters: par
     * = scale, zero in bf16. cpu/quant.h has the rules. The same bits on every instruction set. */
    void (*quantize)(int bits, const float *in, int64_t n, uint8_t *codes, uint16_t par[2]);
    /* q.k from q.u, 64 lanes: s[j] = s[j] * scale[j] + qsum * zero[j], the sum fused; qsum = sum of q. */
    void (*scores)(float *s, const float *scale, const float *zero, float qsum);
    /* Weights for codes: p[j] *= scale[j], j < n <= 64; returns sum p[j] * zero[j] with p as it was.
     * Arrays have room for 64; p from n on may be overwritten, scale and zero there may be anything. */
    float (*weights)(float *p, int64_t n, const float *scale, const float *zero);
    /* Finite floats to codes of quantised weights, one a byte: `groups` groups one behind the other, and the
     * scale of each. 8 bits: code - 128 times scale, which is rounded up to bf16 if `rounded`; 4 bits:
     * code - 8. cpu/encode.c has the rules. The same bits on every instruction set. */
    void (*encode)(int bits, bool rounded, const float *w, int64_t groups, int64_t group,
                   uint8_t *codes, float *scale);
    const turbok_grid_prim *grid; /* products with quantised matrices: grid.h */
} turbok_prim;

/* What the largest number of a group becomes, in the order in which scales are tried. */
#define TURBOK_ENCODE_ENDS                                                                         \
    {                                                                                              \
        -8.0f, -7.4f, -6.8f, 7.4f                                                                  \
    }
/* Groups of 4 bits with a number above FAR are made ready by a power of two, so that no square overflows: NEAR times
 * the numbers, and the scale divided by it. */
#define TURBOK_ENCODE_FAR 0x1p56f
#define TURBOK_ENCODE_NEAR 0x1p-80f
void turbok_encode(int bits, bool rounded, const float *w, int64_t groups, int64_t group,
                   uint8_t *codes, float *scale); /* the scalar one */

extern const turbok_prim turbok_prim_scalar;
#if defined(__x86_64__)
extern const turbok_prim turbok_prim_avx2;
extern const turbok_prim turbok_prim_avx512;
extern const turbok_prim turbok_prim_avx512_vnni; /* the same but for quantised matrices */
#elif defined(__aarch64__)
extern const turbok_prim turbok_prim_neon;
extern const turbok_prim turbok_prim_neon_dot; /* the same but for quantised matrices */
#endif

static inline size_t turbok_dtype_size(int32_t dtype)
{
    return dtype == TURBO_F32 ? 4 : 2;
}

/* Bytes of n elements of any type that gemm_tile reads; n even for codes of 4 bits. */
static inline size_t turbok_bytes(int32_t dtype, size_t n)
{
    if (dtype == TURBO_U8)
        return n;
    return dtype >= TURBOK_U4_PAIR ? n / 2 : n * turbok_dtype_size(dtype);
}

#endif
