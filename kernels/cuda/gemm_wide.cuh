/* kernels/cuda/gemm_wide.cuh: y = x W^T + bias, and y = silu(x gate^T) * (x up^T), of 16-bit numbers by warp groups (sm_90a).
 *
 * A block has 128 rows of x and N outputs at a time, or N/2 of gate and the same N/2 of up, so that a thread has both sums
 * of an output. One thread of a warp group brings tiles of 64 inputs to shared memory, by the device's copy unit, while two groups
 * multiply 64 rows each. One of the two is a little ahead, so that the tensor cores have the other's products while it writes what
 * it has. Blocks stay, and take every n-th piece of work. A row's sums are made in the order of inputs, whatever N and T are.
 *
 * Where the pieces are too few for the card two blocks (a cluster) share the inputs of each: each has half of them, gives the other
 * its sums of half of the outputs, by way of shared memory, and writes the rest. Sums are then made in two parts. */
#ifndef TURBOK_CUDA_GEMM_WIDE_CUH
#define TURBOK_CUDA_GEMM_WIDE_CUH

#include "cuda/kernels.h"
#include "cuda/prims_cluster.cuh"
#include "cuda/prims_tiles.cuh"

#include "cuda/gemm_turn.cuh"

namespace gemm_wide
{
enum {
    GROUP = 128, /* threads of a warp group */
    WORKERS = 2 * GROUP,
    ROWS = TURBOK_CU_GEMM_WIDE_ROWS,
    SPAN = 64, /* inputs of a stage */
    X_BYTES = ROWS * SPAN * 2,
    STAGES = 8, /* at most */
    AHEAD = 2, /* spans that one group begins before the other */
    RESULTS = TURBOK_CU_GEMM_WIDE_TILES, /* where they are: behind the stages */
    /* where the other block's sums are, of rows and outputs as sums<> has them: before the results */
    MEETING = ROWS * TURBOK_CU_GEMM_WIDE_SHARED_OUTS / 2 * 4,
    SHARED = RESULTS + WORKERS / 32 * 16 * PITCH
};
static_assert(static_cast<int>(SHARED) == TURBOK_CU_GEMM_WIDE_SHARED, "l_gemm.c asks for it");

DEVICE float silu(float x)
{
    return x * reciprocal_fast(1.0f + exp2_fast(-1.44269504f * x));
}

/* A piece of work: rows and outputs of a block. */
struct place {
    int64_t row = 0; /* of the block */
    int out = 0; /* the first of y */
    int outs = 0; /* N */
    int part = 0; /* 0: as wide as most, 1: what is left */

    /* False: there are no more pieces. Neighbours in time share outputs, in bands of so many rows that x of a band and W stay
     * in the second cache. */
    DEVICE_METHOD bool find(const args &a, int i)
    {
        const int rows = (a.T - 1) / ROWS + 1, band_rows = TURBOK_CU_GEMM_WIDE_BAND;
        part = i >= rows * a.columns[0];
        if (part)
            i -= rows * a.columns[0];
        const int columns = a.columns[part];
        if (i >= rows * columns)
            return false;
        const int band = i / (band_rows * columns), in = i - band * band_rows * columns,
                  high = min(rows - band * band_rows, band_rows);
        row = (static_cast<int64_t>(band) * band_rows + in % high) * ROWS;
        outs = a.outs[part];
        out = (part ? a.columns[0] * (a.outs[0] >> a.gated) : 0) +
              in / high * (outs >> a.gated);
        return true;
    }
};

/* Inputs of this block: from `begin` on, so many spans. */
DEVICE int first_input(const args &a)
{
    return a.shares > 1 && cluster_rank() ? (a.in + 2 * SPAN - 1) / (2 * SPAN) * SPAN : 0;
}
DEVICE int spans_of(const args &a)
{
    const int all = (a.in + SPAN - 1) / SPAN;
    return a.shares > 1 ? (all + 1 - cluster_rank()) / 2 : all;
}

/* As many stages as there is room for, of x and of the widest W. */
struct ring {
    char *at; /* of this stage: x, then W */
    bulk_barrier *barriers; /* of full stages, then of empty ones */
    int size, count, slot, turn;

