/* kernels/cuda/w8a8_wide.cuh: the products of w8a8.cu by warp groups (sm_90a), for inputs in whole spans of 128.
 *
 * A block has 128 outputs and N rows. Of its three warp groups one brings spans of codes to shared memory, several ahead, by
 * the device's copy unit; two multiply, 64 outputs each. A warp's 16 bytes of a chunk (see w8a8.cu) are A as they
 * are; rows are B, whose bytes code_rows has put where wgmma8() looks for them. So that the tensor cores do not wait while
 * one group scales its sums, the two share nothing but what the third one brings.
 *
 * Sums of e4m3, and of groups of 128, move to fp32 after each span; the order of a row's sums is as in w8a8.cu. */
#ifndef TURBOK_CUDA_W8A8_WIDE_CUH
#define TURBOK_CUDA_W8A8_WIDE_CUH

#include "cuda/kernels.h"
#include "cuda/prims_bulk.cuh"
#include "cuda/prims_wgmma8.cuh"

namespace w8a8_wide
{
typedef struct turbok_cu_w8a8_args args;

enum {
    GROUP = 128, /* threads of a warp group */
    WORKERS = 2 * GROUP,
    FEEDERS = 4,
    TILES = TURBOK_CU_W8A8_OUTS / 16,
    SPAN = TURBOK_CU_W8A8_GROUP, /* inputs of a stage */
    W_TILE = 16 * SPAN, /* bytes of a stage: of a tile */
    W_BYTES = TILES * W_TILE,
    PITCH = TURBOK_CU_W8A8_OUTS + 8 /* of a row of results in shared memory */
};

/* Are sums of it exact? */
DEVICE constexpr bool exact(int)
{
    return true;
}
DEVICE constexpr bool exact(float)
{
    return false;
}

/* Stored integers have 128 added. */
DEVICE uint32_t flip_of(int)
{
    return 0x80808080u;
}
DEVICE uint32_t flip_of(float)
{
    return 0;
}

/* N rows: products of HALF of them at a time, so that sums of a span and of all fit into registers. */
template <int N> struct shape {
    enum {
        HALF = N < 128 ? N : 128,
        HALVES = N / HALF,
        SUMS = HALF / 2, /* of a thread */
        STAGE = W_BYTES + N * SPAN,
        STAGES = TURBOK_CU_W8A8_WIDE_STAGES(N),
        SCALES = STAGES * STAGE, /* where scales of rows are, one array a stage */
        SHARED = SCALES + STAGES * N * 4
    };
    static_assert(SHARED == TURBOK_CU_W8A8_WIDE_SHARED(N), "l_w8a8.c asks for it");
    static_assert(N * PITCH * 2 <= SCALES, "results fit there too");
};

struct place {
    int64_t tile, row, span, end; /* the block's first tile, row and input span */
    int64_t tiles, spans; /* of the matrix */
    int rows, stored; /* of the block: that are there; rounded up to a multiple of 8 */

