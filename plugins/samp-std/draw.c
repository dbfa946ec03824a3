/* plugins/samp-std/draw.c: temperature, top_k, top_p, min_p and the draw.
 *
 * Candidates are ordered by logit, then by id: a total order, so ties fall the same way everywhere.
 * They are dealt into buckets of equal width by logit, and a bucket is sorted only when the filters
 * or the draw reach it: no sort of 92,544 entries. Those near the best are dealt first, and the others
 * only when somebody asks for more: mostly nobody does, and one quick pass over the vocabulary is all.
 *
 * A token 60 temperatures below the best has a weight of at most e^-60 of it. 2^24 of them, the
 * largest vocabulary, weigh less than 2^-62: less than half of the last bit of any sum here.
 * Leaving them out changes no result. */
#include <math.h>
#include <string.h>

#include "samp.h"

static double weight(const samp_order *o, int32_t id)
{
    return samp_weight(o->key[id], o->top, o->inv);
}

static bool above(const float *l, int32_t a, int32_t b)
{
    return l[a] > l[b] || (!(l[a] < l[b]) && a < b);
}

/* Heap order with the worst on top, for a heap sort that leaves the best first. */
static void sift(const float *l, int32_t *ids, int32_t i, int32_t n)
{
    int32_t id = ids[i];
    for (int32_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && above(l, ids[k], ids[k + 1]))
            k++;
        if (!above(l, id, ids[k]))
            break;
        ids[i] = ids[k];
    }
    ids[i] = id;
}

static void sort(const float *l, int32_t *ids, int32_t n)
{
    if (n <= 24) {
        for (int32_t i = 1; i < n; i++) {
            int32_t id = ids[i], k = i;
            for (; k > 0 && above(l, id, ids[k - 1]); k--)
                ids[k] = ids[k - 1];
            ids[k] = id;
        }
        return;
    }
    for (int32_t i = n / 2; i-- > 0;)
        sift(l, ids, i, n);
    while (--n > 0) {
        int32_t id = ids[0];
        ids[0] = ids[n];
        ids[n] = id;
        sift(l, ids, 0, n);
    }
}

static double depth_of(const samp_order *o, int32_t id)
{
    return (o->top - (double)o->key[id]) * o->inv;
}

/* 0..SAMP_BUCKETS-1 by logit, of what weighs something. Grows with the distance from the best. */
static int32_t bucket_of(const samp_order *o, int32_t id)
{
    int32_t b = (int32_t)(depth_of(o, id) * (SAMP_BUCKETS / SAMP_DEPTH));
    return b < SAMP_BUCKETS ? b : SAMP_BUCKETS - 1;
}

/* Those at least `from` and less than `to` temperatures below the best go behind the ones that are in
 * order already. */
static void deal(samp_order *o, double from, double to)
{
    samp *s = o->s;
    int32_t *end = s->end, *pool = s->pool, n = 0, last = 0;
    /* Only what was used is cleared, and only what is used is summed: usually few buckets are. */
    memset(end, 0, (size_t)(s->last + 2) * sizeof *end);
    for (int32_t at = 0, stop; at < s->vocab; at = stop) {
        stop = s->vocab - at < SAMP_BLOCK ? s->vocab : at + SAMP_BLOCK;
        if (!(samp_depth(o->key, s->vocab, at, o->top, o->inv) < to))
            continue;
        for (int32_t i = at; i < stop; i++) {
            double depth = depth_of(o, i);
            if (!(depth >= from && depth < to))
                continue;
            int32_t b = bucket_of(o, i);
            pool[n++] = i;
            end[b + 1]++; /* counts, one place further */
            last = b > last ? b : last;
        }
    }
    s->last = last;
    end[0] = o->dealt;
    for (int32_t b = 1; b <= last + 1; b++)
        end[b] += end[b - 1]; /* where bucket b begins, and so where b - 1 ends */
    for (int32_t k = 0; k < n; k++)
        s->ids[end[bucket_of(o, pool[k])]++] = pool[k];
    o->dealt += n; /* every end[b] has moved on to the end of bucket b */
    o->bucket = 0;
    o->whole = to >= SAMP_DEPTH;
}

void samp_order_begin(samp_order *o, samp *s, const float *key, double top, double inv)
{
    *o = (samp_order){.s = s, .key = key, .top = top, .inv = inv};
    deal(o, -INFINITY, SAMP_NEAR);
}

bool samp_order_has(samp_order *o, int32_t k)
{
    if (k >= o->dealt && !o->whole) {
        while (o->sorted < o->dealt) /* before the buckets are used again */
            samp_order_at(o, o->sorted);
        deal(o, SAMP_NEAR, SAMP_DEPTH);
    }
    return k < o->dealt;
}

int32_t samp_order_at(samp_order *o, int32_t k)
{
    while (o->sorted <= k) {
        int32_t stop = o->s->end[o->bucket++];
        sort(o->key, o->s->ids + o->sorted, stop - o->sorted);
        o->sorted = stop;
    }
    return o->s->ids[k];
}

/* Without filters, in order of id: first the block in which the draw falls, then the place in it. */
static int32_t draw_all(samp *s, const float *l, int32_t best, double inv_t, double u)
{
    int32_t n = s->vocab;
    double *sums = s->prob, sum = 0, m = (double)l[best];
    double to = u * samp_sums(l, n, m, inv_t, sums);
    for (int32_t b = 0; b * SAMP_BLOCK < n; b++) {
        if (sum + sums[b] > to) {
            int32_t id = samp_in_block(l, n, b, m, inv_t, sum, to);
            return id < 0 ? best : id;
        }
        sum += sums[b];
    }
    return best;
}

int32_t samp_draw(samp *s, const float *l, const turbo_sample_params *p, uint32_t position,
                  int32_t best)
{
    if (p->temperature <= 0)
        return best;
    double m = (double)l[best], inv_t = 1.0 / (double)p->temperature;
    double u = samp_uniform(p->seed, position, 0);
    bool top_k = p->top_k > 0 && p->top_k < s->vocab, top_p = p->top_p<1, min_p = p->min_p> 0;
    if (!top_k && !top_p && !min_p)
        return draw_all(s, l, best, inv_t, u);
    samp_order o;
    samp_order_begin(&o, s, l, m, inv_t);
    int32_t n = s->vocab, kept = 0;
    double total = 0, sum = 0;
    /* top_p is of what top_k leaves, so that sum must be known first. */
    if (top_k)
        for (n = 0; n < p->top_k && samp_order_has(&o, n); n++)
            total += s->prob[n] = weight(&o, samp_order_at(&o, n));
    else if (top_p)
        total = samp_sums(l, s->vocab, m, inv_t, s->prob);
    for (; kept < n; kept++) {
        if (kept && top_p && sum >= (double)p->top_p * total)
            break;
        if (!samp_order_has(&o, kept))
            break;
        double w = s->prob[kept] = top_k ? s->prob[kept] : weight(&o, samp_order_at(&o, kept));
        if (kept && min_p && w < (double)p->min_p)
            break;
        sum += w;
    }
    double at = 0;
    for (int32_t k = 0; k < kept; k++) {
        at += s->prob[k];
        if (at > u * sum)
            return s->ids[k];
    }
    return best;
}
