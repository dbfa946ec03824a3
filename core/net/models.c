/* core/net/models.c: GET /v1/models and /v1/models/{id}. Daemon thread. */
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
    model_json(&x->reply.body, x->http->svc);
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

void turbod_api_model(turbod_exchange *x)
{
    const turbod_service *svc = x->http->svc;
    if (means(x->param, svc->name)) {
        x->reply.status = 200;
        model_json(&x->reply.body, svc);
    } else {
        turbod_reply_error(x, 404, "model_not_found", "model",
                           "this model is not served here; GET /v1/models lists what is");
    }
}
