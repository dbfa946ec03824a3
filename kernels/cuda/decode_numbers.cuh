/* kernels/cuda/decode_numbers.cuh: attention of a warp over keys and values of 16 bits, for
 * decode.cuh.
 *
 * 16 * KT keys are a turn, straight from memory into the registers of the tensor cores: scores
 * are Q [16 heads, of which 8] x K^T, so a lane's 16 bytes of a key are its part of the B
 * operand, with the dims in an order that Q follows; for P x V two keys of a dim are put
 * together in registers, which makes V^T the A operand, while the scores lie where the B operand
 * P^T wants them. */
#ifndef TURBOK_CUDA_DECODE_NUMBERS_CUH
#define TURBOK_CUDA_DECODE_NUMBERS_CUH

#include "cuda/decode_place.cuh"

template <class T, int D> struct number_decoder {
    static constexpr int KT = D == 128 ? 1 : 2;
    static constexpr int KEYS = 16 * KT; /* of a turn of a warp */
    static constexpr bool KEYS_EARLY = true; /* the next are asked for before values are added */
    static constexpr int NCH = D / 32, U = 8, VCH = D / (8 * U);
    uint32_t q[D / 16][2]; /* A operand; rows 8..15 are zero */
    uint4 k[2 * KT][NCH], v[KT][VCH][4];
    float acc[D / 16][4]; /* two dims x heads 2j and 2j+1 */
    float s[2 * KT][4], top; /* scores of a turn and the largest, powers of 2 */
    float m, l; /* of head g; l: of this lane's keys */
    float scale;
    key_place at;

    DEVICE_METHOD void begin(float *)
    {
        m = -INFINITY;
        l = 0;
        UNROLL
        for (int e = 0; e < D / 16; e++)
            acc[e][0] = acc[e][1] = acc[e][2] = acc[e][3] = 0;
    }
    DEVICE_METHOD static uint4 load(const char *p, bool there)
    {
        return there ? load16_stream(p) : make_uint4(0, 0, 0, 0);
    }
    DEVICE_METHOD void load_keys(int t)
    {
        int g = lane_id() / 4, j = lane_id() % 4, row = at.kv->head_dim * 2;
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            int slot, pos = t + 8 * n;
            bool group = pos < at.to; /* else the table may end before */
            const char *base = group ? at.plane(pos, &slot) : (slot = 0, at.planes);
            const char *p = base + (slot + g) * static_cast<int64_t>(row) + j * 16;
            bool there = pos + g < at.to && pos + g >= at.from;
            UNROLL
            for (int c = 0; c < NCH; c++)
                k[n][c] = load(p + c * 64, there && c * 32 + j * 8 < at.kv->head_dim);
        }
    }
    DEVICE_METHOD void load_values(int t)
    {
        int g = lane_id() / 4, j = lane_id() % 4, row = at.kv->head_dim * 2;
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            int slot, pos = t + 8 * n;
            bool group = pos < at.to;
            const char *base =
                (group ? at.plane(pos, &slot) : (slot = 0, at.planes)) + at.value_offset();
            UNROLL
            for (int i = 0; i < 2; i++) {
                const char *p = base + (slot + 2 * j + i) * static_cast<int64_t>(row) + g * 16;
                int key = pos + 2 * j + i;
                UNROLL
                for (int c = 0; c < VCH; c++)
                    v[n / 2][c][n % 2 * 2 + i] =
                        load(p + c * 128, key < at.to && key >= at.from &&
                                              c * 8 * U + U * g < at.kv->head_dim);
            }
        }
    }
    /* Heads of the item: rows [heads][D] from `row` on. */
    DEVICE_METHOD void load_query(const T *row, int heads, float by)
    {
        int g = lane_id() / 4, j = lane_id() % 4, n = at.kv->head_dim;
        scale = by;
        UNROLL
        for (int c = 0; c < NCH; c++) {
            int d = c * 32 + j * 8;
            uint4 u = g < heads && d < n ? load16(row + static_cast<int64_t>(g) * n + d)
                                         : make_uint4(0, 0, 0, 0);
            q[2 * c][0] = u.x, q[2 * c][1] = u.y, q[2 * c + 1][0] = u.z, q[2 * c + 1][1] = u.w;
        }
    }
    /* Scores of keys t .. t+KEYS-1, whose K has been loaded. */
    DEVICE_METHOD void scores(int t)
    {
        int j = lane_id() % 4;
        top = -INFINITY;
        UNROLL
        for (int n = 0; n < 2 * KT; n++) {
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
            UNROLL
            for (int c = 0; c < NCH; c++) {
                const uint4 &w = k[n][c];
                uint32_t a[4] = {q[2 * c][0], 0, q[2 * c][1], 0}, b[2] = {w.x, w.y};
                uint32_t a1[4] = {q[2 * c + 1][0], 0, q[2 * c + 1][1], 0}, b1[2] = {w.z, w.w};
                mma(s[n], a, b, T());
                mma(s[n], a1, b1, T());
            }
        }
        UNROLL
        for (int n = 0; n < 2 * KT; n++)
            UNROLL
        for (int i = 0; i < 2; i++) {
            int pos = t + 8 * n + 2 * j + i;
            s[n][i] = pos >= at.from && pos < at.to ? s[n][i] * scale : -INFINITY;
            top = fmaxf(top, s[n][i]);
        }
    }
    /* Adds the values of the keys whose scores are s. */
    DEVICE_METHOD void add()
    {
        int j = lane_id() % 4;
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
        float now = fmaxf(m, top), ref = now > -INFINITY ? now : 0.0f;
        float shrink = exp2_fast(m - ref);
        m = now;
        l *= shrink;
        float left = __shfl_sync(FULL, shrink, 8 * j), right = __shfl_sync(FULL, shrink, 8 * j + 4);
        UNROLL
        for (int e = 0; e < D / 16; e++) {
            acc[e][0] *= left;
            acc[e][1] *= right;
            acc[e][2] *= left;
            acc[e][3] *= right;
        }
        UNROLL
        for (int n = 0; n < 2 * KT; n++)
            UNROLL
        for (int i = 0; i < 2; i++) {
            s[n][i] = exp2_fast(s[n][i] - ref);
            l += s[n][i];
        }
        UNROLL
        for (int kt = 0; kt < KT; kt++) {
            uint32_t b[2] = {pack2<T>(s[2 * kt][0], s[2 * kt][1]),
                             pack2<T>(s[2 * kt + 1][0], s[2 * kt + 1][1])};
            UNROLL
            for (int c = 0; c < VCH; c++) {
                const uint4 *x = v[kt][c];
                dims(c, 0, x[0].x, x[1].x, x[2].x, x[3].x, b);
                dims(c, 1, x[0].y, x[1].y, x[2].y, x[3].y, b);
                dims(c, 2, x[0].z, x[1].z, x[2].z, x[3].z, b);
                dims(c, 3, x[0].w, x[1].w, x[2].w, x[3].w, b);
            }
        }
    }
    /* Word e of chunk c of four keys: two dims. */
    DEVICE_METHOD void dims(int c, int e, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3,
                            const uint32_t b[2])
    {
        uint32_t a[4] = {__byte_perm(x0, x1, 0x5410u), __byte_perm(x0, x1, 0x7632u),
                         __byte_perm(x2, x3, 0x5410u), __byte_perm(x2, x3, 0x7632u)};
        mma(acc[c * U / 2 + e], a, b, T());
    }
    /* Sums of dims to o [HEADS][D]. */
    DEVICE_METHOD void store(float *o) const
    {
        int g = lane_id() / 4, j = lane_id() % 4;
        UNROLL
        for (int e = 0; e < D / 8; e++)
            UNROLL
        for (int i = 0; i < 2; i++)
            o[(2 * j + i) * D + e / U * 8 * U + U * g + e % U] = acc[e / 2][e % 2 * 2 + i];
    }
};

#endif
