/* kernels/cuda/decode.cuh: attention of one new token a sequence over the paged cache, on tensor cores.
 *
 * An item of work is up to 8 query heads that share a KV head, over a piece of the keys; K and V are read
 * once for all of them. Each warp takes 16 * KT keys at a time, straight from memory into the registers of
 * the tensor cores: scores are Q [16 heads, of which 8] x K^T, so a lane's 16 bytes of a key are its part
 * of the B operand, with the dims in an order that Q follows; for P x V two keys of a dim are put together
 * in registers, which makes V^T the A operand, while the scores lie where the B operand P^T wants them. Loads of the next keys are on their way while these are multiplied. Of a quantised cache the
 * codes are multiplied (as kernels/nn/attention.c: scores = scale (q.u) + zero sum(q)).
 *
 * A sequence is cut into as many pieces as fill the device; the last block of a sequence and KV head to
 * finish adds the pieces in order. Without slots there is one piece: then a row's bits do not depend on the
 * batch. */
#ifndef TURBOK_CUDA_DECODE_CUH
#define TURBOK_CUDA_DECODE_CUH

#include "cuda/decode_add.cuh"
#include "cuda/kv.cuh"

/* Weights times scales can be small beyond the range of f16: codes of values are multiplied in bf16. */
template <class T, bool coded> struct weight_type {
    typedef T type;
};
template <class T> struct weight_type<T, true> {
    typedef bf16 type;
};

