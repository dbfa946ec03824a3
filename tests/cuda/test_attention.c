/* tests/cuda/test_attention.c: RoPE with the KV write, and attention over the paged cache, for ragged batches:
 * prompts, chunks behind a cache and single tokens. Rotation against double precision; what is in the cache
 * is read back by its layout and held to the rules of cpu/quant.h; attention against a softmax in double over
 * what is in the cache. */
#include "dev.h"

#include "cpu/half.h"

enum { MAX_S = 8 };
typedef struct setup {
    int32_t act, kv_type, D, H, K, bt, window, style, layout, rope_dim, S;
    int32_t before[MAX_S], fresh[MAX_S]; /* tokens in the cache, and new ones */
    int32_t table_len; /* positions with precomputed angles */
    float dynamic; /* factor, or 0 */
} setup;

typedef struct run {
    const setup *s;
    turbok_cu_attn at;
    turbok_kv_dims dims;
    int32_t tables[MAX_S * 64], *d_tables;
    float *inv;
    char what[160];
    char *scratch;
    uint64_t scratch_bytes;
} run;

enum { LAYERS = 2, LAYER = 1, STRIDE = 64, ROPE_MAX = 40 };

static double base_of(const setup *s, int32_t len)
{
    if (s->dynamic == 0 || len <= ROPE_MAX)
        return 10000;
    double f = (double)s->dynamic;
    return 10000 * pow(f * len / ROPE_MAX - (f - 1), (double)s->rope_dim / (s->rope_dim - 2));
}

static void make_cache(run *r)
{
    const setup *s = r->s;
    int32_t n_blocks = 0, blocks[MAX_S * 64];
    r->dims = (turbok_kv_dims){LAYERS, s->K, s->D, s->bt, s->kv_type};
    for (int32_t i = 0; i < s->S; i++)
        n_blocks += (s->before[i] + s->fresh[i] + s->bt - 1) / s->bt;
    for (int32_t i = 0; i < n_blocks; i++)
        blocks[i] = i;
    for (int32_t i = n_blocks - 1; i > 0; i--) {
        int32_t k = dev_range(0, i), t = blocks[i];
        blocks[i] = blocks[k];
        blocks[k] = t;
    }
    memset(r->tables, 0x7f, sizeof r->tables); /* a block that is not there */
    for (int32_t i = 0; i < s->S; i++)
        for (int32_t k = 0; k < (s->before[i] + s->fresh[i] + s->bt - 1) / s->bt; k++)
            r->tables[i * STRIDE + k] = blocks[--n_blocks];
    n_blocks = 0;
    for (int32_t i = 0; i < s->S; i++)
        n_blocks += (s->before[i] + s->fresh[i] + s->bt - 1) / s->bt;
    r->d_tables = dev_new(sizeof r->tables, r->tables);
    uint64_t block_bytes = turbok_kv_block_bytes(&r->dims);
    int32_t half = s->rope_dim / 2;
    float *c = malloc(sizeof *c * (size_t)(half * s->table_len + 1)),
          *sn = malloc(sizeof *sn * (size_t)(half * s->table_len + 1));
    r->inv = malloc(sizeof *r->inv * (size_t)(half + 1));
    for (int32_t i = 0; i < half; i++)
        r->inv[i] = (float)pow(10000, -2.0 * i / s->rope_dim);
    for (int32_t p = 0; p < s->table_len; p++)
        for (int32_t i = 0; i < half; i++) {
            double angle = (double)((float)p * r->inv[i]);
            c[p * half + i] = (float)cos(angle) * 0.9f;
            sn[p * half + i] = (float)sin(angle) * 0.9f;
        }
    size_t bytes = sizeof(float) * (size_t)half;
    r->at = (turbok_cu_attn){
        .kv = {.base = dev_new(block_bytes * (uint64_t)n_blocks, NULL),
               .block_bytes = block_bytes,
               .plane_bytes = turbok_kv_plane_bytes(&r->dims),
               .block_tokens = s->bt,
               .n_kv = s->K,
               .head_dim = s->D,
               .dtype = s->kv_type},
        .layer = LAYER,
        .n_heads = s->H,
        .layout = s->layout,
        .window = s->window,
        .scale = 1.7f / sqrtf((float)s->D),
        .rope_dim = s->rope_dim,
        .rope_style = s->style,
        .rope_table = s->table_len,
        .cosine = dev_new(bytes * (size_t)s->table_len, c),
        .sine = dev_new(bytes * (size_t)s->table_len, sn),
        .inv = dev_new(bytes, r->inv),
        .rope_scale = 0.9f,
        .rope_factor = s->dynamic,
        .rope_base = 10000,
        .rope_max = ROPE_MAX,
    };
    free(c), free(sn);
    r->scratch_bytes = turbok_cu_attention_bytes(1 << 20, MAX_S, s->H, s->D, 4096);
    r->scratch = dev_new(r->scratch_bytes, NULL);
    turbok_cu_fill(dev, turbok_cu_at(r->scratch), 0, r->scratch_bytes);
}

