/* kernels/cuda/w8a8.cu: products of rows that became codes of 8 bits with matrices of 8 bits, on the tensor cores of
 * such codes: signed integers with exact sums, or e4m3. For matrices whose folder says that inputs are quantised.
 *
 * A matrix lies as wq.cuh has it, in pairs of steps: then a lane's 16 bytes of a chunk are the A operand of
 * mma.sync m16n8k32 as they are, of inputs in the order 8 q + 4 h + j (q = lane % 4, register half h, byte j). Rows are
 * written by code_rows in that order, too, 16 bytes a lane for two chunks: nothing is exchanged on the way through shared
 * memory, and no two lanes meet in a bank.
 *
 * A block has 128 outputs and 128 rows, a warp 64 and 32; 64 inputs are a stage, four of them on their way. Integers are
 * scaled once, after the last input, or every 128 inputs where scales are of 128; sums of e4m3, which tensor cores keep in
 * fewer bits than fp32 has, move to fp32 every 128 inputs. A row's sums are in the order of inputs, whatever
 * stands beside it; with split inputs, in the order of splits. */
#include "cuda/kernels.h"
#include "cuda/prims.cuh"
#include "cuda/prims_q.cuh"

namespace w8a8
{
typedef struct turbok_cu_w8a8_args args;
typedef struct turbok_cu_code_rows_args rows_args;

enum {
    WARPS = 8,
    STAGES = 4,
    MT = 4, /* of a warp: tiles of 16 outputs, and of 8 rows */
    NT = 4,
    OUT_TILES = TURBOK_CU_W8A8_OUTS / 16,
    ROW_TILES = TURBOK_CU_W8A8_ROWS / 8,
    W_BYTES = OUT_TILES * 1024, /* of a stage: two chunks of each tile, then the rows */
    STAGE = W_BYTES + ROW_TILES * 512,
    PITCH = TURBOK_CU_W8A8_OUTS + 8 /* of a row of results in shared memory */
};
static_assert(STAGES * STAGE == TURBOK_CU_W8A8_SHARED, "l_w8a8.c asks for it");
static_assert(TURBOK_CU_W8A8_ROWS * PITCH * 2 <= TURBOK_CU_W8A8_SHARED, "results fit there too");

/* ---- rows to codes ------------------------------------------------------------------------------- */

/* Bits of the largest magnitude: what is no finite number is larger than all that are. */
DEVICE uint32_t largest(uint32_t most, const float v[8])
{
    UNROLL
    for (int i = 0; i < 8; i++)
        most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
    return most;
}

template <class T> DEVICE void load_unit(const rows_args &a, int64_t row, int u, float v[8])
{
    UNROLL
    for (int i = 0; i < 8; i++)
        v[i] = 0;
    if (row < a.rows && u * 8 < a.in)
        load8f((const T *)a.x + row * a.in + u * 8, v);
}

DEVICE uint32_t four_codes(bool e4m3, const float v[4])
{
    if (e4m3)
        return pack_e4m3(v[0], v[1]) | pack_e4m3(v[2], v[3]) << 16;
    uint32_t c = 0;
    UNROLL
    for (int i = 0; i < 4; i++)
        c |= ((uint32_t)__float2int_rn(v[i]) & 255) << (8 * i);
    return c;
}

/* A block makes a row; a thread 8 inputs at a time. */
template <class T> DEVICE void code_rows(const rows_args &a)
{
    TURBOK_SHARED(uint32_t, room, 32);
    const int64_t row = blockIdx.x, wide = (a.in + 63) / 64;
    const int units = (int)wide * 8, threads = (int)blockDim.x;
    const float top = a.e4m3 ? 448.0f : 127.0f;
    char *codes = (char *)a.codes + (row / 8 * wide * 32 + row % 8 * 4) * 16;
    int64_t spans_apart = 0; /* of w8a8_wide.cuh */
    if (a.tile) {
        const int64_t first = row / a.tile * a.tile, here = min((int64_t)a.tile, a.ld - first);
        spans_apart = here * 128;
        codes = (char *)a.codes + first * a.in + (row - first) * 128;
    }
    uint32_t most = 0;
    float v[8];
    grid_release();
    grid_wait();
    if (a.groups == 1) {
        for (int u = (int)threadIdx.x; u < units; u += threads) {
            load_unit<T>(a, row, u, v);
            most = largest(most, v);
        }
        most = __reduce_max_sync(FULL, most);
        if (lane_id() == 0)
            room[warp_id()] = most;
        __syncthreads();
        most = __reduce_max_sync(FULL, lane_id() < threads / 32 ? room[lane_id()] : 0u);
    }
    for (int first = 0; first < units; first += threads) {
        const int u = first + (int)threadIdx.x;
        load_unit<T>(a, row, u, v);
        if (a.groups != 1) {
            most = largest(0, v);
            UNROLL
            for (int i = 1; i < TURBOK_CU_W8A8_GROUP / 8; i *= 2)
                most = max(most, __shfl_xor_sync(FULL, most, i));
        }
        /* Smaller numbers have no reciprocal: they are 0. */
        const float size = __uint_as_float(most);
        const bool finite = most < 0x7f800000u, some = finite && size >= 1e-35f;
        const float up = some ? __fdiv_rn(top, size) : 0.0f;
        UNROLL
        for (int i = 0; i < 8; i++)
            v[i] = some ? v[i] * up : 0.0f;
        const uint2 made = make_uint2(four_codes(a.e4m3, v), four_codes(a.e4m3, v + 4));
        if (u < units && !a.tile)
            store8(codes + u / 8 * 512 + u % 4 * 16 + u % 8 / 4 * 8, made);
        if (u < units && a.tile) {
            const int piece = u % 16 / 4 * 2, turn = (int)(row % 8);
            char *to = codes + u / 16 * spans_apart + u % 4 * 4;
            store4(to + (piece ^ turn) * 16, made.x);
            store4(to + ((piece + 1) ^ turn) * 16, made.y);
        }
        const float scale = !finite ? __uint_as_float(0x7fc00000u) : some ? __fdiv_rn(size, top) : 0.0f;
        if (a.groups == 1 ? u == 0 : u % (TURBOK_CU_W8A8_GROUP / 8) == 0 && u < units)
            a.scale[(int64_t)(a.groups == 1 ? 0 : u / (TURBOK_CU_W8A8_GROUP / 8)) * a.ld + row] = scale;
    }
}

/* ---- the product ------------------------------------------------------------------------------------ */

/* Where a block and a warp work. */
typedef struct place {
    int64_t tile, row_tile; /* the block's first of 16 outputs and of 8 rows */
    int64_t tiles, row_tiles; /* of the matrix, of the rows */
    int64_t chunks, wide; /* of 32 and of 64 inputs */
    int warp_tile, warp_row; /* the warp's first in its block */
    bool busy; /* has the warp rows? */
} place;

DEVICE place place_of(const args &a)
{
    place p;
    p.tile = (int64_t)blockIdx.y * OUT_TILES;
    p.row_tile = (int64_t)blockIdx.x * ROW_TILES;
    p.tiles = (a.out_dim + 15) / 16;
    p.row_tiles = (a.rows + 7) / 8;
    p.chunks = a.in / 32;
    p.wide = (a.in + 63) / 64;
    p.warp_tile = warp_id() % 2 * MT;
    p.warp_row = warp_id() / 2 * NT;
    p.busy = p.row_tile + p.warp_row < p.row_tiles;
    return p;
}

/* What a thread copies of each stage. */
struct feed {
    enum {
        W = W_BYTES / 16 / (WARPS * 32), /* pieces of 16 bytes */
        X = ROW_TILES * 32 / (WARPS * 32)
    };
    const char *w[W], *x[X]; /* of stage 0; NULL: zeros */
    const args *a;
    int64_t chunks, end;
    char *to; /* of slot 0 */
    int second; /* 1: its codes are of the second chunk of a stage */

