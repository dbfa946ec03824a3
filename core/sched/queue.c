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
    atomic_fetch_add_explicit(&b->cancels, 1, memory_order_release);
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

/* Does a go before b? */
static bool before(const turbod_request *a, const turbod_request *b)
{
    if (!a->order != !b->order)
        return a->order != 0;
    if (a->order)
        return a->order < b->order;
    return a->priority < b->priority;
}

void turbod_flow_add(turbod_flow *f, turbod_request *r)
{
    turbod_request *after = f->tail; /* most arrivals belong at the end */
    while (after && before(r, after))
        after = after->prev;
    r->prev = after;
    r->next = after ? after->next : f->head;
    if (r->next)
        r->next->prev = r;
    else
        f->tail = r;
    if (after)
        after->next = r;
    else
        f->head = r;
    f->n_waiting++;
}

void turbod_flow_remove(turbod_flow *f, turbod_request *r)
{
    if (r->prev)
        r->prev->next = r->next;
    else
        f->head = r->next;
    if (r->next)
        r->next->prev = r->prev;
    else
        f->tail = r->prev;
    r->prev = r->next = NULL;
    f->n_waiting--;
}