static turbok_cu_batch batch_of(run *r, const int32_t *from, const int32_t *n, int32_t pad)
{
    const setup *s = r->s;
    int32_t T = 0, cu[MAX_S + 4] = {0}, kv[MAX_S + 4] = {0}, rope[MAX_S + 4], longest = 0, most = 1;
    for (int32_t i = 0; i < s->S; i++) {
        T += n[i];
        cu[i + 1] = T;
        kv[i] = from[i] + n[i];
        rope[i] = s->before[i] + s->fresh[i];
        longest = n[i] > longest ? n[i] : longest;
        most = kv[i] > most ? kv[i] : most;
    }
    int32_t *pos = malloc(sizeof *pos * (size_t)(T + pad)),
            *seq = malloc(sizeof *seq * (size_t)(T + pad));
    for (int32_t i = 0; i < s->S; i++)
        for (int32_t k = 0; k < n[i]; k++) {
            pos[cu[i] + k] = from[i] + k;
            seq[cu[i] + k] = i;
        }
    for (int32_t i = 0; i < pad; i++) {
        pos[T + i] = 0;
        seq[T + i] = -1;
        cu[s->S + 1 + i] = T;
        rope[s->S + i] = 0;
    }
    size_t es = sizeof(int32_t);
    turbok_cu_batch b = {
        .positions = dev_new(es * (size_t)(T + pad), pos),
        .seq_of = dev_new(es * (size_t)(T + pad), seq),
        .cu_seqlens = dev_new(es * (size_t)(s->S + 1 + pad), cu),
        .kv_lens = dev_new(es * (size_t)(s->S + pad), kv),
        .rope_lens = dev_new(es * (size_t)(s->S + pad), rope),
        .tables = r->d_tables,
        .table_stride = STRIDE,
        .T = T + pad,
        .S = s->S + pad,
        .max_new = longest,
        .max_kv = most,
    };
    free(pos), free(seq);
    return b;
}

static size_t column(const setup *s, int kind, int32_t h)
{
    int32_t g = s->H / s->K;
    if (s->layout == TURBO_QKV_PLAIN)
        return (size_t)((kind == 0 ? h : kind == 1 ? s->H + h : s->H + s->K + h) * s->D);
    int32_t group = kind ? h : h / g, slot = kind ? g + kind - 1 : h % g;
    return (size_t)((group * (g + 2) + slot) * s->D);
}

/* One head turned at pos; in, out [D]. */
static void rotate(const run *r, int32_t seq, int32_t pos, const float *in, double *out)
{
    const setup *s = r->s;
    double base = base_of(s, s->before[seq] + s->fresh[seq]);
    int32_t half = s->rope_dim / 2;
    for (int32_t i = 0; i < s->D; i++)
        out[i] = (double)in[i];
    for (int32_t i = 0; i < half; i++) {
        float inv = (float)pow(base, -2.0 * i / s->rope_dim), angle = (float)pos * inv;
        double c = cos((double)angle) * (double)0.9f, sn = sin((double)angle) * (double)0.9f;
        int32_t a = s->style ? 2 * i : i, b = s->style ? 2 * i + 1 : i + half;
        out[a] = (double)in[a] * c - (double)in[b] * sn;
        out[b] = (double)in[b] * c + (double)in[a] * sn;
    }
}

