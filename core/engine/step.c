/* core/engine/step.c: one pass: arrivals and cancels, plan, launch, and the sampling of what has landed.
 * Engine thread only. Nothing here allocates. */
#include "engine/state.h"
#include "sched/holding.h"
#include "sched/steer.h"

#include "util/err.h"
#include "util/log.h"

static void left_queue(turbod_engine *e, turbod_request *r)
{
    atomic_fetch_sub(&r->flow->n_queued, 1);
    atomic_fetch_sub(&e->n_queued, 1);
}

/* What is still computed and drawn for r is nobody's. */
static void disown(turbod_flight *f, const turbod_request *r)
{
    for (int32_t i = 0; i < f->n_rows; i++)
        if (f->rows[i] == r)
            f->rows[i] = NULL;
    for (int32_t i = 0; i < f->n_items; i++)
        if (f->items[i] == r)
            f->items[i] = NULL;
}

void turbod_end(turbod_engine *e, turbod_request *r, const turbod_event *ev, int end_kind)
{
    bool was_queued = !r->started;
    disown(&e->flights[0], r);
    disown(&e->flights[1], r);
    turbod_sched_remove(&e->sched, r);
    atomic_fetch_add_explicit(&e->metrics.ended[end_kind], 1, memory_order_relaxed);
    turbod_hist_add(&e->metrics.e2e, (double)(turbod_now() - r->t_submit) * 1e-9);
    if (was_queued)
        left_queue(e, r);
    atomic_fetch_sub(&e->n_open, 1);
    if (r->steer && r->steer->finish)
        r->steer->finish(r->steer, ev);
    r->on_event(r->ctx, ev);
    turbod_request_release(r);
}

static turbod_timings timings_of(const turbod_request *r)
{
    int64_t now = turbod_now();
    return (turbod_timings){
        .prompt_n = r->n_prompt,
        .cached_n = r->cached,
        .predicted_n = r->n_tokens - r->unknown - r->n_prompt,
        .queue_ms = (double)((r->t_start ? r->t_start : now) - r->t_submit) * 1e-6,
        .prompt_ms = r->t_first ? (double)(r->t_first - r->t_start) * 1e-6 : 0,
        .predicted_ms = r->t_first ? (double)(r->t_last - r->t_first) * 1e-6 : 0,
    };
}

void turbod_fail(turbod_engine *e, turbod_request *r, turbo_status status, const char *message)
{
    turbod_event ev = {
        .kind = TURBOD_EV_ERROR,
        .status = status,
        .message = message,
        .timings = timings_of(r),
        .stop_index = -1,
        .stop_token = -1,
    };
    turbod_end(e, r, &ev, status == TURBO_ECANCELLED ? TURBOD_END_ABORT : TURBOD_END_ERROR);
}

static void expect_deadline(turbod_engine *e, int64_t t)
{
    if (t && t < e->next_deadline)
        e->next_deadline = t;
}

void turbod_take_arrivals(turbod_engine *e, int64_t wait_ns)
{
    turbod_request *list = turbod_inbox_take(&e->inbox, wait_ns);
    while (list) {
        turbod_request *r = list;
        list = r->next;
        expect_deadline(e, r->deadline);
        expect_deadline(e, r->queue_deadline);
        turbod_sched_arrive(&e->sched, r);
    }
}

/* Ends what was cancelled or ran out of time. */
static void reap_one(turbod_engine *e, turbod_request *r, int64_t now)
{
    if (atomic_load_explicit(&r->cancelled, memory_order_acquire))
        turbod_fail(e, r, TURBO_ECANCELLED, "the request was cancelled");
    else if (r->deadline && now >= r->deadline)
        turbod_fail(e, r, TURBO_EBUSY, "request_timeout_ms passed before the answer was complete");
    else if (r->queue_deadline && !r->t_start && now >= r->queue_deadline)
        turbod_fail(e, r, TURBO_EBUSY, "queue_timeout_ms passed before the request could start");
    else {
        expect_deadline(e, r->deadline);
        if (!r->t_start)
            expect_deadline(e, r->queue_deadline);
    }
}

