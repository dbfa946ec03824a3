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

struct turbod_retired {
    turbod_retired *next;
    turbod_conf *conf;
    turbod_template *chat;
};

/* Options that need a restart keep their value; the log says so when the file has another one. */
static turbo_status keep_fixed(turbod_conf *fresh, const turbod_conf *old, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    for (size_t i = 0; !st && i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        char a[64], b[64];
        const char *now = turbod_opt_text(old, o, a), *then = turbod_opt_text(fresh, o, b);
        if (o->reload || !strcmp(now, then))
            continue;
        turbod_log(TURBO_LOG_WARN, "reload: %s stays as it is; it takes effect after a restart",
                   o->key);
        st = turbod_opt_set(fresh, o, now, old->origins[i], "reload", err);
    }
    return st;
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

turbo_status turbod_reload(turbod_service *s, turbod_http *http, turbod_conf **conf,
                           turbod_conf *fresh, turbod_retired **retired, turbo_err *err)
{
    turbod_template *chat = NULL;
    turbod_policies *policies = NULL;
    const turbod_policy_env env = turbod_service_policy_env(s);
    turbod_retired *r = calloc(1, sizeof *r);
    turbo_status st = r ? TURBO_OK : turbod_err(err, TURBO_ENOMEM, "no memory to reload");
    if (!st)
        st = keep_fixed(fresh, s->conf, err);
    if (!st && s->chat)
        st = new_template(s, fresh, &chat, err);
    if (!st && !s->chat && *fresh->chat_template)
        turbod_log(TURBO_LOG_WARN, "reload: a first chat template takes effect after a restart");
    if (!st)
        st = turbod_policies_load(fresh->policies, &env, &policies, err);
    if (!st)
        st = turbod_policies_default(policies, fresh->default_policy, err);
    if (!st) /* last: it changes nothing when it fails, and nothing behind it can fail */
        st = turbod_http_reload(http, fresh, err);
    if (st) {
        turbod_template_free(chat);
        turbod_policies_free(policies);
        turbod_conf_free(fresh);
        free(r);
        return st;
    }
    if (chat) {
        r->chat = s->chat;
        __atomic_store_n(&s->chat, chat, __ATOMIC_RELEASE);
    }
    turbod_policies_adopt(s->policies, policies);
    r->conf = *conf;
    *conf = fresh;
    __atomic_store_n(&s->conf, (const turbod_conf *)fresh, __ATOMIC_RELEASE);
    turbod_log_level(turbod_log_level_of(fresh->log_level));
    r->next = *retired;
    *retired = r;
    return TURBO_OK;
}

void turbod_retired_free(turbod_retired *r)
{
    while (r) {
        turbod_retired *next = r->next;
        turbod_template_free(r->chat);
        turbod_conf_free(r->conf);
        free(r);
        r = next;
    }
}
