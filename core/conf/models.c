/* core/conf/models.c: several models in one configuration: each entry of models = ( {...}, ... ) becomes a
 * configuration of its own. Main thread. Must not know what an option means. */
#include <stdlib.h>
#include <string.h>

#include "conf/table.h"
#include "util/err.h"

bool turbod_opt_of_model(const turbod_opt *o)
{
    static const char *const keys[] = {"model",    "model_name",     "chat_template",
                                       "policies", "default_policy", "model_format",
                                       "quantize", "allow_nonfinite"};
    if (!strcmp(o->section, "engine"))
        return true;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (!*o->section && !strcmp(o->key, keys[i]))
            return true;
    return false;
}

const char *turbod_opt_nearest_of_model(const char *key)
{
    const char *words[128];
    size_t n = 0;
    for (size_t i = 0; i < turbod_n_opts && n < sizeof words / sizeof words[0]; i++)
        if (turbod_opt_of_model(&turbod_opts[i]))
            words[n++] = turbod_opts[i].key;
    return turbod_nearest(key, words, n);
}

turbod_conf *turbod_conf_add_model(turbod_conf *c)
{
    turbod_conf **more = realloc(c->models, (c->n_models + 1) * sizeof *more);
    turbod_conf *m = calloc(1, sizeof *m);
    if (more)
        c->models = more;
    if (m) {
        m->origins = calloc(turbod_n_opts, sizeof *m->origins);
        m->file = strdup(c->file);
    }
    if (!more || !m || !m->origins || !m->file) {
        turbod_conf_free(m);
        return NULL;
    }
    c->models[c->n_models++] = m;
    return m;
}

/* One model and a list of them exclude each other; so do their names. */
static turbo_status refuse_both(const turbod_conf *c, const char *key, turbo_err *err)
{
    const char *dashed = strcmp(key, "model") ? "model-name" : "model";
    switch (turbod_conf_origin(c, key)) {
    case TURBOD_FROM_FLAG:
        return turbod_err(err, TURBOD_EUSAGE,
                          "--%s is for one model, %s lists %zu in models: drop the flag, or use a "
                          "conf file without models",
                          dashed, c->file, c->n_models);
    case TURBOD_FROM_ENV:
        return turbod_err(err, TURBO_EINVAL,
                          "environment %s is for one model, %s lists %zu in models: unset it, or "
                          "use a conf file without models",
                          strcmp(key, "model") ? "TURBO_MODEL_NAME" : "TURBO_MODEL", c->file,
                          c->n_models);
    default:
        return turbod_err(err, TURBO_EINVAL,
                          "%s: both %s and models are given; move %s into an entry of models, or "
                          "remove models",
                          c->file, key, key);
    }
}

turbo_status turbod_conf_fill_models(turbod_conf *c, turbo_err *err)
{
    if (c->n_models && *c->model)
        return refuse_both(c, "model", err);
    if (c->n_models && *c->model_name)
        return refuse_both(c, "model_name", err);
    for (size_t m = 0; m < c->n_models; m++)
        for (size_t i = 0; i < turbod_n_opts; i++) {
            char buf[64];
            if (c->models[m]->origins[i] != TURBOD_FROM_DEFAULT)
                continue;
            turbo_status st = turbod_opt_set(c->models[m], &turbod_opts[i],
                                             turbod_opt_text(c, &turbod_opts[i], buf),
                                             c->origins[i], c->file, err);
            if (st)
                return st;
        }
    return TURBO_OK;
}
