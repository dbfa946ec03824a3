/* kernels/nn/moe.c: a layer of experts: routing, and the gated MLP of each expert over the tokens that chose it.
 *
 * Experts are taken in the order of their numbers, so what a token gets is added in an order that is its own, and a
 * row of an MLP has the same bits alone and among others: neighbours change nothing. An expert that nobody
 * chose is not read. */
#include <math.h>
#include <string.h>

#include "internal.h"

/* The scratch, cut up. A choice is one of the k experts of a token: number t * k + j. */
typedef struct moe_job {
    const turbo_moe *m;
    float *logits; /* [T,n] */
    int32_t *expert; /* [T*k] */
    float *score; /* [T*k] */
    int32_t *order; /* [T*k] choices, those of expert 0 first */
    int32_t *end; /* [n] behind the last choice of each expert */
    float *x; /* [rows,E] tokens of one expert */
    float *hidden; /* [rows,2*I] */
    float *y; /* [rows,E] */
    const float *in; /* [T,E] */
    float *out; /* [T,E] */
    const int32_t *choice; /* [rows] of the expert that is computed */
} moe_job;

static void *cut(char **at, size_t bytes)
{
    void *p = *at;
    *at += (bytes + 63) / 64 * 64;
    return p;
}

static void lay_out(moe_job *j, const turbo_moe *m, int32_t T, void *scratch)
{
    size_t t = (size_t)T, E = (size_t)m->width, n = (size_t)m->n_experts;
    size_t choices = t * (size_t)m->n_chosen;
    char *at = scratch;
    j->m = m;
    j->logits = cut(&at, t * n * sizeof(float));
    j->expert = cut(&at, choices * sizeof(int32_t));
    j->score = cut(&at, choices * sizeof(float));
    j->order = cut(&at, choices * sizeof(int32_t));
    j->end = cut(&at, n * sizeof(int32_t));
    j->x = cut(&at, t * E * sizeof(float));
    j->hidden = cut(&at, t * 2 * (size_t)m->inner * sizeof(float));
    j->y = cut(&at, t * E * sizeof(float));
}

/* Of logits l [n]. A NaN among them makes every score NaN, and the step ends as a numeric error. */
static void choose(const turbo_moe *m, const float *l, int32_t *expert, float *score)
{
    uint8_t taken[TURBO_MOE_EXPERTS];
    float top = l[0], sum = 0, chosen = 0;
    memset(taken, 0, (size_t)m->n_experts);
    for (int32_t e = 1; e < m->n_experts; e++)
        top = l[e] > top ? l[e] : top;
    for (int32_t e = 0; e < m->n_experts; e++)
        sum += expf(l[e] - top);
    for (int32_t j = 0; j < m->n_chosen; j++) {
        int32_t best = -1;
        for (int32_t e = 0; e < m->n_experts; e++)
            if (!taken[e] && (best < 0 || l[e] > l[best]))
                best = e;
        taken[best] = 1;
        expert[j] = best;
        score[j] = expf(l[best] - top) / sum;
        chosen += score[j];
    }
    for (int32_t j = 0; m->normalise && j < m->n_chosen; j++)
        score[j] /= chosen;
}

static void route_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const moe_job *j = ctx;
    int64_t k = j->m->n_chosen;
    (void)thread;
    for (int64_t t = from; t < to; t++)
        choose(j->m, j->logits + t * j->m->n_experts, j->expert + t * k, j->score + t * k);
}

/* Choices in the order of experts, and of tokens for each. */
static void sort_choices(const moe_job *j, int32_t T)
{
    int32_t n = j->m->n_experts, choices = T * j->m->n_chosen, at = 0;
    memset(j->end, 0, (size_t)n * sizeof *j->end);
    for (int32_t i = 0; i < choices; i++)
        j->end[j->expert[i]]++;
    for (int32_t e = 0; e < n; e++) { /* begins, until they are walked to their ends */
        int32_t count = j->end[e];
        j->end[e] = at;
        at += count;
    }
    for (int32_t i = 0; i < choices; i++)
        j->order[j->end[j->expert[i]]++] = i;
}

static void gather_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const moe_job *j = ctx;
    size_t E = (size_t)j->m->width;
    (void)thread;
    for (int64_t r = from; r < to; r++)
        memcpy(j->x + (size_t)r * E, j->in + (size_t)(j->choice[r] / j->m->n_chosen) * E,
               E * sizeof *j->x);
}

/* A token has an expert once: no two rows are added to one. */
static void scatter_range(void *ctx, int64_t from, int64_t to, int thread)
{
    const moe_job *j = ctx;
    size_t E = (size_t)j->m->width;
    (void)thread;
    for (int64_t r = from; r < to; r++) {
        const float *y = j->y + (size_t)r * E;
        float *out = j->out + (size_t)(j->choice[r] / j->m->n_chosen) * E;
        float score = j->score[j->choice[r]];
        for (size_t i = 0; i < E; i++)
            out[i] += score * y[i];
    }
}

/* Rows that a thread should have at least: some ten microseconds of copying. */
static int64_t grain_of(const turbo_moe *m)
{
    return 1 + (1 << 15) / m->width;
}

void turbok_op_moe(turbo_exec *x, const turbo_linear *router, const turbo_experts *w,
                   const void *in, int32_t T, void *scratch, void *out)
{
    moe_job j = {.in = in, .out = out};
    const turbo_moe *m = &w->m;
    lay_out(&j, m, T, scratch);
    turbok_op_logits(x, router, in, T, j.logits);
    turbok_pool_for(x->pool, T, 1 + 4096 / m->n_experts, route_range, &j);
    sort_choices(&j, T);
    memset(out, 0, (size_t)T * (size_t)m->width * sizeof(float));
    for (int32_t e = 0, from = 0; e < m->n_experts; from = j.end[e++]) {
        const turbo_linear *const *mats = w->w + 3 * (size_t)e;
        int32_t rows = j.end[e] - from;
        if (!rows)
            continue;
        j.choice = j.order + from;
        turbok_pool_for(x->pool, rows, grain_of(m), gather_range, &j);
        turbok_op_gated_mlp(x, mats[0], mats[1], mats[2], m->act, j.x, rows, j.hidden, j.y);
        turbok_pool_for(x->pool, rows, grain_of(m), scatter_range, &j);
    }
}
