/* kernels/cuda/prims_wgmma.cuh: products of warp groups on capability 9.0 (sm_90a): four warps, the first of them a
 * multiple of four, multiply 64 rows, out of their registers, by N columns, out of shared memory, and go on
 * meanwhile. Elsewhere on a device these functions do nothing: kernels ask WGMMA_HERE.
 *
 * B lies in rows of 128 bytes; piece p (16 bytes) of row r is at place p ^ (r % 8), and row 0 at a multiple of
 * 1,024 bytes. Registers of A and of sums as those of mma(): warp w of the group has rows 16w to 16w + 15.
 * Order: wgmma_fence(), products, wgmma_commit() and so on, wgmma_wait<groups that may be on their way>(sums). Before
 * that neither the sums nor the registers of A nor B may be touched. What a thread wrote or copied to shared
 * memory products see after its proxy_fence() and a barrier. On the host products happen when they are waited for. */
#ifndef TURBOK_CUDA_PRIMS_WGMMA_CUH
#define TURBOK_CUDA_PRIMS_WGMMA_CUH

#include "cuda/prims.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_HERE 1
#elif defined(__CUDACC__)
#define WGMMA_HERE 0
#else
#define WGMMA_HERE 1
#include "cuda/hostrun/wgmma.h"
#endif

/* Dynamic shared memory that begins at a multiple of 1,024 bytes. */
DEVICE char *shared_tiles()
{
#ifdef __CUDACC__
    extern __shared__ __align__(1024) char turbok_tiles[];
    return turbok_tiles;
#else
    return shared_dynamic();
#endif
}

#ifdef __CUDACC__
typedef uint64_t wgmma_b;
/* Where B begins. `next`: bytes from 8 rows to the next 8; `wide`: from 64 columns of a transposed B to the next. */
DEVICE wgmma_b wgmma_tile(const void *p, int next, int wide)
{
    uint64_t at = static_cast<uint64_t>(__cvta_generic_to_shared(p)) >> 4;
    return at | static_cast<uint64_t>(wide >> 4) << 16 | static_cast<uint64_t>(next >> 4) << 32 |
           static_cast<uint64_t>(1) << 62;
}
DEVICE void wgmma_fence()
{
#if WGMMA_HERE
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
DEVICE void wgmma_commit()
{
#if WGMMA_HERE
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int pending, int n> DEVICE void wgmma_wait(float (&sums)[n])
{
#if WGMMA_HERE
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
    UNROLL
    for (int i = 0; i < n; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
#else
    (void)sums;
#endif
}
/* Waits until so many groups may be on their way; sums of those before may not be touched yet. */
template <int pending> DEVICE void wgmma_wait()
{
#if WGMMA_HERE
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
}
/* A warp group gives registers back, or takes them: from here on it has n a thread (a multiple of 8). */
template <int n> DEVICE void registers_fewer()
{
#if WGMMA_HERE
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
#endif
}
template <int n> DEVICE void registers_more()
{
#if WGMMA_HERE
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
#endif
}
DEVICE void proxy_fence()
{
#if WGMMA_HERE
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* c [64,N] = a [64,16] B + (add ? c : 0). B [16,N] has a row for each column of the product, or, transposed, for
 * each of the 16 (a tile [16][N]). N is 32, 64 or 128. */
#define SUMS8(c, i)                                                                                \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),    \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define SUMS16(c, i) SUMS8(c, i), SUMS8(c, i + 8)
#define SUMS32(c, i) SUMS16(c, i), SUMS16(c, i + 16)
#define NAMES16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES32                                                                                    \
    NAMES16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64                                                                                    \
    NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#if WGMMA_HERE
#define WGMMA(type, shape, n, names, sums, operands, add_name, last)                               \
    template <int transposed>                                                                      \
    DEVICE void wgmma(float(&c)[n], const uint32_t a[4], wgmma_b b, int add, type)                 \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name                                  \
                     ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." #type "." #type           \
                     " {" names "}, " operands ", p, 1, 1, " last ";\n}"                           \
                     : sums                                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add),               \
                       "n"(transposed));                                                           \
    }
#else
#define WGMMA(type, shape, n, names, sums, operands, add_name, last)                               \
    template <int transposed>                                                                      \
    DEVICE void wgmma(float(&)[n], const uint32_t[4], wgmma_b, int, type)                          \
    {                                                                                              \
    }
#endif
#define WGMMA_32(type)                                                                             \
    WGMMA(type, "m64n32k16", 16, NAMES16, SUMS16(c, 0), "{%16, %17, %18, %19}, %20", "%21", "%22")
#define WGMMA_64(type)                                                                             \
    WGMMA(type, "m64n64k16", 32, NAMES32, SUMS32(c, 0), "{%32, %33, %34, %35}, %36", "%37", "%38")
#define WGMMA_128(type)                                                                            \
    WGMMA(type, "m64n128k16", 64, NAMES64, SUMS32(c, 0) COMMA SUMS32(c, 32),                       \
          "{%64, %65, %66, %67}, %68", "%69", "%70")
#define COMMA ,
WGMMA_32(bf16)
WGMMA_32(f16)
WGMMA_64(bf16)
WGMMA_64(f16)
WGMMA_128(bf16)
WGMMA_128(f16)
#undef COMMA
#undef SUMS8
#undef SUMS16
#undef SUMS32
#undef NAMES16
#undef NAMES32
#undef NAMES64
#undef WGMMA_32
#undef WGMMA_64
#undef WGMMA_128
#undef WGMMA
#endif

#endif
