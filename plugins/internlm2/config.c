/* plugins/internlm2/config.c: config.json of InternLM2 and InternLM2.5, and the tensors it implies.
 * Defaults of absent keys are those of the published InternLM2Config class. */
#include "internlm2.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

turbo_status internlm2_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    /* Texts of a config may be cut inside a character or hold anything: one line of ASCII stays. */
    for (char *p = err->text; *p; p++)
        if (*p < 0x20 || *p > 0x7e)
            *p = '?';
    return s;
}

/* Architectures decide: configs of before 2024-01-24 have the model_type of InternLM 1. */
int32_t internlm2_probe(const turbo_host *h, const turbo_config *c)
{
    const char *s = NULL;
    turbo_err err;
    if (!h->cfg_str(c, "architectures.0", NULL, &s, &err) && s)
        return !strcmp(s, "InternLM2ForCausalLM") ? 100 : 0;
    s = NULL;
    if (!h->cfg_str(c, "model_type", NULL, &s, &err) && s && !strcmp(s, "internlm2"))
        return 50;
    return 0;
}

static turbo_status read_dims(const turbo_host *h, const turbo_config *c, turbo_model_info *m,
                              turbo_err *err)
{
    const struct {
        const char *key;
        int64_t dflt, lo, hi;
        int32_t *to;
    } rows[] = {
        {"vocab_size", 103168, 1, 2097152, &m->vocab},
        {"hidden_size", 4096, 1, 65536, &m->embed_dim},
        {"intermediate_size", 11008, 1, 1048576, &m->mlp_dim},
        {"num_hidden_layers", 32, 1, 512, &m->n_layers},
        {"num_attention_heads", 32, 1, 1024, &m->n_heads},
        {"max_position_embeddings", 2048, 1, 16777216, &m->max_position},
        {"bos_token_id", 1, -1, 2097151, &m->bos},
    };
    turbo_status st = TURBO_OK;
    int64_t v;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++) {
        st = h->cfg_int(c, rows[i].key, rows[i].dflt, rows[i].lo, rows[i].hi, &v, err);
        *rows[i].to = (int32_t)v;
    }
    if (!st)
        st = h->cfg_int(c, "num_key_value_heads", m->n_heads, 1, 1024, &v, err);
    if (st)
        return st;
    m->n_kv = (int32_t)v;
    st = h->cfg_int(c, "head_dim", 0, 2, 1024, &v, err);
    if (st)
        return st;
    if (!v && m->embed_dim % m->n_heads)
        return internlm2_fail(
            err, TURBO_EDATA,
            "config.json: hidden_size %d is no multiple of num_attention_heads %d", m->embed_dim,
            m->n_heads);
    m->head_dim = v ? (int32_t)v : m->embed_dim / m->n_heads;
    if (m->n_heads % m->n_kv)
        return internlm2_fail(err, TURBO_EDATA,
                              "config.json: num_attention_heads %d is no multiple of "
                              "num_key_value_heads %d",
                              m->n_heads, m->n_kv);
    if (m->head_dim % 2 || m->head_dim > 1024)
        return internlm2_fail(
            err, TURBO_EDATA,
            "config.json: the head size is %d; RoPE needs an even one of at most 1024",
            m->head_dim);
    if (m->bos >= m->vocab)
        return internlm2_fail(err, TURBO_EDATA,
                              "config.json: bos_token_id %d is beyond vocab_size %d", m->bos,
                              m->vocab);
    return TURBO_OK;
}

static turbo_status add_eos(turbo_model_info *m, int64_t id, turbo_err *err)
{
    for (int32_t i = 0; i < m->n_eos; i++)
        if (m->eos[i] == id)
            return TURBO_OK;
    if (m->n_eos == 16)
        return internlm2_fail(err, TURBO_EDATA, "more than 16 different eos_token_id");
    m->eos[m->n_eos++] = (int32_t)id;
    return TURBO_OK;
}