    DEVICE_METHOD void begin(const args &from, const place &p, char *space, int64_t last)
    {
        const int n = (int)threadIdx.x;
        a = &from;
        chunks = p.chunks;
        end = last;
        to = space + n * 16;
        second = n % 64 / 32;
        UNROLL
        for (int i = 0; i < W; i++) {
            const int64_t t = p.tile + (n + i * WARPS * 32) / 64;
            w[i] = t < p.tiles ? (const char *)from.m.codes + t * p.chunks * 512 + n % 64 * 16
                               : nullptr;
        }
        UNROLL
        for (int i = 0; i < X; i++) {
            const int64_t t = p.row_tile + (n + i * WARPS * 32) / 32;
            x[i] = t < p.row_tiles ? (const char *)from.x + t * p.wide * 512 + n % 32 * 16 : nullptr;
        }
    }
    DEVICE_METHOD void codes(int slot, int64_t stage) const
    {
        const bool there = stage < end && stage * 2 + second < chunks;
        UNROLL
        for (int i = 0; i < W; i++) {
            const bool some = there && w[i];
            copy16_async(to + slot * STAGE + i * (WARPS * 512),
                         some ? w[i] + stage * 1024 : (const char *)a->m.codes, some ? 16 : 0);
        }
    }
    DEVICE_METHOD void rows(int slot, int64_t stage) const
    {
        UNROLL
        for (int i = 0; i < X; i++) {
            const bool some = stage < end && x[i];
            copy16_async(to + slot * STAGE + W_BYTES + i * (WARPS * 512),
                         some ? x[i] + stage * 512 : (const char *)a->x, some ? 16 : 0);
        }
    }
};

DEVICE void multiply(int c[4], const uint32_t a[4], const uint32_t b[2])
{
    mma_s8(c, a, b);
}
DEVICE void multiply(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    mma_e4m3(c, a, b);
}

/* Stored integers have 128 added. Where products of e4m3 are made of f16, the two chunks of a stage at a time would take
 * more registers than there are. */
template <class S> struct kind {
    static constexpr uint32_t flip = 0x80808080u;
    static constexpr int chunks = 2;
};
template <> struct kind<float> {
    static constexpr uint32_t flip = 0;
    static constexpr int chunks = 1;
};

template <class S> DEVICE void clear(S v[MT][NT][4])
{
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++)
        UNROLL
    for (int e = 0; e < 4; e++)
        v[i][t][e] = 0;
}

