/* kernels/simd/body.h: the primitives for vectors of VW floats. One text; avx2.c, avx512.c and neon.c define
 * VW, NV, vfma and the 16-bit loads and stores, and include it. Uses gcc's vector types, so that the
 * arithmetic reads as arithmetic. Fused operations are written out and contraction is off: which
 * operations are fused must not hang on how a compiler unrolls a loop.
 *
 * NV is how many vectors of outputs a block of gemm_tile holds in registers: NV * rows accumulators,
 * NV weights and one broadcast must fit (16 registers of AVX2: NV 2; 32 of AVX-512 and NEON: NV 4). */

#define ALWAYS static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));

ALWAYS vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

ALWAYS void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

ALWAYS vf splat(float f)
{
    return f - (vf){0};
}

/* a where the mask is set, b elsewhere. */
ALWAYS vf pick(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

ALWAYS vf load_as(int32_t dtype, const char *w, int64_t i)
{
    if (dtype == TURBO_F32)
        return load((const float *)(const void *)w + i);
    return dtype == TURBO_F16 ? load_f16(w + 2 * i) : load_bf16(w + 2 * i);
}

/* VW lanes of step k of a tile, from `lane` on. For codes of 4 bits k%2 and lane/32 are constants. */
ALWAYS vf weight(int32_t dtype, const char *w, int64_t ldw, int64_t k, int half, int lane)
{
    if (dtype == TURBO_U8)
        return load_u8(w + k * ldw + lane);
    if (dtype == TURBOK_U4_PAIR)
        return load_u4(w + (size_t)k / 2 * (size_t)ldw + lane, half);
    if (dtype == TURBOK_U4_SPLIT)
        return load_u4(w + (size_t)(k * ldw) / 2 + lane % 32, lane / 32);
    return load_as(dtype, w, k * ldw + lane);
}

/* What a pass over a tile brings into the cache while it computes: `bytes` every `steps` lines. */
typedef struct fetch {
    const char *at; /* NULL: nothing */
    size_t bytes, stride;
    int64_t steps;
} fetch;

/* Pass `pass` of `passes` that have the n lines at `ahead` brought. Each brings its share of lines that lie one
 * behind the other, so that memory is read all the time and not in the first pass only. */
ALWAYS fetch fetch_of(const char *ahead, size_t line, size_t stride, int64_t n, int pass,
                      int passes)
{
    const int every = 4;
    size_t share = line / (size_t)passes;
    if (!ahead || (pass && stride != line))
        return (fetch){0};
    if (stride != line)
        return (fetch){ahead, line, stride, 1};
    return (fetch){ahead + (size_t)pass * share * (size_t)n, (size_t)every * share,
                   (size_t)every * share, every};
}

/* rows x nv vectors, from `lane` on, over n steps of k. All three are constants where this is called.
 * The order of k is the same for every number of rows: that is what makes results independent of the
 * batch. */
ALWAYS void tile_block(int32_t dtype, const char *w, int64_t ldw, const float *x, int64_t ldx,
                       int rows, int nv, int lane, int64_t n, float *acc, fetch f)
{
    const int step = dtype == TURBOK_U4_PAIR ? 2 : 1; /* k that one line of the tile holds */
    int64_t next = f.at ? 0 : -1;
    vf a[TURBOK_TILE_ROWS][TURBOK_TILE / VW];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++)
            a[r][v] = load(acc + r * TURBOK_TILE + lane + v * VW);
    for (int64_t k = 0; k < n; k += step) {
        if (k == next) {
            for (size_t at = 0; at < f.bytes; at += 64)
                __builtin_prefetch(f.at + at, 0, 3);
            f.at += f.stride;
            next += f.steps * step;
        }
#pragma GCC unroll 2
        for (int half = 0; half < step; half++) {
            vf wv[TURBOK_TILE / VW];
#pragma GCC unroll 16
            for (int v = 0; v < nv; v++)
                wv[v] = weight(dtype, w, ldw, k, half, lane + v * VW);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                vf xv = splat(x[r * ldx + k + half]);
#pragma GCC unroll 16
                for (int v = 0; v < nv; v++)
                    a[r][v] = vfma(xv, wv[v], a[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++)
            store(acc + r * TURBOK_TILE + lane + v * VW, a[r][v]);
}

ALWAYS void tile_rows(int32_t dtype, const char *w, int64_t ldw, const float *x, int64_t ldx,
                      int rows, int64_t n, float *acc, const void *ahead)
{
    /* Two rows (decode of a model whose KV heads serve two query heads each) leave registers free, and
     * too few chains to hide the latency of a multiply-add. */
    const int nv = rows == 1                                 ? TURBOK_TILE / VW
                   : rows == 2 && 2 * NV * VW <= TURBOK_TILE ? 2 * NV
                                                             : NV;
    const int k_of_line = dtype == TURBOK_U4_PAIR ? 2 : 1;
    const size_t line = turbok_bytes(dtype, (size_t)(k_of_line * TURBOK_TILE)),
                 stride = turbok_bytes(dtype, (size_t)(k_of_line * ldw));
#pragma GCC unroll 4
    for (int lane = 0; lane < TURBOK_TILE; lane += nv * VW)
        tile_block(dtype, w, ldw, x, ldx, rows, nv, lane, n, acc,
                   fetch_of(ahead, line, stride, n / k_of_line, lane / (nv * VW),
                            TURBOK_TILE / (nv * VW)));
}

typedef void (*tile_fn)(const char *w, int64_t ldw, const float *x, int64_t ldx, int64_t n,
                        float *acc, const void *ahead);

/* A function for each type and number of rows: inlined into one, the compiler runs out of registers and
 * keeps accumulators in memory, which halves the speed. */
#define TILE_FN(type, rows)                                                                        \
    static __attribute__((noinline)) void tile_##type##_##rows(const char *w, int64_t ldw,         \
                                                               const float *x, int64_t ldx,        \
                                                               int64_t n, float *acc,              \
                                                               const void *ahead)                  \
    {                                                                                              \
        tile_rows(type, w, ldw, x, ldx, rows, n, acc, ahead);                                      \
    }
#define TILE_FNS(type)                                                                             \
    TILE_FN(type, 1)                                                                               \
    TILE_FN(type, 2)                                                                               \
    TILE_FN(type, 3)                                                                               \
    TILE_FN(type, 4)                                                                               \
    TILE_FN(type, 5)                                                                               \
    TILE_FN(type, 6)                                                                               \
    static const tile_fn tile_##type[] = {tile_##type##_1, tile_##type##_2, tile_##type##_3,       \
                                          tile_##type##_4, tile_##type##_5, tile_##type##_6};

TILE_FNS(TURBO_F32)
TILE_FNS(TURBO_F16)
TILE_FNS(TURBO_BF16)
TILE_FNS(TURBO_U8)
TILE_FNS(TURBOK_U4_PAIR)
TILE_FNS(TURBOK_U4_SPLIT)

static void gemm_tile(int32_t dtype, const void *w, int64_t ldw, const float *x, int64_t ldx,
                      int rows, int64_t n, float *acc, const void *ahead)
{
    switch (dtype) {
    case TURBO_BF16: tile_TURBO_BF16[rows - 1](w, ldw, x, ldx, n, acc, ahead); break;
    case TURBO_F16: tile_TURBO_F16[rows - 1](w, ldw, x, ldx, n, acc, ahead); break;
    case TURBO_U8: tile_TURBO_U8[rows - 1](w, ldw, x, ldx, n, acc, ahead); break;
    case TURBOK_U4_PAIR: tile_TURBOK_U4_PAIR[rows - 1](w, ldw, x, ldx, n, acc, ahead); break;
    case TURBOK_U4_SPLIT: tile_TURBOK_U4_SPLIT[rows - 1](w, ldw, x, ldx, n, acc, ahead); break;
    default: tile_TURBO_F32[rows - 1](w, ldw, x, ldx, n, acc, ahead); break;
    }
}

/* Sum of the lanes as a tree of halves. */
ALWAYS float sum_lanes(vf v)
{
    typedef float v4 __attribute__((vector_size(16)));
    float f[VW];
    v4 part[VW / 4];
    store(f, v);
    memcpy(part, f, sizeof part);
#pragma GCC unroll 2
    for (int w = VW / 8; w; w /= 2)
#pragma GCC unroll 2
        for (int i = 0; i < w; i++)
            part[i] += part[i + w];
    v4 s = part[0];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

static void rmsnorm(float *h, const float *delta, const float *w, float eps, int64_t n, float *out)
{
    vf acc = {0};
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
        vf v = load(h + i);
        if (delta) {
            v = v + load(delta + i);
            store(h + i, v);
        }
        acc = vfma(v, v, acc);
    }
    double sum = 0;
    for (int l = 0; l < VW; l++)
        sum += (double)acc[l];
    for (; i < n; i++) {
        if (delta)
            h[i] += delta[i];
        sum += (double)h[i] * (double)h[i];
    }
    float r = 1.0f / sqrtf((float)(sum / (double)n) + eps);
    for (i = 0; i + VW <= n; i += VW)
        store(out + i, load(w + i) * (load(h + i) * splat(r)));
    for (; i < n; i++)
        out[i] = w[i] * (h[i] * r);
}

/* Sums of lanes in fp32 over at most some thousand elements, each a tree at the end; the squares are those of
 * differences from the mean, so nothing cancels. */
static void layernorm(float *h, const float *delta, const float *w, const float *bias, float eps,
                      int64_t n, float *out)
{
    vf acc = {0}, squares = {0};
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
        vf v = load(h + i);
        if (delta) {
            v = v + load(delta + i);
            store(h + i, v);
        }
        acc = acc + v;
    }
    double sum = 0, sum2 = 0;
    for (int l = 0; l < VW; l++)
        sum += (double)acc[l];
    for (; i < n; i++) {
        if (delta)
            h[i] += delta[i];
        sum += (double)h[i];
    }
    float mean = (float)(sum / (double)n);
    for (i = 0; i + VW <= n; i += VW) {
        vf d = load(h + i) - splat(mean);
        squares = vfma(d, d, squares);
    }
    for (int l = 0; l < VW; l++)
        sum2 += (double)squares[l];
    for (; i < n; i++)
        sum2 += (double)(h[i] - mean) * (double)(h[i] - mean);
    float r = 1.0f / sqrtf((float)(sum2 / (double)n) + eps);
    for (i = 0; i + VW <= n; i += VW)
        store(out + i, load(w + i) * ((load(h + i) - splat(mean)) * splat(r)) + load(bias + i));
    for (; i < n; i++)
        out[i] = w[i] * ((h[i] - mean) * r) + bias[i];
}

/* e^x by range reduction x = n ln2 + r, |r| <= ln2/2, and a polynomial of degree 7 for e^r (Taylor
 * coefficients; error below 1e-7 relative over that range). Below -87 the result is 0. */
ALWAYS vf vexp(vf x)
{
    vf lo = splat(-87.0f), hi = splat(88.0f);
    vi under = x < lo;
    x = pick(under, lo, x);
    x = pick(x > hi, hi, x);
    vf n = vfma(x, splat(1.44269504f), splat(12582912.0f)); /* 1.5 * 2^23: rounds to an integer */
    vi ni = (vi)n << 23;
    n = n - splat(12582912.0f);
    vf r = vfma(n, splat(-0.693145752f), x);
    r = vfma(n, splat(-1.42860677e-6f), r);
    vf p = splat(1.98412698e-4f);
    p = vfma(p, r, splat(1.38888889e-3f));
    p = vfma(p, r, splat(8.33333333e-3f));
    p = vfma(p, r, splat(4.16666667e-2f));
    p = vfma(p, r, splat(1.66666667e-1f));
    p = vfma(p, r, splat(0.5f));
    p = vfma(p, r, splat(1.0f));
    p = vfma(p, r, splat(1.0f));
    vf e = (vf)((vi)p + ni);
    return pick(x != x, x, (vf)((vi)e & ~under));
}

ALWAYS float activate_slow(int32_t act, float x)
{
    if (act == TURBO_ACT_GELU_ERF)
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

static void activate(int32_t act, const float *in, int64_t n, float *out)
{
    if (act == TURBO_ACT_GELU_ERF || act == TURBO_ACT_GELU_TANH) {
        for (int64_t i = 0; i < n; i++)
            out[i] = activate_slow(act, in[i]);
        return;
    }
    vf f = splat(act == TURBO_ACT_QUICK_GELU ? -1.702f : -1.0f);
    for (int64_t i = 0; i < n; i += VW) {
        int64_t m = n - i < VW ? n - i : VW;
        float g[VW] = {0}, o[VW];
        memcpy(g, in + i, (size_t)m * sizeof(float));
        vf x = load(g);
        store(o, x / (splat(1.0f) + vexp(x * f)));
        memcpy(out + i, o, (size_t)m * sizeof(float));
    }
}

static void gated(int32_t act, const float *gate, const float *up, int64_t n, float *out)
{
    if (act == TURBO_ACT_GELU_ERF || act == TURBO_ACT_GELU_TANH) {
        for (int64_t i = 0; i < n; i++)
            out[i] = activate_slow(act, gate[i]) * up[i];
        return;
    }
    vf f = splat(act == TURBO_ACT_QUICK_GELU ? -1.702f : -1.0f);
    for (int64_t i = 0; i < n; i += VW) {
        int64_t m = n - i < VW ? n - i : VW;
        float g[VW] = {0}, u[VW] = {0}, o[VW];
        memcpy(g, gate + i, (size_t)m * sizeof(float));
        memcpy(u, up + i, (size_t)m * sizeof(float));
        vf x = load(g);
        store(o, x / (splat(1.0f) + vexp(x * f)) * load(u));
        memcpy(out + i, o, (size_t)m * sizeof(float));
    }
}

static void widen(int32_t dtype, const void *in, int64_t n, float *out)
{
    if (dtype == TURBO_F32) {
        memcpy(out, in, (size_t)n * sizeof(float));
        return;
    }
    int64_t i = 0;
    for (; i + VW <= n; i += VW)
        store(out + i, load_as(dtype, in, i));
    if (i < n)
        turbok_prim_scalar.widen(dtype, (const char *)in + 2 * i, n - i, out + i);
}

static void narrow(int32_t dtype, const float *in, int64_t n, void *out)
{
    if (dtype == TURBO_F32) {
        memcpy(out, in, (size_t)n * sizeof(float));
        return;
    }
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
        if (dtype == TURBO_F16)
            store_f16((char *)out + 2 * i, load(in + i));
        else
            store_bf16((char *)out + 2 * i, load(in + i));
    }
    if (i < n)
        turbok_prim_scalar.narrow(dtype, in + i, n - i, (char *)out + 2 * i);
}

static const int32_t lane_number[64] = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
    44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

static float softmax(float *s, int64_t n, float scale, float *m)
{
    enum { N = 64 / VW };
    vf v[N], top = splat(*m), acc = {0};
    vi count = (vi){0} + (int32_t)n;
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) { /* lanes beyond n neither raise the maximum nor add to the sum */
        vi lane;
        memcpy(&lane, lane_number + i * VW, sizeof lane);
        v[i] = pick(lane < count, load(s + i * VW) * splat(scale), splat(-INFINITY));
        top = pick(v[i] > top, v[i], top);
    }
    for (int i = 0; i < VW; i++)
        *m = top[i] > *m ? top[i] : *m;
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) {
        vf e = vexp(v[i] - splat(*m));
        acc = acc + e;
        store(s + i * VW, e);
    }
    return sum_lanes(acc);
}

