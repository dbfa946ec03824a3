/* kernels/cuda/sample.cu: sampling: the same tokens as the plugin samp-std draws on the CPU from the same
 * logits, to the bit. So its order of operations is that of samp-std: masks, bias, penalties, temperature,
 * filters, one draw by Philox-4x32-10 of (seed, position); candidates best first, equal logits by id;
 * weights by the same polynomial in double precision, sums in the same order, nothing contracted.
 * doc/sampling.md has the meaning of each step.
 *
 * A block has a row. Without filters, weights are added up in blocks of 64 and the blocks one after the
 * other. With filters, the best candidates are taken in portions of at most PORTION: a radix search finds a
 * key that so many do not exceed, those are sorted, and one thread walks them. */
#include "cuda/kernels.h"
#include "cuda/prims_q.cuh"

namespace
{
enum { THREADS = 512, BLOCK = 64, PORTION = 1024, DIGIT = 11, BINS = 1 << DIGIT, TILE = 512 };

typedef turbok_cu_sample_row row_params;
typedef unsigned long long key_t64;

constexpr float MOST = 0x1.fffffep127f;
constexpr double DEPTH = 60;

DEVICE float minus_infinity()
{
    return __uint_as_float(0xff800000u);
}

/* Numbers that grow as logits fall, and with the id where logits are equal; -0 counts as 0. */
DEVICE key_t64 key_of(float v, int id)
{
    uint32_t u = __float_as_uint(v + 0.0f);
    u = u & 0x80000000u ? u : ~(u | 0x80000000u);
    return (key_t64)u << 32 | (uint32_t)id;
}
DEVICE float logit_of(key_t64 key)
{
    uint32_t u = (uint32_t)(key >> 32);
    return __uint_as_float(u & 0x80000000u ? u : ~u & 0x7fffffffu);
}

/* exp(x) for x <= 0; samp-std's vec.c. */
DEVICE double weight(double x)
{
    if (!(x >= -600.0))
        return 0;
    const double round = 0x1.8p52;
    double t = add_d(mul_d(x, 0x1.71547652b82fep+0), round), n = add_d(t, -round);
    double r = add_d(add_d(x, -mul_d(n, 0x1.62e42fee00000p-1)), -mul_d(n, 0x1.a39ef35793c76p-33));
    const double terms[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                            1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
    double p = 1.0 / 479001600;
    UNROLL
    for (int i = 0; i < 12; i++)
        p = add_d(mul_d(p, r), terms[i]);
    return mul_d(p, double_of((bits_of(t) << 52) + (1023ull << 52)));
}
DEVICE double weight_of(float logit, double best, double inv)
{
    return weight(mul_d(add_d((double)logit, -best), inv));
}

DEVICE double uniform(uint64_t seed, uint32_t position)
{
    uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)c0 << 21) ^ ((uint64_t)c1 >> 11)) * 0x1p-53;
}

DEVICE key_t64 block_min(key_t64 v, key_t64 *room)
{
    for (int i = 16; i; i /= 2) {
        key_t64 other = __shfl_xor_sync(FULL, v, i);
        v = other < v ? other : v;
    }
    __syncthreads();
    if (lane_id() == 0)
        room[warp_id()] = v;
    __syncthreads();
    v = room[0];
    for (int i = 1; i < THREADS / 32; i++)
        v = room[i] < v ? room[i] : v;
    return v;
}

/* The best of l[from..to-1] as a key, by this thread's share of them; 0: one is NaN or +inf. */
DEVICE key_t64 best_key(const float *l, int from, int to)
{
    const int tid = (int)threadIdx.x, step = 4 * THREADS;
    key_t64 best = ~0ull;
    const auto see = [&](float v, int i) {
        key_t64 k = !(v <= MOST) ? 0 : key_of(v, i); /* 0: no logit has it */
        best = k < best ? k : best;
    };
    int i = from;
    if ((uintptr_t)(l + from) % 16 == 0) {
        const int wide = from + (to - from) / 4 * 4;
        UNROLL_BY(4)
        for (int k = from + 4 * tid; k < wide; k += step) {
            const float4 v = *(const float4 *)(l + k);
            see(v.x, k);
            see(v.y, k + 1);
            see(v.z, k + 2);
            see(v.w, k + 3);
        }
        i = wide;
    }
    for (i += tid; i < to; i += THREADS)
        see(l[i], i);
    return best;
}

