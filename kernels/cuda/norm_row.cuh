/* kernels/cuda/norm_row.cuh: RMSNorm as the beginning of a product of few rows, and its sum as the end of the one
 * before: with the bits that rmsnorm of rows.cu gives. Must not know what is multiplied. */
#ifndef TURBOK_CUDA_NORM_ROW_CUH
#define TURBOK_CUDA_NORM_ROW_CUH

#include "cuda/kernels.h"
#include "cuda/prims.cuh"

/* Threads that make the rows, each 8 inputs at a time; what a warp adds at a time is a part. */
enum {
    NORM_THREADS = 512,
    NORM_TURN = 8 * NORM_THREADS,
    NORM_PARTS = TURBOK_CU_BESIDE_INPUTS / 256
};

/* Weights of this thread's first inputs: they are there before the rows are. And those inputs of the first row, where they are
 * asked for early too. */
struct norm_weights {
    float w[8];
    uint4 row;

    template <class T> DEVICE_METHOD void load_row(const T *from, int in)
    {
        const int k = 8 * static_cast<int>(threadIdx.x);
        row = k < in ? load16(from + k) : make_uint4(0, 0, 0, 0);
    }
    DEVICE_METHOD void load(const float *norm, int in)
    {
        const int k = 8 * static_cast<int>(threadIdx.x);
        if (k < in)
            load8f(norm + k, w);
    }
};

/* Rows from [T][in], at most TURBOK_CU_BESIDE_INPUTS, after RMSNorm into x [T][in] in shared memory. By the first
 * NORM_THREADS threads of a block, which use barrier `bar` and have met when this is done. room [T * NORM_PARTS].
 * HAVE: w has its inputs of the first row. */
template <class T, bool HAVE = false>
DEVICE void stage_rows(const T *from, int rows, int in, const float *norm, const norm_weights &w,
                       float eps, float *room, int bar, T *x)
{
    const int first = 8 * static_cast<int>(threadIdx.x);
    UNROLL_BY(1)
    for (int t = 0; t < rows; t++)
        UNROLL_BY(1)
        for (int k = first; k - 8 * lane_id() < in; k += NORM_TURN) {
            float v[8], squares = 0;
            if (k < in) {
                const uint4 u = HAVE && !t && k < NORM_TURN ? w.row : load16(from + t * in + k);
                store16(x + t * in + k, u);
                load8f(x + t * in + k, v);
                UNROLL
                for (int i = 0; i < 8; i++)
                    squares = fmaf(v[i], v[i], squares);
            }
            squares = warp_sum(squares);
            if (lane_id() == 0)
                room[t * NORM_PARTS + k / 256] = squares;
        }
    barrier_sync(bar, NORM_THREADS);
    UNROLL_BY(1)
    for (int t = 0; t < rows; t++) {
        const float sum =
            warp_sum(256 * lane_id() < in ? room[t * NORM_PARTS + lane_id()] : 0.0f);
        const float r = 1.0f / sqrtf(sum / static_cast<float>(in) + eps);
        UNROLL_BY(1)
        for (int k = first; k < in; k += NORM_TURN) {
            float v[8], other[8];
            load8f(x + t * in + k, v);
            if (k >= NORM_TURN)
                load8f(norm + k, other);
            UNROLL
            for (int i = 0; i < 8; i++)
                v[i] = (k < NORM_TURN ? w.w[i] : other[i]) * (v[i] * r) + 0.0f;
            store8f(x + t * in + k, v);
        }
    }
    barrier_sync(bar, NORM_THREADS);
}

/* h += v, where v is what the product stores as T and `before` what h was. */
template <class T> DEVICE void add_to(T *h, T before, float v)
{
    *h = from_f<T>(to_f(before) + to_f(from_f<T>(v)));
}

#endif
