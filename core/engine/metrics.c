/* core/engine/metrics.c: see metrics.h. */
#include "engine/metrics.h"

#include <inttypes.h>
#include <string.h>

#include "util/utf8.h"

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

/* Where a series goes: the buffer, its prefix, its model. */
typedef struct page {
    turbod_buf *o;
    const char *prefix, *model;
} page;

void turbod_metrics_head(turbod_buf *o, const char *prefix, const char *name, const char *type,
                         const char *help)
{
    turbod_buf_printf(o, "# HELP %s%s %s\n# TYPE %s%s %s\n", prefix, name, help, prefix, name,
                      type);
}

void turbod_metrics_label(turbod_buf *o, const char *name, const char *value)
{
    const unsigned char *p = (const unsigned char *)value;
    turbod_buf_printf(o, "%s=\"", name);
    for (size_t left = strlen(value), n; left; p += n, left -= n) {
        n = turbod_utf8_len(p, left);
        if (*p == '\n')
            turbod_buf_str(o, "\\n");
        else if (*p == '"' || *p == '\\')
            turbod_buf_printf(o, "\\%c", *p);
        else if (n)
            turbod_buf_add(o, p, n);
        else
            turbod_buf_str(o, "\xef\xbf\xbd");
        n = n ? n : 1;
    }
    turbod_buf_str(o, "\"");
}

/* The beginning of a sample, up to where its value or a further label comes. */
static void sample(const page *g, const char *name, const char *suffix)
{
    turbod_buf_printf(g->o, "%s%s%s{", g->prefix, name, suffix);
    turbod_metrics_label(g->o, "model_name", g->model);
}

static void number(const page *g, const char *name, const char *type, const char *help, double v)
{
    turbod_metrics_head(g->o, g->prefix, name, type, help);
    sample(g, name, "");
    turbod_buf_printf(g->o, "} %.17g\n", v);
}

static void histogram(const page *g, const char *name, const char *help, turbod_hist *h)
{
    uint64_t total = 0;
    turbod_metrics_head(g->o, g->prefix, name, "histogram", help);
    for (int i = 0; i <= h->n; i++) {
        total += atomic_load_explicit(&h->counts[i], memory_order_relaxed);
        sample(g, name, "_bucket");
        if (i < h->n)
            turbod_buf_printf(g->o, ",le=\"%g\"} %" PRIu64 "\n", h->bounds[i], total);
        else
            turbod_buf_printf(g->o, ",le=\"+Inf\"} %" PRIu64 "\n", total);
    }
    sample(g, name, "_sum");
    turbod_buf_printf(g->o, "} %.9g\n",
                      (double)atomic_load_explicit(&h->sum_nano, memory_order_relaxed) * 1e-9);
    sample(g, name, "_count");
    turbod_buf_printf(g->o, "} %" PRIu64 "\n", total);
}

static void memory(const page *g, const char *name, const char *help,
                   const uint64_t bytes[TURBOD_MEM_KINDS])
{
    turbod_metrics_head(g->o, g->prefix, name, "gauge", help);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++) {
        sample(g, name, "");
        turbod_buf_printf(g->o, ",kind=\"%s\"} %" PRIu64 "\n", turbod_mem_names[k], bytes[k]);
    }
}

#define LOAD(x) ((double)atomic_load_explicit(&(x), memory_order_relaxed))

/* The series that vLLM has too, with its suffixes. */
static void core_series(const page *g, turbod_metrics *m)
{
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    double total = LOAD(m->kv_total), vacant = LOAD(m->kv_free);
    number(g, "num_requests_running", "gauge", "Requests in the running batch.", LOAD(m->running));
    number(g, "num_requests_waiting", "gauge", "Requests waiting for their first step.",
           LOAD(m->waiting));
    number(g, "kv_cache_usage_perc", "gauge", "Share of KV blocks in use, 0 to 1.",
           total > 0 ? (total - vacant) / total : 0);
    number(g, "prompt_tokens_total", "counter", "Prompt tokens of started requests.",
           LOAD(m->prompt_tokens));
    number(g, "generation_tokens_total", "counter", "Sampled tokens.", LOAD(m->generation_tokens));
    number(g, "prefix_cache_queries_total", "counter",
           "Prompt tokens looked up in the prefix cache.", LOAD(m->prefix_queries));
    number(g, "prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
           LOAD(m->prefix_hits));
    number(g, "image_cache_queries_total", "counter", "Images of requests.",
           LOAD(m->image_queries));
    number(g, "image_cache_hits_total", "counter", "Images that were known from another request.",
           LOAD(m->image_hits));
    number(g, "num_preemptions_total", "counter", "Sequences whose KV was taken away.",
           LOAD(m->preemptions));
    turbod_metrics_head(g->o, g->prefix, "request_success_total", "counter",
                        "Requests ended, by reason.");
    for (int i = 0; i < TURBOD_END_KINDS; i++) {
        sample(g, "request_success_total", "");
        turbod_buf_printf(g->o, ",finished_reason=\"%s\"} %.17g\n", reasons[i], LOAD(m->ended[i]));
    }
    histogram(g, "time_to_first_token_seconds", "Submission to first token.", &m->ttft);
    histogram(g, "inter_token_latency_seconds", "Time between two tokens.", &m->itl);
    histogram(g, "e2e_request_latency_seconds", "Submission to end.", &m->e2e);
    histogram(g, "request_queue_time_seconds", "Submission to first step.", &m->queue_time);
    histogram(g, "iteration_tokens_total", "New tokens in a step.", &m->step_tokens);
}

static void load_series(const page *g, const turbod_metrics *m)
{
    static const char *const stages[] = {"files", "weights", "workspace", "kv", "rest"};
    turbod_metrics_head(g->o, g->prefix, "model_load_seconds", "gauge",
                        "Time to load the model, by stage.");
    for (int i = 0; i < TURBOD_LOAD_STAGES; i++) {
        sample(g, "model_load_seconds", "");
        turbod_buf_printf(g->o, ",stage=\"%s\"} %.9g\n", stages[i], m->load_seconds[i]);
    }
}

void turbod_metrics_write(turbod_metrics *m, const char *model, bool vllm, turbod_buf *o)
{
    const page ours = {o, "turbo:", model}, theirs = {o, "vllm:", model};
    core_series(&ours, m);
    number(&ours, "kv_blocks_total", "gauge", "KV blocks of the pool.", LOAD(m->kv_total));
    number(&ours, "kv_blocks_free", "gauge", "KV blocks nobody uses.", LOAD(m->kv_free));
    number(&ours, "kv_blocks_cached", "gauge", "KV blocks kept for reuse.", LOAD(m->kv_cached));
    number(&ours, "prefill_tokens_total", "counter",
           "Prompt tokens computed: without cached ones, with those computed again.",
           LOAD(m->prefill_tokens));
    number(&ours, "steps_total", "counter", "Forward passes.", LOAD(m->steps));
    load_series(&ours, m);
    if (vllm)
        core_series(&theirs, m);
    memory(&ours, "plan_bytes", "Bytes that were planned, by kind.", m->plan_bytes);
    memory(&ours, "alloc_bytes", "Bytes taken, by kind.", m->alloc_bytes);
}
