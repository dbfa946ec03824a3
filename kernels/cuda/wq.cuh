/* kernels/cuda/wq.cuh: quantised matrices: how codes lie, how they become numbers, and the product with few
 * rows of any kind. wq_stream.cuh has that of the common kinds, wq_gemm.cuh the product with many rows,
 * wq_plain.cuh everything that need not be fast.
 *
 * A lane's 16 bytes of a chunk are whole fragments of mma.sync m16n8k16 with the weights as its rows, so a
 * code goes from device memory through registers into the tensor core. Lane l has outputs r = l/4 and r + 8
 * of the tile and in each step of 16 inputs the four k = at(s, q, 0..3), q = l%4. Which inputs make a step
 * is free, as long as the activations follow: with `lay` steps that share a scale a lane's inputs are
 * neighbours, so that it loads activations by 16 bytes.
 *
 *     at(s, q, j) = s/lay * 16 lay + q * 4 lay + s%lay * 4 + j
 *
 * 4 bits: 4 steps, word s. Fragment register i = (r or r+8) + 2 (j/2) has the nibbles i and i + 4, with a
 * table 2i and 2i + 1. 8 bits: 2 steps, word 2s for r and 2s + 1 for r + 8, byte j.
 *
 * code - zero is a whole number that bf16 and fp16 hold exactly; it meets the activations on the tensor core,
 * and the scale multiplies the fp32 sum of a group. So a product is as exact as its sum in fp32. Only tables
 * are rounded to the type of the activations. The order of every sum depends on the shape, the kernel and
 * split alone. */
#ifndef TURBOK_CUDA_WQ_CUH
#define TURBOK_CUDA_WQ_CUH

#include "cuda/kernels.h"
#include "cuda/prims.cuh"
#include "cuda/prims_q.cuh"

