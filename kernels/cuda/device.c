/* kernels/cuda/device.c: a CUDA device behind turbok.h: opening, memory, copies of single blocks. Caller's
 * thread, but for block_read and block_write, which any thread may call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/graph.h"
#include "cuda/state.h"

static turbok_cuda *self_of(const turbok_device *d)
{
    return d->exec.self;
}

static void cuda_close(turbok_device *d)
{
    turbok_cuda *s = self_of(d);
    if (!s)
        return;
    if (s->cu && s->cu->ctx) {
        const turbok_cu_driver *drv = &s->cu->drv;
        (void)drv->ctx_set(s->cu->ctx);
        (void)drv->stream_synchronize(s->cu->stream);
        turbok_cuda_steps_close(d);
        turbok_cuda_stages_close(s);
        turbok_cuda_gaps_close(s);
        if (s->arena)
            (void)drv->mem_free(s->arena);
        turbok_blas_close(s->blas);
    }
    turbok_cu_close(s->cu);
    free(s->coder);
    free(s);
    d->exec.self = NULL;
}

/* A device that sizes can be asked of, and nothing else. */
static turbo_status describe(turbok_device *d, const turbok_card *card, turbo_err *err)
{
    turbok_cuda *s = self_of(d);
    turbok_cu *cu = calloc(1, sizeof *cu);
    if (!cu)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a device");
    s->cu = cu;
    cu->sm_count = card->sm_count;
    cu->major = card->major;
    cu->minor = card->minor;
    cu->total_bytes = card->memory;
    cu->context_bytes = card->context;
    snprintf(cu->name, sizeof cu->name, "%s", card->name);
    snprintf(d->name, sizeof d->name, "%s", card->name);
    return TURBO_OK;
}

static turbo_status cuda_open(turbok_device *d, const turbok_device_opts *o, turbo_err *err)
{
    turbok_cuda *s = calloc(1, sizeof *s);
    if (!s)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a device");
    d->exec.self = s;
    s->act = o->act_dtype;
    s->recording = -1;
    s->graphs = !o->no_graphs;
    if (o->card)
        return describe(d, o->card, err);
    turbo_status st = turbok_cu_open(o->ordinal, &s->cu, err);
    if (st)
        return st;
    s->cu->deterministic = o->deterministic;
    snprintf(d->name, sizeof d->name, "%s", s->cu->name);
    st = turbok_cuda_stages_open(s, err);
    if (!st && !turbok_cuda_gaps_open(s))
        st = turbok_fail(err, TURBO_ENOMEM, "no memory for the gaps between steps");
    if (!st)
        st = turbok_blas_open(s->cu, &s->blas, err);
    if (!st)
        st = turbok_cu_measure(s->cu, err);
    return st;
}

#define PLACE 256 /* where memory from the driver begins, too */
#define SLACK ((size_t)1 << 20) /* for the places of some thousand matrices and vectors */

turbo_status turbok_cuda_expect(turbok_device *d, uint64_t bytes, turbo_err *err)
{
    turbok_cuda *s = self_of(d);
    size_t n = (size_t)bytes + SLACK;
    if (s->arena || !bytes)
        return TURBO_OK;
    if (n < bytes || s->cu->drv.mem_alloc(&s->arena, n)) {
        s->arena = 0;
        return turbok_fail(
            err, TURBO_ENOMEM,
            "the device is full: no memory for %llu MiB of weights; use a smaller or "
            "quantised model, or end what else uses the device",
            (unsigned long long)(bytes >> 20));
    }
    s->arena_bytes = n;
    s->arena_used = 0;
    turbok_cu_fill(s->cu, s->arena, 0, n);
    return turbok_cu_status(s->cu, err);
}

void *turbok_cuda_take(turbok_device *d, size_t bytes)
{
    turbok_cuda *s = self_of(d);
    turbok_cu_ptr p = 0;
    size_t place = (bytes + PLACE - 1) / PLACE * PLACE;
    if (place >= bytes && place <= s->arena_bytes - s->arena_used) {
        p = s->arena + s->arena_used;
        s->arena_used += place;
        return (void *)(uintptr_t)p;
    }
    if (s->cu->drv.mem_alloc(&p, bytes))
        return NULL;
    turbok_cu_fill(s->cu, p, 0, bytes);
    return (void *)(uintptr_t)p;
}

void turbok_cuda_give(turbok_device *d, void *p, size_t bytes)
{
    turbok_cuda *s = self_of(d);
    (void)bytes;
    if (p && turbok_cu_at(p) - s->arena >= s->arena_bytes) /* what lies in the arena goes with it */
        turbok_cu_note(s->cu, s->cu->drv.mem_free(turbok_cu_at(p)), "freeing device memory");
}

static void *cuda_host_take(turbok_device *d, size_t bytes)
{
    void *p = NULL;
    return self_of(d)->cu->drv.host_alloc(&p, bytes, TURBOK_CU_HOST_PORTABLE) ? NULL : p;
}