template <class T, int D, int BITS> struct decoder {
    typedef typename weight_type<T, BITS != 16>::type VT;
    static constexpr int KT = BITS == 16 && D == 128 ? 1 : 2;
    static constexpr int KEYS = 16 * KT; /* of a step of a warp */
    static constexpr int CH = BITS == 16 ? 32 : 64, NCH = D / CH, KW = BITS == 4 ? 2 : 4;
    static constexpr int U = BITS == 16 || D < 128 ? 8 : 16, VCH = D / (8 * U), VW = U * BITS / 32;
    uint32_t q[D / 16][2]; /* A operand; rows 8..15 are zero */
    float qsum;
    uint32_t k[2 * KT][NCH][KW], v[KT][VCH][4][VW];
    uint32_t kpar[2 * KT][2], vpar[2 * KT][2]; /* scales, zeros of keys 2j and 2j+1 */
    float acc[D / 16][4]; /* two dims x heads 2j and 2j+1 */
    float m, l, z; /* of head g; l, z: of this lane's keys */
    /* where keys lie */
    const turbok_cu_kv *kv;
    const char *planes; /* of block 0, layer, K, head */
    const int32_t *table;
    int64_t value_offset;
    int shift, from, to; /* keys from..to-1 exist for this item */

    DEVICE_METHOD const char *key_base(int pos, int *slot) const
    {
        int block = shift >= 0 ? pos >> shift : pos / kv->block_tokens;
        *slot = pos - block * kv->block_tokens;
        return planes + table[block] * static_cast<int64_t>(kv->block_bytes);
    }
    template <int W> DEVICE_METHOD void load_words(uint32_t *w, const char *p, bool there) const
    {
        if (W == 4) {
            uint4 u = there ? load16_stream(p) : make_uint4(0, 0, 0, 0);
            w[0] = u.x, w[1] = u.y, w[2 % W] = u.z, w[3 % W] = u.w;
        } else if (W == 2) {
            uint2 u = there ? load8(p) : make_uint2(0, 0);
            w[0] = u.x, w[1 % W] = u.y;
        } else {
            w[0] = there ? load4(p) : 0;
        }
    }
    DEVICE_METHOD void load_par(uint32_t par[2], const char *plane, int slot, int pos) const
    {
        const char *p = plane + kv_code_bytes(*kv) + 2 * slot;
        UNROLL
        for (int i = 0; i < 2; i++, p += 2 * kv->block_tokens)
            par[i] = pos >= to      ? 0
                     : pos + 1 < to ? load4(p)
                                    : *reinterpret_cast<const uint16_t *>(p);
    }
    DEVICE_METHOD void load_keys(int t)
    {
        int g = lane_id() / 4, j = lane_id() % 4, row = kv->head_dim * BITS / 8;
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            int slot, pos = t + 8 * n;
            bool group = pos < to; /* else the table may end before */
            const char *base = group ? key_base(pos, &slot) : (slot = 0, planes);
            const char *p = base + (slot + g) * static_cast<int64_t>(row) + j * KW * 4;
            bool there = pos + g < to && pos + g >= from;
            UNROLL
            for (int c = 0; c < NCH; c++)
                load_words<KW>(k[n][c], p + c * 16 * KW,
                               there && c * CH + j * (CH / 4) < kv->head_dim);
            if (BITS < 16)
                load_par(kpar[n], base, slot + 2 * j, pos + 2 * j);
        }
    }
    DEVICE_METHOD void load_values(int t)
    {
        int g = lane_id() / 4, j = lane_id() % 4, row = kv->head_dim * BITS / 8;
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            int slot, pos = t + 8 * n;
            bool group = pos < to;
            const char *base = (group ? key_base(pos, &slot) : (slot = 0, planes)) + value_offset;
            UNROLL
            for (int i = 0; i < 2; i++) {
                const char *p = base + (slot + 2 * j + i) * static_cast<int64_t>(row) + g * VW * 4;
                int at = pos + 2 * j + i;
                UNROLL
                for (int c = 0; c < VCH; c++)
                    load_words<VW>(v[n / 2][c][n % 2 * 2 + i], p + c * 32 * VW,
                                   at < to && at >= from && c * 8 * U + U * g < kv->head_dim);
            }
            if (BITS < 16)
                load_par(vpar[n], base, slot + 2 * j, pos + 2 * j);
        }
    }

    /* Two bytes as two numbers: byte i of a, byte h of b. */
    static DEVICE_METHOD uint32_t bytes_pair(uint32_t a, int i, uint32_t b, int h, f16 type)
    {
        uint32_t both =
            __byte_perm(a, b, static_cast<unsigned>(i) | static_cast<unsigned>(4 + h) << 4);
        /* 0x6400 + u is 1024 + u */
        return fma2(__byte_perm(both, 0x64646464u, 0x4140u), 0x3c003c00u, 0xe400e400u, type);
    }
    static DEVICE_METHOD uint32_t bytes_pair(uint32_t a, int i, uint32_t b, int h, bf16)
    {
        /* fp32 takes 8 more bits: 2^23 + u, less 2^23; the upper half of the result is its bf16 */
        float x = __uint_as_float(__byte_perm(a, 0x4b000000u, 0x7540u | static_cast<unsigned>(i)));
        float y = __uint_as_float(__byte_perm(b, 0x4b000000u, 0x7540u | static_cast<unsigned>(h)));
        return __byte_perm(__float_as_uint(x - 8388608.0f), __float_as_uint(y - 8388608.0f),
                           0x7632u);
    }
    /* The nibbles at bits 0 and 16 of w as two numbers. */
    static DEVICE_METHOD uint32_t nibbles_pair(uint32_t w, f16 type)
    {
        return fma2((w & 0x000f000fu) | 0x64006400u, 0x3c003c00u, 0xe400e400u, type);
    }
    static DEVICE_METHOD uint32_t nibbles_pair(uint32_t w, bf16 type)
    {
        return fma2((w & 0x000f000fu) | 0x43004300u, 0x3f803f80u, 0xc300c300u, type);
    }

    /* Step s of chunk c of a key: the B operand. */
    DEVICE_METHOD void key_operand(const uint32_t *w, int s, uint32_t b[2]) const
    {
        if (BITS == 16) {
            b[0] = w[2 * s % KW];
            b[1] = w[(2 * s + 1) % KW];
        } else if (BITS == 8) {
            b[0] = bytes_pair(w[s % KW], 0, w[s % KW], 1, T());
            b[1] = bytes_pair(w[s % KW], 2, w[s % KW], 3, T());
        } else { /* dims i and i+4 of a word together; Q is in this order */
            b[0] = nibbles_pair(w[s / 2 % KW] >> (s % 2 ? 8 : 0), T());
            b[1] = nibbles_pair(w[s / 2 % KW] >> (s % 2 ? 12 : 4), T());
        }
    }
    /* Dim e of a lane's part of two values. */
    DEVICE_METHOD uint32_t value_pair(const uint32_t *a, const uint32_t *b, int e) const
    {
        if (BITS == 16)
            return __byte_perm(a[e / 2 % VW], b[e / 2 % VW], e % 2 ? 0x7632u : 0x5410u);
        if (BITS == 8)
            return bytes_pair(a[e / 4 % VW], e % 4, b[e / 4 % VW], e % 4, VT());
        unsigned i = static_cast<unsigned>(e) / 2 % 4;
        uint32_t both =
            __byte_perm(a[e / 8 % VW], b[e / 8 % VW], i | i << 4 | (4 + i) << 8 | (4 + i) << 12);
        return nibbles_pair(both >> (e % 2 ? 4 : 0), VT());
    }

    /* Heads of the item: rows [heads][D] from `row` on. */
    DEVICE_METHOD void load_query(const T *row, int heads)
    {
        int g = lane_id() / 4, j = lane_id() % 4, n = kv->head_dim;
        constexpr int PER = CH / 4, W = PER / 2; /* dims and words of a lane in a chunk */
        qsum = 0;
        UNROLL
        for (int c = 0; c < NCH; c++) {
            uint32_t w[W];
            UNROLL
            for (int i = 0; i < W / 4; i++) {
                int d = c * CH + j * PER + 8 * i;
                uint4 u = g < heads && d < n ? load16(row + static_cast<int64_t>(g) * n + d)
                                             : make_uint4(0, 0, 0, 0);
                w[4 * i] = u.x, w[4 * i + 1] = u.y, w[4 * i + 2] = u.z, w[4 * i + 3] = u.w;
            }
            UNROLL
            for (int i = 0; i < W; i++) {
                float2 f = unpack2<T>(w[i]);
                qsum += f.x + f.y;
                if (BITS != 4)
                    q[c * CH / 16 + i / 2][i % 2] = w[i];
            }
            if (BITS == 4)
                UNROLL
            for (int i = 0; i < W; i++) { /* pairs (0,4), (1,5), (2,6), (3,7) of 8 */
                int at = i / 4 * 4 + i % 4 / 2;
                q[c * CH / 16 + i / 2][i % 2] =
                    __byte_perm(w[at], w[(at + 2) % W], i % 2 ? 0x7632u : 0x5410u);
            }
        }
        qsum += __shfl_xor_sync(FULL, qsum, 1);
        qsum += __shfl_xor_sync(FULL, qsum, 2);
    }

    /* Scores of keys t .. t+KEYS-1, whose K has been loaded, and their largest: powers of 2. */
    DEVICE_METHOD float scores(int t, float scale, float s[2 * KT][4]) const
    {
        int j = lane_id() % 4;
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
            UNROLL
            for (int c = 0; c < NCH; c++)
                UNROLL
            for (int i = 0; i < CH / 16; i++) {
                uint32_t a[4] = {q[c * CH / 16 + i][0], 0, q[c * CH / 16 + i][1], 0}, b[2];
                key_operand(k[n][c], i, b);
                mma(s[n], a, b, T());
            }
        }
        float top = -INFINITY;
        UNROLL
        for (int n = 0; n < 2 * KT; n++)
            UNROLL
        for (int i = 0; i < 2; i++) {
            int pos = t + 8 * n + 2 * j + i;
            float x = s[n][i];
            if (BITS < 16) {
                float2 ks = unpack2<bf16>(kpar[n][0]), kz = unpack2<bf16>(kpar[n][1]);
                x = fmaf(x, i ? ks.y : ks.x, qsum * (i ? kz.y : kz.x));
            }
            s[n][i] = pos >= from && pos < to ? x * scale : -INFINITY;
            top = fmaxf(top, s[n][i]);
        }
        return top;
    }
    /* Adds the values of the keys whose scores are s. */
    DEVICE_METHOD void add(float s[2 * KT][4], float top)
    {
        int j = lane_id() % 4;
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
        float now = fmaxf(m, top), ref = now > -INFINITY ? now : 0.0f;
        float shrink = exp2_fast(m - ref);
        m = now;
        l *= shrink;
        z *= shrink;
        float left = __shfl_sync(FULL, shrink, 8 * j), right = __shfl_sync(FULL, shrink, 8 * j + 4);
        UNROLL
        for (int e = 0; e < D / 16; e++) {
            acc[e][0] *= left;
            acc[e][1] *= right;
            acc[e][2] *= left;
            acc[e][3] *= right;
        }
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            float2 vs = unpack2<bf16>(BITS < 16 ? vpar[n][0] : 0);
            float2 vz = unpack2<bf16>(BITS < 16 ? vpar[n][1] : 0);
            UNROLL
            for (int i = 0; i < 2; i++) {
                float p = exp2_fast(s[n][i] - ref);
                l += p;
                if (BITS < 16) {
                    z = fmaf(p, i ? vz.y : vz.x, z);
                    p *= i ? vs.y : vs.x;
                }
                s[n][i] = p;
            }
        }
        UNROLL
        for (int kt = 0; kt < KT; kt++) {
            uint32_t b[2] = {pack2<VT>(s[2 * kt][0], s[2 * kt][1]),
                             pack2<VT>(s[2 * kt + 1][0], s[2 * kt + 1][1])};
            UNROLL
            for (int c = 0; c < VCH; c++)
                UNROLL
            for (int e = 0; e < U; e += 2) {
                uint32_t(*x)[VW] = v[kt][c];
                uint32_t a[4] = {value_pair(x[0], x[1], e), value_pair(x[0], x[1], e + 1),
                                 value_pair(x[2], x[3], e), value_pair(x[2], x[3], e + 1)};
                mma(acc[(c * U + e) / 2], a, b, VT());
            }
        }
    }
};

