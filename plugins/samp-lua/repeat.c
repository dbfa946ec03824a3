/* plugins/samp-lua/repeat.c: steps that look back at what was said. Engine thread. */
#include <float.h>
#include <math.h>

#include "program.h"

static void set(float *l, double v)
{
    if (*l >
        -INFINITY) /* banned stays banned; an extreme setting must not turn a number into a ban */
        *l = v > (double)FLT_MAX ? FLT_MAX : v < -(double)FLT_MAX ? -FLT_MAX : (float)v;
}

/* Repetition over the window (CTRL, arXiv 1909.05858), presence and frequency over the part of it
 * that is output. */
void repeat_penalize(program_row *r, const turbo_sample_step *s)
{
    const lua_state *st = r->st;
    int32_t from = s->n > 0 && s->n < st->n ? st->n - s->n : 0, *mark = r->s->mark;
    for (int32_t i = from; i < st->n; i++)
        mark[st->history[i]] += i < st->n_prompt ? 0 : 1;
    for (int32_t i = from; i < st->n; i++) {
        int32_t id = st->history[i];
        if (mark[id] < 0)
            continue; /* seen to already */
        double v = (double)r->l[id];
        v = v > 0 ? v / (double)s->a : v * (double)s->a;
        if (mark[id])
            v -= (double)s->b + (double)s->c * mark[id];
        set(&r->l[id], v);
        mark[id] = -1;
    }
    for (int32_t i = from; i < st->n; i++)
        mark[st->history[i]] = 0;
}

/* What would complete a run of n tokens that is there already is banned. */
void repeat_ngram(program_row *r, int32_t n)
{
    const int32_t *h = r->st->history;
    int32_t len = r->st->n, head = n - 1;
    for (int32_t i = 0; i + head < len; i++) {
        int32_t k = 0;
        while (k < head && h[i + k] == h[len - head + k])
            k++;
        if (k == head)
            r->l[h[i + head]] = -INFINITY;
    }
}

static bool breaks(const turbo_sample_step *s, int32_t id)
{
    for (int32_t i = 0; i < s->n_ids; i++)
        if (s->ids[i] == id)
            return true;
    return false;
}

/* DRY (text-generation-webui, pull request 5677): a token that would prolong a repetition of m tokens,
 * m >= allowed, loses multiplier * base^(m - allowed). Repetitions do not reach over breakers.
 * z[k] is how far the text ending at len - 1 - k agrees, backwards, with its end: the Z algorithm on the
 * reversed window, so the whole is linear. z lies in scratch memory. */
void repeat_dry(program_row *r, const turbo_sample_step *s)
{
    const lua_state *st = r->st;
    int32_t len = s->m > 0 && s->m < st->n ? s->m : st->n, most = 0;
    const int32_t *end = st->history + st->n - 1; /* end[-k]: k tokens before the last */
    int32_t *longest = r->s->mark, *z = r->s->std->pool;
    if (len > r->s->std->vocab)
        len = r->s->std->vocab; /* z has that much room */
    while (most < len && !breaks(s, end[-most]))
        most++; /* no match can be longer than the text since the last breaker */
    for (int32_t k = 1, left = 0, right = 0; k < len; k++) {
        z[k] = 0;
        if (k < right)
            z[k] = z[k - left] < right - k ? z[k - left] : right - k;
        while (k + z[k] < len && end[-(k + z[k])] == end[-z[k]])
            z[k]++;
        if (k + z[k] > right) {
            left = k;
            right = k + z[k];
        }
        int32_t m = z[k] < most ? z[k] : most, next = end[-(k - 1)];
        if (m > longest[next])
            longest[next] = m;
    }
    for (int32_t k = 1; k < len; k++) {
        int32_t id = end[-(k - 1)], m = longest[id];
        longest[id] = 0;
        if (m >= s->n && m > 0 && !breaks(s, id))
            set(&r->l[id], (double)r->l[id] - (double)s->a * pow((double)s->b, (double)(m - s->n)));
    }
}