    DEVICE_METHOD place(const args &a, int N)
    {
        tile = static_cast<int64_t>(blockIdx.y) * TILES;
        row = static_cast<int64_t>(blockIdx.x) * N;
        tiles = (a.out_dim + 15) / 16;
        spans = a.in / SPAN;
        const int64_t per = (spans + a.split - 1) / a.split;
        span = blockIdx.z * per;
        end = span + per < spans ? span + per : spans;
        rows = static_cast<int>(a.rows - row < N ? a.rows - row : N);
        stored = (rows + 7) / 8 * 8;
    }
};

/* ---- a thread of each of four warps brings codes -------------------------------------------------------------- */

/* One thread alone takes longer to ask for the nine copies of a span than the other groups to multiply it. */
template <int N, bool BLOCKS> struct feeder {
    typedef shape<N> sh;
    enum { EACH = TILES / FEEDERS };
    const char *w[EACH], *x; /* of the next span */
    const float *x_scale; /* NULL: another one brings them */
    char *space;
    bulk_barrier *full;
    int64_t scales_apart;
    int tile, x_at, x_bytes, x_apart, scale_bytes;

    DEVICE_METHOD feeder(const args &a, const place &p, int which, char *to, bulk_barrier *b)
    {
        space = to;
        full = b;
        tile = which * EACH;
        UNROLL
        for (int i = 0; i < EACH; i++) {
            /* Tiles that are not there are the last one once more. */
            const int64_t t = p.tile + tile + i < p.tiles ? p.tile + tile + i : p.tiles - 1;
            w[i] = static_cast<const char *>(a.m.codes) + (t * p.spans + p.span) * W_TILE;
        }
        x_apart = p.stored * SPAN;
        x_bytes = x_apart / FEEDERS;
        x_at = W_BYTES + which * x_bytes;
        x = static_cast<const char *>(a.x) + p.row * a.in + p.span * x_apart + which * x_bytes;
        scales_apart = a.x_ld;
        scale_bytes = which ? 0 : p.stored * 4;
        x_scale = a.x_scale + (BLOCKS ? p.span * a.x_ld : 0) + p.row;
    }
    DEVICE_METHOD void codes(int slot, bool first)
    {
        bulk_expect(full + slot,
                    EACH * W_TILE + x_bytes + (BLOCKS || first ? scale_bytes : 0));
        UNROLL
        for (int i = 0; i < EACH; i++) {
            bulk_copy(space + slot * sh::STAGE + (tile + i) * W_TILE, w[i], W_TILE, full + slot);
            w[i] += W_TILE;
        }
    }
    /* With one scale a row scales come with the first span and stay. */
    DEVICE_METHOD void rows(int slot, bool first)
    {
        bulk_copy(space + slot * sh::STAGE + x_at, x, x_bytes, full + slot);
        x += x_apart;
        if (scale_bytes && (BLOCKS || first)) {
            bulk_copy(space + sh::SCALES + slot * N * 4, x_scale, scale_bytes, full + slot);
            x_scale += scales_apart;
        }
    }
    DEVICE_METHOD void run(int count, bulk_barrier *empty)
    {
        const int first = count < sh::STAGES ? count : sh::STAGES;
        UNROLL_BY(1)
        for (int n = 0; n < first; n++)
            codes(n, n == 0);
        grid_wait();
        UNROLL_BY(1)
        for (int n = 0; n < first; n++)
            rows(n, n == 0);
        int slot = 0, turn = 0;
        UNROLL_BY(1)
        for (int n = first; n < count; n++) {
            bulk_wait(empty + slot, turn);
            codes(slot, false);
            rows(slot, false);
            if (++slot == sh::STAGES)
                slot = 0, turn ^= 1;
        }
    }
};

/* ---- two groups multiply -------------------------------------------------------------------------------- */

/* A warp's products of a span with HALF rows. */
template <class S, int SUMS>
DEVICE void multiply(const uint32_t codes[4][4], const char *rows, S (&sum)[SUMS], bool add)
{
    UNROLL
    for (int k = 0; k < 4; k++)
        wgmma8(sum, codes[k], wgmma_tile(rows + k * 32, 1024, 0), add || k);
    wgmma_commit();
}

/* A thread's sums of all spans: registers of wgmma8(), of outputs r and r + 8 (r = lane / 4) of its warp's tile. Integers
 * with one scale a row are added up where they are, all others through sums of a span. */
template <int N, bool BLOCKS, class S, class ACC> struct sums {
    typedef shape<N> sh;
    ACC acc[sh::HALVES][sh::SUMS];

    DEVICE_METHOD void clear()
    {
        UNROLL
        for (int h = 0; h < sh::HALVES; h++)
            UNROLL
        for (int i = 0; i < sh::SUMS; i++)
            acc[h][i] = 0;
    }
    /* Lets the slot be filled again once all lanes are here. */
    static DEVICE_METHOD void leave(bulk_barrier *empty)
    {
        __syncwarp();
        if (lane_id() == 0)
            bulk_arrive(empty);
    }
    /* To float sums: part times scales x of rows and w of outputs. */
    static DEVICE_METHOD void promote(const S (&part)[sh::SUMS], const float *x, const float w[2],
                                      ACC (&to)[sh::SUMS])
    {
        UNROLL
        for (int i = 0; i < sh::SUMS; i += 4) {
            float scale[2] = {1, 1};
            if (BLOCKS) {
                const uint2 two = load8(x + i * 2);
                scale[0] = __uint_as_float(two.x);
                scale[1] = __uint_as_float(two.y);
            }
            UNROLL
            for (int e = 0; e < 4; e++) {
                const float v = static_cast<float>(part[i + e]);
                to[i + e] = BLOCKS ? fmaf(v * scale[e & 1], w[e >> 1], to[i + e]) : to[i + e] + v;
            }
        }
    }
    DEVICE_METHOD void add(const uint32_t codes[4][4], const char *rows, const float *x,
                           const float w[2], bulk_barrier *empty)
    {
        if constexpr (!BLOCKS && exact(S())) {
            wgmma_fence();
            UNROLL
            for (int h = 0; h < sh::HALVES; h++)
                multiply(codes, rows + h * sh::HALF * SPAN, acc[h], true);
            UNROLL
            for (int h = 0; h < sh::HALVES; h++)
                wgmma_wait<0>(acc[h]);
            leave(empty);
        } else {
            UNROLL
            for (int h = 0; h < sh::HALVES; h++) {
                S part[sh::SUMS];
                wgmma_fence();
                multiply(codes, rows + h * sh::HALF * SPAN, part, false);
                wgmma_wait<0>(part);
                if (!BLOCKS && h == sh::HALVES - 1)
                    leave(empty);
                promote(part, x + h * sh::HALF, w, acc[h]);
                if (BLOCKS && h == sh::HALVES - 1)
                    leave(empty);
            }
        }
    }
};

/* Scales of a group, or of rows, for a lane's outputs r and r + 8; of a tile that is not there those of the last one. */
struct output_scales {
    const char *at; /* of the next group */
    int dtype;

