/* kernels/cuda/decode_brief.cuh: attention of one new token a sequence as in decode.cuh, for few sequences with few keys: an
 * item (up to 8 query heads that share a KV head) has a cluster of blocks to itself, each an equal share of its
 * keys, and the blocks hand their sums to each other through shared memory. A kernel of its own, as the code of attention
 * comes from memory again in each layer. */
#ifndef TURBOK_CUDA_DECODE_BRIEF_CUH
#define TURBOK_CUDA_DECODE_BRIEF_CUH

#include "cuda/decode.cuh"
#include "cuda/prims_cluster.cuh"

enum { CREW = TURBOK_CU_DECODE_CREW };

/* What block `rank` of the `crew` has of an item; units: 0 or less, nothing. False: it is not a sequence with one new token. */
DEVICE bool share_of(const struct turbok_cu_decode_args &a, int item, int rank, int crew, work *w)
{
    const int G = a.at.n_heads / a.at.kv.n_kv, tiles = (G + HEADS - 1) / HEADS;
    const int per = a.at.kv.n_kv * tiles, seq = item / per, tile = item % per;
    const stretch s = seq < a.b.S ? stretch_of(a, seq) : stretch{0, 0};
    const int each = (s.units + crew - 1) / crew, first = tile % tiles * HEADS;
    if (!s.units)
        return false;
    w->seq = seq;
    w->head = tile / tiles;
    w->first = w->head * G + first;
    w->heads = min(HEADS, G - first);
    w->units = min(each, s.units - rank * each);
    w->begin = s.first + rank * each * UNIT;
    w->end = min(w->begin + w->units * UNIT, a.b.kv_lens[seq]);
    w->piece = rank;
    w->n_pieces = (s.units + each - 1) / each;
    w->token = a.b.cu_seqlens[seq];
    w->row = (w->token * a.at.n_heads + w->first) * a.at.kv.head_dim;
    return true;
}

/* Each block has a slice of the sums of an item, of which all give it their pieces. */
template <class T, int D>
DEVICE void add_together(const work &it, int crew, const float *o, const float *wm, const float *wl,
                         int n, T *out)
{
    TURBOK_SHARED(float, sums, HEADS *D + CREW); /* [piece][slice] */
    TURBOK_SHARED(float, tails, CREW *HEADS * 2);
    const int all = it.heads * n, slice = (all + crew - 1) / crew, rank = it.piece;
    const int tid = static_cast<int>(threadIdx.x);
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

/* Grid: a cluster for each item, so gridDim.x is a multiple of CREW. */
template <class T, int D, int BITS> DEVICE void brief_body(const struct turbok_cu_decode_args &a)
{
    TURBOK_SHARED(work, its, 1);
    TURBOK_SHARED(float, wm, WARPS *HEADS);
    TURBOK_SHARED(float, wl, WARPS *HEADS);
    const int crew = cluster_size(), n = a.at.kv.head_dim;
    float *o = reinterpret_cast<float *>(shared_dynamic()); /* [WARPS][HEADS][D] */
    cluster_arrive();
    if (threadIdx.x == 0 &&
        !share_of(a, static_cast<int>(blockIdx.x) / crew, cluster_rank(), crew, its))
        its[0].heads = 0;
    __syncthreads();
    const work &it = its[0]; /* in shared memory: registers are short */
    const bool there = it.heads > 0;
    if (there && it.units > 0)
        run_item<T, D, BITS>(a, it, o, wm, wl, false);
    else
        grid_wait();
    /* Not before: what the next kernel then asks for makes these few blocks late. */
    grid_release();
    __syncthreads();
    cluster_wait(); /* the others have begun */
    if (there)
        add_together<T, D>(it, crew, o, wm, wl, n, static_cast<T *>(a.out) + it.row);
    clear_padding<T>(a.b, a.out, a.at.n_heads * n);
}

#endif
