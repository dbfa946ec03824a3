/* kernels/cuda/wq_gemm.cuh: the product with many rows: 256 outputs and NT * 8 rows a block, codes and
 * activations four stages ahead in shared memory, inputs divided over blocks (split) whose sums the last
 * block to come adds in the order of splits. */
#ifndef TURBOK_CUDA_WQ_GEMM_CUH
#define TURBOK_CUDA_WQ_GEMM_CUH

#include "cuda/wq.cuh"

namespace wq
{
enum { MT = 2, STAGES = 4 };

/* Shared memory of a stage: SUBS times 64 inputs of activations [N rows][8 units of 16 bytes], then each
 * warp's codes. The units of a row are exchanged so that the lanes of a load meet in no bank. */
template <int BITS, int NT> struct stage {
    enum {
        SUBS = BITS == 4 ? 2 : 1,
        N = NT * 8,
        X = SUBS * N * 128,
        PER_SUB = BITS == 4 ? 1 : 2, /* chunks in 64 inputs */
        W = MT * SUBS * PER_SUB * 512, /* of a warp */
        BYTES = X + WARPS * W
    };
};

DEVICE int swap_of(int lay, int n)
{
    return lay == 4 ? n & 1 : lay == 2 ? (n & 1) << 2 : (n & 3) << 1;
}

template <int BITS, int NT>
DEVICE void stage_codes(const args &a, char *at, const char *const codes[MT], int64_t sub,
                        int64_t end)
{
    typedef stage<BITS, NT> S;
    const int chunks = chunks_of(a.in, format<BITS>::K);
    char *to = at + S::X + warp_id() * S::W + lane_id() * 16;
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int c = 0; c < S::SUBS * S::PER_SUB; c++, to += 512) {
        int64_t chunk = sub * S::PER_SUB + c;
        bool there = chunk < chunks && sub + c / S::PER_SUB < end;
        copy16_async(to, codes[i] + (there ? chunk * 512 : 0), there ? 16 : 0);
    }
}

template <int BITS, int NT>
DEVICE void stage_x(const args &a, char *at, int lay, int64_t sub, int64_t end)
{
    typedef stage<BITS, NT> S;
    const int64_t row0 = (int64_t)blockIdx.x * S::N;
    UNROLL
    for (int j = 0; j < (S::SUBS * S::N * 8 + WARPS * 32 - 1) / (WARPS * 32); j++) {
        const int t = (int)threadIdx.x + j * WARPS * 32, u = t & 7, n = (t >> 3) % S::N;
        const int c = (t >> 3) / S::N;
        if (c >= S::SUBS)
            break;
        const int64_t k = (sub + c) * 64 + u * 8, row = row0 + n;
        const bool there = row < a.rows && k < a.in && sub + c < end;
        copy16_async(at + (c * S::N + n) * 128 + ((u ^ swap_of(lay, n)) << 4),
                     (const uint16_t *)a.x + (there ? row * a.in + k : 0), there ? 16 : 0);
    }
}

/* Fragments of activations for two steps, 2h and 2h + 1, of eight rows. */
DEVICE uint4 staged_x(const char *x, int lay, int nt, int h, int lane)
{
    const int n = nt * 8 + (lane >> 2), q = lane & 3, f = swap_of(lay, n);
    const char *row = x + n * 128;
    if (lay == 1) {
        uint2 lo = load8(row + (((4 * h + (q >> 1)) ^ f) << 4) + (q & 1) * 8);
        uint2 hi = load8(row + (((4 * h + 2 + (q >> 1)) ^ f) << 4) + (q & 1) * 8);
        return make_uint4(lo.x, lo.y, hi.x, hi.y);
    }
    return load16(row + (((lay == 4 ? 2 * q + h : 4 * h + q) ^ f) << 4));
}

template <class T, int BITS, int NT> struct sums {
    float acc[MT][NT][4], part[MT][NT][4], total[NT][4];
    group<T, BITS> g[MT];
};

