/* core/sched/scheduler.h: who runs in the next step. Engine thread only.
 *
 * First come, first served, with a budget of tokens and sequences a step. Order of choice: running
 * sequences that decode (one token each), then running ones with a prompt left to compute (chunked),
 * then arrivals, oldest first. Decodes come first so that a long prompt never stalls a stream.
 * When KV blocks run out the youngest running sequence is preempted: its blocks are freed, it goes to
 * the head of the queue and is computed again later. The oldest is never preempted, and a request
 * that could not fit alone was refused at submission, so there is always progress. */
#ifndef TURBOD_SCHEDULER_H
#define TURBOD_SCHEDULER_H

#include "engine/metrics.h"
#include "sched/queue.h"

typedef struct turbod_plan_item {
    turbod_request *req;
    int32_t n_new; /* tokens of it in this step */
} turbod_plan_item;

typedef struct turbod_sched {
    turbok_kv_pool *pool;
    turbod_metrics *metrics;
    int32_t max_batch, max_step_tokens;
    int32_t plain_len; /* up to this length a sequence's rotation does not depend on its length */
    turbod_fifo waiting;
    turbod_request **running; /* [max_batch], oldest first */
    int32_t n_running;
    turbod_plan_item *items; /* [max_batch] the plan of this step */
    int32_t n_items, n_tokens;
    turbod_session *sessions; /* all open ones, to take KV from when nothing else is left */
    uint64_t next_order;
} turbod_sched;

turbo_status turbod_sched_init(turbod_sched *s, turbok_kv_pool *pool, turbod_metrics *m,
                               int32_t max_batch, int32_t max_step_tokens, turbo_err *err);
void turbod_sched_free(turbod_sched *s);

void turbod_sched_arrive(turbod_sched *s, turbod_request *r);
/* Fills items with the next step; n_items 0 means nothing to do. Reserves the KV it needs. */
void turbod_sched_plan(turbod_sched *s);
/* Takes a request out of queue or running set; its KV goes back, or to its session. */
void turbod_sched_remove(turbod_sched *s, turbod_request *r);
/* free + used == total, and the used ones are those of running requests and sessions. */
bool turbod_sched_balanced(const turbod_sched *s);

#endif
