/* kernels/cuda/moe.cu: mixtures of experts: routing, sorting of the choices by expert, one product for all
 * experts, and the weighted sum. No atomics on floats: a token's bits depend on its own numbers only. */
#include "cuda/kernels.h"
#include "cuda/prims_q.cuh"
#include "cuda/wq_plain.cuh"

namespace
{
enum { ROWS = TURBOK_CU_MOE_ROWS, COLS = 64, STEP = 32 };

/* Bytes from one row of k inputs to the next in shared memory: fragments of 8 rows meet in no bank. */
DEVICE constexpr int stride_of(int k)
{
    return k * 2 + 16;
}

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
typedef struct turbok_cu_moe_format format;

struct tile {
    int expert, from, end;
    int64_t col;
};

DEVICE const uint16_t *row_of(const gemm_args &a, const tile &t, int r)
{
    const int p = t.from + r < t.end ? t.from + r : t.from;
    return (const uint16_t *)a.x + (int64_t)(a.gather ? a.order[p] / a.k : p) * a.in;
}

/* Inputs k0 .. k0 + K of 64 rows of x, [64][stride_of(K) bytes]; zeros beyond the tile and `in`. */
template <int K> DEVICE void stage_rows(const gemm_args &a, const tile &t, int64_t k0, char *to)
{
    constexpr int UNITS = K / 8;
    for (int i = (int)threadIdx.x; i < 64 * UNITS; i += 128) {
        const int r = i / UNITS, u = i % UNITS;
        const int64_t k = k0 + u * 8;
        const bool there = k < a.in && t.from + r < t.end;
        copy16_async(to + r * stride_of(K) + u * 16, row_of(a, t, r) + (there ? k : 0),
                     there ? 16 : 0);
    }
}

/* The same of 64 rows of a matrix of numbers, from t.col on. */
DEVICE void stage_numbers(const gemm_args &a, const tile &t, const uint16_t *w, int64_t k0, char *to)
{
    for (int i = (int)threadIdx.x; i < 64 * STEP / 8; i += 128) {
        const int r = i >> 2, u = i & 3;
        const int64_t k = k0 + u * 8, o = t.col + r;
        const bool there = k < a.in && o < a.out;
        copy16_async(to + r * stride_of(STEP) + u * 16, w + (there ? o * a.in + k : 0),
                     there ? 16 : 0);
    }
}

/* And of codes: chunk c of four tiles, a warp each, becomes numbers of T. */
template <class T, int BITS>
DEVICE void stage_codes(const gemm_args &a, const tile &t, const turbok_cu_qmat &m, int c, char *to)
{
    constexpr int STEPS = wq::format<BITS>::STEPS, K = wq::format<BITS>::K;
    const format &f = a.format;
    const int lane = lane_id(), q = lane & 3, r = lane >> 2;
    const int64_t at16 = t.col / 16 + warp_id(), tiles = (a.out + 15) / 16;
    const int chunks = wq::chunks_of(a.in, K), groups = (int)(a.in / f.group);
    const int lay = f.steps < STEPS ? f.steps : STEPS;
    const int64_t own = at16 < tiles ? at16 : tiles - 1;
    const uint4 w = load16((const char *)m.codes + ((own * chunks + c) * 32 + lane) * 16);
    UNROLL
    for (int s = 0; s < STEPS; s++) {
        const int inside = wq::at(lay, s, q, 0), k = c * K + inside;
        const int g = k < a.in ? (int)((unsigned)k / (unsigned)f.group) : 0;
        UNROLL
        for (int h = 0; h < 2; h++) {
            const int64_t i = (own * groups + g) * 16 + r + 8 * h;
            float v[4];
            UNROLL
            for (int j = 0; j < 4; j++)
                v[j] = k < a.in ? wq::number(m, f.kind, f.scale_dtype, f.offset, i,
                                             wq::code_at<BITS>(f.kind, w, s, h, j))
                                : 0.0f;
            uint32_t *out = (uint32_t *)(to + (warp_id() * 16 + r + 8 * h) * stride_of(K) +
                                         inside * 2);
            out[0] = pack2<T>(v[0], v[1]);
            out[1] = pack2<T>(v[2], v[3]);
        }
    }
}

template <int PARTS> struct sums {
    float v[PARTS][8][4];
};

template <int PARTS> DEVICE void clear(sums<PARTS> &acc)
{
    UNROLL
    for (int p = 0; p < PARTS; p++)
        UNROLL
    for (int n = 0; n < 8; n++)
        acc.v[p][n][0] = acc.v[p][n][1] = acc.v[p][n][2] = acc.v[p][n][3] = 0;
}

/* K inputs of 64 rows, then of one or two times 64 rows of matrices, all staged in x. */
template <class T, int K, int PARTS> DEVICE void multiply(const char *x, sums<PARTS> &acc)
{
    constexpr int STRIDE = stride_of(K);
    const int lane = lane_id(), warp = warp_id();
    UNROLL
    for (int k = 0; k < K / 16; k++) {
        uint32_t f[4], b[4];
        load_matrices4(f, x + (warp * 16 + lane % 16) * STRIDE + k * 32 + lane / 16 * 16);
        UNROLL
        for (int p = 0; p < PARTS; p++)
            UNROLL
        for (int n = 0; n < 8; n += 2) { /* 16 outputs */
            const int row = (p + 1) * 64 + n * 8 + lane / 16 * 8 + lane % 8;
            load_matrices4(b, x + row * STRIDE + k * 32 + lane / 8 % 2 * 16);
            mma(acc.v[p][n], f, b, T());
            mma(acc.v[p][n + 1], f, b + 2, T());
        }
    }
}

template <class T, int PARTS> DEVICE void store(const gemm_args &a, const tile &t, const sums<PARTS> &acc)
{
    const int lane = lane_id(), warp = warp_id();
    UNROLL
    for (int n = 0; n < 8; n++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        const int64_t p = t.from + warp * 16 + lane / 4 + e / 2 * 8;
        const int64_t o = t.col + n * 8 + lane % 4 * 2 + e % 2;
        float v = acc.v[0][n][e];
        if (PARTS == 2)
            v = activation(a.fn, v) * acc.v[PARTS - 1][n][e];
        if (p < t.end && o < a.out)
            ((T *)a.y)[p * a.out + o] = from_f<T>(v);
    }
}

/* A block is 4 warps of 16 rows each and 64 outputs. */
template <class T, bool GATED> DEVICE void gemm(const gemm_args &a, const tile &t, char *space)
{
    constexpr int PARTS = GATED ? 2 : 1, PART = 64 * stride_of(STEP), BYTES = (PARTS + 1) * PART;
    const turbok_cu_qmat *m = a.w + t.expert * 3 + (GATED ? 0 : 2);
    const uint16_t *w[2] = {(const uint16_t *)m[0].codes, (const uint16_t *)m[PARTS - 1].codes};
    const int steps = (int)((a.in + STEP - 1) / STEP);
    sums<PARTS> acc;
    clear(acc);
    for (int s = 0; s <= steps; s++) {
        if (s < steps) {
            char *to = space + s % 2 * BYTES;
            stage_rows<STEP>(a, t, (int64_t)s * STEP, to);
            UNROLL
            for (int p = 0; p < PARTS; p++)
                stage_numbers(a, t, w[p], (int64_t)s * STEP, to + (p + 1) * PART);
        }
        copy_commit();
        if (s == 0)
            continue;
        copy_wait<1>();
        __syncthreads();
        multiply<T, STEP>(space + (s - 1) % 2 * BYTES, acc);
        __syncthreads();
    }
    store<T>(a, t, acc);
}

template <class T, int BITS, bool GATED>
DEVICE void gemm_codes(const gemm_args &a, const tile &t, char *space)
{
    constexpr int K = wq::format<BITS>::K, PARTS = GATED ? 2 : 1, PART = 64 * stride_of(K);
    const turbok_cu_qmat *m = a.w + t.expert * 3 + (GATED ? 0 : 2);
    const int chunks = wq::chunks_of(a.in, K);
    sums<PARTS> acc;
    clear(acc);
    for (int c = 0; c < chunks; c++) {
        stage_rows<K>(a, t, (int64_t)c * K, space);
        copy_commit();
        UNROLL
        for (int p = 0; p < PARTS; p++)
            stage_codes<T, BITS>(a, t, m[p], c, space + (p + 1) * PART);
        copy_wait<0>();
        __syncthreads();
        multiply<T, K>(space, acc);
        __syncthreads();
    }
    store<T>(a, t, acc);
}

/* BITS 0: numbers. */
template <class T, int BITS> DEVICE void gemm_any(const gemm_args &a)
{
    constexpr int ONE = BITS ? 3 * 64 * stride_of(BITS == 4 ? 64 : 32) : 2 * 3 * 64 * stride_of(STEP);
    TURBOK_SHARED(char, space, ONE);
    grid_wait();
    if ((int)blockIdx.x >= *a.n_tiles)
        return;
    const int32_t *at = a.tiles + (int64_t)blockIdx.x * 3;
    const tile t = {at[0], at[1], at[2], (int64_t)blockIdx.y * COLS};
    if constexpr (BITS == 0) {
        if (a.gated)
            gemm<T, true>(a, t, space);
        else
            gemm<T, false>(a, t, space);
    } else {
        if (a.gated)
            gemm_codes<T, BITS, true>(a, t, space);
        else
            gemm_codes<T, BITS, false>(a, t, space);
    }
}

/* Number (o, k) of a matrix of codes. */
template <int BITS>
DEVICE float decoded(const format &f, const turbok_cu_qmat &m, int64_t in, int64_t o, int64_t k)
{
    constexpr int STEPS = wq::format<BITS>::STEPS, K = wq::format<BITS>::K;
    const int lay = f.steps < STEPS ? f.steps : STEPS, at = (int)(k % K), rest = at % (16 * lay);
    const int s = at / (16 * lay) * lay + rest % (4 * lay) / 4, q = rest / (4 * lay);
    const int64_t tile = o / 16, r = o % 16, chunks = wq::chunks_of(in, K), groups = in / f.group;
    const uint4 w = load16((const char *)m.codes +
                           ((tile * chunks + k / K) * 32 + (r & 7) * 4 + q) * 16);
    return wq::number(m, f.kind, f.scale_dtype, f.offset, (tile * groups + k / f.group) * 16 + r,
                      wq::code_at<BITS>(f.kind, w, s, (int)(r >> 3), at & 3));
}

DEVICE float number_of(const format &f, const turbok_cu_qmat &m, int64_t in, int64_t o, int64_t k)
{
    if (!f.bits)
        return element_of(f.dtype, m.codes, o * in + k);
    return f.bits == 4 ? decoded<4>(f, m, in, o, k) : decoded<8>(f, m, in, o, k);
}
} // namespace

