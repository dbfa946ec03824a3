/* kernels/cuda/decode_add.cuh: how the pieces of a sequence become one result of attention,
 * decode.cuh. Must not know where keys lie. */
#ifndef TURBOK_CUDA_DECODE_ADD_CUH
#define TURBOK_CUDA_DECODE_ADD_CUH

#include "cuda/kernels.h"
#include "cuda/prims.cuh"

#define WARPS 4
#define HEADS 8 /* query heads of an item */
#define PART 32 /* pieces that are added at a time */
#define TAIL TURBOK_CU_PARTIAL_TAIL

DEVICE float2 tail_of(const float *row)
{
    return __ldcg(reinterpret_cast<const float2 *>(row));
}

DEVICE float4 piece4(const float *p)
{
    return __ldcg(reinterpret_cast<const float4 *>(p));
}
DEVICE void add4(float4 &v, float w, const float4 &x)
{
    v.x = fmaf(w, x.x, v.x), v.y = fmaf(w, x.y, v.y);
    v.z = fmaf(w, x.z, v.z), v.w = fmaf(w, x.w, v.w);
}

/* Adds n partial results of a head tile [HEADS][dim+TAIL], in order: the one at `first`, then
 * those from rest on, whose place 0 is not one of them. room: HEADS * (PART + 1 + D) floats.
 * Loads wait long for what other blocks wrote: many are on their way at once. */
template <class T, int D>
DEVICE_CALLED void add_pieces(const float *first, const float *rest, int n, int heads, int dim,
                              float *room, T *out)
{
    constexpr int LANES = 32 * WARPS / HEADS; /* threads of a head while weights are found */
    constexpr int EACH = PART / LANES; /* pieces of a part whose weights a thread finds */
    constexpr int EARLY = 8; /* pieces whose numbers are asked for before the weights are there */
    int h = static_cast<int>(threadIdx.x) / LANES, l = static_cast<int>(threadIdx.x) % LANES;
    float *weights = room, *total = room + HEADS * PART, *sums = total + HEADS;
    const int mine = h * (dim + TAIL) + dim;
    const int64_t stride = static_cast<int64_t>(HEADS) * (dim + TAIL);
    auto piece_of = [&](int p) { return p ? rest + p * stride : first; };
    float m = -INFINITY, sum = 0;
    float2 at[EACH]; /* largest score and sum of weights, of the first part */
    UNROLL
    for (int k = 0; k < EACH; k++) {
        int p = l + k * LANES;
        at[k] = h < heads && p < n ? tail_of(piece_of(p) + mine) : make_float2(-INFINITY, 0.0f);
        m = fmaxf(m, at[k].x);
    }
    if (h < heads)
        UNROLL_BY(1)
        for (int p = l + PART; p < n; p += LANES)
            m = fmaxf(m, __ldcg(piece_of(p) + mine));
    const int mine4 = 4 * static_cast<int>(threadIdx.x); /* the first of this thread's sums */
    const int number0 = mine4 / D * (dim + TAIL) + mine4 % D;
    bool some = mine4 < heads * D && mine4 % D < dim;
    float4 early[EARLY];
    UNROLL
    for (int p = 0; p < EARLY; p++)
        early[p] = some && p < n ? piece4(piece_of(p) + number0) : make_float4(0, 0, 0, 0);
    UNROLL
    for (int i = 1; i < LANES; i *= 2)
        m = fmaxf(m, __shfl_xor_sync(FULL, m, i));
    m = m > -INFINITY ? m : 0.0f;
    UNROLL_BY(1)
    for (int from = 0; from < n; from += PART) {
        int count = min(PART, n - from);
        UNROLL
        for (int k = 0; k < EACH; k++) {
            int p = l + k * LANES;
            if (h >= heads || p >= count)
                continue;
            if (from)
                at[k] = tail_of(piece_of(from + p) + mine);
            float w = exp2_fast(at[k].x - m);
            sum = fmaf(w, at[k].y, sum);
            weights[h * PART + p] = w;
        }
        __syncthreads();
        UNROLL_BY(1)
        for (int i = mine4; i < heads * D; i += 4 * 32 * WARPS) {
            int row = i / D, d = i % D, p = 0;
            if (d >= dim)
                continue;
            const int number = row * (dim + TAIL) + d;
            float4 v = from ? *reinterpret_cast<float4 *>(sums + i) : make_float4(0, 0, 0, 0);
            if (!from && i == mine4) {
                UNROLL
                for (p = 0; p < EARLY; p++)
                    if (p < count)
                        add4(v, weights[row * PART + p], early[p]);
            }
            UNROLL_BY(8)
            for (; p < count; p++)
                add4(v, weights[row * PART + p], piece4(piece_of(from + p) + number));
            *reinterpret_cast<float4 *>(sums + i) = v;
        }
        __syncthreads();
    }
    UNROLL
    for (int i = 1; i < LANES; i *= 2)
        sum += __shfl_xor_sync(FULL, sum, i);
    if (l == 0)
        total[h] = sum;
    __syncthreads();
    UNROLL_BY(1)
    for (int i = static_cast<int>(threadIdx.x); i < heads * D; i += 32 * WARPS)
        if (i % D < dim)
            out[i / D * dim + i % D] = from_f<T>(sums[i] / total[i / D]);
}

#endif
