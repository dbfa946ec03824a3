/* core/daemon/preflight.c: turbod -t: what would fail at start or later is found without loading a
 * byte of weights. Main thread of a process that does nothing else. */
#include <errno.h>
#include <limits.h>
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

typedef struct preflight {
    const turbod_conf *conf;
    FILE *out;
    turbod_registry *registry;
    turbo_config *config;
    const turbo_model_vtbl *model;
    turbo_model_info info;
    turbod_weights_sums sums;
    const turbo_tokenizer_vtbl *tok_vtbl;
    void *tok;
    turbod_template *chat;
} preflight;

static turbo_status test_plugins(preflight *p, turbo_err *err)
{
    turbo_status st =
        turbod_registry_open(turbod_plugin_path(p->conf->plugin_path), &p->registry, err);
    size_t n = st ? 0 : turbod_registry_count(p->registry), refused = 0;
    for (size_t i = 0; i < n; i++) {
        turbod_plugin_row row;
        turbod_registry_row(p->registry, i, &row);
        if (row.refused) {
            fprintf(p->out, "note     %s\n", row.refused);
            refused++;
        }
    }
    if (!st && !turbod_registry_sampler(p->registry, p->conf->sampler))
        st = turbod_err(err, TURBO_ENOENT, "no plugin offers the sampler \"%s\"", p->conf->sampler);
    if (!st)
        fprintf(p->out, "ok       plugins: %zu loaded, %zu refused\n", n - refused, refused);
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
    fprintf(p->out, "ok       model: %s, %d layers, vocabulary %d, positions %d\n", p->info.arch,
            p->info.n_layers, p->info.vocab, p->info.max_position);

    turbo_weights *w = NULL;
    turbod_weights_opts opts = {.allow_nonfinite = p->conf->allow_nonfinite};
    st = turbod_weights_open(dir, &opts, &w, err);
    if (!st)
        st = turbod_weights_check(w, host, p->model, p->config, err);
    if (!st)
        st = turbod_weights_count(w, host, p->model, p->config, p->info.vocab, &p->sums, err);
    turbod_weights_close(w);
    if (!st)
        fputs("ok       weights: every tensor is there and has its shape\n", p->out);
    return st;
}

/* What turbod would take with the memory that is free now. */
static turbo_status test_memory(preflight *p, const turbod_engine_opts *o, turbo_err *err)
{
    turbod_plan_in in = {.info = &p->info, .vtbl = p->model, .weights = &p->sums};
    turbod_media_facts media;
    turbod_plan plan;
    char text[256];
    turbod_engine_plan_in(o, &in);
    turbo_status st =
        turbod_media_describe(p->registry, p->model, p->config, p->info.vocab, &media, err);
    if (st)
        return st;
    in.images = turbod_media_bytes(&media, o->image_bytes);
    st = turbod_plan_make(&in, &plan, err);
    if (st)
        return st;
    turbod_plan_summary(&plan, text, sizeof text);
    fprintf(p->out, "ok       memory: %s\n", text);
    return st;
}

static turbo_status test_tokenizer(preflight *p, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    if (turbod_registry_tokenizer_for(p->registry, p->conf->model, &p->tok_vtbl, err)) {
        fprintf(p->out, "note     tokenizer: %s; only token ids could be used\n", err->text);
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
    fprintf(p->out, "ok       tokenizer: %s, %d tokens\n", p->tok_vtbl->id, info.n_vocab);
    return st;
}

static turbo_status test_template(preflight *p, turbo_err *err)
{
    char path[PATH_MAX];
    turbo_err why = {{0}};
    if (turbod_chat_choose(p->conf->chat_template, p->conf->model, p->info.chat, turbod_data_dir(),
                           path, sizeof path, &why)) {
        fprintf(p->out, "note     chat: %s; chat requests will be refused\n", why.text);
        return TURBO_OK;
    }
    if (!*p->conf->chat_template && !p->tok) {
        fputs("note     chat: there is no tokenizer; chat requests will be refused\n", p->out);
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
        fprintf(p->out, "ok       chat: %s\n", path);
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
        fprintf(p->out, "ok       policies: %zu\n", turbod_policies_count(set));
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
    fputs("ok       api_keys\n", p->out);
    return TURBO_OK;
}

turbo_status turbod_preflight(const turbod_conf *c, FILE *out, turbo_err *err)
{
    preflight p = {.conf = c, .out = out};
    turbod_engine_opts opts;
    turbo_status st = turbod_service_engine_opts(c, &opts, err);
    if (!st)
        fprintf(out, "ok       configuration%s%s\n", c->file ? ": " : "", c->file ? c->file : "");
    if (!st)
        st = test_plugins(&p, err);
    if (!st)
        st = test_model(&p, err);
    if (!st)
        st = test_memory(&p, &opts, err);
    if (!st)
        st = test_tokenizer(&p, err);
    if (!st)
        st = test_template(&p, err);
    if (!st)
        st = test_policies(&p, err);
    if (!st)
        st = test_keys(&p, err);
    turbod_template_free(p.chat);
    if (p.tok)
        p.tok_vtbl->close(p.tok);
    turbod_config_close(p.config);
    turbod_registry_close(p.registry);
    return st;
}
