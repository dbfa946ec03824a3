/* kernels/cuda/moe.cu: mixtures of experts: routing, sorting of the choices by expert, one product for all
 * experts, and the weighted sum. No atomics on floats: a token's bits depend on its own numbers only. */
#include "cuda/kernels.h"
#include "cuda/prims_q.cuh"

namespace
{
enum { ROWS = TURBOK_CU_MOE_ROWS, COLS = 64, STEP = 32, STRIDE = STEP * 2 + 16 };

/* Grows with v, then with falling id; a NaN is below all. */
DEVICE unsigned long long rank_of(float v, int id)
{
    uint32_t u = __float_as_uint(v + 0.0f);
    u = v != v ? 0 : u & 0x80000000u ? ~u : u | 0x80000000u;
    return (unsigned long long)u << 32 | ~(uint32_t)id;
}

DEVICE unsigned long long warp_best(unsigned long long v)
{
    UNROLL
    for (int i = 16; i; i /= 2) {
        unsigned long long other = __shfl_xor_sync(FULL, v, i);
        v = other > v ? other : v;
    }
    return v;
}
} // namespace

/* A warp has a token, a lane every 32nd expert. */
TURBOK_KERNEL(moe_route, moe_route, 256, 4)
{
    const int t = (int)blockIdx.x * 8 + warp_id(), lane = lane_id();
    grid_wait();
    if (t >= a.T)
        return;
    const float *l = a.logits + (int64_t)t * a.n;
    float top = -3.402823466e38f, sum = 0;
    for (int e = lane; e < a.n; e += 32)
        top = fmaxf(top, l[e]);
    top = warp_max(top);
    for (int e = lane; e < a.n; e += 32)
        sum += expf(l[e] - top);
    sum = warp_sum(sum);
    unsigned long long limit = ~0ull;
    float chosen = 0, mine[4] = {0, 0, 0, 0}; /* lane j % 32 keeps choice j */
    for (int j = 0; j < a.k; j++) {
        unsigned long long best = 0;
        for (int e = lane; e < a.n; e += 32) {
            unsigned long long r = rank_of(l[e], e);
            best = r < limit && r > best ? r : best;
        }
        limit = warp_best(best);
        const int e = (int)~(uint32_t)limit;
        const float w = expf(l[e] - top) / sum;
        chosen += w;
        if (lane == j % 32) {
            a.experts[(int64_t)t * a.k + j] = e;
            mine[j / 32] = w;
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int j = i * 32 + lane;
        if (j < a.k)
            a.weights[(int64_t)t * a.k + j] = a.normalise ? mine[i] / chosen : mine[i];
    }
}

/* One block. Each warp takes experts in turn and walks all choices. */
TURBOK_KERNEL(moe_sort, moe_sort, 1024, 1)
{
    TURBOK_SHARED(int, count, 1025);
    TURBOK_SHARED(int, tile, 1025);
    const int lane = lane_id(), warps = (int)blockDim.x / 32;
    grid_wait();
    for (int e = (int)threadIdx.x; e < a.n; e += (int)blockDim.x)
        count[e] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < a.choices; i += (int)blockDim.x)
        atomicAdd(&count[a.experts[i]], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int at = 0, tiles = 0;
        for (int e = 0; e < a.n; e++) {
            const int n = count[e];
            count[e] = at;
            tile[e] = tiles;
            at += n;
            tiles += (n + ROWS - 1) / ROWS;
        }
        count[a.n] = at;
        *a.n_tiles = tiles;
    }
    __syncthreads();
    for (int e = warp_id(); e < a.n; e += warps) {
        int at = count[e];
        for (int i = 0; i < a.choices; i += 32) {
            const bool here = i + lane < a.choices && a.experts[i + lane] == e;
            const unsigned all = __ballot_sync(FULL, here);
            if (here) {
                const int p = at + __popc(all & ((1u << lane) - 1));
                a.order[p] = i + lane;
                a.place[i + lane] = p;
            }
            at += __popc(all);
        }
        const int end = count[e + 1];
        for (int i = lane; count[e] + i * ROWS < end; i += 32) {
            int32_t *t = a.tiles + (int64_t)(tile[e] + i) * 3;
            t[0] = e;
            t[1] = count[e] + i * ROWS;
            t[2] = end < t[1] + ROWS ? end : t[1] + ROWS;
        }
    }
}

