/* kernels/cuda/gemv.cu: y = x W^T for few rows of x: W is streamed once, straight into the A operand of
 * the tensor cores. A block has 16 rows of W (or 8 of gate and 8 of up), its warps share k. A lane's 16
 * bytes of a row are 8 inputs in a row; which of them a step of 16 calls k = 2j, 2j+1, 2j+8, 2j+9 does not
 * matter as long as x is taken in the same order. The first weights are asked for before the wait for the
 * kernel that makes x. */
#include "cuda/kernels.h"
#include "cuda/prims.cuh"

#define WARPS 8

template <class T, int NT, bool GATED> DEVICE void gemv(const struct turbok_cu_multiply_args &a)
{
    constexpr int AHEAD = NT == 1 ? 8 : 6; /* chunks of 32 inputs that are on their way at once */
    TURBOK_SHARED(float, sums, WARPS * 16 * 8 * NT);
    int lane = lane_id(), g = lane / 4, j = lane % 4, warp = warp_id();
    int64_t o0 = static_cast<int64_t>(blockIdx.x) * (GATED ? 8 : 16), rows[2];
    rows[0] = o0 + g;
    rows[1] = GATED ? o0 + g : o0 + 8 + g;
    bool there[2] = {rows[0] < a.out, rows[1] < a.out};
    const T *w[2] = {static_cast<const T *>(a.w) + (there[0] ? rows[0] : 0) * a.in,
                     static_cast<const T *>(GATED ? a.up : a.w) + (there[1] ? rows[1] : 0) * a.in};
    const T *x = static_cast<const T *>(a.x);
    float c[NT][4];
    UNROLL
    for (int n = 0; n < NT; n++)
        c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
    bool waited = false;
    /* chunks of 32 inputs: a warp takes AHEAD of them at a time, the warps one behind the other */
    for (int64_t k0 = static_cast<int64_t>(warp) * AHEAD * 32; k0 < a.in;
         k0 += WARPS * AHEAD * 32) {
        uint4 u[AHEAD][2];
        UNROLL
        for (int i = 0; i < AHEAD; i++) {
            int64_t k = k0 + 32 * i + 8 * j;
            UNROLL
            for (int r = 0; r < 2; r++)
                u[i][r] = k < a.in && there[r] ? load16_stream(w[r] + k) : make_uint4(0, 0, 0, 0);
        }
        if (!waited) {
            grid_wait();
            waited = true;
        }
        UNROLL
        for (int i = 0; i < AHEAD; i++) {
            int64_t k = k0 + 32 * i + 8 * j;
            UNROLL
            for (int n = 0; n < NT; n++) {
                int64_t t = 8 * n + g;
                uint4 v = t < a.T && k < a.in ? load16(x + t * a.in + k) : make_uint4(0, 0, 0, 0);
                uint32_t m0[4] = {u[i][0].x, u[i][1].x, u[i][0].y, u[i][1].y}, b0[2] = {v.x, v.y};
                uint32_t m1[4] = {u[i][0].z, u[i][1].z, u[i][0].w, u[i][1].w}, b1[2] = {v.z, v.w};
                mma(c[n], m0, b0, T());
                mma(c[n], m1, b1, T());
            }
        }
    }
    if (!waited)
        grid_wait();
    grid_release();
    UNROLL
    for (int n = 0; n < NT; n++)
        UNROLL
    for (int i = 0; i < 4; i++) /* [warp][token][row] */
        sums[(warp * 8 * NT + 8 * n + 2 * j + i % 2) * 16 + g + i / 2 * 8] = c[n][i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < 16 * 8 * NT; i += 32 * WARPS) {
        int row = i % 16, t = i / 16;
        float v = 0, other = 0;
        if (t >= a.T || (GATED && row >= 8) || o0 + row >= a.out)
            continue;
        UNROLL
        for (int k = 0; k < WARPS; k++) {
            v += sums[(k * 8 * NT + t) * 16 + row];
            if (GATED)
                other += sums[(k * 8 * NT + t) * 16 + row + 8];
        }
        if (GATED)
            v = activation(a.fn, to_f(from_f<T>(v))) * to_f(from_f<T>(other));
        else if (a.bias)
            v += a.bias[o0 + row];
        put_element(a.out_dtype, a.y, t * a.out + o0 + row, v);
    }
}

#define INSTANCES(T)                                                                               \
    TURBOK_KERNEL(gemv8_##T, multiply, 32 * WARPS, 2)                                              \
    {                                                                                              \
        gemv<T, 1, false>(a);                                                                      \
    }                                                                                              \
    TURBOK_KERNEL(gemv16_##T, multiply, 32 * WARPS, 2)                                             \
    {                                                                                              \
        gemv<T, 2, false>(a);                                                                      \
    }                                                                                              \
    TURBOK_KERNEL(gemv_gated_##T, multiply, 32 * WARPS, 2)                                         \
    {                                                                                              \
        gemv<T, 1, true>(a);                                                                       \
    }
INSTANCES(bf16)
INSTANCES(f16)