/* Half of 64 inputs: two steps, of which the first is number 2h. k: their first input. */
template <class T, int BITS, int NT, bool PLAIN>
DEVICE void gemm_half(const args &a, const char *x, const char *codes, int h, int64_t k,
                      const uint32_t *table, const int64_t tile[MT], sums<T, BITS, NT> &s)
{
    typedef stage<BITS, NT> S;
    const int lane = lane_id(), groups = (int)(a.in / a.group), steps = PLAIN ? 4 : a.steps;
    const int lay = BITS == 4 || steps < 2 ? steps : 2,
              kind = PLAIN ? (int)TURBOK_CU_Q_INT : a.kind;
    const bool min = !PLAIN && a.m[0].min != 0;
    uint4 b[NT], w[MT];
    UNROLL
    for (int t = 0; t < NT; t++)
        b[t] = staged_x(x, lay, t, h, lane);
    UNROLL
    for (int i = 0; i < MT; i++)
        w[i] = load16(codes + (i * S::SUBS * S::PER_SUB + (BITS == 4 ? 0 : h)) * 512);
    UNROLL
    for (int p = 0; p < 2; p++) {
        const int step = 2 * h + p; /* of the four steps of 64 inputs */
        uint32_t f[MT][4];
        if (PLAIN ? step == 0 : step % steps == 0) {
            int at = (int)((unsigned)(k + p * 16) / (unsigned)a.group);
            at = at < groups ? at : groups - 1;
            UNROLL
            for (int i = 0; i < MT; i++) {
                s.g[i].load(a, a.m[0], (tile[i] * groups + at) * 16 + (lane >> 2), PLAIN);
                UNROLL
                for (int t = 0; t < NT; t++)
                    zero4(s.part[i][t]);
            }
            UNROLL
            for (int t = 0; t < NT; t++)
                zero4(s.total[t]);
        }
        UNROLL
        for (int i = 0; i < MT; i++)
            fragment<T, BITS>(kind, w[i], BITS == 4 ? step : p, s.g[i], table + lane % TABLE_COPIES,
                              f[i]);
        UNROLL
        for (int t = 0; t < NT; t++) {
            const uint32_t v[2] = {p ? b[t].z : b[t].x, p ? b[t].w : b[t].y};
            UNROLL
            for (int i = 0; i < MT; i++)
                mma(s.part[i][t], f[i], v, T());
            if (min)
                mma_ones<T>(s.total[t], v);
        }
        if (PLAIN ? step == 3 : (step + 1) % steps == 0) {
            UNROLL
            for (int t = 0; t < NT; t++)
                UNROLL
            for (int i = 0; i < MT; i++)
                settle(s.g[i], s.part[i][t], s.total[t], min, s.acc[i][t]);
        }
    }
}

template <class T, int BITS, int NT, bool PLAIN>
DEVICE void gemm_sums(const args &a, char *space, const uint32_t *table, const int64_t tile[MT],
                      sums<T, BITS, NT> &s)
{
    typedef stage<BITS, NT> S;
    const int chunks = chunks_of(a.in, format<BITS>::K), steps = PLAIN ? 4 : a.steps;
    const int lay = BITS == 4 || steps < 2 ? steps : 2;
    const int64_t subs = (a.in + 63) / 64, per = (subs + a.split - 1) / a.split;
    const int64_t begin = (int64_t)blockIdx.z * per, end = begin + per < subs ? begin + per : subs;
    const int n = begin < end ? (int)((end - begin + S::SUBS - 1) / S::SUBS) : 0;
    const char *codes[MT];
    UNROLL
    for (int i = 0; i < MT; i++) {
        codes[i] = (const char *)a.m[0].codes + (tile[i] * chunks * 32 + lane_id()) * 16;
        UNROLL
        for (int t = 0; t < NT; t++)
            zero4(s.acc[i][t]);
    }
    for (int j = 0; j < STAGES - 1; j++)
        stage_codes<BITS, NT>(a, space + j * S::BYTES, codes, begin + j * S::SUBS, end);
    grid_wait();
    for (int j = 0; j < STAGES - 1; j++) {
        stage_x<BITS, NT>(a, space + j * S::BYTES, lay, begin + j * S::SUBS, end);
        copy_commit();
    }
    for (int j = 0; j < n; j++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        const int ahead = j + STAGES - 1;
        char *slot = space + ahead % STAGES * S::BYTES;
        stage_codes<BITS, NT>(a, slot, codes, begin + (int64_t)ahead * S::SUBS, end);
        stage_x<BITS, NT>(a, slot, lay, begin + (int64_t)ahead * S::SUBS, end);
        copy_commit();
        const char *at = space + j % STAGES * S::BYTES;
        const char *w = at + S::X + warp_id() * S::W + lane_id() * 16;
        UNROLL
        for (int c = 0; c < S::SUBS; c++) {
            const int64_t k = (begin + (int64_t)j * S::SUBS + c) * 64;
            const char *x = at + c * S::N * 128, *wc = w + c * S::PER_SUB * 512;
            gemm_half<T, BITS, NT, PLAIN>(a, x, wc, 0, k, table, tile, s);
            gemm_half<T, BITS, NT, PLAIN>(a, x, wc, 1, k + 32, table, tile, s);
        }
    }
    copy_wait<0>();
}

