/* plugins/samp-std/shape.c: logprobs, masks, bias and penalties. */
#include <math.h>
#include <string.h>

#include "samp.h"

/* Does a stand before b in order of logit, then id? */
static bool better(float la, int32_t a, float lb, int32_t b)
{
    return la > lb || (!(la < lb) && a < b);
}

turbo_status samp_logprobs(const samp *s, turbo_sample_row *row, double *log_z)
{
    const float *l = row->logits;
    float m = -INFINITY;
    int32_t want = row->params->n_logprobs > 0 ? row->params->n_logprobs : 0, n = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (isnan(l[i]) || (isinf(l[i]) && l[i] > 0))
            return TURBO_EDATA;
        m = l[i] > m ? l[i] : m;
    }
    if (isinf(m))
        return TURBO_EDATA;
    if (row->params->n_logprobs < 0)
        return TURBO_OK;
    double sum = 0;
    for (int32_t i = 0; i < s->vocab; i++) {
        sum += (double)expf(l[i] - m);
        if (n == want && (!want || !better(l[i], i, row->top[n - 1].logprob, row->top[n - 1].id)))
            continue;
        int32_t k = n < want ? n++ : n - 1; /* insertion into the best so far */
        while (k > 0 && better(l[i], i, row->top[k - 1].logprob, row->top[k - 1].id)) {
            row->top[k] = row->top[k - 1];
            k--;
        }
        row->top[k] = (turbo_logprob){i, l[i]};
    }
    *log_z = (double)m + log(sum);
    for (int32_t k = 0; k < n; k++)
        row->top[k].logprob = (float)((double)row->top[k].logprob - *log_z);
    row->n_top = n;
    return TURBO_OK;
}

static void mask_allowed(samp *s, float *l, const turbo_sample_params *p)
{
    if (!p->n_allowed)
        return;
    memset(s->ids, 0, (size_t)s->vocab * sizeof *s->ids);
    for (int32_t i = 0; i < p->n_allowed; i++)
        s->ids[p->allowed[i]] = 1;
    for (int32_t i = 0; i < s->vocab; i++)
        if (!s->ids[i])
            l[i] = -INFINITY;
}

static void mask_bad_words(float *l, const turbo_sample_params *p, const samp_state *st)
{
    const int32_t *word = p->bad_ids;
    for (int32_t w = 0; w < p->n_bad; word += p->bad_len[w], w++) {
        int32_t head = p->bad_len[w] - 1;
        bool match = head >= 0 && head <= SAMP_RECENT && (uint32_t)head <= st->n_recent;
        for (int32_t k = 0; match && k < head; k++)
            match = st->recent[(st->n_recent - (uint32_t)head + (uint32_t)k) % SAMP_RECENT] == word[k];
        if (match)
            l[word[head]] = -INFINITY;
    }
}

static void penalise(float *l, const turbo_sample_params *p, const samp_state *st)
{
    for (uint32_t i = 0; st->tracking && i <= st->mask; i++) {
        const seen *e = &st->table[i];
        if (!e->id)
            continue;
        float *v = &l[e->id - 1];
        /* CTRL, arXiv 1909.05858: divide what is positive, multiply what is negative. */
        *v = *v > 0 ? *v / p->repetition_penalty : *v * p->repetition_penalty;
        if (e->output)
            *v -= p->presence_penalty + p->frequency_penalty * (float)e->output;
    }
}

void samp_shape(samp *s, const turbo_sample_row *row)
{
    const turbo_sample_params *p = row->params;
    const samp_state *st = row->state;
    float *l = row->logits;
    mask_allowed(s, l, p);
    mask_bad_words(l, p, st);
    if ((int64_t)st->position < p->min_tokens)
        for (int32_t i = 0; i < p->n_stop; i++)
            l[p->stop_ids[i]] = -INFINITY;
    for (int32_t i = 0; i < p->n_bias; i++)
        l[p->bias[i].id] += p->bias[i].bias;
    penalise(l, p, st);
}
