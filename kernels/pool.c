/* kernels/pool.c: see pool.h. */
#include "internal.h"

#include "nodes.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define MAX_THREADS 256
#define OPEN 0x8000u
#define INSIDE 0x7fffu

typedef struct worker {
    turbok_pool *pool;
    int index;
    pthread_t thread;
} worker;

/* What of a loop belongs to a node: its threads take from here first. */
typedef struct share {
    _Alignas(64) _Atomic int64_t next; /* first item not handed out */
    int64_t end;
} share;

struct turbok_pool {
    int n; /* threads, the caller included */
    int spin_us;
    worker workers[MAX_THREADS];
    int started; /* workers running, for shutdown after a failed start */

    /* Number of the loop << 16, OPEN while workers may join it, and how many are inside. The caller
     * waits for those inside only: a worker that has no CPU just now never delays a loop it has not
     * joined, and cannot join one that is closed. */
    _Alignas(64) _Atomic uint64_t gate;
    share shares[TURBOK_NODES_MAX];
    int64_t grain;
    turbok_range_fn fn;
    void *ctx;
    bool quit;

    pthread_mutex_t mu;
    pthread_cond_t wake;
    _Atomic int sleepers;

    turbok_nodes nodes;
    int node_of[MAX_THREADS]; /* by thread */
    int before[TURBOK_NODES_MAX + 1]; /* threads of the nodes before this one */
};

static int64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int turbok_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

/* Binds a thread to the i-th CPU of set. A refused pin only costs speed. */
static void pin_to(pthread_t thread, const cpu_set_t *set, int i)
{
    cpu_set_t one;
    int n = CPU_COUNT(set);
    i = n ? i % n : 0;
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, set) && i-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            (void)pthread_setaffinity_np(thread, sizeof one, &one);
            return;
        }
}

/* The thread's own node first, then what the others have left. */
static void work(turbok_pool *p, int thread)
{
    for (int i = 0, node = p->node_of[thread]; i < p->nodes.n;
         i++, node = (node + 1) % p->nodes.n) {
        share *s = &p->shares[node];
        for (;;) {
            int64_t from = atomic_fetch_add_explicit(&s->next, p->grain, memory_order_relaxed);
            if (from >= s->end)
                break;
            int64_t to = s->end - from > p->grain ? from + p->grain : s->end;
            p->fn(p->ctx, from, to, thread);
        }
    }
}

/* The node that the caller runs on now: it is bound to none. */
static int current_node(const turbok_pool *p)
{
    int cpu = sched_getcpu();
    for (int i = 0; cpu >= 0 && i < p->nodes.n; i++)
        if (CPU_ISSET((size_t)cpu, &p->nodes.cpus[i]))
            return i;
    return 0;
}

/* Shares in proportion to the threads of the nodes, the same for each loop over n items: what packed a matrix tile by
 * tile, and so had its pages put beside it, is what will read them. */
static void divide(turbok_pool *p, int64_t n)
{
    for (int i = 0; i < p->nodes.n; i++) {
        int64_t from = n * p->before[i] / p->n;
        p->shares[i].end = n * p->before[i + 1] / p->n;
        atomic_store_explicit(&p->shares[i].next, from, memory_order_relaxed);
    }
}

/* Waits until the number of the loop differs from seen: spinning first, then asleep. */
static void await_loop(turbok_pool *p, uint64_t seen)
{
    int64_t until = now_us() + p->spin_us;
    for (int i = 0;; i++) {
        if (atomic_load_explicit(&p->gate, memory_order_acquire) >> 16 != seen)
            return;
        turbok_relax();
        if ((i & 255) == 255 && now_us() >= until)
            break;
    }
    pthread_mutex_lock(&p->mu);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->gate) >> 16 == seen)
        pthread_cond_wait(&p->wake, &p->mu);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->mu);
}

/* Joins the loop that is open, if one is. *seen is the number of the loop found either way. */
static bool join(turbok_pool *p, uint64_t *seen)
{
    uint64_t g = atomic_load_explicit(&p->gate, memory_order_acquire);
    do {
        *seen = g >> 16;
        if (!(g & OPEN))
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&p->gate, &g, g + 1, memory_order_acq_rel,
                                                    memory_order_acquire));
    return true;
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    turbok_pool *p = w->pool;
    uint64_t seen = 0;
    for (;;) {
        await_loop(p, seen);
        if (!join(p, &seen))
            continue;
        if (p->quit)
            return NULL;
        work(p, w->index);
        atomic_fetch_sub_explicit(&p->gate, 1, memory_order_release);
    }
}

