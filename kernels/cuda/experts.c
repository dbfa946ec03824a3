/* kernels/cuda/experts.c: a layer of experts behind a handle: the table by which kernels find the matrices, and the op.
 * Engine thread. */
#include <stdlib.h>
#include <string.h>

#include "cuda/moe.h"
#include "cuda/state.h"

static size_t table_bytes(int32_t n_experts)
{
    return 3 * (size_t)n_experts * sizeof(turbok_cu_qmat);
}

uint64_t turbok_cuda_experts_bytes(int32_t n_experts)
{
    return turbok_alloc_size(table_bytes(n_experts));
}

static turbok_cu_moe_format format_of(const turbo_linear *w)
{
    const turbok_cu_wq *q = turbok_cuda_coded(w);
    if (!q)
        return (turbok_cu_moe_format){.dtype = w->dtype};
    return (turbok_cu_moe_format){
        .bits = q->bits,
        .group = q->group,
        .kind = q->kind,
        .scale_dtype = q->scale_dtype,
        .offset = q->offset,
        .steps = q->steps,
    };
}

/* One launch multiplies gate and up of all experts, another one down. */
static turbo_status check_formats(const turbo_experts *x, turbo_err *err)
{
    for (int32_t i = 0; i < 3 * x->m.n_experts; i++) {
        const turbok_cu_moe_format own = format_of(x->w[i]);
        const turbok_cu_moe_format first = format_of(x->w[i % 3 < 2 ? 0 : 2]);
        if (x->w[i]->parts || memcmp(&own, &first, sizeof own))
            return turbok_fail(err, TURBO_EUNSUPPORTED,
                               "the %s of expert %d is stored in another way than that of the "
                               "first one, which CUDA cannot multiply; use device = \"cpu\"",
                               i % 3 == 0  ? "gate"
                               : i % 3 < 2 ? "up"
                                           : "down",
                               i / 3);
    }
    return TURBO_OK;
}

turbo_status turbok_cuda_experts_open(turbok_device *d, turbo_experts *x, turbo_err *err)
{
    const turbok_cuda *s = d->exec.self;
    size_t bytes = table_bytes(x->m.n_experts);
    turbo_status st = check_formats(x, err);
    if (st)
        return st;
    turbok_cu_qmat *host = calloc(1, bytes);
    x->table = turbok_alloc(d, TURBOK_MEM_LINEAR, bytes);
    if (!host || !x->table) {
        free(host);
        return turbok_fail(err, TURBO_ENOMEM,
                           "the device is full: no memory for a table of %d experts; use a smaller "
                           "or quantised model, or end what else uses the device",
                           x->m.n_experts);
    }
    for (int32_t i = 0; i < 3 * x->m.n_experts; i++) {
        const turbok_cu_wq *q = turbok_cuda_coded(x->w[i]);
        if (q)
            host[i] = q->m;
        else
            host[i].codes = x->w[i]->data;
    }
    turbok_cuda_upload(d, x->table, host, bytes);
    free(host);
    return turbok_cu_status(s->cu, err);
}

void turbok_cuda_experts_close(turbok_device *d, turbo_experts *x)
{
    turbok_release(d, TURBOK_MEM_LINEAR, x->table, table_bytes(x->m.n_experts));
}

void turbok_cuda_op_moe(turbo_exec *x, const turbo_linear *router, const turbo_experts *w,
                        const void *in, int32_t T, void *scratch, void *out)
{
    turbok_cuda *s = turbok_cuda_of(x);
    const turbok_cu_moe m = {
        .w = w->table,
        .up = format_of(w->w[0]),
        .down = format_of(w->w[2]),
        .n = w->m.n_experts,
        .k = w->m.n_chosen,
        .E = w->m.width,
        .I = w->m.inner,
        .fn = w->m.act,
        .normalise = w->m.normalise != 0,
    };
    turbok_cuda_flush(s);
    size_t logits = ((size_t)T * (size_t)m.n * sizeof(float) + 255) / 256 * 256;
    turbok_cuda_multiply(s, router, in, T, TURBO_F32, scratch);
    turbok_cu_moe_layer(s->cu, s->act, &m, scratch, in, T, out, (char *)scratch + logits);
}
