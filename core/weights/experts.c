/* core/weights/experts.c: a layer of experts out of the matrices of each. Main thread. Must not know: what a
 * router computes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"
#include "weights/state.h"

#define MAX_NAME 512

/* name with the number of an expert in place of its '#'. */
static turbo_status expert_name(const char *name, int32_t e, char *out, turbo_err *err)
{
    const char *mark = strchr(name, '#');
    int k = -1;
    if (mark && !strchr(mark + 1, '#'))
        k = snprintf(out, MAX_NAME, "%.*s%d%s", (int)(mark - name), name, e, mark + 1);
    if (k < 0 || k >= MAX_NAME)
        return turbod_err(err, TURBO_EINVAL,
                          "experts are called \"%.120s\": one '#' for their number is needed, and "
                          "less than %d bytes",
                          name, MAX_NAME);
    return TURBO_OK;
}

/* w [3n]: gate, up and down of each. */
static turbo_status take_matrices(turbo_weights *view, const turbo_moe *m,
                                  const char *const names[3], const turbo_linear **w,
                                  turbo_err *err)
{
    char name[MAX_NAME];
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < 3 * m->n_experts && !st; i++) {
        int64_t rows = i % 3 < 2 ? m->inner : m->width, in = i % 3 < 2 ? m->width : m->inner;
        st = expert_name(names[i % 3], i / 3, name, err);
        if (!st)
            st = turbod_host_linear(view, name, rows, in, TURBOK_LINEAR_EXPERT, &w[i], err);
    }
    return st;
}

/* What sums have gained since `before` are experts. */
static turbo_status count_experts(turbo_weights *w, const turbo_moe *m,
                                  const turbod_weights_sums *before, turbo_err *err)
{
    turbod_weights_sums *s = w->sums;
    uint64_t n = (uint64_t)m->n_experts, rest = n - (uint64_t)m->n_chosen;
    s->idle += (s->matmul - before->matmul) / n * rest;
    s->idle_stored += (s->matmul_stored - before->matmul_stored) / n * rest;
    return weights_add(&s->linear, turbok_experts_bytes(w->opts.device, m), err);
}

static turbo_status make_experts(turbo_weights *w, const turbo_moe *m,
                                 const turbo_linear *const *matrices, const turbo_experts **out,
                                 turbo_err *err)
{
    turbo_experts *x = NULL;
    turbo_status st = turbok_experts_new(w->opts.device, m, matrices, &x, err);
    if (!st && (st = weights_keep(w, HANDLE_EXPERTS, x, err)))
        turbok_experts_free(w->opts.device, x);
    if (!st)
        *out = x;
    return st;
}

turbo_status turbod_host_experts(turbo_weights *view, const turbo_moe *theirs, const char *gate,
                                 const char *up, const char *down, const turbo_experts **out,
                                 turbo_err *err)
{
    turbo_weights *w = weights_base(view);
    const char *const names[3] = {gate, up, down};
    turbo_moe m = {0};
    memcpy(&m, theirs, theirs->size < sizeof m ? theirs->size : sizeof m);
    m.size = sizeof m;
    turbo_err why = {{0}};
    turbo_status st = turbok_experts_check(&m, &why);
    if (st)
        return turbod_err(err, st, "%.80s: %.160s", gate, why.text);
    const turbo_linear **matrices = calloc(3 * (size_t)m.n_experts, sizeof *matrices);
    if (!matrices)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %d experts", m.n_experts);
    turbod_weights_sums before = w->sums ? *w->sums : (turbod_weights_sums){0};
    st = take_matrices(view, &m, names, matrices, err);
    if (!st && w->sums) {
        *out = (const turbo_experts *)(const void *)weights_stand_in;
        st = count_experts(w, &m, &before, err);
    } else if (!st) {
        st = make_experts(w, &m, matrices, out, err);
    }
    free(matrices);
    return st;
}
