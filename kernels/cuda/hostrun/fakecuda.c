/* kernels/cuda/hostrun/fakecuda.c: see fakecuda.h. For tests only. */
#include "cuda/hostrun/fakestate.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define GUARD 256
#define GUARD_BYTE 0xa5
#define VAST                                                                                       \
    ((size_t)1 << 30) /* from here on pages are taken as they are touched, without poison */

/* ---- faults and counts ----------------------------------------------------------------------- */

static const char *const call_names[CALLS] = {
#define F(field, name, args) name,
#include "cuda/driver.def"
#undef F
};

struct fake_state fake;
size_t fake_live_device, fake_live_pinned, fake_live_streams, fake_live_events, fake_live_modules,
    fake_live_graphs, fake_live_contexts;

static void fake_broke(int result, const char *why)
{
    fake.broken = result;
    snprintf(fake.why, sizeof fake.why, "%s", why);
}

/* What a call must return before it does anything; 0: it may go on. */
int fake_enter(int call, bool on_device)
{
    fake.calls[call]++;
    fake.all++;
    if (fake.fail_after && (fake.fail_call < 0 || fake.fail_call == call) &&
        fake.fail_after-- == 1) {
        if (!fake.fail_once)
            fake.fail_after = 1;
        fake.fired++;
        if (fake.fail_result >= TURBOK_CU_ILLEGAL_ADDRESS)
            fake_broke(fake.fail_result, "planted");
        return fake.fail_result;
    }
    return on_device ? fake.broken : 0;
}

EXPORT void fakecuda_fail(const char *name, long n, int result, int once);
EXPORT long fakecuda_fired(void);
EXPORT void fakecuda_kernels(int run);
EXPORT long fakecuda_calls(const char *name);
EXPORT long fakecuda_launched(const char *name);
EXPORT size_t fakecuda_live(const char *what);
EXPORT const char *fakecuda_why(void);

static int call_of(const char *name)
{
    for (int i = 0; name && i < CALLS; i++)
        if (!strcmp(call_names[i], name))
            return i;
    return -1;
}

void fakecuda_fail(const char *name, long n, int result, int once)
{
    fake.fail_call = call_of(name);
    fake.fail_after = n;
    fake.fail_result = result;
    fake.fail_once = once;
    fake.fired = 0;
    if (!n)
        fake.broken = 0;
}

long fakecuda_fired(void)
{
    return fake.fired;
}

void fakecuda_kernels(int run)
{
    fake.idle = !run;
}

long fakecuda_calls(const char *name)
{
    return name ? fake.calls[call_of(name)] : fake.all;
}

/* How often each kernel ran. */
enum { MOST_KERNELS = 256 };
static struct {
    const hostrun_kernel *kernel;
    long n;
} launched[MOST_KERNELS];

static void count_launch(const hostrun_kernel *k)
{
    int i = 0;
    while (i < MOST_KERNELS && launched[i].kernel && launched[i].kernel != k)
        i++;
    if (i == MOST_KERNELS) {
        fake_broke(TURBOK_CU_LAUNCH_FAILED, "more kernels than fakecuda_launched counts");
        return;
    }
    launched[i].kernel = k;
    launched[i].n++;
}

long fakecuda_launched(const char *name)
{
    long n = 0;
    for (int i = 0; i < MOST_KERNELS && launched[i].kernel; i++)
        if (!name || !strncmp(launched[i].kernel->name, name, strlen(name)))
            n += launched[i].n;
    return n;
}

const char *fakecuda_why(void)
{
    return fake.why;
}

/* ---- memory ------------------------------------------------------------------------------------ */

typedef struct range {
    struct range *next;
    unsigned char *p; /* between its guards */
    size_t bytes;
    bool pinned;
} range;

static range *ranges;

size_t fakecuda_live(const char *what)
{
    size_t n = 0;
    for (const range *r = ranges; r; r = r->next)
        n++;
    return !strcmp(what, "device")     ? fake_live_device
           : !strcmp(what, "pinned")   ? fake_live_pinned
           : !strcmp(what, "streams")  ? fake_live_streams
           : !strcmp(what, "events")   ? fake_live_events
           : !strcmp(what, "modules")  ? fake_live_modules
           : !strcmp(what, "graphs")   ? fake_live_graphs
           : !strcmp(what, "contexts") ? fake_live_contexts
                                       : n;
}

