/* plugins/samp-lua/filter.c: steps that take tokens away by their probability. Engine thread.
 *
 * Probabilities are of what the steps before have left, in double precision. Ties are broken by the
 * lower id, as everywhere in the samplers. */
#include <math.h>
#include <string.h>

#include "program.h"

#define LN2 0.69314718055994530942

/* Weights of all tokens relative to the best: their sum, and the best's logit. */
static bool weigh(const program_row *r, double *best, double *sum)
{
    int32_t id;
    if (samp_argmax(r->l, r->s->std->vocab, &id))
        return false;
    *best = (double)r->l[id];
    *sum = samp_sums(r->l, r->s->std->vocab, *best, 1, r->s->std->prob);
    return true;
}

/* Only the first n of the order stay. */
static void keep_first(program_row *r, samp_order *o, int32_t n)
{
    int32_t V = r->s->std->vocab;
    for (int32_t i = 0; i < V; i++)
        r->s->row[i] = -INFINITY;
    for (int32_t k = 0; k < n; k++) {
        int32_t id = samp_order_at(o, k);
        r->s->row[id] = r->l[id];
    }
    memcpy(r->l, r->s->row, (size_t)V * sizeof *r->l);
}

static void keep_from(program_row *r, double least)
{
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        if (!((double)r->l[i] >= least))
            r->l[i] = -INFINITY;
}

/* An order in which every finite logit takes part, however far below the best it is. */
static void order_all(const program_row *r, samp_order *o, double best)
{
    double least = best;
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        if ((double)r->l[i] < least && r->l[i] > -INFINITY)
            least = (double)r->l[i];
    double range = best - least;
    samp_order_begin(o, r->s->std, r->l, best, range > 0 ? (SAMP_DEPTH - 0.1) / range : 1);
}

bool filter_greedy(program_row *r)
{
    int32_t id;
    if (samp_argmax(r->l, r->s->std->vocab, &id))
        return false;
    float v = r->l[id];
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        r->l[i] = -INFINITY;
    r->l[id] = v;
    return true;
}

bool filter_top_k(program_row *r, int32_t k)
{
    double best, sum;
    samp_order o;
    if (!weigh(r, &best, &sum))
        return false;
    if (k <= 0 || k >= r->s->std->vocab)
        return true;
    order_all(r, &o, best);
    if (samp_order_has(&o, k))
        keep_first(r, &o, k);
    return true;
}

/* The shortest list of the best whose weights reach p of the sum (arXiv 1904.09751). */
bool filter_top_p(program_row *r, double p)
{
    double best, sum, at = 0;
    samp_order o;
    if (!weigh(r, &best, &sum))
        return false;
    if (p >= 1)
        return true;
    samp_order_begin(&o, r->s->std, r->l, best, 1);
    int32_t n = 0;
    do
        at += exp((double)r->l[samp_order_at(&o, n++)] - best);
    while (at < p * sum && samp_order_has(&o, n));
    keep_first(r, &o, n);
    return true;
}

/* At least p of the best one's probability (arXiv 2407.01082). */
bool filter_min_p(program_row *r, double p)
{
    double best, sum;
    if (!weigh(r, &best, &sum))
        return false;
    if (p > 0)
        keep_from(r, best + log(p));
    return true;
}

/* Locally typical sampling (arXiv 2202.00666): the tokens whose surprise is nearest to the entropy,
 * until they have `mass` of the probability. */
bool filter_typical(program_row *r, double mass)
{
    double best, sum, entropy = 0, at = 0;
    int32_t V = r->s->std->vocab, n = 0;
    if (!weigh(r, &best, &sum))
        return false;
    if (mass >= 1)
        return true;
    double log_z = best + log(sum), top = -INFINITY;
    for (int32_t i = 0; i < V; i++) {
        double lp = (double)r->l[i] - log_z;
        if (lp > -700)
            entropy -= exp(lp) * lp;
    }
    float *key = r->s->row;
    for (int32_t i = 0; i < V; i++) {
        key[i] =
            r->l[i] > -INFINITY ? (float)-fabs(entropy + ((double)r->l[i] - log_z)) : -INFINITY;
        top = (double)key[i] > top ? (double)key[i] : top;
    }
    samp_order o;
    samp_order_begin(&o, r->s->std, key, top, 1);
    int32_t *mark = r->s->mark;
    while ((!n || at < mass) && samp_order_has(&o, n)) {
        int32_t id = samp_order_at(&o, n++);
        at += exp((double)r->l[id] - log_z);
        mark[id] = 1;
    }
    for (int32_t i = 0; i < V; i++) {
        if (!mark[i])
            r->l[i] = -INFINITY;
        mark[i] = 0;
    }
    return true;
}

/* Logits at least n standard deviations of all finite ones below the best (arXiv 2411.07641). */
bool filter_top_n_sigma(program_row *r, double n)
{
    double best, sum, mean = 0, var = 0;
    int32_t V = r->s->std->vocab, count = 0;
    if (!weigh(r, &best, &sum))
        return false;
    for (int32_t i = 0; i < V; i++)
        if (r->l[i] > -INFINITY) {
            mean += (double)r->l[i];
            count++;
        }
    mean /= count;
    for (int32_t i = 0; i < V; i++)
        if (r->l[i] > -INFINITY)
            var += ((double)r->l[i] - mean) * ((double)r->l[i] - mean);
    keep_from(r, best - n * sqrt(var / count));
    return true;
}

/* Exclude top choices: with `probability`, of the tokens that have at least `threshold` only the least
 * likely stays. (The sampler of text-generation-webui, pull request 6335.) */
bool filter_xtc(program_row *r, double threshold, double probability)
{
    double best, sum;
    if (!weigh(r, &best, &sum))
        return false;
    if (!(samp_uniform(r->seed, r->position, r->index + 1) < probability))
        return true;
    double least = best + log(threshold * sum), low = INFINITY;
    int32_t last = -1;
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        if ((double)r->l[i] >= least && (double)r->l[i] <= low) {
            low = (double)r->l[i];
            last =
                i; /* of equals the highest id is the least likely: it stands last in the order */
        }
    for (int32_t i = 0; i < r->s->std->vocab; i++)
        if ((double)r->l[i] >= least && i != last)
            r->l[i] = -INFINITY;
    return true;
}

/* Mirostat, version 2 (arXiv 2007.14966): tokens with a surprise above mu go; the best always stays. */
bool filter_mirostat(program_row *r, double tau)
{
    double best, sum;
    if (!weigh(r, &best, &sum))
        return false;
    if (!(r->st->mu > 0))
        r->st->mu = 2 * tau;
    r->st->z = best + log(sum);
    r->st->mirostat = (int32_t)r->index;
    double least = r->st->z - r->st->mu * LN2;
    keep_from(r, least < best ? least : best);
    return true;
}