/* What the cache holds for one token, K or V, of a head. scale: of a quantised row. */
static void cached(const run *r, const char *cache, int32_t seq, int32_t pos, int value,
                   int32_t head, float *out, double *scale, double *zero)
{
    const setup *s = r->s;
    size_t D = (size_t)s->D, slot = (size_t)(pos % s->bt), bt = (size_t)s->bt;
    const char *plane = cache +
                        (size_t)r->tables[seq * STRIDE + pos / s->bt] * r->at.kv.block_bytes +
                        (size_t)((LAYER * 2 + value) * s->K + head) * r->at.kv.plane_bytes;
    *scale = *zero = 0;
    if (s->kv_type < TURBOK_KV_INT4) {
        turbok_prim_scalar.widen(s->kv_type, plane + slot * D * turbok_dtype_size(s->kv_type), s->D,
                                 out);
        return;
    }
    size_t codes = s->kv_type == TURBOK_KV_INT8 ? bt * D : bt * D / 2;
    uint16_t par[2];
    memcpy(&par[0], plane + codes + 2 * slot, 2);
    memcpy(&par[1], plane + codes + 2 * (bt + slot), 2);
    *scale = (double)turbok_bf16_to_f32(par[0]);
    *zero = (double)turbok_bf16_to_f32(par[1]);
    for (size_t i = 0; i < D; i++) {
        uint8_t byte =
            (uint8_t)plane[s->kv_type == TURBOK_KV_INT8 ? slot * D + i : (slot * D + i) / 2];
        int u = s->kv_type == TURBOK_KV_INT8 ? byte : byte >> 4 * (i % 2) & 15;
        out[i] = (float)(*scale * u + *zero);
    }
}

static void check_store(run *r, const float *qkv, const int32_t *from, const int32_t *n,
                        const void *q)
{
    const setup *s = r->s;
    size_t width = (size_t)((s->H + 2 * s->K) * s->D), D = (size_t)s->D, t = 0, T = 0, size = 0;
    for (int32_t i = 0; i < s->S; i++) {
        T += (size_t)n[i];
        size += (size_t)((s->before[i] + s->fresh[i] + s->bt - 1) / s->bt) * r->at.kv.block_bytes;
    }
    float *gq = malloc(T * (size_t)s->H * D * 4), row[1024];
    char *cache = malloc(size);
    double want[1024], scale, zero;
    dev_get_numbers(s->act, q, T * (size_t)s->H * D, gq);
    dev_get(r->at.kv.base, cache, size);
    for (int32_t i = 0; i < s->S; i++)
        for (int32_t k = 0; k < n[i]; k++, t++)
            for (int32_t h = 0; h < s->H + 2 * s->K; h++) {
                int kind = h < s->H ? 0 : h < s->H + s->K ? 1 : 2;
                int32_t head = kind ? (h - s->H) % s->K : h, pos = from[i] + k;
                const float *in = qkv + t * width + column(s, kind, head);
                double top = 0;
                for (size_t d = 0; d < D; d++) {
                    want[d] = (double)in[d];
                    top = fmax(top, 2 * fabs(want[d]));
                }
                if (kind < 2)
                    rotate(r, i, pos, in, want);
                scale = 0;
                if (kind)
                    cached(r, cache, i, pos, kind == 2, head, row, &scale, &zero);
                for (size_t d = 0; d < D; d++) {
                    double tol = 1e-6 * top + (kind == 0   ? 1.01 * dev_ulp(s->act, want[d])
                                               : scale > 0 ? scale * 0.5001 + 1e-6 * top
                                                           : 1.01 * dev_ulp(s->kv_type, want[d]));
                    dev_near(r->what, d,
                             (double)(kind ? row[d] : gq[(t * (size_t)s->H + (size_t)h) * D + d]),
                             want[d], tol);
                }
            }
    free(gq), free(cache);
}

