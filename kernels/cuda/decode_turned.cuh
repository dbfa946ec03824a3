/* kernels/cuda/decode_turned.cuh: one new token a sequence from the product of queries, keys and values on: RoPE, the KV write
 * and attention in one launch, for few sequences with few keys in 16 bits. As in decode_brief.cuh an item (up to 8 query
 * heads that share a KV head) has a cluster of blocks, which hand their sums to each other through shared memory.
 *
 * A warp has up to 16 keys, all of which but the new one it copies into shared memory before it waits for the product: what is
 * left to do then reads one row of memory, and there is little code, which comes from memory again in each layer. Each warp turns
 * the query for itself, in the registers of the tensor cores; the one that has the new key stores it. */
#ifndef TURBOK_CUDA_DECODE_TURNED_CUH
#define TURBOK_CUDA_DECODE_TURNED_CUH

#include "cuda/prims_cluster.cuh"
#include "cuda/rope.cuh"

namespace turned
{
enum : int {
    WARPS = TURBOK_CU_TURNED_WARPS,
    KEYS = TURBOK_CU_TURNED_KEYS, /* of a warp */
    HEADS = TURBOK_CU_TURNED_HEADS, /* of an item */
    CREW = TURBOK_CU_DECODE_CREW
};

/* Rows of keys and values in shared memory are apart so that the lanes of a load meet in no bank; where keys were, a warp
 * leaves its sums [HEADS][D], for which the same holds. */
template <int D> struct room {
    enum {
        CHUNKS = D / 8, /* of 16 bytes, in a row */
        KEY = TURBOK_CU_TURNED_KEY_ROW(D),
        VALUE = TURBOK_CU_TURNED_VALUE_ROW(D),
        WARP = KEYS * (KEY + VALUE),
        SUMS = D + 4
    };
    static_assert(HEADS * SUMS * 4 <= KEYS * KEY, "sums lie where keys were");
};

/* What a block has of an item. A cluster has CREW blocks. */
struct share {
    int token, len, pieces; /* len 0: nothing is asked for; pieces: blocks that have keys */
    int from, begin, end; /* keys: the first that counts, and this block's */
    int first, heads, head; /* query heads, KV head */
    const int32_t *table;
};

DEVICE share share_of(const struct turbok_cu_turned_args &a)
{
    const turbok_cu_attn &at = a.at;
    const int G = at.n_heads / at.kv.n_kv, tiles = (G + HEADS - 1) / HEADS;
    const int item = static_cast<int>(blockIdx.x) / CREW, per = at.kv.n_kv * tiles, seq = item / per;
    const int tile = item % per, skip = tile % tiles * HEADS;
    share s;
    s.token = a.b.cu_seqlens[seq];
    s.len = a.b.cu_seqlens[seq + 1] - s.token == 1 ? a.b.kv_lens[seq] : 0;
    s.from = at.window > 0 && s.len > at.window ? s.len - at.window : 0;
    const int each = ((s.len - s.from + CREW - 1) / CREW + KEYS - 1) / KEYS * KEYS;
    s.pieces = each ? (s.len - s.from + each - 1) / each : 0;
    s.begin = s.from + cluster_rank() * each;
    s.end = min(s.begin + each, s.len);
    s.head = tile / tiles;
    s.first = s.head * G + skip;
    s.heads = min(static_cast<int>(HEADS), G - skip);
    s.table = a.b.tables + seq * a.b.table_stride;
    return s;
}

/* Keys and values from `mine` on, but the new one, on their way into a warp's room; what is not there becomes zero. */
template <int D>
DEVICE void ask_keys(const turbok_cu_kv &kv, const share &s, const char *plane, int mine, char *to)
{
    typedef room<D> at;
    enum { LANES = 2 * at::CHUNKS, TURNS = KEYS * LANES / 32 }; /* lanes of a key and its value */
    const int lane = lane_id(), pos = mine + lane % KEYS, chunk = lane % LANES;
    const bool value = chunk >= at::CHUNKS;
    const int bytes = chunk % at::CHUNKS * 16;
    int64_t where = -1;
    if (pos < s.end && pos < s.len - 1) {
        const int block = pos / kv.block_tokens;
        where = s.table[block] * static_cast<int64_t>(kv.block_bytes) +
                (pos - block * kv.block_tokens) * (D * 2);
    }
    plane += bytes + (value ? kv.n_kv * static_cast<int64_t>(kv.plane_bytes) : 0);
    to += bytes + (value ? KEYS * at::KEY : 0);
    UNROLL_BY(4)
    for (int i = 0; i < TURNS; i++) {
        const int key = (i * 32 + lane) / LANES;
        const int64_t row = __shfl_sync(FULL, where, key);
        copy16_async(to + key * (value ? at::VALUE : at::KEY), plane + (row < 0 ? 0 : row),
                     row < 0 ? 0 : 16);
    }
    copy_commit();
}

/* cos and sin of a lane's numbers: those of piece j of 4 in each 32 of the first half of a head. */
template <int D> struct turn {
    float c[D / 64][8], s[D / 64][8];

    DEVICE_METHOD void load(const turbok_cu_attn &at, int pos)
    {
        const int64_t row = pos * static_cast<int64_t>(D / 2) + lane_id() % 4 * 8;
        UNROLL
        for (int i = 0; i < D / 64; i++) {
            load8f(at.cosine + row + i * 32, c[i]);
            load8f(at.sine + row + i * 32, s[i]);
        }
    }
    /* x: a lane's pieces of a head. */
    template <class T> DEVICE_METHOD void apply(uint4 x[D / 32]) const
    {
        UNROLL
        for (int i = 0; i < D / 64; i++) {
            const uint4 low = x[i], high = x[i + D / 64];
            const uint32_t a[4] = {low.x, low.y, low.z, low.w}, b[4] = {high.x, high.y, high.z, high.w};
            uint32_t lo[4], hi[4];
            UNROLL
            for (int k = 0; k < 4; k++) {
                const float2 u = unpack2<T>(a[k]), v = unpack2<T>(b[k]);
                const float2 f = turned_by(u.x, v.x, c[i][2 * k], s[i][2 * k]),
                             g = turned_by(u.y, v.y, c[i][2 * k + 1], s[i][2 * k + 1]);
                lo[k] = pack2<T>(f.x, g.x), hi[k] = pack2<T>(f.y, g.y);
            }
            x[i] = make_uint4(lo[0], lo[1], lo[2], lo[3]);
            x[i + D / 64] = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        }
    }
};

/* Scores of a warp's keys from `mine` on, and the sum of values that they give, in the room of the keys; *m, *l: of head g. */
template <class T, int D>
DEVICE void attend(const share &s, float scale, int mine, char *keys, const uint4 q[D / 32], float *m,
                   float *l)
{
    typedef room<D> at;
    const int lane = lane_id(), g = lane / 4, j = lane % 4;
    const char *k = keys + g * at::KEY + j * 16, *v = keys + KEYS * at::KEY;
    float p[2][4], top = -INFINITY, sum = 0;
    UNROLL
    for (int n = 0; n < 2; n++) {
        p[n][0] = p[n][1] = p[n][2] = p[n][3] = 0;
        UNROLL
        for (int c = 0; c < D / 32; c++) {
            const uint4 w = load16(k + n * 8 * at::KEY + c * 64);
            const uint32_t a[4] = {q[c].x, 0, q[c].y, 0}, b[2] = {w.x, w.y};
            const uint32_t a1[4] = {q[c].z, 0, q[c].w, 0}, b1[2] = {w.z, w.w};
            mma(p[n], a, b, T());
            mma(p[n], a1, b1, T());
        }
        UNROLL
        for (int i = 0; i < 2; i++) {
            p[n][i] = mine + n * 8 + 2 * j + i < s.end ? p[n][i] * scale : -INFINITY;
            top = fmaxf(top, p[n][i]);
        }
    }
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
    __syncwarp(); /* every lane has read its keys */
    const float ref = top > -INFINITY ? top : 0.0f;
    UNROLL
    for (int n = 0; n < 2; n++)
        UNROLL
    for (int i = 0; i < 2; i++) {
        p[n][i] = exp2_fast(p[n][i] - ref);
        sum += p[n][i];
    }
    const uint32_t b[2] = {pack2<T>(p[0][0], p[0][1]), pack2<T>(p[1][0], p[1][1])};
    v += (lane / 16 * 8 + lane % 8) * at::VALUE + lane / 8 % 2 * 16;
    float *o = reinterpret_cast<float *>(keys) + 2 * j * at::SUMS + g;
    UNROLL
    for (int e = 0; e < D / 16; e++) {
        uint32_t a[4];
        float acc[4] = {0, 0, 0, 0};
        load_matrices4_trans(a, v + e * 32);
        mma(acc, a, b, T());
        o[e * 16] = acc[0], o[at::SUMS + e * 16] = acc[1];
        o[e * 16 + 8] = acc[2], o[at::SUMS + e * 16 + 8] = acc[3];
    }
    *m = top;
    sum += __shfl_xor_sync(FULL, sum, 1);
    *l = sum + __shfl_xor_sync(FULL, sum, 2);
}

/* Adds the warps' sums and gives each block its dims of them, of which it adds those of all blocks. o: the first warp's. */
template <class T, int D>
DEVICE void add_together(const share &s, int warps, const char *o, const float *wm, const float *wl, T *out)
{
    typedef room<D> at;
    enum { SLICE = D / CREW, LANES = D / 4 }; /* dims of a block; threads of a head, each with four */
    static_assert(HEADS * LANES <= 32 * WARPS && SLICE % 4 == 0, "one turn");
    TURBOK_SHARED(float, sums, CREW *HEADS *SLICE);
    TURBOK_SHARED(float, tails, CREW *HEADS * 2);
    const int rank = cluster_rank(), tid = static_cast<int>(threadIdx.x);
    const int head = tid / LANES, dim = tid % LANES * 4;
    if (head < s.heads && warps > 0) {
        float m = -INFINITY, sum = 0, v[4] = {0, 0, 0, 0};
        UNROLL
        for (int k = 0; k < WARPS; k++)
            m = fmaxf(m, k < warps ? wm[k * HEADS + head] : -INFINITY);
        const float ref = m > -INFINITY ? m : 0.0f;
        UNROLL
        for (int k = 0; k < WARPS; k++) {
            if (k >= warps)
                break;
            const float f = exp2_fast(wm[k * HEADS + head] - ref);
            const float4 w = *reinterpret_cast<const float4 *>(o + k * at::WARP +
                                                               (head * at::SUMS + dim) * 4);
            sum = fmaf(f, wl[k * HEADS + head], sum);
            v[0] = fmaf(f, w.x, v[0]), v[1] = fmaf(f, w.y, v[1]);
            v[2] = fmaf(f, w.z, v[2]), v[3] = fmaf(f, w.w, v[3]);
        }
        cluster_put4(sums + (rank * HEADS + head) * SLICE + dim % SLICE, dim / SLICE,
                     make_float4(v[0], v[1], v[2], v[3]));
        if (tid % LANES < CREW) {
            cluster_put(tails + (rank * HEADS + head) * 2, tid % LANES, m);
            cluster_put(tails + (rank * HEADS + head) * 2 + 1, tid % LANES, sum);
        }
    }
    cluster_arrive();
    cluster_wait();
    if (tid < s.heads * SLICE) {
        const float *tail = tails + tid / SLICE * 2;
        float m = -INFINITY, sum = 0, v = 0;
        UNROLL
        for (int p = 0; p < CREW; p++)
            m = fmaxf(m, p < s.pieces ? tail[p * HEADS * 2] : -INFINITY);
        m = m > -INFINITY ? m : 0.0f;
        UNROLL
        for (int p = 0; p < CREW; p++) {
            if (p >= s.pieces)
                break;
            const float f = exp2_fast(tail[p * HEADS * 2] - m);
            sum = fmaf(f, tail[p * HEADS * 2 + 1], sum);
            v = fmaf(f, sums[p * HEADS * SLICE + tid], v);
        }
        out[tid / SLICE * D + rank * SLICE + tid % SLICE] = from_f<T>(v / sum);
    }
}

/* Grid: a cluster for each item. Dynamic shared memory: [WARPS] rooms. */
template <class T, int D> DEVICE void body(const struct turbok_cu_turned_args &a)
{
    typedef room<D> at;
    TURBOK_SHARED(float, wm, WARPS *HEADS);
    TURBOK_SHARED(float, wl, WARPS *HEADS);
    const turbok_cu_kv &kv = a.at.kv;
    const int lane = lane_id(), g = lane / 4, j = lane % 4;
    char *space = shared_dynamic(), *keys = space + warp_id() * at::WARP;
    cluster_arrive();
    const share s = share_of(a);
    const int mine = s.begin + warp_id() * KEYS, last = s.len - 1;
    const bool some = mine < s.end, newest = some && last >= mine && last < mine + KEYS;
    char *plane = kv_plane(kv, 0, a.at.layer, 0, s.head);
    const int64_t token = s.token;
    turn<D> by;
    uint4 q[D / 32], x[D / 32]; /* x: of the first lanes the new key, of the next its value */
    const T *query = nullptr, *pair = nullptr;
    if (some) {
        const T *row = static_cast<const T *>(a.qkv) + token * (a.at.n_heads + 2 * kv.n_kv) * D + j * 8;
        ask_keys<D>(kv, s, plane, mine, keys);
        by.load(a.at, last);
        query = row + column(a.at, s.first + (g < s.heads ? g : 0));
        pair = row + column(a.at, a.at.n_heads + s.head + (g == 1 ? kv.n_kv : 0));
    }
    grid_wait();
    if (some) {
        UNROLL
        for (int c = 0; c < D / 32; c++)
            q[c] = load16(query + c * 32);
        if (newest)
            UNROLL
        for (int c = 0; c < D / 32; c++)
            x[c] = load16(pair + c * 32);
        /* Before, what the next kernel asks for makes these few blocks late; later, it is late itself. */
        grid_release();
        copy_wait<0>(); /* zeros where the new key goes are there too */
        __syncwarp();
        by.template apply<T>(q);
        if (g >= s.heads)
            UNROLL
        for (int c = 0; c < D / 32; c++)
            q[c] = make_uint4(0, 0, 0, 0);
        if (newest) {
            char *to = keys + j * 16 + (g ? KEYS * at::KEY + (last - mine) * at::VALUE : (last - mine) * at::KEY);
            if (g == 0)
                by.template apply<T>(x);
            if (g < 2)
                UNROLL
            for (int c = 0; c < D / 32; c++)
                store16(to + c * 64, x[c]);
            __syncwarp();
        }
        float m, l;
        attend<T, D>(s, a.at.scale * 1.44269504f, mine, keys, q, &m, &l); /* scores are powers of 2 */
        if (j == 0) {
            wm[warp_id() * HEADS + g] = m;
            wl[warp_id() * HEADS + g] = l;
        }
    }
    __syncthreads();
    cluster_wait(); /* the others have begun */
    if (s.len > 0)
        add_together<T, D>(s, max(0, (s.end - s.begin + KEYS - 1) / static_cast<int>(KEYS)), space, wm,
                           wl, static_cast<T *>(a.out) + (token * a.at.n_heads + s.first) * D);
    /* What nobody waits for here: before, the blocks' meeting would wait for it. */
    if (newest && g < 2 && s.first == s.head * (a.at.n_heads / kv.n_kv)) {
        const int block = last / kv.block_tokens, slot = last - block * kv.block_tokens;
        char *to = plane + s.table[block] * static_cast<int64_t>(kv.block_bytes) + slot * (D * 2) + j * 16 +
                   g * (kv.n_kv * static_cast<int64_t>(kv.plane_bytes));
        UNROLL
        for (int c = 0; c < D / 32; c++)
            store16(to + c * 64, x[c]);
    }
    if (some && mine == s.from && g < s.heads)
        UNROLL
    for (int c = 0; c < D / 32; c++)
        store16(static_cast<T *>(a.q) + (token * a.at.n_heads + s.first + g) * D + j * 8 + c * 32, q[c]);
    clear_padding<T>(a.b, a.out, a.at.n_heads * D);
}
} // namespace turned

#endif