    DEVICE_METHOD output_scales(const args &a, const place &p, int64_t groups, int64_t g)
    {
        const int64_t t = p.tile + warp_id() < p.tiles ? p.tile + warp_id() : p.tiles - 1;
        dtype = a.scale_dtype;
        at = static_cast<const char *>(a.m.scale) +
             ((t * groups + g) * 16 + lane_id() / 4) * (dtype ? 2 : 4);
    }
    DEVICE_METHOD void next(float w[2])
    {
        UNROLL
        for (int h = 0; h < 2; h++)
            w[h] = element_of(dtype, at, 8 * h);
        at += dtype ? 32 : 64;
    }
};

template <int N, bool BLOCKS, class S, class ACC>
DEVICE void add_spans(const args &a, const place &p, const char *space, bulk_barrier *full,
                      bulk_barrier *empty, sums<N, BLOCKS, S, ACC> &own)
{
    typedef shape<N> sh;
    const char *mine = space + warp_id() * W_TILE + lane_id() * 16;
    const float *scales = reinterpret_cast<const float *>(space + sh::SCALES) + lane_id() % 4 * 2;
    output_scales outputs(a, p, p.spans, p.span);
    float w[2] = {0, 0};
    int slot = 0, turn = 0;
    UNROLL_BY(1)
    for (int left = static_cast<int>(p.end - p.span); left; left--) {
        uint32_t codes[4][4];
        if (BLOCKS) /* early: they come from memory */
            outputs.next(w);
        bulk_wait(full + slot, turn);
        UNROLL
        for (int k = 0; k < 4; k++) {
            const uint4 f = load16(mine + slot * sh::STAGE + k * 512);
            codes[k][0] = f.x ^ flip_of(S());
            codes[k][1] = f.y ^ flip_of(S());
            codes[k][2] = f.z ^ flip_of(S());
            codes[k][3] = f.w ^ flip_of(S());
        }
        own.add(codes, space + slot * sh::STAGE + W_BYTES, scales + slot * N, w, empty + slot);
        if (++slot == sh::STAGES)
            slot = 0, turn ^= 1;
    }
}

/* ---- results --------------------------------------------------------------------------------------------- */

DEVICE uint32_t bits_of_sum(int v)
{
    return static_cast<uint32_t>(v);
}
DEVICE uint32_t bits_of_sum(float v)
{
    return __float_as_uint(v);
}
DEVICE void add_bits(int &to, uint32_t v)
{
    to += static_cast<int>(v);
}
DEVICE void add_bits(float &to, uint32_t v)
{
    to += __uint_as_float(v);
}

/* Sums of all splits, in the order of splits, in the block that comes last. False: not this one. */
template <int N, bool BLOCKS, class S, class ACC>
DEVICE bool gather_splits(const args &a, uint32_t *last, sums<N, BLOCKS, S, ACC> &own)
{
    typedef shape<N> sh;
    constexpr int64_t EACH = N / 8 * WORKERS;
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    uint4 *mine = reinterpret_cast<uint4 *>(a.partial) + block * a.split * EACH + threadIdx.x;
    UNROLL
    for (int h = 0; h < sh::HALVES; h++)
        UNROLL
    for (int i = 0; i < sh::SUMS; i += 4) {
        const ACC *v = own.acc[h] + i;
        store16(mine + blockIdx.z * EACH + (h * sh::SUMS + i) / 4 * WORKERS,
                make_uint4(bits_of_sum(v[0]), bits_of_sum(v[1]), bits_of_sum(v[2]),
                           bits_of_sum(v[3])));
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
    UNROLL_BY(1)
    for (int z = 0; z < a.split; z++)
        UNROLL
    for (int h = 0; h < sh::HALVES; h++)
        UNROLL
    for (int i = 0; i < sh::SUMS; i += 4) {
        const uint4 v = __ldcg(mine + z * EACH + (h * sh::SUMS + i) / 4 * WORKERS);
        ACC *to = own.acc[h] + i;
        add_bits(to[0], v.x), add_bits(to[1], v.y);
        add_bits(to[2], v.z), add_bits(to[3], v.w);
    }
    if (threadIdx.x == 0)
        a.arrived[block] = 0;
    return true;
}

/* Results of 16 bits: through shared memory, so that rows are written 16 bytes at a time. */
DEVICE void copy_results(const args &a, const place &p, const uint16_t *tile)
{
    enum { UNITS = TURBOK_CU_W8A8_OUTS / 8 };
    UNROLL_BY(1)
    for (int n = static_cast<int>(threadIdx.x); n < p.rows * UNITS; n += WORKERS) {
        const int64_t row = p.row + n / UNITS, o = p.tile * 16 + n % UNITS * 8;
        const uint16_t *from = tile + n / UNITS * PITCH + n % UNITS * 8;
        uint16_t *to = static_cast<uint16_t *>(a.out) + row * a.ld + o;
        if (o + 8 <= a.out_dim && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
            store16(to, load16(from));
            continue;
        }
        for (int e = 0; e < 8 && o + e < a.out_dim; e++)
            to[e] = from[e];
    }
}

template <int N, bool BLOCKS, bool F32, class S, class ACC>
DEVICE void put_results(const args &a, const place &p, char *space,
                        const sums<N, BLOCKS, S, ACC> &own)
{
    typedef shape<N> sh;
    const int local = warp_id() * 16 + lane_id() / 4;
    const int64_t o = p.tile * 16 + local;
    const float *x = reinterpret_cast<const float *>(space + sh::SCALES) + lane_id() % 4 * 2;
    const bool bf = a.out_dtype == 2;
    float w[2] = {1, 1}, bias[2];
    uint16_t *tile = reinterpret_cast<uint16_t *>(space) + lane_id() % 4 * 2 * PITCH + local;
    if (!BLOCKS)
        output_scales(a, p, 1, 0).next(w);
    UNROLL
    for (int e = 0; e < 2; e++)
        bias[e] = a.m.bias && o + 8 * e < a.out_dim ? a.m.bias[o + 8 * e] : 0.0f;
    UNROLL
    for (int h = 0; h < sh::HALVES; h++)
        UNROLL
    for (int i = 0; i < sh::SUMS; i++) {
        const int e = i / 2 % 2, row = h * sh::HALF + i / 4 * 8 + i % 2; /* and 2 (lane % 4) */
        float v = static_cast<float>(own.acc[h][i]);
        if (!BLOCKS)
            v = v * x[row] * w[e];
        v += bias[e];
        if (!F32)
            tile[row * PITCH + 8 * e] = bf ? from_f<bf16>(v).x : from_f<f16>(v).x;
        else if (row + lane_id() % 4 * 2 < p.rows && o + 8 * e < a.out_dim)
            static_cast<float *>(a.out)[(p.row + row + lane_id() % 4 * 2) * a.ld + o + 8 * e] = v;
    }
    if (F32)
        return;
    barrier_sync(1, WORKERS);
    copy_results(a, p, reinterpret_cast<const uint16_t *>(space));
}

/* Grid: blocks of rows, blocks of outputs, splits. */
template <int N, bool BLOCKS, class S, class ACC> DEVICE void product(const args &a)
{
    typedef shape<N> sh;
    TURBOK_SHARED(bulk_barrier, barriers, 2 * sh::STAGES);
    [[maybe_unused]] TURBOK_SHARED(uint32_t, last, 1);
    bulk_barrier *full = barriers, *empty = barriers + sh::STAGES;
    char *space = shared_tiles();
    const place p(a, N);
    if (threadIdx.x == 0)
        for (int i = 0; i < sh::STAGES; i++) {
            bulk_begin(full + i, FEEDERS);
            bulk_begin(empty + i, WORKERS / 32);
        }
    __syncthreads();
    if (threadIdx.x >= WORKERS) {
        registers_fewer<40>();
        if (lane_id() == 0) {
            feeder<N, BLOCKS> f(a, p, warp_id() - WORKERS / 32, space, full);
            f.run(static_cast<int>(p.end - p.span), empty);
        } else {
            grid_wait();
        }
        return;
    }
    registers_more<232>();
    grid_wait();
    sums<N, BLOCKS, S, ACC> own;
    own.clear();
    add_spans(a, p, space, full, empty, own);
    grid_release();
    if constexpr (N < 256) /* sums, and what adding splits takes, would not fit into registers */
        if (a.split > 1 && !gather_splits(a, last, own))
            return;
    barrier_sync(1, WORKERS); /* results go where stages were */
    if (a.out_dtype)
        put_results<N, BLOCKS, false>(a, p, space, own);
    else
        put_results<N, BLOCKS, true>(a, p, space, own);
}
} // namespace w8a8_wide

#endif
