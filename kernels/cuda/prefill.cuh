/* kernels/cuda/prefill.cuh: attention of many new tokens a sequence over the paged cache, on tensor cores.
 *
 * A block has ROWS query rows of one sequence and KV head: tokens times the heads that share it, so that K and
 * V are fetched once for all of them. Keys come in tiles of 64 through shared memory, two tiles deep;
 * numbers by asynchronous copies, codes of a quantised cache as numbers of the activation type. Each warp has
 * 16 rows; the running softmax is in registers (arXiv 2307.08691). Tiles begin at multiples of 64 and a row's
 * sums do not depend on what is computed beside it.
 * Rows of shared memory are 16-byte pieces, permuted by the row's number so that no two lanes of a ldmatrix
 * meet in a bank. */
#ifndef TURBOK_CUDA_PREFILL_CUH
#define TURBOK_CUDA_PREFILL_CUH

#include "cuda/kv.cuh"

#define WARPS 8
#define ROWS (16 * WARPS)
#define KEYS 64

/* Where piece p (16 bytes) of row r lies, in numbers, in a tile of rows of D. */
template <int D> DEVICE int piece_at(int r, int p)
{
    return r * D + (p ^ (r & 7)) * 8;
}

/* Keys or values from..from+63 of a sequence into a tile [64][D]; those from `to` on and dims beyond the
 * head become zero. */
template <class T, int D, int BITS>
DEVICE void fetch_tile(const struct turbok_cu_prefill_args &a, const int32_t *table, int head,
                       int value, int from, int to, T *tile)
{
    const turbok_cu_kv &kv = a.at.kv;
    int n = kv.head_dim;
    for (int i = static_cast<int>(threadIdx.x); i < KEYS * (D / 8); i += 32 * WARPS) {
        int r = i / (D / 8), p = i % (D / 8), pos = from + r;
        T *to_piece = tile + piece_at<D>(r, p);
        bool there = pos < to && p * 8 < n;
        if (!there) {
            store16(to_piece, make_uint4(0, 0, 0, 0));
            continue;
        }
        int block = a.block_shift >= 0 ? pos >> a.block_shift : pos / kv.block_tokens;
        int slot = pos - block * kv.block_tokens;
        const char *plane = kv_plane(kv, table[block], a.at.layer, value, head);
        if (BITS == 16) {
            copy16_async(to_piece, plane + (static_cast<int64_t>(slot) * n + p * 8) * 2);
            continue;
        }
        const bf16 *par = reinterpret_cast<const bf16 *>(plane + kv_code_bytes(kv)) + slot;
        float scale = to_f(par[0]), zero = to_f(par[kv.block_tokens]), v[8];
        const char *codes = plane + (static_cast<int64_t>(slot) * n + p * 8) * BITS / 8;
        if (BITS == 8) {
            uint2 u = load8(codes);
            UNROLL
            for (int k = 0; k < 8; k++)
                v[k] = static_cast<float>((k < 4 ? u.x : u.y) >> 8 * (k % 4) & 255);
        } else {
            uint32_t u = load4(codes);
            UNROLL
            for (int k = 0; k < 8; k++)
                v[k] = static_cast<float>(u >> 4 * k & 15);
        }
        UNROLL
        for (int k = 0; k < 8; k++)
            v[k] = fmaf(scale, v[k], zero);
        store8f(to_piece, v);
    }
}

/* The sequence and first token of tile `want` of `tokens` tokens; false: none. */
DEVICE bool find_tile(const struct turbok_cu_prefill_args &a, int want, int tokens, int *seq,
                      int *first)
{
    int l = lane_id(), before = 0;
    for (int base = 0; base < a.b.S; base += 32) {
        int s = base + l, n = s < a.b.S ? a.b.cu_seqlens[s + 1] - a.b.cu_seqlens[s] : 0;
        int tiles = n > a.shortest ? (n + tokens - 1) / tokens : 0, sum = tiles;
        for (int i = 1; i < 32; i *= 2) {
            int x = __shfl_up_sync(FULL, sum, i);
            sum += l >= i ? x : 0;
        }
        unsigned here = __ballot_sync(FULL, before + sum > want);
        if (here) {
            int lane = __ffs(static_cast<int>(here)) - 1;
            int start = before + __shfl_sync(FULL, sum - tiles, lane);
            int count = __shfl_sync(FULL, tiles, lane);
            *seq = base + lane;
            *first = (count - 1 - (want - start)) * tokens; /* long ones first */
            return true;
        }
        before += __shfl_sync(FULL, sum, 31);
    }
    return false;
}