static void check_attention(run *r, const int32_t *from, const int32_t *n, const void *q,
                            const void *out)
{
    const setup *s = r->s;
    size_t D = (size_t)s->D, t = 0, T = 0, size = 0;
    for (int32_t i = 0; i < s->S; i++) {
        T += (size_t)n[i];
        size += (size_t)((s->before[i] + s->fresh[i] + s->bt - 1) / s->bt) * r->at.kv.block_bytes;
    }
    float *gq = malloc(T * (size_t)s->H * D * 4), *got = malloc(T * (size_t)s->H * D * 4);
    float *k = malloc(STRIDE * (size_t)s->bt * D * 4), *v = malloc(STRIDE * (size_t)s->bt * D * 4);
    double *zero = malloc(STRIDE * (size_t)s->bt * 8), scale,
           *p = malloc(STRIDE * (size_t)s->bt * 8), none;
    char *cache = malloc(size);
    dev_get_numbers(s->act, q, T * (size_t)s->H * D, gq);
    dev_get_numbers(s->act, out, T * (size_t)s->H * D, got);
    dev_get(r->at.kv.base, cache, size);
    for (int32_t i = 0; i < s->S; t += (size_t)n[i++])
        for (int32_t h = 0; h < s->K; h++) {
            for (int32_t j = 0; j < from[i] + n[i]; j++) {
                cached(r, cache, i, j, 0, h, k + (size_t)j * D, &scale, &none);
                cached(r, cache, i, j, 1, h, v + (size_t)j * D, &scale, &zero[j]);
            }
            for (int32_t row = 0; row < n[i] * (s->H / s->K); row++) {
                int32_t at = row / (s->H / s->K), head = h * (s->H / s->K) + row % (s->H / s->K);
                int32_t pos = from[i] + at,
                        lo = s->window && pos >= s->window ? pos - s->window + 1 : 0;
                size_t o = ((t + (size_t)at) * (size_t)s->H + (size_t)head) * D;
                double sum = 0, top = -1e300;
                for (int32_t j = lo; j <= pos; j++) {
                    p[j] = 0;
                    for (size_t d = 0; d < D; d++)
                        p[j] += (double)gq[o + d] * (double)k[(size_t)j * D + d];
                    p[j] *= (double)r->at.scale;
                    top = fmax(top, p[j]);
                }
                for (int32_t j = lo; j <= pos; j++)
                    sum += p[j] = exp(p[j] - top);
                for (size_t d = 0; d < D; d++) {
                    double want = 0, mass = 0;
                    for (int32_t j = lo; j <= pos; j++) {
                        want += p[j] / sum * (double)v[(size_t)j * D + d];
                        mass += p[j] / sum * (fabs((double)v[(size_t)j * D + d]) + fabs(zero[j]));
                    }
                    /* weights are rounded to 16 bits before they meet values; scores differ by fp32 sums */
                    double tol = mass * (s->act == TURBO_F32 ? 4e-5 : 0x1.2p-8) +
                                 1.01 * dev_ulp(s->act, want);
                    dev_near(r->what, o + d, (double)got[o + d], want, tol);
                }
            }
        }
    free(gq), free(got), free(k), free(v), free(zero), free(p), free(cache);
}

/* Prompts with 128 rows a block, and with 64 whose keys two groups share; which it is changes no bit of `deterministic`. */
static void check_prompts(run *r, const turbok_cu_batch *b, const int32_t *from, const int32_t *n,
                          const void *q, void *out)
{
    const setup *s = r->s;
    const size_t bytes = (size_t)b->T * (size_t)(s->H * s->D) * 2;
    const int usual = dev->shared_keys, many = dev->long_keys;
    char *got[2] = {malloc(bytes), malloc(bytes)};
    for (int i = 0; i < 6; i++) { /* tiles of 64 keys, shared ones, and of 128 keys */
        dev->shared_keys = i % 3 == 1 ? INT32_MAX : 0;
        dev->long_keys = i % 3 == 2 ? 0 : INT32_MAX;
        dev->deterministic = i >= 3;
        turbok_cu_fill(dev, turbok_cu_at(out), 0xff, bytes); /* no number */
        turbok_cu_attention(dev, s->act, &r->at, b, q, out, r->scratch, r->scratch_bytes);
        check_attention(r, from, n, q, out);
        dev_get(out, got[i > 3], bytes);
        if (i > 3)
            dev_near("bits of deterministic", 0, memcmp(got[0], got[1], bytes), 0, 0);
    }
    dev->shared_keys = usual;
    dev->long_keys = many;
    dev->deterministic = false;
    free(got[0]), free(got[1]);
}

