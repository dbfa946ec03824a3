/* kernels/simd/body.h: the primitives for vectors of VW floats. One text; avx2.c and avx512.c define
 * VW, NV, vfma and the 16-bit loads and stores, and include it. Uses gcc's vector types, so that the
 * arithmetic reads as arithmetic. Fused operations are written out and contraction is off: which
 * operations are fused must not hang on how a compiler unrolls a loop.
 *
 * NV is how many vectors of outputs a block of gemm_tile holds in registers: NV * rows accumulators,
 * NV weights and one broadcast must fit (16 registers of AVX2: NV 2; 32 of AVX-512: NV 4). */

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

/* rows x nv vectors over n steps of k. All three are constants where this is called. The order of k
 * is the same for every number of rows: that is what makes results independent of the batch. */
ALWAYS void tile_block(int32_t dtype, const char *w, int64_t ldw, const float *x, int64_t ldx,
                       int rows, int nv, bool first, int64_t n, float *acc)
{
    vf a[TURBOK_TILE_ROWS][TURBOK_TILE / VW];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            a[r][v] = load(acc + r * TURBOK_TILE + v * VW);
    const int64_t ahead = 1024 / (dtype == TURBO_F32 ? 4 : 2);
    for (int64_t k = 0; k < n; k++) {
        if (first) /* the matrix is far larger than the caches: whole rows, once */
#pragma GCC unroll 4
            for (int line = 0; line < TURBOK_TILE; line += dtype == TURBO_F32 ? 16 : 32)
                __builtin_prefetch(w + (k * ldw + line + ahead) *
                                           (dtype == TURBO_F32 ? 4 : 2), 0, 3);
        vf wv[TURBOK_TILE / VW];
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            wv[v] = load_as(dtype, w, k * ldw + v * VW);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vf xv = splat(x[r * ldx + k]);
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++)
                a[r][v] = vfma(xv, wv[v], a[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            store(acc + r * TURBOK_TILE + v * VW, a[r][v]);
}

ALWAYS void tile_rows(int32_t dtype, const char *w, int64_t ldw, const float *x, int64_t ldx,
                      int rows, int64_t n, float *acc)
{
    if (rows == 1) {
        tile_block(dtype, w, ldw, x, ldx, 1, TURBOK_TILE / VW, true, n, acc);
        return;
    }
    tile_block(dtype, w, ldw, x, ldx, rows, NV, true, n, acc);
    for (int c = NV * VW; c < TURBOK_TILE; c += NV * VW)
        tile_block(dtype, w + (size_t)c * (dtype == TURBO_F32 ? 4 : 2), ldw, x, ldx, rows, NV, false,
                   n, acc + c);
}

ALWAYS void tile_typed(int32_t dtype, const char *w, int64_t ldw, const float *x, int64_t ldx,
                       int rows, int64_t n, float *acc)
{
    switch (rows) {
    case 1: tile_rows(dtype, w, ldw, x, ldx, 1, n, acc); break;
    case 2: tile_rows(dtype, w, ldw, x, ldx, 2, n, acc); break;
    case 3: tile_rows(dtype, w, ldw, x, ldx, 3, n, acc); break;
    case 4: tile_rows(dtype, w, ldw, x, ldx, 4, n, acc); break;
    case 5: tile_rows(dtype, w, ldw, x, ldx, 5, n, acc); break;
    default: tile_rows(dtype, w, ldw, x, ldx, 6, n, acc); break;
    }
}

static void gemm_tile(int32_t dtype, const void *w, int64_t ldw, const float *x, int64_t ldx,
                      int rows, int64_t n, float *acc)
{
    if (dtype == TURBO_BF16)
        tile_typed(TURBO_BF16, w, ldw, x, ldx, rows, n, acc);
    else if (dtype == TURBO_F16)
        tile_typed(TURBO_F16, w, ldw, x, ldx, rows, n, acc);
    else
        tile_typed(TURBO_F32, w, ldw, x, ldx, rows, n, acc);
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
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) { /* lanes beyond n neither raise the maximum nor add to the sum */
        vi lane;
        memcpy(&lane, lane_number + i * VW, sizeof lane);
        v[i] = pick(lane < count, load(s + i * VW) * splat(scale), splat(-INFINITY));
        top = pick(v[i] > top, v[i], top);
    }
    for (int i = 0; i < VW; i++)
        *m = top[i] > *m ? top[i] : *m;
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
        vf e = vexp(v[i] - splat(*m));
        acc = acc + e;
        store(s + i * VW, e);
    }
    return sum_lanes(acc);
}
