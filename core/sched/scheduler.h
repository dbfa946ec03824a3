/* core/sched/scheduler.h: who runs in the next step. Engine thread only.
 *
 * A step has a budget of tokens and of sequences. Order of choice: running sequences that decode (one
 * token each), then running ones with text left to compute, in chunks, then waiting ones. Decodes come
 * first and the pace (pace.h) limits what prompts add, so that a long prompt never stalls a stream.
 *
 * Waiting: the tenant that was served least goes first; among its requests, preempted ones by age, then
 * by priority, then by arrival. A request starts when its known text fits and what the running ones are
 * expected to need still fits beside it.
 *
 * Preemption takes the KV of a running sequence and puts it back into its queue; what it had computed
 * stays cached as long as there is room, or comes back from the swap space; the rest is computed again.
 * It happens when blocks run out: the last admitted goes, never an older one for a younger; and when a
 * tenant has less than its share of places while another has more: the latter's last admitted goes. After
 * TURBOD_MAX_PREEMPTIONS a sequence
 * is not a victim any more, and is admitted again only with room for all it can need: it will finish, so
 * there is always progress. */
#ifndef TURBOD_SCHEDULER_H
#define TURBOD_SCHEDULER_H

#include "engine/metrics.h"
#include "sched/pace.h"
#include "sched/queue.h"

#define TURBOD_MAX_PREEMPTIONS 3
/* A request waits for one that computes the same text when that saves at least this many tokens. */
#define TURBOD_WORTH_WAITING 16

typedef struct turbod_plan_item {
    turbod_request *req;
    int32_t n_new; /* tokens of it in this step */
} turbod_plan_item;

typedef struct turbod_sched {
    turbok_kv_pool *pool;
    turbod_metrics *metrics;
    int32_t max_batch, max_step_tokens;
    turbod_flow *flows; /* those with waiting requests, linked by right */
    int32_t n_waiting;
    int64_t waiting_tokens; /* known tokens of those that wait */
    turbod_request **running; /* [max_batch], by order */
    int32_t n_running;
    int32_t *places; /* [max_batch] those that nobody has are the first max_batch - n_running */
    turbod_plan_item *items; /* [max_batch] the plan of this step */
    int32_t n_items, n_tokens, n_decodes;
    turbod_pace pace;
    double used_share; /* how much of max_tokens answers have used: a moving average */
    uint64_t next_order, step;
    uint64_t air; /* the step that was started and has not landed, or 0 */
    int64_t n_lent; /* references that a snapshot holds while it is written */
} turbod_sched;

turbo_status turbod_sched_init(turbod_sched *s, turbok_kv_pool *pool, turbod_metrics *m,
                               int32_t max_batch, int32_t max_step_tokens, double stretch,
                               turbo_err *err);
void turbod_sched_free(turbod_sched *s);

void turbod_sched_arrive(turbod_sched *s, turbod_request *r);
/* Fills items with the next step; n_items 0 means nothing to do. Reserves the KV it needs. */
void turbod_sched_plan(turbod_sched *s);
/* Takes a request out of queue or running set; its KV goes back to the pool. */
void turbod_sched_remove(turbod_sched *s, turbod_request *r);
/* The planned step has been started: its tokens count as computed. landed: nothing is in the air. */
void turbod_sched_started(turbod_sched *s);
void turbod_sched_landed(turbod_sched *s);
/* Tokens of r that are in the KV cache for certain. */
int32_t turbod_sched_known(const turbod_sched *s, const turbod_request *r);
/* free + cached + referenced == total, and the referenced ones are those of running requests. */
bool turbod_sched_balanced(const turbod_sched *s);

#endif
