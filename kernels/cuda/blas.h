/* kernels/cuda/blas.h: cuBLASLt, opened at run time, for dense products of 16-bit matrices. Engine thread. */
#ifndef TURBOK_CUDA_BLAS_H
#define TURBOK_CUDA_BLAS_H

#include "cuda/launch.h"

typedef struct turbok_blas turbok_blas;

/* Opens the library named by TURBO_CUDA_BLAS, else libcublasLt.so.13 or .12; "none" opens nothing, and so does
 * a driver of TURBO_CUDA_DRIVER without it. *out is NULL when there is none. */
turbo_status turbok_blas_open(turbok_cu *cu, turbok_blas **out, turbo_err *err);
void turbok_blas_close(turbok_blas *b); /* NULL allowed, as in all of these */
/* Device memory its kernels may use. */
void turbok_blas_space(turbok_blas *b, void *space, size_t bytes);
/* y [T,out] of out_dtype = x [T,in] w[out,in]^T; x and w of act, F16 or BF16; sums in fp32. The choice of kernel
 * is kept by shape. */
void turbok_blas_gemm(turbok_blas *b, int32_t act, const void *w, int32_t out, int32_t in,
                      const void *x, int32_t T, int32_t out_dtype, void *y);
/* From now on that shape is multiplied by the i-th kernel that the library proposes, 0: the one it thinks best, which
 * it has without this; false: there is none. For measurements. */
bool turbok_blas_choose(turbok_blas *b, int32_t act, int32_t out, int32_t in, int32_t T,
                        int32_t out_dtype, int i);

#endif
