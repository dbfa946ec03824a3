/* kernels/cuda/prims_tiles.cuh: products of warp groups of which both operands lie in shared memory, in the order that
 * bulk_copy_tile() brings them in. See prims_wgmma.cuh and prims_bulk.cuh, whose rules hold here too. */
#ifndef TURBOK_CUDA_PRIMS_TILES_CUH
#define TURBOK_CUDA_PRIMS_TILES_CUH

#include "cuda/prims_bulk.cuh"
#include "cuda/prims_wgmma.cuh"

#ifdef __CUDACC__
/* c [64,N] += a [64,16] B. a has a row for each row of the product, B one for each column. N: 64, 128, 192
 * or 256. */
#define SUMS8(c, i)                                                                                \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),    \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define SUMS32(c, i) SUMS8(c, i), SUMS8(c, i + 8), SUMS8(c, i + 16), SUMS8(c, i + 24)
#define NAMES32                                                                                    \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "   \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES64                                                                                    \
    NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "   \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES96                                                                                    \
    NAMES64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "   \
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES128                                                                                   \
    NAMES96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "   \
            "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
            "%124, %125, %126, %127"
#if WGMMA_HERE
#define TILES(type, shape, n, names, sums, a_name, b_name)                               \
    DEVICE void wgmma_tiles(float(&c)[n], wgmma_b a, wgmma_b b, type)                     \
    {                                                                                              \
        asm volatile("wgmma.mma_async.sync.aligned." shape ".f32." #type "." #type " {" names      \
                     "}, " a_name ", " b_name ", 1, 1, 1, 0, 0;"                                   \
                     : sums                                                                        \
                     : "l"(a), "l"(b));                                                            \
    }
#else
#define TILES(type, shape, n, names, sums, a_name, b_name)                               \
    DEVICE void wgmma_tiles(float(&)[n], wgmma_b, wgmma_b, type)                              \
    {                                                                                              \
    }
#endif
#define COMMA ,
#define TILES_OF(type)                                                                             \
    TILES(type, "m64n64k16", 32, NAMES32, SUMS32(c, 0), "%32", "%33")                       \
    TILES(type, "m64n128k16", 64, NAMES64, SUMS32(c, 0) COMMA SUMS32(c, 32), "%64", "%65")  \
    TILES(type, "m64n192k16", 96, NAMES96,                                                         \
          SUMS32(c, 0) COMMA SUMS32(c, 32) COMMA SUMS32(c, 64), "%96", "%97")               \
    TILES(type, "m64n256k16", 128, NAMES128,                                                       \
          SUMS32(c, 0) COMMA SUMS32(c, 32) COMMA SUMS32(c, 64) COMMA SUMS32(c, 96), "%128",        \
          "%129")
TILES_OF(bf16)
TILES_OF(f16)
#undef TILES_OF
#undef TILES
#undef COMMA
#undef SUMS8
#undef SUMS32
#undef NAMES32
#undef NAMES64
#undef NAMES96
#undef NAMES128
#endif

#endif
