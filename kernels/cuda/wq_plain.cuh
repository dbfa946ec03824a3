/* kernels/cuda/wq_plain.cuh: quantised matrices one number after the other: fp32 activations, rows as
 * numbers, permuted inputs. */
#ifndef TURBOK_CUDA_WQ_PLAIN_CUH
#define TURBOK_CUDA_WQ_PLAIN_CUH

#include "cuda/wq.cuh"

namespace wq
{
/* Code of output r + 8h of a tile and input at(s, q, j), from a lane's words. */
template <int BITS> DEVICE uint32_t code_at(int kind, uint4 w, int s, int h, int j)
{
    if (BITS == 8)
        return (word(w, 2 * s + h) >> (8 * j)) & 255;
    int i = h + (j & 2), nibble = kind == TURBOK_CU_Q_TABLE ? 2 * i + (j & 1) : i + 4 * (j & 1);
    return (word(w, s) >> (4 * nibble)) & 15;
}

/* A weight as turbok.h defines it, each operation rounded once. i: place in the arrays of groups. */
DEVICE float number(const qmat &m, int kind, int scale_dtype, int offset, int64_t i, uint32_t code)
{
    float s = scale_at(m.scale, scale_dtype, i);
    if (kind != TURBOK_CU_Q_INT)
        return __fmul_rn(s, m.table[code]);
    float v = __fmul_rn(s, (float)((int)code - (m.zero ? (int)m.zero[i] : offset)));
    return m.min ? __fadd_rn(v, -m.min[i]) : v;
}

DEVICE int at(int lay, int s, int q, int j)
{
    return s / lay * 16 * lay + q * 4 * lay + s % lay * 4 + j;
}

enum { PLAIN_ROWS = 4 };

template <int BITS>
DEVICE void plain_sums(const args &a, const qmat &m, int64_t tile, int64_t row0,
                       float acc[2][PLAIN_ROWS])
{
    constexpr int STEPS = format<BITS>::STEPS, K = format<BITS>::K;
    const int lane = lane_id(), q = lane & 3, r = lane >> 2;
    const int chunks = chunks_of(a.in, K), groups = (int)(a.in / a.group);
    const int lay = a.steps < STEPS ? a.steps : STEPS;
    const float *x = (const float *)a.x;
    const char *codes = (const char *)m.codes + (tile * chunks * 32 + lane) * 16;
    zero4(acc[0]);
    zero4(acc[1]);
    for (int c = 0; c < chunks; c++) {
        const uint4 w = load16(codes + (int64_t)c * 512);
        for (int s = 0; s < STEPS; s++)
            for (int j = 0; j < 4; j++) {
                const int64_t k = (int64_t)c * K + at(lay, s, q, j);
                if (k >= a.in)
                    continue;
                UNROLL
                for (int h = 0; h < 2; h++) {
                    float n = number(m, a.kind, a.scale_dtype, a.offset,
                                     (tile * groups + k / a.group) * 16 + r + 8 * h,
                                     code_at<BITS>(a.kind, w, s, h, j));
                    UNROLL
                    for (int t = 0; t < PLAIN_ROWS; t++)
                        if (row0 + t < a.rows)
                            acc[h][t] = fmaf(n, x[(row0 + t) * a.in + k], acc[h][t]);
                }
            }
    }
    UNROLL
    for (int h = 0; h < 2; h++)
        UNROLL
    for (int t = 0; t < PLAIN_ROWS; t++) {
        acc[h][t] += __shfl_xor_sync(FULL, acc[h][t], 1);
        acc[h][t] += __shfl_xor_sync(FULL, acc[h][t], 2);
    }
}

/* fp32 activations, any number of rows, gated with a second matrix: a warp has a tile and four rows. Not
 * fast: it is what fp32 mode runs. Grid: tiles / WARPS, rows / PLAIN_ROWS. */
template <int BITS> DEVICE void plain(const args &a)
{
    const int lane = lane_id();
    const int64_t tiles = (a.out_dim + 15) / 16, tile = (int64_t)blockIdx.x * WARPS + warp_id();
    const int64_t row0 = (int64_t)blockIdx.y * PLAIN_ROWS;
    float acc[2][PLAIN_ROWS], up[2][PLAIN_ROWS];
    grid_wait();
    if (tile >= tiles)
        return;
    plain_sums<BITS>(a, a.m[0], tile, row0, acc);
    if (a.m[1].codes)
        plain_sums<BITS>(a, a.m[1], tile, row0, up);
    UNROLL
    for (int h = 0; h < 2; h++) {
        const int64_t o = tile * 16 + (lane >> 2) + 8 * h;
        UNROLL
        for (int t = 0; t < PLAIN_ROWS; t++) {
            if ((lane & 3) != t || row0 + t >= a.rows || o >= a.out_dim)
                continue;
            float v = with_bias(a.m[0].bias, o, acc[h][t]);
            if (a.m[1].codes)
                v = activation(a.act, v) * with_bias(a.m[1].bias, o, up[h][t]);
            ((float *)a.out)[(row0 + t) * a.ld + o] = v;
        }
    }
}

/* A thread makes the numbers of one row, one chunk and one q. */
template <class T, int BITS> DEVICE void rows(const rows_args &a)
{
    constexpr int STEPS = format<BITS>::STEPS, K = format<BITS>::K;
    const int chunks = chunks_of(a.in, K), groups = (int)(a.in / a.group);
    const int lay = a.steps < STEPS ? a.steps : STEPS;
    const int64_t all = a.n * chunks * 4;
    grid_wait();
    for (int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; t < all;
         t += (int64_t)gridDim.x * blockDim.x) {
        const int q = (int)(t & 3), c = (int)((t >> 2) % chunks);
        const int64_t i = (t >> 2) / chunks, row = a.rows ? a.rows[i] : a.first + i;
        const bool there = row >= 0 && row < a.out_dim;
        const int64_t tile = there ? row / 16 : 0;
        const int r = there ? (int)(row % 16) : 0;
        const uint4 w =
            load16((const char *)a.m.codes + ((tile * chunks + c) * 32 + (r & 7) * 4 + q) * 16);
        for (int s = 0; s < STEPS; s++)
            for (int j = 0; j < 4; j++) {
                const int64_t k = (int64_t)c * K + at(lay, s, q, j);
                if (k >= a.in)
                    continue;
                float n = number(a.m, a.kind, a.scale_dtype, a.offset,
                                 (tile * groups + k / a.group) * 16 + r,
                                 code_at<BITS>(a.kind, w, s, r >> 3, j));
                ((T *)a.out)[i * a.in + (a.perm ? a.perm[k] : k)] = from_f<T>(there ? n : 0);
            }
    }
}
} // namespace wq

#endif
