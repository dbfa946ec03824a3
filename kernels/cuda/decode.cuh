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
 * bits do not depend on the batch. With few and short sequences each item has a cluster of blocks to itself, which hand their
 * pieces to each other through shared memory. */
#ifndef TURBOK_CUDA_DECODE_CUH
#define TURBOK_CUDA_DECODE_CUH

#include "cuda/decode_add.cuh"
#include "cuda/decode_codes.cuh"
#include "cuda/decode_numbers.cuh"
#include "cuda/prims_cluster.cuh"

template <class T, int D, int BITS> struct decoder_of {
    typedef code_decoder<T, D, BITS> type;
};
template <class T, int D> struct decoder_of<T, D, 16> {
    typedef number_decoder<T, D> type;
};

enum {
    UNIT = 64, /* keys; pieces begin at multiples of it */
    CREW = TURBOK_CU_DECODE_CREW
};

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

/* Units before each sequence, of one head, into starts [S+1]. By the whole block. */
DEVICE void count_units(const struct turbok_cu_decode_args &a, int *starts)
{
    int S = a.b.S, l = lane_id(), before = 0;
    if (warp_id() == 0) {
        UNROLL_BY(1)
        for (int base = 0; base < S; base += 32) {
            int n = base + l < S ? stretch_of(a, base + l).units : 0, sum = n;
            UNROLL
            for (int i = 1; i < 32; i *= 2) {
                int x = __shfl_up_sync(FULL, sum, i);
                sum += l >= i ? x : 0;
            }
            if (base + l < S)
                starts[base + l] = before + sum - n;
            before += __shfl_sync(FULL, sum, 31);
        }
        if (l == 0)
            starts[S] = before;
    }
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

/* Blocks of items of a sequence: KV heads times tiles of their query heads. */
DEVICE int items_of(const turbok_cu_attn &at)
{
    return at.kv.n_kv * ((at.n_heads / at.kv.n_kv + HEADS - 1) / HEADS);
}

/* `units` keys of a stretch of sequence seq, for one tile of heads, from unit `skip` on. */
DEVICE work work_at(const struct turbok_cu_decode_args &a, int seq, int tile, const stretch &s,
                    int skip, int units)
{
    const int G = a.at.n_heads / a.at.kv.n_kv, tiles = (G + HEADS - 1) / HEADS;
    work w;
    w.seq = seq;
    w.units = units;
    w.begin = s.first + skip * UNIT;
    w.end = min(w.begin + units * UNIT, a.b.kv_lens[seq]);
    w.head = tile / tiles;
    w.first = w.head * G + tile % tiles * HEADS;
    w.heads = min(HEADS, G - tile % tiles * HEADS);
    w.token = a.b.cu_seqlens[seq];
    w.row = (w.token * a.at.n_heads + w.first) * a.at.kv.head_dim;
    return w;
}

/* The item at unit `at` of all, in a share that ends before unit `end` and is `share` long. */
DEVICE work work_of(const struct turbok_cu_decode_args &a, int at, int end, int share,
                    const int *starts)
{
    int per = items_of(a.at), lo = 0, hi = a.b.S - 1;
    while (lo < hi) { /* the last sequence that begins at or before it */
        int mid = (lo + hi + 1) / 2;
        if (starts[mid] * per <= at)
            lo = mid;
        else
            hi = mid - 1;
    }
    const stretch s = stretch_of(a, lo);
    int tile = (at - starts[lo] * per) / s.units;
    int from = starts[lo] * per + tile * s.units, skip = at - from;
    work w = work_at(a, lo, tile, s, skip, min(s.units - skip, end - at));
    w.block = from / share;
    w.piece = at / share - w.block;
    w.n_pieces = (from + s.units - 1) / share - w.block + 1;
    w.arrived = lo * per + tile;
    return w;
}

/* Block `rank` of the `crew` that have an item to themselves; units: 0 or less, nothing is left for it. */
DEVICE work work_together(const struct turbok_cu_decode_args &a, int item, int rank, int crew)
{
    const int per = items_of(a.at), seq = item / per;
    const stretch s = stretch_of(a, seq);
    const int each = (s.units + crew - 1) / crew, skip = rank * each;
    work w = work_at(a, seq, item % per, s, skip, min(each, s.units - skip));
    w.block = w.arrived = 0; /* for those who are not together */
    w.piece = rank;
    w.n_pieces = each ? (s.units + each - 1) / each : 0;
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

/* What the blocks of a cluster have of an item, through each other's shared memory: each has a slice of the sums, of which all
 * give it their pieces. They have arrived once at a barrier of the cluster. */
template <class T, int D>
DEVICE void add_together(const work &it, int crew, const float *o, const float *wm, const float *wl,
                         int n, T *out)
{
    TURBOK_SHARED(float, sums, HEADS *D + CREW); /* [piece][slice] */
    TURBOK_SHARED(float, tails, CREW *HEADS * 2);
    const int all = it.heads * n, slice = (all + crew - 1) / crew, rank = it.piece;
    const int tid = static_cast<int>(threadIdx.x);
    cluster_wait(); /* the others have begun */
    UNROLL_BY(1)
    for (int i = tid; i < all && it.units > 0; i += 32 * WARPS) {
        int h = i / n, d = i % n;
        float m, sum, v = add_warps<D>(o, wm, wl, h, d, &m, &sum);
        cluster_put(sums + rank * slice + i % slice, i / slice, v);
        if (d < crew) {
            cluster_put(tails + (rank * HEADS + h) * 2, d, m);
            cluster_put(tails + (rank * HEADS + h) * 2 + 1, d, sum);
        }
    }
    cluster_arrive();
    cluster_wait();
    UNROLL_BY(1)
    for (int i = tid; i < slice && rank * slice + i < all; i += 32 * WARPS) {
        const float *tail = tails + (rank * slice + i) / n * 2;
        float m = -INFINITY, sum = 0, v = 0;
        UNROLL
        for (int p = 0; p < CREW; p++)
            m = fmaxf(m, p < it.n_pieces ? tail[p * HEADS * 2] : -INFINITY);
        m = m > -INFINITY ? m : 0.0f;
        UNROLL
        for (int p = 0; p < CREW; p++) {
            if (p >= it.n_pieces)
                break;
            const float f = exp2_fast(tail[p * HEADS * 2] - m);
            sum = fmaf(f, tail[p * HEADS * 2 + 1], sum);
            v = fmaf(f, sums[p * slice + i], v);
        }
        out[rank * slice + i] = from_f<T>(v / sum);
    }
}

/* One item; the block waits before and after. crew: blocks of its cluster, 0: it is by itself. */
template <class T, int D, int BITS>
DEVICE void do_item(const struct turbok_cu_decode_args &a, const work &it, float *o, bool waited,
                    int crew)
{
    TURBOK_SHARED(float, wm, WARPS *HEADS);
    TURBOK_SHARED(float, wl, WARPS *HEADS);
    TURBOK_SHARED(int, last, 4);
    int n = a.at.kv.head_dim;
    int64_t size = static_cast<int64_t>(HEADS) * (n + TAIL);
    float *rest = a.partial + it.block * size, *first = rest + a.slots / 2 * size;
    T *out = static_cast<T *>(a.out) + it.row;
    if (it.units > 0)
        run_item<T, D, BITS>(a, it, o, wm, wl, waited);
    else
        grid_wait();
    if (a.together)
        grid_release();
    __syncthreads();
    if (crew)
        return add_together<T, D>(it, crew, o, wm, wl, n, out);
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

/* Has each item a cluster of its own, and none too many keys for it? */
DEVICE bool together(const struct turbok_cu_decode_args &a, const int *starts, int crew)
{
    if (crew == 1 || a.b.S * items_of(a.at) * crew > static_cast<int>(gridDim.x))
        return false;
    int most = 0;
    UNROLL_BY(1)
    for (int s = 0; s < a.b.S; s++)
        most = max(most, starts[s + 1] - starts[s]);
    return most <= crew * a.together;
}

template <class T, int D, int BITS> DEVICE void decode_body(const struct turbok_cu_decode_args &a)
{
    TURBOK_SHARED(work, its, 1);
    const turbok_cu_attn &at = a.at;
    int S = a.b.S, n = at.kv.head_dim, per = items_of(at), crew = cluster_size();
    float *o = reinterpret_cast<float *>(shared_dynamic()); /* [WARPS][HEADS][D] */
    int *starts = reinterpret_cast<int *>(o + WARPS * HEADS * D);
    /* What the next kernel then asks for makes these few blocks late. */
    if (!a.together)
        grid_release();
    if (crew > 1)
        cluster_arrive();
    count_units(a, starts);
    bool waited = false;
    const bool joined = together(a, starts, crew);
    const int total = starts[S] * per, blocks = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    const int share = a.slots ? max(1, (total + blocks - 1) / blocks) : total;
    int from = a.slots ? block * share : 0, end = min(from + share, total);
    if (joined) { /* one item */
        from = block / crew;
        end = from < S * per ? from + 1 : 0;
    }
    for (int i = from, k = 0; i < end; k++) {
        if (threadIdx.x == 0)
            its[0] = joined ? work_together(a, i, cluster_rank(), crew)
                            : work_of(a, i, end, share, starts);
        __syncthreads();
        const work &it = its[0]; /* in shared memory: registers are short */
        i += joined ? 1 : it.units;
        if (it.n_pieces && (joined || a.slots || k % blocks == block)) {
            do_item<T, D, BITS>(a, it, o, waited, joined ? crew : 0);
            waited = true;
        }
        __syncthreads();
    }
    if (!waited)
        grid_wait();
    clear_padding<T>(a.b, a.out, at.n_heads * n);
}

#endif
