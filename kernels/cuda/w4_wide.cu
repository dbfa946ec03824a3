/* kernels/cuda/w4_wide.cu: instances of wq_wide.cuh for 4 bits, and what puts rows in their order. Compiled for sm_90a; what
 * else the file is compiled for only has the names, and the host does not launch them there. */
#include "cuda/wq_wide.cuh"

WQ_WIDE_OF(w4, 4, f16)
WQ_WIDE_OF(w4, 4, bf16)

/* A thread makes a piece of 16 bytes. Grid: pieces of a row, rows. */
template <class T> DEVICE void lay_rows(const struct turbok_cu_lay_rows_args &a)
{
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, row = blockIdx.y;
    const int piece = static_cast<int>(unit % 8), s = piece / 2;
    const int64_t k = unit / 8 * 64 + s / a.lay * 16 * a.lay + s % a.lay * 4 + piece % 2 * 2;
    const uint16_t *x = static_cast<const uint16_t *>(a.x) + row * a.in;
    const bool there = unit < a.in / 8;
    uint32_t v[4] = {0, 0, 0, 0};
    grid_release();
    grid_wait();
    UNROLL
    for (int q = 0; q < 4; q++) {
        const int64_t at = k + q * 4 * a.lay;
        if (there && row < a.rows)
            v[q] = a.perm ? x[a.perm[at]] | static_cast<uint32_t>(x[a.perm[at + 1]]) << 16
                          : load4(x + at);
    }
    const int64_t first = row / a.tile * a.tile, here = min(static_cast<int64_t>(a.tile), a.ld - first);
    char *to = static_cast<char *>(a.out) + first * a.in * 2 +
               (unit / 8 * here + row - first) * 128 + (piece ^ static_cast<int>(row % 8)) * 16;
    if (there)
        store16(to, make_uint4(v[0], v[1], v[2], v[3]));
    if (!a.sums)
        return;
    float sum = 0;
    UNROLL
    for (int q = 0; q < 4; q++) {
        const float2 two = unpack2<T>(v[q]);
        sum += two.x + two.y;
    }
    sum += __shfl_xor_sync(FULL, sum, 1);
    if (a.per == 32)
        sum += __shfl_xor_sync(FULL, sum, 2);
    const int each = a.per / 8;
    if (there && piece % each == 0)
        a.sums[first * (a.in / a.per) + unit / each * here + row - first] = sum;
}
/* A multiprocessor of 8.9 has 1,536 threads. */
TURBOK_KERNEL(lay_rows_f16, lay_rows, 256, 6)
{
    lay_rows<f16>(a);
}
TURBOK_KERNEL(lay_rows_bf16, lay_rows, 256, 6)
{
    lay_rows<bf16>(a);
}
