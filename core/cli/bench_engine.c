/* core/cli/bench_engine.c: many requests to the engine of this process, and the machine's read bandwidth.
 * Main thread; events come on the engine thread, which only notes times. Must not know what is measured. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/checked.h"
#include "util/err.h"

#define READ_BYTES ((size_t)256 << 20)

/* Closed while requests are being submitted: the engine waits in its first event, so that no request is done
 * before another one was made, however the machine shares its cores. */
typedef struct gate {
    pthread_mutex_t mu;
    pthread_cond_t opened;
    bool open;
} gate;

static void gate_open(gate *g)
{
    pthread_mutex_lock(&g->mu);
    g->open = true;
    pthread_cond_broadcast(&g->opened);
    pthread_mutex_unlock(&g->mu);
}

static void gate_pass(gate *g)
{
    pthread_mutex_lock(&g->mu);
    while (!g->open)
        pthread_cond_wait(&g->opened, &g->mu);
    pthread_mutex_unlock(&g->mu);
}

typedef struct member {
    turbod_request *req;
    double *times; /* [n_out] of its tokens; engine thread until ended */
    int32_t n, most;
    turbod_timings timings;
    turbo_status status;
    char message[160];
    _Atomic int *left; /* of the crowd */
    gate *gate; /* NULL: events do not wait */
} member;

/* [engine thread] */
static void on_event(void *ctx, const turbod_event *ev)
{
    member *m = ctx;
    if (m->gate)
        gate_pass(m->gate);
    if (ev->kind == TURBOD_EV_TOKEN) {
        if (m->n < m->most)
            m->times[m->n++] = cli_now();
        return;
    }
    m->timings = ev->timings;
    if (ev->kind == TURBOD_EV_ERROR) {
        m->status = ev->status;
        snprintf(m->message, sizeof m->message, "%s", ev->message ? ev->message : "no reason");
    }
    atomic_fetch_sub(m->left, 1);
}

static turbo_status submit(turbod_service *s, const cli_ask *q, member *m, int32_t *ids,
                           turbo_err *err)
{
    uint64_t state = q->seed;
    int32_t V = turbod_engine_facts_of(s->engine)->model.vocab;
    for (int32_t i = 0; i < q->n_in; i++)
        ids[i] = (int32_t)(cli_random(&state) % (uint64_t)V);
    turbod_request_spec spec = {
        .prompt = ids,
        .n_prompt = q->n_in,
        .max_tokens = q->n_out,
        .ignore_eos = true,
        .on_event = on_event,
        .ctx = m,
    };
    turbod_sample_defaults(&spec.params);
    spec.params.temperature = 0;
    return turbod_engine_submit(s->engine, &spec, &m->req, err);
}

static void wait_all(member *all, size_t n, _Atomic int *left, bool *interrupted)
{
    struct timespec nap = {0, 500000};
    while (atomic_load(left) > 0) {
        nanosleep(&nap, NULL);
        if (!cli_interrupted())
            continue;
        *interrupted = true;
        for (size_t i = 0; i < n; i++)
            if (all[i].req)
                turbod_request_cancel(all[i].req);
    }
}

/* The time in which every request was sampling, and how many tokens one of them got in it. */
static void sum_up(const member *all, size_t n, cli_crowd *c)
{
    double from = 0, to = 1e300;
    c->prompt_ms = all[0].timings.prompt_ms;
    for (size_t i = 0; i < n; i++) {
        const member *m = &all[i];
        c->in += m->timings.prompt_n;
        c->cached += m->timings.cached_n;
        c->out += m->n;
        if (!m->n)
            continue;
        from = m->times[0] > from ? m->times[0] : from;
        to = m->times[m->n - 1] < to ? m->times[m->n - 1] : to;
        c->end = m->times[m->n - 1] > c->end ? m->times[m->n - 1] : c->end;
    }
    double first = 0, last = 0;
    int32_t inside = 0;
    for (int32_t k = 0; k < all[0].n; k++) {
        double t = all[0].times[k];
        if (t < from || t > to)
            continue;
        first = inside++ ? first : t;
        last = t;
    }
    c->steps = inside > 1 ? inside - 1 : 0;
    c->window = last - first;
}

