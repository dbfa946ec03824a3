/* core/sched/scheduler.c: see scheduler.h. */
#include "sched/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "sched/holding.h"
#include "util/err.h"

#define FIRST_GUESS 0.5 /* of max_tokens that an answer will use, before any was seen */
#define OUTPUT_WEIGHT 2u /* service of an output token; a prompt token counts 1 */

turbo_status turbod_sched_init(turbod_sched *s, turbok_kv_pool *pool, turbod_metrics *m,
                               int32_t max_batch, int32_t max_step_tokens, double stretch,
                               turbo_err *err)
{
    *s = (turbod_sched){
        .pool = pool,
        .metrics = m,
        .max_batch = max_batch,
        .max_step_tokens = max_step_tokens,
        .pace = {.stretch = stretch},
        .used_share = FIRST_GUESS,
        .next_order = 1,
    };
    s->running = calloc((size_t)max_batch, sizeof(turbod_request *));
    s->items = calloc((size_t)max_batch, sizeof *s->items);
    s->places = calloc((size_t)max_batch, sizeof *s->places);
    if (!s->running || !s->items || !s->places)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a batch of %d", max_batch);
    for (int32_t i = 0; i < max_batch; i++)
        s->places[i] = i;
    return TURBO_OK;
}

void turbod_sched_free(turbod_sched *s)
{
    free(s->running);
    free(s->items);
    free(s->places);
    *s = (turbod_sched){0};
}

/* ---- waiting -------------------------------------------------------------------------------------------- */

static uint64_t least_service(const turbod_sched *s)
{
    uint64_t least = UINT64_MAX;
    for (const turbod_flow *f = s->flows; f; f = f->right)
        least = f->service < least ? f->service : least;
    for (int32_t i = 0; i < s->n_running; i++)
        least = s->running[i]->flow->service < least ? s->running[i]->flow->service : least;
    return least;
}

static void enqueue(turbod_sched *s, turbod_request *r)
{
    turbod_flow *f = r->flow;
    if (!f->n_waiting) {
        if (!f->n_running) {
            uint64_t level = least_service(s);
            if (level != UINT64_MAX && f->service < level)
                f->service = level;
        }
        f->left = NULL;
        f->right = s->flows;
        if (s->flows)
            s->flows->left = f;
        s->flows = f;
    }
    turbod_flow_add(f, r);
    s->n_waiting++;
    s->waiting_tokens += r->n_tokens;
}

static void dequeue(turbod_sched *s, turbod_request *r)
{
    turbod_flow *f = r->flow;
    turbod_flow_remove(f, r);
    s->n_waiting--;
    s->waiting_tokens -= r->n_tokens;
    if (f->n_waiting)
        return;
    if (f->left)
        f->left->right = f->right;
    else
        s->flows = f->right;
    if (f->right)
        f->right->left = f->left;
    f->left = f->right = NULL;
}

void turbod_sched_arrive(turbod_sched *s, turbod_request *r)
{
    turbod_request_move(r, TURBOD_WAITING);
    enqueue(s, r);
}

/* ---- running -------------------------------------------------------------------------------------------- */

static int32_t index_of(const turbod_sched *s, const turbod_request *r)
{
    int32_t i = 0;
    while (s->running[i] != r)
        i++;
    return i;
}

void turbod_sched_started(turbod_sched *s)
{
    s->air = s->step;
    for (int32_t i = 0; i < s->n_items; i++) {
        turbod_request *r = s->items[i].req;
        r->air_step = s->step;
        r->air_new = s->items[i].n_new;
        r->computed += r->air_new;
        r->table.len = r->computed;
    }
}

void turbod_sched_landed(turbod_sched *s)
{
    s->air = 0;
}

int32_t turbod_sched_known(const turbod_sched *s, const turbod_request *r)
{
    int32_t air = s->air && r->air_step == s->air ? r->air_new : 0;
    return r->computed > air ? r->computed - air : 0;
}