void *fake_take(size_t bytes, bool pinned)
{
    range *r = calloc(1, sizeof *r);
    size_t room = (bytes + 255) / 256 * 256; /* what lies between end and guard is guard, too */
    bool vast = bytes >= VAST;
    unsigned char *all = r && !vast ? aligned_alloc(256, room + 2 * GUARD) : NULL;
    if (r && vast) {
        all = mmap(NULL, room + 2 * GUARD, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        all = all == MAP_FAILED ? NULL : all;
    }
    if (!all) {
        free(r);
        return NULL;
    }
    memset(all, GUARD_BYTE, GUARD);
    if (!vast)
        memset(all + GUARD, FAKE_POISON, bytes);
    memset(all + GUARD + bytes, GUARD_BYTE, room - bytes + GUARD);
    *r = (range){ranges, all + GUARD, bytes, pinned};
    ranges = r;
    *(pinned ? &fake_live_pinned : &fake_live_device) += bytes;
    return r->p;
}

static bool whole(const range *r)
{
    size_t room = (r->bytes + 255) / 256 * 256;
    for (size_t i = 0; i < GUARD; i++)
        if (r->p[-1 - (long)i] != GUARD_BYTE)
            return false;
    for (size_t i = r->bytes; i < room + GUARD; i++)
        if (r->p[i] != GUARD_BYTE)
            return false;
    return true;
}

int fake_give(void *p, bool pinned)
{
    for (range **at = &ranges; *at; at = &(*at)->next) {
        range *r = *at;
        if (r->p != p || r->pinned != pinned)
            continue;
        bool ok = whole(r);
        *at = r->next;
        *(pinned ? &fake_live_pinned : &fake_live_device) -= r->bytes;
        if (r->bytes >= VAST)
            munmap(r->p - GUARD, (r->bytes + 255) / 256 * 256 + 2 * GUARD);
        else
            free(r->p - GUARD);
        free(r);
        if (!ok)
            fake_broke(TURBOK_CU_ILLEGAL_ADDRESS, "something wrote behind or before an allocation");
        return ok ? 0 : TURBOK_CU_ILLEGAL_ADDRESS;
    }
    return p ? TURBOK_CU_INVALID : 0;
}

/* Is [p, p + n) fake_inside one allocation of that kind? */
bool fake_inside(const void *p, size_t n, bool pinned)
{
    const unsigned char *at = p;
    for (const range *r = ranges; r; r = r->next)
        if (r->pinned == pinned && at >= r->p && n <= r->bytes &&
            (size_t)(at - r->p) <= r->bytes - n)
            return true;
    return false;
}

/* ---- work -------------------------------------------------------------------------------------- */

void fake_drop(work *w)
{
    while (w) {
        work *next = w->next;
        free(w->own);
        free(w);
        w = next;
    }
}

/* Arguments hold maps, which lie at multiples of 64 bytes. */
void *fake_own(size_t bytes)
{
    return aligned_alloc(64, (bytes + 64) / 64 * 64);
}

int fake_append(struct turbok_cu_stream *s, const work *proto, const void *own, size_t n_own)
{
    work *w = calloc(1, sizeof *w);
    if (!w)
        return TURBOK_CU_OUT_OF_MEMORY;
    *w = *proto;
    if (own && !(w->own = fake_own(n_own))) {
        free(w);
        return TURBOK_CU_OUT_OF_MEMORY;
    }
    if (own)
        memcpy(w->own, own, n_own);
    work ***end = s->capture ? &s->capture->end : &s->end;
    **end = w;
    *end = &w->next;
    return 0;
}

/* By capability, as the CUDA C++ Programming Guide has it. */
size_t fake_shared(void)
{
    switch (fake.capability) {
    case 75: return 64 << 10;
    case 86:
    case 89:
    case 120:
    case 121: return 99 << 10;
    case 80:
    case 87: return 163 << 10;
    default: return 227 << 10;
    }
}

static void run_one(const work *w)
{
    if (!w->kernel && !w->from) {
        memset(w->to, w->value, w->bytes);
    } else if (!w->kernel) {
        memcpy(w->to, w->own ? w->own : w->from, w->bytes);
    } else if (!fake.idle) {
        char why[200] = "";
        count_launch(w->kernel);
        hostrun_shared(fake_shared());
        if (hostrun_launch(w->kernel, w->grid, w->block, w->cluster, w->shared, w->own, why,
                           sizeof why)) {
            fprintf(stderr, "fakecuda: %s\n", why);
            fake_broke(TURBOK_CU_LAUNCH_FAILED, why);
        }
    }
}

/* Does what is queued; the result of a broken device. */
int fake_flush(struct turbok_cu_stream *s)
{
    work *list = s->first;
    s->first = NULL;
    s->end = &s->first;
    for (const work *w = list; w && !fake.broken; w = w->next) {
        run_one(w);
        if (fake.broken)
            break;
        for (const range *r = w->kernel ? ranges : NULL; r; r = r->next)
            if (!r->pinned && !whole(r)) {
                fprintf(stderr, "fakecuda: kernel %s wrote outside its memory\n", w->kernel->name);
                fake_broke(TURBOK_CU_ILLEGAL_ADDRESS, w->kernel->name);
                break;
            }
    }
    fake_drop(list);
    return fake.broken;
}

struct turbok_cu_stream *fake_streams[FAKE_STREAMS];

int fake_flush_all(void)
{
    for (int i = 0; i < FAKE_STREAMS; i++)
        if (fake_streams[i])
            fake_flush(fake_streams[i]);
    return fake.broken;
}
