/* kernels/cuda/tower.cu: attention of pictures on tensor cores: every token of a picture sees all of them. The
 * arithmetic of prefill.cuh, with keys and values out of the rows of the projection instead of a cache; a block has
 * 64 tokens of one picture and head, so that a tower of some hundred tokens fills the device. Heads of up to 64 and
 * 128 in whole 16-byte pieces; attend.cu has the others. A row's bits depend on its picture only. */
#include "cuda/prefill.cuh"

#define TOWER_THREADS (32 * TURBOK_CU_TOWER_WARPS)
#define TOWER_ROWS (16 * TURBOK_CU_TOWER_WARPS)

/* Keys or values from..from+63 of `to`, in [*][stride], into a tile [64][D]; what is not there becomes zero. */
template <class T, int D>
DEVICE void fetch_rows(const T *in, int64_t stride, int n, int from, int to, T *tile)
{
    for (int i = static_cast<int>(threadIdx.x); i < KEYS * (D / 8); i += TOWER_THREADS) {
        int r = i / (D / 8), p = i % (D / 8);
        T *piece = tile + piece_at<D>(r, p);
        if (from + r < to && p * 8 < n)
            copy16_async(piece, in + (from + r) * stride + p * 8);
        else
            store16(piece, make_uint4(0, 0, 0, 0));
    }
}

template <class T, int D> DEVICE void tower_body(const struct turbok_cu_attend_full_args &a)
{
    int lane = lane_id(), g = lane / 4, j = lane % 4, n = a.D;
    int first = static_cast<int>(blockIdx.x) * TOWER_ROWS + warp_id() * 16;
    int64_t E = static_cast<int64_t>(a.H) * n, stride = 3 * E;
    int64_t head = static_cast<int64_t>(blockIdx.y) * n,
            before = static_cast<int64_t>(blockIdx.z) * a.T;
    T *tiles = reinterpret_cast<T *>(shared_dynamic()); /* K, V, K, V of [64][D] */
    grid_wait();
    const T *q = static_cast<const T *>(a.qkv) + before * stride + head, *k = q + E, *v = k + E;
    fetch_rows<T, D>(k, stride, n, 0, a.T, tiles);
    fetch_rows<T, D>(v, stride, n, 0, a.T, tiles + KEYS * D);
    copy_commit();
    row_state<T, D> w;
    UNROLL
    for (int r = 0; r < 2; r++) {
        int row = first + g + 8 * r;
        w.pos[r] = row < a.T ? a.T - 1 : -1; /* the last key it sees */
        w.m[r] = -INFINITY;
        w.l[r] = 0;
        UNROLL
        for (int d = 0; d < D / 16; d++)
            UNROLL
        for (int i = 0; i < 2; i++) {
            int col = 16 * d + 8 * i + 2 * j;
            w.q[d][2 * i + r] = row < a.T && col < n ? load4(q + row * stride + col) : 0;
        }
    }
    UNROLL
    for (int e = 0; e < D / 8; e++)
        w.acc[e][0] = w.acc[e][1] = w.acc[e][2] = w.acc[e][3] = 0;
    int now = 0;
    for (int from = 0; from < a.T; from += KEYS, now ^= 1) {
        T *next = tiles + (now ^ 1) * 2 * KEYS * D;
        if (from + KEYS < a.T) {
            fetch_rows<T, D>(k, stride, n, from + KEYS, a.T, next);
            fetch_rows<T, D>(v, stride, n, from + KEYS, a.T, next + KEYS * D);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const T *tile = tiles + now * 2 * KEYS * D;
        if (first < a.T)
            w.tile(tile, tile + KEYS * D, from, 0, a.scale * 1.44269504f);
        __syncthreads();
    }
    grid_release();
    T *out = static_cast<T *>(a.out) + before * E + head;
    UNROLL
    for (int r = 0; r < 2; r++) {
        w.l[r] += __shfl_xor_sync(FULL, w.l[r], 1);
        w.l[r] += __shfl_xor_sync(FULL, w.l[r], 2);
        int64_t row = first + g + 8 * r;
        UNROLL
        for (int e = 0; e < D / 8; e++) {
            int col = 8 * e + 2 * j;
            if (row < a.T && col < n)
                store4(out + row * E + col,
                       pack2<T>(w.acc[e][2 * r] / w.l[r], w.acc[e][2 * r + 1] / w.l[r]));
        }
    }
}

#define INSTANCE(name, T, D)                                                                       \
    TURBOK_KERNEL(name, attend_full, TOWER_THREADS, 2)                                             \
    {                                                                                              \
        tower_body<T, D>(a);                                                                       \
    }
INSTANCE(tower64_f16, f16, 64)
INSTANCE(tower128_f16, f16, 128)
INSTANCE(tower64_bf16, bf16, 64)
INSTANCE(tower128_bf16, bf16, 128)
