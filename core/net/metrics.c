/* core/net/metrics.c: GET /metrics: the engine's series, then those of the server and of the policies.
 * Daemon thread. */
#include "net/net.h"

static void head(turbod_buf *b, const char *name, const char *type, const char *help)
{
    turbod_metrics_head(b, "turbo:", name, type, help);
}

static void number(turbod_buf *b, const char *name, const char *type, const char *help, uint64_t v)
{
    head(b, name, type, help);
    turbod_buf_printf(b, "turbo:%s %llu\n", name, (unsigned long long)v);
}

static void http_series(turbod_http *h, turbod_buf *b)
{
    static const char *const phases[LEFT_KINDS] = {"body", "queue", "prefill", "decode", "send"};
    pthread_mutex_lock(&h->mu);
    int clients = h->n_clients, answering = h->n_answering, alive = h->n_exchanges;
    pthread_mutex_unlock(&h->mu);
    number(b, "client_fds", "gauge", "Open client connections.", (uint64_t)clients);
    number(b, "http_requests_answering", "gauge", "Requests whose answer is not complete.",
           (uint64_t)answering);
    number(b, "http_requests_alive", "gauge", "Requests that still hold memory.", (uint64_t)alive);
    number(b, "http_body_bytes", "gauge", "Bytes of request bodies held.",
           atomic_load(&h->body_bytes));
    number(b, "http_refused_connections_total", "counter", "Connections closed at accept.",
           atomic_load(&h->refused_connections));
    head(b, "http_responses_total", "counter", "Responses by class of status.");
    for (int i = 2; i < 6; i++)
        turbod_buf_printf(b, "turbo:http_responses_total{code=\"%dxx\"} %llu\n", i,
                          (unsigned long long)atomic_load(&h->responses[i]));
    head(b, "client_disconnects_total", "counter",
         "Clients that left before their answer was complete, by what was under way.");
    for (int i = 0; i < LEFT_KINDS; i++)
        turbod_buf_printf(b, "turbo:client_disconnects_total{phase=\"%s\"} %llu\n", phases[i],
                          (unsigned long long)atomic_load(&h->left[i]));
}

typedef struct lua_page {
    turbod_buf *b;
    const char *model;
    uint64_t errors;
} lua_page;

static void lua_labels(const lua_page *g, const char *suffix, const char *policy)
{
    turbod_buf_printf(g->b, "turbo:lua_policy_seconds_%s{", suffix);
    turbod_metrics_label(g->b, "model_name", g->model);
    turbod_buf_str(g->b, ",");
    turbod_metrics_label(g->b, "policy", policy);
}

static void lua_one(void *ctx, const turbod_policy *policy)
{
    lua_page *g = ctx;
    const char *name = turbod_policy_name(policy);
    turbod_policy_stat s = turbod_policy_stat_of(policy);
    lua_labels(g, "sum", name);
    turbod_buf_printf(g->b, "} %.9g\n", s.seconds);
    lua_labels(g, "count", name);
    turbod_buf_printf(g->b, "} %llu\n", (unsigned long long)s.runs);
    g->errors += s.errors;
}

/* A reload begins the counts anew, as a restart does. */
static void lua_series(turbod_service *const *up, size_t n, turbod_buf *b)
{
    lua_page g = {.b = b};
    head(b, "lua_policy_seconds", "summary",
         "Time of each run of a policy: for a request before it is queued, for a hook later.");
    for (size_t i = 0; i < n; i++) {
        g.model = up[i]->name;
        turbod_policies_each(up[i]->policies, lua_one, &g);
    }
    number(b, "lua_errors_total", "counter", "Policy runs that failed or took too long.", g.errors);
}

void turbod_api_metrics(turbod_exchange *x)
{
    turbod_service *up[TURBOD_MAX_MODELS];
    turbod_metrics_of of[TURBOD_MAX_MODELS];
    turbod_services *all = x->http->models;
    turbod_buf *b = &x->reply.body;
    size_t n = 0;
    x->reply.status = 200;
    x->reply.type = "text/plain; version=0.0.4; charset=utf-8";
    for (size_t i = 0; i < all->n; i++) {
        int state = atomic_load(&all->at[i].state);
        if (state != TURBOD_READY && state != TURBOD_DRAINING)
            continue;
        up[n] = &all->at[i];
        of[n] = (turbod_metrics_of){up[n]->name, turbod_engine_metrics(up[n]->engine)};
        n++;
    }
    if (n) {
        turbod_metrics_write(of, n, x->rules->metrics_vllm, b);
        lua_series(up, n, b);
    }
    http_series(x->http, b);
}
