/* kernels/cuda/prims_q.cuh: more words of the kind of prims.cuh, for quantised matrices and sampling:
 * arithmetic on two numbers in a register, floats of 8 bits, double precision without contraction. */
#ifndef TURBOK_CUDA_PRIMS_Q_CUH
#define TURBOK_CUDA_PRIMS_Q_CUH

#include "cuda/prims.cuh"

/* a * b + c for both halves, each rounded once. */
template <class T> DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c)
{
    float2 x = unpack2<T>(a), y = unpack2<T>(b), z = unpack2<T>(c);
    return pack2<T>(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
}
#ifdef __CUDACC__
template <> DEVICE_OF uint32_t fma2<bf16>(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
template <> DEVICE_OF uint32_t fma2<f16>(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
#endif

/* (v & mask) | bits as one instruction, where a compiler would make two of constants. */
DEVICE uint32_t mask_or(uint32_t v, uint32_t mask, uint32_t bits)
{
#ifdef __CUDACC__
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "r"(mask), "r"(bits));
    return r;
#else
    return (v & mask) | bits;
#endif
}

/* which ? a : b, without a branch. */
DEVICE uint32_t pick(bool which, uint32_t a, uint32_t b)
{
#ifdef __CUDACC__
    uint32_t r;
    asm("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nselp.b32 %0, %1, %2, p;\n}"
        : "=r"(r)
        : "r"(a), "r"(b), "r"(static_cast<uint32_t>(which)));
    return r;
#else
    return which ? a : b;
#endif
}

#ifndef __CUDACC__
namespace hostrun
{
/* The nearest e4m3, ties to even; beyond 448 that; NaN has one code. */
inline uint32_t to_e4m3(float f)
{
    const uint32_t sign = __float_as_uint(f) >> 24 & 128;
    const float size = fabsf(f);
    if (f != f)
        return 127;
    if (size > 448)
        return sign | 126;
    if (size < 0x1p-6f)
        return sign | static_cast<uint32_t>(nearbyintf(size * 512));
    const int e = ilogbf(size);
    return sign | static_cast<uint32_t>(8 * (e + 6) + static_cast<int>(nearbyintf(ldexpf(size, 3 - e))));
}
} // namespace hostrun
#endif

/* Two numbers as e4m3, a in the low byte: to nearest, ties to even, what is too large as 448, NaN as NaN. Capability
 * 8.9 and later; on older ones a trap. */
DEVICE uint32_t pack_e4m3(float a, float b)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(b), "f"(a));
    return r;
#elif defined(__CUDACC__)
    (void)a;
    (void)b;
    __trap();
    return 0;
#else
    return hostrun::to_e4m3(a) | hostrun::to_e4m3(b) << 8;
#endif
}

/* Products and sums of doubles that no compiler fuses. */
DEVICE double mul_d(double a, double b)
{
#ifdef __CUDACC__
    return __dmul_rn(a, b);
#else
    volatile double c = a * b;
    return c;
#endif
}
DEVICE double add_d(double a, double b)
{
#ifdef __CUDACC__
    return __dadd_rn(a, b);
#else
    volatile double c = a + b;
    return c;
#endif
}

DEVICE double double_of(uint64_t bits)
{
#ifdef __CUDACC__
    return __longlong_as_double((long long)bits);
#else
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
#endif
}
DEVICE uint64_t bits_of(double d)
{
#ifdef __CUDACC__
    return (uint64_t)__double_as_longlong(d);
#else
    uint64_t bits;
    memcpy(&bits, &d, sizeof bits);
    return bits;
#endif
}

#endif