/* Pieces of a sequence: n of `span` keys each from `first` on. */
struct pieces {
    int n, first, span;
};
DEVICE pieces pieces_of(const struct turbok_cu_decode_args &a, int seq, int span)
{
    pieces p = {0, 0, 0};
    int len = a.b.kv_lens[seq], w = a.at.window;
    if (a.b.cu_seqlens[seq + 1] - a.b.cu_seqlens[seq] != 1 || len < 1)
        return p;
    p.first = w > 0 && len > w ? (len - w) / 64 * 64 : 0;
    int keys = len - p.first;
    p.n = (keys + span - 1) / span;
    p.span = ((keys + p.n - 1) / p.n + 63) / 64 * 64;
    p.n = (keys + p.span - 1) / p.span;
    return p;
}

/* Numbers the items before each sequence into starts [S+1], slots likewise (pieces of sequences with more
 * than one); returns the span. By the whole block. */
DEVICE int count_items(const struct turbok_cu_decode_args &a, int per_piece, int *starts,
                       int *slots)
{
    TURBOK_SHARED(int, chosen, 4);
    int S = a.b.S, l = lane_id();
    if (warp_id() == 0) {
        float keys = 0;
        UNROLL_BY(1)
        for (int s = l; s < S; s += 32) {
            pieces p = pieces_of(a, s, 1 << 30);
            keys += p.n ? static_cast<float>(p.span) : 0.0f;
        }
        keys = warp_sum(keys) * static_cast<float>(per_piece) / static_cast<float>(gridDim.x);
        float waves = fminf(ceilf(keys / 1024.0f), 4.0f);
        int span = 1 << 30;
        if (a.slots > 0)
            span =
                max(64, (static_cast<int>(fminf(keys / fmaxf(waves, 1.0f), 1e9f)) + 64) / 64 * 64);
        int before = 0, slot = 0;
        UNROLL_BY(1)
        for (int base = 0; base < S; base += 32) {
            int n = base + l < S ? pieces_of(a, base + l, span).n : 0, sum = n;
            int many = n > 1 ? n : 0, sum_many = many;
            for (int i = 1; i < 32; i *= 2) {
                int x = __shfl_up_sync(FULL, sum, i), y = __shfl_up_sync(FULL, sum_many, i);
                if (l >= i) {
                    sum += x;
                    sum_many += y;
                }
            }
            if (base + l < S) {
                starts[base + l] = (before + sum - n) * per_piece;
                slots[base + l] = (slot + sum_many - many) * per_piece;
            }
            before += __shfl_sync(FULL, sum, 31);
            slot += __shfl_sync(FULL, sum_many, 31);
        }
        if (l == 0) {
            starts[S] = before * per_piece;
            chosen[0] = span;
        }
    }
    __syncthreads();
    return chosen[0];
}

