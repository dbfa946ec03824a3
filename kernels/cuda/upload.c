/* kernels/cuda/upload.c: numbers of the host to the device, through a ring of pinned buffers: all threads of the pool
 * fill one while those before it are copied. What lies in a file is read from there: the page cache hands over more
 * that way than by mapping, page by page. Not so of a file in tmpfs: the first who reads its pages has the kernel move
 * each to another list, under one lock for all threads, which takes three times as long as the copies; a mapping does
 * not. Caller's thread and the pool. */
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda/state.h"
#include "timing.h"

/* What a thread fills at a time: it stays in the second cache for the check. */
enum { PIECE = 128 << 10, PIECES = (int)(STAGE_BYTES / PIECE) }; /* of a buffer */
/* Pieces that a thread takes at once where it touches a mapping: threads side by side wait for each other at the page
 * table of their 2 MiB. */
enum { TOGETHER = 4 };

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
    free(s->later);
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
    if (!from->file || from->file->mapped) {
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

/* Bytes on their way, in portions of at most a buffer, each of one load. All threads fill pieces of them, in order. The
 * caller's thread does so too when it has nothing better to do: it alone speaks to the driver, starts the copy of a
 * portion that is full, and opens a further one when a buffer is free. */
typedef struct flow {
    turbok_device *d;
    const turbok_cuda_load *loads; /* [n] */
    int32_t n;
    int64_t portions;
    int64_t deal; /* pieces that a thread takes at once; divides PIECES */
    int64_t sent; /* portions whose copy has been asked for; the caller's */
    int32_t load; /* of the portion that is opened next, and where in it; the caller's */
    size_t at;
    _Alignas(64) _Atomic int64_t next; /* piece that nobody has taken, PIECES of a portion */
    _Alignas(64) _Atomic int64_t open; /* portions that have a buffer, or had one */
    /* Of portion k, at k % STAGES: */
    struct {
        const turbok_cuda_load *load;
        size_t at, bytes;
        char *place;
        int stage;
        _Atomic int64_t filled; /* pieces, those beyond its end too */
    } portion[STAGES];
    _Atomic(const turbok_cuda_load *) unread, strange; /* what cannot be used */
} flow;

static int64_t portions_of(const turbok_cuda_load *l)
{
    return (int64_t)((l->bytes + STAGE_BYTES - 1) / STAGE_BYTES);
}

static size_t portion_of(const turbok_cuda_load *l, size_t at)
{
    return l->bytes - at < STAGE_BYTES ? l->bytes - at : STAGE_BYTES;
}

static bool is_mapped(const turbok_cuda_load *l)
{
    return l->from.file && l->from.file->mapped;
}

static void fill_piece(flow *f, int64_t piece)
{
    int64_t k = piece / PIECES % STAGES;
    const turbok_cuda_load *l = f->portion[k].load;
    size_t at = (size_t)(piece % PIECES) * PIECE;
    if (at < f->portion[k].bytes && !atomic_load(&f->unread) && !atomic_load(&f->strange)) {
        size_t rest = f->portion[k].bytes - at, n = rest < PIECE ? rest : PIECE;
        char *to = f->portion[k].place + at;
        if (!turbok_cuda_fetch(&l->from, f->portion[k].at + at, n, to))
            atomic_store(&f->unread, l);
        else if (l->from.finite && !turbok_all_finite(l->from.dtype, to, n))
            atomic_store(&f->strange, l);
    }
    atomic_fetch_add_explicit(&f->portion[k].filled, 1, memory_order_release);
}

/* Fills pieces of what is open; false: there are none that nobody has taken. Who waits holds no piece: it may lose its
 * CPU meanwhile. */
static bool fill_some(flow *f)
{
    int64_t open = atomic_load(&f->open) * PIECES, next = atomic_load(&f->next);
    while (next < open)
        if (atomic_compare_exchange_weak(&f->next, &next, next + f->deal)) {
            for (int64_t i = 0; i < f->deal; i++)
                fill_piece(f, next + i);
            return true;
        }
    return false;
}

/* Is there a buffer for so much that no copy uses any more? Who asks never waits. */
static bool is_free(turbok_cuda *s, size_t bytes)
{
    if (s->stage_used + (bytes + 63) / 64 * 64 <= STAGE_BYTES || turbok_cu_bad(s->cu))
        return true;
    int r = s->cu->drv.event_query(s->staged[(s->stage_now + 1) % STAGES]);
    if (r && r != TURBOK_CU_NOT_READY)
        turbok_cu_note(s->cu, r, "copy to the device");
    return r != TURBOK_CU_NOT_READY;
}

/* A mapping beyond the end of its file cannot be touched. */
static bool is_there(const turbok_file *file, uint64_t end)
{
    struct stat now;
    return !fstat(file->fd, &now) && (uint64_t)now.st_size >= file->at + end;
}

static void open_portion(flow *f, int64_t k)
{
    turbok_cuda *s = f->d->exec.self;
    const turbok_cuda_load *l = &f->loads[f->load];
    size_t n = portion_of(l, f->at);
    if (is_mapped(l) && !is_there(l->from.file, f->at + n))
        atomic_store(&f->unread, l);
    f->portion[k % STAGES].place = turbok_cuda_buffer(f->d, n);
    f->portion[k % STAGES].stage = s->stage_now;
    f->portion[k % STAGES].load = l;
    f->portion[k % STAGES].at = f->at;
    f->portion[k % STAGES].bytes = n;
    atomic_store(&f->portion[k % STAGES].filled, 0);
    f->at += n;
    if (f->at == l->bytes)
        f->load++, f->at = 0;
    atomic_store_explicit(&f->open, k + 1, memory_order_release);
}

static bool full(const flow *f, int64_t k)
{
    return atomic_load_explicit(&f->portion[k % STAGES].filled, memory_order_acquire) == PIECES;
}

static void send_portion(flow *f, int64_t k)
{
    turbok_cuda *s = f->d->exec.self;
    turbok_cu_to_device(s->cu, f->portion[k % STAGES].load->to + f->portion[k % STAGES].at,
                        f->portion[k % STAGES].place, f->portion[k % STAGES].bytes);
    mark_sent(s, f->portion[k % STAGES].stage);
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

/* The caller's thread. A portion is opened as early as may be. */
static void direct(flow *f)
{
    turbok_cuda *s = f->d->exec.self;
    for (int64_t waited = 0; f->sent < f->portions;) {
        int64_t open = atomic_load(&f->open);
        if (f->sent < open && full(f, f->sent)) {
            send_portion(f, f->sent++);
        } else if (open < f->portions && open - f->sent < STAGES &&
                   is_free(s, portion_of(&f->loads[f->load], f->at))) {
            open_portion(f, open);
        } else if (!fill_some(f)) {
            double from = now();
            pause_for(&waited);
            f->d->copied.waiting += now() - from;
        }
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
    for (int64_t waited = 0; atomic_load(&f->next) < f->portions * PIECES;)
        if (!fill_some(f))
            pause_for(&waited);
}

/* Gives pages of mappings back that were touched: one thread alone would take as long for it as the copies. */
static void leave(void *ctx, int64_t from, int64_t to, int thread)
{
    const flow *f = ctx;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    (void)thread;
    for (int32_t i = 0; i < f->n && to > 0; i++) {
        const turbok_cuda_load *l = &f->loads[i];
        int64_t portions = portions_of(l);
        for (int64_t k = from > 0 ? from : 0; k < portions && k < to && is_mapped(l); k++) {
            size_t at = (size_t)k * STAGE_BYTES;
            uintptr_t begin = (uintptr_t)l->from.data + at, end = begin + portion_of(l, at);
            begin = (begin + page - 1) / page * page; /* whole pages: others may need the rest */
            if (end / page * page > begin) /* advice only: failure costs memory */
                madvise((void *)begin, end / page * page - begin, MADV_DONTNEED);
        }
        from -= portions;
        to -= portions;
    }
}

/* EDATA as send has it, with the name where it is known. */
static turbo_status run(turbok_device *d, const turbok_cuda_load *loads, int32_t n, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    flow f = {.d = d, .loads = loads, .n = n, .deal = 1};
    size_t bytes = 0;
    double begin = now(), waited = d->copied.waiting;
    for (int32_t i = 0; i < n; i++) {
        f.portions += portions_of(&loads[i]);
        bytes += loads[i].bytes;
        f.deal = is_mapped(&loads[i]) ? TOGETHER : f.deal;
    }
    if (turbok_cu_bad(s->cu))
        return TURBO_OK; /* whoever asks is told */
    turbok_pool_for(d->exec.pool, bytes > PIECE ? turbok_pool_threads(d->exec.pool) : 1, 1,
                    take_part, &f);
    if (f.deal > 1 && !atomic_load(&f.unread))
        turbok_pool_for(d->exec.pool, f.portions, 1, leave, &f);
    d->copied.filling += now() - begin - (d->copied.waiting - waited);
    d->copied.bytes += bytes;
    const turbok_cuda_load *unread = atomic_load(&f.unread), *strange = atomic_load(&f.strange);
    turbo_err why;
    if (unread && unread->name) {
        turbo_status st = turbok_cuda_unread(&why);
        return turbok_fail(err, st, "%.80s: %.160s", unread->name, why.text);
    }
    if (unread)
        return turbok_cuda_unread(err);
    if (strange && strange->name)
        return turbok_fail(err, TURBO_EDATA,
                           TURBOK_NOT_FINITE " (allow_nonfinite = true loads it all the same)",
                           strange->name);
    return strange ? turbok_fail(err, TURBO_EDATA, "a number is not finite") : TURBO_OK;
}

turbo_status turbok_cuda_send(turbok_device *d, void *to, const turbok_cuda_source *from,
                              size_t bytes, turbo_err *err)
{
    const turbok_cuda_load load = {.from = *from, .to = turbok_cu_at(to), .bytes = bytes};
    return bytes ? run(d, &load, 1, err) : TURBO_OK;
}

static void begin_later(turbok_device *d)
{
    turbok_cuda *s = d->exec.self;
    for (int32_t i = 0; i < s->n_later; i++)
        s->later[i].from.file = &s->later[i].file;
    if (s->n_later && !s->later_bad)
        s->later_bad = run(d, s->later, s->n_later, &s->later_why);
    s->n_later = 0;
    s->later_bytes = 0;
}

turbo_status turbok_cuda_send_later(turbok_device *d, void *to, const turbok_part *part,
                                    int32_t dtype, size_t bytes, turbo_err *err)
{
    enum { MORE = 64 };
    const size_t most = (size_t)512 << 20;
    turbok_cuda *s = d->exec.self;
    if (!bytes)
        return TURBO_OK;
    if (s->n_later == s->later_room) {
        turbok_cuda_load *p = realloc(s->later, ((size_t)s->later_room + MORE) * sizeof *s->later);
        if (!p)
            return turbok_fail(err, TURBO_ENOMEM, "no memory for a list of copies");
        s->later = p;
        s->later_room += MORE;
    }
    s->later[s->n_later++] = (turbok_cuda_load){
        .from = {.data = part->data, .dtype = dtype, .finite = part->finite},
        .file = *part->file,
        .name = part->name,
        .to = turbok_cu_at(to),
        .bytes = bytes,
    };
    s->later_bytes += bytes;
    if (s->later_bytes >= most)
        begin_later(d);
    return TURBO_OK;
}

turbo_status turbok_cuda_finish_loads(turbok_device *d, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    begin_later(d);
    turbo_status st = s->later_bad;
    s->later_bad = TURBO_OK;
    return st ? turbok_fail(err, st, "%s", s->later_why.text) : TURBO_OK;
}

void turbok_cuda_forget(turbok_cuda *s, const void *p, size_t bytes)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_later; i++)
        if (s->later[i].to - turbok_cu_at(p) >= bytes)
            s->later[n++] = s->later[i];
        else
            s->later_bytes -= s->later[i].bytes;
    s->n_later = n;
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
