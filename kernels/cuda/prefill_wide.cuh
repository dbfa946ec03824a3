/* kernels/cuda/prefill_wide.cuh: the attention of prefill.cuh on the products of warp groups (sm_90a), for caches
 * of the type of the activations.
 *
 * Two groups of 64 rows share tiles of K and V, two deep. While the tensor cores add values of one tile
 * to the result they also make the scores of the next, whose softmax then runs beside the former. */
#ifndef TURBOK_CUDA_PREFILL_WIDE_CUH
#define TURBOK_CUDA_PREFILL_WIDE_CUH

#include "cuda/prefill.cuh"
#include "cuda/prims_wgmma.cuh"

/* Where a thread's pieces of a tile [N][D] go, and which they are: piece `piece` of rows first, first + STEP, ... */
template <class T, int D, int N> struct wide_tiles {
    enum { PIECES = D / 8, STEP = 32 * WARPS / PIECES, HALF = N * 64, SIZE = N * D };
    static DEVICE_METHOD int at(int r, int p) /* in numbers */
    {
        return p / 8 * HALF + r * 64 + ((p & 7) ^ (r & 7)) * 8;
    }
    /* Keys or values from..from+N-1 into a tile; those from `to` on and dims beyond the head become zero. */
    static DEVICE_METHOD void fetch(const struct turbok_cu_prefill_args &a, const int32_t *table,
                                    const char *plane, int from, int to, T *tile)
    {
        const turbok_cu_kv &kv = a.at.kv;
        const int p = static_cast<int>(threadIdx.x) % PIECES,
                  first = static_cast<int>(threadIdx.x) / PIECES;
        const int n = kv.head_dim, bytes = p * 8 < n ? 16 : 0;
        const char *piece = plane + (bytes ? p * 16 : 0);
        T *out = tile + at(first, p);
        if (a.block_shift < 6)
            return fetch_any(a, table, piece, from + first, to, bytes, out);
        UNROLL
        for (int part = 0; part < N; part += 64) {
            const int pos = from + part;
            if (pos >= to) {
                UNROLL
                for (int i = 0; i < 64 / STEP; i++)
                    store16(out + (part + i * STEP) * 64, make_uint4(0, 0, 0, 0));
                continue;
            }
            const int64_t block = table[pos >> a.block_shift];
            const int slot = (pos & ((1 << a.block_shift) - 1)) + first;
            const char *in = piece + block * static_cast<int64_t>(kv.block_bytes) + slot * n * 2;
            if (pos + 64 <= to) {
                UNROLL
                for (int i = 0; i < 64 / STEP; i++)
                    copy16_async(out + (part + i * STEP) * 64, in + i * STEP * n * 2, bytes);
            } else {
                UNROLL
                for (int i = 0; i < 64 / STEP; i++)
                    copy16_async(out + (part + i * STEP) * 64, in + i * STEP * n * 2,
                                 pos + first + i * STEP < to ? bytes : 0);
            }
        }
    }
    /* The same with blocks of other sizes. */
    static DEVICE_METHOD void fetch_any(const struct turbok_cu_prefill_args &a,
                                        const int32_t *table, const char *piece, int pos, int to,
                                        int bytes, T *out)
    {
        UNROLL_BY(1)
        for (int i = 0; i < N / STEP; i++, pos += STEP, out += STEP * 64) {
            if (pos >= to || !bytes) {
                store16(out, make_uint4(0, 0, 0, 0));
                continue;
            }
            const int64_t block =
                a.block_shift >= 0 ? pos >> a.block_shift : pos / a.at.kv.block_tokens;
            const int64_t slot = pos - block * a.at.kv.block_tokens;
            copy16_async(out, piece + table[block] * static_cast<int64_t>(a.at.kv.block_bytes) +
                                  slot * a.at.kv.head_dim * 2);
        }
    }
};

/* What a block works on: tokens of a sequence times the query heads of a KV head, or a part of them. */
struct wide_place {
    int kv_head, head0, heads, seq, first, count, pos0, begin,
        end; /* keys begin.. below end are seen */
    int64_t row0; /* of its first row in q and out, in heads */
    const int32_t *table;
    const char *keys; /* of block 0 */

