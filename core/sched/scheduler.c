/* core/sched/scheduler.c: see scheduler.h. */
#include "sched/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "util/err.h"

turbo_status turbod_sched_init(turbod_sched *s, turbok_kv_pool *pool, turbod_metrics *m,
                               int32_t max_batch, int32_t max_step_tokens, turbo_err *err)
{
    *s = (turbod_sched){
        .pool = pool,
        .metrics = m,
        .max_batch = max_batch,
        .max_step_tokens = max_step_tokens,
    };
    s->running = calloc((size_t)max_batch, sizeof(turbod_request *));
    s->items = calloc((size_t)max_batch, sizeof *s->items);
    if (!s->running || !s->items)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a batch of %d", max_batch);
    return TURBO_OK;
}

void turbod_sched_free(turbod_sched *s)
{
    free(s->running);
    free(s->items);
    *s = (turbod_sched){0};
}

void turbod_sched_arrive(turbod_sched *s, turbod_request *r)
{
    r->phase = TURBOD_WAITING;
    r->order = s->next_order++;
    turbod_fifo_push_back(&s->waiting, r);
}

static void drop_running(turbod_sched *s, int32_t i)
{
    s->n_running--;
    memmove(s->running + i, s->running + i + 1,
            (size_t)(s->n_running - i) * sizeof(turbod_request *));
}

static int32_t index_of(const turbod_sched *s, const turbod_request *r)
{
    for (int32_t i = 0; i < s->n_running; i++)
        if (s->running[i] == r)
            return i;
    return -1;
}

/* Hands the table back to the session it came from, or frees it. */
static void give_kv_back(turbod_sched *s, turbod_request *r)
{
    turbod_session *ses = r->session;
    if (r->adopted) {
        turbok_kv_table_free(&ses->table, s->pool);
        ses->table = r->table;
        r->table = (turbok_kv_table){0};
        memcpy(ses->tokens, r->tokens, (size_t)r->computed * sizeof *r->tokens);
        ses->n_tokens = r->computed;
        ses->rope_len = r->rope_len;
        ses->busy = r->adopted = false;
    }
    turbok_kv_table_free(&r->table, s->pool);
}

void turbod_sched_remove(turbod_sched *s, turbod_request *r)
{
    if (r->phase == TURBOD_WAITING) {
        turbod_fifo_remove(&s->waiting, r);
    } else if (r->phase == TURBOD_RUNNING) {
        int32_t i = index_of(s, r);
        if (i >= 0)
            drop_running(s, i);
    }
    give_kv_back(s, r);
    r->phase = TURBOD_ENDED;
}

static void preempt(turbod_sched *s, int32_t i)
{
    turbod_request *r = s->running[i];
    drop_running(s, i);
    turbok_kv_table_truncate(&r->table, s->pool, 0);
    r->computed = 0;
    r->preemptions++;
    r->phase = TURBOD_WAITING;
    turbod_fifo_push_front(&s->waiting, r);
    atomic_fetch_add_explicit(&s->metrics->preemptions, 1, memory_order_relaxed);
}

static bool evict_session(turbod_sched *s)
{
    for (turbod_session *ses = s->sessions; ses; ses = ses->next) {
        if (ses->busy || ses->table.n == 0)
            continue;
        turbok_kv_table_truncate(&ses->table, s->pool, 0);
        ses->n_tokens = 0;
        return true;
    }
    return false;
}

/* Is r already part of this step? Then its KV must stay. */
static bool planned(const turbod_sched *s, const turbod_request *r)
{
    for (int32_t i = 0; i < s->n_items; i++)
        if (s->items[i].req == r)
            return true;
    return false;
}

/* Room for n tokens of r; takes blocks from idle sessions, then from younger sequences that are not
 * in this step yet. False when there is none left to take from. */
static bool reserve(turbod_sched *s, turbod_request *r, int32_t n)
{
    while (!turbok_kv_table_reserve(&r->table, s->pool, n)) {
        if (evict_session(s))
            continue;
        int32_t victim = -1;
        for (int32_t i = 0; i < s->n_running; i++) {
            turbod_request *v = s->running[i];
            if (v != r && v->order > r->order && !planned(s, v) &&
                (victim < 0 || v->order > s->running[victim]->order))
                victim = i;
        }
        if (victim < 0)
            return false;
        preempt(s, victim);
    }
    return true;
}

