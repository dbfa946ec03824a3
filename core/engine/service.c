/* core/engine/service.c: see service.h. Loading runs on one thread; afterwards read-only. */
#include "engine/service.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "chat/choose.h"
#include "plugin/host.h"
#include "turbok.h"
#include "util/checked.h"
#include "conf/paths.h"
#include "util/err.h"
#include "util/log.h"

void turbod_service_name(const turbod_conf *conf, char name[129])
{
    static const char fallback[] = "model";
    char real[PATH_MAX];
    if (conf->model_name && *conf->model_name) {
        snprintf(name, 129, "%s", conf->model_name);
        return;
    }
    const char *slash = realpath(conf->model, real) ? strrchr(real, '/') : NULL;
    snprintf(name, 129, "%s", slash && slash[1] ? slash + 1 : fallback);
}

turbo_status turbod_service_init(turbod_service *s, const turbod_conf *conf, turbo_err *err)
{
    *s = (turbod_service){.conf = conf, .created = (int64_t)time(NULL)};
    atomic_init(&s->state, TURBOD_LOADING);
    turbod_sample_defaults(&s->defaults);
    turbod_service_name(conf, s->name);
    return turbod_registry_open(turbod_plugin_path(conf->plugin_path), &s->registry, err);
}

/* "0.8" is a fraction, "8GiB" a size. */
static turbo_status parse_cache(const char *text, turbod_engine_opts *o, turbo_err *err)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end != text && !*end && !errno && turbod_d_in(v, 1e-9, 1)) {
        o->cache_fraction = v;
        return TURBO_OK;
    }
    if (turbod_conf_size(text, &o->cache_bytes) && o->cache_bytes >= 65536)
        return TURBO_OK;
    return turbod_err(
        err, TURBO_EINVAL,
        "cache_max_entry_count is \"%s\"; give a fraction above 0 and at most 1, or a "
        "size such as 8GiB",
        text);
}

