/* core/turbod.c: the daemon: reads its configuration, listens, loads the models in a thread, serves
 * until a signal says otherwise. This file is the life of the main thread; what it does at each
 * station lies in core/daemon. Must not know: HTTP, models. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "util/err.h"
#include "util/log.h"
#include "version.h"
#include "weights/cache.h"

#define EX_USAGE 64
#define EX_ENGINE 75
#define SICK_AFTER_S 60.0 /* an engine that shows no step for so long gets no watchdog ping */
#define HUNG_AFTER_S 4.0 /* an engine that ends no step for so long is not waited for at the end */
#define LOOK_MS 250 /* a server whose engine failed ends within a second of the fault */
#define TICK_MS 20 /* how often a drain looks whether it is done */

typedef struct daemon_state {
    int argc;
    char **argv;
    bool help, version, test, print;
    turbod_conf *conf;
    turbod_services models;
    turbod_http *http;
    turbod_retired *retired;
    turbod_progress progress;
    turbod_report reports[TURBOD_MAX_MODELS];
    bool told[TURBOD_MAX_MODELS]; /* that its engine has failed */
    int signals, loaded; /* signalfd, eventfd of the loading thread */
    pthread_t loader;
    turbo_status load_status;
    turbo_err load_err;
    struct timespec t0;
} daemon_state;

static int own_flag(void *ctx, int argc, char **argv, int i)
{
    daemon_state *d = ctx;
    (void)argc;
    bool *slot = !strcmp(argv[i], "-h") || !strcmp(argv[i], "--help")      ? &d->help
                 : !strcmp(argv[i], "-V") || !strcmp(argv[i], "--version") ? &d->version
                 : !strcmp(argv[i], "-t") || !strcmp(argv[i], "--test")    ? &d->test
                 : !strcmp(argv[i], "-T") || !strcmp(argv[i], "--print")   ? &d->print
                                                                           : NULL;
    if (!slot)
        return 0;
    *slot = true;
    return 1;
}

static void print_help(void)
{
    fputs(
        "usage: turbod --conf FILE [flags]\n"
        "\n"
        "Serves language models over HTTP with an OpenAI-compatible API.\n"
        "\n"
        "  turbod --conf turbo.conf                start with a conf file\n"
        "  turbod --model /models/chat-7b          start without one\n"
        "  turbod --conf FILE -t                    test the conf, the model folder, scripts; "
        "exit\n"
        "  turbod --conf FILE -T                    print every option with its origin; exit\n"
        "  turbod --version                         build facts for a bug report\n"
        "\n"
        "An option comes from a flag, else from the environment (TURBO_KEY, TURBO_GROUP_KEY), "
        "else\n"
        "from the conf file (group = { key = value; };), else from its default.\n"
        "\n"
        "Signals: SIGTERM and SIGINT let running answers finish (drain_ms), a second one stops at\n"
        "once; SIGHUP reads conf file, template, policies and keys again.\n"
        "Exit codes: 0 stopped, 64 usage, 65 model data, 66 no such file, 71 out of memory, 74 "
        "I/O,\n"
        "75 engine failure, 78 configuration.\n"
        "\n",
        stdout);
    turbod_conf_help(stdout);
}

static double seconds_since(const struct timespec *t0)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)(t.tv_sec - t0->tv_sec) + (double)(t.tv_nsec - t0->tv_nsec) * 1e-9;
}

static void *load_main(void *arg)
{
    daemon_state *d = arg;
    uint64_t one = 1;
    pthread_setname_np(pthread_self(), "turbo-load");
    d->load_status =
        turbod_services_load(&d->models, turbod_progress_step, &d->progress, &d->load_err);
    turbod_progress_end(&d->progress);
    ssize_t n = write(d->loaded, &one, sizeof one);
    (void)n; /* an eventfd with one writer takes it */
    return NULL;
}

static turbo_status start(daemon_state *d, turbo_err *err)
{
    turbo_status st = turbod_process_limits(d->conf, err);
    if (!st)
        st = turbod_signals_open(&d->signals, err);
    if (!st)
        st = turbod_services_init(&d->models, d->conf, err);
    if (st)
        return st;
    d->loaded = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->loaded < 0)
        return turbod_err(err, TURBO_EINTERNAL, "eventfd: %s", strerror(errno));
    st = turbod_http_start(&d->models, &d->http, err);
    if (st)
        return st;
    const char *host = d->conf->host;
    bool six = strchr(host, ':') && *host != '[';
    turbod_log(TURBO_LOG_INFO, "listening on http://%s%s%s:%d", six ? "[" : "", host,
               six ? "]" : "", turbod_http_port(d->http));
    turbod_notify("STATUS=loading the model");
    turbod_progress_init(&d->progress);
    if (pthread_create(&d->loader, NULL, load_main, d))
        return turbod_err(err, TURBO_ENOMEM, "cannot start the loading thread");
    return TURBO_OK;
}

