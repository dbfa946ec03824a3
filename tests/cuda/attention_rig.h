/* tests/cuda/attention_rig.h: a cache of keys and values, batches over it, and what RoPE and the layout of the cache make of a
 * token, in double precision: for test_attention.c. */
#ifndef ATTENTION_RIG_H
#define ATTENTION_RIG_H

#include "dev.h"

#include "cpu/half.h"

enum { MAX_S = 150 };
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

#endif