TURBOK_KERNEL(moe_gemm_bf16, moe_gemm, 128, 3) { gemm_any<bf16, 0>(a); }
TURBOK_KERNEL(moe_gemm_f16, moe_gemm, 128, 3) { gemm_any<f16, 0>(a); }
TURBOK_KERNEL(moe_gemm4_bf16, moe_gemm, 128, 3) { gemm_any<bf16, 4>(a); }
TURBOK_KERNEL(moe_gemm4_f16, moe_gemm, 128, 3) { gemm_any<f16, 4>(a); }
TURBOK_KERNEL(moe_gemm8_bf16, moe_gemm, 128, 3) { gemm_any<bf16, 8>(a); }
TURBOK_KERNEL(moe_gemm8_f16, moe_gemm, 128, 3) { gemm_any<f16, 8>(a); }

/* Any types: a warp has an output, and the rows of the tile one after the other. Not fast. */
template <class T> DEVICE void moe_any_body(const gemm_args &a)
{
    grid_wait();
    if ((int)blockIdx.x >= *a.n_tiles)
        return;
    const int32_t *at = a.tiles + (int64_t)blockIdx.x * 3;
    const turbok_cu_qmat *m = a.w + at[0] * 3 + (a.gated ? 0 : 2);
    for (int64_t o = (int64_t)blockIdx.y * 4 + warp_id(); o < a.out; o += (int64_t)gridDim.y * 4)
        for (int64_t p = at[1]; p < at[2]; p++) {
            const T *x = (const T *)a.x + (a.gather ? a.order[p] / a.k : p) * a.in;
            float v = 0, up = 0;
            for (int64_t k = lane_id(); k < a.in; k += 32) {
                v = fmaf(number_of(a.format, m[0], a.in, o, k), to_f(x[k]), v);
                if (a.gated)
                    up = fmaf(number_of(a.format, m[1], a.in, o, k), to_f(x[k]), up);
            }
            v = warp_sum(v);
            up = warp_sum(up);
            if (lane_id() == 0)
                ((T *)a.y)[p * a.out + o] = from_f<T>(a.gated ? activation(a.fn, v) * up : v);
        }
}
TURBOK_KERNEL_ACT(moe_any, 128, 4)

template <class T> DEVICE void moe_combine_body(const struct turbok_cu_moe_combine_args &a)
{
    grid_wait();
    const int64_t t = blockIdx.x;
    for (int64_t i = threadIdx.x; i < a.E; i += blockDim.x) {
        float v = 0;
        for (int j = 0; j < a.k; j++)
            v = fmaf(a.weights[t * a.k + j], to_f(((const T *)a.y)[a.place[t * a.k + j] * a.E + i]),
                     v);
        ((T *)a.out)[t * a.E + i] = from_f<T>(v);
    }
}
TURBOK_KERNEL_ACT(moe_combine, 256, 4)
