/* kernels/cuda/decode_codes.cuh: attention of a warp over keys and values of 8 and 4 bits, for
 * decode.cuh:
 *
 * q.k = scale (q.u) + zero sum(q)          sum p v = sum (p scale) u + sum(p zero)
 *
 * Codes u go into the tensor cores as they lie, as integers of 8 bits with exact sums of 32: no
 * code is converted. What they meet is made of digits: a query is a row of whole numbers of 22
 * bits, relative to the largest of its head, in three digits with signs; p scale is one of 15
 * bits, relative to the largest of a turn's 32 keys, in two. A sum of a digit is put together
 * with those of the others in fp32. Of 4-bit codes the upper ones stay where they are and count
 * 16 times.
 *
 * Integer sums begin at a number whose bits are those of a float with room below it, so that the
 * sum is a float too. */
#ifndef TURBOK_CUDA_DECODE_CODES_CUH
#define TURBOK_CUDA_DECODE_CODES_CUH

#include "cuda/decode_place.cuh"
#include "cuda/prims_codes.cuh"

template <class T, int D, int BITS> struct code_decoder {
    static constexpr int KEYS = 32; /* of a turn of a warp */
    static constexpr bool KEYS_EARLY = false; /* registers are short */
    static constexpr int KW = D * BITS / 128; /* words of a key that a lane has, and of a value */
    static constexpr int DIMS = D / 8, VW = DIMS * BITS / 32;
    static constexpr int QW = D / 16;
    enum : uint32_t { LOW = 0x0f0f0f0fu, HIGH = 0xf0f0f0f0u };
    enum { SIGNED = 0x4b400000, PLAIN = 0x4b000000 }; /* 1.5 and 1 times 2^23 */
    /* Of the query, A operands: [QW/2] upper and middle, [QW/4] lower; every 32nd is this lane's. */
    uint4 *digits;
    uint32_t k[4][KW], v[8][VW];
    uint4 kscale, kzero, vscale, vzero; /* of this lane's 8 keys: t + 8j .. t + 8j + 7 */
    float acc[D / 16][4]; /* two dims x heads 2j and 2j+1; of 4 bits the second counts 16 times */
    float s[8], top; /* scores of this lane's keys with head g, and the largest: powers of 2 */
    bool ragged; /* not all keys of the turn exist; those of this lane that do: */
    uint32_t valid;
    float m, l, z; /* of head g; l, z: of this lane's keys */
    float unit, qsum; /* what 1 of the query's digits stands for, and its sum; times the scale */
    key_place at;

    /* room: of this warp alone, as large as what store() writes, and free until then. */
    DEVICE_METHOD void begin(float *room)
    {
        digits = reinterpret_cast<uint4 *>(room) + lane_id();
        m = -INFINITY;
        l = z = 0;
        UNROLL
        for (int e = 0; e < D / 16; e++)
            acc[e][0] = acc[e][1] = acc[e][2] = acc[e][3] = 0;
    }
    /* The plane of the 8 keys from pos on; where they do not exist, of some that do. */
    DEVICE_METHOD const char *run_of(int pos, int t, int *slot) const
    {
        return at.plane(pos < at.to && pos + 7 >= at.from ? pos : max(t, at.from & ~7), slot);
    }
    DEVICE_METHOD int64_t row_bytes() const
    {
        return at.kv->head_dim * BITS / 8;
    }
    /* Group n of keys is 2n and 2n+1 of each run of 8: then the scores that a lane gets are of
     * one run. */
    DEVICE_METHOD void load_keys(int t)
    {
        int g = lane_id() / 4, j = lane_id() % 4, n_dims = at.kv->head_dim, slot;
        constexpr int PER = KW < 4 ? KW : 4, STEP = PER * 32 / BITS; /* words, dims of a load */
        bool wide = BITS == 8 || KW < 4 || n_dims % 32 == 0;
        const char *p = run_of(t + g / 2 * 8, t, &slot);
        p += (slot + g % 2) * row_bytes() + j * PER * 4;
        UNROLL
        for (int n = 0; n < 4; n++, p += 2 * row_bytes())
            UNROLL
        for (int c = 0; c < KW; c += PER) {
            int d = c / PER * 4 * STEP + j * STEP;
            if (wide)
                load_words<PER>(k[n] + c, p + c * 16, d < n_dims);
            else { /* rows begin at multiples of 8 bytes */
                load_words<2>(k[n] + c, p, d < n_dims);
                load_words<2>(k[n] + (c + 2) % KW, p + 8, d + STEP / 2 < n_dims);
            }
        }
        p = run_of(t + j * 8, t, &slot) + at.kv->block_tokens * row_bytes() + 2 * slot;
        kscale = load16(p);
        kzero = load16(p + 2 * at.kv->block_tokens);
    }
    DEVICE_METHOD void load_values(int t)
    {
        int g = lane_id() / 4, j = lane_id() % 4, slot;
        const char *p = run_of(t + j * 8, t, &slot) + at.value_offset();
        const char *par = p + at.kv->block_tokens * row_bytes() + 2 * slot;
        bool there = g * DIMS < at.kv->head_dim;
        p += slot * row_bytes() + g * VW * 4;
        UNROLL
        for (int i = 0; i < 8; i++, p += row_bytes())
            load_words<VW>(v[i], p, there);
        vscale = load16(par);
        vzero = load16(par + 2 * at.kv->block_tokens);
    }
    template <int W> static DEVICE_METHOD void load_words(uint32_t *w, const char *p, bool there)
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
    static DEVICE_METHOD uint32_t word(const uint4 &u, int i)
    {
        return i == 0 ? u.x : i == 1 ? u.y : i == 2 ? u.z : u.w;
    }

    /* Four numbers with an offset of 0x808080 as word i of three digits. */
    DEVICE_METHOD void put_digits(int i, uint32_t a, uint32_t b, uint32_t c, uint32_t d) const
    {
        uint32_t ab = __byte_perm(a, b, 0x5140u), cd = __byte_perm(c, d, 0x5140u);
        uint32_t ab2 = __byte_perm(a, b, 0x0062u), cd2 = __byte_perm(c, d, 0x0062u);
        uint32_t high = __byte_perm(ab2, cd2, 0x5410u);
        store8(reinterpret_cast<uint2 *>(digits + i / 2 * 32) + i % 2,
               make_uint2(high ^ 0x80808080u, __byte_perm(ab, cd, 0x7632u) ^ 0x80808080u));
        store4(reinterpret_cast<uint32_t *>(digits + (QW / 2 + i / 4) * 32) + i % 4,
               __byte_perm(ab, cd, 0x5410u) ^ 0x80808080u);
    }
    /* 8 dims, number r of this lane's, of head g: rows [heads][D] from `row` on. */
    DEVICE_METHOD uint4 query_dims(const T *row, int heads, int r) const
    {
        int g = lane_id() / 4, j = lane_id() % 4, n = at.kv->head_dim;
        int d = BITS == 8 ? r / 2 * 64 + j * 16 + r % 2 * 8 : j * (D / 4) + r * 8;
        return g < heads && d < n ? load16(row + static_cast<int64_t>(g) * n + d)
                                  : make_uint4(0, 0, 0, 0);
    }
    /* Heads of the item: rows [heads][D] from `row` on. Read twice, a few at a time: keys and
     * values on their way have the registers. */
    DEVICE_METHOD void load_query(const T *row, int heads, float scale)
    {
        float most = 0, sum = 0;
        UNROLL_BY(1)
        for (int r = 0; r < D / 32; r++) {
            uint4 u = query_dims(row, heads, r);
            UNROLL
            for (int i = 0; i < 4; i++) {
                float2 f = unpack2<T>(word(u, i));
                sum += f.x + f.y;
                most = fmaxf(most, fmaxf(fabsf(f.x), fabsf(f.y)));
            }
        }
        UNROLL
        for (int i = 1; i < 4; i *= 2) {
            sum += __shfl_xor_sync(FULL, sum, i);
            most = fmaxf(most, __shfl_xor_sync(FULL, most, i));
        }
        /* all below 2^22; what is no number shows in the sum */
        uint32_t e = max(__float_as_uint(most) >> 23, 22u);
        float up = __uint_as_float((275u - e) << 23);
        unit = __uint_as_float((e - 21u) << 23) * (BITS == 4 ? scale * 0.0625f : scale);
        qsum = sum * scale;
        UNROLL_BY(1)
        for (int r = 0; r < D / 32; r++) {
            uint4 u = query_dims(row, heads, r);
            uint32_t x[8];
            UNROLL
            for (int i = 0; i < 4; i++) {
                float2 f = unpack2<T>(word(u, i));
                x[2 * i] = __float_as_uint(fmaf(f.x, up, 12582912.0f)) + 0x408080u;
                x[2 * i + 1] = __float_as_uint(fmaf(f.y, up, 12582912.0f)) + 0x408080u;
            }
            if (BITS == 8) {
                put_digits(2 * r, x[0], x[1], x[2], x[3]);
                put_digits(2 * r + 1, x[4], x[5], x[6], x[7]);
            } else { /* what meets the lower halves of bytes, and the upper */
                put_digits(r, x[0], x[2], x[4], x[6]);
                put_digits(QW / 2 + r, x[1], x[3], x[5], x[7]);
            }
        }
    }

    /* Scores of keys t .. t+31, whose K has been loaded. */
    DEVICE_METHOD void scores(int t)
    {
        const float first = 12582912.0f;
        UNROLL
        for (int pair = 0; pair < 2; pair++) { /* two groups at a time */
            const int begin = BITS == 8 ? static_cast<int>(SIGNED) : 0;
            const int none[4] = {begin, begin, begin, begin};
            int c[2][4], d[2][4];
            UNROLL
            for (int i = 0; i < QW / 2; i++) {
                uint4 two = digits[i * 32], four = digits[(QW / 2 + i / 2) * 32];
                uint32_t a[4] = {two.x, two.y, two.z, two.w};
                uint32_t last[4] = {i % 2 ? four.z : four.x, 0, i % 2 ? four.w : four.y, 0};
                UNROLL
                for (int n = 0; n < 2; n++) {
                    uint32_t b[2];
                    key_words(2 * pair + n, i, b);
                    if (BITS == 4 && i == QW / 4)
                        UNROLL
                    for (int x = 0; x < 4; x++) {
                        c[n][x] = c[n][x] * 16 + SIGNED;
                        d[n][x] = d[n][x] * 16 + SIGNED;
                    }
                    mma_s8u8(c[n], i ? c[n] : none, a, b);
                    mma_s8u8(d[n], i ? d[n] : none, last, b);
                }
            }
            UNROLL
            for (int n = 0; n < 2; n++) {
                int g = 2 * pair + n;
                float2 ks = unpack2<bf16>(word(kscale, g)), kz = unpack2<bf16>(word(kzero, g));
                UNROLL
                for (int i = 0; i < 2; i++) {
                    float x = as_float(c[n][i]) - first, y = as_float(c[n][2 + i]);
                    float by = (i ? ks.y : ks.x) * unit, zero = (i ? kz.y : kz.x) * qsum;
                    s[2 * g + i] = fmaf(fmaf(fmaf(x, 256.0f, y), 256.0f, as_float(d[n][i])), by,
                                        fmaf(-257.0f * first, by, zero));
                }
            }
        }
        int from = at.from - t, to = at.to - t;
        ragged = from > 0 || to < KEYS;
        if (ragged) {
            valid = keys_of(from, to);
            UNROLL
            for (int i = 0; i < 8; i++)
                s[i] = valid >> i & 1 ? s[i] : -INFINITY;
        }
        top = s[0];
        UNROLL
        for (int i = 1; i < 8; i++)
            top = fmaxf(top, s[i]);
    }
    /* Step i of group n: the B operand. */
    DEVICE_METHOD void key_words(int n, int i, uint32_t b[2]) const
    {
        uint32_t mask = BITS == 8 ? 0xffffffffu : i < QW / 4 ? LOW : HIGH;
        int w = BITS == 8 ? 2 * i : i % (QW / 4) * 2;
        b[0] = k[n][w % KW] & mask;
        b[1] = k[n][(w + 1) % KW] & mask;
    }
    /* Bit i: key 8j + i of a turn is one of from..to-1. */
    static DEVICE_METHOD uint32_t keys_of(int from, int to)
    {
        int first = min(max(from - lane_id() % 4 * 8, 0), 8);
        int end = min(max(to - lane_id() % 4 * 8, 0), 8);
        return ((1u << end) - 1) & ~((1u << first) - 1);
    }
    static DEVICE_METHOD uint32_t valid_half(uint32_t word, uint32_t keys)
    {
        return (keys & 1 ? word & 0xffffu : 0) | (keys & 2 ? word & 0xffff0000u : 0);
    }
    static DEVICE_METHOD uint4 valid_halves(const uint4 &u, uint32_t keys)
    {
        return make_uint4(valid_half(u.x, keys), valid_half(u.y, keys >> 2),
                          valid_half(u.z, keys >> 4), valid_half(u.w, keys >> 6));
    }
    static DEVICE_METHOD float as_float(int x)
    {
        return __uint_as_float(static_cast<uint32_t>(x));
    }

    /* Adds the values of the keys whose scores are s. */
    DEVICE_METHOD void add()
    {
        int j = lane_id() % 4;
        if (ragged) { /* anything may lie where there is no key */
            vscale = valid_halves(vscale, valid);
            vzero = valid_halves(vzero, valid);
        }
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
        float now = fmaxf(m, top), ref = now > -INFINITY ? now : 0.0f;
        float shrink = exp2_fast(m - ref), most = 0x1p-100f;
        m = now;
        l *= shrink;
        z *= shrink;
        UNROLL
        for (int i = 0; i < 8; i++) {
            float2 vs = unpack2<bf16>(word(vscale, i / 2)), vz = unpack2<bf16>(word(vzero, i / 2));
            float p = exp2_fast(s[i] - ref), by = i % 2 ? vs.y : vs.x, zero = i % 2 ? vz.y : vz.x;
            l += p;
            z = fmaf(p, zero, z);
            s[i] = p * by;
            most = fmaxf(most, s[i]);
        }
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 2));
        /* all at most 2^15 */
        uint32_t e = __float_as_uint(most) & 0x7f800000u, x[8], hi[2], lo[2];
        float up = __uint_as_float((268u << 23) - e), one = __uint_as_float(e - (14u << 23));
        UNROLL
        for (int i = 0; i < 8; i++)
            x[i] = __float_as_uint(fmaf(s[i], up, 8388608.0f));
        UNROLL
        for (int i = 0; i < 2; i++) {
            uint32_t a = __byte_perm(x[4 * i], x[4 * i + 1], 0x5140u),
                     b = __byte_perm(x[4 * i + 2], x[4 * i + 3], 0x5140u);
            lo[i] = __byte_perm(a, b, 0x5410u);
            hi[i] = __byte_perm(a, b, 0x7632u);
        }
        float less[2], ones[2], base[2]; /* of heads 2j and 2j+1 */
        UNROLL
        for (int i = 0; i < 2; i++) {
            less[i] = __shfl_sync(FULL, shrink, 8 * j + 4 * i);
            ones[i] = __shfl_sync(FULL, one, 8 * j + 4 * i);
            base[i] = -8388608.0f * ones[i];
        }
        UNROLL
        for (int w = 0; w < VW; w++) {
            uint32_t y[2][4]; /* [keys 0..3, 4..7][byte of the word]: that byte of four keys */
            UNROLL
            for (int i = 0; i < 2; i++) {
                uint32_t a = v[4 * i][w], b = v[4 * i + 1][w], c = v[4 * i + 2][w],
                         d = v[4 * i + 3][w];
                uint32_t ab = __byte_perm(a, b, 0x5140u), cd = __byte_perm(c, d, 0x5140u);
                y[i][0] = __byte_perm(ab, cd, 0x5410u);
                y[i][1] = __byte_perm(ab, cd, 0x7632u);
                ab = __byte_perm(a, b, 0x7362u);
                cd = __byte_perm(c, d, 0x7362u);
                y[i][2] = __byte_perm(ab, cd, 0x5410u);
                y[i][3] = __byte_perm(ab, cd, 0x7632u);
            }
            UNROLL
            for (int i = 0; i < 32 / BITS / 2; i++) {
                uint32_t four[4] = {y[0][i] & LOW, y[0][i] & HIGH, y[1][i] & LOW, y[1][i] & HIGH};
                uint32_t eight[4] = {y[0][2 * i % 4], y[0][2 * i % 4 + 1], y[1][2 * i % 4],
                                     y[1][2 * i % 4 + 1]};
                add_dims(acc[w * (16 / BITS) + i], BITS == 4 ? four : eight, hi, lo, less, ones,
                         base);
            }
        }
    }
    static DEVICE_METHOD void add_dims(float sum[4], const uint32_t a[4], const uint32_t hi[2],
                                       const uint32_t lo[2], const float less[2],
                                       const float ones[2], const float base[2])
    {
        const int none[4] = {PLAIN, PLAIN, PLAIN, PLAIN};
        int c[4], d[4];
        mma_u8(c, none, a, hi);
        mma_u8(d, none, a, lo);
        UNROLL
        for (int i = 0; i < 4; i++) {
            float x = fmaf(as_float(c[i]) - 8388608.0f, 256.0f, as_float(d[i]));
            sum[i] = fmaf(x, ones[i % 2], fmaf(sum[i], less[i % 2], base[i % 2]));
        }
    }
    /* Sums of dims to o [HEADS][D]. */
    DEVICE_METHOD void store(float *o)
    {
        int g = lane_id() / 4, j = lane_id() % 4;
        __syncwarp(); /* the digits of all lanes have been read */
        z += __shfl_xor_sync(FULL, z, 1);
        z += __shfl_xor_sync(FULL, z, 2);
        float zs[2] = {__shfl_sync(FULL, z, 8 * j), __shfl_sync(FULL, z, 8 * j + 4)};
        UNROLL
        for (int e = 0; e < DIMS; e++)
            UNROLL
        for (int i = 0; i < 2; i++)
            o[(2 * j + i) * D + DIMS * g + e] =
                fmaf(acc[e / 2][e % 2 * 2 + i], BITS == 4 && e % 2 ? 0.0625f : 1.0f, zs[i]);
    }
};

#endif