/* What a block knows of the item it works on. */
struct work {
    int seq, rest, piece, n_pieces, begin, end, head,
        heads; /* rest: number of the item in its sequence */
    int64_t row; /* of q and out */
};
DEVICE work work_of(const struct turbok_cu_decode_args &a, int item, const int *starts, int span)
{
    int G = a.at.n_heads / a.at.kv.n_kv, tiles = (G + HEADS - 1) / HEADS;
    int per_piece = a.at.kv.n_kv * tiles, lo = 0, hi = a.b.S - 1;
    while (lo < hi) { /* the last sequence that begins at or before the item */
        int mid = (lo + hi + 1) / 2;
        if (starts[mid] <= item)
            lo = mid;
        else
            hi = mid - 1;
    }
    work w;
    pieces p = pieces_of(a, lo, span);
    w.seq = lo;
    w.rest = item - starts[lo];
    w.piece = w.rest / per_piece;
    w.n_pieces = p.n;
    w.begin = p.first + w.piece * p.span;
    w.end = min(w.begin + p.span, a.b.kv_lens[lo]);
    w.head = w.rest % per_piece / tiles;
    int first = w.rest % tiles * HEADS;
    w.heads = min(HEADS, G - first);
    w.row = (static_cast<int64_t>(a.b.cu_seqlens[lo]) * a.at.n_heads + w.head * G + first) *
            a.at.kv.head_dim;
    return w;
}