    DEVICE_METHOD bool find(const struct turbok_cu_prefill_args &a, int N)
    {
        const turbok_cu_attn &at = a.at;
        const int G = at.n_heads / at.kv.n_kv, parts = (G + ROWS - 1) / ROWS,
                  columns = at.kv.n_kv * parts, tokens = ROWS / min(G, ROWS);
        const int column = static_cast<int>(blockIdx.x) % columns;
        kv_head = column / parts;
        head0 = column % parts * ROWS;
        heads = min(min(G, ROWS), G - head0);
        if (!find_tile(a, static_cast<int>(blockIdx.x) / columns, tokens, &seq, &first))
            return false;
        const int t0 = a.b.cu_seqlens[seq];
        count = min(tokens, a.b.cu_seqlens[seq + 1] - t0 - first);
        pos0 = a.b.positions[t0 + first];
        end = pos0 + count;
        begin = at.window > 0 && pos0 >= at.window ? (pos0 - at.window + 1) / N * N : 0;
        row0 = (static_cast<int64_t>(t0) + first) * at.n_heads + kv_head * G + head0;
        table = a.b.tables + seq * a.b.table_stride;
        keys = kv_plane(at.kv, 0, at.layer, 0, kv_head);
        return true;
    }
    /* Where row r of the block begins in q and out. */
    DEVICE_METHOD int64_t row(const struct turbok_cu_prefill_args &a, int r) const
    {
        return (row0 + static_cast<int64_t>(r / heads) * a.at.n_heads + r % heads) *
               a.at.kv.head_dim;
    }
    /* All keys of a tile of N are seen by all rows. */
    DEVICE_METHOD bool whole(const struct turbok_cu_prefill_args &a, int from, int N) const
    {
        return from + N <= pos0 + 1 && a.at.window <= 0;
    }
};

/* The rows of a thread: queries, scores that become weights, what is added up, and the running softmax. */
template <class T, int D, int N> struct wide_rows {
    uint32_t q[D / 16][4], p[N / 16][4];
    float acc[D / 2], s[N / 2], m[2], l[2];
    int pos[2]; /* of rows g and g+8; -1: no such row */

    DEVICE_METHOD void begin(const struct turbok_cu_prefill_args &a, const wide_place &b)
    {
        const int n = a.at.kv.head_dim;
        UNROLL
        for (int r = 0; r < 2; r++) {
            const int row = warp_id() * 16 + lane_id() / 4 + 8 * r;
            const bool there = row < b.heads * b.count;
            const T *from = static_cast<const T *>(a.q) + (there ? b.row(a, row) : 0);
            pos[r] = there ? b.pos0 + row / b.heads : -1;
            m[r] = -INFINITY;
            l[r] = 0;
            UNROLL
            for (int i = 0; i < D / 8; i++) {
                const int col = 8 * i + 2 * (lane_id() % 4);
                q[i / 2][i % 2 * 2 + r] = there && col < n ? load4(from + col) : 0;
            }
        }
        UNROLL
        for (int i = 0; i < D / 2; i++)
            acc[i] = 0;
    }
    DEVICE_METHOD void write(const struct turbok_cu_prefill_args &a, const wide_place &b)
    {
        UNROLL
        for (int r = 0; r < 2; r++) {
            l[r] += __shfl_xor_sync(FULL, l[r], 1);
            l[r] += __shfl_xor_sync(FULL, l[r], 2);
            const float one = __fdividef(1.0f, l[r]);
            T *out = static_cast<T *>(a.out) + b.row(a, warp_id() * 16 + lane_id() / 4 + 8 * r);
            UNROLL
            for (int i = 0; i < D / 8; i++) {
                const int col = 8 * i + 2 * (lane_id() % 4);
                if (pos[r] >= 0 && col < a.at.kv.head_dim)
                    store4(out + col,
                           pack2<T>(acc[4 * i + 2 * r] * one, acc[4 * i + 2 * r + 1] * one));
            }
        }
    }
    DEVICE_METHOD void scores(const T *k)
    {
        UNROLL
        for (int d = 0; d < D / 16; d++)
            wgmma<0>(s, q[d], wgmma_tile(k + d / 4 * N * 64 + d % 4 * 16, 1024, 0), d > 0, T());
    }
    DEVICE_METHOD void values(const T *v)
    {
        UNROLL
        for (int n = 0; n < N / 16; n++)
            wgmma<1>(acc, p[n], wgmma_tile(v + n * 16 * 64, 1024, N * 128), 1, T());
    }
    /* Scores become weights; what was added up before must shrink by shrink[]. */
    template <bool masked>
    DEVICE_METHOD void softmax(const struct turbok_cu_prefill_args &a, int from, float shrink[2])
    {
        const float scale = a.at.scale * 1.44269504f; /* of powers of two */
        const int j = lane_id() % 4, window = a.at.window;
        if (masked) {
            UNROLL
            for (int i = 0; i < N / 2; i++) {
                const int key = from + i / 4 * 8 + 2 * j + i % 2, at = pos[i / 2 % 2];
                const bool seen = key <= at && (window <= 0 || key > at - window);
                s[i] = seen ? s[i] : -INFINITY;
            }
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            float top[2] = {-INFINITY, -INFINITY};
            UNROLL
            for (int i = 0; i < N / 8; i++) {
                top[0] = fmaxf(top[0], s[4 * i + 2 * r]);
                top[1] = fmaxf(top[1], s[4 * i + 2 * r + 1]);
            }
            top[0] = fmaxf(top[0], top[1]);
            top[0] = fmaxf(top[0], __shfl_xor_sync(FULL, top[0], 1));
            top[0] = fmaxf(top[0], __shfl_xor_sync(FULL, top[0], 2));
            const float now = fmaxf(m[r], top[0]), ref = now > -INFINITY ? now * scale : 0.0f;
            shrink[r] = exp2_fast(fmaf(m[r], scale, -ref));
            m[r] = now;
            float sum[2] = {0, 0};
            UNROLL
            for (int i = 0; i < N / 8; i++)
                UNROLL
            for (int k = 0; k < 2; k++) {
                const float w = exp2_fast(fmaf(s[4 * i + 2 * r + k], scale, -ref));
                s[4 * i + 2 * r + k] = w;
                sum[k] += w;
            }
            l[r] = fmaf(l[r], shrink[r], sum[0] + sum[1]);
        }
    }
    DEVICE_METHOD void pack()
    {
        UNROLL
        for (int n = 0; n < N / 16; n++)
            UNROLL
        for (int i = 0; i < 4; i++)
            p[n][i] = pack2<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
    }
    DEVICE_METHOD void shrink_by(const float shrink[2])
    {
        UNROLL
        for (int i = 0; i < D / 2; i++)
            acc[i] *= shrink[i / 2 % 2];
    }
};

