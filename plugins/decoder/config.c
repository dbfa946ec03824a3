/* plugins/decoder/config.c: config.json and generation_config.json of a decoder, every key with its
 * range. Any thread; reads no weights. Must not know a family: their values are in decoder_family. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "decoder.h"

turbo_status decoder_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
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

/* Architectures decide; model_type was reused across incompatible ones. */
int32_t decoder_probe(const decoder_family *f, const turbo_host *h, const turbo_config *c)
{
    const char *s = NULL;
    turbo_err err;
    if (!h->cfg_str(c, "architectures.0", NULL, &s, &err) && s) {
        for (int i = 0; f->classes[i]; i++)
            if (!strcmp(s, f->classes[i]))
                return 100;
        return 0;
    }
    s = NULL;
    if (!h->cfg_str(c, "model_type", NULL, &s, &err) && s && !strcmp(s, f->model_type))
        return 50;
    return 0;
}

int32_t decoder_has_key(const turbo_host *h, const turbo_config *c, const char *key)
{
    const char *k;
    /* cfg_key counts from the first on; a file of more keys than this is made to keep us busy */
    for (int64_t i = 0; i < 4096 && (k = h->cfg_key(c, "", i)); i++)
        if (!strcmp(k, key))
            return 1;
    return 0;
}

void decoder_set_window(decoder_config *cfg, int32_t l)
{
    cfg->windowed[l / 64] |= UINT64_C(1) << (l % 64);
}

/* ---- dimensions ----------------------------------------------------------------------------- */

static turbo_status check_heads(const turbo_model_info *m, int64_t head_dim, turbo_err *err)
{
    if (!head_dim && m->embed_dim % m->n_heads)
        return decoder_fail(err, TURBO_EDATA,
                            "config.json: hidden_size %d is no multiple of num_attention_heads %d",
                            m->embed_dim, m->n_heads);
    if (m->n_heads % m->n_kv)
        return decoder_fail(err, TURBO_EDATA,
                            "config.json: num_attention_heads %d is no multiple of "
                            "num_key_value_heads %d",
                            m->n_heads, m->n_kv);
    return TURBO_OK;
}

static turbo_status read_dims(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                              turbo_model_info *m, turbo_err *err)
{
    const struct {
        const char *key;
        int64_t dflt, lo, hi;
        int32_t *to;
    } rows[] = {
        {"vocab_size", f->vocab, 1, 2097152, &m->vocab},
        {"hidden_size", f->embed_dim, 1, 65536, &m->embed_dim},
        {"intermediate_size", f->mlp_dim, 1, 1048576, &m->mlp_dim},
        {"num_hidden_layers", f->n_layers, 1, DECODER_MAX_LAYERS, &m->n_layers},
        {"num_attention_heads", f->n_heads, 1, 1024, &m->n_heads},
        {"max_position_embeddings", f->max_position, 1, 16777216, &m->max_position},
        {"bos_token_id", f->bos, -1, 2097151, &m->bos},
    };
    turbo_status st = TURBO_OK;
    int64_t v;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++) {
        st = h->cfg_int(c, rows[i].key, rows[i].dflt, rows[i].lo, rows[i].hi, &v, err);
        *rows[i].to = (int32_t)v;
    }
    int64_t n_kv = f->n_kv && !decoder_has_key(h, c, "num_key_value_heads") ? f->n_kv : m->n_heads;
    if (!st)
        st = h->cfg_int(c, "num_key_value_heads", n_kv, 1, 1024, &v, err);
    if (st)
        return st;
    m->n_kv = (int32_t)v;
    st = h->cfg_int(c, "head_dim", f->head_dim, 2, 1024, &v, err);
    if (!st)
        st = check_heads(m, v, err);
    if (st)
        return st;
    m->head_dim = v ? (int32_t)v : m->embed_dim / m->n_heads;
    if (m->head_dim % 2 || m->head_dim > 1024)
        return decoder_fail(
            err, TURBO_EDATA,
            "config.json: the head size is %d; RoPE needs an even one of at most 1024",
            m->head_dim);
    if (m->bos >= m->vocab)
        return decoder_fail(err, TURBO_EDATA,
                            "config.json: bos_token_id %d is beyond vocab_size %d", m->bos,
                            m->vocab);
    return TURBO_OK;
}

/* ---- end of text ---------------------------------------------------------------------------- */

