/* plugins/samp-std/draw.c: temperature, top_k, top_p, min_p and the draw.
 *
 * Candidates are ordered by logit, then by id: a total order, so ties fall the same way everywhere. A
 * heap hands them out best first, so a narrow filter over 92,544 logits costs one pass plus a few
 * pops and never a full sort. */
#include <math.h>

#include "samp.h"

int32_t samp_argmax(const float *l, int32_t n)
{
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++)
        if (isfinite(l[i]) && (best < 0 || l[i] > l[best]))
            best = i;
    return best;
}

typedef struct heap {
    const float *l;
    int32_t *ids;
    int32_t n;
} heap;

static bool above(const heap *h, int32_t a, int32_t b)
{
    float x = h->l[a], y = h->l[b];
    return x > y || (!(x < y) && a < b);
}

static void sift(heap *h, int32_t i)
{
    int32_t id = h->ids[i];
    for (;;) {
        int32_t k = 2 * i + 1;
        if (k >= h->n)
            break;
        if (k + 1 < h->n && above(h, h->ids[k + 1], h->ids[k]))
            k++;
        if (!above(h, h->ids[k], id))
            break;
        h->ids[i] = h->ids[k];
        i = k;
    }
    h->ids[i] = id;
}

/* Moves the best candidate behind the heap: the popped ones stand at the end, best last. */
static int32_t pop(heap *h)
{
    int32_t top = h->ids[0], last = h->ids[--h->n];
    h->ids[0] = last;
    if (h->n)
        sift(h, 0);
    h->ids[h->n] = top;
    return top;
}

/* Without filters: one pass in order of id. */
static int32_t draw_all(const float *l, int32_t n, float m, double inv_t, double u)
{
    double total = 0, sum = 0;
    for (int32_t i = 0; i < n; i++)
        total += exp(((double)l[i] - (double)m) * inv_t);
    int32_t last = -1;
    for (int32_t i = 0; i < n; i++) {
        double w = exp(((double)l[i] - (double)m) * inv_t);
        if (!(w > 0))
            continue;
        sum += w;
        last = i;
        if (sum > u * total)
            return i;
    }
    return last;
}

int32_t samp_draw(samp *s, const float *l, const turbo_sample_params *p, uint32_t position)
{
    int32_t best = samp_argmax(l, s->vocab);
    if (best < 0 || p->temperature <= 0)
        return best;
    double inv_t = 1.0 / (double)p->temperature, u = samp_uniform(p->seed, position);
    float m = l[best];
    bool top_k = p->top_k > 0 && p->top_k < s->vocab, top_p = p->top_p < 1, min_p = p->min_p > 0;
    if (!top_k && !top_p && !min_p) {
        int32_t id = draw_all(l, s->vocab, m, inv_t, u);
        return id < 0 ? best : id;
    }
    heap h = {.l = l, .ids = s->ids};
    double total = 0;
    for (int32_t i = 0; i < s->vocab; i++)
        if (isfinite(l[i])) {
            s->ids[h.n++] = i;
            total += top_k ? 0 : exp(((double)l[i] - (double)m) * inv_t);
        }
    int32_t all = h.n;
    for (int32_t i = h.n / 2; i-- > 0;)
        sift(&h, i);
    /* top_p is of what top_k leaves, so that sum must be known first. */
    int32_t k = top_k && p->top_k < all ? p->top_k : all;
    int32_t kept = 0;
    double sum = 0;
    if (top_k) {
        for (; kept < k; kept++) {
            s->prob[kept] = exp(((double)l[pop(&h)] - (double)m) * inv_t);
            total += s->prob[kept];
        }
        k = kept;
        kept = 0;
    }
    for (; kept < k; kept++) {
        if (!top_k)
            s->prob[kept] = exp(((double)l[pop(&h)] - (double)m) * inv_t);
        if (kept && ((top_p && sum >= (double)p->top_p * total) ||
                     (min_p && s->prob[kept] < (double)p->min_p)))
            break;
        sum += s->prob[kept];
    }
    double at = 0;
    for (int32_t i = 0; i < kept; i++) {
        at += s->prob[i];
        if (at > u * sum)
            return s->ids[all - 1 - i];
    }
    return best;
}
