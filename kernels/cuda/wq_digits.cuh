/* kernels/cuda/wq_digits.cuh: the product with one or two rows where codes of 4 bits are whole numbers and groups are
 * as wq_stream.cuh takes them: what a single user decodes with. Tiles, blocks and queues are those of wq_stream.cuh.
 *
 * Codes go into the tensor cores as 8-bit integers with exact 32-bit sums: a mask leaves those of the first eight
 * outputs of a tile, another those of the other eight, which stay where they are and count 16 times. So
 * there is next to nothing to do for a code, which is what bounds wq_stream.cuh. The activations of an entry
 * are whole numbers of 22 bits and a sign, relative to the largest of them, in three digits of 8 bits with
 * signs; a column of the B operand is a digit of a row: high, middle and low of the first row, then of the
 * second. Numbers of bf16 down to 2^-15 of the largest of an entry are kept exactly, of f16 down to 2^-12,
 * others to 2^-23 of it. What a column counts multiplies its fp32 sum once an entry. A zero is taken off with
 * the sum of a group's inputs, which stands in the column of the high digit. An entry with a number that is not
 * finite makes its row NaN.
 *
 * RMSNorm may be the beginning and h += the end, as in gemv.cu. */
#ifndef TURBOK_CUDA_WQ_DIGITS_CUH
#define TURBOK_CUDA_WQ_DIGITS_CUH

#include "cuda/prims_codes.cuh"
#include "cuda/wq_stream.cuh"