    DEVICE_METHOD ring(const args &a, char *space, bulk_barrier *b)
    {
        at = space;
        barriers = b;
        size = X_BYTES + a.outs[0] * SPAN * 2;
        count = min((RESULTS - (a.shares > 1 ? MEETING : 0)) / size, static_cast<int>(STAGES));
        slot = turn = 0;
    }
    DEVICE_METHOD bulk_barrier *full() const
    {
        return barriers + slot;
    }
    DEVICE_METHOD bulk_barrier *empty() const
    {
        return barriers + STAGES + slot;
    }
    DEVICE_METHOD void next()
    {
        at += size;
        if (++slot == count) {
            at -= count * size;
            slot = 0;
            turn ^= 1;
        }
    }
};

/* ---- one thread brings tiles --------------------------------------------------------------------------------- */

struct feeder {
    const args &a;
    ring r;

    DEVICE_METHOD void weights(const place &p, int in)
    {
        const int rows = p.outs / 2; /* of a half: of gate or of up, where there are both */
        bulk_barrier *full = r.full();
        bulk_wait(r.empty(), r.turn ^ 1);
        bulk_expect(full, X_BYTES + p.outs * SPAN * 2);
        UNROLL
        for (int h = 0; h < 2; h++)
            bulk_copy_tile(r.at + X_BYTES + h * rows * SPAN * 2, &a.w[p.part][h], in,
                           p.out + (a.gated ? 0 : h * rows), full, a.once);
    }
    DEVICE_METHOD void rows(const place &p, int in)
    {
        bulk_copy_tile(r.at, &a.x, in, static_cast<int>(p.row), r.full());
        r.next();
    }
    DEVICE_METHOD void run()
    {
        place p;
        const ring start = r;
        const int begin = first_input(a), end = begin + spans_of(a) * SPAN;
        int i = static_cast<int>(blockIdx.x) >> (a.shares - 1), in = begin;
        p.find(a, i); /* there are no more blocks than pieces */
        /* Weights were there before any kernel of the step. */
        for (int k = 0; k < min(r.count, a.early) && in < end; k++, in += SPAN) {
            weights(p, in);
            r.next();
        }
        grid_wait();
        r = start;
        for (int k = begin; k < in; k += SPAN)
            rows(p, k);
        do {
            UNROLL_BY(1)
            for (; in < end; in += SPAN) {
                weights(p, in);
                rows(p, in);
            }
            in = begin;
        } while (p.find(a, i += static_cast<int>(gridDim.x) >> (a.shares - 1)));
    }
};

/* ---- two groups multiply ---------------------------------------------------------------------------------- */

/* A thread's sums: registers of wgmma_tiles(), of rows r and r + 8 (r = lane / 4) of its warp's 16. */
template <class T, int N> struct sums {
    float acc[N / 2];

    /* Lets a slot be filled again. */
    static DEVICE_METHOD void leave(bulk_barrier *empty)
    {
        __syncwarp();
        if (lane_id() == 0)
            bulk_arrive(empty);
    }
    /* ahead: the other group waits for this one to have begun so many spans. */
    DEVICE_METHOD void multiply(const args &a, ring &r, bool &ahead)
    {
        const int rows = warp_id() / 4 * 64 * SPAN * 2;
        const int spans = spans_of(a);
        bulk_barrier *before = r.empty();
        UNROLL
        for (int i = 0; i < N / 2; i++)
            acc[i] = 0;
        UNROLL_BY(1)
        for (int i = 0; i < spans; i++) {
            const char *x = r.at + rows, *w = r.at + X_BYTES;
            bulk_wait(r.full(), r.turn);
            wgmma_fence();
            UNROLL
            for (int k = 0; k < 4; k++)
                wgmma_tiles(acc, wgmma_tile(x + k * 32, 1024, 0), wgmma_tile(w + k * 32, 1024, 0),
                            T());
            wgmma_commit();
            if (i) {
                wgmma_wait<1>();
                leave(before);
            }
            if (ahead && (i == AHEAD || i + 1 >= spans)) {
                ahead = false;
                barrier_arrive(1, WORKERS);
            }
            before = r.empty();
            r.next();
        }
        wgmma_wait<0>(acc);
        leave(before);
    }
    DEVICE_METHOD void add_bias(const args &a, const place &p)
    {
        UNROLL
        for (int i = 0; i < N / 2; i++) {
            const int o = p.out + lane_id() % 4 * 2 + i / 4 * 8 + i % 2;
            acc[i] += o < a.out ? a.bias[o] : 0.0f;
        }
    }
    DEVICE_METHOD void write_floats(const args &a, const place &p) const
    {
        UNROLL
        for (int i = 0; i < N / 2; i += 2) {
            const int64_t row = p.row + warp_id() * 16 + lane_id() / 4 + i / 2 % 2 * 8;
            const int o = p.out + lane_id() % 4 * 2 + i / 4 * 8;
            float *to = static_cast<float *>(a.y) + row * a.out + o;
            if (row < a.T && o + 2 <= a.out && a.out % 2 == 0) {
                store8(to, make_uint2(__float_as_uint(acc[i]), __float_as_uint(acc[i + 1])));
            } else if (row < a.T) {
                if (o < a.out)
                    to[0] = acc[i];
                if (o + 1 < a.out)
                    to[1] = acc[i + 1];
            }
        }
    }
    /* 16 rows of UNITS pieces of 16 bytes, from shared memory to outputs o.. of y. */
    template <int UNITS>
    static DEVICE_METHOD void copy(const args &a, const place &p, const char *room, int o)
    {
        enum { AT_ONCE = 32 / UNITS };
        const int first = lane_id() / UNITS, at = o + lane_id() % UNITS * 8;
        const int64_t row = p.row + warp_id() * 16 + first;
        const char *from = room + first * PITCH + lane_id() % UNITS * 16;
        T *to = static_cast<T *>(a.y) + row * a.out + at;
        if (!a.whole) {
            for (int r = 0; r < 16; r += AT_ONCE)
                for (int e = 0; e < 8; e++)
                    if (row + r < a.T && at + e < a.out)
                        to[static_cast<int64_t>(r) * a.out + e] =
                            reinterpret_cast<const T *>(from + r * PITCH)[e];
            return;
        }
        UNROLL
        for (int r = 0; r < 16; r += AT_ONCE)
            if (row + r < a.T && at < a.out)
                store16(to + static_cast<int64_t>(r) * a.out, load16(from + r * PITCH));
    }
    template <bool GATED>
    DEVICE_METHOD void write(const args &a, const place &p, char *room) const
    {
        constexpr int OUTS = GATED ? N / 2 : N, EACH = OUTS % CHUNK ? CHUNK / 2 : CHUNK;
        char *to = room + lane_id() / 4 * PITCH + lane_id() % 4 * 4;
        UNROLL
        for (int c = 0; c < OUTS; c += EACH) {
            UNROLL
            for (int i = 0; i < EACH / 4; i++) {
                const int at = (c / 4 + i) * 2;
                float v[2] = {acc[at], acc[at + 1]};
                if (GATED) {
                    /* both are rounded before they meet, as where they are products of their own */
                    const float2 gate = unpack2<T>(pack2<T>(v[0], v[1])),
                                 up = unpack2<T>(pack2<T>(acc[N / 4 + at], acc[N / 4 + at + 1]));
                    v[0] = silu(gate.x) * up.x;
                    v[1] = silu(gate.y) * up.y;
                }
                store4(to + i % 2 * 8 * PITCH + i / 2 * 16, pack2<T>(v[0], v[1]));
            }
            __syncwarp();
            copy<EACH / 8>(a, p, room, p.out + c);
            __syncwarp();
        }
    }
};

template <class T, int N>
DEVICE void write_all(sums<T, N> &s, const args &a, const place &p, char *room)
{
    if (a.bias)
        s.add_bias(a, p);
    if (a.floats)
        s.write_floats(a, p);
    else
        s.template write<false>(a, p, room);
}

/* Two blocks have parts of the same sums: half `mine` of the outputs is this one's to write. */
template <int mine, class T, int N>
DEVICE void meet(const sums<T, N> &own, const args &a, const place &p, char *space, char *room)
{
    enum { EACH = N / 4 }; /* of a thread */
    float *there = reinterpret_cast<float *>(space + RESULTS - MEETING) + threadIdx.x * 4;
    sums<T, N / 2> half;
    place to = p;
    cluster_wait(); /* the other has begun */
    UNROLL
    for (int i = 0; i < EACH; i += 4) {
        const float *v = own.acc + (1 - mine) * EACH + i;
        cluster_put4(there + i * WORKERS, 1 - mine, make_float4(v[0], v[1], v[2], v[3]));
    }
    cluster_arrive();
    cluster_wait();
    UNROLL
    for (int i = 0; i < EACH; i += 4) {
        const float4 v = *reinterpret_cast<const float4 *>(there + i * WORKERS);
        half.acc[i] = own.acc[mine * EACH + i] + v.x;
        half.acc[i + 1] = own.acc[mine * EACH + i + 1] + v.y;
        half.acc[i + 2] = own.acc[mine * EACH + i + 2] + v.z;
        half.acc[i + 3] = own.acc[mine * EACH + i + 3] + v.w;
    }
    to.out += mine * N / 2;
    write_all(half, a, to, room);
}

template <class T, int N>
DEVICE void work(const args &a, const place &p, char *space, ring &r, bool &ahead)
{
    sums<T, N> own;
    char *room = space + RESULTS + warp_id() * 16 * PITCH;
    const turned_row row(a, p.row);
    own.multiply(a, r, ahead);
    if (a.gated) {
        own.template write<true>(a, p, room);
        return;
    }
    if constexpr (N % HEAD == 0)
        if (a.turns) {
            if (a.bias)
                own.add_bias(a, p);
            write_turned<T, N>(own.acc, a, static_cast<int>(p.row), p.out, row, room);
            return;
        }
    if constexpr (N <= TURBOK_CU_GEMM_WIDE_SHARED_OUTS)
        if (a.shares > 1) {
            if (cluster_rank())
                meet<1>(own, a, p, space, room);
            else
                meet<0>(own, a, p, space, room);
            return;
        }
    write_all(own, a, p, room);
}

template <class T> DEVICE void product(const args &a)
{
    TURBOK_SHARED(bulk_barrier, barriers, 2 * STAGES);
    char *space = shared_tiles();
    if (a.shares > 1)
        cluster_arrive();
    if (threadIdx.x == WORKERS) {
        bulk_expect_map(&a.w[0][0]);
        bulk_expect_map(&a.w[0][1]);
        bulk_expect_map(&a.x);
    }
    if (threadIdx.x == 0) {
        UNROLL
        for (int i = 0; i < STAGES; i++) {
            bulk_init(barriers + i, 1);
            bulk_init(barriers + STAGES + i, WORKERS / 32);
        }
        bulk_ready();
    }
    __syncthreads();
    if (threadIdx.x >= WORKERS) {
        registers_fewer<24>();
        if (threadIdx.x == WORKERS) {
            feeder f = {a, ring(a, space, barriers)};
            f.run();
        } else {
            grid_wait();
        }
        if (a.shares > 1) { /* a barrier of the cluster is for all threads */
            cluster_wait();
            cluster_arrive();
            cluster_wait();
        }
        return;
    }
    registers_more<240>();
    grid_wait();
    grid_release(); /* the next kernel's blocks have no room here before this one leaves */
    ring r(a, space, barriers);
    /* Groups that give sums to another block have to wait for each other anyway. */
    bool ahead = a.shares == 1 && warp_id() < WORKERS / 64;
    if (a.shares == 1 && !ahead)
        barrier_sync(1, WORKERS);
    place p;
    UNROLL_BY(1)
    for (int i = static_cast<int>(blockIdx.x) >> (a.shares - 1); p.find(a, i);
         i += static_cast<int>(gridDim.x) >> (a.shares - 1)) {
        if (p.outs == 256)
            work<T, 256>(a, p, space, r, ahead);
        else if (p.outs == 192)
            work<T, 192>(a, p, space, r, ahead);
        else if (p.outs == 128)
            work<T, 128>(a, p, space, r, ahead);
        else
            work<T, 64>(a, p, space, r, ahead);
    }
}
} // namespace gemm_wide

#endif
