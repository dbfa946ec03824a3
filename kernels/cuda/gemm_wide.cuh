/* kernels/cuda/gemm_wide.cuh: y = x W^T + bias, and y = silu(x gate^T) * (x up^T), of 16-bit numbers by warp groups (sm_90a).
 *
 * A block has 128 rows of x and N outputs at a time, or N/2 of gate and the same N/2 of up, so that a thread has both sums
 * of an output. One thread of a warp group brings tiles of 64 inputs to shared memory, by the device's copy unit, while two groups
 * multiply 64 rows each. One of the two is a little ahead, so that the tensor cores have the other's products while it writes what
 * it has. Blocks stay, and take every n-th piece of work. A row's sums are made in the order of inputs, whatever N and T are. */
#ifndef TURBOK_CUDA_GEMM_WIDE_CUH
#define TURBOK_CUDA_GEMM_WIDE_CUH

#include "cuda/kernels.h"
#include "cuda/prims_tiles.cuh"

namespace gemm_wide
{
typedef struct turbok_cu_gemm_wide_args args;

enum {
    GROUP = 128, /* threads of a warp group */
    WORKERS = 2 * GROUP,
    ROWS = TURBOK_CU_GEMM_WIDE_ROWS,
    SPAN = 64, /* inputs of a stage */
    X_BYTES = ROWS * SPAN * 2,
    STAGES = 8, /* at most */
    AHEAD = 2, /* spans that one group begins before the other */
    CHUNK = 64, /* outputs that a warp writes at a time */
    PITCH = CHUNK * 2 + 16, /* bytes of a row of them */
    RESULTS = TURBOK_CU_GEMM_WIDE_TILES, /* where they are: behind the stages */
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

/* As many stages as there is room for, of x and of the widest W. */
struct ring {
    char *at; /* of this stage: x, then W */
    bulk_barrier *full, *empty;
    int size, count, slot, turn;

    DEVICE_METHOD ring(const args &a, char *space, bulk_barrier *b)
    {
        at = space;
        full = b;
        empty = b + STAGES;
        size = X_BYTES + a.outs[0] * SPAN * 2;
        count = min(RESULTS / size, static_cast<int>(STAGES));
        slot = turn = 0;
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
        bulk_barrier *full = r.full + r.slot;
        bulk_wait(r.empty + r.slot, r.turn ^ 1);
        bulk_expect(full, X_BYTES + p.outs * SPAN * 2);
        UNROLL
        for (int h = 0; h < 2; h++)
            bulk_copy_tile(r.at + X_BYTES + h * rows * SPAN * 2, &a.w[p.part][h], in,
                           p.out + (a.gated ? 0 : h * rows), full);
    }
    DEVICE_METHOD void rows(const place &p, int in)
    {
        bulk_copy_tile(r.at, &a.x, in, static_cast<int>(p.row), r.full + r.slot);
        r.next();
    }
    DEVICE_METHOD void run()
    {
        place p;
        const ring start = r;
        int i = static_cast<int>(blockIdx.x), in = 0;
        p.find(a, i); /* there are no more blocks than pieces */
        /* Weights were there before any kernel of the step. */
        for (int k = 0; k < r.count && in < a.in; k++, in += SPAN) {
            weights(p, in);
            r.next();
        }
        grid_wait();
        r = start;
        for (int k = 0; k < in; k += SPAN)
            rows(p, k);
        do {
            UNROLL_BY(1)
            for (; in < a.in; in += SPAN) {
                weights(p, in);
                rows(p, in);
            }
            in = 0;
        } while (p.find(a, i += static_cast<int>(gridDim.x)));
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
        bulk_barrier *before = r.empty;
        UNROLL
        for (int i = 0; i < N / 2; i++)
            acc[i] = 0;
        UNROLL_BY(1)
        for (int in = 0; in < a.in; in += SPAN) {
            const char *x = r.at + rows, *w = r.at + X_BYTES;
            bulk_wait(r.full + r.slot, r.turn);
            wgmma_fence();
            UNROLL
            for (int k = 0; k < 4; k++)
                wgmma_tiles(acc, wgmma_tile(x + k * 32, 1024, 0), wgmma_tile(w + k * 32, 1024, 0),
                            T());
            wgmma_commit();
            if (in) {
                wgmma_wait<1>();
                leave(before);
            }
            if (ahead && (in == AHEAD * SPAN || in + SPAN >= a.in)) {
                ahead = false;
                barrier_arrive(1, WORKERS);
            }
            before = r.empty + r.slot;
            r.next();
        }
        wgmma_wait<0>(acc);
        leave(before);
    }
    static DEVICE_METHOD float bias_of(const args &a, int o)
    {
        return a.bias && o < a.out ? a.bias[o] : 0.0f;
    }
    DEVICE_METHOD void write_floats(const args &a, const place &p) const
    {
        UNROLL
        for (int i = 0; i < N / 2; i += 2) {
            const int64_t row = p.row + warp_id() * 16 + lane_id() / 4 + i / 2 % 2 * 8;
            const int o = p.out + lane_id() % 4 * 2 + i / 4 * 8;
            float *to = static_cast<float *>(a.y) + row * a.out + o;
            const float v[2] = {acc[i] + bias_of(a, o), acc[i + 1] + bias_of(a, o + 1)};
            if (row < a.T && o + 2 <= a.out && a.out % 2 == 0) {
                store8(to, make_uint2(__float_as_uint(v[0]), __float_as_uint(v[1])));
            } else if (row < a.T) {
                if (o < a.out)
                    to[0] = v[0];
                if (o + 1 < a.out)
                    to[1] = v[1];
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
                } else {
                    const int o = p.out + c + lane_id() % 4 * 2 + i / 2 * 8;
                    v[0] += bias_of(a, o);
                    v[1] += bias_of(a, o + 1);
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
DEVICE void work(const args &a, const place &p, char *space, ring &r, bool &ahead)
{
    sums<T, N> own;
    char *room = space + RESULTS + warp_id() * 16 * PITCH;
    own.multiply(a, r, ahead);
    if (a.gated) {
        own.template write<true>(a, p, room);
        return;
    }
    if (a.floats)
        own.write_floats(a, p);
    else
        own.template write<false>(a, p, room);
}

template <class T> DEVICE void product(const args &a)
{
    TURBOK_SHARED(bulk_barrier, barriers, 2 * STAGES);
    char *space = shared_tiles();
    if (threadIdx.x == 0)
        for (int i = 0; i < STAGES; i++) {
            bulk_begin(barriers + i, 1);
            bulk_begin(barriers + STAGES + i, WORKERS / 32);
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
        return;
    }
    registers_more<240>();
    grid_wait();
    grid_release(); /* the next kernel's blocks have no room here before this one leaves */
    ring r(a, space, barriers);
    bool ahead = warp_id() < WORKERS / 64;
    if (!ahead)
        barrier_sync(1, WORKERS);
    place p;
    UNROLL_BY(1)
    for (int i = static_cast<int>(blockIdx.x); p.find(a, i); i += static_cast<int>(gridDim.x)) {
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