static turbo_status add_eos(turbo_model_info *m, int64_t id, turbo_err *err)
{
    for (int32_t i = 0; i < m->n_eos; i++)
        if (m->eos[i] == id)
            return TURBO_OK;
    if (m->n_eos == 16)
        return decoder_fail(err, TURBO_EDATA, "more than 16 different eos_token_id");
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
        return decoder_fail(err, TURBO_EDATA, "%s has %lld entries; at most 64", path,
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

/* ---- rotary embedding ------------------------------------------------------------------------ */

static const char *const type_names[DECODER_TYPES] = {[TURBO_ROPE_PLAIN] = "default",
                                                      [TURBO_ROPE_LINEAR] = "linear",
                                                      [TURBO_ROPE_DYNAMIC] = "dynamic",
                                                      [TURBO_ROPE_BANDS] = "llama3",
                                                      [TURBO_ROPE_YARN] = "yarn"};

/* Where config.json keeps it: "rope_scaling", in files of transformers 5 "rope_parameters". */
typedef struct rope_reader {
    const turbo_host *h;
    const turbo_config *c;
    turbo_err *err;
    const char *dict;
    turbo_status st; /* the first error */
} rope_reader;

static double number(rope_reader *r, const char *key, double dflt, double lo, double hi)
{
    char path[96];
    double v = dflt;
    snprintf(path, sizeof path, "%s.%s", r->dict, key);
    if (!r->st)
        r->st = r->h->cfg_num(r->c, path, dflt, lo, hi, &v, r->err);
    return v;
}

static int has(const rope_reader *r, const char *key)
{
    char path[96];
    snprintf(path, sizeof path, "%s.%s", r->dict, key);
    return r->h->cfg_has(r->c, path);
}

static void need(rope_reader *r, const char *key)
{
    if (!r->st && !has(r, key))
        r->st = decoder_fail(r->err, TURBO_EDATA, "config.json: %s.%s is missing", r->dict, key);
}

/* The length before the scaling; a key of the whole file goes before the one inside. */
static void read_original_max(rope_reader *r, turbo_rope_spec *s)
{
    static const char key[] = "original_max_position_embeddings";
    int64_t v = 0;
    double inside = number(r, key, s->max_position, 1, 16777216);
    if (!r->st)
        r->st = r->h->cfg_int(r->c, key, (int64_t)inside, 1, 16777216, &v, r->err);
    s->original_max = (int32_t)v;
}

static void read_bands(rope_reader *r, turbo_rope_spec *s)
{
    need(r, "low_freq_factor");
    need(r, "high_freq_factor");
    s->low_freq = (float)number(r, "low_freq_factor", 1, 1e-3, 1e6);
    s->high_freq = (float)number(r, "high_freq_factor", 4, 1e-3, 1e6);
    read_original_max(r, s);
    if (!r->st && !(s->high_freq > s->low_freq))
        r->st = decoder_fail(r->err, TURBO_EDATA,
                             "config.json: %s.high_freq_factor %g is not above low_freq_factor %g",
                             r->dict, (double)s->high_freq, (double)s->low_freq);
}

static double mscale(double factor, double k)
{
    return factor <= 1 ? 1 : 0.1 * k * log(factor) + 1;
}

static void read_yarn(rope_reader *r, turbo_rope_spec *s)
{
    double factor = (double)s->factor, m = number(r, "mscale", 0, 0, 1e3);
    double all = number(r, "mscale_all_dim", 0, 0, 1e3), fast = number(r, "beta_fast", 0, 0, 1e6);
    double slow = number(r, "beta_slow", 0, 0, 1e6);
    s->beta_fast = (float)(fast > 0 ? fast : 32);
    s->beta_slow = (float)(slow > 0 ? slow : 1);
    s->attention_factor = (float)number(r, "attention_factor", 0, 1e-3, 1e3);
    if (!has(r, "attention_factor") && m > 0 && all > 0)
        s->attention_factor = (float)(mscale(factor, m) / mscale(factor, all));
    char path[96];
    snprintf(path, sizeof path, "%s.truncate", r->dict);
    if (!r->st)
        r->st = r->h->cfg_bool(r->c, path, 1, &s->truncate, r->err);
    read_original_max(r, s);
    if (!r->st && !(s->base > 1))
        r->st = decoder_fail(r->err, TURBO_EDATA,
                             "config.json: rope_theta is %g; yarn needs more than 1", s->base);
}

/* rope_type, in older files type; without either the rotation is plain. */
static turbo_status read_type(const decoder_family *f, rope_reader *r, int32_t *scaling)
{
    const char *type = NULL;
    char path[96], known[64] = "";
    for (int i = 0; i < 2 && !type && !r->st; i++) {
        snprintf(path, sizeof path, "%s.%s", r->dict, i ? "type" : "rope_type");
        r->st = r->h->cfg_str(r->c, path, NULL, &type, r->err);
    }
    if (r->st)
        return r->st;
    if (!type && (has(r, "factor") || !strcmp(r->dict, "rope_scaling")))
        return decoder_fail(r->err, TURBO_EDATA,
                            "config.json: %s has no type; default, linear and others are known",
                            r->dict);
    for (int32_t i = 0; i < DECODER_TYPES; i++) {
        if (!(f->scalings >> i & 1))
            continue;
        if (!type || !strcmp(type, type_names[i])) {
            *scaling = i;
            return TURBO_OK;
        }
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                 type_names[i]);
    }
    return decoder_fail(r->err, TURBO_EUNSUPPORTED,
                        "config.json: the type of %s is \"%.32s\"; %s has %s", r->dict, type,
                        f->arch, known);
}

static turbo_status read_scaling(const decoder_family *f, rope_reader *r, decoder_config *o)
{
    turbo_rope_spec *s = &o->rope;
    if (r->h->cfg_len(r->c, r->dict) < 0)
        return decoder_fail(r->err, TURBO_EDATA, "config.json: %s is no object", r->dict);
    turbo_status st = read_type(f, r, &s->scaling);
    if (st)
        return st;
    s->base = number(r, "rope_theta", s->base, 1e-6, 1e12);
    if (number(r, "partial_rotary_factor", 1, 1e-6, 1) < 1)
        return decoder_fail(r->err, TURBO_EUNSUPPORTED,
                            "config.json: %s.partial_rotary_factor is below 1; %s rotates whole "
                            "heads",
                            r->dict, f->arch);
    if (s->scaling != TURBO_ROPE_PLAIN) {
        need(r, "factor");
        s->factor = (float)number(r, "factor", 1, 1, 1e6);
    }
    if (s->scaling == TURBO_ROPE_BANDS)
        read_bands(r, s);
    if (s->scaling == TURBO_ROPE_YARN)
        read_yarn(r, s);
    /* yarn keeps max_position_embeddings at the original length */
    double reach = (double)s->original_max * (double)s->factor;
    if (!r->st && s->scaling == TURBO_ROPE_YARN && reach > o->info.max_position)
        o->info.max_position = reach < 16777216 ? (int32_t)reach : 16777216;
    return r->st;
}

static turbo_status read_rope(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                              decoder_config *o, turbo_err *err)
{
    o->rope = (turbo_rope_spec){
        .size = sizeof o->rope,
        .style = TURBO_ROPE_HALF,
        .dim = o->info.head_dim,
        .max_position = o->info.max_position,
        .factor = 1,
    };
    turbo_status st = h->cfg_num(c, "rope_theta", f->theta > 0 ? f->theta : 10000, 1e-6, 1e12,
                                 &o->rope.base, err);
    if (st)
        return st;
    rope_reader r = {.h = h, .c = c, .err = err, .dict = "rope_scaling"};
    if (!h->cfg_has(c, r.dict) || h->cfg_len(c, r.dict) == 0)
        r.dict = "rope_parameters";
    return h->cfg_has(c, r.dict) ? read_scaling(f, &r, o) : TURBO_OK;
}

/* ---- the rest --------------------------------------------------------------------------------- */

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
        return decoder_fail(err, TURBO_EUNSUPPORTED,
                            "config.json: torch_dtype is \"%.32s\"; bfloat16, float16 and float32 "
                            "are computed",
                            s);
    return TURBO_OK;
}