namespace wq
{
typedef struct turbok_cu_wq_args args;
typedef struct turbok_cu_wq_rows_args rows_args;
typedef turbok_cu_qmat qmat;

enum { WARPS = 8, TABLE_COPIES = 8, TABLE = 256 * TABLE_COPIES };

template <int BITS> struct format {
    enum { STEPS = BITS == 4 ? 4 : 2, K = 16 * STEPS };
};

/* Bits of a type: 2^m with m the bits of its mantissa, 1, and what turns e4m3 into it. */
template <class T> struct type;
template <> struct type<bf16> {
    static constexpr uint32_t magic = 0x4300, one = 0x3f80, e4m3_scale = 0x7b80;
    static constexpr int e4m3_shift = 4;
};
template <> struct type<f16> {
    static constexpr uint32_t magic = 0x6400, one = 0x3c00, e4m3_scale = 0x5c00;
    static constexpr int e4m3_shift = 1;
};

DEVICE int chunks_of(int64_t in, int k)
{
    return (int)((in + k - 1) / k);
}

DEVICE float scale_at(const void *scale, int dtype, int64_t i)
{
    if (dtype == 0)
        return ((const float *)scale)[i];
    uint16_t h = ((const uint16_t *)scale)[i];
    return dtype == 1 ? to_f(f16{h}) : to_f(bf16{h});
}

/* What belongs to a group, for a lane's two outputs. */
template <class T, int BITS> struct group {
    uint32_t less[2]; /* what to add to the magic numbers: two of T, or the bits of a float */
    float scale[2], min[2];

    DEVICE_OF void load(const args &a, const qmat &m, int64_t at, bool plain)
    {
        UNROLL
        for (int h = 0; h < 2; h++) {
            int64_t i = at + 8 * h;
            scale[h] = scale_at(m.scale, a.scale_dtype, i);
            min[h] = !plain && m.min ? m.min[i] : 0;
            less_of(h, m.zero ? m.zero[i] : (uint32_t)a.offset);
        }
    }
    /* Of what has no minima. */
    DEVICE_METHOD void load(const qmat &m, int scale_dtype, int offset, int64_t at)
    {
        UNROLL
        for (int h = 0; h < 2; h++) {
            int64_t i = at + 8 * h;
            scale[h] = scale_at(m.scale, scale_dtype, i);
            less_of(h, m.zero ? m.zero[i] : (uint32_t)offset);
        }
    }
    DEVICE_METHOD void less_of(int h, uint32_t zero)
    {
        if (BITS == 8 && type<T>::magic == 0x4300)
            less[h] = __float_as_uint(-(8388608.0f + (float)zero));
        else
            less[h] = ((type<T>::magic | 0x8000u | zero) & 0xffff) * 0x10001u;
    }
};

/* The fragment of step s (0..3 of 4 bits, 0..1 of 8) out of a lane's words. */
template <class T>
DEVICE void fragment4(int kind, uint32_t v, const group<T, 4> &g, const uint32_t *table,
                      uint32_t f[4])
{
    UNROLL
    for (int i = 0; i < 4; i++)
        if (kind == TURBOK_CU_Q_INT)
            f[i] = fma2<T>(((v >> (4 * i)) & 0x000f000fu) | type<T>::magic * 0x10001u,
                           type<T>::one * 0x10001u, g.less[i & 1]);
        else
            f[i] = table[((v >> (8 * i)) & 255) * TABLE_COPIES];
}

/* Two bytes of v, the first one `from`, as two whole numbers less a zero. */
template <class T> DEVICE uint32_t pair8(uint32_t v, int from, uint32_t less);
template <> DEVICE_OF uint32_t pair8<bf16>(uint32_t v, int from, uint32_t less)
{
    float z = __uint_as_float(less);
    float lo = __uint_as_float(__byte_perm(v, 0x4b000000u, from ? 0x7442 : 0x7440)) + z;
    float hi = __uint_as_float(__byte_perm(v, 0x4b000000u, from ? 0x7443 : 0x7441)) + z;
    return __byte_perm(__float_as_uint(lo), __float_as_uint(hi), 0x7632);
}
template <> DEVICE_OF uint32_t pair8<f16>(uint32_t v, int from, uint32_t less)
{
    return fma2<f16>(__byte_perm(v, 0x64646464u, from ? 0x4342 : 0x4140), 0x3c003c00u, less);
}

/* v[0]: output r, v[1]: output r + 8. */
template <class T>
DEVICE void fragment8(int kind, const uint32_t v[2], const group<T, 8> &g, const uint32_t *table,
                      uint32_t f[4])
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t w = v[i & 1];
        if (kind == TURBOK_CU_Q_INT) {
            f[i] = pair8<T>(w, i & 2, g.less[i & 1]);
        } else if (kind == TURBOK_CU_Q_E4M3) {
            uint32_t x = __byte_perm(w, 0, i & 2 ? 0x3424 : 0x1404);
            f[i] = fma2<T>((x & 0x80008000u) | ((x & 0x7f007f00u) >> type<T>::e4m3_shift),
                           type<T>::e4m3_scale * 0x10001u, 0x80008000u);
        } else {
            uint32_t lo = table[((w >> (8 * (i & 2))) & 255) * TABLE_COPIES];
            f[i] = lo | table[((w >> (8 * (i & 2) + 8)) & 255) * TABLE_COPIES] << 16;
        }
    }
}

DEVICE uint32_t word(uint4 v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <class T, int BITS, class G>
DEVICE void fragment(int kind, uint4 w, int s, const G &g, const uint32_t *table, uint32_t f[4])
{
    if constexpr (BITS == 4) {
        fragment4<T>(kind, word(w, s), g, table, f);
    } else {
        const uint32_t v[2] = {s ? w.z : w.x, s ? w.w : w.y};
        fragment8<T>(kind, v, g, table, f);
    }
}

/* table [TABLE]: of 4 bits the pairs of a byte's nibbles, of 8 single numbers, each TABLE_COPIES times so
 * that lanes seldom meet in a bank: a lane reads table + lane % TABLE_COPIES. */
template <class T, int BITS> DEVICE void fill_table(const float *from, uint32_t *table)
{
    for (int i = (int)threadIdx.x; i < TABLE; i += (int)blockDim.x) {
        int code = i / TABLE_COPIES;
        table[i] = BITS == 4 ? pack2<T>(from[code & 15], from[code >> 4]) : pack2<T>(from[code], 0);
    }
}

template <class T> DEVICE void mma_ones(float c[4], const uint32_t b[2])
{
    const uint32_t one = type<T>::one * 0x10001u, ones[4] = {one, one, one, one};
    mma(c, ones, b, T());
}

/* acc += scale * part - min * sum, on a fragment of sums. */
template <class G>
DEVICE void settle(const G &g, const float part[4], const float sum[4], bool min, float acc[4])
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        acc[i] = fmaf(g.scale[i >> 1], part[i], acc[i]);
        if (min)
            acc[i] = fmaf(-g.min[i >> 1], sum[i & 1], acc[i]);
    }
}