/* A warp's products of a stage. */
template <class S> DEVICE void add_stage(const char *w, const char *x, S sum[MT][NT][4])
{
    uint4 b[NT];
    UNROLL
    for (int t = 0; t < NT; t++)
        b[t] = load16(x + t * 512);
    UNROLL_BY(kind<S>::chunks)
    for (int c = 0; c < 2; c++) {
        UNROLL
        for (int i = 0; i < MT; i++) {
            const uint4 f = load16(w + i * 1024 + c * 512);
            const uint32_t codes[4] = {f.x ^ kind<S>::flip, f.y ^ kind<S>::flip,
                                       f.z ^ kind<S>::flip, f.w ^ kind<S>::flip};
            UNROLL
            for (int t = 0; t < NT; t++) {
                const uint32_t rows[2] = {c ? b[t].z : b[t].x, c ? b[t].w : b[t].y};
                multiply(sum[i][t], codes, rows);
            }
        }
    }
}

/* Scales of a group for a lane's outputs and rows; 0 for those that are not there. */
DEVICE void load_scales(const args &a, const place &p, int64_t groups, int64_t g, float w[MT][2],
                        float x[NT][2])
{
    const int r = lane_id() >> 2, j = lane_id() & 3;
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int h = 0; h < 2; h++) {
        const int64_t t = p.tile + p.warp_tile + i;
        w[i][h] = t < p.tiles
                      ? element_of(a.scale_dtype, a.m.scale, (t * groups + g) * 16 + r + 8 * h)
                      : 0;
    }
    UNROLL
    for (int t = 0; t < NT; t++)
        UNROLL
    for (int h = 0; h < 2; h++) {
        const int64_t at = p.row_tile + p.warp_row + t;
        x[t][h] = at < p.row_tiles ? a.x_scale[g * a.x_ld + at * 8 + 2 * j + h] : 0;
    }
}

/* acc += part, which becomes 0; BLOCKS: times its scales. */
template <bool BLOCKS, class S>
DEVICE void promote(const float w[MT][2], const float x[NT][2], S part[MT][NT][4],
                    float acc[MT][NT][4])
{
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        const float v = (float)part[i][t][e];
        acc[i][t][e] =
            BLOCKS ? fmaf(v * x[t][e & 1], w[i][e >> 1], acc[i][t][e]) : acc[i][t][e] + v;
    }
    clear(part);
}