/* Keeps the KV of one that loses its place, where there is swap space. */
static void keep(turbod_sched *s, turbod_request *r)
{
    if (!r->slots || !r->computed)
        return;
    if (turbod_holding_keep(r, s->pool))
        atomic_fetch_add_explicit(&s->metrics->swapped_out, (uint64_t)r->n_slots,
                                  memory_order_relaxed);
    else
        atomic_fetch_add_explicit(&s->metrics->swap_full, 1, memory_order_relaxed);
}

static void leave(turbod_sched *s, turbod_request *r, bool returns)
{
    int32_t i = index_of(s, r);
    s->n_running--;
    s->places[s->max_batch - s->n_running - 1] = r->place;
    r->place = -1;
    r->placed = false;
    memmove(s->running + i, s->running + i + 1,
            (size_t)(s->n_running - i) * sizeof(turbod_request *));
    r->flow->n_running--;
    r->flow->service -= r->prepaid;
    r->prepaid = 0;
    if (returns) /* with what is in the air: the copy comes behind it */
        keep(s, r);
    int32_t known = turbod_sched_known(s, r);
    if (known < r->computed) /* what is in the air is not kept for others */
        r->computed = r->table.len = known;
    r->air_step = 0;
    turbod_holding_release(r, s->pool);
}

static void enter(turbod_sched *s, turbod_request *r)
{
    if (!r->order)
        r->order = s->next_order++;
    if (!r->t_start)
        r->t_start = turbod_now();
    int32_t at = s->n_running; /* kept by order: a preempted one returns to its place */
    while (at > 0 && s->running[at - 1]->order > r->order)
        at--;
    memmove(s->running + at + 1, s->running + at,
            (size_t)(s->n_running - at) * sizeof(turbod_request *));
    s->running[at] = r;
    r->place = s->places[s->max_batch - s->n_running - 1];
    s->n_running++;
    r->flow->n_running++;
    /* What it will probably cost is charged now: else a tenant that is behind would get all places that
     * become free at once. What it did not cost is given back at its end. */
    double output = s->used_share * r->max_tokens - (r->n_tokens - r->n_prompt);
    r->prepaid =
        (uint64_t)(r->n_tokens - r->computed) + (output > 0 ? (uint64_t)output * OUTPUT_WEIGHT : 0);
    r->flow->service += r->prepaid;
    turbod_request_move(r, TURBOD_RUNNING);
}

void turbod_sched_remove(turbod_sched *s, turbod_request *r)
{
    if (r->phase == TURBOD_WAITING) {
        dequeue(s, r);
    } else if (r->phase == TURBOD_RUNNING) {
        double used = (double)(r->n_tokens - r->n_prompt) / r->max_tokens;
        s->used_share += (used - s->used_share) / 8;
        leave(s, r, false);
    }
    turbod_holding_forget(r, s->pool);
    turbok_kv_table_free(&r->table, s->pool);
    turbod_request_move(r, TURBOD_ENDED);
}

static void preempt(turbod_sched *s, turbod_request *r)
{
    leave(s, r, true);
    r->preemptions++;
    turbod_request_move(r, TURBOD_WAITING);
    enqueue(s, r);
    atomic_fetch_add_explicit(&s->metrics->preemptions, 1, memory_order_relaxed);
}

static bool protected(const turbod_request *r)
{
    return r->preemptions >= TURBOD_MAX_PREEMPTIONS;
}

/* ---- room ------------------------------------------------------------------------------------------------- */

static int32_t available(const turbod_sched *s)
{
    return turbok_kv_pool_free_count(s->pool) + turbok_kv_pool_cached_count(s->pool);
}

/* Room for n tokens of r; takes blocks from sequences that were admitted after it and are not in this
 * step yet. False when there is none left to take from. */