/* eos_token_id is a number or a list, in config.json and in generation_config.json. */
static turbo_status read_eos(const turbo_host *h, const turbo_config *c, const char *path,
                             int64_t dflt, turbo_model_info *m, turbo_err *err)
{
    char item[64];
    int64_t n = h->cfg_len(c, path), v;
    if (n > 64)
        return internlm2_fail(err, TURBO_EDATA, "%s has %lld entries; at most 64", path,
                              (long long)n);
    if (n < 0) {
        turbo_status st = h->cfg_int(c, path, dflt, -1, m->vocab - 1, &v, err);
        /* The default of the class may lie beyond a small vocabulary: then there is none. */
        return st || v < 0 || v >= m->vocab ? st : add_eos(m, v, err);
    }
    for (int64_t i = 0; i < n; i++) {
        snprintf(item, sizeof item, "%s.%lld", path, (long long)i);
        turbo_status st = h->cfg_int(c, item, -1, 0, m->vocab - 1, &v, err);
        if (!st)
            st = add_eos(m, v, err);
        if (st)
            return st;
    }
    return TURBO_OK;
}

static turbo_status read_rope(const turbo_host *h, const turbo_config *c, internlm2_config *o,
                              turbo_err *err)
{
    const char *type = NULL;
    double base, factor;
    turbo_status st = h->cfg_num(c, "rope_theta", 10000, 1e-6, 1e12, &base, err);
    if (!st)
        st = h->cfg_str(c, "rope_scaling.type", NULL, &type, err);
    if (!st && !type)
        st = h->cfg_str(c, "rope_scaling.rope_type", NULL, &type, err);
    if (!st)
        st = h->cfg_num(c, "rope_scaling.factor", 1, 1, 1e6, &factor, err);
    if (st)
        return st;
    o->rope = (turbo_rope_spec){
        .size = sizeof o->rope,
        .style = TURBO_ROPE_HALF,
        .dim = o->info.head_dim,
        .max_position = o->info.max_position,
        .factor = (float)factor,
        .base = base,
    };
    if (!type) {
        if (h->cfg_has(c, "rope_scaling"))
            return internlm2_fail(err, TURBO_EDATA,
                                  "config.json: rope_scaling has no type; linear "
                                  "and dynamic are known");
        return TURBO_OK;
    }
    if (strcmp(type, "default") && !h->cfg_has(c, "rope_scaling.factor"))
        return internlm2_fail(err, TURBO_EDATA, "config.json: rope_scaling.factor is missing");
    if (!strcmp(type, "linear"))
        o->rope.scaling = TURBO_ROPE_LINEAR;
    else if (!strcmp(type, "dynamic"))
        o->rope.scaling = TURBO_ROPE_DYNAMIC;
    else if (strcmp(type, "default"))
        return internlm2_fail(
            err, TURBO_EUNSUPPORTED,
            "config.json: rope_scaling.type is \"%.32s\"; InternLM2 has linear and "
            "dynamic",
            type);
    return TURBO_OK;
}

static turbo_status read_dtype(const turbo_host *h, const turbo_config *c, turbo_model_info *m,
                               turbo_err *err)
{
    const char *s = NULL;
    turbo_status st = h->cfg_str(c, "torch_dtype", NULL, &s, err);
    if (!st && !s)
        st = h->cfg_str(c, "dtype", "float32", &s, err);
    if (st)
        return st;
    m->dtype = !strcmp(s, "bfloat16") ? TURBO_BF16 : !strcmp(s, "float16") ? TURBO_F16 : TURBO_F32;
    if (m->dtype == TURBO_F32 && strcmp(s, "float32"))
        return internlm2_fail(
            err, TURBO_EUNSUPPORTED,
            "config.json: torch_dtype is \"%.32s\"; bfloat16, float16 and float32 "
            "are computed",
            s);
    return TURBO_OK;
}

