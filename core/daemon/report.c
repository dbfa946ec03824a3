/* core/daemon/report.c: one line in the log each log_stats_ms while the engine is busy, none when it
 * is idle. Main thread; reads the counters that /metrics shows. */
#include <stdio.h>

#include "daemon/daemon.h"
#include "sched/request.h"
#include "sched/state.h"
#include "util/log.h"

#define LOAD(x) atomic_load_explicit(&(x), memory_order_relaxed)

void turbod_report_tick(turbod_report *r, turbod_metrics *m, const char *model, int64_t every_ms)
{
    int64_t now = turbod_now();
    if (r->since && now - r->since < every_ms * 1000000)
        return;
    turbod_report fresh = {
        .since = now,
        .prefill = LOAD(m->prefill_tokens),
        .generated = LOAD(m->generation_tokens),
        .queries = LOAD(m->prefix_queries),
        .hits = LOAD(m->prefix_hits),
    };
    turbod_report old = *r;
    *r = fresh;
    if (!old.since || every_ms <= 0)
        return;
    long long running = LOAD(m->running), waiting = LOAD(m->waiting);
    if (!running && !waiting && fresh.prefill == old.prefill && fresh.generated == old.generated)
        return;
    double s = (double)(now - old.since) * 1e-9, total = (double)LOAD(m->kv_total);
    char hits[32] = "-"; /* nothing was looked up */
    if (fresh.queries > old.queries)
        snprintf(hits, sizeof hits, "%.1f %%",
                 100.0 * (double)(fresh.hits - old.hits) / (double)(fresh.queries - old.queries));
    turbod_log(
        TURBO_LOG_INFO,
        "throughput%s%s: prompt %.1f tok/s, generated %.1f tok/s, running %lld, waiting %lld, "
        "KV %.1f %%, prefix hits %s",
        model ? " of " : "", model ? model : "", (double)(fresh.prefill - old.prefill) / s,
        (double)(fresh.generated - old.generated) / s, running, waiting,
        total > 0 ? 100.0 * (total - (double)LOAD(m->kv_free)) / total : 0.0, hits);
}
