/* plugins/samp-lua/program.c: checks programs and runs their steps. Engine thread, but for the check. */
#include "program.h"

#include <float.h>
#include <math.h>
#include <string.h>

static bool in(float v, double lo, double hi)
{
    return (double)v >= lo && (double)v <= hi;
}

/* The ranges of each kind; the host has checked them too, for its own callers. */
static bool good_step(const turbo_sample_step *s)
{
    switch (s->kind) {
    case TURBO_STEP_PENALIZE:
        return in(s->a, 1e-6, 10) && in(s->b, -2, 2) && in(s->c, -2, 2) && s->n >= 0;
    case TURBO_STEP_TEMPERATURE: return in(s->a, 0, 100);
    case TURBO_STEP_TOP_K: return s->n >= 0;
    case TURBO_STEP_TOP_P:
    case TURBO_STEP_TYPICAL: return in(s->a, 1e-12, 1);
    case TURBO_STEP_MIN_P: return in(s->a, 0, 1);
    case TURBO_STEP_TOP_N_SIGMA: return in(s->a, 0, 1000);
    case TURBO_STEP_XTC: return in(s->a, 1e-12, 1) && in(s->b, 0, 1);
    case TURBO_STEP_DRY:
        return in(s->a, 0, 1e6) && in(s->b, 1, 100) && s->n >= 0 && s->m >= 0 && s->n_ids <= 64;
    case TURBO_STEP_MIROSTAT: return in(s->a, 1e-3, 100) && in(s->b, 0, 1);
    case TURBO_STEP_SCALE: return in(s->a, 0, 1e6);
    case TURBO_STEP_ADD:
    case TURBO_STEP_SET: return in(s->a, -1e6, 1e6);
    case TURBO_STEP_ALLOW:
    case TURBO_STEP_BAN: return true;
    case TURBO_STEP_FORCE: return s->n_ids == 1;
    case TURBO_STEP_NO_REPEAT_NGRAM: return s->n >= 1;
    default: return false;
    }
}

const char *program_check(const turbo_sample_params *p, int32_t vocab)
{
    if (p->n_program < 0 || p->n_program > PROGRAM_STEPS)
        return "a sampling program has more than 64 steps";
    for (int32_t i = 0; i < p->n_program; i++) {
        const turbo_sample_step *s = &p->program[i];
        if (s->n_ids < 0 || !good_step(s))
            return "a step of the sampling program is unknown or out of its range";
        for (int32_t k = 0; k < s->n_ids; k++)
            if (s->ids[k] < 0 || s->ids[k] >= vocab || (s->values && !in(s->values[k], -1e6, 1e6)))
                return "a step of the sampling program names an id beyond the vocabulary";
    }
    return NULL;
}

bool program_has(const turbo_sample_params *p, int32_t kind)
{
    for (int32_t i = 0; i < p->n_program; i++)
        if (p->program[i].kind == kind)
            return true;
    return false;
}

static void scale(program_row *r, float by)
{
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        if (r->l[i] > -INFINITY) {
            float v = r->l[i] * by;
            r->l[i] = v > FLT_MAX ? FLT_MAX : v < -FLT_MAX ? -FLT_MAX : v;
        }
}

static void allow(program_row *r, const turbo_sample_step *s)
{
    int32_t *mark = r->s->mark;
    for (int32_t i = 0; i < s->n_ids; i++)
        mark[s->ids[i]] = 1;
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        if (!mark[i])
            r->l[i] = -INFINITY;
    for (int32_t i = 0; i < s->n_ids; i++)
        mark[s->ids[i]] = 0;
}

static void force(program_row *r, int32_t id)
{
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        r->l[i] = -INFINITY;
    r->l[id] = 0;
}

static void each_id(program_row *r, const turbo_sample_step *s)
{
    for (int32_t i = 0; i < s->n_ids; i++) {
        float *l = &r->l[s->ids[i]];
        if (s->kind == TURBO_STEP_BAN)
            *l = -INFINITY;
        else if (s->kind == TURBO_STEP_SET)
            *l = s->a;
        else
            *l += s->values ? s->values[i] : s->a;
    }
}

static bool run_step(program_row *r, const turbo_sample_step *s)
{
    switch (s->kind) {
    case TURBO_STEP_PENALIZE: repeat_penalize(r, s); return true;
    case TURBO_STEP_TEMPERATURE:
        if (s->a <= 0)
            return filter_greedy(r);
        scale(r, 1 / s->a);
        return true;
    case TURBO_STEP_TOP_K: return filter_top_k(r, s->n);
    case TURBO_STEP_TOP_P: return filter_top_p(r, (double)s->a);
    case TURBO_STEP_MIN_P: return filter_min_p(r, (double)s->a);
    case TURBO_STEP_TYPICAL: return filter_typical(r, (double)s->a);
    case TURBO_STEP_TOP_N_SIGMA: return filter_top_n_sigma(r, (double)s->a);
    case TURBO_STEP_XTC: return filter_xtc(r, (double)s->a, (double)s->b);
    case TURBO_STEP_DRY: repeat_dry(r, s); return true;
    case TURBO_STEP_MIROSTAT: return filter_mirostat(r, (double)s->a);
    case TURBO_STEP_SCALE: scale(r, s->a); return true;
    case TURBO_STEP_ALLOW: allow(r, s); return true;
    case TURBO_STEP_FORCE: force(r, s->ids[0]); return true;
    case TURBO_STEP_NO_REPEAT_NGRAM: repeat_ngram(r, s->n); return true;
    default: each_id(r, s); return true;
    }
}

turbo_status program_run(program_row *r, const turbo_sample_params *p)
{
    for (int32_t i = 0; i < p->n_program; i++) {
        r->index = (uint32_t)i;
        if (!run_step(r, &p->program[i]))
            return TURBO_EINVAL;
    }
    return TURBO_OK;
}
