/* kernels/cuda/upload.c: numbers of the host to the device, through a ring of pinned buffers: all threads of the pool
 * fill one while those before it are copied. What lies in a file is read from there: the page cache hands over more
 * that way than by mapping, page by page. Caller's thread and the pool. */
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "cuda/state.h"
#include "timing.h"

/* What a thread fills at a time: it stays in the second cache for the check. */
enum { PIECE = 128 << 10, PIECES = (int)(STAGE_BYTES / PIECE) };

turbo_status turbok_cuda_stages_open(turbok_cuda *s, turbo_err *err)
{
    const turbok_cu_driver *drv = &s->cu->drv;
    for (int i = 0; i < STAGES; i++) {
        void *p = NULL;
        int r = drv->host_alloc(&p, STAGE_BYTES, TURBOK_CU_HOST_PORTABLE);
        s->stage[i] = p;
        if (!r)
            r = drv->event_create(&s->staged[i], TURBOK_CU_EVENT_NO_TIMING);
        if (r)
            return turbok_cu_result(drv, r, "no pinned memory for copies", err);
    }
    return TURBO_OK;
}

void turbok_cuda_stages_close(turbok_cuda *s)
{
    const turbok_cu_driver *drv = &s->cu->drv;
    for (int i = 0; i < STAGES; i++) {
        if (s->staged[i])
            (void)drv->event_destroy(s->staged[i]);
        if (s->stage[i])
            (void)drv->host_free(s->stage[i]);
    }
}

char *turbok_cuda_stage(turbok_cuda *s, size_t bytes)
{
    size_t need = (bytes + 63) / 64 * 64;
    if (s->stage_used + need > STAGE_BYTES) {
        s->stage_now = (s->stage_now + 1) % STAGES;
        s->stage_used = 0;
        /* The copies that used this buffer before have ended; the others' may still run. */
        turbok_cu_note(s->cu, s->cu->drv.event_synchronize(s->staged[s->stage_now]),
                       "copy to the device");
    }
    char *p = s->stage[s->stage_now] + s->stage_used;
    s->stage_used += need;
    return p;
}

char *turbok_cuda_buffer(turbok_device *d, size_t bytes)
{
    double from = now();
    char *p = turbok_cuda_stage(d->exec.self, bytes);
    d->copied.waiting += now() - from;
    return p;
}

void turbok_cuda_fill(turbok_device *d, size_t bytes, int64_t n, turbok_range_fn fn, void *ctx)
{
    double from = now();
    turbok_pool_for(d->exec.pool, n, 1, fn, ctx);
    d->copied.filling += now() - from;
    d->copied.bytes += bytes;
}

static void mark_sent(turbok_cuda *s, int stage)
{
    turbok_cu_note(s->cu, s->cu->drv.event_record(s->staged[stage], s->cu->stream),
                   "copy to the device");
}

void turbok_cuda_sent(turbok_cuda *s)
{
    mark_sent(s, s->stage_now);
}

