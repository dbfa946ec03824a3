/* kernels/cuda/gemm_turn.cuh: the end of a product of gemm_wide.cuh that makes queries, keys and values: heads are turned in the
 * registers of the threads that have their sums; queries go to q, keys and values into the cache. The numbers are those of rope.cu
 * after the product, to the bit; the product itself is not written. */
#ifndef TURBOK_CUDA_GEMM_TURN_CUH
#define TURBOK_CUDA_GEMM_TURN_CUH

#include "cuda/rope.cuh"

namespace gemm_wide
{
typedef struct turbok_cu_gemm_wide_args args;

enum {
    CHUNK = 64, /* outputs that a warp writes at a time */
    PITCH = CHUNK * 2 + 16, /* bytes of a row of them */
    HEAD = TURBOK_CU_GEMM_WIDE_HEAD, /* dims of a head */
};

/* A row of the warp's 16 as lanes 0 to 15, and 16 to 31 again, know it. */
struct turned_row {
    int at = -1; /* rows of a head from the first plane of the layer to its key; -1: not stored */
    int pos = 0;

    DEVICE_METHOD turned_row(const args &a, int64_t first)
    {
        const int64_t t = first + warp_id() * 16 + lane_id() % 16;
        if (!a.turns || t >= a.T)
            return;
        /* The inputs of a step were there before its first kernel. */
        const int seq = a.b.seq_of[t], block_tokens = a.at.kv.block_tokens;
        pos = a.b.positions[t];
        if (seq >= 0)
            at = a.b.tables[seq * a.b.table_stride + pos / block_tokens] *
                     static_cast<int>(a.at.kv.block_bytes / (HEAD * 2)) +
                 pos % block_tokens;
    }
};

/* Cosines and sines for the numbers that a thread has of a head: of rows lane / 4 and + 8. */
struct turned_angles {
    float2 c[2][HEAD / 16], s[2][HEAD / 16];

    DEVICE_METHOD void load(const args &a, const turned_row &row, int r)
    {
        const int64_t pos = __shfl_sync(FULL, row.pos, lane_id() / 4 + 8 * r);
        const int64_t from = pos * (HEAD / 2) + lane_id() % 4 * 2;
        UNROLL
        for (int j = 0; j < HEAD / 16; j++) {
            c[r][j] = *reinterpret_cast<const float2 *>(a.at.cosine + from + 8 * j);
            s[r][j] = *reinterpret_cast<const float2 *>(a.at.sine + from + 8 * j);
        }
    }
};

/* Turns a head: numbers j and j + HEAD / 2 together, which a thread has both of. */
template <class T> DEVICE void turn_head(float *acc, const turned_angles &by)
{
    UNROLL
    for (int r = 0; r < 2; r++)
        UNROLL
    for (int j = 0; j < HEAD / 16; j++) {
        float *x = acc + 4 * j + 2 * r, *y = x + HEAD / 4;
        const float2 c = by.c[r][j], s = by.s[r][j];
        /* rounded before they are turned, as where the product is written first */
        const float2 u = unpack2<T>(pack2<T>(x[0], x[1])), v = unpack2<T>(pack2<T>(y[0], y[1]));
        const float2 f = turned_by(u.x, v.x, c.x, s.x), g = turned_by(u.y, v.y, c.y, s.y);
        x[0] = f.x, y[0] = f.y, x[1] = g.x, y[1] = g.y;
    }
}

/* Sums of N outputs from `out` on, of 16 rows of each warp from `first` on, as sums<> has them. */
template <class T, int N>
DEVICE void write_turned(float *acc, const args &a, int64_t first, int out, const turned_row &row,
                         char *room)
{
    const turbok_cu_attn &at = a.at;
    const int unit = lane_id() % 8;
    UNROLL
    for (int h = 0; h < N / HEAD; h++) {
        int kind;
        const int n = out / HEAD + h, index = head_of(at, n, &kind);
        if (n * HEAD >= a.out)
            return;
        if (kind < 2) {
            turned_angles by;
            by.load(a, row, 0);
            by.load(a, row, 1);
            turn_head<T>(acc + h * HEAD / 2, by);
        }
        char *plane = kv_plane(at.kv, 0, at.layer, kind == 2, kind ? index : 0);
        UNROLL
        for (int c = 0; c < HEAD / CHUNK; c++) {
            char *to = room + lane_id() / 4 * PITCH + lane_id() % 4 * 4;
            UNROLL
            for (int i = 0; i < CHUNK / 4; i++) {
                const float *v = acc + h * HEAD / 2 + c * CHUNK / 2 + 2 * i;
                store4(to + i % 2 * 8 * PITCH + i / 2 * 16, pack2<T>(v[0], v[1]));
            }
            __syncwarp();
            UNROLL
            for (int r = 0; r < 16; r += 4) {
                const int in = r + lane_id() / 8;
                const int64_t t = first + warp_id() * 16 + in, slot = __shfl_sync(FULL, row.at, in);
                char *head = kind ? plane + slot * (HEAD * 2)
                                  : static_cast<char *>(a.q) + (t * at.n_heads + index) * HEAD * 2;
                if (kind ? slot >= 0 : t < a.T)
                    store16(head + c * CHUNK * 2 + unit * 16, load16(room + in * PITCH + unit * 16));
            }
            __syncwarp();
        }
    }
}
} // namespace gemm_wide

#endif