/* The product that makes queries, keys and values in one launch with RoPE and the cache: the bits of two, where it applies. */
static void check_turned(run *r, const turbok_cu_batch *b)
{
    const setup *s = r->s;
    const bool applies = s->D == 128 && s->rope_dim == 128 && !s->style && s->dynamic == 0 &&
                         s->kv_type == s->act && b->max_kv <= s->table_len;
    const int32_t out = (s->H + 2 * s->K) * s->D, in = 8 * dev_range(1, 12);
    const size_t T = (size_t)b->T, O = (size_t)out, I = (size_t)in,
                 rows = T * (size_t)(s->H * s->D) * 2;
    uint64_t cache = 0;
    for (int32_t i = 0; i < s->S; i++)
        cache +=
            (uint64_t)((s->before[i] + s->fresh[i] + s->bt - 1) / s->bt) * r->at.kv.block_bytes;
    char *got[2] = {malloc(rows + cache), malloc(rows + cache)}, *old = malloc(cache);
    float *v = malloc(((I > T ? I : T) * O + T * I) * 4);
    void *w = dev_numbers(s->act, O * I, 0.3f, v), *x = dev_numbers(s->act, T * I, 1, v),
         *qkv = dev_new(T * O * 2, NULL), *q = dev_new(rows, NULL);
    const float *bias = dev_range(0, 1) ? dev_numbers(TURBO_F32, O, 1, v) : NULL;
    dev_get(r->at.kv.base, old, cache);
    dev->deterministic = true; /* no sums in two parts */
    for (int i = 0; i < 2; i++) {
        turbok_cu_fill(dev, turbok_cu_at(q), 0xff, rows);
        if (i)
            dev_near(r->what, 0,
                     turbok_cu_gemm_turned(dev, s->act, w, s->act, bias, in, x, &r->at, b, q),
                     applies, 0);
        else if (turbok_cu_gemm_wide(dev, s->act, w, NULL, s->act, bias, out, in, x, b->T, s->act,
                                     qkv, NULL))
            turbok_cu_rope_store(dev, s->act, &r->at, b, qkv, q);
        dev_get(q, got[i], rows);
        dev_get(r->at.kv.base, got[i] + rows, cache);
        turbok_cu_to_device(dev, turbok_cu_at(r->at.kv.base), old, cache);
    }
    if (applies)
        dev_near(r->what, 1, memcmp(got[0], got[1], rows + cache) != 0, 0, 0);
    dev->deterministic = false;
    turbok_cu_wait(dev, &(turbo_err){""});
    free(got[0]), free(got[1]), free(old), free(v);
}

static void step(run *r, const int32_t *from, const int32_t *n, int32_t pad)
{
    const setup *s = r->s;
    turbok_cu_batch b = batch_of(r, from, n, pad);
    size_t width = (size_t)((s->H + 2 * s->K) * s->D), T = (size_t)b.T,
           es = turbok_dtype_size(s->act);
    float *qkv = malloc(T * width * 4), *rows = malloc(T * width * 4);
    void *in = dev_numbers(s->act, T * width, 1, qkv);
    void *q = dev_new(T * (size_t)(s->H * s->D) * es, NULL),
         *out = dev_new(T * (size_t)(s->H * s->D) * es, NULL);
    turbok_cu_rope_store(dev, s->act, &r->at, &b, in, q);
    check_store(r, qkv, from, n, q);
    for (int twice = 0; twice < 2; twice++) /* the counters must be 0 again */
        turbok_cu_attention(dev, s->act, &r->at, &b, q, out, r->scratch, r->scratch_bytes);
    check_attention(r, from, n, q, out);
    if (dev->warp_groups && s->act != TURBO_F32 && s->kv_type == s->act && b.max_new > 1) {
        check_prompts(r, &b, from, n, q, out);
        dev->warp_groups = false; /* the kernel of other cards */
        turbok_cu_attention(dev, s->act, &r->at, &b, q, out, r->scratch, r->scratch_bytes);
        check_attention(r, from, n, q, out);
        dev->warp_groups = true;
    }
    dev_get_numbers(s->act, out, T * (size_t)(s->H * s->D), rows);
    for (size_t i = (T - (size_t)pad) * (size_t)(s->H * s->D); i < T * (size_t)(s->H * s->D); i++)
        dev_near("padding", i, (double)rows[i], 0, 0);
    if (dev->warp_groups && s->act != TURBO_F32)
        check_turned(r, &b);
    free(qkv), free(rows);
}

static void check(const setup *s)
{
    run r = {.s = s};
    int32_t zero[MAX_S] = {0}, behind[MAX_S], one[MAX_S], last[MAX_S];
    snprintf(r.what, sizeof r.what, "act %s kv %s D %d H %d K %d bt %d window %d", dev_type(s->act),
             dev_type(s->kv_type), s->D, s->H, s->K, s->bt, s->window);
    make_cache(&r);
    for (int32_t i = 0; i < s->S; i++) {
        behind[i] = s->before[i];
        last[i] = s->before[i] + s->fresh[i] - 1;
        one[i] = 1;
    }
    for (int32_t i = 0; i < s->S; i++)
        if (!s->before[i]) /* its first chunk is the second one of the others */
            behind[i] = 0;
    step(&r, zero, s->before, 0);
    step(&r, behind, s->fresh, 0);
    step(&r, last, one, 2); /* the last token once more, alone */
    free(r.inv);
    dev_drop();
}