static void cuda_host_give(turbok_device *d, void *p, size_t bytes)
{
    turbok_cuda *s = self_of(d);
    (void)bytes;
    turbok_cu_note(s->cu, s->cu->drv.host_free(p), "freeing pinned memory");
}

static uint64_t cuda_vacant(turbok_device *d)
{
    turbok_cu *cu = self_of(d)->cu;
    size_t vacant = 0, total = 0;
    if (!cu->ctx)
        return cu->total_bytes - cu->context_bytes;
    turbok_cu_note(cu, cu->drv.mem_info(&vacant, &total), "free memory is not known");
    return vacant;
}

static turbo_status cuda_wait(turbok_device *d, turbo_err *err)
{
    turbo_status st = turbok_cuda_finish_loads(d, err);
    turbo_status waited = turbok_cu_wait(self_of(d)->cu, st ? NULL : err);
    return st ? st : waited;
}

static turbo_status cuda_enter(turbok_device *d, turbo_err *err)
{
    turbok_cu *cu = self_of(d)->cu;
    turbok_cu_note(cu, cu->drv.ctx_set(cu->ctx), "the CUDA context cannot be used");
    return turbok_cu_status(cu, err);
}

static uint64_t cuda_context(const turbok_device *d)
{
    return self_of(d)->cu->context_bytes;
}

static uint64_t cuda_later_bytes(const turbok_device *d, const turbok_steps *steps)
{
    (void)d;
    return SLACK + turbok_cuda_graphs_bytes(steps);
}

static int32_t cuda_gaps(const turbok_device *d, const float **us)
{
    *us = self_of(d)->gaps;
    return self_of(d)->n_gaps;
}

static void cuda_block_copy(turbok_device *d, void *to, const void *from, size_t bytes)
{
    turbok_cu *cu = self_of(d)->cu;
    if (!turbok_cu_bad(cu))
        turbok_cu_note(cu,
                       cu->drv.copy_on_device(turbok_cu_at(to), turbok_cu_at(from), bytes,
                                              cu->stream),
                       "copy of a KV block");
}

/* A thread that is not the engine's has no context yet. The stream orders these copies behind whatever
 * wrote the block; who asks for them holds off whoever would write it. */
static void cuda_block_read(turbok_device *d, void *to, const void *from, size_t bytes)
{
    turbok_cu *cu = self_of(d)->cu;
    turbok_cu_note(cu, cu->drv.ctx_set(cu->ctx), "a KV block cannot be read");
    turbok_cu_to_host(cu, to, turbok_cu_at(from), bytes);
    turbok_cu_wait(cu, NULL);
}

static void cuda_block_write(turbok_device *d, void *to, const void *from, size_t bytes)
{
    turbok_cu *cu = self_of(d)->cu;
    turbok_cu_note(cu, cu->drv.ctx_set(cu->ctx), "a KV block cannot be written");
    turbok_cu_to_device(cu, turbok_cu_at(to), from, bytes);
    turbok_cu_wait(cu, NULL);
}

static void cuda_block_out(turbok_device *d, void *to, const void *from, size_t bytes)
{
    turbok_cu_to_host(self_of(d)->cu, to, turbok_cu_at(from), bytes);
}

static void cuda_block_in(turbok_device *d, void *to, const void *from, size_t bytes)
{
    turbok_cu_to_device(self_of(d)->cu, turbok_cu_at(to), from, bytes);
}

const turbok_backend *turbok_backend_entry(void)
{
    static const turbok_backend backend = {
        .build = TURBOK_BUILD,
        .name = "cuda",
        .open = cuda_open,
        .close = cuda_close,
        .ops = turbok_cuda_ops,
        .vacant = cuda_vacant,
        .context = cuda_context,
        .take = turbok_cuda_take,
        .give = turbok_cuda_give,
        .expect = turbok_cuda_expect,
        .host_take = cuda_host_take,
        .host_give = cuda_host_give,
        .rows_bytes = turbok_cuda_rows_bytes,
        .linear_rows_new = turbok_cuda_linear_rows_new,
        .linear_free = turbok_cuda_linear_free,
        .experts_bytes = turbok_cuda_experts_bytes,
        .experts_open = turbok_cuda_experts_open,
        .experts_close = turbok_cuda_experts_close,
        .upload = turbok_cuda_upload,
        .block_copy = cuda_block_copy,
        .block_read = cuda_block_read,
        .block_write = cuda_block_write,
        .block_out = cuda_block_out,
        .block_in = cuda_block_in,
        .wait = cuda_wait,
        .enter = cuda_enter,
        .steps_bytes = turbok_cuda_steps_bytes,
        .later_bytes = cuda_later_bytes,
        .steps_open = turbok_cuda_steps_open,
        .step_begin = turbok_cuda_step_begin,
        .step_end = turbok_cuda_step_end,
        .step_drop = turbok_cuda_step_drop,
        .step_wait = turbok_cuda_step_wait,
        .draws_as = "std",
        .draws = turbok_cuda_draws,
        .place_begin = turbok_cuda_place_begin,
        .gaps = cuda_gaps,
    };
    return &backend;
}
