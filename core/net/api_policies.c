/* core/net/api_policies.c: GET /v1/policies, and GET, PUT and DELETE of one by its name. A script is code
 * that this process runs: reading and writing one needs an admin key. GET on the daemon thread, the others
 * on a worker. */
#include <string.h>

#include "net/gen.h"
#include "util/json.h"

void turbod_api_policies(turbod_exchange *x)
{
    turbod_buf *b = &x->reply.body;
    x->reply.status = 200;
    turbod_buf_str(b, "{\"object\":\"list\",\"data\":");
    turbod_policies_json(x->svc->policies, false, b);
    turbod_buf_str(b, "}");
}

/* The answer about one policy; the source only where it was asked for. */
static void tell(turbod_exchange *x, const turbod_policy *p, bool with_source)
{
    char hooks[64];
    size_t len;
    turbod_buf *b = &x->reply.body;
    const char *source = turbod_policy_source(p, &len);
    turbod_buf_printf(b, "{\"name\":\"%s\",\"hooks\":\"%s\",\"generation\":%llu",
                      turbod_policy_name(p), turbod_policy_hooks(p, hooks),
                      (unsigned long long)turbod_policy_generation(p));
    if (with_source) {
        turbod_buf_str(b, ",\"source\":\"");
        turbod_buf_json(b, source, len);
        turbod_buf_str(b, "\"");
    }
    turbod_buf_str(b, "}");
}

static void none(turbod_exchange *x)
{
    turbod_reply_error(x, 404, "policy_not_found", NULL,
                       "there is no policy of this name; GET /v1/policies lists them");
}

static void put(turbod_exchange *x, const char *name)
{
    turbod_policies *set = x->svc->policies;
    turbo_err err = {{0}};
    cJSON *body = turbod_body_json(x);
    const cJSON *source = turbod_json_get(body, "source");
    bool replaced = false;
    if (!body)
        return;
    for (const cJSON *v = body->child; v && !x->reply.status; v = v->next)
        if (v != source)
            turbod_reply_error(x, 400, "unknown_field", v->string, "the field is source");
    if (!x->reply.status && !cJSON_IsString(source))
        turbod_reply_error(x, 400, "invalid_value", "source", "give source, a Lua script");
    if (!x->reply.status) {
        turbo_status st = turbod_policies_put(set, name, source->valuestring,
                                              strlen(source->valuestring), &replaced, &err);
        turbod_policy *p = st ? NULL : turbod_policies_find(set, name);
        turbod_clean_message(err.text);
        if (st == TURBO_ENOMEM) {
            turbod_reply_status(x, st, NULL, &err);
        } else if (st) {
            turbod_reply_error(x, 400, "policy_refused", "source", "%s", err.text);
        } else {
            x->reply.status = replaced ? 200 : 201;
            if (p) /* NULL: deleted by somebody else in between */
                tell(x, p, false);
        }
        turbod_policy_free(p);
    }
    cJSON_Delete(body);
}

void turbod_api_policy(turbod_exchange *x)
{
    turbod_policies *set = x->svc->policies;
    char name[65] = {0};
    turbo_err err = {{0}};
    if (x->param.n < sizeof name)
        memcpy(name, x->param.p, x->param.n);
    if (!strcmp(x->method, "PUT")) {
        put(x, name);
    } else if (!strcmp(x->method, "DELETE")) {
        if (turbod_policies_delete(set, name, &err)) {
            none(x);
            return;
        }
        x->reply.status = 200;
        turbod_buf_printf(&x->reply.body, "{\"name\":\"%s\",\"deleted\":true}", name);
    } else {
        turbod_policy *p = turbod_policies_find(set, name);
        if (p) {
            x->reply.status = 200;
            tell(x, p, true);
        } else {
            none(x);
        }
        turbod_policy_free(p);
    }
}