namespace
{
typedef struct turbok_cu_moe_gemm_args gemm_args;
typedef struct turbok_cu_moe_combine_args combine_args;

struct tile {
    int expert, from, end;
    int64_t col;
};

/* STEP inputs of 64 rows of x and of one or two times 64 rows of the matrix, each [64][STRIDE bytes]. */
template <bool GATED> DEVICE void stage(const gemm_args &a, const tile &t, int64_t k0, char *to)
{
    const int64_t each = GATED ? 2 * a.out : a.out;
    const uint16_t *x = (const uint16_t *)a.x, *w = (const uint16_t *)a.w + t.expert * each * a.in;
    for (int i = (int)threadIdx.x; i < (GATED ? 3 : 2) * 256; i += 128) {
        const int part = i >> 8, r = (i >> 2) & 63, u = i & 3;
        const int64_t k = k0 + u * 8;
        const uint16_t *from = x;
        bool there = k < a.in;
        if (part == 0) {
            const int p = t.from + r;
            there = there && p < t.end;
            from += there ? (int64_t)(a.gather ? a.order[p] / a.k : p) * a.in + k : 0;
        } else {
            const int64_t o = t.col + r;
            there = there && o < a.out;
            from = w + (there ? (o + (part - 1) * a.out) * a.in + k : 0);
        }
        copy16_async(to + (part * 64 + r) * STRIDE + u * 16, from, there ? 16 : 0);
    }
}

/* A block is 4 warps of 16 rows each and 64 outputs. */
template <class T, bool GATED> DEVICE void gemm(const gemm_args &a, char *space)
{
    constexpr int PARTS = GATED ? 2 : 1, BYTES = (PARTS + 1) * 64 * STRIDE;
    const int lane = lane_id(), warp = warp_id();
    const int32_t *at = a.tiles + (int64_t)blockIdx.x * 3;
    const tile t = {at[0], at[1], at[2], (int64_t)blockIdx.y * COLS};
    float acc[PARTS][8][4];
    UNROLL
    for (int p = 0; p < PARTS; p++)
        UNROLL
        for (int n = 0; n < 8; n++)
            acc[p][n][0] = acc[p][n][1] = acc[p][n][2] = acc[p][n][3] = 0;
    const int steps = (int)((a.in + STEP - 1) / STEP);
    stage<GATED>(a, t, 0, space);
    copy_commit();
    for (int s = 0; s < steps; s++) {
        if (s + 1 < steps)
            stage<GATED>(a, t, (int64_t)(s + 1) * STEP, space + (s + 1) % 2 * BYTES);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const char *x = space + s % 2 * BYTES;
        UNROLL
        for (int k = 0; k < STEP / 16; k++) {
            uint32_t f[4], b[4];
            load_matrices4(f, x + (warp * 16 + lane % 16) * STRIDE + k * 32 + lane / 16 * 16);
            UNROLL
            for (int p = 0; p < PARTS; p++)
                UNROLL
                for (int n = 0; n < 8; n += 2) { /* 16 outputs */
                    const int row = (p + 1) * 64 + n * 8 + lane / 16 * 8 + lane % 8;
                    load_matrices4(b, x + row * STRIDE + k * 32 + lane / 8 % 2 * 16);
                    mma(acc[p][n], f, b, T());
                    mma(acc[p][n + 1], f, b + 2, T());
                }
        }
        __syncthreads();
    }
    UNROLL
    for (int n = 0; n < 8; n++)
        UNROLL
        for (int e = 0; e < 4; e++) {
            const int p = t.from + warp * 16 + lane / 4 + e / 2 * 8;
            const int64_t o = t.col + n * 8 + lane % 4 * 2 + e % 2;
            float v = acc[0][n][e];
            if (GATED)
                v = activation(a.fn, v) * acc[PARTS - 1][n][e];
            if (p < t.end && o < a.out)
                ((T *)a.y)[p * a.out + o] = from_f<T>(v);
        }
}

template <class T> DEVICE void gemm_any(const gemm_args &a)
{
    TURBOK_SHARED(char, space, 2 * 3 * 64 * STRIDE);
    grid_wait();
    if ((int)blockIdx.x >= *a.n_tiles)
        return;
    if (a.gated)
        gemm<T, true>(a, space);
    else
        gemm<T, false>(a, space);
}

template <class T> DEVICE void combine(const combine_args &a)
{
    grid_wait();
    const int64_t t = blockIdx.x;
    for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x) {
        float v = 0;
        for (int j = 0; j < a.k; j++)
            v = fmaf(a.weights[t * a.k + j], to_f(((const T *)a.y)[a.place[t * a.k + j] * a.E + i]), v);
        ((T *)a.out)[t * a.E + i] = from_f<T>(v);
    }
}
} // namespace

TURBOK_KERNEL(moe_gemm_bf16, moe_gemm, 128, 4) { gemm_any<bf16>(a); }
TURBOK_KERNEL(moe_gemm_f16, moe_gemm, 128, 4) { gemm_any<f16>(a); }
TURBOK_KERNEL(moe_combine_bf16, moe_combine, 256, 4) { combine<bf16>(a); }
TURBOK_KERNEL(moe_combine_f16, moe_combine, 256, 4) { combine<f16>(a); }
