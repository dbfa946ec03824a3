/* core/daemon/reload.c: SIGHUP: a new configuration, template and policies take the place of the old
 * ones while requests run. Main thread.
 *
 * Readers take one pointer and use it for one request. What was replaced is kept until the end of
 * the process: a few kilobytes a reload, and no reader ever holds something freed. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat/choose.h"
#include "conf/table.h"
#include "daemon/daemon.h"
#include "util/err.h"
#include "util/log.h"

/* What takes a service's place. */
typedef struct replacement {
    const turbod_conf *conf; /* of the new configuration, or inside it */
    turbod_template *chat; /* then the old one, when it was exchanged */
    turbod_policies *policies;
} replacement;

struct turbod_retired {
    turbod_retired *next;
    turbod_conf *conf;
    size_t n;
    replacement at[];
};

/* Options that need a restart keep their value; the log says so when the file has another one, of those that
 * a model may have for itself or of the others. */
static turbo_status keep_fixed(turbod_conf *fresh, const turbod_conf *old, bool say_models,
                               bool say_others, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    for (size_t i = 0; !st && i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        char a[64], b[64];
        const char *now = turbod_opt_text(old, o, a), *then = turbod_opt_text(fresh, o, b);
        if (o->reload || !strcmp(now, then))
            continue;
        if (turbod_opt_of_model(o) ? say_models : say_others)
            turbod_log(TURBO_LOG_WARN, "reload: %s stays as it is; it takes effect after a restart",
                       o->key);
        st = turbod_opt_set(fresh, o, now, old->origins[i], "reload", err);
    }
    return st;
}

/* The part of fresh that is for s; NULL: it has another list of models. */
static turbod_conf *part_for(turbod_conf *fresh, const turbod_services *all,
                             const turbod_service *s, bool list)
{
    char name[129];
    if (!list && !fresh->n_models)
        return fresh;
    for (size_t i = 0; list && fresh->n_models == all->n && i < all->n; i++) {
        turbod_service_name(fresh->models[i], name);
        if (!strcmp(name, s->name))
            return fresh->models[i];
    }
    return NULL;
}

/* The ids a chat ends with are part of running requests' rules; a template that ends with others is
 * another dialect and needs a restart. */
static turbo_status same_stops(const turbod_service *s, const turbod_template *t, turbo_err *err)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    int32_t n = 0;
    for (const char *name; (name = turbod_template_stops(t, (size_t)n)); n++) {
        int32_t id = f->tok_vtbl ? f->tok_vtbl->find(f->tok, name, (uint32_t)strlen(name)) : -1;
        if (n >= s->n_stop_ids || id != s->stop_ids[n])
            return turbod_err(err, TURBO_EINVAL,
                              "the new chat template stops at other tokens (%s); restart for that",
                              name);
    }
    return n == s->n_stop_ids
               ? TURBO_OK
               : turbod_err(err, TURBO_EINVAL,
                            "the new chat template has %d stop tokens, the old one %d; restart for "
                            "that",
                            n, s->n_stop_ids);
}

static turbo_status new_template(const turbod_service *s, const turbod_conf *c,
                                 turbod_template **out, turbo_err *err)
{
    char path[PATH_MAX];
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    turbo_status st = turbod_chat_choose(c->chat_template, s->conf->model, f->model.chat,
                                         turbod_data_dir(), path, sizeof path, err);
    if (!st)
        st = turbod_template_load(path, out, err);
    return st ? st : same_stops(s, *out, err);
}

static turbo_status prepare(const turbod_service *s, replacement *r, turbo_err *err)
{
    const turbod_policy_env env = turbod_service_policy_env(s);
    turbo_status st = TURBO_OK;
    if (s->chat)
        st = new_template(s, r->conf, &r->chat, err);
    else if (*r->conf->chat_template)
        turbod_log(TURBO_LOG_WARN, "reload: a first chat template takes effect after a restart");
    if (!st)
        st = turbod_policies_load(r->conf->policies, &env, &r->policies, err);
    return st ? st : turbod_policies_default(r->policies, r->conf->default_policy, err);
}

/* Everything that can fail, for all services; nothing is in place yet. */
static turbo_status prepare_all(const turbod_services *all, turbod_conf *fresh,
                                const turbod_conf *old, turbod_retired *r, turbo_err *err)
{
    bool list = old->n_models > 0;
    turbo_status st = TURBO_OK;
    for (size_t i = 0; !st && i < all->n; i++) {
        const turbod_service *s = &all->at[i];
        turbod_conf *part = part_for(fresh, all, s, list);
        if (!part)
            return turbod_err(err, TURBO_EINVAL,
                              "the conf has other models than those served; restart for that");
        r->at[i].conf = part;
        if (list)
            st = keep_fixed(part, s->conf, true, false, err);
    }
    if (!st)
        st = keep_fixed(fresh, old, !list, true, err);
    for (size_t i = 0; !st && i < all->n; i++) {
        st = prepare(&all->at[i], &r->at[i], err);
        if (all->n > 1)
            turbod_err_of(err, st, all->at[i].name);
    }
    return st;
}

turbo_status turbod_reload(turbod_services *all, turbod_http *http, turbod_conf **conf,
                           turbod_conf *fresh, turbod_retired **retired, turbo_err *err)
{
    turbod_retired *r = calloc(1, sizeof *r + all->n * sizeof r->at[0]);
    turbo_status st = TURBO_OK;
    if (!r)
        st = turbod_err(err, TURBO_ENOMEM, "no memory to reload");
    else
        r->n = all->n;
    if (!st)
        st = prepare_all(all, fresh, *conf, r, err);
    if (!st) /* last: it changes nothing when it fails, and nothing behind it can fail */
        st = turbod_http_reload(http, fresh, err);
    if (st) {
        for (size_t i = 0; r && i < r->n; i++)
            turbod_policies_free(r->at[i].policies);
        turbod_retired_free(r);
        turbod_conf_free(fresh);
        return st;
    }
    for (size_t i = 0; i < all->n; i++) {
        turbod_service *s = &all->at[i];
        turbod_template *old = s->chat;
        if (r->at[i].chat) {
            __atomic_store_n(&s->chat, r->at[i].chat, __ATOMIC_RELEASE);
            r->at[i].chat = old;
        }
        turbod_policies_adopt(s->policies, r->at[i].policies);
        r->at[i].policies = NULL;
        __atomic_store_n(&s->conf, r->at[i].conf, __ATOMIC_RELEASE);
    }
    r->conf = *conf;
    *conf = fresh;
    turbod_log_level(turbod_log_level_of(fresh->log_level));
    r->next = *retired;
    *retired = r;
    return TURBO_OK;
}

void turbod_retired_free(turbod_retired *r)
{
    while (r) {
        turbod_retired *next = r->next;
        for (size_t i = 0; i < r->n; i++)
            turbod_template_free(r->at[i].chat);
        turbod_conf_free(r->conf);
        free(r);
        r = next;
    }
}
