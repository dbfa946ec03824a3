/* kernels/cuda/prims_wgmma8.cuh: products of warp groups with codes of 8 bits, otherwise as prims_wgmma.cuh has it: B has
 * a row of 128 bytes, 128 inputs, for each column of the product, and N is 32, 64 or 128. Registers of A are those of
 * mma_s8() and mma_e4m3(). */
#ifndef TURBOK_CUDA_PRIMS_WGMMA8_CUH
#define TURBOK_CUDA_PRIMS_WGMMA8_CUH

#include "cuda/prims_wgmma.cuh"

#ifdef __CUDACC__
template <int pending, int n> DEVICE void wgmma_wait(int (&sums)[n])
{
#if WGMMA_HERE
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
    UNROLL
    for (int i = 0; i < n; i++)
        asm volatile("" : "+r"(sums[i])::"memory");
#else
    (void)sums;
#endif
}

/* c [64,N] = a [64,32] B + (add ? c : 0); signed integers, or e4m3. */
#define COMMA ,
#define SUMS8(f, c, i)                                                                             \
    "+" f(c[i]), "+" f(c[i + 1]), "+" f(c[i + 2]), "+" f(c[i + 3]), "+" f(c[i + 4]),               \
        "+" f(c[i + 5]), "+" f(c[i + 6]), "+" f(c[i + 7])
#define SUMS16(f, i) SUMS8(f, c, i), SUMS8(f, c, i + 8)
#define SUMS32(f, i) SUMS16(f, i), SUMS16(f, i + 16)
#define NAMES16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES32                                                                                    \
    NAMES16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64                                                                                    \
    NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#if WGMMA_HERE
#define WGMMA8(T, types, shape, n, names, sums, operands, add_name, last)                          \
    DEVICE void wgmma8(T(&c)[n], const uint32_t a[4], wgmma_b b, int add)                          \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name                                  \
                     ", 0;\nwgmma.mma_async.sync.aligned." shape "k32." types " {" names           \
                     "}, " operands ", p" last ";\n}"                                              \
                     : sums                                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));              \
    }
#else
#define WGMMA8(T, types, shape, n, names, sums, operands, add_name, last)                          \
    DEVICE void wgmma8(T(&)[n], const uint32_t[4], wgmma_b, int)                                   \
    {                                                                                              \
    }
#endif
#define WGMMA8_ALL(T, f, types, last)                                                              \
    WGMMA8(T, types, "m64n32", 16, NAMES16, SUMS16(f, 0), "{%16, %17, %18, %19}, %20", "%21",      \
           last)                                                                                   \
    WGMMA8(T, types, "m64n64", 32, NAMES32, SUMS32(f, 0), "{%32, %33, %34, %35}, %36", "%37",      \
           last)                                                                                   \
    WGMMA8(T, types, "m64n128", 64, NAMES64, SUMS32(f, 0) COMMA SUMS32(f, 32),                     \
           "{%64, %65, %66, %67}, %68", "%69", last)
WGMMA8_ALL(int, "r", "s32.s8.s8", "")
WGMMA8_ALL(float, "f", "f32.e4m3.e4m3", ", 1, 1")
#undef COMMA
#undef SUMS8
#undef SUMS16
#undef SUMS32
#undef NAMES16
#undef NAMES32
#undef NAMES64
#undef WGMMA8
#undef WGMMA8_ALL
#else
#include "cuda/hostrun/wgmma8.h"
#endif

#endif