/* The keys of an item; sums of each warp to o [WARPS][HEADS][D], wm and wl [WARPS][HEADS]. Not waited: this is
 * the block's first, and only what was there before the step has been read so far. Keys of earlier steps need
 * not wait for the kernel that stores the new ones. */
template <class T, int D, int BITS>
DEVICE void run_item(const struct turbok_cu_decode_args &a, const work &it, float *o, float *wm,
                     float *wl, bool waited)
{
    typedef decoder<T, D, BITS> dec;
    const turbok_cu_attn &at = a.at;
    int g = lane_id() / 4, j = lane_id() % 4, len = a.b.kv_lens[it.seq];
    dec w;
    w.kv = &at.kv;
    w.planes = kv_plane(at.kv, 0, at.layer, 0, it.head);
    w.value_offset = at.kv.n_kv * static_cast<int64_t>(at.kv.plane_bytes);
    w.table = a.b.tables + it.seq * a.b.table_stride;
    w.shift = a.block_shift;
    w.from = at.window > 0 && len > at.window ? len - at.window : 0;
    w.to = it.end;
    w.m = -INFINITY;
    w.l = w.z = 0;
    UNROLL
    for (int e = 0; e < D / 16; e++)
        w.acc[e][0] = w.acc[e][1] = w.acc[e][2] = w.acc[e][3] = 0;
    float scale = at.scale * 1.44269504f; /* powers of 2 */
    /* Keys are asked for one turn ahead; the turn before the first only does that. One copy of the code: it
     * comes from memory again after each layer's weights went by. */
    constexpr int STRIDE = WARPS * dec::KEYS;
    UNROLL_BY(1)
    for (int t = it.begin + warp_id() * dec::KEYS - STRIDE; t < it.end; t += STRIDE) {
        bool begun = t >= it.begin;
        int next = t + STRIDE;
        float s[2 * dec::KT][4], top = 0;
        if (begun) {
            w.load_values(t);
            top = w.scores(t, scale, s);
        } else if (!waited && next + dec::KEYS >= len) { /* keys of this step are among them */
            grid_wait();
            waited = true;
        }
        if (next < it.end)
            w.load_keys(next);
        if (begun) {
            w.add(s, top);
            continue;
        }
        if (!waited)
            grid_wait();
        w.load_query(static_cast<const T *>(a.q) + it.row, it.heads);
    }
    UNROLL
    for (int i = 1; i < 4; i *= 2) {
        w.l += __shfl_xor_sync(FULL, w.l, i);
        w.z += __shfl_xor_sync(FULL, w.z, i);
    }
    if (j == 0) {
        wm[warp_id() * HEADS + g] = w.m;
        wl[warp_id() * HEADS + g] = w.l;
    }
    float zs[2] = {__shfl_sync(FULL, w.z, 8 * j), __shfl_sync(FULL, w.z, 8 * j + 4)};
    UNROLL
    for (int e = 0; e < D / 8; e++)
        UNROLL
    for (int i = 0; i < 2; i++) {
        int d = e / dec::U * 8 * dec::U + dec::U * g + e % dec::U;
        o[(warp_id() * HEADS + 2 * j + i) * D + d] = w.acc[e / 2][e % 2 * 2 + i] + zs[i];
    }
}

