/* core/net/http.c: starting, reloading and stopping the server. Main thread; see http.h. */
#include "net/http.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "net/gen.h"
#include "net/net.h"
#include "net/sessions.h"
#include "util/err.h"
#include "util/log.h"

#define END_MS 3000  /* answers that were told to end get so long to reach their clients */
#define LAST_MS 5000 /* and the engine so long to hand back what was cancelled */

turbod_rules *turbod_http_rules(turbod_http *h)
{
    pthread_mutex_lock(&h->mu);
    turbod_rules *r = h->rules;
    atomic_fetch_add(&r->refs, 1);
    pthread_mutex_unlock(&h->mu);
    return r;
}

static void nap(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&ts, NULL);
}

static turbo_status start_workers(turbod_http *h, turbo_err *err)
{
    for (int i = 0; i < LANES * TURBOD_N_WORKERS; i++, h->n_workers++)
        if (pthread_create(&h->workers[i], NULL, turbod_worker_main, &h->lanes[i % LANES]))
            return turbod_err(err, TURBO_ENOMEM, "cannot start the HTTP workers");
    return TURBO_OK;
}

static void destroy(turbod_http *h)
{
    turbod_door_close(h);
    turbod_rules_release(h->rules);
    turbod_sessions_free(h);
    free(h->by_fd);
    pthread_cond_destroy(&h->writer_wake);
    pthread_mutex_destroy(&h->writer_mu);
    pthread_mutex_destroy(&h->session_mu);
    pthread_mutex_destroy(&h->mu);
    pthread_mutex_destroy(&h->job_mu);
    for (int i = 0; i < LANES; i++)
        pthread_cond_destroy(&h->lanes[i].wake);
    free(h);
}