namespace wq
{
enum { DIGITS = 3, COLUMNS = 8 };
enum { ENTRY = entry_of<4>::K }; /* inputs */
enum : uint32_t { LOW_CODES = 0x0f0f0f0fu, HIGH_CODES = 0xf0f0f0f0u };

/* Byte `d` of each of four numbers, as digits with signs: the numbers have an offset of 0x808080. */
DEVICE void digits_of(const uint32_t n[4], uint32_t d[DIGITS])
{
    const uint32_t ab = __byte_perm(n[0], n[1], 0x5140u), cd = __byte_perm(n[2], n[3], 0x5140u);
    const uint32_t high_ab = __byte_perm(n[0], n[1], 0x0062u),
                   high_cd = __byte_perm(n[2], n[3], 0x0062u);
    d[0] = __byte_perm(high_ab, high_cd, 0x5410u) ^ 0x80808080u;
    d[1] = __byte_perm(ab, cd, 0x7632u) ^ 0x80808080u;
    d[2] = __byte_perm(ab, cd, 0x5410u) ^ 0x80808080u;
}

/* Inputs that a thread has on their way: the first comes behind the queues of all blocks, so the others must not
 * be asked for after it. */
enum { AHEAD = 4 };

template <class T> DEVICE uint4 inputs_at(const args &a, const T *from, int row, int u)
{
    return u * 8 < a.in ? load16(from + row * a.in + u * 8) : make_uint4(0, 0, 0, 0);
}

/* The largest, and the sum, of each half of a warp. */
DEVICE uint32_t half_max(uint32_t v)
{
    const uint32_t low = __reduce_max_sync(FULL, lane_id() < 16 ? v : 0);
    const uint32_t high = __reduce_max_sync(FULL, lane_id() < 16 ? 0 : v);
    return lane_id() < 16 ? low : high;
}
DEVICE int half_sum(int v)
{
    const int low = __reduce_add_sync(FULL, lane_id() < 16 ? v : 0);
    const int high = __reduce_add_sync(FULL, lane_id() < 16 ? 0 : v);
    return lane_id() < 16 ? low : high;
}

/* Eight inputs of a row, from 8 u on, as digits; the lanes of a warp have neighbours. n: eights in all entries. */
template <class T, int NG, form FORM>
DEVICE void put_digits(uint4 v, int u, int n, int row, int rows, int stride, float factor, char *x,
                       float *sums, float *units)
{
    constexpr int LANES = ENTRY / 8, UNITS = LANES / NG; /* lanes of an entry, of a group */
    constexpr bool SPLIT = NG == 4; /* a lane's inputs lie in two places: wq.cuh */
    static_assert(LANES == 16, "halves of a warp");
    float f[8];
    uint32_t most = 0;
    UNROLL
    for (int i = 0; i < 4; i++) {
        const float2 p = unpack2<T>(word(v, i));
        f[2 * i] = p.x, f[2 * i + 1] = p.y;
        most = __vmaxu2(most, word(v, i) & 0x7fff7fffu); /* as whole numbers */
    }
    const float2 largest = unpack2<T>(half_max(max(most & 0xffff, most >> 16)));
    most = __float_as_uint(largest.x);
    const uint32_t e = max(most >> 23, 24u); /* of the largest, as floats have it */
    const float up = __uint_as_float((275 - min(e, 254u)) << 23); /* largest: 2^21 and on */
    uint32_t w[8];
    int sum = 0;
    UNROLL
    for (int i = 0; i < 8; i++) { /* an integer in the low bits */
        w[i] = __float_as_uint(fmaf(f[i], up, 12582912.0f)) - 0x4b400000u;
        sum += (int)w[i];
        w[i] += 0x808080u;
    }
    if (NG == 1)
        sum = half_sum(sum);
    else
        UNROLL
    for (int i = 1; i < UNITS; i *= 2)
        sum += __shfl_xor_sync(FULL, sum, i);
    if (u >= n)
        return;
    /* the order of the nibbles of a word */
    const uint32_t p[4] = {w[0], w[2], w[1], w[3]}, q[4] = {w[4], w[6], w[5], w[7]};
    uint32_t lo[DIGITS], hi[DIGITS];
    digits_of(p, lo), digits_of(q, hi);
    const int at = SPLIT ? u / 8 * 64 + u % 4 * 16 + u % 8 / 4 * 8 : u * 8;
    UNROLL
    for (int d = 0; d < DIGITS; d++)
        store8(x + (row * DIGITS + d) * stride + at, make_uint2(lo[d], hi[d]));
    const float unit =
        most < 0x7f800000u ? __uint_as_float((e - 21) << 23) : __uint_as_float(0x7fc00000u);
    const int l = lane_id() % LANES, part = u / UNITS; /* l: a column, of those that are */
    const bool mine = l / DIGITS == row, none = !row && l / DIGITS >= rows;
    const float scale = l % DIGITS == 0 ? 65536.0f : l % DIGITS == 1 ? 256.0f : 1.0f;
    /* Columns of no row are 0. */
    if (l < COLUMNS && (mine || none))
        units[u / LANES * COLUMNS + l] = mine ? unit * scale : 0.0f;
    for (int c = u % UNITS; c < COLUMNS; c += UNITS)
        if (c / DIGITS == row || (!row && c / DIGITS >= rows))
            sums[part * COLUMNS + c] = c == row * DIGITS ? (float)sum * factor : 0.0f;
}

/* Of rows from [rows][in]: digits [rows * DIGITS][entries * ENTRY] in the order of the B operand, x_stride apart; sums [part][COLUMNS] of the
 * inputs of a group, units [entry][COLUMNS]: what a column counts. Two columns are a lane's. Slots of the queue from `asked` on are filled behind
 * the first inputs. */
template <class T, int NG, form FORM, class Q>
DEVICE void stage_digits(const args &a, const T *from, char *x, float *sums, float *units, Q &q,
                         int asked)
{
    enum { THREADS = CREW * 32 };
    const int n = a.stream.entries * (ENTRY / 8);
    const float factor = (FORM == FIXED ? -(float)a.offset : 1.0f) / 65536.0f;
    UNROLL_BY(1)
    for (int row = 0; row < a.rows; row++)
        UNROLL_BY(1)
        for (int first = 0; first < n; first += AHEAD * THREADS) {
            const int u = first + (int)threadIdx.x;
            uint4 v[AHEAD];
            UNROLL
            for (int i = 0; i < AHEAD; i++)
                v[i] = inputs_at(a, from, row, u + i * THREADS);
            UNROLL_BY(1)
            for (; asked < a.stream.depth; asked++)
                q.ask(asked);
            UNROLL_BY(1)
            for (int i = 0; i < AHEAD && first + i * THREADS + warp_id() * 32 < n; i++) {
                put_digits<T, NG, FORM>(v[0], u + i * THREADS, n, row, a.rows, a.stream.x_stride,
                                        factor, x, sums, units);
                UNROLL
                for (int k = 1; k < AHEAD; k++)
                    v[k - 1] = v[k];
            }
        }
}

template <class S, int NG> DEVICE void load_scales(const char *at, float scale[NG][2])
{
    UNROLL
    for (int n = 0; n < NG; n++)
        UNROLL
    for (int h = 0; h < 2; h++)
        scale[n][h] = to_f(((const S *)(const void *)at)[n * 16 + (lane_id() >> 2) + 8 * h]);
}

/* What belongs to the groups of an entry, for a lane's two outputs. */
template <int NG, form FORM> struct belongings_of_sums {
    float scale[NG][2], rest[NG][2]; /* rest: zeros or minima */

    DEVICE_METHOD void load(const args &a, const char *at)
    {
        const int r = lane_id() >> 2, dtype = a.scale_dtype;
        if (dtype == 2)
            load_scales<bf16, NG>(at, scale);
        else if (dtype == 1)
            load_scales<f16, NG>(at, scale);
        else
            load_scales<float, NG>(at, scale);
        at += NG * (dtype == 0 ? 64 : 32);
        UNROLL
        for (int n = 0; n < NG; n++)
            UNROLL
        for (int h = 0; h < 2; h++) {
            const int o = n * 16 + r + 8 * h;
            rest[n][h] = FORM == ZEROS    ? (float)((const uint8_t *)at)[o]
                         : FORM == MINIMA ? ((const float *)(const void *)at)[o]
                                          : 0.0f;
        }
    }
};

/* Adds the groups of an entry to acc: outputs r and r + 8, each with columns 2j and 2j + 1. */
template <int NG, form FORM>
DEVICE void add_entry(const args &a, const uint4 w[PAIR], const uint4 x[PAIR],
                      const belongings_of_sums<NG, FORM> &own, const float2 *sums,
                      float2 unit, float acc[4])
{
    constexpr int MMAS = ENTRY / 32 / NG; /* of a group */
    float e[4] = {0, 0, 0, 0};
    UNROLL
    for (int n = 0; n < NG; n++) {
        const float2 s = sums[n * (COLUMNS / 2)];
        int p[4] = {0, 0, 0, 0};
        UNROLL
        for (int m = n * MMAS; m < (n + 1) * MMAS; m++) {
            const uint32_t v0 = word(w[m / 2], m % 2 * 2), v1 = word(w[m / 2], m % 2 * 2 + 1);
            const uint32_t f[4] = {v0 & LOW_CODES, v0 & HIGH_CODES, v1 & LOW_CODES,
                                   v1 & HIGH_CODES};
            const uint32_t b[2] = {word(x[m / 2], m % 2 * 2), word(x[m / 2], m % 2 * 2 + 1)};
            mma_u8s8(p, f, b);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            const int h = i >> 1;
            const float sum = i & 1 ? s.y : s.x, part = h ? 0.0625f : 1.0f;
            float t = FORM == FIXED   ? sum
                      : FORM == ZEROS ? -own.rest[n][h] * sum
                                      : 0.0f;
            t = fmaf((float)p[i], part, t);
            e[i] = fmaf(own.scale[n][h], t, e[i]);
            if (FORM == MINIMA) {
                const float zero = (float)a.offset;
                e[i] = fmaf(-own.scale[n][h] * zero - own.rest[n][h], sum, e[i]);
            }
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++)
        acc[i] = fmaf(i & 1 ? unit.y : unit.x, e[i], acc[i]);
}

/* Adds the columns of each row: mine [rows][MT * 16]. */
template <int MT> DEVICE void add_columns(const args &a, const float acc[MT][4], float *mine)
{
    const int j = lane_id() & 3, r = lane_id() >> 2;
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int h = 0; h < 2; h++) {
        const float first = acc[i][2 * h], second = acc[i][2 * h + 1];
        /* Row 0: both of lane 0, the first of lane 1. Row 1: the second of lane 1, both of lane 2. */
        const float low = __shfl_xor_sync(FULL, first, 1), high = __shfl_xor_sync(FULL, second, 3);
        if (j == 0)
            mine[i * 16 + r + 8 * h] = first + (second + low);
        else if (j == 2 && a.rows == 2)
            mine[(MT + i) * 16 + r + 8 * h] = high + (first + second);
    }
}

/* Entries of a queue, known beforehand where every card that runs this has room for as many as are best. */
DEVICE int depth_of(const args &a)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    return TURBOK_CU_WQ_DEPTH;
#else
    return a.stream.depth;
#endif
}

