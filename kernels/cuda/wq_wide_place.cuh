/* kernels/cuda/wq_wide_place.cuh: of wq_wide.cuh: the sizes of a block, what it works on, and what brings it there. */
#ifndef TURBOK_CUDA_WQ_WIDE_PLACE_CUH
#define TURBOK_CUDA_WQ_WIDE_PLACE_CUH

#include "cuda/prims_bulk.cuh"
#include "cuda/prims_wgmma.cuh"
#include "cuda/wq.cuh"

namespace wq_wide
{
typedef struct turbok_cu_wq_wide_args args;
using wq::type;

enum {
    GROUP = 128, /* threads of a warp group */
    WORKERS = 2 * GROUP,
    FEEDERS = 4,
    SPAN = TURBOK_CU_WQ_WIDE_SPAN /* inputs of a stage */
};

/* Of so many rows, those that are laid: the rest is 0. */
DEVICE int laid_rows(int rows)
{
    return (rows + 7) / 8 * 8;
}

/* How codes, scales and sums meet. */
enum {
    SUMS, /* sums of 128 inputs, of one group, are scaled: whole numbers, groups of a multiple of 128 */
    ROWS, /* all sums are scaled at the end: whole numbers, one scale a row */
    NUMBERS, /* whole numbers are scaled and rounded before they are multiplied: groups of 32 and 64 */
    GENERAL32, /* sums of 32 or of 16 inputs are scaled; tables, e4m3 and minima as well */
    GENERAL16
};

template <int BITS_, int MT_, int N_, int MODE_> struct shape {
    static constexpr int MODE = MODE_;
    static constexpr bool GENERAL = MODE >= GENERAL32;
    /* Are there sums of all inputs alone? */
    static constexpr bool DIRECT = MODE == ROWS || MODE == NUMBERS;
    /* Are sums of a span taken while the next one is multiplied? */
    static constexpr bool LATE = MODE == SUMS && MT_ * N_ == 64;
    enum {
        BITS = BITS_,
        MT = MT_,
        N = N_,
        PER = MODE == GENERAL16 ? 16 : MODE == GENERAL32 || MODE == NUMBERS ? 32 : 128,
        TILES = 8 * MT,
        OUTS = 128 * MT,
        SUMS_OF = N / 2, /* of a thread and 64 outputs */
        CHUNK_STEPS = BITS == 4 ? 4 : 2,
        CHUNKS = SPAN / 16 / CHUNK_STEPS,
        GROUPS = SPAN / PER, /* whose scales are told apart in a span */
        /* A unit: a tile's inputs whose sums are scaled; of DIRECT all of a span. */
        UNIT = DIRECT ? SPAN : PER,
        UNITS = MT * SPAN / UNIT,
        /* Steps of 16 inputs whose codes are converted at a time; more would not fit into registers. */
        PART = UNIT < 32 || (MODE == SUMS && BITS == 8 && MT == 2) ? 1 : 2,
        PARTS = UNIT / 16 / PART, /* of a unit */
        DEPTH = DIRECT ? 0 : LATE || (GENERAL && MT * N <= 64) ? 2 : 1, /* units on their way */
        BUFFERS = (DIRECT && MT * N <= 64) || LATE ? 4 : 2, /* of converted codes */
        BLOCKS = TURBOK_CU_WQ_WIDE_BLOCKS(N), /* of a multiprocessor */
        W_TILE = SPAN * 2 * BITS, /* bytes of a stage: of a tile */
        W_BYTES = TILES * W_TILE,
        STAGE = W_BYTES + N * SPAN * 2,
        STAGES = TURBOK_CU_WQ_WIDE_STAGES(BITS, MT, N, GENERAL),
        X_SUMS = STAGES * STAGE, /* where sums of rows are, one array a stage */
        X_SUMS_BYTES = GENERAL ? GROUPS * N * 4 : 0,
        /* Where what belongs to groups is: rings of RINGS spans. */
        BELONGS = TURBOK_CU_WQ_WIDE_BELONGS(PER, GENERAL),
        RINGS = TURBOK_CU_WQ_WIDE_RINGS(BITS, MT, N, GENERAL),
        SCALES = X_SUMS + STAGES * X_SUMS_BYTES,
        ZEROS = GROUPS * 64, /* after the scales of a span */
        MINIMA = GROUPS * 80,
        SHARED = SCALES + RINGS * TILES * BELONGS,
        PITCH = OUTS + 8 /* of a row of results in shared memory */
    };
    static_assert(!(DIRECT || LATE) || BUFFERS <= UNITS * PARTS, "the span before is released in each");
    static_assert(SHARED == TURBOK_CU_WQ_WIDE_SHARED(BITS, MT, N, PER, GENERAL), "l_wide.c asks for it");
    static_assert(N * PITCH * 2 <= X_SUMS, "results fit there too");
};

struct place {
    int tile, row, span, end; /* the block's first tile, row and input span */
    int tiles, spans; /* of the matrix */
    int rows, stored; /* of the block: that are there; rounded up to a multiple of 8 */