/* Adds the warps: to out when the item is all of its sequence, else to slot [HEADS][n+TAIL]. */
template <class T, int D>
DEVICE void add_warps(const work &it, const float *o, const float *wm, const float *wl, int n,
                      float *slot, T *out)
{
    UNROLL_BY(1)
    for (int i = static_cast<int>(threadIdx.x); i < it.heads * n; i += 32 * WARPS) {
        int h = i / n, d = i % n;
        float m = -INFINITY, sum = 0, v = 0;
        UNROLL
        for (int k = 0; k < WARPS; k++)
            m = fmaxf(m, wm[k * HEADS + h]);
        float ref = m > -INFINITY ? m : 0.0f;
        UNROLL
        for (int k = 0; k < WARPS; k++) {
            float f = exp2_fast(wm[k * HEADS + h] - ref);
            sum = fmaf(f, wl[k * HEADS + h], sum);
            v = fmaf(f, o[(k * HEADS + h) * D + d], v);
        }
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

template <class T, int D, int BITS> DEVICE void decode_body(const struct turbok_cu_decode_args &a)
{
    TURBOK_SHARED(float, wm, WARPS *HEADS);
    TURBOK_SHARED(float, wl, WARPS *HEADS);
    TURBOK_SHARED(int, last, 4);
    TURBOK_SHARED(work, its, 1);
    const turbok_cu_attn &at = a.at;
    int S = a.b.S, G = at.n_heads / at.kv.n_kv, n = at.kv.head_dim;
    int per_piece = at.kv.n_kv * ((G + HEADS - 1) / HEADS);
    float *o = reinterpret_cast<float *>(shared_dynamic()); /* [WARPS][HEADS][D] */
    int *starts = reinterpret_cast<int *>(o + WARPS * HEADS * D), *slots = starts + S + 1;
    grid_release();
    int span = count_items(a, per_piece, starts, slots), items = starts[S];
    bool waited = false;
    int64_t stride = static_cast<int64_t>(per_piece) * HEADS * (n + TAIL);
    for (int item = static_cast<int>(blockIdx.x); item < items;
         item += static_cast<int>(gridDim.x)) {
        if (threadIdx.x == 0)
            its[0] = work_of(a, item, starts, span);
        __syncthreads();
        const work &it = its[0]; /* in shared memory: registers are short */
        int64_t row = (static_cast<int64_t>(slots[it.seq]) + it.rest) * HEADS;
        float *slot = a.partial + row * (n + TAIL);
        T *out = static_cast<T *>(a.out) + it.row;
        run_item<T, D, BITS>(a, it, o, wm, wl, waited);
        waited = true;
        __syncthreads();
        add_warps<T, D>(it, o, wm, wl, n, slot, out);
        if (it.n_pieces > 1) {
            unsigned top = static_cast<unsigned>(it.n_pieces - 1);
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0)
                last[0] = atomicInc(a.arrived + static_cast<int64_t>(it.seq) * per_piece +
                                        it.rest % per_piece,
                                    top) == top;
            __syncthreads();
            if (last[0]) {
                __threadfence();
                add_pieces<T, D>(slot - it.piece * stride, it.n_pieces, stride, it.heads, n, o,
                                 out);
            }
        }
        __syncthreads();
    }
    if (!waited)
        grid_wait();
    clear_padding<T>(a.b, a.out, at.n_heads * n);
}

#endif
