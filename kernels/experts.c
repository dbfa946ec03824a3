/* kernels/experts.c: a layer of experts as one handle over the matrices of each: see turbok.h. Caller's thread. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

turbo_status turbok_experts_check(const turbo_moe *m, turbo_err *err)
{
    if (m->n_experts < 1 || m->n_experts > TURBO_MOE_EXPERTS)
        return turbok_fail(err, TURBO_EINVAL, "a layer of %d experts; 1 to %d are possible",
                           m->n_experts, TURBO_MOE_EXPERTS);
    if (m->n_chosen < 1 || m->n_chosen > m->n_experts || m->n_chosen > TURBO_MOE_CHOSEN)
        return turbok_fail(err, TURBO_EINVAL,
                           "%d of %d experts for a token; 1 to %d are possible, and no more than "
                           "there are",
                           m->n_chosen, m->n_experts, TURBO_MOE_CHOSEN);
    if (m->inner < 1 || m->width < 1 || m->act < TURBO_ACT_SILU || m->act > TURBO_ACT_QUICK_GELU)
        return turbok_fail(err, TURBO_EINVAL,
                           "experts of width %d with %d numbers inside and activation %d are not "
                           "possible",
                           m->width, m->inner, m->act);
    return TURBO_OK;
}

uint64_t turbok_experts_bytes(const turbok_device *d, const turbo_moe *m)
{
    return d && d->backend ? d->backend->experts_bytes(m->n_experts) : 0;
}

turbo_status turbok_experts_new(turbok_device *d, const turbo_moe *m, const turbo_linear *const *w,
                                turbo_experts **out, turbo_err *err)
{
    turbo_status st = turbok_experts_check(m, err);
    if (st)
        return st;
    size_t n = 3 * (size_t)m->n_experts;
    for (size_t i = 0; i < n; i++) {
        int64_t rows = i % 3 < 2 ? m->inner : m->width, in = i % 3 < 2 ? m->width : m->inner;
        if (w[i]->out != rows || w[i]->in != in || w[i]->bias)
            return turbok_fail(err, TURBO_EINVAL,
                               "matrix %zu of %zu of a layer of experts is no %lld x %lld, or it "
                               "has a bias",
                               i, n, (long long)rows, (long long)in);
    }
    turbo_experts *x = calloc(1, sizeof *x);
    if (x)
        x->w = calloc(n, sizeof *x->w);
    if (!x || !x->w) {
        free(x);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a handle of %d experts", m->n_experts);
    }
    x->m = *m;
    memcpy(x->w, w, n * sizeof *x->w);
    st = d->backend ? d->backend->experts_open(d, x, err) : TURBO_OK;
    if (st)
        turbok_experts_free(d, x);
    else
        *out = x;
    return st;
}

void turbok_experts_free(turbok_device *d, turbo_experts *x)
{
    if (!x)
        return;
    if (d->backend)
        d->backend->experts_close(d, x);
    free(x->w);
    free(x);
}
