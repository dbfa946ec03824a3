/* kernels/cuda/decode.cuh: attention of one new token a sequence over the paged cache, on tensor
 * cores.
 *
 * An item of work is up to 8 query heads that share a KV head, over a piece of the keys; K and V
 * are read once for all of them. Each warp takes turns of some keys: decode_numbers.cuh and
 * decode_codes.cuh. Loads of the next turn are on their way while one is multiplied.
 *
 * The keys of all sequences and heads, one behind the other in units of 64, are dealt to the
 * blocks in equal shares, which cuts some sequences into pieces; the last block of a sequence
 * and KV head to finish adds its pieces in order. Without slots there is one piece: then a row's
 * bits do not depend on the batch. */
#ifndef TURBOK_CUDA_DECODE_CUH
#define TURBOK_CUDA_DECODE_CUH

#include "cuda/decode_add.cuh"
#include "cuda/decode_codes.cuh"
#include "cuda/decode_numbers.cuh"

template <class T, int D, int BITS> struct decoder_of {
    typedef code_decoder<T, D, BITS> type;
};
template <class T, int D> struct decoder_of<T, D, 16> {
    typedef number_decoder<T, D> type;
};

enum { UNIT = 64 }; /* keys; pieces begin at multiples of it */

/* The first key of sequence seq that counts, and its units from there; 0: it has not exactly one
 * new token. */
struct stretch {
    int first, units;
};
DEVICE stretch stretch_of(const struct turbok_cu_decode_args &a, int seq)
{
    int len = a.b.kv_lens[seq], w = a.at.window;
    if (a.b.cu_seqlens[seq + 1] - a.b.cu_seqlens[seq] != 1 || len < 1)
        return {0, 0};
    int first = w > 0 && len > w ? (len - w) / UNIT * UNIT : 0;
    return {first, (len - first + UNIT - 1) / UNIT};
}

/* Units before each sequence, of one head, into starts [S+1]. By the whole block: a few sequences are the first warp's, of more each
 * thread has neighbours, and what all of them load is on its way at once. */
DEVICE void count_units(const struct turbok_cu_decode_args &a, int *starts)
{
    TURBOK_SHARED(int, sums, WARPS);
    const int S = a.b.S, l = lane_id(), each = (S + 32 * WARPS - 1) / (32 * WARPS);
    const int from = static_cast<int>(threadIdx.x) * each, to = min(S, from + each);
    int mine = 0, before = 0;
    if (S > 32 || warp_id() == 0) {
        UNROLL_BY(2)
        for (int s = from; s < to; s++)
            mine += stretch_of(a, s).units;
        before = mine;
        UNROLL
        for (int i = 1; i < 32; i *= 2) {
            const int x = __shfl_up_sync(FULL, before, i);
            before += l >= i ? x : 0;
        }
        if (l == 31)
            sums[warp_id()] = before;
        before -= mine;
    }
    if (S > 32) {
        __syncthreads();
        for (int i = 0; i < warp_id(); i++)
            before += sums[i];
    }
    UNROLL_BY(1)
    for (int s = from; s < to; s++) {
        starts[s] = before;
        before += each == 1 ? mine : stretch_of(a, s).units;
    }
    if (to == S && from < S)
        starts[S] = before;
    __syncthreads();
}

/* What a block knows of the item it works on. */
struct work {
    int seq, head, first, heads; /* KV head, query heads */
    int begin, end; /* keys */
    int piece, n_pieces, units; /* units: of this piece */
    int block; /* that has the first piece */
    int arrived; /* its counter */
    int64_t token, row; /* row: of q and out */
};

