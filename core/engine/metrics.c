/* core/engine/metrics.c: see metrics.h. */
#include "engine/metrics.h"

#include <inttypes.h>
#include <stddef.h>
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

/* Where a series goes: the buffer, its prefix, and whose it is. */
typedef struct page {
    turbod_buf *o;
    const char *prefix;
    const turbod_metrics_of *models;
    size_t n;
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
static void sample(const page *g, size_t i, const char *name, const char *suffix)
{
    turbod_buf_printf(g->o, "%s%s%s{", g->prefix, name, suffix);
    turbod_metrics_label(g->o, "model_name", g->models[i].name);
}

/* One series: its value of a model. Samples of a family stand together, whatever the model. */
typedef double (*reader)(turbod_metrics *m);

static void number(const page *g, const char *name, const char *type, const char *help, reader of)
{
    turbod_metrics_head(g->o, g->prefix, name, type, help);
    for (size_t i = 0; i < g->n; i++) {
        sample(g, i, name, "");
        turbod_buf_printf(g->o, "} %.17g\n", of(g->models[i].m));
    }
}

static void histogram_of(const page *g, size_t i, const char *name, turbod_hist *h)
{
    uint64_t total = 0;
    for (int k = 0; k <= h->n; k++) {
        total += atomic_load_explicit(&h->counts[k], memory_order_relaxed);
        sample(g, i, name, "_bucket");
        if (k < h->n)
            turbod_buf_printf(g->o, ",le=\"%g\"} %" PRIu64 "\n", h->bounds[k], total);
        else
            turbod_buf_printf(g->o, ",le=\"+Inf\"} %" PRIu64 "\n", total);
    }
    sample(g, i, name, "_sum");
    turbod_buf_printf(g->o, "} %.9g\n",
                      (double)atomic_load_explicit(&h->sum_nano, memory_order_relaxed) * 1e-9);
    sample(g, i, name, "_count");
    turbod_buf_printf(g->o, "} %" PRIu64 "\n", total);
}

/* at: offset of the turbod_hist in turbod_metrics */
static void histogram(const page *g, const char *name, const char *help, size_t at)
{
    turbod_metrics_head(g->o, g->prefix, name, "histogram", help);
    for (size_t i = 0; i < g->n; i++)
        histogram_of(g, i, name, (turbod_hist *)(void *)((char *)g->models[i].m + at));
}

/* at: offset of uint64_t[TURBOD_MEM_KINDS] in turbod_metrics */
static void memory(const page *g, const char *name, const char *help, size_t at)
{
    turbod_metrics_head(g->o, g->prefix, name, "gauge", help);
    for (size_t i = 0; i < g->n; i++) {
        const uint64_t *bytes = (const uint64_t *)(const void *)((char *)g->models[i].m + at);
        for (int k = 0; k < TURBOD_MEM_KINDS; k++) {
            sample(g, i, name, "");
            turbod_buf_printf(g->o, ",kind=\"%s\"} %" PRIu64 "\n", turbod_mem_names[k], bytes[k]);
        }
    }
}

#define LOAD(x) ((double)atomic_load_explicit(&(x), memory_order_relaxed))
#define READER(field)                                                                              \
    static double read_##field(turbod_metrics *m)                                                  \
    {                                                                                              \
        return LOAD(m->field);                                                                     \
    }
READER(running)
READER(waiting)
READER(prompt_tokens)
READER(generation_tokens)
READER(prefix_queries)
READER(prefix_hits)
READER(preemptions)
READER(image_queries)
READER(image_hits)
READER(kv_total)
READER(kv_free)
READER(kv_cached)
READER(swapped_out)
READER(swapped_in)
READER(swap_full)
READER(swap_total)
READER(swap_free)
READER(prefill_tokens)
READER(steps)

/* What is only kept for reuse is there for whoever needs it. */
static double kv_usage(turbod_metrics *m)
{
    double total = LOAD(m->kv_total), vacant = LOAD(m->kv_free) + LOAD(m->kv_cached);
    vacant = vacant < total ? vacant : total; /* the counts are read one after the other */
    return total > 0 ? (total - vacant) / total : 0;
}

/* The series that vLLM has too, with its suffixes. */
static void core_series(const page *g)
{
    static const char *const reasons[] = {"stop", "length", "abort", "error"};
    number(g, "num_requests_running", "gauge", "Requests in the running batch.", read_running);
    number(g, "num_requests_waiting", "gauge", "Requests waiting for their first step.",
           read_waiting);
    number(g, "kv_cache_usage_perc", "gauge", "Share of KV blocks that requests hold, 0 to 1.",
           kv_usage);
    number(g, "prompt_tokens_total", "counter", "Prompt tokens of started requests.",
           read_prompt_tokens);
    number(g, "generation_tokens_total", "counter", "Sampled tokens.", read_generation_tokens);
    number(g, "prefix_cache_queries_total", "counter",
           "Prompt tokens looked up in the prefix cache.", read_prefix_queries);
    number(g, "prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
           read_prefix_hits);
    number(g, "image_cache_queries_total", "counter", "Images of requests.", read_image_queries);
    number(g, "image_cache_hits_total", "counter", "Images that were known from another request.",
           read_image_hits);
    number(g, "num_preemptions_total", "counter", "Sequences whose KV was taken away.",
           read_preemptions);
    turbod_metrics_head(g->o, g->prefix, "request_success_total", "counter",
                        "Requests ended, by reason.");
    for (size_t i = 0; i < g->n; i++)
        for (int k = 0; k < TURBOD_END_KINDS; k++) {
            sample(g, i, "request_success_total", "");
            turbod_buf_printf(g->o, ",finished_reason=\"%s\"} %.17g\n", reasons[k],
                              LOAD(g->models[i].m->ended[k]));
        }
    histogram(g, "time_to_first_token_seconds", "Submission to first token.",
              offsetof(turbod_metrics, ttft));
    histogram(g, "inter_token_latency_seconds", "Time between two tokens.",
              offsetof(turbod_metrics, itl));
    histogram(g, "e2e_request_latency_seconds", "Submission to end.",
              offsetof(turbod_metrics, e2e));
    histogram(g, "request_queue_time_seconds", "Submission to first step.",
              offsetof(turbod_metrics, queue_time));
    histogram(g, "iteration_tokens_total", "New tokens in a step.",
              offsetof(turbod_metrics, step_tokens));
}

static void load_series(const page *g)
{
    static const char *const stages[] = {"files", "device", "weights", "workspace", "kv", "rest"};
    turbod_metrics_head(g->o, g->prefix, "model_load_seconds", "gauge",
                        "Time to load the model, by stage.");
    for (size_t i = 0; i < g->n; i++)
        for (int k = 0; k < TURBOD_LOAD_STAGES; k++) {
            sample(g, i, "model_load_seconds", "");
            turbod_buf_printf(g->o, ",stage=\"%s\"} %.9g\n", stages[k],
                              g->models[i].m->load_seconds[k]);
        }
}

void turbod_metrics_write(const turbod_metrics_of *models, size_t n, bool vllm, turbod_buf *o)
{
    const page ours = {o, "turbo:", models, n}, theirs = {o, "vllm:", models, n};
    core_series(&ours);
    number(&ours, "kv_blocks_total", "gauge", "KV blocks of the pool.", read_kv_total);
    number(&ours, "kv_blocks_free", "gauge", "KV blocks nobody uses.", read_kv_free);
    number(&ours, "kv_blocks_cached", "gauge", "KV blocks kept for reuse.", read_kv_cached);
    number(&ours, "swap_blocks_total", "gauge", "KV blocks that swap_space has room for.",
           read_swap_total);
    number(&ours, "swap_blocks_free", "gauge", "KV blocks of it that nobody uses.", read_swap_free);
    number(&ours, "swapped_out_blocks_total", "counter", "KV blocks copied to the host.",
           read_swapped_out);
    number(&ours, "swapped_in_blocks_total", "counter", "KV blocks copied back.", read_swapped_in);
    number(&ours, "swap_full_total", "counter",
           "Sequences whose KV was taken away and found no room in swap_space.", read_swap_full);
    number(&ours, "prefill_tokens_total", "counter",
           "Prompt tokens computed: without cached ones, with those computed again.",
           read_prefill_tokens);
    number(&ours, "steps_total", "counter", "Forward passes.", read_steps);
    load_series(&ours);
    if (vllm)
        core_series(&theirs);
    memory(&ours, "plan_bytes", "Bytes that were planned, by kind.",
           offsetof(turbod_metrics, plan_bytes));
    memory(&ours, "alloc_bytes", "Bytes taken, by kind.", offsetof(turbod_metrics, alloc_bytes));
}
