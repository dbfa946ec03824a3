/* core/engine/metrics.c: see metrics.h. */
#include "engine/metrics.h"

#include <inttypes.h>

/* Buckets in seconds from 0.5 ms, a factor of about 2 apart; tokens in powers of 2. */
static const double seconds[] = {0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.125, 0.25,
                                 0.5,    1,     2,     4,     8,     15,    30,   60,   120,   300};
static const double tokens[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};

#define N(a) ((int)(sizeof(a) / sizeof((a)[0])))

void turbod_metrics_init(turbod_metrics *m)
{
    m->ttft.bounds = m->itl.bounds = m->e2e.bounds = m->queue_time.bounds = seconds;
    m->ttft.n = m->itl.n = m->e2e.n = m->queue_time.n = N(seconds);
    m->step_tokens.bounds = tokens;
    m->step_tokens.n = N(tokens);
}

void turbod_hist_add(turbod_hist *h, double v)
{
    int i = 0;
    while (i < h->n && v > h->bounds[i])
        i++;
    atomic_fetch_add_explicit(&h->counts[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_nano, v > 0 ? (uint64_t)(v * 1e9) : 0, memory_order_relaxed);
}

static void head(turbod_buf *o, const char *name, const char *type, const char *help)
{
    turbod_buf_printf(o, "# HELP turbo:%s %s\n# TYPE turbo:%s %s\n", name, help, name, type);
}

/* The model name inside a label: quotes, backslashes and newlines escaped. */
static void label(turbod_buf *o, const char *model)
{
    turbod_buf_str(o, "model_name=\"");
    for (const char *p = model; *p; p++) {
        if (*p == '"' || *p == '\\')
            turbod_buf_add(o, "\\", 1);
        turbod_buf_add(o, *p == '\n' ? " " : p, 1);
    }
    turbod_buf_str(o, "\"");
}

static void number(turbod_buf *o, const char *model, const char *name, const char *type,
                   const char *help, double v)
{
    head(o, name, type, help);
    turbod_buf_printf(o, "turbo:%s{", name);
    label(o, model);
    turbod_buf_printf(o, "} %.17g\n", v);
}

static void histogram(turbod_buf *o, const char *model, const char *name, const char *help,
                      turbod_hist *h)
{
    uint64_t total = 0;
    head(o, name, "histogram", help);
    for (int i = 0; i <= h->n; i++) {
        total += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
        turbod_buf_printf(o, "turbo:%s_bucket{", name);
        label(o, model);
        if (i < h->n)
            turbod_buf_printf(o, ",le=\"%g\"} %" PRIu64 "\n", h->bounds[i], total);
        else
            turbod_buf_printf(o, ",le=\"+Inf\"} %" PRIu64 "\n", total);
    }
    turbod_buf_printf(o, "turbo:%s_sum{", name);
    label(o, model);
    turbod_buf_printf(o, "} %.9g\nturbo:%s_count{",
                      (double)atomic_load_explicit(&h->sum_nano, memory_order_relaxed) * 1e-9, name);
    label(o, model);
    turbod_buf_printf(o, "} %" PRIu64 "\n", total);
}

#define LOAD(x) ((double)atomic_load_explicit(&(x), memory_order_relaxed))

void turbod_metrics_write(turbod_metrics *m, const char *model, turbod_buf *o)
{
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    double total = LOAD(m->kv_total), vacant = LOAD(m->kv_free);
    number(o, model, "num_requests_running", "gauge", "Requests in the running batch.",
           LOAD(m->running));
    number(o, model, "num_requests_waiting", "gauge", "Requests waiting for their first step.",
           LOAD(m->waiting));
    number(o, model, "kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.",
           total > 0 ? (total - vacant) / total : 0);
    number(o, model, "kv_blocks_total", "gauge", "KV blocks of the pool.", total);
    number(o, model, "kv_blocks_free", "gauge", "KV blocks nobody uses.", vacant);
    number(o, model, "kv_blocks_cached", "gauge", "KV blocks kept for reuse.", LOAD(m->kv_cached));
    number(o, model, "prompt_tokens_total", "counter", "Prompt tokens of started requests.",
           LOAD(m->prompt_tokens));
    number(o, model, "generation_tokens_total", "counter", "Sampled tokens.",
           LOAD(m->generation_tokens));
    number(o, model, "prefix_cache_queries_total", "counter",
           "Prompt tokens looked up in a session's cache.", LOAD(m->prefix_queries));
    number(o, model, "prefix_cache_hits_total", "counter", "Prompt tokens found there.",
           LOAD(m->prefix_hits));
    number(o, model, "image_cache_queries_total", "counter", "Images of requests.",
           LOAD(m->image_queries));
    number(o, model, "image_cache_hits_total", "counter",
           "Images that were known from another request.", LOAD(m->image_hits));
    number(o, model, "num_preemptions_total", "counter", "Sequences whose KV was taken away.",
           LOAD(m->preemptions));
    number(o, model, "steps_total", "counter", "Forward passes.", LOAD(m->steps));
    head(o, "request_success_total", "counter", "Requests ended, by reason.");
    for (int i = 0; i < TURBOD_END_KINDS; i++) {
        turbod_buf_str(o, "turbo:request_success_total{");
        label(o, model);
        turbod_buf_printf(o, ",finished_reason=\"%s\"} %.17g\n", reasons[i], LOAD(m->ended[i]));
    }
    histogram(o, model, "time_to_first_token_seconds", "Submission to first token.", &m->ttft);
    histogram(o, model, "inter_token_latency_seconds", "Time between two tokens.", &m->itl);
    histogram(o, model, "e2e_request_latency_seconds", "Submission to end.", &m->e2e);
    histogram(o, model, "request_queue_time_seconds", "Submission to first step.", &m->queue_time);
    histogram(o, model, "iteration_tokens_total", "New tokens in a step.", &m->step_tokens);
    number(o, model, "model_load_seconds", "gauge", "Time to load the model.", m->load_seconds);
    head(o, "alloc_bytes", "gauge", "Bytes taken, by kind.");
    const struct {
        const char *kind;
        uint64_t v;
    } kinds[] = {{"weights", m->weight_bytes}, {"kv", m->kv_bytes}, {"workspace", m->workspace_bytes}};
    for (size_t i = 0; i < 3; i++) {
        turbod_buf_str(o, "turbo:alloc_bytes{");
        label(o, model);
        turbod_buf_printf(o, ",kind=\"%s\"} %" PRIu64 "\n", kinds[i].kind, kinds[i].v);
    }
}
