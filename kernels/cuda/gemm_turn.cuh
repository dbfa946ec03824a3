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

/* A row of the warp's 16 as lanes 0 to 15, and 16 to 31 again, know it. It is asked for before the product, and what hangs on it
 * behind that, so that nobody waits for it. */
struct turned_row {
    int seq = -1, pos = 0;

    DEVICE_METHOD turned_row(const args &a, int64_t first)
    {
        const int64_t t = first + warp_id() * 16 + lane_id() % 16;
        if (!a.turns || t >= a.T)
            return;
        /* The inputs of a step were there before its first kernel. */
        seq = a.b.seq_of[t];
        pos = a.b.positions[t];
    }
    /* Rows of a head from the first plane of the layer to its key; -1: not stored. */
    DEVICE_METHOD int at(const args &a) const
    {
        const int block_tokens = a.at.kv.block_tokens;
        if (seq < 0)
            return -1;
        return a.b.tables[seq * a.b.table_stride + pos / block_tokens] *
                   static_cast<int>(a.at.kv.block_bytes / (HEAD * 2)) +
               pos % block_tokens;
    }
};

/* Cosines and sines of 4 pairs of a lane in each of 4 rows: half the lanes have a row of a head, so that the table is read in
 * whole lines. */
struct turned_angles {
    float4 c[4], s[4];

    DEVICE_METHOD turned_angles(const args &a, const turned_row &row, int half)
    {
        UNROLL
        for (int i = 0; i < 4; i++) {
            const int64_t pos = __shfl_sync(FULL, row.pos, 8 * half + 2 * i + lane_id() / 16);
            const int64_t from = pos * (HEAD / 2) + lane_id() % 16 * 4;
            c[i] = *reinterpret_cast<const float4 *>(a.at.cosine + from);
            s[i] = *reinterpret_cast<const float4 *>(a.at.sine + from);
        }
    }
};

/* Numbers j and j + HEAD / 2 together, two of each; x and y were rounded, as where the product is written first. */
template <class T> DEVICE void turn(uint32_t &x, uint32_t &y, float c0, float c1, float s0, float s1)
{
    const float2 u = unpack2<T>(x), v = unpack2<T>(y);
    const float2 f = turned_by(u.x, v.x, c0, s0), g = turned_by(u.y, v.y, c1, s1);
    x = pack2<T>(f.x, g.x);
    y = pack2<T>(f.y, g.y);
}

/* Sums of N outputs from `out` on, of 16 rows of each warp from `first` on, as sums<> has them. 8 rows of a head at a time meet in
 * `room`, where half the lanes find a row. */
template <class T, int N>
DEVICE void write_turned(const float *acc, const args &a, int first, int out,
                         const turned_row &row, char *room)
{
    enum { ROW = HEAD * 2, TURN_PITCH = ROW + 16 };
    static_assert(8 * TURN_PITCH <= 16 * PITCH, "room of a warp");
    const turbok_cu_attn &at = a.at;
    const int unit = lane_id() % 16 * 8; /* bytes in each half of a head */
    char *to = room + lane_id() / 4 * TURN_PITCH + lane_id() % 4 * 4;
    const turned_angles angles[2] = {{a, row, 0}, {a, row, 1}};
    const int row_at = row.at(a);
    UNROLL
    for (int half = 0; half < 2; half++) {
        const turned_angles &by = angles[half];
        UNROLL
        for (int h = 0; h < N / HEAD; h++) {
            int kind;
            const int n = out / HEAD + h, index = head_of(at, n, &kind);
            if (n * HEAD >= a.out)
                break;
            char *plane = kv_plane(at.kv, 0, at.layer, kind == 2, kind ? index : 0);
            UNROLL
            for (int i = 0; i < HEAD / 8; i++) {
                const float *v = acc + h * HEAD / 2 + 4 * i + 2 * half;
                store4(to + i * 16, pack2<T>(v[0], v[1]));
            }
            __syncwarp();
            UNROLL
            for (int i = 0; i < 4; i++) {
                const int in = 2 * i + lane_id() / 16;
                const char *from = room + in * TURN_PITCH + unit;
                const int t = first + warp_id() * 16 + 8 * half + in,
                          slot = __shfl_sync(FULL, row_at, 8 * half + in);
                uint2 x = load8(from), y = load8(from + ROW / 2);
                if (kind < 2) {
                    turn<T>(x.x, y.x, by.c[i].x, by.c[i].y, by.s[i].x, by.s[i].y);
                    turn<T>(x.y, y.y, by.c[i].z, by.c[i].w, by.s[i].z, by.s[i].w);
                }
                const int64_t at_row = kind ? slot : static_cast<int64_t>(t) * at.n_heads + index;
                char *head = (kind ? plane : static_cast<char *>(a.q)) + at_row * ROW + unit;
                if (kind ? slot >= 0 : t < a.T) {
                    store8(head, x);
                    store8(head + ROW / 2, y);
                }
            }
            __syncwarp();
        }
    }
}
} // namespace gemm_wide

#endif
