/* kernels/cuda/wq_wide.cuh: products of quantised matrices with many rows by warp groups (sm_90a), for groups of 16, 32, 64
 * or a multiple of 128, and inputs in whole spans of 128.
 *
 * A block has 128 MT outputs and N rows. Of its three warp groups one brings spans of codes and rows to shared memory, several
 * ahead, by the device's copy unit; two multiply, MT times 64 outputs each. A lane's codes (wq.cuh) become whole numbers
 * of 16 bits in the registers that wgmma() takes as A; rows are B, whose inputs lay_rows has put in the order of the
 * codes. Scales, zeros and minima a warp copies for itself, as far ahead. Sums of PER inputs, of one group, move to fp32
 * sums with the scale; the order of a row's sums hangs on the matrix and the splits alone. */
#ifndef TURBOK_CUDA_WQ_WIDE_CUH
#define TURBOK_CUDA_WQ_WIDE_CUH

#include "cuda/wq_wide_sums.cuh"

namespace wq_wide
{
/* ---- results --------------------------------------------------------------------------------------------- */

/* Sums of all splits, in the order of splits, in the block that comes last. False: not this one. */
template <class T, class S> DEVICE bool gather_splits(const args &a, uint32_t *last, sums<T, S> &own)
{
    constexpr int64_t EACH = S::MT * S::SUMS_OF / 4 * WORKERS;
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    float4 *mine = reinterpret_cast<float4 *>(a.partial) + block * a.split * EACH + threadIdx.x;
    UNROLL
    for (int m = 0; m < S::MT; m++)
        UNROLL
    for (int i = 0; i < S::SUMS_OF; i += 4) {
        const float *v = own.acc[m] + i;
        mine[blockIdx.z * EACH + (m * S::SUMS_OF + i) / 4 * WORKERS] =
            make_float4(v[0], v[1], v[2], v[3]);
    }
    own.clear();
    __threadfence();
    barrier_sync(1, WORKERS);
    if (threadIdx.x == 0)
        last[0] = atomicAdd(a.arrived + block, 1u) == static_cast<uint32_t>(a.split) - 1;
    barrier_sync(1, WORKERS);
    if (!last[0])
        return false;
    __threadfence();
    UNROLL_BY(128 / S::N)
    for (int z = 0; z < a.split; z++)
        UNROLL
    for (int m = 0; m < S::MT; m++)
        UNROLL
    for (int i = 0; i < S::SUMS_OF; i += 4) {
        const float4 v = __ldcg(mine + z * EACH + (m * S::SUMS_OF + i) / 4 * WORKERS);
        float *to = own.acc[m] + i;
        to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w;
    }
    if (threadIdx.x == 0)
        a.arrived[block] = 0;
    return true;
}

/* Results of 16 bits: through shared memory, so that rows are written 16 bytes at a time. */
template <class T, class S>
DEVICE void copy_results(const args &a, const place &p, const uint16_t *tile)
{
    enum { UNITS = S::OUTS / 8 };
    const T *gate = static_cast<const T *>(a.gate);
    UNROLL_BY(1)
    for (int n = static_cast<int>(threadIdx.x); n < p.rows * UNITS; n += WORKERS) {
        const int64_t row = p.row + n / UNITS, o = p.tile * static_cast<int64_t>(16) + n % UNITS * 8;
        const uint16_t *from = tile + n / UNITS * S::PITCH + n % UNITS * 8;
        uint16_t *to = static_cast<uint16_t *>(a.out) + row * a.ld + o;
        const int64_t at = row * a.ld + o;
        if (o + 8 <= a.out_dim && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
            uint4 v = load16(from);
            if (gate) {
                float g[8], u[8];
                load8f(gate + at, g);
                load8f(reinterpret_cast<const T *>(from), u);
                UNROLL
                for (int e = 0; e < 8; e++)
                    g[e] = activation(a.act, g[e]) * u[e];
                v = make_uint4(pack2<T>(g[0], g[1]), pack2<T>(g[2], g[3]), pack2<T>(g[4], g[5]),
                               pack2<T>(g[6], g[7]));
            }
            store16(to, v);
            continue;
        }
        for (int e = 0; e < 8 && o + e < a.out_dim; e++) {
            T v = {from[e]};
            if (gate)
                v = from_f<T>(activation(a.act, to_f(gate[at + e])) * to_f(v));
            to[e] = v.x;
        }
    }
}

template <class T, class S>
DEVICE void put_results(const args &a, const place &p, char *space, const sums<T, S> &own)
{
    uint16_t *tile = reinterpret_cast<uint16_t *>(space);
    const int first = lane_id() % 4 * 2;
    UNROLL
    for (int m = 0; m < S::MT; m++) {
        const int local = (8 * m + warp_id()) * 16 + lane_id() / 4;
        const int64_t o = p.tile * static_cast<int64_t>(16) + local;
        float bias[2];
        UNROLL
        for (int e = 0; e < 2; e++)
            bias[e] = a.m.bias && o + 8 * e < a.out_dim ? a.m.bias[o + 8 * e] : 0.0f;
        UNROLL
        for (int i = 0; i < S::SUMS_OF; i++) {
            const int e = i / 2 % 2, row = i / 4 * 8 + i % 2 + first;
            const float v = own.acc[m][i] + bias[e];
            if (!a.out_f32)
                tile[row * S::PITCH + local + 8 * e] = from_f<T>(v).x;
            else if (row < p.rows && o + 8 * e < a.out_dim)
                static_cast<float *>(a.out)[static_cast<int64_t>(p.row + row) * a.ld + o + 8 * e] = v;
        }
    }
    if (a.out_f32)
        return;
    barrier_sync(1, WORKERS);
    copy_results<T, S>(a, p, tile);
}

/* Grid: blocks of rows, blocks of outputs, splits. */
template <class T, int BITS, int MT, int N, int MODE> DEVICE void product(const args &a)
{
    typedef shape<BITS, MT, N, MODE> S;
    TURBOK_SHARED(bulk_barrier, barriers, 2 * S::STAGES);
    [[maybe_unused]] TURBOK_SHARED(uint32_t, last, 1);
    TURBOK_SHARED(uint32_t, table, S::GENERAL ? wq::TABLE : 1);
    bulk_barrier *full = barriers, *empty = barriers + S::STAGES;
    char *space = shared_tiles();
    const place p(a, N, S::TILES);
    if (threadIdx.x == 0)
        for (int i = 0; i < S::STAGES; i++) {
            bulk_begin(full + i, FEEDERS);
            bulk_begin(empty + i, WORKERS); /* every lane: racecheck sees no order through one of them */
        }
    if (S::GENERAL && a.kind == TURBOK_CU_Q_TABLE)
        wq::fill_table<T, BITS>(a.m.table, table);
    __syncthreads();
    if (threadIdx.x >= WORKERS) {
        registers_fewer<S::BLOCKS == 2 ? 32 : 40>();
        if (lane_id() == 0) {
            feeder<S> f(a, p, warp_id() - WORKERS / 32, space, full);
            f.run(p.end - p.span, empty);
        } else {
            grid_wait();
        }
        return;
    }
    registers_more<S::BLOCKS == 2 ? 104 : 232>();
    walk<S> at = {space,
                  space + S::SCALES + warp_id() * S::BELONGS,
                  table + (S::GENERAL ? lane_id() % wq::TABLE_COPIES : 0),
                  full,
                  empty,
                  nullptr,
                  p.stored,
                  0,
                  0,
                  0};
    ring<S> scales(a, p, space);
    UNROLL_BY(1)
    for (int i = 0; i < S::RINGS - 1 && S::MODE != ROWS; i++)
        scales.ask();
    sums<T, S> own;
    own.begin();
    add_spans(a, p, at, scales, own);
    copy_wait<0>();
    grid_wait();
    grid_release();
    if constexpr (MT * N <= 128) /* sums, and what adding splits takes, would not fit into registers */
        if (a.split > 1 && !gather_splits(a, last, own))
            return;
    barrier_sync(1, WORKERS); /* results go where stages were */
    put_results(a, p, space, own);
}
} // namespace wq_wide

