/* tests/cuda/test_attention.c: RoPE with the KV write, and attention over the paged cache, for ragged batches:
 * prompts, chunks behind a cache and single tokens. Rotation against double precision; what is in the cache
 * is read back by its layout and held to the rules of cpu/quant.h; attention against a softmax in double over
 * what is in the cache. */
#include "attention_rig.h"

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

static int in_one; /* launches that did all */

/* Makes what the cache holds of the tokens of a step no numbers. */
static void forget_newest(run *r, const int32_t *from, const int32_t *n)
{
    const setup *s = r->s;
    const size_t row = (size_t)s->D * turbok_dtype_size(s->act);
    if (s->kv_type != s->act)
        return;
    for (int32_t i = 0; i < s->S; i++)
        for (int32_t pos = from[i]; pos < from[i] + n[i]; pos++)
            for (int32_t k = 0; k < 2 * s->K; k++)
                turbok_cu_fill(dev,
                               turbok_cu_at(r->at.kv.base) +
                                   (size_t)r->tables[i * STRIDE + pos / s->bt] *
                                       r->at.kv.block_bytes +
                                   (size_t)(LAYER * 2 * s->K + k) * r->at.kv.plane_bytes +
                                   (size_t)(pos % s->bt) * row,
                               0xff, row);
}

/* RoPE, the KV write and attention in one launch: queries and the cache have the bits of RoPE alone, and attention is as
 * near. q: what RoPE alone gave. */
static void check_all_in_one(run *r, const turbok_cu_batch *b, const void *in, const void *q,
                             const int32_t *from, const int32_t *n, int32_t pad)
{
    const setup *s = r->s;
    const size_t width = (size_t)(s->H * s->D), real = (size_t)(b->T - pad) * width;
    const size_t es = turbok_dtype_size(s->act), bytes = (size_t)b->T * width * es;
    uint64_t cache = 0;
    for (int32_t i = 0; i < s->S; i++)
        cache +=
            (uint64_t)((s->before[i] + s->fresh[i] + s->bt - 1) / s->bt) * r->at.kv.block_bytes;
    char *want = malloc(real * es + cache), *got = malloc(real * es + cache);
    float *rows = malloc((size_t)b->T * width * 4);
    void *q2 = dev_new(bytes, NULL), *out = dev_new(bytes, NULL);
    dev_get(q, want, real * es);
    dev_get(r->at.kv.base, want + real * es, cache);
    turbok_cu_fill(dev, turbok_cu_at(q2), 0xff, bytes); /* no number */
    turbok_cu_fill(dev, turbok_cu_at(out), 0xff, bytes);
    /* The keys of this step must come from it. */
    forget_newest(r, from, n);
    if (turbok_cu_attention_turned(dev, s->act, &r->at, b, in, q2, out)) {
        in_one++;
        dev_get(q2, got, real * es);
        dev_get(r->at.kv.base, got + real * es, cache);
        dev_near(r->what, 2, memcmp(want, got, real * es + cache) != 0, 0, 0);
        check_attention(r, from, n, q2, out);
        dev_get_numbers(s->act, out, (size_t)b->T * width, rows);
        for (size_t i = real; i < (size_t)b->T * width; i++)
            dev_near("padding in one", i, (double)rows[i], 0, 0);
    } else {
        turbok_cu_to_device(dev, turbok_cu_at(r->at.kv.base), want + real * es, cache);
        turbok_cu_wait(dev, &(turbo_err){""});
    }
    free(want), free(got), free(rows);
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
    check_all_in_one(r, &b, in, q, from, n, pad);
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

/* The last tokens of sequences alone, behind others that only RoPE saw. */
static void check_newest(const setup *s)
{
    run r = {.s = s};
    int32_t zero[MAX_S] = {0}, one[MAX_S];
    snprintf(r.what, sizeof r.what, "newest of %d: act %s D %d H %d K %d bt %d window %d",
             s->before[0] + 1, dev_type(s->act), s->D, s->H, s->K, s->bt, s->window);
    make_cache(&r);
    for (int32_t i = 0; i < s->S; i++)
        one[i] = 1;
    turbok_cu_batch b = batch_of(&r, zero, s->before, 0);
    const size_t T = (size_t)b.T, q = (size_t)(s->H * s->D), width = q + (size_t)(2 * s->K * s->D);
    float *numbers = malloc((T + 1) * width * 4);
    void *qkv = dev_numbers(s->act, T * width, 1, numbers);
    turbok_cu_rope_store(dev, s->act, &r.at, &b, qkv, dev_new(T * q * 2, NULL));
    step(&r, s->before, one, 1);
    free(numbers);
    free(r.inv);
    dev_drop();
}

/* Steps that one launch does all of: every number of blocks and warps with keys, queries of more than one item, windows, padding. */
static void check_in_one(void)
{
    static const int32_t lens[] = {15, 1, 16, 129, 17, 128, 300, 513, 1024};
    enum { N = sizeof lens / sizeof lens[0] };
    const int sms = dev->sm_count, most = dev->together, before = in_one;
    dev->sm_count = dev_fast ? sms : 64;
    dev->together = 2;
    for (int i = 0; i < N; i++) {
        setup s = {.act = i % 2 ? TURBO_BF16 : TURBO_F16,
                   .D = i % 3 == 1 ? 64 : 128,
                   .H = i % 4 == 1   ? 20
                        : i % 4 == 2 ? 7
                                     : 4,
                   .K = i % 4 == 2 ? 1 : 2,
                   .bt = 16 << i % 3,
                   .layout = i / 2 % 2,
                   .window = i % 5 == 4 ? 70 : 0,
                   .S = 1 + i % 2,
                   .before = {lens[i] - 1, lens[(i + 4) % N] - 1},
                   .fresh = {1, 1},
                   .table_len = 1100};
        s.rope_dim = s.D;
        s.kv_type = s.act;
        check_newest(&s);
    }
    dev->sm_count = sms;
    dev->together = most;
    if (turbok_cu_attention_brief(dev))
        dev_near("steps in one launch", 0, in_one > before, 1, 0);
}

/* More sequences than a warp counts, and than a block has threads: of 2 to 150 keys. */
static void check_crowds(void)
{
    static const int32_t types[] = {TURBO_BF16, TURBOK_KV_INT8, TURBOK_KV_INT4};
    for (int i = 0; i < 6; i++) {
        setup s = {.act = TURBO_BF16,
                   .kv_type = types[i % 3],
                   .D = i % 2 ? 128 : 64,
                   .H = 4,
                   .K = 2,
                   .bt = 16,
                   .window = i == 4 ? 20 : 0,
                   .rope_dim = 32,
                   .S = i < 3 ? 33 : MAX_S,
                   .table_len = 160};
        for (int32_t k = 0; k < s.S; k++) {
            s.before[k] = k % 7 == 3 ? 149 : dev_range(1, 30);
            s.fresh[k] = 1;
        }
        check_newest(&s);
    }
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
    check_in_one();
    check_crowds();
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
