/* core/daemon/preflight.c: turbod -t: what would fail at start or later is found without loading a
 * byte of weights. Main thread of a process that does nothing else. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chat/choose.h"
#include "daemon/daemon.h"
#include "engine/media.h"
#include "plugin/host.h"
#include "util/err.h"
#include "weights/config.h"
#include "weights/weights.h"

typedef struct preflight { /* of one model */
    const turbod_conf *conf;
    FILE *out;
    char name[129]; /* where there are several, else "" */
    turbod_registry *registry;
    turbod_engine_opts opts;
    turbo_config *config;
    const turbo_model_vtbl *model;
    turbo_model_info info;
    turbok_device *device;
    int32_t place; /* whose memory it takes */
    turbod_weights_sums sums;
    const turbo_tokenizer_vtbl *tok_vtbl;
    void *tok;
    turbod_template *chat;
} preflight;

/* One line of the report. */
static void say(const preflight *p, const char *kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void say(const preflight *p, const char *kind, const char *fmt, ...)
{
    va_list ap;
    fprintf(p->out, "%-8s %s%s", kind, p->name, *p->name ? ": " : "");
    va_start(ap, fmt);
    vfprintf(p->out, fmt, ap);
    va_end(ap);
    putc('\n', p->out);
}

static turbo_status test_plugins(preflight *p, turbo_err *err)
{
    turbo_status st =
        turbod_registry_open(turbod_plugin_path(p->conf->plugin_path), &p->registry, err);
    size_t n = st ? 0 : turbod_registry_count(p->registry), refused = 0;
    for (size_t i = 0; i < n; i++) {
        turbod_plugin_row row;
        turbod_registry_row(p->registry, i, &row);
        if (row.refused) {
            say(p, "note", "%s", row.refused);
            refused++;
        }
    }
    if (!st && !turbod_registry_sampler(p->registry, p->conf->sampler))
        st = turbod_err(err, TURBO_ENOENT, "no plugin offers the sampler \"%s\"", p->conf->sampler);
    if (!st)
        say(p, "ok", "plugins: %zu loaded, %zu refused", n - refused, refused);
    return st;
}

static turbo_status test_model(preflight *p, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    const char *dir = p->conf->model;
    if (!*dir)
        return turbod_err(
            err, TURBO_EINVAL,
            "no model: set model = \"FOLDER\"; in the conf file or give --model FOLDER");
    turbo_status st = turbod_config_open(dir, &p->config, err);
    if (!st)
        st = turbod_registry_model_for(p->registry, p->config, &p->model, err);
    p->info.size = sizeof p->info;
    if (!st)
        st = p->model->describe(host, p->config, &p->info, err);
    if (st)
        return st;
    say(p, "ok", "model: %s, %d layers, vocabulary %d, positions %d", p->info.arch,
        p->info.n_layers, p->info.vocab, p->info.max_position);

    st = turbod_engine_open_device(&p->opts, p->info.dtype, &p->device, &p->place, err);
    if (st)
        return st;
    say(p, "ok", "device: %s", turbok_device_name(p->device));

    turbo_weights *w = NULL;
    turbod_weights_opts opts = {.device = p->device,
                                .allow_nonfinite = p->conf->allow_nonfinite,
                                .all_scales = true,
                                .model_format = p->conf->model_format,
                                .quantize = p->conf->quantize};
    st = turbod_weights_open(dir, &opts, &w, err);
    if (!st)
        st = turbod_weights_check(w, host, p->model, p->config, err);
    if (!st)
        st = turbod_weights_count(w, host, p->model, p->config, p->info.vocab, &p->sums, err);
    turbod_weights_close(w);
    if (!st) {
        char kinds[256];
        turbod_weights_kinds(&p->sums, kinds, sizeof kinds);
        say(p, "ok", "weights: every tensor is there and has its shape; matrices: %s", kinds);
    }
    return st;
}

/* What turbod would take with the memory that is free now: a line a model, all of them together. */
static turbo_status test_memory(preflight *p, size_t n, turbo_err *err)
{
    turbod_plan_share *s = calloc(n, sizeof *s);
    size_t which = n;
    turbo_status st = TURBO_OK;
    if (!s)
        return turbod_err(err, TURBO_ENOMEM, "no memory to plan %zu models", n);
    for (size_t i = 0; i < n && !st; i++) {
        turbod_media_facts media;
        s[i].in = (turbod_plan_in){.info = &p[i].info, .vtbl = p[i].model, .weights = &p[i].sums};
        s[i].share = p[i].conf->kv_share;
        s[i].place = p[i].place;
        turbod_engine_plan_in(&p[i].opts, &s[i].in);
        st = turbod_media_describe(p[i].registry, p[i].model, p[i].config, p[i].info.vocab, &media,
                                   err);
        if (st)
            break;
        s[i].in.images = turbod_media_bytes(&media, p[i].opts.image_bytes);
        turbod_engine_plan_device(p[i].device, &p[i].opts, &p[i].info, &media, p[i].sums.quantised,
                                  &s[i].in);
    }
    if (!st && n > 1)
        st = turbod_plan_divide_places(s, n, &which, err);
    else if (!st)
        st = turbod_plan_make(&s[0].in, &s[0].plan, err);
    if (st && n > 1 && which < n)
        turbod_err_of(err, st, p[which].name);
    for (size_t i = 0; !st && i < n; i++) {
        char text[256];
        turbod_plan_summary(&s[i].plan, text, sizeof text);
        say(&p[i], "ok", "memory: %s", text);
    }
    free(s);
    return st;
}

static turbo_status test_tokenizer(preflight *p, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    if (turbod_registry_tokenizer_for(p->registry, p->conf->model, &p->tok_vtbl, err)) {
        say(p, "note", "tokenizer: %s; only token ids could be used", err->text);
        err->text[0] = '\0';
        return TURBO_OK;
    }
    turbo_status st = p->tok_vtbl->open(host, p->conf->model, &p->tok, err);
    turbo_tokenizer_info info = {.size = sizeof info};
    if (st)
        return st;
    p->tok_vtbl->info(p->tok, &info);
    if (info.n_vocab > p->info.vocab)
        return turbod_err(err, TURBO_EDATA,
                          "the tokenizer has %d tokens, config.json's vocab_size is %d; the files "
                          "belong to different models",
                          info.n_vocab, p->info.vocab);
    say(p, "ok", "tokenizer: %s, %d tokens", p->tok_vtbl->id, info.n_vocab);
    return st;
}

static turbo_status test_template(preflight *p, turbo_err *err)
{
    char path[PATH_MAX];
    turbo_err why = {{0}};
    if (turbod_chat_choose(p->conf->chat_template, p->conf->model, p->info.chat, turbod_data_dir(),
                           path, sizeof path, &why)) {
        say(p, "note", "chat: %s; chat requests will be refused", why.text);
        return TURBO_OK;
    }
    if (!*p->conf->chat_template && !p->tok) {
        say(p, "note", "chat: there is no tokenizer; chat requests will be refused");
        return TURBO_OK;
    }
    turbo_status st = turbod_template_load(path, &p->chat, err);
    for (size_t i = 0; !st && p->tok && turbod_template_stops(p->chat, i); i++) {
        const char *name = turbod_template_stops(p->chat, i);
        if (p->tok_vtbl->find(p->tok, name, (uint32_t)strlen(name)) < 0)
            st = turbod_err(err, TURBO_EDATA, "%s stops at %s, which this tokenizer does not have",
                            path, name);
    }
    if (!st)
        say(p, "ok", "chat: %s", path);
    return st;
}

static turbo_status test_policies(const preflight *p, turbo_err *err)
{
    turbod_policies *set = NULL;
    const char *name = p->conf->default_policy;
    const turbod_policy_env env = {.tok_vtbl = p->tok ? p->tok_vtbl : NULL,
                                   .tok = p->tok,
                                   .vocab = p->info.vocab};
    turbo_status st = turbod_policies_load(p->conf->policies, &env, &set, err);
    if (!st)
        st = turbod_policies_default(set, name, err);
    if (!st)
        say(p, "ok", "policies: %zu", turbod_policies_count(set));
    turbod_policies_free(set);
    return st;
}

static turbo_status test_keys(const preflight *p, turbo_err *err)
{
    const char *path = p->conf->api_keys;
    struct stat st;
    if (!*path)
        return TURBO_OK;
    if (stat(path, &st))
        return turbod_err(err, TURBO_ENOENT, "api_keys: %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || (st.st_mode & 077) || access(path, R_OK))
        return turbod_err(
            err, TURBO_EINVAL,
            "api_keys: %s must be a regular file of mode 0600 that this user can read; "
            "its mode is %04o",
            path, st.st_mode & 07777u);
    say(p, "ok", "api_keys");
    return TURBO_OK;
}

/* What must be known of every model before the memory is divided. */
static turbo_status test_first(preflight *p, turbo_err *err)
{
    turbo_status st = test_plugins(p, err);
    return st ? st : test_model(p, err);
}

static turbo_status test_rest(preflight *p, turbo_err *err)
{
    turbo_status st = test_tokenizer(p, err);
    if (!st)
        st = test_template(p, err);
    return st ? st : test_policies(p, err);
}

static turbo_status name_models(preflight *p, size_t n, turbo_err *err)
{
    for (size_t i = 0; i < n; i++) {
        turbod_service_name(p[i].conf, p[i].name);
        for (size_t k = 0; k < i; k++)
            if (!strcmp(p[k].name, p[i].name))
                return turbod_services_same_name(k, i, p[i].name, err);
    }
    return TURBO_OK;
}

static void close_one(preflight *p)
{
    turbod_template_free(p->chat);
    if (p->tok)
        p->tok_vtbl->close(p->tok);
    turbod_config_close(p->config);
    turbok_device_close(p->device);
    turbod_registry_close(p->registry);
}

turbo_status turbod_preflight(const turbod_conf *c, FILE *out, turbo_err *err)
{
    preflight all[TURBOD_MAX_MODELS] = {0};
    preflight server = {.conf = c, .out = out};
    size_t n = c->n_models ? c->n_models : 1, at = 0;
    for (size_t i = 0; i < n; i++)
        all[i] = (preflight){.conf = c->n_models ? c->models[i] : c, .out = out};
    turbo_status st = n > 1 ? name_models(all, n, err) : TURBO_OK;
    for (at = 0; !st && at < n; at++)
        st = turbod_service_engine_opts(all[at].conf, &all[at].opts, err);
    if (!st)
        say(&server, "ok", "configuration%s%s", c->file ? ": " : "", c->file ? c->file : "");
    for (size_t i = 0; !st && i < n; i++) {
        st = test_first(&all[i], err);
        at = i + 1;
    }
    if (!st) {
        st = test_memory(all, n, err);
        at = 0;
    }
    for (size_t i = 0; !st && i < n; i++) {
        st = test_rest(&all[i], err);
        at = i + 1;
    }
    if (at && n > 1)
        turbod_err_of(err, st, all[at - 1].name);
    if (!st)
        st = test_keys(&server, err);
    for (size_t i = 0; i < n; i++)
        close_one(&all[i]);
    return st;
}
