/* kernels/cuda/any.cu: y = x W^T + bias for every combination of types and any sizes, on plain arithmetic
 * units: the fp32 mode, and matrices whose rows are no multiple of 16 bytes. */
#include "cuda/kernels.h"
#include "cuda/prims.cuh"

/* One warp an output, up to 8 rows of x at once. */
template <class T> DEVICE void gemv_any_body(const struct turbok_cu_multiply_any_args &a)
{
    int64_t o = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp_id();
    grid_wait();
    if (o >= a.out)
        return;
    const T *x = static_cast<const T *>(a.x);
    float acc[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int64_t k = lane_id(); k < a.in; k += 32) {
        float w = element_of(a.w_dtype, a.w, o * a.in + k);
        UNROLL
        for (int t = 0; t < 8; t++)
            if (t < a.T)
                acc[t] = fmaf(w, to_f(x[t * a.in + k]), acc[t]);
    }
    UNROLL
    for (int t = 0; t < 8; t++) {
        float v = warp_sum(acc[t]);
        if (lane_id() == 0 && t < a.T)
            put_element(a.out_dtype, a.y, t * a.out + o, v + (a.bias ? a.bias[o] : 0.0f));
    }
}
TURBOK_KERNEL_ACT(gemv_any, 256, 2)

/* 64 outputs x 64 rows a block of 256 threads, 4 x 4 each; every sum in the order of k. */
template <class T> DEVICE void gemm_any_body(const struct turbok_cu_multiply_any_args &a)
{
    TURBOK_SHARED(float, ws, 16 * 65);
    TURBOK_SHARED(float, xs, 16 * 65);
    grid_wait();
    int64_t o0 = static_cast<int64_t>(blockIdx.x) * 64, t0 = static_cast<int64_t>(blockIdx.y) * 64;
    int tid = static_cast<int>(threadIdx.x), oi = tid % 16, ti = tid / 16;
    const T *x = static_cast<const T *>(a.x);
    float acc[4][4] = {};
    for (int64_t k0 = 0; k0 < a.in; k0 += 16) {
        for (int i = tid; i < 64 * 16; i += 256) {
            int64_t row = i / 16, k = k0 + i % 16;
            ws[i % 16 * 65 + row] = o0 + row < a.out && k < a.in
                                        ? element_of(a.w_dtype, a.w, (o0 + row) * a.in + k)
                                        : 0.0f;
            xs[i % 16 * 65 + row] =
                t0 + row < a.T && k < a.in ? to_f(x[(t0 + row) * a.in + k]) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < 16; k++)
            UNROLL
        for (int i = 0; i < 4; i++)
            UNROLL
        for (int j = 0; j < 4; j++)
            acc[i][j] = fmaf(xs[k * 65 + ti + 16 * i], ws[k * 65 + oi + 16 * j], acc[i][j]);
        __syncthreads();
    }
    UNROLL
    for (int i = 0; i < 4; i++)
        UNROLL
    for (int j = 0; j < 4; j++) {
        int64_t t = t0 + ti + 16 * i, o = o0 + oi + 16 * j;
        if (t < a.T && o < a.out)
            put_element(a.out_dtype, a.y, t * a.out + o, acc[i][j] + (a.bias ? a.bias[o] : 0.0f));
    }
}
TURBOK_KERNEL_ACT(gemm_any, 256, 2)
