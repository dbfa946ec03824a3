/* kernels/cuda/upload.c: numbers of the host to the device, through a ring of pinned buffers: all threads of the pool
 * fill one while those before it are copied. What lies in a file is read from there: the page cache hands over more
 * that way than by mapping, page by page. Caller's thread and the pool. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "cuda/state.h"
#include "timing.h"

/* What a thread fills at a time: it stays in the second cache for the check. */
enum { PIECE = 256 << 10 };

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

void turbok_cuda_sent(turbok_cuda *s)
{
    turbok_cu_note(s->cu, s->cu->drv.event_record(s->staged[s->stage_now], s->cu->stream),
                   "copy to the device");
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

typedef struct fill {
    const turbok_cuda_source *from;
    uint64_t offset;
    char *to;
    size_t bytes;
    _Atomic bool unread, strange;
} fill;

static void fill_pieces(void *ctx, int64_t from, int64_t to, int thread)
{
    fill *f = ctx;
    (void)thread;
    for (size_t at = (size_t)from * PIECE; at < f->bytes && at < (size_t)to * PIECE; at += PIECE) {
        size_t n = f->bytes - at < PIECE ? f->bytes - at : PIECE;
        if (!turbok_cuda_fetch(f->from, f->offset + at, n, f->to + at))
            atomic_store(&f->unread, true);
        else if (f->from->finite && !turbok_all_finite(f->from->dtype, f->to + at, n))
            atomic_store(&f->strange, true);
    }
}

turbo_status turbok_cuda_send(turbok_device *d, void *to, const turbok_cuda_source *from,
                              size_t bytes, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    for (size_t done = 0; done < bytes && !turbok_cu_bad(s->cu); done += STAGE_BYTES) {
        fill f = {.from = from, .offset = done, .bytes = bytes - done};
        f.bytes = f.bytes < STAGE_BYTES ? f.bytes : STAGE_BYTES;
        f.to = turbok_cuda_buffer(d, f.bytes);
        turbok_cuda_fill(d, f.bytes, (int64_t)(f.bytes + PIECE - 1) / PIECE, fill_pieces, &f);
        if (atomic_load(&f.unread))
            return turbok_cuda_unread(err);
        if (atomic_load(&f.strange))
            return turbok_fail(err, TURBO_EDATA, "a number is not finite");
        turbok_cu_to_device(s->cu, turbok_cu_at(to) + done, f.to, f.bytes);
        turbok_cuda_sent(s);
    }
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