/* Opens a loop: after this the workers may join it. Nobody is inside the one before. */
static void announce(turbok_pool *p)
{
    uint64_t g = atomic_load_explicit(&p->gate, memory_order_relaxed);
    atomic_store(&p->gate, ((g >> 16) + 1) << 16 | OPEN); /* sequentially consistent: see sleepers */
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->mu);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mu);
    }
}

void turbok_pool_for(turbok_pool *p, int64_t n, int64_t grain, turbok_range_fn fn, void *ctx)
{
    if (n <= 0)
        return;
    if (p->n == 1 || n <= grain) {
        fn(ctx, 0, n, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->grain = grain < 1 ? 1 : grain;
    divide(p, n);
    if (p->nodes.n > 1)
        p->node_of[0] = current_node(p);
    announce(p);
    work(p, 0);
    atomic_fetch_and_explicit(&p->gate, ~(uint64_t)OPEN, memory_order_acq_rel);
    for (int i = 0; atomic_load_explicit(&p->gate, memory_order_acquire) & INSIDE; i++) {
        turbok_relax();
        if ((i & 1023) == 1023)
            sched_yield(); /* a worker inside may need this very CPU */
    }
}

/* Deals the threads to the nodes, in proportion to their CPUs. */
static void deal(turbok_pool *p)
{
    int have[TURBOK_NODES_MAX] = {0};
    for (int i = 0; i < p->n; i++) {
        int best = 0;
        for (int k = 1; k < p->nodes.n; k++)
            if ((have[k] + 1) * CPU_COUNT(&p->nodes.cpus[best]) <
                (have[best] + 1) * CPU_COUNT(&p->nodes.cpus[k]))
                best = k;
        p->node_of[i] = best;
        have[best]++;
    }
    for (int k = 0; k < p->nodes.n; k++)
        p->before[k + 1] = p->before[k] + have[k];
}

/* Binds worker i to its node, or with pin to one CPU: all CPUs of a node go round among its threads. */
static void bind_worker(turbok_pool *p, int i, bool pin)
{
    int node = p->node_of[i], among = 0;
    for (int k = 0; k < i; k++)
        among += p->node_of[k] == node;
    if (pin)
        pin_to(p->workers[i].thread, &p->nodes.cpus[node], among);
    else if (p->nodes.n > 1)
        (void)pthread_setaffinity_np(p->workers[i].thread, sizeof(cpu_set_t), &p->nodes.cpus[node]);
}

turbo_status turbok_pool_new(int threads, bool pin, int spin_us, turbok_pool **out, turbo_err *err)
{
    cpu_set_t allowed;
    turbok_nodes nodes;
    bool known = !sched_getaffinity(0, sizeof allowed, &allowed);
    if (known)
        turbok_nodes_read(TURBOK_NODES_ROOT, &allowed, &nodes);
    else
        nodes = (turbok_nodes){.n = 1};
    return turbok_pool_new_on(&nodes, threads, pin && known, spin_us, out, err);
}

turbo_status turbok_pool_new_on(const turbok_nodes *nodes, int threads, bool pin, int spin_us,
                                turbok_pool **out, turbo_err *err)
{
    turbok_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a thread pool");
    *p = (turbok_pool){.spin_us = spin_us < 0 ? 50 : spin_us, .nodes = *nodes};
    p->n = threads > 0 ? threads : turbok_cpu_count();
    p->n = p->n > MAX_THREADS ? MAX_THREADS : p->n;
    deal(p);
    pthread_mutex_init(&p->mu, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int i = 1; i < p->n; i++) {
        p->workers[i] = (worker){.pool = p, .index = i};
        if (pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i])) {
            turbo_status st = turbok_fail(err, TURBO_ENOMEM,
                                          "cannot start compute thread %d of %d; set threads lower",
                                          i, p->n);
            turbok_pool_free(p);
            return st;
        }
        p->started = i;
        bind_worker(p, i, pin);
    }
    *out = p;
    return TURBO_OK;
}

void turbok_pool_free(turbok_pool *p)
{
    if (!p)
        return;
    p->quit = true;
    announce(p);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->mu);
    free(p);
}

int turbok_pool_threads(const turbok_pool *p)
{
    return p->n;
}

int turbok_pool_nodes(const turbok_pool *p)
{
    return p->nodes.n;
}
