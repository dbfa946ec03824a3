/* core/net/route.c: the table of routes, and who may use them. Daemon thread.
 * The table is the allow list: what is not in it is 404 for callers with a key and 401 for others. */
#include <string.h>

#include "net/net.h"

static const turbod_route routes[] = {
    {"/health", "GET", NEEDS_NOTHING, false, turbod_api_health},
    {"/ready", "GET", NEEDS_NOTHING, false, turbod_api_ready},
    {"/metrics", "GET", NEEDS_METRICS, false, turbod_api_metrics},
    {"/version", "GET", NEEDS_KEY, false, turbod_api_version},
    {"/props", "GET", NEEDS_KEY, true, turbod_api_props},
    {"/v1/models", "GET", NEEDS_KEY, false, turbod_api_models},
    {"/v1/models/*", "GET", NEEDS_KEY, false, turbod_api_model},
    {"/v1/chat/completions", "POST", NEEDS_KEY, true, turbod_api_chat},
    {"/v1/completions", "POST", NEEDS_KEY, true, turbod_api_completions},
    {"/v1/chat/interactive", "POST", NEEDS_KEY, true, turbod_api_interactive},
    {"/slots", "GET", NEEDS_KEY, true, turbod_api_slots},
    {"/slots/*", "POST", NEEDS_KEY, true, turbod_api_slot},
    {"/v1/policies", "GET", NEEDS_KEY, true, turbod_api_policies},
    {"/v1/policies/*", "GET", NEEDS_ADMIN, true, turbod_api_policy},
    {"/v1/policies/*", "PUT", NEEDS_ADMIN, true, turbod_api_policy},
    {"/v1/policies/*", "DELETE", NEEDS_ADMIN, true, turbod_api_policy},
    {"/v1/abort", "POST", NEEDS_KEY, false, turbod_api_abort},
    {"/tokenize", "POST", NEEDS_KEY, true, turbod_api_tokenize},
    {"/detokenize", "POST", NEEDS_KEY, true, turbod_api_detokenize},
    {"/apply-template", "POST", NEEDS_KEY, true, turbod_api_template},
};

/* The path as sent, without its query: nothing is decoded or folded, so nothing can be smuggled. Of several
 * routes of a path the one with the method; the last of them when none has it. */
static const turbod_route *find(turbod_text path, const char *method, turbod_text *param)
{
    const turbod_route *found = NULL;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        size_t n = strlen(routes[i].path);
        if (routes[i].path[n - 1] != '*') {
            if (!turbod_text_is(path, routes[i].path))
                continue;
        } else {
            if (path.n <= n - 1 || memcmp(path.p, routes[i].path, n - 1))
                continue;
            *param = (turbod_text){path.p + n - 1, path.n - n + 1};
        }
        found = &routes[i];
        if (!strcmp(found->method, method))
            return found;
    }
    return found;
}

/* The methods of a path, for Allow. */
static const char *methods_of(const turbod_route *r)
{
    bool several = r > routes && !strcmp(r[-1].path, r->path);
    return several ? "GET, PUT, DELETE" : r->method;
}

static bool allowed_type(turbod_text t)
{
    static const char json[] = "application/json";
    size_t n = 0;
    while (n < t.n && t.p[n] != ';' && t.p[n] != ' ' && t.p[n] != '\t')
        n++;
    return turbod_text_same((turbod_text){t.p, n}, json);
}

