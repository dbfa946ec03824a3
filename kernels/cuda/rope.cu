/* kernels/cuda/rope.cu: splits a row of the QKV product, rotates Q and K, writes K and V into the cache.
 * One warp a head. Angles as kernels/nn/rope.c has them; quantisation as kernels/cpu/quant.h: the same
 * operations in the same order, so that a row gives the same codes. */
#include "cuda/rope.cuh"

/* bf16 not above and not below f, which is finite. */
DEVICE uint32_t bf16_below(float f)
{
    uint32_t u = __float_as_uint(f);
    return (u >> 31 ? u + 0xffffu : u) >> 16;
}
DEVICE uint32_t bf16_above(float f)
{
    uint32_t u = __float_as_uint(f);
    return (u >> 31 ? u : u + 0xffffu) >> 16;
}

/* cos and sin of position pos into c, s [dim/2], by the whole block. */
DEVICE void angles(const turbok_cu_attn &at, int pos, int rope_len, float *c, float *s)
{
    int half = at.rope_dim / 2;
    bool grown = at.rope_factor > 0 && rope_len > at.rope_max && at.rope_dim > 2;
    double base = 1;
    if (grown) {
        double f = static_cast<double>(at.rope_factor);
        double grow = f * rope_len / at.rope_max - (f - 1.0);
        base = at.rope_base * pow(grow, static_cast<double>(at.rope_dim) / (at.rope_dim - 2));
    }
    for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
        if (!grown && pos < at.rope_table) {
            c[i] = at.cosine[static_cast<int64_t>(pos) * half + i];
            s[i] = at.sine[static_cast<int64_t>(pos) * half + i];
            continue;
        }
        float inv = grown ? static_cast<float>(pow(base, -2.0 * i / at.rope_dim)) : at.inv[i];
        float angle = static_cast<float>(pos) * inv;
        /* in half turns, whole turns taken off in double: as exact as cos and sin of the angle */
        double turns = static_cast<double>(angle) * 0.318309886183790671538;
        turns -= 2 * rint(turns / 2);
        float sine, cosine;
        sincospif(static_cast<float>(turns), &sine, &cosine);
        c[i] = cosine * at.rope_scale;
        s[i] = sine * at.rope_scale;
    }
}

/* One row [D] f32 in shared memory as codes, by one warp. */
DEVICE void store_codes(const turbok_cu_kv &kv, char *plane, int slot, const float *row)
{
    int D = kv.head_dim, l = lane_id(), per = kv.dtype == KV_INT8 ? 1 : 2;
    float top = per == 1 ? 255.0f : 15.0f, lo = row[0], hi = row[0];
    bool good = true;
    for (int i = l; i < D; i += 32) {
        lo = fminf(lo, row[i]);
        hi = fmaxf(hi, row[i]);
        good = good && row[i] - row[i] == 0.0f;
    }
    lo = -warp_max(-lo);
    hi = warp_max(hi);
    good = __all_sync(FULL, good);
    uint32_t scale = 0x7fc0u, zero = 0x7fc0u, z = good ? bf16_below(lo + 0.0f) : 0x7fc0u;
    float range = hi - __uint_as_float(z << 16);
    if (range - range == 0.0f) {
        scale = bf16_above(__fdiv_rn(range, top));
        if (range > 0.0f && !scale)
            scale = 1;
        zero = z;
    }
    float fs = __uint_as_float(scale << 16), fz = __uint_as_float(zero << 16);
    uint8_t *codes = reinterpret_cast<uint8_t *>(plane) + static_cast<int64_t>(slot) * D / per;
    for (int i = l; i < D / per; i += 32) {
        uint32_t byte = 0;
        for (int k = 0; k < per && fs > 0.0f; k++) {
            float u = __fdiv_rn(row[i * per + k] - fz, fs);
            u = (u < top ? u : top) + 12582912.0f; /* rounds; the integer is in the low bits */
            byte |= (__float_as_uint(u) & 255u) << 4 * k;
        }
        codes[i] = static_cast<uint8_t>(byte);
    }
    bf16 *par = reinterpret_cast<bf16 *>(plane + kv_code_bytes(kv)) + slot;
    if (l == 0) {
        par[0].x = static_cast<uint16_t>(scale);
        par[kv.block_tokens].x = static_cast<uint16_t>(zero);
    }
}

template <class T> DEVICE void rope_store_body(const struct turbok_cu_rope_store_args &a)
{
    const turbok_cu_attn &at = a.at;
    int D = at.kv.head_dim, H = at.n_heads, K = at.kv.n_kv, half = at.rope_dim / 2, l = lane_id();
    float *c = reinterpret_cast<float *>(shared_dynamic()), *s = c + half;
    float *row = s + half + warp_id() * D;
    grid_release();
    /* The inputs of a step were there before its first kernel. */
    int64_t t = blockIdx.x;
    int seq = a.b.seq_of[t], pos = a.b.positions[t];
    int64_t table = seq < 0 ? 0 : seq * static_cast<int64_t>(a.b.table_stride);
    int block = seq < 0 ? 0 : a.b.tables[table + pos / at.kv.block_tokens];
    if (at.rope_dim)
        angles(at, pos, seq < 0 ? 0 : a.b.rope_lens[seq], c, s);
    __syncthreads();
    grid_wait();
    const T *in = static_cast<const T *>(a.qkv) + t * (H + 2 * K) * D;
    int end = min(H + 2 * K, static_cast<int>(blockIdx.y + 1) * a.per_block);
    for (int h = static_cast<int>(blockIdx.y) * a.per_block + warp_id(); h < end;
         h += static_cast<int>(blockDim.x / 32)) {
        const T *head = in + column(at, h);
        int turned = h < H + K ? at.rope_dim : 0;
        for (int i = l; i < turned / 2; i += 32) {
            int x = at.rope_style ? 2 * i : i, y = at.rope_style ? 2 * i + 1 : i + half;
            float2 v = turned_by(to_f(head[x]), to_f(head[y]), c[i], s[i]);
            row[x] = v.x;
            row[y] = v.y;
        }
        for (int i = turned + l; i < D; i += 32)
            row[i] = to_f(head[i]);
        __syncwarp();
        if (h < H) {
            T *q = static_cast<T *>(a.q) + (t * H + h) * D;
            for (int i = l; i < D; i += 32)
                q[i] = from_f<T>(row[i]);
        } else if (seq >= 0) {
            int value = h >= H + K, head_kv = h - H - value * K;
            int slot = pos % at.kv.block_tokens;
            char *plane = kv_plane(at.kv, block, at.layer, value, head_kv);
            if (at.kv.dtype >= KV_INT4)
                store_codes(at.kv, plane, slot, row);
            else
                for (int i = l; i < D; i += 32)
                    put_element(at.kv.dtype, plane, static_cast<int64_t>(slot) * D + i, row[i]);
        }
        __syncwarp();
    }
}
TURBOK_KERNEL_ACT(rope_store, 256, 2)

