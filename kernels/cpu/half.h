/* kernels/cpu/half.h: 16-bit floats, one at a time. Pure; rounds to nearest, ties to even. */
#ifndef TURBOK_HALF_H
#define TURBOK_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t turbok_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float turbok_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline float turbok_bf16_to_f32(uint16_t h)
{
    return turbok_from_bits((uint32_t)h << 16);
}

static inline uint16_t turbok_f32_to_bf16(float f)
{
    uint32_t u = turbok_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u); /* NaN stays NaN, made quiet */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* The nearest bf16 that is not greater than f (finite). */
static inline uint16_t turbok_bf16_below(float f)
{
    uint32_t u = turbok_bits(f);
    return (uint16_t)((u >> 31 ? u + 0xffffu : u) >> 16);
}

/* The nearest bf16 that is not less than f (finite). */
static inline uint16_t turbok_bf16_above(float f)
{
    uint32_t u = turbok_bits(f);
    return (uint16_t)((u >> 31 ? u : u + 0xffffu) >> 16);
}

static inline float turbok_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 31)
        return turbok_from_bits(sign | 0x7f800000u | (m << 13));
    if (e)
        return turbok_from_bits(sign | ((e + 112) << 23) | (m << 13));
    float v = (float)m * 0x1p-24f; /* subnormal or zero, exact */
    return sign ? -v : v;
}

static inline uint16_t turbok_f32_to_f16(float f)
{
    uint32_t u = turbok_bits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* subnormal: adding 0.5 rounds at bit 2^-24 */
        float t = turbok_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (turbok_bits(t) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}

#endif
