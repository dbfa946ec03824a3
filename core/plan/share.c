/* core/plan/share.c: one machine's memory among several models. Pure arithmetic, as plan.c. Any thread.
 *
 * B_i is what model i takes before any KV cache, A_i an absolute KV size with its index. With F free bytes
 * L = F - sum B_i - sum A_i is left, and of it model i with a fraction gets L s_i / sum s: it is planned as
 * if it were alone on a machine with B_i and that many bytes free. */
#include <stdio.h>
#include <stdlib.h>

#include "plan/plan.h"
#include "util/checked.h"
#include "util/err.h"

/* What the model takes for certain: with an absolute size its KV cache too. */
static turbo_status need(const turbod_plan_share *s, uint64_t *out, turbo_err *err)
{
    turbod_plan_in in = s->in;
    turbod_plan p;
    in.vacant = 0;
    if (!in.cache_bytes) /* only the fixed part is asked for; a block is the least there can be */
        in.cache_bytes = UINT64_MAX / 2;
    turbo_status st = turbod_plan_make(&in, &p, err);
    *out = p.fixed;
    if (st || !s->in.cache_bytes)
        return st;
    /* plan.c counts the index beside the size that was asked for */
    return turbod_add(p.fixed, s->in.cache_bytes, out) &&
                   turbod_add(*out, p.bytes[TURBOD_MEM_KV_INDEX], out)
               ? TURBO_OK
               : turbod_err(err, TURBO_ELIMIT, "cache_max_entry_count is too large; lower it");
}

turbo_status turbod_plan_divide(turbod_plan_share *at, size_t n, uint64_t vacant, size_t *which,
                                turbo_err *err)
{
    uint64_t sum = 0;
    double shares = 0;
    *which = n;
    for (size_t i = 0; i < n; i++) {
        turbo_status st = need(&at[i], &at[i].in.vacant, err);
        if (!st && !turbod_add(sum, at[i].in.vacant, &sum))
            st = turbod_err(err, TURBO_ELIMIT, "the models take more bytes than can be counted");
        if (st) {
            *which = i;
            return st;
        }
        shares += at[i].in.cache_bytes ? 0 : at[i].share;
    }
    char needed[32], there[32];
    if (vacant && sum > vacant)
        return turbod_err(err, TURBO_ENOMEM,
                          "the %zu models need %s together before KV caches of a fraction, "
                          "%s are free: serve fewer, or lower max_batch_size, "
                          "max_prefill_token_num or an absolute cache_max_entry_count",
                          n, turbod_plan_size((double)sum, needed),
                          turbod_plan_size((double)vacant, there));
    for (size_t i = 0; i < n; i++) {
        turbod_plan_in *in = &at[i].in;
        if (!vacant)
            in->vacant = 0; /* unknown: plan.c says what that means */
        else if (!in->cache_bytes)
            in->vacant += (uint64_t)((double)(vacant - sum) * at[i].share / shares);
        turbo_status st = turbod_plan_make(in, &at[i].plan, err);
        if (st) {
            *which = i;
            return st;
        }
    }
    return TURBO_OK;
}

turbo_status turbod_plan_divide_places(turbod_plan_share *at, size_t n, size_t *which,
                                       turbo_err *err)
{
    turbo_status st = TURBO_OK;
    *which = n;
    turbod_plan_share *same = calloc(n, sizeof *same);
    size_t *from = calloc(n, sizeof *from);
    bool *done = calloc(n, sizeof *done);
    if (!same || !from || !done)
        st = turbod_err(err, TURBO_ENOMEM, "no memory to plan %zu models", n);
    for (size_t i = 0; !st && i < n; i++) {
        size_t m = 0, one;
        if (done[i])
            continue;
        /* Its own context is in the vacant bytes of a share; of a place they are together what was vacant before any
         * device was opened. */
        uint64_t vacant = at[i].in.vacant - (at[i].in.vacant ? at[i].in.context : 0);
        for (size_t k = i; k < n; k++)
            if (at[k].place == at[i].place) {
                vacant += at[i].in.vacant ? at[k].in.context : 0;
                done[k] = true;
                from[m] = k;
                same[m++] = at[k];
            }
        st = turbod_plan_divide(same, m, vacant, &one, err);
        if (one < m)
            *which = from[one];
        for (size_t k = 0; k < m; k++)
            at[from[k]] = same[k];
    }
    free(same);
    free(from);
    free(done);
    return st;
}