turbo_status internlm2_read(const turbo_host *h, const turbo_config *c, internlm2_config *o,
                            turbo_err *err)
{
    *o = (internlm2_config){.info = {.size = sizeof o->info}};
    turbo_model_info *m = &o->info;
    const char *act = NULL;
    double eps = 0;
    turbo_status st = read_dims(h, c, m, err);
    if (!st)
        st = read_eos(h, c, "eos_token_id", 2, m, err);
    if (!st)
        st = read_eos(h, c, "generation.eos_token_id", -1, m, err);
    if (!st)
        st = h->cfg_num(c, "rms_norm_eps", 1e-6, 1e-30, 0.1, &eps, err);
    if (!st)
        st = h->cfg_bool(c, "bias", 1, &o->bias, err);
    if (!st)
        st = h->cfg_bool(c, "tie_word_embeddings", 0, &o->tied, err);
    if (!st)
        st = h->cfg_str(c, "hidden_act", "silu", &act, err);
    if (!st && strcmp(act, "silu"))
        st = internlm2_fail(err, TURBO_EUNSUPPORTED,
                            "config.json: hidden_act is \"%.32s\"; InternLM2 uses silu", act);
    if (!st)
        st = read_rope(h, c, o, err);
    if (!st)
        st = read_dtype(h, c, m, err);
    if (st)
        return st;
    o->eps = (float)eps;
    memcpy(m->arch, "InternLM2", sizeof "InternLM2");
    memcpy(m->chat, "internlm2", sizeof "internlm2");
    return TURBO_OK;
}

typedef struct emitter {
    turbo_expect_fn emit;
    void *ctx;
    turbo_status st;
} emitter;

/* d1 = 0: a vector. */
static void want(emitter *e, const char *name, int64_t d0, int64_t d1)
{
    turbo_tensor_spec s = {
        .size = sizeof s,
        .ndim = d1 ? 2 : 1,
        .dims = {d0, d1},
        .name = name,
    };
    if (!e->st)
        e->st = e->emit(e->ctx, &s);
}

turbo_status internlm2_expect(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                              void *ctx, turbo_err *err)
{
    internlm2_config o;
    char name[96];
    turbo_status st = internlm2_read(h, c, &o, err);
    if (st)
        return st;
    emitter e = {emit, ctx, TURBO_OK};
    const turbo_model_info *m = &o.info;
    int64_t E = m->embed_dim, D = m->head_dim, rows = (int64_t)(m->n_heads + 2 * m->n_kv) * D;
    want(&e, "model.tok_embeddings.weight", m->vocab, E);
    for (int32_t l = 0; l < m->n_layers; l++) {
        const struct {
            const char *name;
            int64_t d0, d1;
            int needed;
        } rows_of_layer[] = {
            {"attention_norm.weight", E, 0, 1},
            {"attention.wqkv.weight", rows, E, 1},
            {"attention.wqkv.bias", rows, 0, o.bias},
            {"attention.wo.weight", E, m->n_heads * D, 1},
            {"attention.wo.bias", E, 0, o.bias},
            {"ffn_norm.weight", E, 0, 1},
            {"feed_forward.w1.weight", m->mlp_dim, E, 1},
            {"feed_forward.w3.weight", m->mlp_dim, E, 1},
            {"feed_forward.w2.weight", E, m->mlp_dim, 1},
        };
        for (size_t i = 0; i < sizeof rows_of_layer / sizeof rows_of_layer[0]; i++) {
            if (!rows_of_layer[i].needed)
                continue;
            snprintf(name, sizeof name, "model.layers.%d.%s", l, rows_of_layer[i].name);
            want(&e, name, rows_of_layer[i].d0, rows_of_layer[i].d1);
        }
    }
    want(&e, "model.norm.weight", E, 0);
    if (!o.tied)
        want(&e, "output.weight", m->vocab, E);
    return e.st;
}