/* Dynamic shared memory: queues [CREW][depth][MT][entry_bytes], digits, units, sums of groups, sums of a tile of
 * each warp for this tile and for the one before, rows after a norm. MT 2: a tile of each of two matrices. */
template <class T, int MT, int NG, form FORM> DEVICE void digits(const args &a)
{
    grid_release();
    char *space = shared_dynamic(), *x = space + a.stream.x_at;
    float *sums = (float *)(void *)(space + a.stream.sums_at);
    float *units = (float *)(void *)(space + a.stream.units_at);
    float *both = (float *)(void *)(space + a.stream.tile_at);
    const int lane = lane_id(), warp = warp_id(), j = lane & 3, g = lane >> 2;
    const int depth = depth_of(a);
    const int count = warp < a.stream.entries ? (a.stream.entries - warp - 1) / CREW + 1 : 0;
    int slot = 0, turn = 0;
    const T *rows = (const T *)a.x;
    norm_weights weights; /* asked for before the queue is filled, which they would wait for */
    stream_queue<4, MT, NG> q;
    if (a.norm)
        weights.load(a.norm, (int)a.in);
    /* The row of a norm is what most waits for, so the queue comes behind it; else most of the queue comes first. */
    if (a.norm) {
        grid_wait();
        weights.load_row(rows, (int)a.in);
    }
    const int asked = a.norm ? depth : depth - 1;
    q.begin(a, space, count);
    UNROLL_BY(1)
    for (int i = 0; i < asked; i++)
        q.ask(i);
    if (a.norm) {
        T *normed = (T *)(void *)(space + a.stream.rows_at);
        stage_rows<T, true>(rows, a.rows, (int)a.in, a.norm, weights, a.eps, both, 1, normed);
        rows = normed;
    } else {
        grid_wait();
    }
    stage_digits<T, NG, FORM>(a, rows, x, sums, units, q, asked);
    __syncthreads();
    /* Lanes of columns that are not there take others: their sums are not stored. */
    x += (g < a.rows * DIGITS ? g : g & 1) * a.stream.x_stride + warp * ENTRY + j * 16;
    const float2 *unit = (const float2 *)(const void *)units + warp * (COLUMNS / 2) + j;
    const float2 *sum = (const float2 *)(const void *)sums + warp * (NG * COLUMNS / 2) + j;
    for (int tile = (int)blockIdx.x; tile < q.tiles; tile += (int)gridDim.x, turn ^= 1) {
        const int64_t o = tile * (int64_t)16 + lane % 16;
        float acc[MT][4];
        T before = from_f<T>(0);
        if (MT == 1 && a.h && (int)threadIdx.x < 16 * a.rows && o < a.out_dim)
            before = ((const T *)a.h)[lane / 16 * a.ld + o];
        UNROLL
        for (int i = 0; i < MT; i++)
            zero4(acc[i]);
        UNROLL_BY(1)
        for (int e = 0; e < count; e++) {
            const char *at = q.room + slot * (MT * a.stream.entry_bytes);
            belongings_of_sums<NG, FORM> own[MT];
            uint4 w[MT][PAIR], b[PAIR];
            if (depth == TURBOK_CU_WQ_DEPTH)
                copy_wait<TURBOK_CU_WQ_DEPTH - 1>();
            else
                copy_wait<TURBOK_CU_WQ_LEAST - 1>();
            __syncwarp();
            UNROLL
            for (int i = 0; i < MT; i++, at += a.stream.entry_bytes) {
                UNROLL
                for (int c = 0; c < PAIR; c++)
                    w[i][c] = load16(at + c * 512 + lane * 16);
                own[i].load(a, at + entry_of<4>::CODES);
            }
            __syncwarp();
            q.ask(slot);
            UNROLL
            for (int c = 0; c < PAIR; c++)
                b[c] = load16(x + e * (CREW * ENTRY) + c * 64);
            UNROLL
            for (int i = 0; i < MT; i++)
                add_entry<NG, FORM>(a, w[i], b, own[i], sum + e * (CREW * NG * COLUMNS / 2),
                                          unit[e * (CREW * COLUMNS / 2)], acc[i]);
            slot = slot + 1 < depth ? slot + 1 : 0;
        }
        add_columns<MT>(a, acc, both + (turn * CREW + warp) * a.rows * (MT * 16));
        __syncthreads();
        stream_store<T, MT>(a, tile, both + turn * CREW * a.rows * (MT * 16), &before);
    }
}

DEVICE int dtype_of(f16)
{
    return 1;
}
DEVICE int dtype_of(bf16)
{
    return 2;
}
/* One row, scales S, results T without a bias: branches and loops that this leaves out count where 16 warps of a
 * multiprocessor share few cycles for an entry. */
template <class T, class S, int MT, int NG, form FORM> DEVICE void single(const args &from)
{
    args a = from;
    a.rows = 1;
    a.scale_dtype = dtype_of(S());
    a.out_f32 = 0;
    a.m[0].bias = a.m[1].bias = nullptr;
    digits<T, MT, NG, FORM>(a);
}
} // namespace wq

#endif