/* All kernels of one width, for one type; kernels.def has the same. Compiled for sm_90a; what else a file is compiled for only has
 * the names, and the host does not launch them there. */
#if WGMMA_HERE
#define WQ_WIDE_BODY(...) wq_wide::product<__VA_ARGS__>(a)
#else
#define WQ_WIDE_BODY(...) __trap()
#endif
#define WQ_WIDE(w, bits, T, name, n, mt, rows, mode) \
    TURBOK_KERNEL(w##_##name##_##T, wq_wide, 384, n) { WQ_WIDE_BODY(T, bits, mt, rows, wq_wide::mode); }
#define WQ_WIDE_OF(w, bits, T) \
    WQ_WIDE(w, bits, T, wide32, 2, 1, 32, SUMS) \
    WQ_WIDE(w, bits, T, wide64, 1, 1, 64, SUMS) \
    WQ_WIDE(w, bits, T, wide128, 1, 1, 128, SUMS) \
    WQ_WIDE(w, bits, T, tall, 1, 2, 128, SUMS) \
    WQ_WIDE(w, bits, T, wide32r, 2, 1, 32, ROWS) \
    WQ_WIDE(w, bits, T, wide64r, 1, 1, 64, ROWS) \
    WQ_WIDE(w, bits, T, wide128r, 1, 1, 128, ROWS) \
    WQ_WIDE(w, bits, T, tallr, 1, 2, 128, ROWS) \
    WQ_WIDE(w, bits, T, wide32g, 2, 1, 32, NUMBERS) \
    WQ_WIDE(w, bits, T, wide64g, 1, 1, 64, NUMBERS) \
    WQ_WIDE(w, bits, T, wide128g, 1, 1, 128, NUMBERS) \
    WQ_WIDE(w, bits, T, wide64x, 1, 1, 64, GENERAL32) \
    WQ_WIDE(w, bits, T, wide128x, 1, 1, 128, GENERAL32) \
    WQ_WIDE(w, bits, T, wide64s, 1, 1, 64, GENERAL16) \
    WQ_WIDE(w, bits, T, wide128s, 1, 1, 128, GENERAL16)

#endif