/* Twice 16 bytes of a head: numbers p.. and p + half.. are turned together, or 2p.. and 2p + 8.. where pairs are
 * neighbours or nothing is turned. */
template <class T> struct rope_piece {
    uint4 x, y;
    const T *in;
    T *out; /* NULL: nothing is stored */
    int lo, hi;
    bool turn;

    DEVICE_METHOD void load()
    {
        x = load16(in + lo);
        y = load16(in + hi);
    }
    DEVICE_METHOD void finish(bool neighbours, const float *c, const float *s) /* of this piece */
    {
        float u[8], v[8];
        if (!out)
            return;
        if (turn) {
            load8f(reinterpret_cast<const T *>(&x), u);
            load8f(reinterpret_cast<const T *>(&y), v);
            if (neighbours) {
                UNROLL
                for (int k = 0; k < 4; k++) {
                    const float2 f = turned_by(u[2 * k], u[2 * k + 1], c[k], s[k]);
                    const float2 g = turned_by(v[2 * k], v[2 * k + 1], c[4 + k], s[4 + k]);
                    u[2 * k] = f.x, u[2 * k + 1] = f.y, v[2 * k] = g.x, v[2 * k + 1] = g.y;
                }
            } else {
                UNROLL
                for (int k = 0; k < 8; k++) {
                    const float2 f = turned_by(u[k], v[k], c[k], s[k]);
                    u[k] = f.x, v[k] = f.y;
                }
            }
            store8f(out + lo, u);
            store8f(out + hi, v);
        } else {
            store16(out + lo, x);
            store16(out + hi, y);
        }
    }
};

/* The same for many tokens, a block each, where the cache has the type of the activations, 16 bits, and heads and what
 * is turned of them are multiples of 16. A thread has a place in a head and every so many heads, two at a time. */
template <class T> DEVICE void rope_rows_body(const struct turbok_cu_rope_store_args &a)
{
    const turbok_cu_attn &at = a.at;
    const int D = at.kv.head_dim, H = at.n_heads, K = at.kv.n_kv, half = at.rope_dim / 2, per = D / 16;
    float *c = reinterpret_cast<float *>(shared_dynamic()), *s = c + half;
    grid_release();
    const int64_t t = blockIdx.x;
    const int seq = a.b.seq_of[t], pos = a.b.positions[t];
    const int64_t table = seq < 0 ? 0 : seq * a.b.table_stride;
    const int64_t slot = static_cast<int64_t>(pos % at.kv.block_tokens) * D;
    T *block = reinterpret_cast<T *>(kv_plane(
        at.kv, seq < 0 ? 0 : a.b.tables[table + pos / at.kv.block_tokens], at.layer, 0, 0));
    if (at.rope_dim)
        angles(at, pos, seq < 0 ? 0 : a.b.rope_lens[seq], c, s);
    __syncthreads();
    grid_wait();
    const int step = static_cast<int>(blockDim.x) / per, first = static_cast<int>(threadIdx.x) / per,
              p = static_cast<int>(threadIdx.x) % per * 8;
    const T *in = static_cast<const T *>(a.qkv) + t * (H + 2 * K) * D;
    T *q = static_cast<T *>(a.q) + t * H * D;
    auto piece_of = [&](int h) {
        rope_piece<T> r;
        r.in = in + column(at, h);
        r.out = h < H      ? q + h * D
                : seq >= 0 ? block + (h - H) * static_cast<int64_t>(at.kv.plane_bytes / sizeof(T)) + slot
                           : nullptr;
        r.turn = h < H + K && p < half;
        r.lo = r.turn && !at.rope_style ? p : 2 * p;
        r.hi = r.turn && !at.rope_style ? p + half : 2 * p + 8;
        r.load();
        return r;
    };
    for (int h = first; h < H + 2 * K && first < step; h += 2 * step) {
        const bool two = h + step < H + 2 * K;
        rope_piece<T> x = piece_of(h), y = piece_of(two ? h + step : h);
        x.finish(at.rope_style, c + p, s + p);
        if (two)
            y.finish(at.rope_style, c + p, s + p);
    }
}
TURBOK_KERNEL(rope_rows_f16, rope_store, 128, 8)
{
    rope_rows_body<f16>(a);
}
TURBOK_KERNEL(rope_rows_bf16, rope_store, 128, 8)
{
    rope_rows_body<bf16>(a);
}
