/* kernels/cuda/prefill_wide.cuh: the attention of prefill.cuh on the products of warp groups (sm_90a), for caches
 * of the type of the activations.
 *
 * Two warp groups have 64 rows each; a third fetches tiles of keys and values for both. While the tensor cores add the values of one
 * tile to the result they also make the scores of the next, whose softmax then runs beside the former.
 *
 * Where there are few rows (l_attention.c) both groups have the same 64 rows, each every other tile, and add their sums at the end. */
#ifndef TURBOK_CUDA_PREFILL_WIDE_CUH
#define TURBOK_CUDA_PREFILL_WIDE_CUH

#include "cuda/prefill.cuh"
#include "cuda/prims_bulk.cuh"
#include "cuda/prims_wgmma.cuh"

/* A tile of keys or values [N][D] in shared memory. */
template <class T, int D, int N> struct wide_tile {
    enum { PIECES = D / 8, AT_ONCE = 32 / PIECES, STEP = 32, SIZE = N * D };
    static DEVICE_METHOD T *at(T *tile, int r, int p) /* piece p of row r */
    {
        return tile + p / 8 * N * 64 + r * 64 + ((p & 7) ^ (r & 7)) * 8;
    }
    /* Keys or values from..from+N-1 of `plane` (of block 0), by one warp, STEP rows at a time where blocks are no smaller; those from `to` on and dims beyond the head
     * become zero. */
    static DEVICE_METHOD void fetch(const struct turbok_cu_prefill_args &a, const int32_t *table,
                                    const char *plane, int from, int to, T *tile)
    {
        const turbok_cu_kv &kv = a.at.kv;
        const int p = lane_id() % PIECES, first = lane_id() / PIECES, row = kv.head_dim * 2;
        const int bytes = p * 8 < kv.head_dim ? 16 : 0;
        const char *piece = plane + (bytes ? p * 16 : 0);
        const bool small = a.block_shift < 5;
        UNROLL_BY(1)
        for (int r = small ? first : 0; r < N; r += small ? AT_ONCE : STEP) {
            const int pos = from + r;
            const int block = a.block_shift >= 0 ? pos >> a.block_shift : pos / kv.block_tokens;
            const char *in = piece + (pos - block * kv.block_tokens) * row;
            if (pos < to)
                in += table[block] * static_cast<int64_t>(kv.block_bytes);
            if (small) {
                copy16_async(at(tile, r, p), in, pos < to ? bytes : 0);
                continue;
            }
            in += first * row;
            UNROLL
            for (int i = 0; i < STEP; i += AT_ONCE)
                copy16_async(at(tile, r + i + first, p), in + i * row,
                             pos + i + first < to ? bytes : 0);
        }
    }
};