/* The best id, by samp_argmax, of the best keys of all threads; -1 when one is NaN or +inf or none is finite. The
 * same in all threads. */
DEVICE int best_of(key_t64 best, key_t64 *room)
{
    best = block_min(best, room);
    return best == 0 || logit_of(best) < -MOST ? -1 : (int)(uint32_t)best;
}

/* ---- masks, bias, penalties -------------------------------------------------------------------- */

DEVICE void ban_words(float *l, const row_params &p)
{
    const turbok_cu_sample_state *st = p.state;
    const int32_t *word = p.bad_ids;
    for (int w = 0; w < p.n_bad; word += p.bad_len[w], w++) {
        const int head = p.bad_len[w] - 1;
        if (w % THREADS != (int)threadIdx.x || head < 0 || head > TURBOK_CU_RECENT ||
            (uint32_t)head > st->n_recent)
            continue;
        bool match = true;
        for (int k = 0; match && k < head; k++)
            match = st->recent[(st->n_recent - (uint32_t)head + (uint32_t)k) % TURBOK_CU_RECENT] == word[k];
        if (match)
            l[word[head]] = minus_infinity();
    }
}

DEVICE void add_bias(float *l, const row_params &p)
{
    for (int i = (int)threadIdx.x; i < p.n_bias; i += THREADS) {
        const int id = p.bias_ids[i];
        bool first = true;
        for (int k = 0; k < i; k++)
            first = first && p.bias_ids[k] != id;
        for (int k = i; first && k < p.n_bias; k++)
            if (p.bias_ids[k] == id)
                l[id] += p.bias[k];
    }
}

DEVICE void penalise(float *l, const row_params &p, int V)
{
    for (int i = (int)threadIdx.x; i < V; i += THREADS) {
        const uint32_t count = p.counts[i], times = count & 0x7fffffffu;
        const float v = l[i];
        if (!count || v < -MOST)
            continue;
        float w = v > 0 ? __fdiv_rn(v, p.repetition) : __fmul_rn(v, p.repetition);
        if (times)
            w = __fadd_rn(w, -__fadd_rn(p.presence, __fmul_rn(p.frequency, (float)(int)times)));
        l[i] = w > MOST ? MOST : w < -MOST ? -MOST : w;
    }
}

/* False: nothing was asked for. */
DEVICE bool shape(float *l, const row_params &p, int V)
{
    const bool held = (int64_t)p.state->position < p.min_tokens && p.n_stop;
    if (!p.allowed && !p.n_bad && !held && !p.n_bias && !p.counts)
        return false;
    for (int i = (int)threadIdx.x; p.allowed && i < V; i += THREADS)
        if (!(p.allowed[i / 32] >> (i % 32) & 1))
            l[i] = minus_infinity();
    __syncthreads();
    ban_words(l, p);
    for (int i = (int)threadIdx.x; held && i < p.n_stop; i += THREADS)
        l[p.stop_ids[i]] = minus_infinity();
    __syncthreads();
    add_bias(l, p);
    __syncthreads();
    if (p.counts)
        penalise(l, p, V);
    __syncthreads();
    return true;
}

/* ---- without filters --------------------------------------------------------------------------- */

/* sums[b] = weights of block b, and behind them, in `upto`, of all blocks up to b, as samp_sums adds them.
 * Returns the last. */
DEVICE double block_sums(const float *l, int V, double best, double inv, double *sums, double *upto,
                         double *room)
{
    const int blocks = (V + BLOCK - 1) / BLOCK, part = (int)threadIdx.x % 8;
    const int rounds = (blocks + THREADS / 8 - 1) / (THREADS / 8);
    for (int t = 0; t < rounds; t++) { /* eight threads a block, as there are eight lanes there */
        const int b = t * (THREADS / 8) + (int)threadIdx.x / 8;
        float top = minus_infinity();
        double sum = 0;
        for (int i = 0; i < BLOCK / 8; i++) {
            const int id = b * BLOCK + i * 8 + part;
            if (id < V) {
                top = fmaxf(top, l[id]);
                sum = add_d(sum, weight_of(l[id], best, inv));
            }
        }
        UNROLL
        for (int x = 1; x < 8; x *= 2) {
            top = fmaxf(top, __shfl_xor_sync(FULL, top, x));
            sum = add_d(sum, __shfl_xor_sync(FULL, sum, x));
        }
        if (part == 0 && b < blocks)
            sums[b] = mul_d(add_d((double)top, -best), inv) < -DEPTH ? 0 : sum;
    }
    __syncthreads();
    double total = 0;
    for (int at = 0; at < blocks; at += TILE) {
        const int n = blocks - at < TILE ? blocks - at : TILE, i = (int)threadIdx.x;
        if (i < n)
            room[i] = sums[at + i];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int k = 0; k < n; k++)
                room[k] = total = add_d(total, room[k]);
        __syncthreads();
        total = room[n - 1];
        if (i < n)
            upto[at + i] = room[i];
        __syncthreads();
    }
    return total;
}

