/* plugins/samp-std/shape.c: logprobs, masks, bias and penalties. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "samp.h"

/* Does a stand before b in order of logit, then id? */
static bool better(float la, int32_t a, float lb, int32_t b)
{
    return la > lb || (!(la < lb) && a < b);
}

void samp_logprobs(const samp *s, turbo_sample_row *row, float best, double *log_z)
{
    const float *l = row->logits;
    int32_t want = row->params->n_logprobs < s->vocab ? row->params->n_logprobs : s->vocab, n = 0;
    double sum = samp_sums(l, s->vocab, (double)best, 1, s->prob);
    for (int32_t i = 0; want && i < s->vocab; i++) {
        if (n == want && !better(l[i], i, row->top[n - 1].logprob, row->top[n - 1].id))
            continue;
        int32_t k = n < want ? n++ : n - 1; /* insertion into the best so far */
        while (k > 0 && better(l[i], i, row->top[k - 1].logprob, row->top[k - 1].id)) {
            row->top[k] = row->top[k - 1];
            k--;
        }
        row->top[k] = (turbo_logprob){i, l[i]};
    }
    *log_z = (double)best + log(sum);
    for (int32_t k = 0; k < n; k++)
        row->top[k].logprob = (float)((double)row->top[k].logprob - *log_z);
    row->n_top = n;
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
            match =
                st->recent[(st->n_recent - (uint32_t)head + (uint32_t)k) % SAMP_RECENT] == word[k];
        if (match)
            l[word[head]] = -INFINITY;
    }
}

static void penalise(float *l, const turbo_sample_params *p, const samp_state *st)
{
    for (uint32_t i = 0; st->tracking && i < st->n_seen; i++) {
        const seen *e = &st->list[i];
        float *v = &l[e->id];
        if (isinf(*v))
            continue; /* banned */
        /* CTRL, arXiv 1909.05858: divide what is positive, multiply what is negative. */
        float w = *v > 0 ? *v / p->repetition_penalty : *v * p->repetition_penalty;
        if (e->output)
            w -= p->presence_penalty + p->frequency_penalty * (float)e->output;
        /* Extreme settings must not turn a number into a ban. */
        *v = w > FLT_MAX ? FLT_MAX : w < -FLT_MAX ? -FLT_MAX : w;
    }
}

bool samp_shape(samp *s, const turbo_sample_row *row)
{
    const turbo_sample_params *p = row->params;
    const samp_state *st = row->state;
    float *l = row->logits;
    bool held = (int64_t)st->position < p->min_tokens && p->n_stop;
    if (!p->n_allowed && !p->n_bad && !held && !p->n_bias && !(st->tracking && st->n_seen))
        return false;
    mask_allowed(s, l, p);
    mask_bad_words(l, p, st);
    for (int32_t i = 0; held && i < p->n_stop; i++)
        l[p->stop_ids[i]] = -INFINITY;
    for (int32_t i = 0; i < p->n_bias; i++)
        l[p->bias[i].id] += p->bias[i].bias;
    penalise(l, p, st);
    return true;
}