static void quantize(int bits, const float *in, int64_t n, uint8_t *codes, uint16_t par[2])
{
    typedef uint8_t vb __attribute__((vector_size(VW)));
    float top = bits == 8 ? 255.0f : 15.0f, lo = in[0], hi = in[0];
    vf least = splat(lo), most = least, strange = {0}; /* NaN where an element is no number */
    bool finite = true;
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
        vf v = load(in + i);
        least = pick(v < least, v, least);
        most = pick(v > most, v, most);
        strange = strange + (v - v);
    }
    for (int l = 0; l < VW; l++) {
        lo = least[l] < lo ? least[l] : lo;
        hi = most[l] > hi ? most[l] : hi;
        finite &= strange[l] == 0.0f;
    }
    for (; i < n; i++) {
        lo = in[i] < lo ? in[i] : lo;
        hi = in[i] > hi ? in[i] : hi;
        finite &= in[i] - in[i] == 0.0f;
    }
    turbok_quant q = turbok_quant_of(lo, hi, finite, top);
    memcpy(par, q.par, sizeof q.par);
    if (turbok_quant_flat(&q)) {
        memset(codes, 0, (size_t)n);
        return;
    }
    for (i = 0; i + VW <= n; i += VW) {
        vf u = (load(in + i) - splat(q.zero)) / splat(q.scale);
        vb c = __builtin_convertvector((vi)(pick(u < splat(top), u, splat(top)) +
                                            splat(TURBOK_ROUNDER)),
                                       vb);
        memcpy(codes + i, &c, sizeof c);
    }
    for (; i < n; i++)
        codes[i] = turbok_quant_code(&q, in[i], top);
}

static void scores(float *s, const float *scale, const float *zero, float qsum)
{
#pragma GCC unroll 16
    for (int j = 0; j < TURBOK_TILE; j += VW)
        store(s + j, vfma(load(s + j), load(scale + j), splat(qsum) * load(zero + j)));
}

static float weights(float *p, int64_t n, const float *scale, const float *zero)
{
    vf acc = {0};
    vi count = (vi){0} + (int32_t)n;
#pragma GCC unroll 16
    for (int j = 0; j < TURBOK_TILE; j += VW) {
        vi lane;
        memcpy(&lane, lane_number + j, sizeof lane);
        vf v = pick(lane < count, load(p + j), (vf){0});
        acc = vfma(v, pick(lane < count, load(zero + j), (vf){0}), acc);
        store(p + j, v * load(scale + j));
    }
    return sum_lanes(acc);
}
