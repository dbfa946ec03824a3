/* kernels/simd/neon.c: body.h for NEON of 64-bit ARM (every such CPU has it): 4 floats a vector, 32 registers. */
#include "prim.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "cpu/quant.h"

#define VW 4
#define NV 4

#define LOCAL static inline __attribute__((always_inline))

LOCAL float32x4_t vfma(float32x4_t a, float32x4_t b, float32x4_t c)
{
    return vfmaq_f32(c, a, b);
}

LOCAL uint16x4_t halves(const char *p)
{
    uint16x4_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

LOCAL float32x4_t load_bf16(const char *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(halves(p), 16));
}

LOCAL float32x4_t load_f16(const char *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(halves(p)));
}

LOCAL uint32x4_t bytes(const char *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

LOCAL float32x4_t load_u8(const char *p)
{
    return vcvtq_f32_u32(bytes(p));
}

/* The low or the high nibbles. */
LOCAL float32x4_t load_u4(const char *p, int high)
{
    uint32x4_t b = bytes(p);
    return vcvtq_f32_u32(high ? vshrq_n_u32(b, 4) : vandq_u32(b, vdupq_n_u32(15)));
}

LOCAL void store_f16(char *p, float32x4_t v)
{
    uint16x4_t h = vreinterpret_u16_f16(vcvt_f16_f32(v));
    memcpy(p, &h, sizeof h);
}

LOCAL void store_bf16(char *p, float32x4_t v)
{
    uint32x4_t u = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    uint16x4_t h = vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), r, quiet), 16);
    memcpy(p, &h, sizeof h);
}

#include "simd/body.h"

LOCAL void store_u8(uint8_t *p, vi codes)
{
    uint16x4_t h = vmovn_u32((uint32x4_t)codes);
    uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(h, h))), 0);
    memcpy(p, &four, sizeof four);
}

LOCAL float32x4_t smaller(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}

LOCAL float32x4_t larger(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

#include "simd/encode_body.h"

#define PRIMITIVES                                                                                 \
    .gemm_tile = gemm_tile, .rmsnorm = rmsnorm, .layernorm = layernorm, .activate = activate,      \
    .gated = gated, .widen = widen, .narrow = narrow, .softmax = softmax, .quantize = quantize,    \
    .scores = scores, .weights = weights, .encode = encode

const turbok_prim turbok_prim_neon = {.name = "neon", .grid = &turbok_grid_neon, PRIMITIVES};
const turbok_prim turbok_prim_neon_dot = {.name = "neon dotprod",
                                          .grid = &turbok_grid_neon_dot,
                                          PRIMITIVES};
#endif