/* The item at unit `at` of all, in a share that ends before unit `end` and is `share` long. */
DEVICE work work_of(const struct turbok_cu_decode_args &a, int at, int end, int share,
                    const int *starts)
{
    int G = a.at.n_heads / a.at.kv.n_kv, tiles = (G + HEADS - 1) / HEADS;
    int per = a.at.kv.n_kv * tiles, lo = 0, hi = a.b.S - 1;
    while (lo < hi) { /* the last sequence that begins at or before it */
        int mid = (lo + hi + 1) / 2;
        if (starts[mid] * per <= at)
            lo = mid;
        else
            hi = mid - 1;
    }
    work w;
    stretch s = stretch_of(a, lo);
    int len = a.b.kv_lens[lo], tile = (at - starts[lo] * per) / s.units;
    int from = starts[lo] * per + tile * s.units, skip = at - from;
    w.seq = lo;
    w.units = min(s.units - skip, end - at);
    w.block = from / share;
    w.piece = at / share - w.block;
    w.n_pieces = (from + s.units - 1) / share - w.block + 1;
    w.begin = s.first + skip * UNIT;
    w.end = min(w.begin + w.units * UNIT, len);
    w.head = tile / tiles;
    w.first = w.head * G + tile % tiles * HEADS;
    w.heads = min(HEADS, G - tile % tiles * HEADS);
    w.arrived = lo * per + tile;
    w.token = a.b.cu_seqlens[lo];
    w.row = (w.token * a.at.n_heads + w.first) * a.at.kv.head_dim;
    return w;
}

/* The keys of an item; sums of each warp to o [WARPS][HEADS][D], wm and wl [WARPS][HEADS]. Not
 * waited: this is the block's first, and only what was there before the step has been read so
 * far. Keys and values of earlier steps need not wait for the kernel that stores the new ones. */
template <class T, int D, int BITS>
DEVICE void run_item(const struct turbok_cu_decode_args &a, const work &it,
                     float *o, float *wm, float *wl, bool waited)
{
    typedef typename decoder_of<T, D, BITS>::type decoder;
    const turbok_cu_attn &at = a.at;
    int g = lane_id() / 4, j = lane_id() % 4, len = a.b.kv_lens[it.seq];
    decoder w;
    w.at.kv = &at.kv;
    w.at.planes = kv_plane(at.kv, 0, at.layer, 0, it.head);
    w.at.table = a.b.tables + it.seq * a.b.table_stride;
    w.at.from = at.window > 0 && len > at.window ? len - at.window : 0;
    w.at.to = it.end;
    w.at.shift = a.block_shift;
    w.begin(o + warp_id() * HEADS * D);
    /* The turn before the first only asks for memory. One copy of the code: it comes from memory
     * again after each layer's weights went by. */
    constexpr int STRIDE = WARPS * decoder::KEYS;
    UNROLL_BY(1)
    for (int t = it.begin + warp_id() * decoder::KEYS - STRIDE; t < it.end; t += STRIDE) {
        bool begun = t >= it.begin;
        int next = t + STRIDE;
        if (begun) {
            w.scores(t);
        } else if (!waited && next + decoder::KEYS >= len) { /* keys of this step are among them */
            grid_wait();
            waited = true;
        }
        if (decoder::KEYS_EARLY && next < it.end)
            w.load_keys(next);
        if (begun)
            w.add();
        if (!decoder::KEYS_EARLY && next < it.end)
            w.load_keys(next);
        if (next < it.end)
            w.load_values(next);
        if (begun)
            continue;
        if (!waited)
            grid_wait();
        w.load_query(static_cast<const T *>(a.q) + it.row, it.heads,
                     at.scale * 1.44269504f); /* scores are powers of 2 */
    }
    UNROLL
    for (int i = 1; i < 4; i *= 2)
        w.l += __shfl_xor_sync(FULL, w.l, i);
    if (j == 0) {
        wm[warp_id() * HEADS + g] = w.m;
        wl[warp_id() * HEADS + g] = w.l;
    }
    w.store(o + warp_id() * HEADS * D);
}