turbo_status turbod_http_start(turbod_services *models, turbod_http **out, turbo_err *err)
{
    const turbod_conf *c = models->at[0].conf;
    turbod_http *h = calloc(1, sizeof *h);
    if (!h)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the server");
    h->models = models;
    h->listen_fd = h->epoll_fd = h->wake_fd = h->spare_fd = -1;
    h->max_connections = (int)c->max_connections;
    h->max_sessions = (int)c->max_sessions;
    h->max_per_ip = (int)c->max_connections_per_ip;
    pthread_mutex_init(&h->mu, NULL);
    pthread_mutex_init(&h->session_mu, NULL);
    pthread_mutex_init(&h->job_mu, NULL);
    for (int i = 0; i < LANES; i++) {
        h->lanes[i].http = h;
        pthread_cond_init(&h->lanes[i].wake, NULL);
    }
    pthread_mutex_init(&h->writer_mu, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&h->writer_wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    turbo_status st = turbod_rules_new(c, &h->rules, err);
    if (!st)
        st = turbod_door_open(h, c, err);
    if (!st)
        st = turbod_serve_start(h, err);
    if (!st)
        st = start_workers(h, err);
    if (!st)
        st = turbod_writer_start(h, err);
    if (!st)
        st = turbod_door_start(h, err);
    if (st) {
        turbod_http_stop(h);
        return st;
    }
    *out = h;
    return TURBO_OK;
}

int turbod_http_port(const turbod_http *h)
{
    return h->port;
}

void turbod_http_quiesce(turbod_http *h)
{
    atomic_store(&h->quiet, true);
    turbod_door_poke(h);
}

static int count(turbod_http *h, const int *what)
{
    pthread_mutex_lock(&h->mu);
    int n = *what;
    pthread_mutex_unlock(&h->mu);
    return n;
}

int turbod_http_answering(turbod_http *h)
{
    return count(h, &h->n_answering);
}

bool turbod_http_drained(turbod_http *h)
{
    pthread_mutex_lock(&h->mu);
    bool done = h->n_answering == 0 && (h->listen_fd < 0 || !h->door_started);
    for (turbod_client *c = h->clients; c && done;
         c = c->next) /* a request on its way to its exchange? */
        done = !(c->phase == CLIENT_PEEK ||
                 (c->phase == CLIENT_DAEMON && !c->n_requests && !c->gone && !c->cut));
    pthread_mutex_unlock(&h->mu);
    return done;
}

turbo_status turbod_http_reload(turbod_http *h, const turbod_conf *conf, turbo_err *err)
{
    turbod_rules *fresh = NULL, *old;
    turbo_status st = turbod_rules_new(conf, &fresh, err);
    if (st)
        return st;
    pthread_mutex_lock(&h->mu);
    old = h->rules;
    h->rules = fresh;
    pthread_mutex_unlock(&h->mu);
    turbod_rules_release(old);
    return TURBO_OK;
}

/* The exchanges that are alive now, each with a reference. They are collected first, because their
 * locks come after ours. */
static turbod_exchange **collect(turbod_http *h, int *n)
{
    *n = 0;
    pthread_mutex_lock(&h->mu);
    turbod_exchange **list = calloc((size_t)h->n_exchanges + 1, sizeof *list);
    for (turbod_exchange *x = h->exchanges; list && x; x = x->next)
        if (turbod_exchange_try_ref(x))
            list[(*n)++] = x;
    pthread_mutex_unlock(&h->mu);
    return list;
}

/* Every generation that runs ends with an error; cut also drops all connections. */
static void end_answers(turbod_http *h, bool cut)
{
    int n;
    turbod_exchange **list = collect(h, &n);
    if (cut) {
        pthread_mutex_lock(&h->mu);
        for (turbod_client *c = h->clients; c; c = c->next)
            if (c->phase == CLIENT_DAEMON)
                shutdown(c->fd, SHUT_RDWR);
        pthread_mutex_unlock(&h->mu);
    }
    for (int i = 0; i < n; i++) {
        pthread_mutex_lock(&list[i]->mu);
        if (list[i]->gen)
            turbod_gen_fail_locked(list[i]->gen, 503, "shutting_down", "the server is shutting down");
        pthread_mutex_unlock(&list[i]->mu);
        if (cut)
            turbod_exchange_gone(list[i]);
        turbod_exchange_release(list[i]);
    }
    free(list);
}

int turbod_http_abort(turbod_http *h, const char *id, const char *label)
{
    int n, aborted = 0;
    turbod_exchange **list = collect(h, &n);
    if (!list)
        return -1;
    for (int i = 0; i < n; i++) {
        turbod_exchange *x = list[i];
        pthread_mutex_lock(&x->mu);
        bool ours = !label || !strcmp(x->label, label);
        bool named = !id || !strcmp(x->id, id) || (x->gen && !strcmp(x->gen->id, id));
        if (ours && named && x->gen && !x->gen->fail_status && x->gen->n_open) {
            turbod_gen_fail_locked(x->gen, 400, "request_aborted", "the request was aborted");
            aborted++;
        }
        pthread_mutex_unlock(&x->mu);
        turbod_exchange_release(x);
    }
    free(list);
    return aborted;
}

void turbod_http_stop(turbod_http *h)
{
    if (!h)
        return;
    atomic_store(&h->quiet, true);
    atomic_store(&h->ending, true);
    if (h->door_started)
        turbod_door_poke(h);
    for (int64_t t0 = turbod_ms(), t = t0; !turbod_http_drained(h) && t - t0 < END_MS;
         t = turbod_ms()) {
        end_answers(h, t - t0 > END_MS / 2);
        nap(5);
    }
    /* Workers finish what they have, then the door ends: nobody resumes or adds a connection. */
    pthread_mutex_lock(&h->job_mu);
    atomic_store(&h->stopping, true);
    for (int i = 0; i < LANES; i++)
        pthread_cond_broadcast(&h->lanes[i].wake);
    pthread_mutex_unlock(&h->job_mu);
    for (int i = 0; i < h->n_workers; i++)
        pthread_join(h->workers[i], NULL);
    turbod_writer_join(h);
    end_answers(h, true);
    if (h->door_started) {
        turbod_door_poke(h);
        pthread_join(h->door, NULL);
        h->door_started = false;
    }
    for (int i = 0; i < 2; i++) {
        turbod_loop_stop(h->loops[i]);
        h->loops[i] = NULL;
    }
    for (int64_t t0 = turbod_ms(); count(h, &h->n_exchanges) && turbod_ms() - t0 < LAST_MS;)
        nap(5);
    if (count(h, &h->n_exchanges)) { /* the engine still holds them: freeing would be worse */
        turbod_log(TURBO_LOG_ERROR, "%d requests never ended", h->n_exchanges);
        return;
    }
    destroy(h);
}
