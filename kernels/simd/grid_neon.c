/* kernels/simd/grid_neon.c: grid_body.h for NEON of 64-bit ARM: 4 lanes, 32 registers. Compiled a second time with
 * the dot product instruction (sdot, ARMv8.2 and later), which adds four products of signed bytes in 32 bits;
 * without it products are widened to 16 bits, added in pairs, which fits (2 x 128 x 127), and the pairs in 32. */
#include "internal.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#define VL 4
#define MANY 4
#define WIDE 16 /* sums of a block in registers at most */
/* A vector is short, so there are many: more of either doubles the minute that gcc takes here. */
enum { WORDS = 2, SINGLE = 0 };
#define LOCAL static inline __attribute__((always_inline))

typedef int32x4_t vi;
typedef float32x4_t vf;

LOCAL uint8x16_t as_bytes(vi v)
{
    return vreinterpretq_u8_s32(v);
}

LOCAL vi load_codes(const char *p)
{
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

LOCAL void store_codes(char *p, vi v)
{
    memcpy(p, &v, sizeof v);
}

LOCAL vi load_word(const int8_t *p)
{
    int32_t w;
    memcpy(&w, p, 4);
    return vdupq_n_s32(w);
}

LOCAL vi low4(vi v)
{
    return vreinterpretq_s32_u8(vandq_u8(as_bytes(v), vdupq_n_u8(15)));
}

LOCAL vi high4(vi v)
{
    return vreinterpretq_s32_u8(vshrq_n_u8(as_bytes(v), 4));
}

/* Of 32 bits, zeros from above. */
LOCAL vi shift_right(vi v, int n)
{
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-n)));
}

LOCAL vi lookup(vi table, vi n)
{
    return vreinterpretq_s32_u8(vqtbl1q_u8(as_bytes(table), as_bytes(n)));
}

LOCAL vi table_of(const int8_t *p)
{
    return vreinterpretq_s32_s8(vld1q_s8(p));
}

LOCAL vi begin(int32_t start)
{
    return vdupq_n_s32(start);
}

/* Keeps a chain of sums a chain: gcc would compute all products of a block first, and spill them. */
LOCAL vi in_order(vi sum)
{
    __asm__("" : "+w"(sum));
    return sum;
}

/* Signed bytes: codes 0..15 are such numbers too. */
LOCAL vi dot_s(vi sum, vi w, vi x)
{
    int8x16_t a = vreinterpretq_s8_s32(w), b = vreinterpretq_s8_s32(x);
#ifdef __ARM_FEATURE_DOTPROD
    return in_order(vdotq_s32(sum, a, b));
#else
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return in_order(vpadalq_s16(sum, vpaddq_s16(low, high)));
#endif
}

LOCAL vi end_s(vi sum)
{
    return sum;
}

LOCAL vi dot_u(vi sum, vi w, vi x)
{
    return dot_s(sum, w, x);
}

LOCAL vi end_u(vi sum)
{
    return sum;
}

LOCAL vi splat32(int32_t n)
{
    return vdupq_n_s32(n);
}

LOCAL vi sub32(vi a, vi b)
{
    return vsubq_s32(a, b);
}

LOCAL vi load_bytes(const char *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    uint16x8_t h = vmovl_u8(vcreate_u8(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(h)));
}

LOCAL vf to_float(vi v)
{
    return vcvtq_f32_s32(v);
}

LOCAL vf splat_f(float f)
{
    return vdupq_n_f32(f);
}

LOCAL vf mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}

LOCAL vf fma_f(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}

LOCAL vf fnma_f(vf a, vf b, vf c)
{
    return vfmsq_f32(c, a, b);
}

LOCAL vf load_f(const void *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

LOCAL void store_f(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

LOCAL vf load_scale(int32_t dtype, const char *p)
{
    uint16x4_t h;
    if (dtype == TURBO_F32)
        return load_f(p);
    memcpy(&h, p, sizeof h);
    if (dtype == TURBO_F16)
        return vcvt_f32_f16(vreinterpret_f16_u16(h));
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}

typedef struct float_table {
    uint8x16x4_t bytes;
} float_table;

LOCAL float_table float_table_of(const float *t)
{
    return (float_table){vld1q_u8_x4((const uint8_t *)t)};
}

/* The low 4 bits of each lane choose a float: its 4 bytes are looked up. */
LOCAL vf table4(const float_table *t, vi n)
{
    vi first = vmulq_s32(vandq_s32(n, vdupq_n_s32(15)), vdupq_n_s32(0x04040404));
    vi at = vaddq_s32(first, vdupq_n_s32(0x03020100));
    return vreinterpretq_f32_u8(vqtbl4q_u8(t->bytes, as_bytes(at)));
}

LOCAL vf table8(const float *t, vi n)
{
    return (vf){t[n[0] & 255], t[n[1] & 255], t[n[2] & 255], t[n[3] & 255]};
}

/* Byte i of each lane as a float of sign, exponent and fraction: moved into place, copies of the sign
 * masked away, and scaled. */
LOCAL vf bits8(const turbok_tiles *w, vi codes, int i)
{
    vi top = vshlq_s32(codes, vdupq_n_s32(24 - 8 * i));
    vi v = vshlq_s32(top, vdupq_n_s32(-w->float_bits));
    v = vandq_s32(v, vdupq_n_s32(w->float_mask | (int32_t)0x80000000u));
    return mul(vreinterpretq_f32_s32(v), splat_f(w->float_unit));
}

LOCAL void extremes(const float *x, int64_t n, float *most, float *strange)
{
    vf m = splat_f(0), s = splat_f(0);
    for (int64_t i = 0; i < n; i += VL) {
        vf v = load_f(x + i), size = vabsq_f32(v);
        m = vbslq_f32(vcgtq_f32(size, m), size, m); /* of a NaN and m: m */
        s = vaddq_f32(s, vsubq_f32(v, v));
    }
    *most = vmaxvq_f32(m);
    *strange = vaddvq_f32(s);
}

/* Codes of n (16 or 32) numbers; their sum, and what sums with 4-bit codes begin with. */
LOCAL int32_t to_codes(const float *x, int64_t n, float inverse, int8_t *q, turbok_grid_kind kind,
                       int32_t *start)
{
    vi sum = splat32(0);
    for (int64_t i = 0; i < n; i += 8) {
        vi a = vcvtnq_s32_f32(mul(load_f(x + i), splat_f(inverse)));
        vi b = vcvtnq_s32_f32(mul(load_f(x + i + 4), splat_f(inverse)));
        vst1_s8(q + i, vqmovn_s16(vcombine_s16(vqmovn_s32(a), vqmovn_s32(b))));
        sum = vaddq_s32(sum, vaddq_s32(a, b));
    }
    int32_t total = vaddvq_s32(sum);
    *start = kind == TURBOK_GRID_U4 ? -8 * total : 0;
    return total;
}

#include "simd/grid_body.h"

#ifdef __ARM_FEATURE_DOTPROD
const turbok_grid_prim turbok_grid_neon_dot = {.quantize = quantize, .stripe = stripe};
#else
const turbok_grid_prim turbok_grid_neon = {.quantize = quantize, .stripe = stripe};
#endif
#endif