/* A warp's stage s: into acc, or into part and from there every second time into acc. */
template <bool BLOCKS> struct sums {
    float w[MT][2], x[NT][2];

    DEVICE_METHOD void add(const args &, const place &, const char *codes, const char *rows, int64_t,
                           bool, int acc[MT][NT][4], int[MT][NT][4])
    {
        add_stage(codes, rows, acc);
    }
    template <class S>
    DEVICE_METHOD void add(const args &a, const place &p, const char *codes, const char *rows,
                           int64_t s, bool last, float acc[MT][NT][4], S part[MT][NT][4])
    {
        const bool whole = s % 2 || last;
        if (BLOCKS && whole) /* early: they come from memory */
            load_scales(a, p, a.in / TURBOK_CU_W8A8_GROUP, s / 2, w, x);
        add_stage(codes, rows, part);
        if (whole)
            promote<BLOCKS>(w, x, part, acc);
    }
};

template <bool BLOCKS, class S, class ACC>
DEVICE void block_sums(const args &a, const place &p, char *space, ACC acc[MT][NT][4])
{
    const int64_t spans = (a.in + 127) / 128, per = (spans + a.split - 1) / a.split;
    const int64_t begin = (int64_t)blockIdx.z * per * 2;
    const int64_t end = begin + per * 2 < p.wide ? begin + per * 2 : p.wide;
    const char *w = space + p.warp_tile * 1024 + lane_id() * 16;
    const char *x = space + W_BYTES + p.warp_row * 512 + lane_id() * 16;
    S part[MT][NT][4];
    sums<BLOCKS> own;
    feed f;
    clear(acc);
    clear(part);
    f.begin(a, p, space, end);
    for (int s = 0; s < STAGES - 1; s++)
        f.codes(s, begin + s);
    grid_wait();
    for (int s = 0; s < STAGES - 1; s++) {
        f.rows(s, begin + s);
        copy_commit();
    }
    int slot = 0;
    UNROLL_BY(1)
    for (int64_t s = begin; s < end; s++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        const int ahead = (slot + STAGES - 1) & (STAGES - 1);
        f.codes(ahead, s + STAGES - 1);
        f.rows(ahead, s + STAGES - 1);
        copy_commit();
        if (p.busy)
            own.add(a, p, w + slot * STAGE, x + slot * STAGE, s, s + 1 == end, acc, part);
        slot = (slot + 1) & (STAGES - 1);
    }
    copy_wait<0>();
}

DEVICE uint32_t bits_of_sum(int v)
{
    return (uint32_t)v;
}
DEVICE uint32_t bits_of_sum(float v)
{
    return __float_as_uint(v);
}
DEVICE void add_bits(int &to, uint32_t v)
{
    to += (int)v;
}
DEVICE void add_bits(float &to, uint32_t v)
{
    to += __uint_as_float(v);
}

/* Sums of all splits, in the order of splits, in the block that comes last. False: not this one. Warps without rows have
 * none. */
template <class ACC> DEVICE bool gather_splits(const args &a, const place &p, ACC acc[MT][NT][4])
{
    TURBOK_SHARED(uint32_t, last, 4);
    constexpr int64_t EACH = MT * NT * WARPS * 32;
    const int64_t block = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    uint4 *mine = (uint4 *)(void *)a.partial + block * a.split * EACH + threadIdx.x;
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++) {
        const ACC *v = acc[i][t];
        if (p.busy)
            store16(mine + blockIdx.z * EACH + (i * NT + t) * (WARPS * 32),
                make_uint4(bits_of_sum(v[0]), bits_of_sum(v[1]), bits_of_sum(v[2]),
                           bits_of_sum(v[3])));
    }
    clear(acc);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last[0] = atomicAdd(a.arrived + block, 1u) == (uint32_t)a.split - 1;
    __syncthreads();
    if (!last[0])
        return false;
    __threadfence();
    for (int z = 0; z < a.split && p.busy; z++)
        UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int t = 0; t < NT; t++) {
        const uint4 v = __ldcg(mine + z * EACH + (i * NT + t) * (WARPS * 32));
        add_bits(acc[i][t][0], v.x), add_bits(acc[i][t][1], v.y);
        add_bits(acc[i][t][2], v.z), add_bits(acc[i][t][3], v.w);
    }
    if (threadIdx.x == 0)
        a.arrived[block] = 0;
    return true;
}