/* The caller's rank. False: refused, the reply is written. */
static bool authorise(turbod_exchange *x, const turbod_head *h, const turbod_route *r)
{
    const turbod_rules *rules = x->rules;
    bool open = r && (r->need == NEEDS_NOTHING);
    bool open_metrics = r && r->need == NEEDS_METRICS && rules->metrics_open && x->client->loopback;
    if (r && strcmp(r->method, x->method))
        open = open_metrics = false;
    if (!rules->n_keys) {
        x->admin = true; /* only loopback can be here */
        if (r && r->need == NEEDS_METRICS && !open_metrics) {
            turbod_reply_error(x, 401, "invalid_api_key", NULL,
                               "metrics_open is off and no admin key exists; add one to api_keys");
            return false;
        }
        return true;
    }
    bool given = h->n_authorization > 0;
    const turbod_key *who = turbod_rules_who(
        rules, h->n_authorization == 1 ? h->authorization : (turbod_text){"", 0});
    if (who) {
        memcpy(x->label, who->label, sizeof x->label);
        x->admin = who->admin;
    }
    if (open || (open_metrics && !given))
        return true;
    if (!who) {
        turbod_reply_error(x, 401, "invalid_api_key", NULL,
                           given ? "the API key is not known here"
                                 : "an API key is needed: Authorization: Bearer KEY");
        x->reply.want_key = true;
        return false;
    }
    bool admin = r && (r->need == NEEDS_METRICS || r->need == NEEDS_ADMIN);
    if (admin && !who->admin && !strcmp(r->method, x->method)) {
        turbod_reply_error(x, 403, "permission_denied", NULL, "this needs an admin key");
        return false;
    }
    return true;
}

/* The body of a POST may name another model: of several, one that is ready is enough for now. */
static bool ready_for(turbod_exchange *x, const turbod_route *r, turbod_text query)
{
    const turbod_services *all = x->http->models;
    if (!r->model)
        return true;
    if (!turbod_choose_by_query(x, query))
        return false;
    if (!strcmp(r->method, "POST") && !atomic_load(&x->http->quiet))
        for (size_t i = 0; i < all->n; i++)
            if (atomic_load(&all->at[i].state) == TURBOD_READY)
                return true;
    return turbod_model_ready(x);
}

static bool fitting_body(turbod_exchange *x, const turbod_head *h)
{
    if (!strcmp(x->method, "GET") || !strcmp(x->method, "DELETE")) {
        if (h->content_length == 0 && !h->n_coding)
            return true;
        turbod_reply_error(x, 400, "invalid_value", NULL, "this request takes no body");
        return false;
    }
    if (h->content_length > x->rules->body_limit) {
        turbod_reply_error(x, 413, "body_too_large", NULL,
                           "the body has %llu bytes, at most %llu are taken",
                           (unsigned long long)h->content_length,
                           (unsigned long long)x->rules->body_limit);
        return false;
    }
    if (h->n_type != 1 || !allowed_type(h->type)) {
        turbod_reply_error(x, 415, "unsupported_media_type", NULL,
                           "send the body with Content-Type: application/json");
        return false;
    }
    return true;
}

void turbod_route_judge(turbod_exchange *x, const turbod_head *h)
{
    turbod_text path = h->target, param = {0}, query = {0};
    const char *mark = path.n ? memchr(path.p, '?', path.n) : NULL;
    if (mark) {
        query = (turbod_text){mark + 1, path.n - (size_t)(mark + 1 - path.p)};
        path.n = (size_t)(mark - path.p);
    }
    x->svc = &x->http->models->at[0];
    x->strict = h->strict;
    if (!turbod_rules_host(x->rules, h->host)) {
        turbod_reply_error(x, 403, "host_not_allowed", NULL,
                           "this Host is not served here; add it to allowed_hosts");
        return;
    }
    if (h->n_origin) {
        if (h->n_origin > 1 || !turbod_rules_origin(x->rules, h->origin) ||
            h->origin.n >= sizeof x->origin) {
            turbod_reply_error(x, 403, "origin_not_allowed", NULL,
                               "pages of this Origin may not call; add it to allowed_origins");
            return;
        }
        memcpy(x->origin, h->origin.p, h->origin.n);
        if (!strcmp(x->method, "OPTIONS")) { /* a browser's preflight carries no key */
            x->reply.status = 204;
            return;
        }
    }
    const turbod_route *r = find(path, x->method, &param);
    if (!authorise(x, h, r))
        return;
    if (!r) {
        turbod_reply_error(x, 404, "not_found", NULL,
                           "no such route; see GET /v1/models, POST /v1/chat/completions");
        return;
    }
    if (strcmp(r->method, x->method)) {
        turbod_reply_error(x, 405, "method_not_allowed", NULL, "this route takes %s",
                           methods_of(r));
        x->reply.allow = methods_of(r);
        return;
    }
    x->param = param;
    if (fitting_body(x, h) && ready_for(x, r, query))
        x->route = r;
}
