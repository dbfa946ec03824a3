/* kernels/cuda/hostrun/fakestate.h: what the two halves of the fake driver share: fakecuda.c keeps memory, work
 * and faults, fakedriver.c is the driver's functions over them. For tests only. */
#ifndef FAKESTATE_H
#define FAKESTATE_H

#include <stdbool.h>

#include "cuda/driver.h"
#include "cuda/hostrun/fakecuda.h"
#include "cuda/hostrun/hostrun.h"

#define FAKE_POISON 0xff /* NaN in every type of float */
#define FAKE_STREAMS 64

enum {
#define F(field, name, args) CALL_##field,
#include "cuda/driver.def"
#undef F
    CALLS
};

extern struct fake_state {
    long calls[CALLS], all;
    int fail_call; /* -1: any */
    long fail_after; /* calls to go; 0: no fault */
    int fail_result;
    bool fail_once;
    _Atomic long fired; /* read while the engine runs */
    bool idle; /* kernels do nothing */
    int broken; /* result of every later call */
    int version, devices, capability, sm_count;
    size_t memory;
    char why[256];
} fake;
extern size_t fake_live_device, fake_live_pinned, fake_live_streams, fake_live_events,
    fake_live_modules, fake_live_graphs, fake_live_contexts;

typedef struct work {
    struct work *next;
    const hostrun_kernel *kernel; /* NULL: a copy, or a fill when from is NULL */
    unsigned grid[3], block[3], cluster;
    size_t shared, bytes;
    void *to, *own; /* own: arguments, or a copy of pageable source */
    const void *from;
    int value;
} work;

struct turbok_cu_graph {
    work *first, **end;
};
struct turbok_cu_graph_exec {
    work *first, **end;
};
struct turbok_cu_stream {
    work *first, **end;
    struct turbok_cu_graph *capture;
};
struct turbok_cu_event {
    struct turbok_cu_stream *stream;
    bool asked; /* whether it is over, since it was recorded */
};
struct turbok_cu_module {
    int unused;
};

extern struct turbok_cu_stream *fake_streams[FAKE_STREAMS]; /* memory is freed when all are idle */

void fakecuda_fail(const char *name, long n, int result, int once);
size_t fake_shared(void); /* bytes that a block of the card may have */
/* What a call must return before it does anything; 0: it may go on. */
int fake_enter(int call, bool on_device);
void *fake_take(size_t bytes, bool pinned);
int fake_give(void *p, bool pinned);
/* Is [p, p + n) inside one allocation of that kind? */
bool fake_inside(const void *p, size_t n, bool pinned);
void *fake_own(size_t bytes); /* for what a work keeps */
/* Queues work, or puts it into the graph that is being captured; own [n_own] is copied. */
int fake_append(struct turbok_cu_stream *s, const work *proto, const void *own, size_t n_own);
/* Does what is queued; the result of a broken device. */
int fake_flush(struct turbok_cu_stream *s);
int fake_flush_all(void);
void fake_drop(work *w);

#endif