/* Sums of all splits, in the order of splits, in the block that comes last. False: not this one. */
template <class T, int BITS, int NT> DEVICE bool gather_splits(const args &a, sums<T, BITS, NT> &s)
{
    TURBOK_SHARED(uint32_t, last, 4);
    constexpr int64_t EACH = MT * NT * WARPS * 32;
    const int64_t block = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    float4 *mine = (float4 *)a.partial + block * a.split * EACH + threadIdx.x;
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++) {
        const float *v = s.acc[i][t];
        mine[blockIdx.z * EACH + (i * NT + t) * (WARPS * 32)] = make_float4(v[0], v[1], v[2], v[3]);
        zero4(s.acc[i][t]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last[0] = atomicAdd(a.arrived + block, 1u) == (uint32_t)a.split - 1;
    __syncthreads();
    if (!last[0])
        return false;
    __threadfence();
    for (int z = 0; z < a.split; z++)
        UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++) {
        float4 v = __ldcg(mine + z * EACH + (i * NT + t) * (WARPS * 32));
        float *acc = s.acc[i][t];
        acc[0] += v.x, acc[1] += v.y, acc[2] += v.z, acc[3] += v.w;
    }
    if (threadIdx.x == 0)
        a.arrived[block] = 0;
    return true;
}

/* Grid: blocks of rows, blocks of outputs, splits; dynamic shared memory: STAGES * stage::BYTES. Without
 * GENERAL for plain grids only: whole numbers, no minimum, groups of a multiple of 64. */
template <class T, int BITS, int NT, bool GENERAL> DEVICE void gemm(const args &a)
{
    TURBOK_SHARED(uint32_t, table, GENERAL ? TABLE : 1);
    char *space = shared_dynamic();
    const int64_t tiles = (a.out_dim + 15) / 16,
                  first = ((int64_t)blockIdx.y * WARPS + warp_id()) * MT;
    const int lane = lane_id();
    int64_t tile[MT];
    sums<T, BITS, NT> s;
    UNROLL
    for (int i = 0; i < MT; i++)
        tile[i] = first + i < tiles ? first + i : tiles - 1;
    if (GENERAL && a.kind == TURBOK_CU_Q_TABLE) {
        fill_table<T, BITS>(a.m[0].table, table);
        __syncthreads();
    }
    if (!GENERAL || (a.kind == TURBOK_CU_Q_INT && !a.m[0].min && a.steps == 4))
        gemm_sums<T, BITS, NT, true>(a, space, table, tile, s);
    if constexpr (GENERAL)
        if (a.kind != TURBOK_CU_Q_INT || a.m[0].min || a.steps != 4)
            gemm_sums<T, BITS, NT, false>(a, space, table, tile, s);
    grid_release();
    if (a.split > 1 && !gather_splits(a, s))
        return;
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        int64_t row = ((int64_t)blockIdx.x * NT + t) * 8 + (lane & 3) * 2 + (e & 1);
        int64_t o = (first + i) * 16 + (lane >> 2) + 8 * (e >> 1);
        if (row < a.rows && o < a.out_dim)
            store<T>(a, row, o, with_bias(a.m[0].bias, o, s.acc[i][t][e]));
    }
}
} // namespace wq

#endif
