/* kernels/cuda/prims_q.cuh: more words of the kind of prims.cuh, for quantised matrices and sampling:
 * arithmetic on two numbers in a register, activations, double precision without contraction. */
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
