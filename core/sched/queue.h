/* core/sched/queue.h: where requests wait. The inbox takes them from any thread; the flows behind it
 * belong to the engine thread.
 *
 * A flow is the queue of one tenant. Which flow goes next is decided by service received: the number of
 * tokens computed for it, an output token counted twice ("Fairness in Serving Large Language Models",
 * arXiv 2401.00588). A flow that comes back from idleness starts level with the least served one, so
 * that nobody saves up. With one tenant this is first come, first served. */
#ifndef TURBOD_QUEUE_H
#define TURBOD_QUEUE_H

#include <pthread.h>

#include "sched/state.h"

typedef struct turbod_inbox {
    pthread_mutex_t mu;
    pthread_cond_t wake;
    turbod_request *head, *tail;
    bool poked; /* a cancel or a shutdown wants attention */
    _Atomic uint64_t cancels; /* counts up: the engine looks through its requests when it changed */
} turbod_inbox;

turbo_status turbod_inbox_init(turbod_inbox *b, turbo_err *err);
void turbod_inbox_destroy(turbod_inbox *b);
void turbod_inbox_push(turbod_inbox *b, turbod_request *r); /* takes one reference */
void turbod_inbox_poke(turbod_inbox *b);
/* Takes all arrivals as a list linked by next; waits up to wait_ns when there is nothing to take. */
turbod_request *turbod_inbox_take(turbod_inbox *b, int64_t wait_ns);

typedef struct turbod_flow {
    char label[72]; /* fixed */
    struct turbod_flow *next; /* list of all, guarded by the creator's lock */
    _Atomic int n_queued;     /* submitted and never started */
    /* engine thread */
    turbod_request *head, *tail; /* preempted ones by age, then by priority, then by arrival */
    int32_t n_waiting, n_running;
    uint64_t service;
    struct turbod_flow *left, *right; /* flows with waiting requests */
} turbod_flow;

void turbod_flow_add(turbod_flow *f, turbod_request *r); /* puts r where it belongs */
void turbod_flow_remove(turbod_flow *f, turbod_request *r);

#endif