/* A step of one or two sequences whose items have clusters of blocks to themselves, and of one that is too long for that. */
static void check_together(void)
{
    static const int32_t lens[] = {2, 64, 65, 130, 200, 448, 512, 520};
    const int sms = dev->sm_count, most = dev->together;
    dev->sm_count = dev_fast ? sms : 32; /* 64 blocks */
    dev->together = 1; /* so that 512 keys are many */
    for (int i = 0; i < 8; i++)
        for (int k = dev_fast ? 0 : i % 3; k < (dev_fast ? 3 : i % 3 + 1); k++) {
            setup s = {.act = i % 2 ? TURBO_BF16 : TURBO_F16,
                       .D = i % 3 ? 128 : 48,
                       .H = i % 3 == 2 ? 10 : 4,
                       .K = 1 + i / 4 % 2,
                       .bt = 16,
                       .window = i % 4 == 3 ? 70 : 0,
                       .rope_dim = 32,
                       .S = 1 + i % 2,
                       .before = {lens[i] - 1, lens[(i + 6) % 8] - 1},
                       .fresh = {1, 1},
                       .table_len = 600};
            s.kv_type = k == 0 ? s.act : k == 1 ? TURBOK_KV_INT8 : TURBOK_KV_INT4;
            check(&s);
        }
    dev->sm_count = sms;
    dev->together = most;
}

/* More tiles of keys than a ring holds, the last one not whole. */
static void check_long(void)
{
    setup s = {.act = TURBO_BF16,
               .kv_type = TURBO_BF16,
               .D = 128,
               .H = 2,
               .K = 1,
               .bt = 64,
               .rope_dim = 64,
               .S = 1,
               .before = {700},
               .fresh = {130},
               .table_len = 900};
    check(&s);
}

/* Heads that a product turns, in both orders. */
static void check_turns(void)
{
    for (int i = 0; i < 4; i++) {
        setup s = {.act = i % 2 ? TURBO_BF16 : TURBO_F16,
                   .D = 128,
                   .H = i < 2 ? 6 : 5,
                   .K = i < 2 ? 2 : 1,
                   .bt = i < 2 ? 16 : 32,
                   .layout = i / 2,
                   .rope_dim = 128,
                   .S = 3,
                   .before = {0, 1, 40},
                   .fresh = {130, 9, 70},
                   .table_len = 200};
        s.kv_type = s.act;
        check(&s);
    }
}

int main(void)
{
    static const int32_t types[] = {0, TURBOK_KV_INT8, TURBOK_KV_INT4};
    dev_begin("attention");
    check_together();
    check_long();
    if (dev->warp_groups)
        check_turns();
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++) {
            int32_t act = dev_act(i), grow = dev_fast ? 8 : 1; /* a card is faster */
            setup s = {.act = act,
                       .kv_type = types[k] ? types[k] : act,
                       .D = 64,
                       .H = 4,
                       .K = 2,
                       .bt = 16,
                       .rope_dim = 64,
                       .S = 3,
                       .before = {5, 19, 70 * grow},
                       .fresh = {3, 1, 7 * grow},
                       .table_len = 50};
            check(&s);
            if (act == TURBO_F32 && k)
                continue;
            s.D = 128, s.rope_dim = 128, s.bt = 64, s.H = 6, s.K = 1, s.window = 40, s.style = 1;
            s.before[2] = 150 * grow, s.fresh[0] = 1, s.fresh[1] = 9;
            check(&s);
            if (act == TURBO_F16 && !dev_fast)
                continue;
            s.D = 80, s.rope_dim = 32, s.bt = 8, s.H = 18, s.K = 2, s.window = 0, s.layout = 1;
            s.before[0] = 1, s.before[2] = 70, s.table_len = 1, s.dynamic = 2;
            check(&s);
            if (k)
                continue;
            s.D = 33, s.rope_dim = 10, s.H = 2, s.style = 0;
            check(&s);
            s.kv_type =
                act == TURBO_BF16 ? TURBO_F16 : TURBO_BF16; /* another type than the activations */
            s.D = 96;
            check(&s);
        }
    return dev_end();
}