template <class T, int D, int N>
DEVICE void prefill_wide_body(const struct turbok_cu_prefill_args &a)
{
    typedef wide_tiles<T, D, N> tiles;
    T *room = reinterpret_cast<T *>(shared_tiles()); /* K, K, V, V */
    wide_place b;
    /* The inputs of a step were there before its first kernel. */
    const bool some = b.find(a, N);
    grid_wait();
    if (a.b.cu_seqlens[a.b.S] < a.b.T)
        clear_padding<T>(a.b, a.out, a.at.n_heads * a.at.kv.head_dim);
    if (!some)
        return;
    tiles::fetch(a, b.table, b.keys, b.begin, b.end, room);
    copy_commit();
    wide_rows<T, D, N> w;
    w.begin(a, b);
    int now = 0;
    UNROLL_BY(1)
    for (int from = b.begin; from < b.end; from += N, now ^= 1) {
        float shrink[2];
        copy_wait<0>();
        proxy_fence();
        __syncthreads();
        wgmma_fence();
        w.scores(room + now * tiles::SIZE);
        wgmma_commit();
        if (from > b.begin) {
            wgmma_fence();
            w.values(room + (2 + (now ^ 1)) * tiles::SIZE);
            wgmma_commit();
        } else {
            wgmma_fence();
            wgmma_commit(); /* of none, so that the wait for scores is the same */
        }
        UNROLL_BY(1)
        for (int v = 1; v >= 0; v--)
            if (v || from + N < b.end)
                tiles::fetch(a, b.table,
                             b.keys +
                                 (v ? a.at.kv.n_kv * static_cast<int64_t>(a.at.kv.plane_bytes) : 0),
                             v ? from : from + N, b.end,
                             room + (v ? 2 + now : now ^ 1) * tiles::SIZE);
        copy_commit();
        wgmma_wait<1>(w.s);
        /* Two blocks of code, and not one, so that ptxas leaves the next wait behind the softmax. */
        if (b.whole(a, from, N))
            w.template softmax<false>(a, from, shrink);
        else
            w.template softmax<true>(a, from, shrink);
        wgmma_wait<0>(w.acc);
        w.shrink_by(shrink);
        w.pack();
    }
    copy_wait<0>();
    proxy_fence();
    __syncthreads();
    wgmma_fence();
    w.values(room + (2 + (now ^ 1)) * tiles::SIZE);
    wgmma_commit();
    wgmma_wait<0>(w.acc);
    grid_release();
    w.write(a, b);
}

#endif