bool turbok_cuda_fetch(const turbok_cuda_source *from, uint64_t offset, size_t n, void *to)
{
    if (!from->file) {
        memcpy(to, (const char *)from->data + offset, n);
        return true;
    }
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(from->file->fd, (char *)to + done, n - done,
                            (off_t)(from->file->at + offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (size_t)got;
    }
    return true;
}

turbo_status turbok_cuda_unread(turbo_err *err)
{
    return turbok_fail(err, TURBO_EDATA,
                       "the file cannot be read to its end; it was changed or its disk fails");
}

/* Bytes on their way, in portions of a buffer each. All threads fill pieces of them, in order. The caller's thread
 * does so too when it has nothing better to do: it alone speaks to the driver, starts the copy of a portion that is
 * full, and opens a further one when a buffer is free. */
typedef struct flow {
    turbok_device *d;
    const turbok_cuda_source *from;
    turbok_cu_ptr to;
    size_t bytes;
    int64_t portions, pieces;
    int64_t sent; /* portions whose copy has been asked for; the caller's */
    _Alignas(64) _Atomic int64_t next; /* piece that nobody has taken */
    _Alignas(64) _Atomic int64_t open; /* portions that have a buffer, or had one */
    /* Of portion k, at k % STAGES: */
    char *place[STAGES];
    int stage[STAGES];
    _Atomic int64_t filled[STAGES]; /* pieces */
    _Atomic bool unread, strange;
} flow;

static size_t portion_bytes(const flow *f, int64_t portion)
{
    size_t rest = f->bytes - (size_t)portion * STAGE_BYTES;
    return rest < STAGE_BYTES ? rest : STAGE_BYTES;
}

static void fill_piece(flow *f, int64_t piece)
{
    int64_t k = piece / PIECES;
    size_t at = (size_t)piece * PIECE, rest = f->bytes - at, n = rest < PIECE ? rest : PIECE;
    char *to = f->place[k % STAGES] + (size_t)(piece % PIECES) * PIECE;
    if (!atomic_load(&f->unread) && !atomic_load(&f->strange)) {
        if (!turbok_cuda_fetch(f->from, at, n, to))
            atomic_store(&f->unread, true);
        else if (f->from->finite && !turbok_all_finite(f->from->dtype, to, n))
            atomic_store(&f->strange, true);
    }
    atomic_fetch_add_explicit(&f->filled[k % STAGES], 1, memory_order_release);
}

/* Fills a piece of what is open; false: there is none that nobody has taken. Who waits holds no piece: it may lose its
 * CPU meanwhile. */
static bool fill_one(flow *f)
{
    int64_t open = atomic_load(&f->open) * PIECES, next = atomic_load(&f->next);
    open = open < f->pieces ? open : f->pieces;
    while (next < open)
        if (atomic_compare_exchange_weak(&f->next, &next, next + 1)) {
            fill_piece(f, next);
            return true;
        }
    return false;
}

static void open_portion(flow *f, int64_t k)
{
    turbok_cuda *s = f->d->exec.self;
    f->place[k % STAGES] = turbok_cuda_buffer(f->d, portion_bytes(f, k));
    f->stage[k % STAGES] = s->stage_now;
    atomic_store(&f->filled[k % STAGES], 0);
    atomic_store_explicit(&f->open, k + 1, memory_order_release);
}

static bool full(const flow *f, int64_t k)
{
    return atomic_load_explicit(&f->filled[k % STAGES], memory_order_acquire) ==
           (int64_t)((portion_bytes(f, k) + PIECE - 1) / PIECE);
}

static void send_portion(flow *f, int64_t k)
{
    turbok_cuda *s = f->d->exec.self;
    turbok_cu_to_device(s->cu, f->to + (size_t)k * STAGE_BYTES, f->place[k % STAGES],
                        portion_bytes(f, k));
    mark_sent(s, f->stage[k % STAGES]);
}

/* Once in a loop that waits. Copies take some 0.2 ms, and who gives its CPU away may not have it back for several: that
 * is for machines where a thread that all wait for has none. */
static void pause_for(int64_t *waited)
{
    enum { LONG = 1 << 16 };
    turbok_relax();
    if (++*waited % LONG == 0)
        sched_yield();
}

/* The caller's thread. A portion is opened as early as may be: when that has to wait, the card is what all wait for. */
static void direct(flow *f)
{
    for (int64_t waited = 0; f->sent < f->portions;) {
        int64_t open = atomic_load(&f->open);
        if (f->sent < open && full(f, f->sent))
            send_portion(f, f->sent++);
        else if (open < f->portions && open - f->sent < STAGES)
            open_portion(f, open);
        else if (!fill_one(f))
            pause_for(&waited);
    }
}

static void take_part(void *ctx, int64_t from, int64_t to, int thread)
{
    flow *f = ctx;
    (void)from;
    (void)to;
    if (!thread) { /* a second time it finds nothing to do */
        direct(f);
        return;
    }
    for (int64_t waited = 0; atomic_load(&f->next) < f->pieces;)
        if (!fill_one(f))
            pause_for(&waited);
}

turbo_status turbok_cuda_send(turbok_device *d, void *to, const turbok_cuda_source *from,
                              size_t bytes, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    flow f = {.d = d,
              .from = from,
              .to = turbok_cu_at(to),
              .bytes = bytes,
              .portions = (int64_t)((bytes + STAGE_BYTES - 1) / STAGE_BYTES),
              .pieces = (int64_t)((bytes + PIECE - 1) / PIECE)};
    double begin = now(), waited = d->copied.waiting;
    if (turbok_cu_bad(s->cu))
        return TURBO_OK; /* whoever asks is told */
    turbok_pool_for(d->exec.pool, f.pieces > 1 ? turbok_pool_threads(d->exec.pool) : 1, 1,
                    take_part, &f);
    d->copied.filling += now() - begin - (d->copied.waiting - waited);
    d->copied.bytes += bytes;
    if (atomic_load(&f.unread))
        return turbok_cuda_unread(err);
    if (atomic_load(&f.strange))
        return turbok_fail(err, TURBO_EDATA, "a number is not finite");
    return TURBO_OK;
}

void turbok_cuda_put(turbok_cuda *s, void *to, const void *from, size_t bytes)
{
    for (size_t done = 0, n; done < bytes && !turbok_cu_bad(s->cu); done += n) {
        n = bytes - done < STAGE_BYTES ? bytes - done : STAGE_BYTES;
        char *p = turbok_cuda_stage(s, n);
        memcpy(p, (const char *)from + done, n);
        turbok_cu_to_device(s->cu, turbok_cu_at(to) + done, p, n);
        turbok_cuda_sent(s);
    }
}

void turbok_cuda_upload(turbok_device *d, void *to, const void *from, size_t bytes)
{
    (void)turbok_cuda_send(d, to, &(turbok_cuda_source){.data = from}, bytes, NULL);
}