/* What a block works on: tokens of a sequence times the query heads of a KV head, or a part of them; R rows at most. */
template <int R> struct wide_place {
    int kv_head, head0, heads, seq, first, count, pos0, begin,
        end; /* keys begin.. below end are seen */
    int64_t row0; /* of its first row in q and out, in heads */
    const int32_t *table;
    const char *keys; /* of block 0 */

    DEVICE_METHOD bool find(const struct turbok_cu_prefill_args &a, int N)
    {
        const turbok_cu_attn &at = a.at;
        const int G = at.n_heads / at.kv.n_kv, parts = (G + R - 1) / R,
                  columns = at.kv.n_kv * parts, tokens = R / min(G, R);
        const int column = static_cast<int>(blockIdx.x) % columns;
        kv_head = column / parts;
        head0 = column % parts * R;
        heads = min(min(G, R), G - head0);
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

/* Word i of lane j of four neighbours becomes word j of lane i. */
DEVICE void cross_words(uint32_t (&v)[4])
{
    UNROLL
    for (int by = 1; by <= 2; by *= 2) {
        const bool upper = lane_id() & by;
        UNROLL
        for (int k = 0; k < 2; k++) {
            uint32_t &low = v[by == 1 ? 2 * k : k], &high = v[by == 1 ? 2 * k + 1 : k + 2];
            const uint32_t other = __shfl_xor_sync(FULL, upper ? low : high, by);
            (upper ? low : high) = other;
        }
    }
}

/* The rows of a thread: queries, scores that become weights, what is added up, and the running softmax. */
template <class T, int D, int N, int R> struct wide_rows {
    uint32_t q[D / 16][4], p[N / 16][4];
    float acc[D / 2], s[N / 2], m[2], l[2];
    int pos[2]; /* of rows g and g+8; -1: no such row */

    static DEVICE_METHOD int row_of(int r) /* of row g + 8 r in the block */
    {
        return warp_id() % (R / 16) * 16 + lane_id() / 4 + 8 * r;
    }
    DEVICE_METHOD void begin(const struct turbok_cu_prefill_args &a, const wide_place<R> &b)
    {
        const int n = a.at.kv.head_dim;
        UNROLL
        for (int r = 0; r < 2; r++) {
            const int row = row_of(r);
            const bool there = row < b.heads * b.count;
            const T *from = static_cast<const T *>(a.q) + (there ? b.row(a, row) : 0);
            pos[r] = there ? b.pos0 + row / b.heads : -1;
            m[r] = -INFINITY;
            l[r] = 0;
            /* Rows move 16 bytes at a time, which are not those that a lane has. */
            UNROLL
            for (int i = 0; i < D / 8; i += 4) {
                const int col = 8 * (i + lane_id() % 4);
                const uint4 u = there && col < n ? load16(from + col) : make_uint4(0, 0, 0, 0);
                uint32_t v[4] = {u.x, u.y, u.z, u.w};
                cross_words(v);
                UNROLL
                for (int k = 0; k < 4; k++)
                    q[(i + k) / 2][k % 2 * 2 + r] = v[k];
            }
        }
        UNROLL
        for (int i = 0; i < D / 2; i++)
            acc[i] = 0;
    }
    /* Columns of part `part` of `parts`. */
    template <int part, int parts>
    DEVICE_METHOD void write(const struct turbok_cu_prefill_args &a, const wide_place<R> &b)
    {
        enum { EACH = D / 8 / parts };
        UNROLL
        for (int r = 0; r < 2; r++) {
            l[r] += __shfl_xor_sync(FULL, l[r], 1);
            l[r] += __shfl_xor_sync(FULL, l[r], 2);
            const float one = __fdividef(1.0f, l[r]);
            T *out = static_cast<T *>(a.out) + b.row(a, row_of(r));
            UNROLL
            for (int i = part * EACH; i < (part + 1) * EACH; i += 4) {
                const int col = 8 * (i + lane_id() % 4);
                uint32_t v[4];
                UNROLL
                for (int k = 0; k < 4; k++) {
                    const float *sum = acc + 4 * (i + k) + 2 * r;
                    v[k] = pack2<T>(sum[0] * one, sum[1] * one);
                }
                cross_words(v);
                if (pos[r] >= 0 && col < a.at.kv.head_dim)
                    store16(out + col, make_uint4(v[0], v[1], v[2], v[3]));
            }
        }
    }
    /* Two groups with the same rows and other keys: each gets the other's sums of its half of the columns, by way of shared
     * memory and writes these. */
    template <int half> DEVICE_METHOD void offer(float *room)
    {
        enum { HALF = D / 4, EACH = (HALF + 4) * 128 };
        float *to = room + half * EACH + threadIdx.x % 128;
        UNROLL
        for (int i = 0; i < HALF; i++)
            to[i * 128] = acc[(1 - half) * HALF + i];
        UNROLL
        for (int r = 0; r < 2; r++) {
            to[(HALF + r) * 128] = m[r];
            to[(HALF + 2 + r) * 128] = l[r];
        }
    }
    /* After both have offered. */
    template <int half>
    DEVICE_METHOD void meet(const struct turbok_cu_prefill_args &a, const wide_place<R> &b,
                            const float *room)
    {
        enum { HALF = D / 4, EACH = (HALF + 4) * 128 };
        const float scale = a.at.scale * 1.44269504f;
        const float *from = room + (1 - half) * EACH + threadIdx.x % 128;
        float mine[2], its[2];
        UNROLL
        for (int r = 0; r < 2; r++) {
            const float other = from[(HALF + r) * 128], now = fmaxf(m[r], other),
                        ref = now > -INFINITY ? now * scale : 0.0f;
            mine[r] = exp2_fast(fmaf(m[r], scale, -ref));
            its[r] = exp2_fast(fmaf(other, scale, -ref));
            l[r] = l[r] * mine[r] + from[(HALF + 2 + r) * 128] * its[r];
        }
        UNROLL
        for (int i = 0; i < HALF; i++) {
            float &sum = acc[half * HALF + i];
            sum = sum * mine[i / 2 % 2] + from[i * 128] * its[i / 2 % 2];
        }
        write<half, 2>(a, b);
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
        /* Both rows at once, as each waits long for what it begins. */
        float top[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, ref[2],
              sum[2][2] = {{0, 0}, {0, 0}};
        UNROLL
        for (int i = 0; i < N / 2; i++)
            top[i / 2 % 2][i % 2] = fmaxf(top[i / 2 % 2][i % 2], s[i]);
        UNROLL
        for (int r = 0; r < 2; r++)
            top[r][0] = fmaxf(top[r][0], top[r][1]);
        UNROLL
        for (int far = 1; far <= 2; far *= 2) {
            const float other[2] = {__shfl_xor_sync(FULL, top[0][0], far),
                                    __shfl_xor_sync(FULL, top[1][0], far)};
            UNROLL
            for (int r = 0; r < 2; r++)
                top[r][0] = fmaxf(top[r][0], other[r]);
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            const float now = fmaxf(m[r], top[r][0]);
            ref[r] = now > -INFINITY ? now * scale : 0.0f;
            shrink[r] = m[r] == now ? 1.0f : exp2_fast(fmaf(m[r], scale, -ref[r]));
            m[r] = now;
        }
        UNROLL
        for (int i = 0; i < N / 2; i++) {
            s[i] = exp2_fast(fmaf(s[i], scale, -ref[i / 2 % 2]));
            sum[i / 2 % 2][i % 2] += s[i];
        }
        UNROLL
        for (int r = 0; r < 2; r++)
            l[r] = fmaf(l[r], shrink[r], sum[r][0] + sum[r][1]);
    }
    DEVICE_METHOD void pack()
    {
        UNROLL
        for (int n = 0; n < N / 16; n++)
            UNROLL
        for (int i = 0; i < 4; i++)
            p[n][i] = pack2<T>(s[8 * n + 2 * i], s[8 * n + 2 * i + 1]);
    }
    /* Of many keys few bring a new largest score. */
    DEVICE_METHOD void shrink_by(const float shrink[2])
    {
        if (!__any_sync(FULL, shrink[0] != 1.0f || shrink[1] != 1.0f))
            return;
        UNROLL
        for (int i = 0; i < D / 2; i++)
            acc[i] *= shrink[i / 2 % 2];
    }
};

/* A ring of STAGES tiles of keys and as many of values. Stage i is filled by warp i of the group that fetches: by the device's copy unit
 * where it can, else by its lanes. Both groups that multiply may be a stage apart. */
template <class T, int D, int N, int STAGES> struct wide_ring {
    typedef wide_tile<T, D, N> tile;
    bulk_barrier *full, *empty;
    bulk_barrier *part; /* of the last tile, where it is not whole */

    /* By all threads, and a barrier of the block before anything else. */
    DEVICE_METHOD void begin(int readers) const
    {
        if (threadIdx.x == 32 * WARPS) {
            UNROLL
            for (int i = 0; i < STAGES; i++) {
                bulk_init(full + i, 1);
                bulk_init(empty + i, readers);
            }
            bulk_init(part, 1);
            bulk_ready();
        }
    }
    static DEVICE_METHOD T *keys(int stage)
    {
        return reinterpret_cast<T *>(shared_tiles()) + stage * 2 * tile::SIZE;
    }
    static DEVICE_METHOD T *values(int stage)
    {
        return keys(stage) + tile::SIZE;
    }
    /* Keys and values from.., n of them there, for whoever waits for `done`; by one thread. block: of the table, where the first is. */
    template <int R>
    DEVICE_METHOD void copy(const struct turbok_cu_prefill_args &a, const wide_place<R> &b,
                            int from, int n, int stage, int block, bulk_barrier *done) const
    {
        const int plane = (a.at.layer * 2 * a.at.kv.n_kv + b.kv_head) * a.map_plane,
                  next = a.at.kv.n_kv * a.map_plane, boxes = (n - 1) / a.map_rows + 1;
        bulk_expect(done, boxes * a.map_rows * 2 * D * 2);
        UNROLL_BY(1)
        for (int r = 0; r < n; r += a.map_rows) {
            const int pos = from + r, at = pos >> a.block_shift;
            const int row = (r ? b.table[at] : block) * a.map_block + plane + pos -
                            (at << a.block_shift);
            UNROLL
            for (int c = 0; c < D / 64; c++) {
                bulk_copy_tile(keys(stage) + c * N * 64 + r * 64, &a.map, c * 64, row, done);
                bulk_copy_tile(values(stage) + c * N * 64 + r * 64, &a.map, c * 64, row + next,
                               done);
            }
        }
    }
    /* What stands behind the last value, n of them there, is no number, or none of these; weights of 0 do not help. */
    DEVICE_METHOD void clear(int n, int stage) const
    {
        UNROLL_BY(1)
        for (int i = n * tile::PIECES + lane_id(); i < N * tile::PIECES; i += 32)
            store16(tile::at(values(stage), i / tile::PIECES, i % tile::PIECES),
                    make_uint4(0, 0, 0, 0));
    }
    template <int R>
    DEVICE_METHOD void fill(const struct turbok_cu_prefill_args &a, const wide_place<R> &b) const
    {
        const int stage = warp_id() - WARPS;
        const char *v = b.keys + a.at.kv.n_kv * static_cast<int64_t>(a.at.kv.plane_bytes);
        int from = stage < STAGES ? b.begin + stage * N : b.end, turn = 1, block = 0;
        /* The table was there before the first kernel of the step, what it tells of was not. */
        if (a.map_rows && from < b.end)
            block = b.table[from >> a.block_shift];
        grid_wait();
        UNROLL_BY(1)
        for (; from < b.end; from += STAGES * N) {
            const int n = min(N, b.end - from);
            bulk_wait(empty + stage, turn);
            turn ^= 1;
            if (a.map_rows) {
                if (lane_id() == 0)
                    copy(a, b, from, n, stage, block, n < N ? part : full + stage);
                __syncwarp();
                if (from + STAGES * N < b.end)
                    block = b.table[(from + STAGES * N) >> a.block_shift];
                if (n == N)
                    continue;
                bulk_wait(part, 0);
                clear(n, stage);
            } else {
                tile::fetch(a, b.table, b.keys, from, b.end, keys(stage));
                tile::fetch(a, b.table, v, from, b.end, values(stage));
                copy_commit();
                copy_wait<0>();
            }
            proxy_fence();
            __syncwarp();
            if (lane_id() == 0)
                bulk_arrive(full + stage);
        }
    }
    DEVICE_METHOD void wait(int stage, int turn) const
    {
        bulk_wait(full + stage, turn);
    }
    DEVICE_METHOD void leave(int stage) const
    {
        __syncwarp();
        if (lane_id() == 0)
            bulk_arrive(empty + stage);
    }
};

/* What the rows of a group get of its tiles. */
template <class T, int D, int N, int STAGES, int SHARES, int R>
DEVICE void add_tiles(const struct turbok_cu_prefill_args &a, const wide_place<R> &b,
                      const wide_ring<T, D, N, STAGES> &ring, wide_rows<T, D, N, R> &w)
{
    /* With tiles of many keys groups give the tensor cores work in turns, and make weights meanwhile. */
    enum { TURNS = SHARES == 1 && N > 64 };
    const int group = warp_id() / 4, share = SHARES > 1 ? group : 0;
    int stage = share, before = -1, turn = 0; /* before: -1: of no tile yet */
    if (TURNS && group == 1)
        barrier_arrive(1, 256);
    UNROLL_BY(1)
    for (int from = b.begin + share * N; from < b.end; from += SHARES * N) {
        float shrink[2];
        ring.wait(stage, turn);
        if (TURNS)
            barrier_sync(1 + group, 256);
        wgmma_fence();
        w.scores(ring.keys(stage));
        wgmma_commit();
        if (before >= 0) {
            wgmma_fence();
            w.values(ring.values(before));
            wgmma_commit();
        } else {
            wgmma_fence();
            wgmma_commit(); /* of none, so that the wait for scores is the same */
        }
        if (TURNS && (group == 0 || from + N < b.end))
            barrier_arrive(2 - group, 256);
        wgmma_wait<1>(w.s);
        /* Two blocks of code, and not one, so that ptxas leaves the next wait behind the softmax. */
        if (b.whole(a, from, N))
            w.template softmax<false>(a, from, shrink);
        else
            w.template softmax<true>(a, from, shrink);
        wgmma_wait<0>(w.acc);
        if (before >= 0 && from + (STAGES - SHARES) * N < b.end)
            ring.leave(before);
        w.shrink_by(shrink);
        w.pack();
        before = stage;
        stage += SHARES;
        if (stage >= STAGES)
            stage -= STAGES, turn ^= 1;
    }
    if (SHARES == 1 || before >= 0) {
        wgmma_fence();
        w.values(ring.values(before));
        wgmma_commit();
        wgmma_wait<0>(w.acc);
    }
}

/* SHARES 2: both groups have the same 64 rows, and every other tile each. */
template <class T, int D, int N, int STAGES, int SHARES>
DEVICE void prefill_wide_body(const struct turbok_cu_prefill_args &a)
{
    enum { R = ROWS / SHARES };
    static_assert(STAGES % SHARES == 0, "a stage is one group's");
    TURBOK_SHARED(bulk_barrier, barriers, 2 * STAGES + 1);
    TURBOK_SHARED(int64_t, row0, 1); /* needed at the end again: it has no registers meanwhile */
    const wide_ring<T, D, N, STAGES> ring = {barriers, barriers + STAGES, barriers + 2 * STAGES};
    wide_place<R> b;
    grid_release();
    /* The inputs of a step were there before its first kernel. */
    ring.begin(WARPS / SHARES);
    if (threadIdx.x == 32 * (WARPS + 1) && a.map_rows)
        bulk_expect_map(&a.map);
    const bool some = b.find(a, N), padding = a.b.cu_seqlens[a.b.S] < a.b.T;
    if (some && threadIdx.x == 0)
        *row0 = b.row0;
    __syncthreads();
    if (padding) {
        grid_wait();
        clear_padding<T>(a.b, a.out, a.at.n_heads * a.at.kv.head_dim);
    }
    if (!some) {
        grid_wait();
        return;
    }
    if (warp_id() >= WARPS) {
        registers_fewer<N == 64 ? 72 : 56>();
        ring.fill(a, b);
        return;
    }
    registers_more<N == 64 ? 216 : 224>();
    grid_wait();
    wide_rows<T, D, N, R> w;
    w.begin(a, b);
    add_tiles<T, D, N, STAGES, SHARES, R>(a, b, ring, w);
    b.row0 = *row0;
    if (SHARES == 1) {
        w.template write<0, 1>(a, b);
        return;
    }
    float *room = reinterpret_cast<float *>(shared_tiles() + STAGES * 4 * N * D);
    if (warp_id() / 4)
        w.template offer<1>(room);
    else
        w.template offer<0>(room);
    barrier_sync(1, 256); /* one for both groups, as synccheck wants it */
    if (warp_id() / 4)
        w.template meet<1>(a, b, room);
    else
        w.template meet<0>(a, b, room);
}

#endif
