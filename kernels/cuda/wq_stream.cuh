/* kernels/cuda/wq_stream.cuh: the product with 1 to 8 rows where groups are a power of two from 32 on, or a row:
 * what a model in 4 or 8 bits decodes with. As in gemv.cu there is one block a multiprocessor, its
 * warps share the inputs of a tile, and a queue of asynchronous copies runs on across tiles and is filled
 * before the wait for the activations. An entry of a warp's queue is two chunks of codes and what belongs
 * to their groups: it is read once, and nothing of it is fetched while it is multiplied.
 *
 * By count the instructions of a code bound such a kernel, so there are few: a nibble is moved into the upper bits of
 * a mantissa, which makes it 16 + code with one shift and one bitwise operation for two. The sum of a group begins with
 * -(16 + zero) times the sum of its inputs, which a block makes once while it brings the activations into
 * shared memory. 8-bit codes have their zero taken off as in wq.cuh. The order of every sum depends on the
 * shape alone. Tables are looked up in shared memory, e4m3 is shifted, as in wq.cuh. */
#ifndef TURBOK_CUDA_WQ_STREAM_CUH
#define TURBOK_CUDA_WQ_STREAM_CUH

#include "cuda/norm_row.cuh"
#include "cuda/wq.cuh"

namespace wq
{
enum { CREW = TURBOK_CU_WQ_CREW, PAIR = 2 }; /* warps of a block, chunks of an entry */
/* Codes are numbers with a zero for all, with zeros of groups, with minima, or of the other kinds. */
enum form { FIXED, ZEROS, MINIMA, TABLED, E4M3 };

template <int BITS> struct entry_of {
    enum { K = PAIR * format<BITS>::K, STEPS = PAIR * format<BITS>::STEPS, CODES = PAIR * 512 };
};

/* 16 + nibble i and 16 + nibble i + 4 of a word, the first of them in the low half. */
template <class T, int I> DEVICE uint32_t nibbles(uint32_t v)
{
    constexpr int up = (type<T>::magic == 0x4300 ? 3 : 6) - 4 * I;
    constexpr uint32_t mask = type<T>::magic == 0x4300 ? 0x00780078u : 0x03c003c0u;
    constexpr uint32_t sixteen = type<T>::magic == 0x4300 ? 0x41804180u : 0x4c004c00u;
    return mask_or(up > 0 ? v << (up > 0 ? up : 0) : v >> (up < 0 ? -up : 0), mask, sixteen);
}

/* One lane's view of a warp's queue: it copies its own codes, and with the others what belongs to groups: of NG
 * groups in a row their scales, then their zeros or minima. */
template <int BITS, int MT, int NG> struct stream_queue {
    enum { K = entry_of<BITS>::K, CODES = entry_of<BITS>::CODES };
    const args *a;
    const char *next[MT], *extra[MT]; /* codes it asks for next; its array at the tile's first group */
    char *room; /* [depth][MT][entry_bytes], the warp's */
    copy_room mine; /* the lane's, in it */
    uint64_t policy;
    int tile, tiles, entry, chunks, inputs;
    int width, ahead; /* bytes of a group in this lane's array (0: it has none), inputs from the start of an
                       * entry to this lane's group */

    DEVICE_METHOD void begin(const args &from, char *space, bool any)
    {
        const int size = from.scale_dtype == 0 ? 64 : 32, at = lane_id() * 16;
        const int rest = at - NG * size, share = K / NG;
        a = &from;
        policy = once_policy();
        room = space + warp_id() * a->stream.depth * (MT * a->stream.entry_bytes);
        mine = copy_room_of(room + at, a->stream.entry_bytes);
        tiles = (int)((a->out_dim + 15) / 16);
        tile = any ? (int)blockIdx.x : tiles;
        chunks = chunks_of(a->in, format<BITS>::K);
        inputs = (int)a->in;
        width = rest < 0 ? size : a->m[0].zero ? 16 : a->m[0].min ? 64 : 0;
        if (width && rest >= NG * width)
            width = 0;
        ahead = !width ? 0 : rest < 0 ? at / size * share : rest / width * share;
        entry = warp_id();
        UNROLL
        for (int i = 0; i < MT; i++) {
            const qmat &m = i ? a->m[1] : a->m[0];
            next[i] = (const char *)m.codes + tile * tile_bytes() + entry * CODES + lane_id() * 16;
            extra[i] = rest < 0 ? (const char *)m.scale + at
                       : !width ? nullptr
                       : m.zero ? (const char *)m.zero + rest
                                : (const char *)m.min + rest;
            extra[i] += tile * group_bytes();
        }
    }
    DEVICE_METHOD int64_t tile_bytes() const
    {
        return chunks * 512;
    }
    DEVICE_METHOD int64_t group_bytes() const
    {
        return a->stream.groups * width;
    }
    DEVICE_METHOD void next_tile()
    {
        const int64_t n = (int)gridDim.x, back = (entry - warp_id()) / CREW * (CREW * CODES);
        tile += (int)gridDim.x;
        entry = warp_id();
        UNROLL
        for (int i = 0; i < MT; i++) {
            next[i] += n * tile_bytes() - back;
            extra[i] += n * group_bytes();
        }
    }
    DEVICE_METHOD void ask(int slot)
    {
        if (tile < tiles) {
            const int k = entry * K;
            const uint32_t group = (uint32_t)((k >> a->stream.shift) * width);
            UNROLL
            for (int i = 0; i < MT; i++) {
                const int to = slot * MT + i;
                copy16_async_once(mine, to, 0, next[i], 16, policy);
                copy16_async_once(mine, to, 512, next[i] + 512, entry * PAIR + 1 < chunks ? 16 : 0,
                                  policy);
                if (width)
                    copy16_async_once(mine, to, CODES, extra[i] + group,
                                      k + ahead < inputs ? 16 : 0, policy);
                next[i] += CREW * CODES;
            }
            entry += CREW;
            if (entry >= a->stream.entries)
                next_tile();
        }
        copy_commit();
    }
};

/* Until the oldest entry is there. Depths are 3, 4, 6 and 8. */
DEVICE void wait_oldest(int depth)
{
    if (depth == 8)
        copy_wait<7>();
    else if (depth == 6)
        copy_wait<5>();
    else if (depth == 4)
        copy_wait<3>();
    else
        copy_wait<2>();
}

/* Activations [rows][entries * K], zeros beyond `in`, and for each part of a group that an entry has the sums
 * of its inputs as sums of mma.sync take them: [part][4] of columns 2j, 2j+1, 2j, 2j+1. */
template <class T, int BITS, int NG, form FORM>
DEVICE void stage_inputs(const args &a, char *x, float *sums)
{
    constexpr int UNITS = entry_of<BITS>::K / NG / 8; /* of 16 bytes, in a part */
    const int units = a.stream.entries * (entry_of<BITS>::K / 8);
    const float factor = FORM != FIXED ? 1.0f : -(16.0f + (float)a.offset);
    for (int row = 0; row < a.rows; row++)
        for (int first = warp_id() * 32; first < units; first += CREW * 32) {
            const int u = first + lane_id();
            uint4 v = make_uint4(0, 0, 0, 0);
            if (u * 8 < a.in)
                v = load16((const uint16_t *)a.x + row * a.in + u * 8);
            if (u < units)
                store16(x + row * a.stream.x_stride + u * 16, v);
            if (FORM > MINIMA || (BITS == 8 && FORM != MINIMA))
                continue;
            const float2 f0 = unpack2<T>(v.x), f1 = unpack2<T>(v.y), f2 = unpack2<T>(v.z),
                         f3 = unpack2<T>(v.w);
            float s = ((f0.x + f0.y) + (f1.x + f1.y)) + ((f2.x + f2.y) + (f3.x + f3.y));
            UNROLL
            for (int i = 1; i < UNITS; i *= 2)
                s += __shfl_xor_sync(FULL, s, i);
            if (u < units && u % UNITS == 0) {
                float *to = sums + u / UNITS * 16 + row / 2 * 4 + row % 2;
                to[0] = to[2] = s * factor;
            }
        }
}

/* What belongs to the groups of an entry, for a lane's two outputs. */
template <class T, int BITS, int NG, form FORM> struct belongings {
    float scale[NG][2], base[NG][2], min[NG][2]; /* base: what the sum of inputs is multiplied by */
    group<T, BITS> g[NG]; /* of 8 bits */

    DEVICE_METHOD void load(const args &a, const char *at)
    {
        const int r = lane_id() >> 2, dtype = a.scale_dtype;
        if (dtype == 2)
            scales<bf16>(at);
        else if (dtype == 1)
            scales<f16>(at);
        else
            scales<float>(at);
        const char *rest = at + NG * (dtype == 0 ? 64 : 32);
        UNROLL
        for (int n = 0; n < NG; n++)
            UNROLL
        for (int h = 0; h < 2; h++) {
            const int o = n * 16 + r + 8 * h;
            const uint32_t z =
                FORM == ZEROS ? ((const uint8_t *)rest)[o] : (uint32_t)a.offset;
            min[n][h] = FORM == MINIMA ? ((const float *)(const void *)rest)[o] : 0;
            base[n][h] = -(16.0f + (float)z);
            g[n].less_of(h, z);
        }
    }
    template <class S> DEVICE_METHOD void scales(const char *at)
    {
        UNROLL
        for (int n = 0; n < NG; n++)
            UNROLL
        for (int h = 0; h < 2; h++)
            scale[n][h] = to_f(((const S *)(const void *)at)[n * 16 + (lane_id() >> 2) + 8 * h]);
    }
};

template <class T, int BITS, int MT, int NG, form FORM>
DEVICE void stream_entry(const args &a, stream_queue<BITS, MT, NG> &q, int slot, const char *x,
                         const float4 *sums, const uint32_t *table, float acc[MT][4])
{
    constexpr int STEPS = format<BITS>::STEPS, PER = entry_of<BITS>::STEPS / NG;
    constexpr int LAY = BITS == 8 || NG == 4 ? 2 : 4;
    constexpr bool SHIFTED = BITS == 4 && FORM <= MINIMA, min = FORM == MINIMA;
    constexpr int kind = FORM == TABLED ? TURBOK_CU_Q_TABLE
                         : FORM == E4M3 ? TURBOK_CU_Q_E4M3
                                        : TURBOK_CU_Q_INT;
    const char *at = q.room + slot * (MT * a.stream.entry_bytes);
    belongings<T, BITS, NG, FORM> own[MT];
    uint4 w[MT][PAIR];
    float part[MT][4];
    wait_oldest(a.stream.depth);
    __syncwarp();
    UNROLL
    for (int i = 0; i < MT; i++, at += a.stream.entry_bytes) {
        UNROLL
        for (int c = 0; c < PAIR; c++)
            w[i][c] = load16(at + c * 512 + lane_id() * 16);
        own[i].load(a, at + entry_of<BITS>::CODES);
    }
    __syncwarp();
    q.ask(slot);
    UNROLL
    for (int c = 0; c < PAIR; c++) {
        uint32_t b[STEPS][2];
        UNROLL
        for (int h = 0; h < STEPS / 2; h++) {
            const uint4 v = load16(x + c * (STEPS * 32) + h * (LAY == 4 ? 16 : 64));
            b[2 * h][0] = v.x, b[2 * h][1] = v.y, b[2 * h + 1][0] = v.z, b[2 * h + 1][1] = v.w;
        }
        UNROLL
        for (int s = 0; s < STEPS; s++) {
            const int step = c * STEPS + s, n = step / PER;
            float4 sum = make_float4(0, 0, 0, 0);
            if ((SHIFTED && step % PER == 0) || (min && step % PER == PER - 1))
                sum = sums[n * 4];
            UNROLL
            for (int i = 0; i < MT; i++) {
                uint32_t f[4];
                float *p = part[i];
                const belongings<T, BITS, NG, FORM> &o = own[i];
                if (step % PER == 0) {
                    zero4(p);
                    if (SHIFTED && FORM == FIXED)
                        p[0] = sum.x, p[1] = sum.y, p[2] = sum.z, p[3] = sum.w;
                    else if (SHIFTED)
                        p[0] = sum.x * o.base[n][0], p[1] = sum.y * o.base[n][0],
                        p[2] = sum.z * o.base[n][1], p[3] = sum.w * o.base[n][1];
                }
                if constexpr (SHIFTED) {
                    const uint32_t v = word(w[i][c], s);
                    f[0] = nibbles<T, 0>(v), f[1] = nibbles<T, 1>(v);
                    f[2] = nibbles<T, 2>(v), f[3] = nibbles<T, 3>(v);
                } else {
                    fragment<T, BITS>(kind, w[i][c], s, o.g[n], table + i * TABLE, f);
                }
                mma(p, f, b[s], T());
                if (step % PER != PER - 1)
                    continue;
                UNROLL
                for (int e = 0; e < 4; e++)
                    acc[i][e] = fmaf(o.scale[n][e >> 1], p[e], acc[i][e]);
                if (!min)
                    continue;
                acc[i][0] = fmaf(-o.min[n][0], sum.x, acc[i][0]);
                acc[i][1] = fmaf(-o.min[n][0], sum.y, acc[i][1]);
                acc[i][2] = fmaf(-o.min[n][1], sum.x, acc[i][2]);
                acc[i][3] = fmaf(-o.min[n][1], sum.y, acc[i][3]);
            }
        }
    }
}

/* Adds the warps' sums [warp][row][MT * 16] of a tile and stores its results. before: this thread's number of h. */
template <class T, int MT>
DEVICE void stream_store(const args &a, int tile, const float *sums, const T *before = nullptr)
{
    for (int t = (int)threadIdx.x; t < a.rows * 16; t += CREW * 32) {
        const int row = t / 16;
        const int64_t o = tile * (int64_t)16 + t % 16;
        const float *from = sums + row * MT * 16 + t % 16;
        float v = 0, up = 0;
        UNROLL
        for (int k = 0; k < CREW; k++) {
            v += from[k * a.rows * (MT * 16)];
            if (MT == 2)
                up += from[k * a.rows * (MT * 16) + 16];
        }
        if (o >= a.out_dim)
            continue;
        v = with_bias(a.m[0].bias, o, v);
        if (MT == 2)
            v = activation(a.act, v) * with_bias(a.m[1].bias, o, up);
        store<T>(a, row, o, v);
        if (MT == 1 && before && a.h)
            add_to((T *)a.h + row * a.ld + o, *before, v);
    }
}

/* Dynamic shared memory: queues [CREW][depth][MT][entry_bytes], activations, their sums or tables, sums of a
 * tile of each warp for this tile and for the one before. MT 2: a tile of each of two matrices. */
template <class T, int BITS, int MT, int NG, form FORM> DEVICE void stream(const args &a)
{
    grid_release();
    constexpr int K = entry_of<BITS>::K;
    char *space = shared_dynamic(), *x = space + a.stream.x_at;
    float *sums = (float *)(void *)(space + a.stream.sums_at);
    float *both = (float *)(void *)(space + a.stream.tile_at);
    uint32_t *table = (uint32_t *)(void *)(space + a.stream.sums_at);
    const int lane = lane_id(), warp = warp_id(), j = lane & 3, r = lane >> 2;
    const int count = warp < a.stream.entries ? (a.stream.entries - warp - 1) / CREW + 1 : 0;
    int slot = 0, turn = 0;
    stream_queue<BITS, MT, NG> q;
    q.begin(a, space, count);
    UNROLL_BY(1)
    for (int i = 0; i < a.stream.depth; i++)
        q.ask(i);
    if (FORM == TABLED)
        for (int i = 0; i < MT; i++)
            fill_table<T, BITS>(i ? a.m[1].table : a.m[0].table, table + i * TABLE);
    grid_wait();
    stage_inputs<T, BITS, NG, FORM>(a, x, sums);
    __syncthreads();
    /* Lanes of rows that are not there take those of the first: their sums are not stored. */
    x += (r < a.rows ? r : 0) * a.stream.x_stride + warp * K * 2;
    x += j * (BITS == 8 || NG == 4 ? 16 : 32);
    for (int tile = (int)blockIdx.x; tile < q.tiles; tile += (int)gridDim.x, turn ^= 1) {
        float acc[MT][4], *mine = both + (turn * CREW + warp) * a.rows * (MT * 16);
        UNROLL
        for (int i = 0; i < MT; i++)
            zero4(acc[i]);
        for (int e = 0; e < count; e++) {
            const int part = (e * CREW + warp) * NG;
            stream_entry<T, BITS, MT, NG, FORM>(a, q, slot, x + e * (CREW * K * 2),
                                               (const float4 *)(const void *)sums + part * 4 + j,
                                               table + lane % TABLE_COPIES, acc);
            slot = slot + 1 < a.stream.depth ? slot + 1 : 0;
        }
        UNROLL
        for (int i = 0; i < MT; i++)
            UNROLL
        for (int e = 0; e < 4; e++)
            if (j * 2 + (e & 1) < a.rows)
                mine[(j * 2 + (e & 1)) * (MT * 16) + i * 16 + r + 8 * (e >> 1)] = acc[i][e];
        __syncthreads();
        stream_store<T, MT>(a, tile, both + turn * CREW * a.rows * (MT * 16));
    }
}
} // namespace wq

#endif
