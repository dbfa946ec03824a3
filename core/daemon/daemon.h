/* core/daemon/daemon.h: the parts of turbod that are neither HTTP nor engine: the process, systemd,
 * testing a configuration, reloading one. Main thread, except where stated. */
#ifndef TURBOD_DAEMON_H
#define TURBOD_DAEMON_H

#include <stdatomic.h>

#include "engine/services.h"
#include "net/http.h"

/* ---- setup.c ---- */

/* umask, descriptors 0..2 open and all others closed, no core dumps, SIGPIPE ignored. */
turbo_status turbod_process_begin(turbo_err *err);
/* Descriptors for max_connections, no new privileges, root refused unless allow_root. */
turbo_status turbod_process_limits(const turbod_conf *c, turbo_err *err);
/* Blocks SIGTERM, SIGINT and SIGHUP in this thread and those it will make; *fd reads them. */
turbo_status turbod_signals_open(int *fd, turbo_err *err);
/* Next signal number, 0 when none is pending. */
int turbod_signals_next(int fd);

/* ---- notify.c: the protocol of sd_notify(3) over $NOTIFY_SOCKET; without it nothing happens ---- */

void turbod_notify(const char *state); /* "READY=1", several joined by newlines */
/* Half of $WATCHDOG_USEC in milliseconds, -1 when there is no watchdog. */
int turbod_notify_watchdog_ms(void);

/* ---- progress.c: loading, seen from a terminal or a log; called by the loading thread ---- */

typedef struct turbod_progress {
    bool terminal;
    int shown; /* last tenth or percent that was printed */
} turbod_progress;

void turbod_progress_init(turbod_progress *p);
void turbod_progress_step(void *progress, uint64_t done, uint64_t total);
void turbod_progress_end(turbod_progress *p); /* clears the bar */

/* ---- report.c: the throughput line of the log ---- */

typedef struct turbod_report { /* counters of the line before; all 0 at first */
    int64_t since; /* monotonic ns */
    uint64_t prefill, generated, queries, hits;
} turbod_report;

/* To be called at least as often as the line is wanted. model: named in the line; NULL: there is but one.
 * every_ms 0: no line. */
void turbod_report_tick(turbod_report *r, turbod_metrics *m, const char *model, int64_t every_ms);

/* ---- preflight.c: turbod -t ---- */

/* Tests everything that can be tested without loading weights; prints a line each to out. The first
 * failure ends it, its text goes to err. */
turbo_status turbod_preflight(const turbod_conf *c, FILE *out, turbo_err *err);

/* ---- reload.c: SIGHUP ---- */

/* What was replaced lives until the end of the process: a request may still look at it. */
typedef struct turbod_retired turbod_retired;

/* Puts templates, policies and reloadable options of fresh in place, for all models or for none. On an error everything stays as
 * it is and fresh is freed; otherwise fresh becomes *conf and the old one is retired. */
turbo_status turbod_reload(turbod_services *s, turbod_http *http, turbod_conf **conf,
                           turbod_conf *fresh, turbod_retired **retired, turbo_err *err);
void turbod_retired_free(turbod_retired *r);

#endif
