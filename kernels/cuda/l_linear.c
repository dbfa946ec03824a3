/* kernels/cuda/l_linear.c: launches of matrix products, see ops.h. */
#include "cuda/ops.h"

static void multiply_any(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype,
                         const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                         int32_t out_dtype, void *y, bool few)
{
    struct turbok_cu_multiply_any_args a = {.w = w,
                                            .bias = bias,
                                            .x = x,
                                            .y = y,
                                            .out = out,
                                            .in = in,
                                            .T = T,
                                            .w_dtype = w_dtype,
                                            .out_dtype = out_dtype};
    if (few)
        turbok_cu_launch(cu, TURBOK_CU_gemv_any_f32 + act, TURBOK_CU_DIM(((unsigned)out + 7) / 8),
                         TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
    else
        turbok_cu_launch(cu, TURBOK_CU_gemm_any_f32 + act,
                         TURBOK_CU_DIM(((unsigned)out + 63) / 64, ((unsigned)T + 63) / 64),
                         TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_gemv(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype, const float *bias,
                    int32_t out, int32_t in, const void *x, int32_t T, int32_t out_dtype, void *y)
{
    multiply_any(cu, act, w, w_dtype, bias, out, in, x, T, out_dtype, y, true);
}

void turbok_cu_gemm(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype, const float *bias,
                    int32_t out, int32_t in, const void *x, int32_t T, int32_t out_dtype, void *y)
{
    multiply_any(cu, act, w, w_dtype, bias, out, in, x, T, out_dtype, y, false);
}
