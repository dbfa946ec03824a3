/* core/sched/queue.c: see queue.h. */
#include "sched/queue.h"

#include <time.h>

#include "util/err.h"

turbo_status turbod_inbox_init(turbod_inbox *b, turbo_err *err)
{
    pthread_condattr_t attr;
    *b = (turbod_inbox){0};
    if (pthread_condattr_init(&attr))
        return turbod_err(err, TURBO_ENOMEM, "cannot make a condition variable");
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    int bad = pthread_mutex_init(&b->mu, NULL);
    if (!bad && pthread_cond_init(&b->wake, &attr)) {
        pthread_mutex_destroy(&b->mu);
        bad = 1;
    }
    pthread_condattr_destroy(&attr);
    return bad ? turbod_err(err, TURBO_ENOMEM, "cannot make a mutex") : TURBO_OK;
}

void turbod_inbox_destroy(turbod_inbox *b)
{
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->mu);
}

void turbod_inbox_push(turbod_inbox *b, turbod_request *r)
{
    pthread_mutex_lock(&b->mu);
    r->next = NULL;
    if (b->tail)
        b->tail->next = r;
    else
        b->head = r;
    b->tail = r;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->mu);
}

void turbod_inbox_poke(turbod_inbox *b)
{
    pthread_mutex_lock(&b->mu);
    b->poked = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->mu);
}

turbod_request *turbod_inbox_take(turbod_inbox *b, int64_t wait_ns)
{
    pthread_mutex_lock(&b->mu);
    if (wait_ns > 0 && !b->head && !b->poked) {
        int64_t until = turbod_now() + wait_ns;
        struct timespec ts = {until / 1000000000, until % 1000000000};
        while (!b->head && !b->poked)
            if (pthread_cond_timedwait(&b->wake, &b->mu, &ts))
                break;
    }
    turbod_request *list = b->head;
    b->head = b->tail = NULL;
    b->poked = false;
    pthread_mutex_unlock(&b->mu);
    return list;
}

void turbod_fifo_push_back(turbod_fifo *q, turbod_request *r)
{
    r->next = NULL;
    r->prev = q->tail;
    if (q->tail)
        q->tail->next = r;
    else
        q->head = r;
    q->tail = r;
    q->n++;
}

void turbod_fifo_push_front(turbod_fifo *q, turbod_request *r)
{
    r->prev = NULL;
    r->next = q->head;
    if (q->head)
        q->head->prev = r;
    else
        q->tail = r;
    q->head = r;
    q->n++;
}

void turbod_fifo_remove(turbod_fifo *q, turbod_request *r)
{
    if (r->prev)
        r->prev->next = r->next;
    else
        q->head = r->next;
    if (r->next)
        r->next->prev = r->prev;
    else
        q->tail = r->prev;
    r->prev = r->next = NULL;
    q->n--;
}
