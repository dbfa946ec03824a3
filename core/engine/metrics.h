/* core/engine/metrics.h: counters, gauges and histograms, lock-free to write and to read.
 * Any thread. A reader may see a histogram's sum and count one observation apart. */
#ifndef TURBOD_METRICS_H
#define TURBOD_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

#include "util/buf.h"

#define TURBOD_HIST_MAX 24

typedef struct turbod_hist {
    const double *bounds; /* [n] ascending upper bounds; +Inf is implied */
    int n;
    _Atomic uint64_t counts[TURBOD_HIST_MAX + 1];
    _Atomic uint64_t sum_nano; /* sum in 1e-9 units */
} turbod_hist;

enum { TURBOD_END_STOP, TURBOD_END_LENGTH, TURBOD_END_ABORT, TURBOD_END_ERROR, TURBOD_END_KINDS };

typedef struct turbod_metrics {
    _Atomic int64_t running, waiting;
    _Atomic int64_t kv_total, kv_free, kv_cached; /* blocks */
    _Atomic uint64_t prompt_tokens, generation_tokens, preemptions, steps;
    _Atomic uint64_t prefix_queries, prefix_hits;  /* tokens */
    _Atomic uint64_t image_queries, image_hits; /* images */
    _Atomic uint64_t ended[TURBOD_END_KINDS];
    _Atomic uint64_t disconnects; /* clients that left before their answer was complete */
    turbod_hist ttft, itl, e2e, queue_time, step_tokens;
    double load_seconds;
    uint64_t weight_bytes, kv_bytes, workspace_bytes;
} turbod_metrics;

void turbod_metrics_init(turbod_metrics *m);
void turbod_hist_add(turbod_hist *h, double v);
/* Prometheus text format, prefix "turbo:", label model_name. */
void turbod_metrics_write(turbod_metrics *m, const char *model_name, turbod_buf *out);

#endif