/* Results of 16 bits: through shared memory, so that rows are written 16 bytes at a time. */
DEVICE void copy_results(const args &a, const place &p, const uint16_t *tile)
{
    enum { UNITS = TURBOK_CU_W8A8_OUTS / 8 };
    for (int n = (int)threadIdx.x; n < TURBOK_CU_W8A8_ROWS * UNITS; n += WARPS * 32) {
        const int64_t row = p.row_tile * 8 + n / UNITS, o = p.tile * 16 + n % UNITS * 8;
        const uint16_t *from = tile + n / UNITS * PITCH + n % UNITS * 8;
        if (row >= a.rows || o >= a.out_dim)
            continue;
        uint16_t *to = (uint16_t *)a.out + row * a.ld + o;
        if (o + 8 <= a.out_dim && (uintptr_t)to % 16 == 0) {
            store16(to, load16(from));
            continue;
        }
        for (int e = 0; e < 8 && o + e < a.out_dim; e++)
            to[e] = from[e];
    }
}

template <bool BLOCKS, class ACC>
DEVICE void put_results(const args &a, const place &p, char *space, const ACC acc[MT][NT][4])
{
    const int r = lane_id() >> 2, j = lane_id() & 3;
    float w[MT][2], x[NT][2];
    if (!BLOCKS)
        load_scales(a, p, 1, 0, w, x);
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int h = 0; h < 2; h++) {
        const int local = (p.warp_tile + i) * 16 + r + 8 * h;
        const int64_t o = p.tile * 16 + local;
        const float bias = a.m.bias && o < a.out_dim ? a.m.bias[o] : 0.0f;
        UNROLL
        for (int t = 0; t < NT; t++)
            UNROLL
        for (int c = 0; c < 2; c++) {
            const int row = (p.warp_row + t) * 8 + 2 * j + c;
            float v = (float)acc[i][t][2 * h + c];
            if (!BLOCKS)
                v = v * x[t][c] * w[i][h];
            v += bias;
            if (a.out_dtype)
                put_element(a.out_dtype, space, row * PITCH + local, v);
            else if (p.row_tile * 8 + row < a.rows && o < a.out_dim)
                ((float *)a.out)[(p.row_tile * 8 + row) * a.ld + o] = v;
        }
    }
    if (!a.out_dtype)
        return;
    __syncthreads();
    copy_results(a, p, (const uint16_t *)(const void *)space);
}

/* Grid: blocks of rows, blocks of outputs, splits. */
template <bool BLOCKS, class S, class ACC> DEVICE void product(const args &a)
{
    char *space = shared_dynamic();
    const place p = place_of(a);
    ACC acc[MT][NT][4];
    block_sums<BLOCKS, S>(a, p, space, acc);
    grid_release();
    if (a.split > 1 && !gather_splits(a, p, acc))
        return;
    __syncthreads(); /* results go where stages were */
    put_results<BLOCKS>(a, p, space, acc);
}
} // namespace w8a8

TURBOK_KERNEL(code_rows_f16, code_rows, 256, 4)
{
    w8a8::code_rows<f16>(a);
}
TURBOK_KERNEL(code_rows_bf16, code_rows, 256, 4)
{
    w8a8::code_rows<bf16>(a);
}
TURBOK_KERNEL(w8a8_s8, w8a8, 256, 2)
{
    w8a8::product<false, int, int>(a);
}
TURBOK_KERNEL(w8a8_s8_blocks, w8a8, 256, 1)
{
    w8a8::product<true, int, float>(a);
}
TURBOK_KERNEL(w8a8_e4m3, w8a8, 256, 1)
{
    w8a8::product<false, float, float>(a);
}
TURBOK_KERNEL(w8a8_e4m3_blocks, w8a8, 256, 1)
{
    w8a8::product<true, float, float>(a);
}