/* What would change the numbers and is not computed here. */
static turbo_status refuse_others(const decoder_family *f, const turbo_host *h,
                                  const turbo_config *c, turbo_err *err)
{
    const char *act = NULL;
    turbo_status st = h->cfg_str(c, "hidden_act", "silu", &act, err);
    if (!st && strcmp(act, "silu"))
        st = decoder_fail(err, TURBO_EUNSUPPORTED,
                          "config.json: hidden_act is \"%.32s\"; %s uses silu", act, f->arch);
    return st;
}

turbo_status decoder_read(const decoder_family *f, const turbo_host *h, const turbo_config *c,
                          decoder_config *o, turbo_err *err)
{
    *o = (decoder_config){.info = {.size = sizeof o->info}};
    turbo_model_info *m = &o->info;
    double eps = 0;
    turbo_status st = read_dims(f, h, c, m, err);
    if (!st)
        st = read_eos(h, c, "eos_token_id", f->eos, m, err);
    if (!st)
        st = read_eos(h, c, "generation.eos_token_id", -1, m, err);
    if (!st)
        st = h->cfg_num(c, "rms_norm_eps", f->eps > 0 ? f->eps : 1e-6, 1e-30, 0.1, &eps, err);
    if (!st)
        st = h->cfg_bool(c, "tie_word_embeddings", 0, &o->tied, err);
    if (!st)
        st = refuse_others(f, h, c, err);
    if (!st)
        st = read_rope(f, h, c, o, err);
    if (!st)
        st = read_dtype(h, c, m, err);
    if (st)
        return st;
    o->eps = (float)eps;
    snprintf(m->arch, sizeof m->arch, "%s", f->arch);
    snprintf(m->chat, sizeof m->chat, "%s", f->chat);
    return f->own(h, c, o, err);
}