static turbo_status parse_kv_dtype(const char *text, int32_t *out, turbo_err *err)
{
    static const struct {
        const char *name;
        int32_t dtype;
    } rows[] = {{"auto", -1}, {"f32", TURBO_F32}, {"bf16", TURBO_BF16}, {"f16", TURBO_F16}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (!strcmp(text, rows[i].name)) {
            *out = rows[i].dtype;
            return TURBO_OK;
        }
    return turbod_err(err, TURBO_EINVAL, "kv_dtype is \"%s\"; use auto, f32, bf16 or f16", text);
}

turbo_status turbod_kv_type_of(const turbod_conf *c, int32_t *out, turbo_err *err)
{
    turbo_status st = parse_kv_dtype(c->kv_dtype, out, err);
    if (st || !c->quant_policy)
        return st;
    if (c->quant_policy != 8 && c->quant_policy != 4)
        return turbod_err(err, TURBO_EINVAL,
                          "quant_policy is %lld; use 0 (not quantised), 8 (int8) or 4 (int4)",
                          (long long)c->quant_policy);
    if (*out >= 0)
        return turbod_err(
            err, TURBO_EINVAL,
            "quant_policy %lld stores keys and values as int%lld, kv_dtype asks for %s; "
            "remove kv_dtype, or set quant_policy to 0",
            (long long)c->quant_policy, (long long)c->quant_policy, c->kv_dtype);
    *out = c->quant_policy == 8 ? TURBOK_KV_INT8 : TURBOK_KV_INT4;
    return TURBO_OK;
}

turbo_status turbod_service_engine_opts(const turbod_conf *c, turbod_engine_opts *o, turbo_err *err)
{
    turbod_engine_defaults(o);
    o->model_dir = c->model;
    o->session_len = c->session_len;
    o->block_tokens = (int32_t)c->cache_block_seq_len;
    o->max_batch = (int32_t)c->max_batch_size;
    o->max_step_tokens = (int32_t)c->max_prefill_token_num;
    o->queue_size = (int32_t)c->queue_size;
    o->max_step_stretch = c->max_step_stretch;
    o->image_bytes = c->image_cache;
    o->swap_bytes = c->swap_space;
    o->prefix_caching = c->enable_prefix_caching;
    o->cache_per_tenant = c->prefix_cache_per_key;
    o->threads = (int32_t)c->threads;
    o->isa = c->isa;
    o->device = c->device;
    o->device_precision = c->device_precision;
    o->deterministic = c->deterministic;
    o->backend_path = turbod_backend_path();
    o->sampler = c->sampler;
    o->pin = c->pin_threads;
    o->allow_nonfinite = c->allow_nonfinite;
    o->model_format = c->model_format;
    o->quantize = c->quantize;
    o->cache_dir = c->cache_dir;
    o->cache_dir_size = c->cache_dir_size;
    turbo_status st = parse_cache(c->cache_max_entry_count, o, err);
    return st ? st : turbod_kv_type_of(c, &o->kv_dtype, err);
}

/* Sampling defaults that the model's author ships in generation_config.json. */
static turbo_status read_defaults(turbod_service *s, turbo_err *err)
{
    const turbo_host *h = turbod_host_table();
    const turbo_config *c = turbod_engine_facts_of(s->engine)->config;
    double v;
    int64_t k;
    int32_t sample;
    turbo_status st = h->cfg_bool(c, "generation.do_sample", 1, &sample, err);
    if (!st)
        st = h->cfg_num(c, "generation.temperature", 1, 0, 2, &v, err);
    if (st)
        return st;
    s->defaults.temperature = sample ? (float)v : 0.0f;
    st = h->cfg_num(c, "generation.top_p", 1, 1e-6, 1, &v, err);
    if (st)
        return st;
    s->defaults.top_p = (float)v;
    st = h->cfg_num(c, "generation.repetition_penalty", 1, 1e-3, 10, &v, err);
    if (st)
        return st;
    s->defaults.repetition_penalty = (float)v;
    st = h->cfg_int(c, "generation.top_k", 0, -1, INT32_MAX, &k, err);
    s->defaults.top_k = k > 0 ? (int32_t)k : 0;
    return st;
}

static turbo_status no_chat(turbod_service *s, const char *why)
{
    snprintf(s->chat_reason, sizeof s->chat_reason, "%s", why);
    turbod_log(TURBO_LOG_WARN, "no chat: %s", why);
    return TURBO_OK;
}

/* The template's stop tokens as ids; a token the tokenizer lacks means the template is not for it. */
static turbo_status resolve_stops(turbod_service *s, turbo_err *err)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    int32_t n = 0;
    while (turbod_template_stops(s->chat, (size_t)n))
        n++;
    s->stop_ids = calloc((size_t)n + 1, sizeof *s->stop_ids);
    if (!s->stop_ids)
        return turbod_err(err, TURBO_ENOMEM, "no memory for stop tokens");
    for (int32_t i = 0; i < n; i++) {
        const char *name = turbod_template_stops(s->chat, (size_t)i);
        s->stop_ids[i] = f->tok_vtbl->find(f->tok, name, (uint32_t)strlen(name));
        if (s->stop_ids[i] < 0)
            return turbod_err(err, TURBO_EDATA,
                              "the chat template stops at %s, which this tokenizer does not have; "
                              "set chat_template to one that fits the model",
                              name);
    }
    s->n_stop_ids = n;
    return TURBO_OK;
}

static turbo_status load_template(turbod_service *s, turbo_err *err)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    char path[PATH_MAX];
    bool given = s->conf->chat_template && *s->conf->chat_template;
    if (!f->tok_vtbl)
        return no_chat(s, "the model folder has no tokenizer this server can read");
    turbo_err why = {{0}};
    if (turbod_chat_choose(given ? s->conf->chat_template : "", s->conf->model, f->model.chat,
                           turbod_data_dir(), path, sizeof path, &why))
        return no_chat(s, why.text);
    turbo_status st = turbod_template_load(path, &s->chat, err);
    if (!st)
        st = resolve_stops(s, err);
    if (st && !given) { /* a base model with another vocabulary still completes text */
        turbod_template_free(s->chat);
        s->chat = NULL;
        return no_chat(s, err->text);
    }
    return st;
}

turbod_policy_env turbod_service_policy_env(const turbod_service *s)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    return (turbod_policy_env){.tok_vtbl = f->tok_vtbl, .tok = f->tok, .vocab = f->model.vocab};
}

static turbo_status load_policies(turbod_service *s, turbo_err *err)
{
    const turbod_policy_env env = turbod_service_policy_env(s);
    turbo_status st = turbod_policies_load(s->conf->policies, &env, &s->policies, err);
    return st ? st : turbod_policies_default(s->policies, s->conf->default_policy, err);
}