/* The first id of block b whose weight, counted on `from`, exceeds `to`; samp_in_block. */
DEVICE int in_block(const float *l, int V, int b, double best, double inv, double from, double to,
                    double *room)
{
    const int t = (int)threadIdx.x;
    if (t < BLOCK)
        room[t] = b * BLOCK + t < V ? weight_of(l[b * BLOCK + t], best, inv) : 0;
    __syncthreads();
    int last = -1;
    for (int i = 0; i < BLOCK; i++) {
        if (!(room[i] > 0))
            continue;
        last = b * BLOCK + i;
        from = add_d(from, room[i]);
        if (from > to)
            break;
    }
    return last;
}

DEVICE int draw_all(const float *l, int V, int best_id, double inv, double u, double *sums, double *room,
                    key_t64 *keys)
{
    const int blocks = (V + BLOCK - 1) / BLOCK;
    const double best = (double)l[best_id];
    double *upto = sums + blocks;
    const double to = mul_d(u, block_sums(l, V, best, inv, sums, upto, room));
    key_t64 first = ~0ull;
    for (int b = (int)threadIdx.x; b < blocks; b += THREADS)
        if (upto[b] > to) {
            first = (key_t64)b;
            break;
        }
    first = block_min(first, keys);
    if (first == ~0ull)
        return best_id;
    int id = in_block(l, V, (int)first, best, inv, first ? upto[first - 1] : 0, to, room);
    return id < 0 ? best_id : id;
}

/* ---- with filters ------------------------------------------------------------------------------ */

/* Shared memory of a block. */
struct space {
    key_t64 *keys; /* [PORTION] */
    double *room; /* [PORTION] weights of keys; [TILE] sums */
    uint32_t *bins; /* [BINS] */
    int *count; /* [4] the bin, how many before it, all; keys in the portion */
};

struct candidates {
    const float *l;
    int V;
    double best, inv;
    /* Those of key >= from: beyond DEPTH temperatures below the best nobody takes part. */
    DEVICE_OF bool has(int i, key_t64 from, key_t64 *key) const
    {
        *key = key_of(l[i], i);
        return *key >= from && mul_d(add_d(best, -(double)l[i]), inv) < DEPTH;
    }
};

/* The bin in which the count passes what there is room for, and the count before it: warp 0 looks. */
DEVICE void find_bin(const space &s, int have)
{
    if (warp_id() != 0)
        return;
    const int each = BINS / 32, lane = lane_id();
    int mine = 0;
    for (int i = 0; i < each; i++)
        mine += (int)s.bins[lane * each + i];
    int before = mine;
    for (int i = 1; i < 32; i *= 2) {
        int other = __shfl_up_sync(FULL, before, i);
        before += lane >= i ? other : 0;
    }
    before += have - mine;
    if (lane == 31)
        s.count[2] = before + mine; /* all */
    if (before <= PORTION && before + mine > PORTION) {
        int i = 0;
        for (; before + (int)s.bins[lane * each + i] <= PORTION; i++)
            before += (int)s.bins[lane * each + i];
        s.count[0] = lane * each + i;
        s.count[1] = before;
    }
}