DEVICE void zero4(float v[4])
{
    v[0] = v[1] = v[2] = v[3] = 0;
}

template <class T> DEVICE void store(const args &a, int64_t row, int64_t o, float v)
{
    if (a.out_f32)
        ((float *)a.out)[row * a.ld + o] = v;
    else
        ((T *)a.out)[row * a.ld + o] = from_f<T>(v);
}

DEVICE float with_bias(const float *bias, int64_t o, float v)
{
    return bias ? v + bias[o] : v;
}

/* The matrix of a block's part i: the second one only in a gated product. */
template <bool GATED> DEVICE const qmat &matrix(const args &a, int i)
{
    return GATED && i ? a.m[1] : a.m[0];
}

/* ---- few rows, of what wq_stream.cuh does not take ------------------------------------------------- */

enum { UNIT = 4 }; /* chunks that a warp takes in a row; units go round the warps */

/* A lane's activations of a chunk: row lane/4, the k of at(). Beyond rows and `in` they are 0. */
template <int BITS> DEVICE void load_x(const args &a, int lay, int chunk, int lane, uint32_t b[][2])
{
    constexpr int STEPS = format<BITS>::STEPS;
    const int row = lane >> 2, q = lane & 3;
    const uint16_t *x = (const uint16_t *)a.x + row * a.in;
    const int64_t k0 = (int64_t)chunk * format<BITS>::K;
    const bool there = row < a.rows;
    if (lay == 1) {
        UNROLL
        for (int s = 0; s < STEPS; s++) {
            uint2 v = make_uint2(0, 0);
            if (there && k0 + s * 16 < a.in)
                v = load8(x + k0 + s * 16 + q * 4);
            b[s][0] = v.x, b[s][1] = v.y;
        }
        return;
    }
    UNROLL
    for (int h = 0; h < STEPS / 2; h++) {
        int64_t k = k0 + (lay == 4 ? q * 16 + h * 8 : h * 32 + q * 8);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (there && k < a.in)
            v = load16(x + k);
        b[2 * h][0] = v.x, b[2 * h][1] = v.y, b[2 * h + 1][0] = v.z, b[2 * h + 1][1] = v.w;
    }
}

/* One chunk of MT tiles: acc += its products. */
template <class T, int BITS, int MT, bool GATED>
DEVICE void gemv_chunk(const args &a, const uint32_t *table, const int64_t tile[MT], int chunk,
                       const uint4 w[MT], float acc[MT][4])
{
    constexpr int STEPS = format<BITS>::STEPS, K = format<BITS>::K;
    const int lane = lane_id(), groups = (int)(a.in / a.group);
    const int steps = a.steps < STEPS ? a.steps : STEPS;
    const bool min = a.m[0].min != 0;
    uint32_t b[STEPS][2], f[4];
    group<T, BITS> g[MT];
    float part[MT][4], sum[4];
    load_x<BITS>(a, steps, chunk, lane, b);
    UNROLL
    for (int s = 0; s < STEPS; s++) {
        if (s % steps == 0) {
            int at = (int)((unsigned)(chunk * K + s * 16) / (unsigned)a.group);
            at = at < groups ? at : groups - 1; /* beyond `in` activations are 0 */
            UNROLL
            for (int i = 0; i < MT; i++) {
                g[i].load(a, matrix<GATED>(a, i), (tile[i] * groups + at) * 16 + (lane >> 2),
                          false);
                zero4(part[i]);
            }
            zero4(sum);
        }
        UNROLL
        for (int i = 0; i < MT; i++) {
            fragment<T, BITS>(a.kind, w[i], s, g[i],
                              table + (GATED && i ? TABLE : 0) + lane % TABLE_COPIES, f);
            mma(part[i], f, b[s], T());
        }
        if (min)
            mma_ones<T>(sum, b[s]);
        if ((s + 1) % steps == 0) {
            UNROLL
            for (int i = 0; i < MT; i++)
                settle(g[i], part[i], sum, min, acc[i]);
        }
    }
}

