/* core/net/models.c: which model a request is about; GET /v1/models and /v1/models/{id}. Daemon thread, except
 * where stated. */
#include <string.h>

#include "net/net.h"

static void model_json(turbod_buf *b, const turbod_service *svc)
{
    turbod_buf_str(b, "{\"id\":\"");
    turbod_buf_json(b, svc->name, strlen(svc->name));
    turbod_buf_printf(b, "\",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"turbod\"",
                      (long long)svc->created);
    if (atomic_load(&svc->state) == TURBOD_READY || atomic_load(&svc->state) == TURBOD_DRAINING)
        turbod_buf_printf(b, ",\"max_model_len\":%d",
                          turbod_engine_facts_of(svc->engine)->session_len);
    turbod_buf_str(b, "}");
}

void turbod_api_models(turbod_exchange *x)
{
    x->reply.status = 200;
    turbod_buf_str(&x->reply.body, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < x->http->models->n; i++) {
        turbod_buf_str(&x->reply.body, i ? "," : "");
        model_json(&x->reply.body, &x->http->models->at[i]);
    }
    turbod_buf_str(&x->reply.body, "]}");
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Does a percent-encoded text mean name? */
static bool means(turbod_text t, const char *name)
{
    size_t at = 0, len = strlen(name);
    for (size_t i = 0; i < t.n; i++, at++) {
        char c = t.p[i];
        if (c == '%') {
            int hi = t.n - i > 2 ? hex(t.p[i + 1]) : -1, lo = t.n - i > 2 ? hex(t.p[i + 2]) : -1;
            if (hi < 0 || lo < 0)
                return false;
            c = (char)(hi * 16 + lo);
            i += 2;
        }
        if (at >= len || name[at] != c)
            return false;
    }
    return at == len;
}

/* The model of a percent-encoded name, or NULL with the refusal in the reply. */
static turbod_service *named(turbod_exchange *x, turbod_text name)
{
    const turbod_services *all = x->http->models;
    for (size_t i = 0; i < all->n; i++)
        if (means(name, all->at[i].name))
            return &all->at[i];
    turbod_reply_error(x, 404, "model_not_found", "model",
                       "this model is not served here; GET /v1/models lists what is");
    return NULL;
}

void turbod_api_model(turbod_exchange *x)
{
    const turbod_service *svc = named(x, x->param);
    if (!svc)
        return;
    x->reply.status = 200;
    model_json(&x->reply.body, svc);
}

bool turbod_choose_by_query(turbod_exchange *x, turbod_text query)
{
    static const char key[] = "model=";
    const size_t len = sizeof key - 1;
    while (query.n) {
        const char *and = memchr(query.p, '&', query.n);
        size_t n = and? (size_t)(and-query.p) : query.n;
        if (n >= len && !memcmp(query.p, key, len)) {
            turbod_service *svc = named(x, (turbod_text){query.p + len, n - len});
            x->svc = svc ? svc : x->svc;
            return svc;
        }
        query.p += and? n + 1 : n;
        query.n -= and? n + 1 : n;
    }
    return true;
}

bool turbod_model_ready(turbod_exchange *x)
{
    int state = atomic_load(&x->svc->state);
    bool up = state == TURBOD_READY && !atomic_load(&x->http->quiet);
    bool dead = up && turbod_engine_age(x->svc->engine) < 0;
    if (up && !dead)
        return true;
    if (dead) {
        turbod_reply_error(x, 503, "engine_error", NULL, "the engine of this model has failed");
        x->reply.retry_after = 30;
    } else if (state == TURBOD_LOADING) {
        turbod_reply_error(x, 503, "model_loading", NULL, "the model is being loaded; try again");
        x->reply.retry_after = 2;
    } else if (state == TURBOD_FAILED) {
        turbod_reply_error(x, 503, "engine_error", NULL, "the model could not be loaded");
        x->reply.retry_after = 30;
    } else {
        turbod_reply_error(x, 503, "shutting_down", NULL, "the server is shutting down");
        x->reply.retry_after = 5;
        x->force_close = true;
    }
    return false;
}