static void plan_one(turbod_sched *s, turbod_request *r, int32_t n_new)
{
    s->items[s->n_items++] = (turbod_plan_item){r, n_new};
    s->n_tokens += n_new;
}

static int32_t pending(const turbod_request *r)
{
    return r->n_tokens - r->computed;
}

/* Takes over the KV of the request's session, as far as its tokens agree with the prompt. */
static void adopt_session(turbod_sched *s, turbod_request *r)
{
    turbod_session *ses = r->session;
    if (!ses || ses->busy)
        return;
    ses->busy = r->adopted = true;
    int32_t same = 0;
    /* The last prompt token is always computed, because its logits are needed. */
    while (same < ses->n_tokens && same < r->n_prompt - 1 && ses->tokens[same] == r->tokens[same])
        same++;
    /* Beyond plain_len the keys of another length may carry another rotation. */
    if (ses->rope_len != r->rope_len && (ses->rope_len > s->plain_len || r->rope_len > s->plain_len))
        same = 0;
    turbok_kv_table_truncate(&ses->table, s->pool, same);
    turbok_kv_table tmp = r->table;
    r->table = ses->table;
    ses->table = tmp;
    ses->n_tokens = 0;
    r->computed = r->cached = same;
}

static void admit(turbod_sched *s)
{
    while (s->waiting.head && s->n_running < s->max_batch && s->n_items < s->max_batch &&
           s->n_tokens < s->max_step_tokens) {
        turbod_request *r = s->waiting.head;
        if (r->session && r->session->busy && !r->adopted)
            return; /* the dialogue's previous request is still running */
        adopt_session(s, r);
        int32_t budget = s->max_step_tokens - s->n_tokens;
        int32_t n = pending(r) < budget ? pending(r) : budget;
        /* Room for the whole known text, so that an arrival does not preempt what runs only to be
         * preempted itself a chunk later. */
        while (!turbok_kv_table_reserve(&r->table, s->pool, r->n_tokens))
            if (!evict_session(s))
                return;
        turbod_fifo_remove(&s->waiting, r);
        r->phase = TURBOD_RUNNING;
        if (!r->t_start)
            r->t_start = turbod_now();
        /* Kept oldest first: a preempted one returns to its place. */
        int32_t at = s->n_running;
        while (at > 0 && s->running[at - 1]->order > r->order)
            at--;
        memmove(s->running + at + 1, s->running + at,
                (size_t)(s->n_running - at) * sizeof(turbod_request *));
        s->running[at] = r;
        s->n_running++;
        plan_one(s, r, n);
    }
}

void turbod_sched_plan(turbod_sched *s)
{
    s->n_items = s->n_tokens = 0;
    for (int pass = 0; pass < 2; pass++) { /* decodes, then prompts */
        for (int32_t i = 0; i < s->n_running && s->n_tokens < s->max_step_tokens; i++) {
            turbod_request *r = s->running[i];
            if ((pending(r) == 1) != (pass == 0) || planned(s, r))
                continue;
            int32_t budget = s->max_step_tokens - s->n_tokens;
            int32_t n = pending(r) < budget ? pending(r) : budget;
            /* Without room it keeps what it has and waits: those in this step are about to free
             * blocks, and an older sequence can still take these. */
            if (reserve(s, r, r->computed + n))
                plan_one(s, r, n);
        }
    }
    admit(s);
}

bool turbod_sched_balanced(const turbod_sched *s)
{
    int32_t used = 0;
    for (int32_t i = 0; i < s->n_running; i++)
        used += s->running[i]->table.n;
    for (const turbod_session *ses = s->sessions; ses; ses = ses->next)
        used += ses->table.n;
    for (const turbod_request *r = s->waiting.head; r; r = r->next)
        used += r->table.n;
    return used + turbok_kv_pool_free_count(s->pool) == turbok_kv_pool_total(s->pool);
}
