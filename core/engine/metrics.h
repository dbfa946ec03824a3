/* core/engine/metrics.h: counters, gauges and histograms, lock-free to write and to read.
 * Any thread. A reader may see a histogram's sum and count one observation apart. */
#ifndef TURBOD_METRICS_H
#define TURBOD_METRICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "plan/plan.h"
#include "util/buf.h"

#define TURBOD_HIST_MAX 24

typedef struct turbod_hist {
    const double *bounds; /* [n] ascending upper bounds; +Inf is implied */
    int n;
    _Atomic uint64_t counts[TURBOD_HIST_MAX + 1];
    _Atomic uint64_t sum_nano; /* sum in 1e-9 units */
} turbod_hist;

/* What loading consists of; the label "stage" of model_load_seconds. */
enum {
    TURBOD_LOAD_FILES, /* config, plugins, tokenizer */
    TURBOD_LOAD_DEVICE, /* opening it, and the plan */
    TURBOD_LOAD_WEIGHTS,
    TURBOD_LOAD_WORKSPACE,
    TURBOD_LOAD_KV,
    TURBOD_LOAD_REST, /* scheduler, threads, fingerprint of the folder */
    TURBOD_LOAD_STAGES
};

enum { TURBOD_END_STOP, TURBOD_END_LENGTH, TURBOD_END_ABORT, TURBOD_END_ERROR, TURBOD_END_KINDS };

typedef struct turbod_metrics {
    _Atomic int64_t running, waiting;
    _Atomic int64_t kv_total, kv_free, kv_cached; /* blocks */
    _Atomic uint64_t prompt_tokens, generation_tokens, preemptions, steps;
    _Atomic uint64_t prefill_tokens; /* computed: without what the cache had, with what was lost */
    _Atomic uint64_t prefix_queries, prefix_hits;  /* tokens */
    _Atomic uint64_t swapped_out, swapped_in; /* blocks */
    _Atomic uint64_t swap_full; /* preemptions whose KV did not fit */
    _Atomic int64_t swap_total, swap_free; /* blocks */
    _Atomic uint64_t image_queries, image_hits; /* images */
    _Atomic uint64_t ended[TURBOD_END_KINDS];
    turbod_hist ttft, itl, e2e, queue_time, step_tokens;
    double load_seconds[TURBOD_LOAD_STAGES];
    uint64_t plan_bytes[TURBOD_MEM_KINDS], alloc_bytes[TURBOD_MEM_KINDS];
} turbod_metrics;

void turbod_metrics_init(turbod_metrics *m);
void turbod_hist_add(turbod_hist *h, double v);
typedef struct turbod_metrics_of {
    const char *name; /* of the model */
    turbod_metrics *m;
} turbod_metrics_of;

/* Prometheus text format 0.0.4: every series of every model under "turbo:" with the label model_name; with
 * vllm set, the core ones once more under "vllm:". */
void turbod_metrics_write(const turbod_metrics_of *models, size_t n, bool vllm, turbod_buf *out);
/* NAME="VALUE" with the format's escapes; bytes that are no UTF-8 become U+FFFD. */
void turbod_metrics_label(turbod_buf *out, const char *name, const char *value);
/* The two comment lines before the samples of a metric. */
void turbod_metrics_head(turbod_buf *out, const char *prefix, const char *name, const char *type,
                         const char *help);

#endif