/* Looks through all requests, but only when one was cancelled or a deadline has come. */
static void reap(turbod_engine *e)
{
    uint64_t cancels = atomic_load_explicit(&e->inbox.cancels, memory_order_acquire);
    int64_t now = turbod_now();
    if (cancels == e->seen_cancels && now < e->next_deadline)
        return;
    e->seen_cancels = cancels;
    e->next_deadline = INT64_MAX;
    for (turbod_flow *f = e->sched.flows, *right; f; f = right) {
        right = f->right; /* a flow leaves the list with its last request */
        for (turbod_request *r = f->head, *next; r; r = next) {
            next = r->next;
            reap_one(e, r, now);
        }
    }
    for (int32_t i = e->sched.n_running; i-- > 0;)
        reap_one(e, e->sched.running[i], now);
}

void turbod_publish_gauges(turbod_engine *e)
{
    turbod_metrics *m = &e->metrics;
    atomic_store_explicit(&m->running, e->sched.n_running, memory_order_relaxed);
    atomic_store_explicit(&m->waiting, e->sched.n_waiting, memory_order_relaxed);
    atomic_store_explicit(&m->kv_free, turbok_kv_pool_free_count(e->pool), memory_order_relaxed);
    atomic_store_explicit(&m->swap_free, turbok_kv_swap_vacant(e->pool), memory_order_relaxed);
    atomic_store_explicit(&m->kv_cached, turbok_kv_pool_cached_count(e->pool),
                          memory_order_relaxed);
    atomic_store_explicit(&e->last_beat, turbod_now(), memory_order_relaxed);
}

/* A first step counts as the end of waiting. */
static void note_starts(turbod_engine *e)
{
    for (int32_t i = 0; i < e->sched.n_items; i++) {
        turbod_request *r = e->sched.items[i].req;
        if (r->started)
            continue;
        atomic_store_explicit(&r->started, true, memory_order_release);
        left_queue(e, r);
        turbod_hist_add(&e->metrics.queue_time, (double)(r->t_start - r->t_submit) * 1e-9);
        if (e->prefix_caching)
            atomic_fetch_add_explicit(&e->metrics.prefix_queries, (uint64_t)r->n_prompt,
                                      memory_order_relaxed);
        atomic_fetch_add_explicit(&e->metrics.prefix_hits, (uint64_t)r->cached,
                                  memory_order_relaxed);
        atomic_fetch_add_explicit(&e->metrics.prompt_tokens, (uint64_t)r->n_prompt,
                                  memory_order_relaxed);
    }
}

void turbod_fail_all(turbod_engine *e, turbo_status status, const char *message)
{
    while (e->sched.n_running)
        turbod_fail(e, e->sched.running[0], status, message);
    while (e->sched.flows)
        turbod_fail(e, e->sched.flows->head, status, message);
}

static const char broken[] = "the model could not compute this step; the server needs a restart";

/* The caches are unknown now, and a plugin or device that failed once cannot be trusted with the rest: the
 * engine stops serving and /health says so. */
static void give_up(turbod_engine *e, const char *what, const turbo_err *err)
{
    turbod_log(TURBO_LOG_ERROR, "%s failed: %s", what, err->text);
    atomic_store(&e->failed, true);
    for (int32_t i = 0; i < e->sched.n_running; i++)
        turbod_holding_taint(e->sched.running[i], e->pool);
    turbod_fail_all(e, TURBO_EINTERNAL, broken);
    e->flight = NULL;
    turbod_sched_landed(&e->sched);
    turbod_publish_gauges(e);
}

/* A device that breaks while nobody asks anything is noticed all the same. */
static void look_after_device(turbod_engine *e)
{
    turbo_err err = {{0}};
    if (!atomic_load(&e->failed) && turbok_device_wait(e->device, &err))
        give_up(e, "the device", &err);
}