/* A key that at least one and at most PORTION candidates from `from` on do not exceed. */
DEVICE key_t64 limit_of(const space &s, const candidates &c, key_t64 from)
{
    key_t64 prefix = 0;
    int have = 0;
    for (int top = 64;;) { /* bits from `top` on are those of prefix */
        const int shift = top > DIGIT ? top - DIGIT : 0;
        for (int i = (int)threadIdx.x; i < BINS; i += THREADS)
            s.bins[i] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < c.V; i += THREADS) {
            key_t64 k;
            if (c.has(i, from, &k) && (top == 64 || k >> top == prefix >> top))
                atomicAdd(&s.bins[(k >> shift) & ((1u << (top - shift)) - 1)], 1u);
        }
        __syncthreads();
        find_bin(s, have);
        __syncthreads();
        const int bin = s.count[0], before = s.count[1], all = s.count[2];
        __syncthreads();
        if (all <= PORTION)
            return top == 64 ? ~0ull : prefix | (((key_t64)1 << top) - 1);
        if (before >= PORTION / 4)
            return (prefix | (key_t64)bin << shift) - 1;
        prefix |= (key_t64)bin << shift;
        have = before;
        top = shift;
    }
}

DEVICE void sort_keys(const space &s, int n)
{
    int size = 2;
    while (size < n)
        size *= 2;
    for (int i = n + (int)threadIdx.x; i < size; i += THREADS)
        s.keys[i] = ~0ull;
    __syncthreads();
    for (int k = 2; k <= size; k *= 2)
        for (int j = k / 2; j; j /= 2) {
            for (int i = (int)threadIdx.x; i < size; i += THREADS) {
                const int o = i ^ j;
                const key_t64 a = s.keys[i], b = o > i ? s.keys[o] : 0;
                if (o > i && (a > b) == !(i & k)) {
                    s.keys[i] = b;
                    s.keys[o] = a;
                }
            }
            __syncthreads();
        }
}

/* The portion that begins at `from`, sorted, with its weights; returns how many, 0: there are no more. */
DEVICE int portion(const space &s, const candidates &c, key_t64 from)
{
    const key_t64 limit = limit_of(s, c, from);
    if (threadIdx.x == 0)
        s.count[3] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < c.V; i += THREADS) {
        key_t64 k;
        if (c.has(i, from, &k) && k <= limit)
            s.keys[atomicAdd(&s.count[3], 1)] = k;
    }
    __syncthreads();
    const int n = s.count[3];
    sort_keys(s, n);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        s.room[i] = weight_of(logit_of(s.keys[i]), c.best, c.inv);
    __syncthreads();
    return n;
}

enum phase { TOTAL, KEEP, DRAW };

struct filters {
    bool top_k, top_p, min_p;
    double p, least;
};

/* Walks candidates best first, at most `most` of them. TOTAL: adds all weights. KEEP: those that the filters
 * leave, given `total`. DRAW: to the first with which the sum exceeds `total`. Returns how many were walked, or
 * for DRAW the id, -1: none; *sum: their weights. *loaded: what lies in shared memory begins there. */
DEVICE int walk(const space &s, const candidates &c, const filters &f, phase ph, int most, double total,
                double *sum, key_t64 *loaded, int *n_loaded)
{
    key_t64 from = 0;
    int done = 0, id = -1;
    double at = 0;
    for (bool stop = false; done < most && !stop;) {
        if (*loaded != from) {
            *n_loaded = portion(s, c, from);
            *loaded = from;
        }
        const int n = *n_loaded < most - done ? *n_loaded : most - done;
        int i = 0;
        for (; i < n && !stop; i++) { /* every thread walks: the same numbers everywhere */
            const double w = s.room[i];
            if (ph == KEEP && done + i && ((f.top_p && at >= mul_d(f.p, total)) || (f.min_p && w < f.least))) {
                stop = true;
                break;
            }
            at = add_d(at, w);
            if (ph == DRAW && at > total) {
                id = (int)(uint32_t)s.keys[i];
                stop = true;
            }
        }
        done += i;
        stop = stop || n == 0 || (from = s.keys[n - 1] + 1) == 0;
        __syncthreads();
    }
    *sum = at;
    return ph == DRAW ? id : done;
}

DEVICE int draw_filtered(const space &s, const candidates &c, const row_params &p, const filters &f,
                         int best_id, double u, double *sums)
{
    key_t64 loaded = ~0ull;
    int n_loaded = 0, most = f.top_k ? p.top_k : c.V;
    double total = 0, sum = 0;
    if (f.top_k && f.top_p)
        walk(s, c, f, TOTAL, most, 0, &total, &loaded, &n_loaded);
    else if (f.top_p)
        total = block_sums(c.l, c.V, c.best, c.inv, sums, sums + (c.V + BLOCK - 1) / BLOCK, s.room);
    const int kept = walk(s, c, f, KEEP, most, total, &sum, &loaded, &n_loaded);
    double at;
    const int id = walk(s, c, f, DRAW, kept, mul_d(u, sum), &at, &loaded, &n_loaded);
    return id < 0 ? best_id : id;
}

