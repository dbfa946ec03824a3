/* kernels/cuda/gemm_wide.cu: instances of gemm_wide.cuh. Compiled for sm_90a; what else the file is compiled for only has
 * the names, and the host does not launch them there. */
#include "cuda/gemm_wide.cuh"

#if WGMMA_HERE
#define BODY(...) gemm_wide::product<__VA_ARGS__>(a)
#else
#define BODY(...) __trap()
#endif
TURBOK_KERNEL(gemm_wide_f16, gemm_wide, 384, 1)
{
    BODY(f16);
}
TURBOK_KERNEL(gemm_wide_bf16, gemm_wide, 384, 1)
{
    BODY(bf16);
}