template <class T, int BITS, int MT, bool GATED>
DEVICE void gemv_sums(const args &a, const uint32_t *table, const int64_t tile[MT],
                      float acc[MT][4])
{
    const int lane = lane_id(), warp = warp_id(), chunks = chunks_of(a.in, format<BITS>::K);
    const char *codes[MT];
    uint4 w[MT][UNIT];
    UNROLL
    for (int i = 0; i < MT; i++) {
        codes[i] = (const char *)matrix<GATED>(a, i).codes + (tile[i] * chunks * 32 + lane) * 16;
        zero4(acc[i]);
        UNROLL
        for (int c = 0; c < UNIT; c++)
            if (warp * UNIT + c < chunks)
                w[i][c] = load16_stream(codes[i] + (int64_t)(warp * UNIT + c) * 512);
    }
    grid_wait();
    for (int u = warp; u * UNIT < chunks; u += WARPS) {
        UNROLL
        for (int c = 0; c < UNIT; c++) {
            const int chunk = u * UNIT + c, next = chunk + WARPS * UNIT;
            if (chunk >= chunks)
                break;
            uint4 v[MT];
            UNROLL
            for (int i = 0; i < MT; i++) {
                v[i] = w[i][c];
                if (next < chunks)
                    w[i][c] = load16_stream(codes[i] + (int64_t)next * 512);
            }
            gemv_chunk<T, BITS, MT, GATED>(a, table, tile, chunk, v, acc);
        }
    }
}

/* At most 8 rows. A block is 8 warps and MT tiles, or one tile of each of two matrices; the warps divide
 * the inputs and their sums are added in the order of warps. */
template <class T, int BITS, int MT, bool GATED> DEVICE void gemv(const args &a)
{
    TURBOK_SHARED(float, red, WARPS *MT * 128);
    TURBOK_SHARED(uint32_t, table, (GATED ? 2 : 1) * TABLE);
    constexpr int EACH = (GATED ? 1 : MT) * 16; /* outputs of a block */
    const int64_t tiles = (a.out_dim + 15) / 16;
    const int lane = lane_id(), warp = warp_id();
    int64_t tile[MT];
    float acc[MT][4];
    UNROLL
    for (int i = 0; i < MT; i++) {
        int64_t t = GATED ? (int64_t)blockIdx.x : (int64_t)blockIdx.x * MT + i;
        tile[i] = t < tiles ? t : tiles - 1;
    }
    if (a.kind == TURBOK_CU_Q_TABLE) {
        fill_table<T, BITS>(a.m[0].table, table);
        if (GATED)
            fill_table<T, BITS>(a.m[1].table, table + (GATED ? TABLE : 0));
        __syncthreads();
    }
    gemv_sums<T, BITS, MT, GATED>(a, table, tile, acc);
    UNROLL
    for (int i = 0; i < MT; i++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        int col = (lane & 3) * 2 + (e & 1), o = i * 16 + (lane >> 2) + 8 * (e >> 1);
        red[(warp * 8 + col) * MT * 16 + o] = acc[i][e];
    }
    __syncthreads();
    grid_release();
    for (int t = (int)threadIdx.x; t < a.rows * EACH; t += WARPS * 32) {
        int col = t / EACH, o = t % EACH;
        float v = 0, up = 0;
        for (int k = 0; k < WARPS; k++)
            v += red[(k * 8 + col) * MT * 16 + o];
        for (int k = 0; GATED && k < WARPS; k++)
            up += red[(k * 8 + col) * MT * 16 + 16 + o];
        int64_t at = (int64_t)blockIdx.x * EACH + o;
        if (at >= a.out_dim)
            continue;
        v = with_bias(a.m[0].bias, at, v);
        if (GATED)
            v = activation(a.act, v) * with_bias(a.m[1].bias, at, up);
        store<T>(a, col, at, v);
    }
}
} // namespace wq

#endif