    DEVICE_METHOD place(const args &a, int N, int TILES)
    {
        tile = static_cast<int>(blockIdx.y) * TILES;
        row = static_cast<int>(blockIdx.x) * N;
        tiles = static_cast<int>((a.out_dim + 15) / 16);
        spans = static_cast<int>(a.in / SPAN);
        const int per = (spans + a.split - 1) / a.split;
        span = static_cast<int>(blockIdx.z) * per;
        end = span + per < spans ? span + per : spans;
        span = span < end ? span : end;
        rows = a.rows - row < N ? a.rows - row : N;
        stored = laid_rows(rows);
    }
    /* Tiles that are not there are the last one once more. */
    DEVICE_METHOD int tile_at(int i) const
    {
        return tile + i < tiles ? tile + i : tiles - 1;
    }
};

/* ---- a thread of each of four warps brings codes and rows ----------------------------------------------------- */

template <class S> struct feeder {
    enum { EACH = S::TILES / FEEDERS };
    const char *w, *x; /* of the next span */
    const float *x_sums; /* NULL: there are none, or another one brings them */
    char *space;
    bulk_barrier *full;
    int tile, apart, last; /* of tiles: the first; bytes from one to the next; the last that is there, from the first on */
    int x_at, x_bytes, x_apart, sums_bytes;

    DEVICE_METHOD feeder(const args &a, const place &p, int which, char *to, bulk_barrier *b)
    {
        space = to;
        full = b;
        tile = which * EACH;
        apart = p.spans * S::W_TILE;
        last = p.tile_at(tile + EACH - 1) - p.tile_at(tile);
        w = static_cast<const char *>(a.m.codes) +
            (static_cast<int64_t>(p.tile_at(tile)) * p.spans + p.span) * S::W_TILE;
        x_apart = p.stored * SPAN * 2;
        x_bytes = x_apart / FEEDERS;
        x_at = S::W_BYTES + which * x_bytes;
        x = static_cast<const char *>(a.x) + p.row * a.in * 2 +
            static_cast<int64_t>(p.span) * x_apart + which * x_bytes;
        x_sums = nullptr;
        sums_bytes = 0;
        if (S::GENERAL && a.x_sums && which == 0) {
            sums_bytes = S::GROUPS * p.stored * 4;
            x_sums = a.x_sums + p.row * (a.in / S::PER) +
                     static_cast<int64_t>(p.span) * S::GROUPS * p.stored;
        }
    }
    DEVICE_METHOD void codes(int slot)
    {
        bulk_expect(full + slot, EACH * S::W_TILE + x_bytes + sums_bytes);
        UNROLL
        for (int i = 0; i < EACH; i++) {
            bulk_copy(space + slot * S::STAGE + (tile + i) * S::W_TILE,
                      w + (i < last ? i : last) * apart, S::W_TILE, full + slot);
        }
        w += S::W_TILE;
    }
    DEVICE_METHOD void rows(int slot)
    {
        bulk_copy(space + slot * S::STAGE + x_at, x, x_bytes, full + slot);
        x += x_apart;
        if (S::GENERAL && sums_bytes) {
            bulk_copy(space + S::X_SUMS + slot * S::X_SUMS_BYTES, x_sums, sums_bytes, full + slot);
            x_sums += sums_bytes / 4;
        }
    }
    DEVICE_METHOD void run(int count, bulk_barrier *empty)
    {
        const int first = count < S::STAGES ? count : S::STAGES;
        UNROLL_BY(1)
        for (int n = 0; n < first; n++)
            codes(n);
        grid_wait();
        UNROLL_BY(1)
        for (int n = 0; n < first; n++)
            rows(n);
        int slot = 0, turn = 0;
        UNROLL_BY(1)
        for (int n = first; n < count; n++) {
            bulk_wait(empty + slot, turn);
            codes(slot);
            rows(slot);
            if (++slot == S::STAGES)
                slot = 0, turn ^= 1;
        }
    }
};

/* ---- scales, zeros and minima of a warp's tiles ------------------------------------------------------------- */

/* Lanes copy pieces of 16 bytes: those of scales, of zeros, of minima. A group of several spans is copied for each. */
template <class S> struct ring {
    enum { EACH = S::GENERAL ? 3 : 1 }; /* pieces of a lane */
    const char *from[EACH][S::MT]; /* of the next span that is asked for */
    char *space;
    int to[EACH], step[EACH]; /* to: where in `space`, of slot 0; below 0: the lane has no such piece */
    int left, slot; /* left: spans that are not asked for yet */
    int turn, turns; /* spans of the group that are behind; in a group */

    DEVICE_METHOD ring(const args &a, const place &p, char *shared)
    {
        space = shared;
        const int groups = a.group < SPAN ? SPAN / a.group : 1;
        turns = a.group < SPAN ? 1 : a.group / SPAN;
        turn = p.span % turns;
        left = p.end - p.span;
        slot = 0;
        UNROLL
        for (int e = 0; e < EACH; e++) {
            const int64_t all = a.in / a.group;
            const int size = a.scale_dtype ? 32 : 64;
            const char *base = static_cast<const char *>(a.m.scale);
            int piece = lane_id() + 32 * e, each = size, at = 0;
            bool there = piece < groups * size / 16;
            if (!there) {
                piece -= groups * size / 16;
                base = reinterpret_cast<const char *>(a.m.zero), each = 16, at = S::ZEROS;
                there = base && piece < groups;
            }
            if (S::GENERAL && !there) {
                piece -= a.m.zero ? groups : 0;
                base = reinterpret_cast<const char *>(a.m.min), each = 64, at = S::MINIMA;
                there = base && piece < groups * 4;
            }
            to[e] = there ? S::SCALES + warp_id() * S::BELONGS + at + piece * 16 : -1;
            step[e] = groups * each;
            UNROLL
            for (int m = 0; m < S::MT; m++)
                from[e][m] = base + (p.tile_at(8 * m + warp_id()) * all + p.span / turns * groups) * each +
                             piece * 16;
        }
    }
    /* Asks for one more span, or for nothing. */
    DEVICE_METHOD void ask()
    {
        turn++;
        UNROLL
        for (int e = 0; e < EACH; e++)
            UNROLL
        for (int m = 0; m < S::MT; m++) {
            if (left > 0 && to[e] >= 0)
                copy16_async(space + to[e] + (slot * S::TILES + 8 * m) * S::BELONGS, from[e][m]);
            if (turn == turns)
                from[e][m] += step[e];
        }
        copy_commit();
        left--;
        if (turn == turns)
            turn = 0;
        if (++slot == S::RINGS)
            slot = 0;
    }
};

/* Number i of scales of any type. Without branches: with one ptxas makes wgmma() wait for the one before. */
DEVICE float scale_of(int dtype, const char *at, int i)
{
    const uint32_t byte = pick(dtype != 0, i * 2, i * 4), word = load4(at + (byte & ~3u));
    const uint32_t half = pick(byte & 2, word >> 16, word) & 0xffff;
    const uint32_t f = __float_as_uint(to_f(f16{static_cast<uint16_t>(half)}));
    return __uint_as_float(pick(dtype == 0, word, pick(dtype == 1, f, half << 16)));
}

/* What a unit's codes become numbers with, for a lane's two outputs. n: the group in its span. */
template <class T, class S>
DEVICE void read_group(const args &a, const char *at, int n, wq::group<T, S::BITS> &to)
{
    UNROLL
    for (int h = 0; h < 2; h++) {
        const int r = lane_id() / 4 + 8 * h;
        const uint32_t zero = reinterpret_cast<const uint8_t *>(at)[S::ZEROS + n * 16 + r];
        to.scale[h] = scale_of(a.scale_dtype, at, n * 16 + r);
        to.min[h] = S::GENERAL && a.m.min
                        ? reinterpret_cast<const float *>(at + S::MINIMA)[n * 16 + r]
                        : 0.0f;
        to.less_of(h, pick(a.m.zero != nullptr, zero, static_cast<uint32_t>(a.offset)));
    }
}
} // namespace wq_wide

#endif
