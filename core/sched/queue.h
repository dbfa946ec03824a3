/* core/sched/queue.h: where requests wait. The inbox takes them from any thread; the FIFO behind it
 * belongs to the engine thread. */
#ifndef TURBOD_QUEUE_H
#define TURBOD_QUEUE_H

#include <pthread.h>

#include "sched/state.h"

typedef struct turbod_inbox {
    pthread_mutex_t mu;
    pthread_cond_t wake;
    turbod_request *head, *tail;
    bool poked; /* a cancel or a shutdown wants attention */
} turbod_inbox;

turbo_status turbod_inbox_init(turbod_inbox *b, turbo_err *err);
void turbod_inbox_destroy(turbod_inbox *b);
void turbod_inbox_push(turbod_inbox *b, turbod_request *r); /* takes one reference */
void turbod_inbox_poke(turbod_inbox *b);
/* Takes all arrivals as a list linked by next; waits up to wait_ns when there is nothing to take. */
turbod_request *turbod_inbox_take(turbod_inbox *b, int64_t wait_ns);

typedef struct turbod_fifo {
    turbod_request *head, *tail;
    int32_t n;
} turbod_fifo;

void turbod_fifo_push_back(turbod_fifo *q, turbod_request *r);
void turbod_fifo_push_front(turbod_fifo *q, turbod_request *r);
void turbod_fifo_remove(turbod_fifo *q, turbod_request *r);

#endif