static turbo_status crowd(turbod_service *s, const cli_ask *asks, size_t n, member *all,
                          int32_t *ids, gate *together, cli_crowd *out, turbo_err *err)
{
    _Atomic int left = 0;
    bool interrupted = false;
    turbo_status st = TURBO_OK;
    out->begin = cli_now();
    for (size_t i = 0; !st && i < n; i++) {
        all[i].most = asks[i].n_out;
        all[i].left = &left;
        all[i].gate = together;
        all[i].times = calloc((size_t)asks[i].n_out, sizeof(double));
        if (!all[i].times)
            st = turbod_err(err, TURBO_ENOMEM, "no memory for %d times", asks[i].n_out);
        atomic_fetch_add(&left, 1);
        if (!st)
            st = submit(s, &asks[i], &all[i], ids, err);
        if (st)
            atomic_fetch_sub(&left, 1);
    }
    for (size_t i = 0; st && i < n; i++)
        if (all[i].req)
            turbod_request_cancel(all[i].req);
    if (together)
        gate_open(together);
    wait_all(all, n, &left, &interrupted);
    for (size_t i = 0; !st && !interrupted && i < n; i++)
        if (all[i].status)
            st = turbod_err(err, all[i].status, "%s", all[i].message);
    if (!st && interrupted)
        st = turbod_err(err, TURBO_ECANCELLED, "interrupted");
    if (!st)
        sum_up(all, n, out);
    return st;
}

static turbo_status run_crowd(turbod_service *s, const cli_ask *asks, size_t n, gate *together,
                              cli_crowd *out, turbo_err *err)
{
    int32_t longest = 1;
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < n; i++)
        longest = asks[i].n_in > longest ? asks[i].n_in : longest;
    member *all = calloc(n, sizeof *all);
    int32_t *ids = calloc((size_t)longest, sizeof *ids);
    turbo_status st = all && ids ? crowd(s, asks, n, all, ids, together, out, err)
                                 : turbod_err(err, TURBO_ENOMEM, "no memory for %zu requests", n);
    for (size_t i = 0; all && i < n; i++) {
        turbod_request_release(all[i].req);
        free(all[i].times);
    }
    free(all);
    free(ids);
    return st;
}

turbo_status cli_crowd_run(turbod_service *s, const cli_ask *asks, size_t n, cli_crowd *out,
                           turbo_err *err)
{
    return run_crowd(s, asks, n, NULL, out, err);
}

turbo_status cli_crowd_decode(turbod_service *s, int32_t batch, int32_t context, int32_t steps,
                              uint64_t seed, cli_crowd *out, turbo_err *err)
{
    cli_ask *asks = calloc((size_t)batch, sizeof *asks);
    if (!asks)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a batch of %d", batch);
    for (int32_t i = 0; i < batch; i++)
        asks[i] = (cli_ask){context, 1, cli_mix(seed + (uint64_t)i)};
    turbo_status st = run_crowd(s, asks, (size_t)batch, NULL, out, err);
    for (int32_t i = 0; i < batch; i++)
        asks[i].n_out = steps + CLI_CROWD_SLACK;
    if (!st) {
        gate together = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
        st = run_crowd(s, asks, (size_t)batch, &together, out, err);
    }
    free(asks);
    if (!st && out->steps < steps / 2)
        st = turbod_err(err, TURBO_ELIMIT,
                        "batch %d at context %d: all of them ran together for %d steps only; raise "
                        "max_batch_size or cache_max_entry_count",
                        batch, context, out->steps);
    return st;
}

/* ---- read bandwidth ------------------------------------------------------------------------------------- */

typedef struct reader {
    pthread_t thread;
    const char *p;
    size_t n;
    uint64_t sum;
    bool started;
} reader;

static void *read_part(void *ctx)
{
    reader *r = ctx;
    uint64_t a = 0, b = 0, c = 0, d = 0, v[8];
    for (size_t i = 0; i + sizeof v <= r->n; i += sizeof v) {
        __builtin_prefetch(r->p + i + 2048);
        memcpy(v, r->p + i, sizeof v);
        a |= v[0] | v[4];
        b |= v[1] | v[5];
        c |= v[2] | v[6];
        d |= v[3] | v[7];
    }
    r->sum = a | b | c | d;
    return NULL;
}

double cli_read_rate(int threads)
{
    char *p = malloc(READ_BYTES);
    size_t n = threads < 1 ? 1 : (size_t)threads, part = READ_BYTES / n / 64 * 64;
    reader *all = calloc(n, sizeof *all);
    double seconds = 0;
    if (p && all) {
        memset(p, 1, READ_BYTES);
        double t = cli_now();
        for (size_t i = 0; i < n; i++) {
            all[i].p = p + i * part;
            all[i].n = part;
            all[i].started = i && !pthread_create(&all[i].thread, NULL, read_part, &all[i]);
            if (i && !all[i].started)
                (void)read_part(&all[i]);
        }
        (void)read_part(&all[0]);
        for (size_t i = 1; i < n; i++)
            if (all[i].started)
                pthread_join(all[i].thread, NULL);
        seconds = cli_now() - t;
    }
    free(p);
    free(all);
    return seconds > 0 ? (double)(part * n) / seconds : 0;
}