/* The end of everything: what is open is closed. */
static void abandon(daemon_state *d)
{
    if (d->http)
        turbod_http_stop(d->http);
    for (size_t i = 0; i < d->models.n; i++) {
        turbod_service *s = &d->models.at[i];
        int state = atomic_load(&s->state);
        if (state != TURBOD_LOADING && s->engine && turbod_engine_age(s->engine) > HUNG_AFTER_S &&
            !turbod_engine_idle(s->engine)) {
            turbod_log(TURBO_LOG_ERROR, "a step of the model does not end; stopping without it");
            _exit(EX_ENGINE); /* its thread cannot be joined, and it still uses the memory */
        }
    }
    turbod_services_close(&d->models);
}

/* All models are loaded and none drains. */
static bool all_ready(const daemon_state *d)
{
    for (size_t i = 0; i < d->models.n; i++)
        if (atomic_load(&d->models.at[i].state) != TURBOD_READY)
            return false;
    return true;
}

static void reload(daemon_state *d)
{
    turbo_err err = {{0}};
    turbod_conf *fresh = NULL;
    if (!all_ready(d)) {
        turbod_log(TURBO_LOG_WARN, "reload: not while the model loads or the server drains");
        return;
    }
    turbod_notify("RELOADING=1");
    turbo_status st = turbod_conf_load(d->argc, d->argv, own_flag, d, &fresh, &err);
    if (!st)
        st = turbod_reload(&d->models, d->http, &d->conf, fresh, &d->retired, &err);
    if (st)
        turbod_log(TURBO_LOG_ERROR, "reload: %s; the old configuration stays", err.text);
    else
        turbod_log(TURBO_LOG_INFO, "reloaded");
    turbod_notify("READY=1");
}

static void ready(daemon_state *d)
{
    turbod_log(TURBO_LOG_INFO, "ready in %.2f s", seconds_since(&d->t0));
    turbod_notify("READY=1\nSTATUS=serving");
}

/* A model that hangs stops the pings; one that has failed does not, while others serve. */
static void watchdog(const daemon_state *d)
{
    bool well = true;
    for (size_t i = 0; i < d->models.n && all_ready(d); i++)
        well = well && turbod_engine_age(d->models.at[i].engine) < SICK_AFTER_S;
    if (well)
        turbod_notify("WATCHDOG=1");
}

/* True: every engine has failed for good, and only a new process helps. Says of each that it has. */
static bool engines_dead(daemon_state *d)
{
    size_t dead = 0;
    for (size_t i = 0; i < d->models.n && all_ready(d); i++) {
        if (turbod_engine_age(d->models.at[i].engine) >= 0)
            continue;
        dead++;
        if (!d->told[i] && d->models.n > 1)
            turbod_log(TURBO_LOG_ERROR,
                       "the engine of %s has failed; it answers 503 until a restart, the other "
                       "models go on",
                       d->models.at[i].name);
        d->told[i] = true;
    }
    return dead && dead == d->models.n;
}

static void report(daemon_state *d)
{
    for (size_t i = 0; i < d->models.n; i++)
        turbod_report_tick(&d->reports[i], turbod_engine_metrics(d->models.at[i].engine),
                           d->models.n > 1 ? d->models.at[i].name : NULL, d->conf->log_stats_ms);
}