/* Starts the planned step. On a CPU it is done then. */
static turbo_status launch(turbod_engine *e, turbod_flight *f, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    note_starts(e);
    if (e->media) /* pictures are no part of what the pace learns */
        st = turbod_media_compute(e->media, &e->sched, turbok_device_exec(e->device), err);
    f->t0 = turbod_now();
    if (st)
        return st;
    turbod_batch_build(&e->batch, &e->sched);
    st = turbod_place_rows(e, f, err);
    if (!st)
        st = turbod_engine_forward(e, &e->batch.b, f->drawn, e->logits, err);
    if (st)
        return st;
    turbod_sched_started(&e->sched);
    f->n_items = e->sched.n_items;
    for (int32_t i = 0; i < f->n_items; i++)
        f->items[i] = e->sched.items[i].req;
    f->n_decodes = e->sched.n_decodes;
    f->n_prompt = e->sched.n_tokens - e->sched.n_decodes;
    atomic_fetch_add_explicit(&e->metrics.steps, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&e->metrics.prefill_tokens, (uint64_t)f->n_prompt,
                              memory_order_relaxed);
    turbod_hist_add(&e->metrics.step_tokens, (double)e->batch.b.n_tokens);
    return TURBO_OK;
}

/* Waits for a step. What was expected of it is known then, and others may find what it computed. */
static turbo_status land(turbod_engine *e, turbod_flight *f, turbo_err *err)
{
    turbo_status st = turbok_step_wait(e->device, f->drawn, f->n_rows, err);
    if (st)
        return st;
    for (int32_t i = 0; i < f->n_rows; i++) {
        turbod_request *r = f->rows[i];
        if (r && r->unknown)
            r->tokens[r->n_tokens - 1] = f->drawn[i].token > 0 ? f->drawn[i].token : 0;
    }
    for (int32_t i = 0; i < f->n_items; i++) {
        turbod_request *r = f->items[i];
        if (r && r->phase == TURBOD_RUNNING)
            turbod_holding_advance(r, e->pool, turbod_sched_known(&e->sched, r));
    }
    f->n_items = 0;
    int64_t from = f->t0 > e->t_landed ? f->t0 : e->t_landed;
    turbod_sample_rows(e, f);
    e->t_landed = turbod_now();
    turbod_pace_note(&e->sched.pace, f->n_decodes, f->n_prompt, e->t_landed - from);
    return TURBO_OK;
}

/* Plans a step, starts it, and lets the step before it land meanwhile, if that one is still on its way. The new
 * one lands in the same pass, unless the device draws its rows and others will follow it. */
static bool step(turbod_engine *e)
{
    turbod_flight *before = e->flight, *f = NULL;
    turbo_err err = {{0}};
    turbo_status st = TURBO_OK;
    if (atomic_load(&e->failed)) { /* who was let in at the last moment */
        turbod_fail_all(e, TURBO_EINTERNAL, broken);
        return false;
    }
    reap(e);
    if (before)
        turbod_expect_rows(before);
    turbod_sched_plan(&e->sched);
    turbod_publish_gauges(e);
    if (!before && !e->sched.n_items) {
        look_after_device(e);
        return false;
    }
    if (e->sched.n_items) {
        f = &e->flights[before == e->flights];
        st = launch(e, f, &err);
    }
    if (!f)
        turbod_sched_landed(&e->sched);
    if (!st && before)
        st = land(e, before, &err);
    if (!st && f && (!f->ahead || !e->sched.n_running)) {
        turbod_sched_landed(&e->sched);
        st = land(e, f, &err);
        f = NULL;
    }
    e->flight = f;
    if (st)
        give_up(e, "forward", &err);
    turbod_publish_gauges(e);
    return true;
}

bool turbod_engine_step(turbod_engine *e)
{
    bool busy = step(e);
#ifdef TURBOD_DEBUG
    if (!turbod_sched_balanced(&e->sched)) {
        turbod_log(TURBO_LOG_ERROR, "KV blocks do not add up: free %d of %d",
                   turbok_kv_pool_free_count(e->pool), turbok_kv_pool_total(e->pool));
        __builtin_trap();
    }
#endif
    return busy;
}