static bool reserve(turbod_sched *s, turbod_request *r, int32_t n)
{
    while (!turbok_kv_table_reserve(&r->table, s->pool, n)) {
        turbod_request *victim = NULL;
        for (int32_t i = s->n_running; i-- > 0 && !victim;) {
            turbod_request *v = s->running[i];
            if (v->order <= r->order)
                return false;
            if (v->step != s->step && !protected(v) && v->table.n)
                victim = v;
        }
        if (!victim)
            return false;
        preempt(s, victim);
    }
    return true;
}

/* Blocks that r is expected to take beyond those it has. A protected one has all it can need. */
static int32_t growth(const turbod_sched *s, const turbod_request *r)
{
    double guess = protected(r) ? 1 : s->used_share;
    int32_t len = r->n_prompt + (int32_t)(guess * r->max_tokens);
    return turbok_kv_table_needs(&r->table, s->pool, len > r->n_tokens ? len : r->n_tokens);
}

/* Does r, whose table holds what was found in the cache, fit beside the running ones? */
static bool fits(const turbod_sched *s, const turbod_request *r)
{
    int64_t need = growth(s, r);
    for (int32_t i = 0; i < s->n_running; i++)
        need += growth(s, s->running[i]);
    return need <= available(s) || !s->n_running;
}

/* ---- planning --------------------------------------------------------------------------------------------- */

static int32_t pending(const turbod_request *r)
{
    return r->n_tokens - r->computed;
}

static void plan_one(turbod_sched *s, turbod_request *r, int32_t n_new)
{
    bool decode = r->n_tokens > r->n_prompt && n_new == 1;
    s->items[s->n_items++] = (turbod_plan_item){r, n_new};
    s->n_tokens += n_new;
    s->n_decodes += decode;
    r->step = s->step;
    uint64_t cost = decode ? OUTPUT_WEIGHT : (uint64_t)n_new;
    uint64_t paid = cost < r->prepaid ? cost : r->prepaid;
    r->prepaid -= paid;
    r->flow->service += cost - paid;
}

static void plan_decodes(turbod_sched *s)
{
    for (int32_t i = 0; i < s->n_running && s->n_tokens < s->max_step_tokens; i++) {
        turbod_request *r = s->running[i];
        /* Without room it keeps what it has and waits: those in this step are about to free blocks. Whose last
         * token is still being drawn has no further step. */
        if (pending(r) == 1 && r->n_tokens < r->n_prompt + r->max_tokens && r->step != s->step &&
            reserve(s, r, r->computed + 1))
            plan_one(s, r, 1);
    }
}

/* The running sequence with text left to compute whose tenant was served least; the oldest of its. */
static turbod_request *next_prompt(const turbod_sched *s)
{
    turbod_request *best = NULL;
    for (int32_t i = 0; i < s->n_running; i++) {
        turbod_request *r = s->running[i];
        if (pending(r) > 1 && r->step != s->step &&
            (!best || r->flow->service < best->flow->service))
            best = r;
    }
    return best;
}

static void plan_prompts(turbod_sched *s, int32_t *budget)
{
    turbod_request *r;
    while (*budget > 0 && (r = next_prompt(s))) {
        int32_t n = pending(r) < *budget ? pending(r) : *budget;
        if (!reserve(s, r, r->computed + n)) {
            r->step = s->step; /* passed over */
            continue;
        }
        plan_one(s, r, n);
        *budget -= n;
    }
}

/* The first request of a flow that was not passed over in this step. One that lost its place while its last
 * token is drawn waits for it. */
static turbod_request *candidate(const turbod_sched *s, const turbod_flow *f)
{
    turbod_request *r = f->head;
    while (r && (r->step == s->step || r->unknown))
        r = r->next;
    return r;
}

/* Whom to admit next: of the flow with the least service; at equal service, who came first. */
static turbod_request *next_waiting(const turbod_sched *s)
{
    turbod_request *best = NULL;
    for (const turbod_flow *f = s->flows; f; f = f->right) {
        turbod_request *r = candidate(s, f);
        if (r && (!best || f->service < best->flow->service ||
                  (f->service == best->flow->service && r->t_submit < best->t_submit)))
            best = r;
    }
    return best;
}