/* From the first signal to the end of the last answer, of drain_ms, or to the second signal. */
static void drain(daemon_state *d)
{
    struct timespec t0;
    bool hurry = false;
    int64_t most = d->conf->drain_ms;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    turbod_notify("STOPPING=1\nSTATUS=draining");
    turbod_services_drain(&d->models);
    turbod_http_quiesce(d->http);
    int n = turbod_http_answering(d->http);
    if (n)
        turbod_log(TURBO_LOG_INFO,
                   "stopping: waiting at most %.1f s (drain_ms) for %d running answer%s; a second "
                   "signal, such as Ctrl-C, stops at once",
                   (double)most / 1000, n, n == 1 ? "" : "s");
    else
        turbod_log(TURBO_LOG_INFO, "stopping");
    while (!hurry && !turbod_http_drained(d->http) && seconds_since(&t0) * 1000 < (double)most) {
        struct pollfd p = {.fd = d->signals, .events = POLLIN};
        if (poll(&p, 1, TICK_MS) > 0) {
            int sig = turbod_signals_next(d->signals);
            hurry = sig == SIGTERM || sig == SIGINT;
        }
    }
    n = turbod_http_answering(d->http);
    if (n || hurry)
        turbod_log(TURBO_LOG_WARN, "stopping %s; %d answer%s with an error",
                   hurry ? "at once" : "after drain_ms", n, n == 1 ? " ends" : "s end");
}

/* How often the main thread looks round: for an engine that failed, the watchdog and the throughput line. */
static int tick_ms(const turbod_conf *c, int beat)
{
    int tick = beat > 0 && beat < LOOK_MS ? beat : LOOK_MS;
    return c->log_stats_ms > 0 && c->log_stats_ms < tick ? (int)c->log_stats_ms : tick;
}

/* Serves until the end; returns the exit code. */
static int serve(daemon_state *d)
{
    bool loading = true;
    int beat = turbod_notify_watchdog_ms();
    for (;;) {
        int tick = tick_ms(d->conf, beat);
        struct pollfd p[2] = {{.fd = d->signals, .events = POLLIN},
                              {.fd = loading ? d->loaded : -1, .events = POLLIN}};
        poll(p, 2, tick);
        if (loading && (p[1].revents & POLLIN)) {
            pthread_join(d->loader, NULL);
            loading = false;
            if (d->load_status) {
                turbod_log(TURBO_LOG_ERROR, "%s", d->load_err.text);
                abandon(d);
                return turbod_exit_code(d->load_status);
            }
            ready(d);
        }
        for (int sig; (sig = turbod_signals_next(d->signals));) {
            if (sig == SIGHUP) {
                reload(d);
            } else if (loading) { /* loading cannot be interrupted; nothing of worth is lost */
                turbod_log(TURBO_LOG_INFO, "stopped while loading");
                turbod_notify("STOPPING=1");
                turbod_cache_abandon();
                _exit(0);
            } else {
                drain(d);
                abandon(d);
                turbod_log(TURBO_LOG_INFO, "stopped");
                return 0;
            }
        }
        if (!loading)
            report(d);
        if (beat > 0)
            watchdog(d);
        if (!loading && engines_dead(d)) {
            turbod_log(TURBO_LOG_ERROR,
                       "the engine has failed; exiting so that it can be restarted");
            abandon(d);
            return EX_ENGINE;
        }
    }
}

static int usage_error(const turbo_err *err, turbo_status st)
{
    fprintf(stderr, "turbod: %s\n", err->text);
    return st == TURBOD_EUSAGE ? EX_USAGE : turbod_exit_code(st);
}

int main(int argc, char **argv)
{
    daemon_state d = {.argc = argc, .argv = argv, .signals = -1, .loaded = -1};
    turbo_err err = {{0}};
    clock_gettime(CLOCK_MONOTONIC, &d.t0);
    turbo_status st = turbod_process_begin(&err);
    if (!st)
        st = turbod_conf_load(argc, argv, own_flag, &d, &d.conf, &err);
    if (d.help || d.version) { /* also beside a conf that is wrong */
        if (d.help)
            print_help();
        else
            turbod_version_print(stdout, "turbod");
        turbod_conf_free(st ? NULL : d.conf);
        return 0;
    }
    if (st)
        return usage_error(&err, st);
    turbod_log_level(turbod_log_level_of(d.conf->log_level));
    int code = 0;
    if (d.print || d.test) {
        if (d.print)
            turbod_conf_print(d.conf, stdout);
        else
            st = turbod_preflight(d.conf, stdout, &err);
        if (st)
            fprintf(stderr, "turbod: %s\n", err.text);
        code = turbod_exit_code(st);
    } else if ((st = start(&d, &err))) {
        turbod_log(TURBO_LOG_ERROR, "%s", err.text);
        abandon(&d);
        code = turbod_exit_code(st);
    } else {
        code = serve(&d);
    }
    turbod_conf_free(d.conf);
    turbod_retired_free(d.retired);
    return code;
}