/* The warps' sums of dim d of head h, added; *m, *sum: its largest score and its sum of weights. */
template <int D>
DEVICE float add_warps(const float *o, const float *wm, const float *wl, int h, int d, float *m,
                       float *sum)
{
    float v = 0;
    *m = -INFINITY;
    *sum = 0;
    UNROLL
    for (int k = 0; k < WARPS; k++)
        *m = fmaxf(*m, wm[k * HEADS + h]);
    const float ref = *m > -INFINITY ? *m : 0.0f;
    UNROLL
    for (int k = 0; k < WARPS; k++) {
        float f = exp2_fast(wm[k * HEADS + h] - ref);
        *sum = fmaf(f, wl[k * HEADS + h], *sum);
        v = fmaf(f, o[(k * HEADS + h) * D + d], v);
    }
    return v;
}

/* Sums of an item: to out when it is all of its sequence, else to slot [HEADS][n+TAIL]. */
template <class T, int D>
DEVICE void put_piece(const work &it, const float *o, const float *wm, const float *wl, int n,
                      float *slot, T *out)
{
    UNROLL_BY(1)
    for (int i = static_cast<int>(threadIdx.x); i < it.heads * n; i += 32 * WARPS) {
        int h = i / n, d = i % n;
        float m, sum, v = add_warps<D>(o, wm, wl, h, d, &m, &sum);
        if (it.n_pieces == 1) {
            out[i] = from_f<T>(v / sum);
            continue;
        }
        slot[h * (n + TAIL) + d] = v;
        if (d == 0) {
            slot[h * (n + TAIL) + n] = m;
            slot[h * (n + TAIL) + n + 1] = sum;
        }
    }
}

/* One item; the block waits before and after. */
template <class T, int D, int BITS>
DEVICE void do_item(const struct turbok_cu_decode_args &a, const work &it, float *o, bool waited)
{
    TURBOK_SHARED(float, wm, WARPS *HEADS);
    TURBOK_SHARED(float, wl, WARPS *HEADS);
    TURBOK_SHARED(int, last, 4);
    int n = a.at.kv.head_dim;
    int64_t size = static_cast<int64_t>(HEADS) * (n + TAIL);
    float *rest = a.partial + it.block * size, *first = rest + a.slots / 2 * size;
    T *out = static_cast<T *>(a.out) + it.row;
    run_item<T, D, BITS>(a, it, o, wm, wl, waited);
    __syncthreads();
    put_piece<T, D>(it, o, wm, wl, n, it.piece ? rest + it.piece * size : first, out);
    if (it.n_pieces == 1)
        return;
    unsigned top = static_cast<unsigned>(it.n_pieces - 1);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last[0] = atomicInc(a.arrived + it.arrived, top) == top;
    __syncthreads();
    if (last[0]) {
        __threadfence();
        add_pieces<T, D>(first, rest, it.n_pieces, it.heads, n, o, out);
    }
}

template <class T, int D, int BITS> DEVICE void decode_body(const struct turbok_cu_decode_args &a)
{
    TURBOK_SHARED(work, its, 1);
    const turbok_cu_attn &at = a.at;
    int S = a.b.S, G = at.n_heads / at.kv.n_kv, n = at.kv.head_dim;
    int per = at.kv.n_kv * ((G + HEADS - 1) / HEADS);
    float *o = reinterpret_cast<float *>(shared_dynamic()); /* [WARPS][HEADS][D] */
    int *starts = reinterpret_cast<int *>(o + WARPS * HEADS * D);
    grid_release();
    count_units(a, starts);
    bool waited = false;
    int total = starts[S] * per, blocks = static_cast<int>(gridDim.x);
    int share = a.slots ? max(1, (total + blocks - 1) / blocks) : total;
    int from = a.slots ? static_cast<int>(blockIdx.x) * share : 0, end = min(from + share, total);
    for (int i = from, k = 0; i < end; k++) {
        if (threadIdx.x == 0)
            its[0] = work_of(a, i, end, share, starts);
        __syncthreads();
        const work &it = its[0]; /* in shared memory: registers are short */
        i += it.units;
        if (a.slots || k % blocks == static_cast<int>(blockIdx.x)) {
            do_item<T, D, BITS>(a, it, o, waited);
            waited = true;
        }
        __syncthreads();
    }
    if (!waited)
        grid_wait();
    clear_padding<T>(a.b, a.out, at.n_heads * n);
}

#endif