/* A tenant below its share of places may take one from the tenant that has most above it. */
static bool take_place(turbod_sched *s, const turbod_flow *f)
{
    turbod_request *victim = NULL;
    int32_t most = f->n_running + 1; /* the other must keep at least as many as f will have */
    for (int32_t i = s->n_running; i-- > 0;) {
        turbod_request *v = s->running[i];
        if (v->flow != f && v->flow->n_running > most && v->step != s->step && !protected(v)) {
            most = v->flow->n_running;
            victim = v;
        }
    }
    if (!victim)
        return false;
    preempt(s, victim);
    return true;
}

enum { ADMITTED, DEFERRED, NO_ROOM };

static int admit_one(turbod_sched *s, turbod_request *r, int32_t *budget)
{
    int32_t soon = turbod_holding_find(r, s->pool);
    if (soon >= TURBOD_WORTH_WAITING) {
        turbod_holding_release(r, s->pool);
        return DEFERRED;
    }
    int32_t want = protected(r) ? r->n_prompt + r->max_tokens : r->n_tokens;
    if (!fits(s, r) || !turbok_kv_table_reserve(&r->table, s->pool, want)) {
        turbod_holding_release(r, s->pool);
        return NO_ROOM;
    }
    if (!r->t_start)
        r->cached = r->computed;
    if (r->n_slots)
        atomic_fetch_add_explicit(&s->metrics->swapped_in,
                                  (uint64_t)turbod_holding_fetch(r, s->pool), memory_order_relaxed);
    turbod_holding_announce(r, s->pool);
    dequeue(s, r);
    enter(s, r);
    int32_t n = pending(r) < *budget ? pending(r) : *budget;
    plan_one(s, r, n);
    *budget -= n;
    return ADMITTED;
}

static void admit(turbod_sched *s, int32_t *budget)
{
    while (*budget > 0) {
        turbod_request *r = next_waiting(s);
        if (!r || (s->n_running == s->max_batch && !take_place(s, r->flow)))
            return;
        switch (admit_one(s, r, budget)) {
        case DEFERRED: r->step = s->step; break;
        case NO_ROOM:
            if (!take_place(s, r->flow))
                return;
            break;
        default: break;
        }
    }
}

/* Tokens that are known and not computed, beyond the one that each stream decodes. */
static int64_t backlog(const turbod_sched *s)
{
    int64_t n = s->waiting_tokens;
    for (int32_t i = 0; i < s->n_running; i++)
        n += pending(s->running[i]) - 1;
    return n;
}

void turbod_sched_plan(turbod_sched *s)
{
    s->n_items = s->n_tokens = s->n_decodes = 0;
    s->step++;
    plan_decodes(s);
    int32_t room = s->max_step_tokens - s->n_tokens;
    int32_t budget = turbod_pace_budget(&s->pace, s->n_decodes, backlog(s), room);
    plan_prompts(s, &budget);
    if (s->n_waiting)
        admit(s, &budget);
}

bool turbod_sched_balanced(const turbod_sched *s)
{
    int32_t total = turbok_kv_pool_total(s->pool), used = 0;
    for (int32_t b = 0; b < total; b++)
        used += turbok_kv_block_refs(s->pool, b) > 0;
    int64_t held = 0, refs = 0;
    for (int32_t b = 0; b < total; b++)
        refs += turbok_kv_block_refs(s->pool, b);
    for (int32_t i = 0; i < s->n_running; i++)
        held += s->running[i]->table.n;
    int64_t kept = 0;
    for (const turbod_flow *f = s->flows; f; f = f->right)
        for (const turbod_request *r = f->head; r; r = r->next)
            kept += r->n_slots;
    return used + available(s) == total && held + s->n_lent == refs &&
           kept + turbok_kv_swap_vacant(s->pool) == turbok_kv_swap_total(s->pool);
}
