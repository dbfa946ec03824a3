/* kernels/pool.h: the thread pool. One caller thread; workers are internal.
 *
 * A loop is handed out in grains by an atomic counter, so a core that the machine takes away for a
 * moment costs one grain and not the whole step. Which thread computes an item never changes its
 * result. Workers spin briefly for the next loop and then sleep.
 *
 * On a machine with several memory nodes each node has a share of every loop, which its threads take before they help
 * elsewhere; workers stay on the CPUs of their node. The shares of two loops over as many items are equal. */
#ifndef TURBOK_POOL_H
#define TURBOK_POOL_H

#include "turbok.h"

typedef struct turbok_pool turbok_pool;

/* fn computes items [from, to); thread is 0..threads-1, for scratch memory. */
typedef void (*turbok_range_fn)(void *ctx, int64_t from, int64_t to, int thread);

turbo_status turbok_pool_new(int threads, bool pin, int spin_us, turbok_pool **out, turbo_err *err);
/* The same with nodes told instead of read, for tests. The caller keeps its own affinity, which outlives the pool. */
struct turbok_nodes;
turbo_status turbok_pool_new_on(const struct turbok_nodes *nodes, int threads, bool pin,
                                int spin_us, turbok_pool **out, turbo_err *err);
void turbok_pool_free(turbok_pool *p);
int turbok_pool_threads(const turbok_pool *p);
int turbok_pool_nodes(const turbok_pool *p);
/* Runs fn over [0, n) and returns when all of it is done. Allocates nothing. */
void turbok_pool_for(turbok_pool *p, int64_t n, int64_t grain, turbok_range_fn fn, void *ctx);
/* Once in a loop that waits for another thread. */
static inline void turbok_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* some ten cycles; "yield" does nothing on most CPUs */
#endif
}
/* CPUs this process may run on. */
int turbok_cpu_count(void);

#endif