template <class T, int D> struct row_state {
    uint32_t q[D / 16][4];
    float acc[D / 8][4], m[2], l[2];
    int pos[2]; /* of rows g and g+8; -1: no such row */

    DEVICE_METHOD void tile(const T *k, const T *v, int from, int window, float scale)
    {
        int lane = lane_id(), j = lane % 4;
        float s[KEYS / 8][4];
        UNROLL
        for (int n = 0; n < KEYS / 8; n++)
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        UNROLL
        for (int d = 0; d < D / 16; d++)
            UNROLL
        for (int n = 0; n < KEYS / 16; n++) { /* 16 keys: two B operands */
            uint32_t b[4];
            int row = 16 * n + lane % 8 + lane / 16 * 8;
            load_matrices4(b, k + piece_at<D>(row, 2 * d + lane / 8 % 2));
            mma(s[2 * n], q[d], b, T());
            mma(s[2 * n + 1], q[d], b + 2, T());
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            float top = -INFINITY;
            UNROLL
            for (int n = 0; n < KEYS / 8; n++)
                UNROLL
            for (int i = 0; i < 2; i++) {
                int key = from + 8 * n + 2 * j + i;
                bool seen = key <= pos[r] && (window <= 0 || key > pos[r] - window);
                float x = seen ? s[n][2 * r + i] * scale : -INFINITY;
                s[n][2 * r + i] = x;
                top = fmaxf(top, x);
            }
            top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
            top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
            float now = fmaxf(m[r], top), ref = now > -INFINITY ? now : 0.0f;
            float shrink = exp2_fast(m[r] - ref), sum = 0;
            m[r] = now;
            UNROLL
            for (int n = 0; n < KEYS / 8; n++)
                UNROLL
            for (int i = 0; i < 2; i++) {
                float p = exp2_fast(s[n][2 * r + i] - ref);
                s[n][2 * r + i] = p;
                sum += p;
            }
            l[r] = l[r] * shrink + sum;
            UNROLL
            for (int e = 0; e < D / 8; e++) {
                acc[e][2 * r] *= shrink;
                acc[e][2 * r + 1] *= shrink;
            }
        }
        UNROLL
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t p[4] = {pack2<T>(s[2 * n][0], s[2 * n][1]), pack2<T>(s[2 * n][2], s[2 * n][3]),
                             pack2<T>(s[2 * n + 1][0], s[2 * n + 1][1]),
                             pack2<T>(s[2 * n + 1][2], s[2 * n + 1][3])};
            UNROLL
            for (int e = 0; e < D / 16; e++) {
                uint32_t b[4];
                int row = 16 * n + lane % 16;
                load_matrices4_trans(b, v + piece_at<D>(row, 2 * e + lane / 16));
                mma(acc[2 * e], p, b, T());
                mma(acc[2 * e + 1], p, b + 2, T());
            }
        }
    }
};

template <class T, int D, int BITS> DEVICE void prefill_body(const struct turbok_cu_prefill_args &a)
{
    const turbok_cu_attn &at = a.at;
    int G = at.n_heads / at.kv.n_kv, heads = min(G, ROWS), tokens = ROWS / heads,
        n = at.kv.head_dim;
    int part = (G + ROWS - 1) / ROWS, seq = 0, first = 0, lane = lane_id(), g = lane / 4,
        j = lane % 4;
    int kv_head = static_cast<int>(blockIdx.y) / part,
        head0 = static_cast<int>(blockIdx.y) % part * ROWS;
    heads = min(heads, G - head0);
    T *tiles = reinterpret_cast<T *>(shared_dynamic()); /* K, V, K, V of [64][D] */
    grid_wait();
    if (blockIdx.y == 0)
        clear_padding<T>(a.b, a.out, at.n_heads * n);
    if (!find_tile(a, static_cast<int>(blockIdx.x), tokens, &seq, &first))
        return;
    int t0 = a.b.cu_seqlens[seq], count = min(tokens, a.b.cu_seqlens[seq + 1] - t0 - first);
    int pos0 = a.b.positions[t0 + first], end = pos0 + count; /* keys seen: below end */
    int begin = at.window > 0 && pos0 >= at.window ? (pos0 - at.window + 1) / KEYS * KEYS : 0;
    const int32_t *table = a.b.tables + seq * a.b.table_stride;
    row_state<T, D> w;
    int64_t rows[2];
    UNROLL
    for (int r = 0; r < 2; r++) {
        int row = warp_id() * 16 + g + 8 * r, token = row / heads;
        bool there = row < heads * count && head0 + row % heads < G;
        w.pos[r] = there ? pos0 + token : -1;
        rows[r] = ((static_cast<int64_t>(t0) + first + token) * at.n_heads + kv_head * G + head0 +
                   row % heads) *
                  n;
        w.m[r] = -INFINITY;
        w.l[r] = 0;
        const T *q = static_cast<const T *>(a.q) + rows[r];
        UNROLL
        for (int d = 0; d < D / 16; d++)
            UNROLL
        for (int i = 0; i < 2; i++) {
            int col = 16 * d + 8 * i + 2 * j;
            w.q[d][2 * i + r] = there && col < n ? load4(q + col) : 0;
        }
    }
    UNROLL
    for (int e = 0; e < D / 8; e++)
        w.acc[e][0] = w.acc[e][1] = w.acc[e][2] = w.acc[e][3] = 0;
    fetch_tile<T, D, BITS>(a, table, kv_head, 0, begin, end, tiles);
    fetch_tile<T, D, BITS>(a, table, kv_head, 1, begin, end, tiles + KEYS * D);
    copy_commit();
    int now = 0;
    for (int from = begin; from < end; from += KEYS, now ^= 1) {
        T *next = tiles + (now ^ 1) * 2 * KEYS * D;
        if (from + KEYS < end) {
            fetch_tile<T, D, BITS>(a, table, kv_head, 0, from + KEYS, end, next);
            fetch_tile<T, D, BITS>(a, table, kv_head, 1, from + KEYS, end, next + KEYS * D);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const T *k = tiles + now * 2 * KEYS * D;
        w.tile(k, k + KEYS * D, from, at.window, at.scale * 1.44269504f);
        __syncthreads();
    }
    grid_release();
    UNROLL
    for (int r = 0; r < 2; r++) {
        w.l[r] += __shfl_xor_sync(FULL, w.l[r], 1);
        w.l[r] += __shfl_xor_sync(FULL, w.l[r], 2);
        T *out = static_cast<T *>(a.out) + rows[r];
        UNROLL
        for (int e = 0; e < D / 8; e++) {
            int col = 8 * e + 2 * j;
            if (w.pos[r] >= 0 && col < n)
                store4(out + col, pack2<T>(w.acc[e][2 * r] / w.l[r], w.acc[e][2 * r + 1] / w.l[r]));
        }
    }
}

#endif
