/* core/net/exchange.c: the life of one request with its answer, and the workers.
 *
 * References: one of the connection (until its completed callback), one of a queued or running job,
 * one of each engine request until its terminal event. Whoever gives the last one back frees it. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "net/gen.h"
#include "net/net.h"
#include "util/json.h"

int64_t turbod_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void turbod_exchange_ref(turbod_exchange *x)
{
    atomic_fetch_add_explicit(&x->refs, 1, memory_order_relaxed);
}

bool turbod_exchange_try_ref(turbod_exchange *x)
{
    int n = atomic_load(&x->refs);
    while (n > 0)
        if (atomic_compare_exchange_weak(&x->refs, &n, n + 1))
            return true;
    return false;
}

void turbod_exchange_release(turbod_exchange *x)
{
    if (!x || atomic_fetch_sub_explicit(&x->refs, 1, memory_order_acq_rel) != 1)
        return;
    turbod_http *h = x->http;
    turbod_gen_free(x->gen);
    atomic_fetch_sub(&h->body_bytes, atomic_load(&x->charged));
    turbod_buf_free(&x->body);
    turbod_buf_free(&x->reply.body);
    turbod_buf_free(&x->out);
    turbod_buf_free(&x->rest);
    turbod_rules_release(x->rules);
    pthread_mutex_destroy(&x->mu);
    free(x->raw_target);
    pthread_mutex_lock(&h->mu);
    if (x->prev)
        x->prev->next = x->next;
    else
        h->exchanges = x->next;
    if (x->next)
        x->next->prev = x->prev;
    h->n_exchanges--;
    pthread_mutex_unlock(&h->mu);
    free(x);
}

void turbod_exchange_wake_locked(turbod_exchange *x)
{
    if (!x->suspended || x->over)
        return;
    if (x->direct && !x->gone && (x->rest.len || !turbod_gen_over(x->gen))) {
        turbod_writer_push_locked(x);
        return;
    }
    x->suspended = x->direct = false;
    MHD_resume_connection(x->conn);
    turbod_loop_poke(x->client->loop); /* the library wakes only threads of its own */
}

int turbod_exchange_phase_locked(const turbod_exchange *x)
{
    const turbod_gen *g = x->gen;
    int stage = atomic_load(&x->stage);
    if (stage <= STAGE_BODY)
        return LEFT_BODY;
    if (stage == STAGE_REPLY && !(g && g->n_open > 0))
        return LEFT_SEND;
    if (x->t_first)
        return LEFT_DECODE;
    for (int i = 0; g && i < g->n_choices; i++)
        if (g->choices[i].request && turbod_request_started(g->choices[i].request))
            return LEFT_PREFILL;
    return LEFT_QUEUE;
}

void turbod_exchange_gone(turbod_exchange *x)
{
    pthread_mutex_lock(&x->mu);
    if (x->left == LEFT_NONE)
        x->left = turbod_exchange_phase_locked(x);
    x->gone = true;
    if (x->gen)
        turbod_gen_cancel_locked(x->gen);
    /* While a worker has it, its end will wake it: until then x->reply is the worker's. */
    if (x->job_done)
        turbod_exchange_wake_locked(x);
    pthread_mutex_unlock(&x->mu);
}

/* ---- workers ---------------------------------------------------------------------------------------- */

bool turbod_job_push(turbod_http *h, turbod_exchange *x)
{
    bool pictures = turbod_json_spells(x->body.ptr, x->body.len, "image_url");
    pthread_mutex_lock(&h->job_mu);
    if (atomic_load(&h->stopping)) {
        pthread_mutex_unlock(&h->job_mu);
        return false;
    }
    turbod_exchange_ref(x);
    x->next_job = NULL;
    turbod_lane *l = &h->lanes[pictures ? LANE_PICTURES : LANE_TEXT];
    if (l->tail)
        l->tail->next_job = x;
    else
        l->head = x;
    l->tail = x;
    pthread_cond_signal(&l->wake);
    pthread_mutex_unlock(&h->job_mu);
    return true;
}

static turbod_exchange *job_take(turbod_lane *l)
{
    turbod_http *h = l->http;
    pthread_mutex_lock(&h->job_mu);
    while (!l->head && !atomic_load(&h->stopping))
        pthread_cond_wait(&l->wake, &h->job_mu);
    turbod_exchange *x = l->head;
    if (x) {
        l->head = x->next_job;
        if (!l->head)
            l->tail = NULL;
    }
    pthread_mutex_unlock(&h->job_mu);
    return x;
}

static bool left_already(turbod_exchange *x)
{
    pthread_mutex_lock(&x->mu);
    bool gone = x->gone;
    pthread_mutex_unlock(&x->mu);
    return gone;
}

static void run_job(turbod_exchange *x)
{
    if (atomic_load(&x->http->ending))
        turbod_reply_error(x, 503, "shutting_down", NULL, "the server is shutting down");
    else if (left_already(x))
        turbod_reply_error(x, 400, "client_gone", NULL, "the client left");
    else
        x->route->handle(x);
    turbod_buf_free(&x->body);
    atomic_fetch_sub(&x->http->body_bytes, atomic_exchange(&x->charged, 0));
    /* A generation that is not streamed becomes ready with its last event. */
    pthread_mutex_lock(&x->mu);
    x->job_done = true;
    if (x->reply.status || turbod_gen_over(x->gen))
        x->reply_ready = true;
    if (x->reply_ready || x->gone)
        turbod_exchange_wake_locked(x);
    pthread_mutex_unlock(&x->mu);
}

void *turbod_worker_main(void *arg)
{
    turbod_exchange *x;
    pthread_setname_np(pthread_self(), "turbo-worker");
    while ((x = job_take(arg))) {
        run_job(x);
        turbod_exchange_release(x);
    }
    return NULL;
}