DEVICE void accept(turbok_cu_sample_state *st, uint32_t *counts, int id)
{
    st->position++;
    st->recent[st->n_recent % TURBOK_CU_RECENT] = id;
    st->n_recent++;
    if (counts)
        counts[id]++;
}
} // namespace

/* The best of part x of row y, as a key where the row's sums will be: few rows leave most of the device idle in `sample`. */
TURBOK_KERNEL(sample_best, sample, 512, 1)
{
    TURBOK_SHARED(key_t64, room, THREADS / 32);
    const int n = (int)blockIdx.y, x = (int)blockIdx.x;
    const int each = ((a.V + a.parts - 1) / a.parts + 3) / 4 * 4, from = min(x * each, a.V);
    grid_release();
    grid_wait();
    const int index = a.rows[n].index;
    if (index < 0)
        return;
    const float *l = a.logits + (int64_t)index * a.V;
    const key_t64 best = block_min(best_key(l, from, min(from + each, a.V)), room);
    if (threadIdx.x == 0)
        a.sums[(int64_t)n * 2 * ((a.V + BLOCK - 1) / BLOCK) + x] = double_of(best);
}

TURBOK_KERNEL(sample, sample, 512, 1)
{
    TURBOK_SHARED(key_t64, keys, PORTION);
    TURBOK_SHARED(double, room, PORTION);
    TURBOK_SHARED(uint32_t, bins, BINS);
    TURBOK_SHARED(int, count, 4);
    const int n = (int)blockIdx.x;
    grid_wait();
    const row_params p = a.rows[n];
    if (p.index < 0) {
        if (threadIdx.x == 0) {
            a.tokens[n] = -1;
            a.status[n] = 0;
        }
        return;
    }
    float *l = a.logits + (int64_t)p.index * a.V;
    double *sums = a.sums + (int64_t)n * 2 * ((a.V + BLOCK - 1) / BLOCK);
    key_t64 part = ~0ull;
    if ((int)threadIdx.x < a.parts)
        part = bits_of(sums[threadIdx.x]);
    const int own = best_of(a.parts ? part : best_key(l, 0, a.V), keys);
    int best = own, id = own;
    if (own >= 0 && shape(l, p, a.V))
        best = best_of(best_key(l, 0, a.V), keys);
    if (own >= 0 && best >= 0 && p.temperature > 0) {
        const double inv = 1.0 / (double)p.temperature, u = uniform(p.seed, p.state->position);
        const filters f = {p.top_k > 0 && p.top_k < a.V, p.top_p < 1, p.min_p > 0, (double)p.top_p,
                           (double)p.min_p};
        const space s = {keys, room, bins, count};
        const candidates c = {l, a.V, (double)l[best], inv};
        id = f.top_k || f.top_p || f.min_p ? draw_filtered(s, c, p, f, best, u, sums)
                                           : draw_all(l, a.V, best, inv, u, sums, room, keys);
    } else if (best >= 0) {
        id = best;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        a.tokens[n] = id;
        a.status[n] = own < 0 ? a.data_error : 0;
        if (own >= 0)
            accept(p.state, p.counts, id);
    }
}

TURBOK_KERNEL(sample_tokens, sample_tokens, 512, 1)
{
    grid_wait();
    for (int i = (int)threadIdx.x; a.begin && a.counts && i < a.V; i += (int)blockDim.x)
        a.counts[i] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; a.counts && i < a.n; i += (int)blockDim.x) {
        if (a.begin)
            atomicOr(a.counts + a.tokens[i], 0x80000000u);
        else
            atomicAdd(a.counts + a.tokens[i], 1u);
    }
    if (threadIdx.x == 0) {
        uint32_t n = a.begin ? 0 : a.state->n_recent;
        a.state->position = a.begin ? 0 : a.state->position + (uint32_t)a.n;
        a.state->n_recent = n + (uint32_t)a.n;
        for (int i = a.n > TURBOK_CU_RECENT ? a.n - TURBOK_CU_RECENT : 0; i < a.n; i++)
            a.state->recent[(n + (uint32_t)i) % TURBOK_CU_RECENT] = a.tokens[i];
    }
}