turbo_status turbod_service_load(turbod_service *s, bool need_chat,
                                 void (*progress)(void *, uint64_t, uint64_t), void *ctx,
                                 turbo_err *err)
{
    turbod_engine_opts o;
    turbo_status st = TURBO_OK;
    if (s->conf->n_models && !*s->conf->model)
        st = turbod_err(err, TURBO_EINVAL,
                        "%s lists %zu models, this command takes one: name its folder",
                        s->conf->file, s->conf->n_models);
    else if (!s->conf->model || !*s->conf->model)
        st =
            turbod_err(err, TURBO_EINVAL,
                       "no model: set model = \"FOLDER\"; in the conf file or give --model FOLDER");
    if (!st)
        st = turbod_service_engine_opts(s->conf, &o, err);
    if (!st) {
        o.registry = s->registry;
        o.memory_free = s->memory_free;
        o.progress = progress;
        o.progress_ctx = ctx;
        st = turbod_engine_open(&o, &s->engine, err);
    }
    if (!st)
        st = read_defaults(s, err);
    if (!st && need_chat)
        st = load_template(s, err);
    if (!st)
        st = load_policies(s, err);
    atomic_store(&s->state, st ? TURBOD_FAILED : TURBOD_READY);
    return st;
}

void turbod_service_close(turbod_service *s)
{
    turbod_engine_close(s->engine);
    turbod_template_free(s->chat);
    turbod_policies_free(s->policies);
    turbod_registry_close(s->registry);
    free(s->stop_ids);
    s->engine = NULL;
    s->chat = NULL;
    s->policies = NULL;
    s->registry = NULL;
    s->stop_ids = NULL;
}

turbo_status turbod_service_chat_kit(const turbod_service *s, turbod_chat_kit *kit, turbo_err *err)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    kit->chat = __atomic_load_n(&s->chat, __ATOMIC_ACQUIRE);
    kit->vtbl = f->tok_vtbl;
    kit->tok = f->tok;
    kit->media = f->media.n_rows ? &f->media : NULL;
    return kit->chat ? TURBO_OK
                     : turbod_err(err, TURBO_EUNSUPPORTED,
                                  "this model has no chat template: %.200s", s->chat_reason);
}

/* Where pictures begin, and the pictures of the messages in that order. */
static turbo_status pair_slots(const turbod_message *msgs, size_t n, const size_t *image_at,
                               turbod_slots *slots, turbo_err *err)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < msgs[i].n_images; j++, k++)
            if (image_at[k] > INT32_MAX ||
                !turbod_slots_add(slots, (int32_t)image_at[k], msgs[i].images[j]))
                return turbod_err(err, TURBO_ENOMEM, "no memory for the images of a prompt");
    return TURBO_OK;
}

turbo_status turbod_service_prompt(const turbod_service *s, const turbod_message *msgs, size_t n,
                                   const turbod_render_opts *opts, int32_t **ids, size_t *n_ids,
                                   turbod_slots *slots, turbo_err *err)
{
    turbod_chat_kit kit;
    turbod_render r = {0};
    turbo_status st = turbod_service_chat_kit(s, &kit, err);
    if (!st)
        st = turbod_template_render(kit.chat, msgs, n, opts, &r, err);
    if (st)
        return st;
    size_t *image_at = calloc(r.n_images + 1, sizeof *image_at);
    *ids = NULL;
    if (!image_at)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for a prompt");
    if (!st)
        st = turbod_template_encode_media(kit.vtbl, kit.tok, &r, false, kit.media, image_at, ids,
                                          n_ids, err);
    if (!st)
        st = pair_slots(msgs, n, image_at, slots, err);
    if (st) {
        turbod_slots_free(slots);
        free(*ids);
        *ids = NULL;
    }
    free(image_at);
    turbod_render_free(&r);
    return st;
}

turbo_status turbod_service_encode(const turbod_service *s, const char *text, size_t len,
                                   bool add_bos, bool trusted, int32_t **ids, size_t *n_ids,
                                   turbo_err *err)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    if (!f->tok_vtbl)
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "the model folder has no tokenizer; give token ids instead of text");
    return turbod_encode_text(f->tok_vtbl, f->tok, text, len, add_bos, trusted, ids, n_ids, err);
}
