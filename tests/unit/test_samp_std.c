/* samp-std against a plain sort-everything reference, the generator's published vectors, and closed
 * forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "samp.h"

#define V 50
#define BIG 20000

static const turbo_sampler_vtbl *vtbl;
static void *sampler;
static uint32_t seed = 1;

static uint32_t rnd(void)
{
    return (seed = seed * 1664525u + 1013904223u) >> 8;
}

static turbo_sample_params neutral(void)
{
    return (turbo_sample_params){.size = sizeof(turbo_sample_params), .temperature = 1, .top_p = 1,
                                 .repetition_penalty = 1, .n_logprobs = -1};
}

static void *begin(const turbo_sample_params *p, const int32_t *prompt, int n)
{
    turbo_err err = {{0}};
    void *state = calloc(1, vtbl->state_bytes(sampler, 128));
    if (vtbl->begin(sampler, state, 128, p, prompt, n, &err))
        fail_msg("%s", err.text);
    return state;
}

static turbo_sample_row draw(const float *logits, void *state, const turbo_sample_params *p)
{
    static float scratch[V];
    static turbo_logprob top[20];
    turbo_err err;
    memcpy(scratch, logits, sizeof scratch);
    turbo_sample_row row = {.logits = scratch, .state = state, .params = p, .top = top};
    assert_int_equal(vtbl->sample(sampler, &row, 1, &err), TURBO_OK);
    return row;
}

/* Known answers of Random123's kat_vectors for philox4x32, 10 rounds. */
static void test_philox(void **s)
{
    (void)s;
    static const struct {
        uint32_t c[4], k[2], want[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        samp_philox(rows[i].c, rows[i].k, out);
        assert_memory_equal(out, rows[i].want, sizeof out);
    }
}

typedef struct cand {
    int32_t id;
    double z, p;
} cand;

static int by_logit(const void *a, const void *b)
{
    const cand *x = a, *y = b;
    if (x->z > y->z || x->z < y->z)
        return x->z > y->z ? -1 : 1;
    return x->id - y->id;
}

static int by_id(const void *a, const void *b)
{
    return ((const cand *)a)->id - ((const cand *)b)->id;
}

/* The straightforward way: sort everything, filter, renormalise, walk. */
static int32_t reference_of(const float *l, int32_t size, const turbo_sample_params *p,
                            uint32_t position)
{
    cand *c = malloc((size_t)size * sizeof *c);
    int n = 0, kept = 0;
    double total = 0, sum = 0, best = -INFINITY, at = 0;
    for (int i = 0; i < size; i++)
        if (isfinite(l[i])) {
            c[n++] = (cand){i, (double)l[i], 0};
            best = (double)l[i] > best ? (double)l[i] : best;
        }
    qsort(c, (size_t)n, sizeof *c, by_logit);
    int32_t id = n ? c[0].id : -1;
    if (p->temperature <= 0 || !n)
        goto out;
    for (int i = 0; i < n; i++)
        c[i].p = exp((c[i].z - best) / (double)p->temperature);
    bool sorted = (p->top_k > 0 && p->top_k < size) || p->top_p < 1 || p->min_p > 0;
    if (!sorted) /* without a filter candidates are walked by id */
        qsort(c, (size_t)n, sizeof *c, by_id);
    if (p->top_k > 0 && p->top_k < n)
        n = p->top_k;
    for (int i = 0; i < n; i++)
        total += c[i].p;
    for (; kept < n; kept++) {
        if (kept && p->top_p < 1 && sum >= (double)p->top_p * total)
            break;
        if (kept && p->min_p > 0 && c[kept].p < (double)p->min_p)
            break;
        sum += c[kept].p;
    }
    double u = samp_uniform(p->seed, position, 0);
    for (int i = 0; i < kept; i++) {
        at += c[i].p;
        if (at > u * sum) {
            id = c[i].id;
            break;
        }
    }
out:
    free(c);
    return id;
}

static int32_t reference(const float *l, const turbo_sample_params *p, uint32_t position)
{
    return reference_of(l, V, p, position);
}

static void test_filters(void **s)
{
    (void)s;
    for (int round = 0; round < 20000; round++) {
        float l[V];
        for (int i = 0; i < V; i++)
            l[i] = round % 3 ? (float)(rnd() % 1000) / 100 - 5 : (float)(rnd() % 5); /* many ties */
        if (round % 7 == 0)
            l[rnd() % V] = -INFINITY;
        turbo_sample_params p = neutral();
        p.seed = rnd();
        p.temperature = (float)(rnd() % 20) / 10;
        p.top_k = rnd() % 2 ? (int32_t)(rnd() % 60) : 0;
        p.top_p = rnd() % 2 ? (float)(1 + rnd() % 100) / 100 : 1;
        p.min_p = rnd() % 2 ? (float)(rnd() % 100) / 100 : 0;
        if (p.top_k >= V)
            p.top_k = 0;
        void *st = begin(&p, NULL, 0);
        assert_int_equal(draw(l, st, &p).token, reference(l, &p, 0));
        free(st);
    }
}

/* Counts of 40,000 draws against the softmax: chi-square with 7 degrees of freedom, 0.1 % limit. */
static void test_distribution(void **s)
{
    (void)s;
    float l[V];
    double p[8], total = 0, chi = 0;
    int counts[V] = {0};
    for (int i = 0; i < V; i++)
        l[i] = i < 8 ? (float)i * 0.4f : -INFINITY;
    for (int i = 0; i < 8; i++)
        total += p[i] = exp((double)l[i] / 0.8);
    turbo_sample_params par = neutral();
    par.temperature = 0.8f;
    par.seed = 42;
    void *st = begin(&par, NULL, 0);
    for (int i = 0; i < 40000; i++) {
        ((samp_state *)st)->position = (uint32_t)i;
        counts[draw(l, st, &par).token]++;
    }
    for (int i = 0; i < 8; i++) {
        double want = 40000 * p[i] / total;
        chi += (counts[i] - want) * (counts[i] - want) / want;
    }
    assert_true(chi < 24.3);
    free(st);
}

static void test_penalties(void **s)
{
    (void)s;
    static const int32_t prompt[] = {3, 3, 7};
    float l[V] = {0};
    l[3] = 2, l[7] = -1, l[9] = 1.5f;
    turbo_sample_params p = neutral();
    p.temperature = 0;
    p.repetition_penalty = 1.5f;
    p.presence_penalty = 0.25f;
    p.frequency_penalty = 0.5f;
    void *st = begin(&p, prompt, 3);
    /* 3: 2/1.5 = 1.33 < 1.5 of 9 */
    assert_int_equal(draw(l, st, &p).token, 9);
    vtbl->accept(sampler, st, &p, 9);
    vtbl->accept(sampler, st, &p, 9);
    float shaped[V];
    memcpy(shaped, l, sizeof l);
    turbo_sample_row row = {.logits = shaped, .state = st, .params = &p};
    samp_shape(sampler, &row);
    assert_true(fabsf(shaped[9] - (1.5f / 1.5f - 0.25f - 2 * 0.5f)) < 1e-6f);
    assert_true(fabsf(shaped[3] - 2 / 1.5f) < 1e-6f); /* the prompt counts for repetition only */
    assert_true(fabsf(shaped[7] + 1.5f) < 1e-6f);
    free(st);
}

static void test_masks(void **s)
{
    (void)s;
    float l[V] = {0};
    l[5] = 9, l[6] = 8, l[7] = 7, l[8] = 6;
    static const int32_t bad[] = {5, 1, 2, 6}, lens[] = {1, 3}, stop[] = {6}, allowed[] = {7, 8};
    turbo_sample_params p = neutral();
    p.temperature = 0;
    p.bad_ids = bad;
    p.bad_len = lens;
    p.n_bad = 2;
    void *st = begin(&p, NULL, 0);
    assert_int_equal(draw(l, st, &p).token, 6); /* 5 is banned, the sequence 1 2 6 has not begun */
    vtbl->accept(sampler, st, &p, 1);
    vtbl->accept(sampler, st, &p, 2);
    assert_int_equal(draw(l, st, &p).token, 7);
    free(st);
    p.n_bad = 0;
    p.stop_ids = stop;
    p.n_stop = 1;
    p.min_tokens = 1;
    l[5] = 0;
    st = begin(&p, NULL, 0);
    assert_int_equal(draw(l, st, &p).token, 7);
    vtbl->accept(sampler, st, &p, 7);
    assert_int_equal(draw(l, st, &p).token, 6);
    p.allowed = allowed;
    p.n_allowed = 2;
    assert_int_equal(draw(l, st, &p).token, 7);
    turbo_logit_bias bias[] = {{8, 100}, {7, -100}};
    p.bias = bias;
    p.n_bias = 2;
    assert_int_equal(draw(l, st, &p).token, 8);
    /* Everything banned: the model's own best. */
    static const int32_t none[] = {8, 7}, ones[] = {1, 1};
    p.bad_ids = none;
    p.bad_len = ones;
    p.n_bad = 2;
    assert_int_equal(draw(l, st, &p).token, 6);
    free(st);
}

/* Log-probabilities are those of the untouched logits, best first, whatever the filters do. */
static void test_logprobs(void **s)
{
    (void)s;
    float l[V];
    double sum = 0;
    for (int i = 0; i < V; i++)
        sum += exp((double)(l[i] = (float)(rnd() % 100) / 10));
    l[10] = l[20] = 20;
    sum = 0;
    for (int i = 0; i < V; i++)
        sum += exp((double)l[i]);
    turbo_sample_params p = neutral();
    p.temperature = 0.1f;
    p.top_k = 1;
    p.n_logprobs = 5;
    p.repetition_penalty = 2;
    static const int32_t prompt[] = {10};
    void *st = begin(&p, prompt, 1);
    turbo_sample_row r = draw(l, st, &p);
    assert_int_equal(r.token, 20);
    assert_int_equal(r.n_top, 5);
    assert_int_equal(r.top[0].id, 10); /* equal logits: the lower id first */
    assert_int_equal(r.top[1].id, 20);
    assert_true(fabs((double)r.logprob - (20 - log(sum))) < 1e-5);
    for (int i = 1; i < 5; i++)
        assert_true(r.top[i].logprob <= r.top[i - 1].logprob);
    free(st);
}

static void test_bad_logits(void **s)
{
    (void)s;
    turbo_sample_params p = neutral();
    void *st = begin(&p, NULL, 0);
    float l[V] = {0};
    l[7] = NAN;
    assert_int_equal(draw(l, st, &p).status, TURBO_EDATA);
    l[7] = INFINITY;
    assert_int_equal(draw(l, st, &p).status, TURBO_EDATA);
    for (int i = 0; i < V; i++)
        l[i] = -INFINITY;
    assert_int_equal(draw(l, st, &p).status, TURBO_EDATA);
    l[3] = -1000;
    assert_int_equal(draw(l, st, &p).token, 3);
    free(st);
}

/* Every pair of extreme options gives an id in range. */
static void test_extremes(void **s)
{
    (void)s;
    static const float temps[] = {0, 1e-6f, 1, 2}, tops[] = {1e-9f, 0.5f, 1}, mins[] = {0, 1};
    static const int32_t ks[] = {0, 1, V, INT32_MAX};
    float l[V];
    for (int i = 0; i < V; i++)
        l[i] = i % 2 ? 1e30f : -1e30f;
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 3; b++)
            for (int c = 0; c < 2; c++)
                for (int d = 0; d < 4; d++) {
                    turbo_sample_params p = neutral();
                    p.temperature = temps[a];
                    p.top_p = tops[b];
                    p.min_p = mins[c];
                    p.top_k = ks[d];
                    p.seed = rnd();
                    void *st = begin(&p, NULL, 0);
                    turbo_sample_row r = draw(l, st, &p);
                    assert_int_equal(r.status, TURBO_OK);
                    assert_int_equal(r.token % 2, 1);
                    free(st);
                }
}

/* Many logits: buckets that are sorted only in part, with and without ties. */
static void test_large(void **s)
{
    (void)s;
    void *big;
    turbo_err err;
    float *l = malloc(BIG * sizeof *l), *scratch = malloc(BIG * sizeof *l);
    assert_int_equal(vtbl->open(NULL, BIG, &big, &err), TURBO_OK);
    for (int round = 0; round < 60; round++) {
        for (int i = 0; i < BIG; i++)
            l[i] = round % 4 == 0   ? 1.0f
                   : round % 4 == 1 ? (float)(rnd() % 7)
                                    : (float)(rnd() % 100000) / 4000 - 12;
        turbo_sample_params p = neutral();
        p.seed = rnd();
        p.temperature = round % 3 ? 0.1f + (float)(rnd() % 20) / 10 : 2;
        p.top_k = rnd() % 2 ? (int32_t)(rnd() % 3000) : 0;
        p.top_p = rnd() % 2 ? (float)(1 + rnd() % 100) / 100 : 1;
        p.min_p = rnd() % 2 ? (float)(rnd() % 100) / 1000 : 0;
        void *st = calloc(1, vtbl->state_bytes(big, 64));
        assert_int_equal(vtbl->begin(big, st, 64, &p, NULL, 0, &err), TURBO_OK);
        memcpy(scratch, l, BIG * sizeof *l);
        turbo_sample_row row = {.logits = scratch, .state = st, .params = &p};
        assert_int_equal(vtbl->sample(big, &row, 1, &err), TURBO_OK);
        assert_int_equal(row.token, reference_of(l, BIG, &p, 0));
        free(st);
    }
    free(l);
    free(scratch);
    vtbl->close(big);
}

typedef struct history {
    int32_t ids[128];
    int n, prompt;
} history;

static int times(const history *h, int from, int32_t id)
{
    int n = 0;
    for (int i = from; i < h->n; i++)
        n += h->ids[i] == id;
    return n;
}

/* Masks, bias and penalties recomputed from the whole history, id by id. */
static void shape_slowly(float *l, const turbo_sample_params *p, const history *h)
{
    for (int32_t id = 0; id < V; id++) {
        bool banned = p->n_allowed > 0;
        for (int i = 0; i < p->n_allowed; i++)
            banned = banned && p->allowed[i] != id;
        const int32_t *word = p->bad_ids;
        for (int w = 0; w < p->n_bad; word += p->bad_len[w++]) {
            int head = p->bad_len[w] - 1;
            banned = banned || (word[head] == id && head <= h->n &&
                                !memcmp(h->ids + h->n - head, word, (size_t)head * sizeof *word));
        }
        for (int i = 0; i < p->n_stop; i++)
            banned = banned || (h->n - h->prompt < p->min_tokens && p->stop_ids[i] == id);
        if (banned) {
            l[id] = -INFINITY;
            continue;
        }
        for (int i = 0; i < p->n_bias; i++)
            l[id] += p->bias[i].id == id ? p->bias[i].bias : 0;
        int all = times(h, 0, id), out = times(h, h->prompt, id);
        if (all)
            l[id] = l[id] > 0 ? l[id] / p->repetition_penalty : l[id] * p->repetition_penalty;
        if (out)
            l[id] -= p->presence_penalty + p->frequency_penalty * (float)out;
    }
}

/* Every option switched on and off at random, along whole sequences. */
static void test_combinations(void **s)
{
    (void)s;
    for (int round = 0; round < 1500; round++) {
        int32_t bad[12], lens[4], stop[3], allowed[20];
        turbo_logit_bias bias[6];
        history h = {.prompt = (int)(rnd() % 20)};
        turbo_sample_params p = neutral();
        for (h.n = 0; h.n < h.prompt; h.n++)
            h.ids[h.n] = (int32_t)(rnd() % 6);
        for (int i = 0; i < 12; i++)
            bad[i] = (int32_t)(rnd() % 4);
        for (int i = 0; i < 4; i++)
            lens[i] = 1 + i % 3;
        for (int i = 0; i < 20; i++)
            allowed[i] = (int32_t)(rnd() % V);
        for (int i = 0; i < 6; i++)
            bias[i] = (turbo_logit_bias){i * 3, (float)(rnd() % 201) - 100};
        stop[0] = 1, stop[1] = 2, stop[2] = 2;
        p.seed = rnd();
        p.temperature = rnd() % 3 ? (float)(rnd() % 200) / 100 : 1e-6f;
        p.top_k = rnd() % 2 ? (int32_t)(rnd() % V) : 0;
        p.top_p = rnd() % 2 ? (float)(1 + rnd() % 100) / 100 : rnd() % 2 ? 1 : 1e-9f;
        p.min_p = rnd() % 2 ? (float)(rnd() % 100) / 100 : 0;
        p.repetition_penalty = rnd() % 2 ? 0.5f + (float)(rnd() % 100) / 50 : 1;
        p.presence_penalty = rnd() % 2 ? (float)(rnd() % 400) / 100 - 2 : 0;
        p.frequency_penalty = rnd() % 2 ? (float)(rnd() % 400) / 100 - 2 : 0;
        p.bad_ids = bad, p.bad_len = lens, p.n_bad = rnd() % 2 ? 4 : 0;
        p.stop_ids = stop, p.n_stop = 3, p.min_tokens = rnd() % 2 ? 10 : 0;
        p.allowed = allowed, p.n_allowed = rnd() % 2 ? 20 : 0;
        p.bias = bias, p.n_bias = rnd() % 2 ? 6 : 0;
        p.n_logprobs = (int32_t)(rnd() % 22) - 1;
        void *st = begin(&p, h.ids, h.n);
        for (uint32_t step = 0; step < 30; step++) {
            float l[V], slow[V];
            for (int i = 0; i < V; i++)
                l[i] = (float)(rnd() % 1000) / 100 - 5;
            memcpy(slow, l, sizeof l);
            shape_slowly(slow, &p, &h);
            turbo_sample_row r = draw(l, st, &p);
            int32_t want = reference(slow, &p, step);
            if (want < 0) { /* nothing left: the model's own best */
                turbo_sample_params greedy = neutral();
                greedy.temperature = 0;
                want = reference(l, &greedy, 0);
            }
            assert_int_equal(r.status, TURBO_OK);
            assert_int_equal(r.token, want);
            assert_int_equal(r.n_top, p.n_logprobs < 0 ? 0 : p.n_logprobs);
            vtbl->accept(sampler, st, &p, r.token);
            h.ids[h.n++] = r.token;
        }
        free(st);
    }
}

/* The same seed gives the same draws; another seed, or another position, gives others. */
static void test_seeds(void **s)
{
    (void)s;
    float l[V] = {0};
    turbo_sample_params p = neutral(), q = neutral();
    p.seed = UINT64_C(0x123456789abcdef0);
    q.seed = p.seed ^ UINT64_C(1) << 63; /* the upper half of the seed counts too */
    void *a = begin(&p, NULL, 0), *b = begin(&p, NULL, 0), *c = begin(&q, NULL, 0);
    int moved = 0, other = 0;
    int32_t last = -1;
    for (int i = 0; i < 100; i++) {
        int32_t x = draw(l, a, &p).token;
        assert_int_equal(draw(l, a, &p).token, x); /* sampling twice is the same draw */
        assert_int_equal(draw(l, b, &p).token, x);
        other += draw(l, c, &q).token != x;
        moved += x != last;
        last = x;
        vtbl->accept(sampler, a, &p, x);
        vtbl->accept(sampler, b, &p, x);
        vtbl->accept(sampler, c, &q, x);
    }
    assert_true(moved > 80 && other > 80);
    free(a);
    free(b);
    free(c);
}

/* What would write outside the logits or the state is refused or ignored. */
static void test_range(void **s)
{
    (void)s;
    static const int32_t beyond[] = {V}, below[] = {-1}, one[] = {1}, zero[] = {0}, long_[] = {65};
    static const turbo_logit_bias bias[] = {{V, 1}};
    turbo_err err = {{0}};
    uint64_t bytes = vtbl->state_bytes(sampler, 4);
    void *st = calloc(1, bytes);
    turbo_sample_params p[7];
    for (int i = 0; i < 7; i++)
        p[i] = neutral();
    p[0].stop_ids = beyond, p[0].n_stop = 1;
    p[1].allowed = below, p[1].n_allowed = 1;
    p[2].bad_ids = beyond, p[2].bad_len = one, p[2].n_bad = 1;
    p[3].bad_ids = one, p[3].bad_len = zero, p[3].n_bad = 1;
    p[4].bad_ids = one, p[4].bad_len = long_, p[4].n_bad = 1;
    p[5].bias = bias, p[5].n_bias = 1;
    p[6].n_logprobs = 21;
    for (int i = 0; i < 7; i++) {
        memset(&err, 0, sizeof err);
        assert_true(vtbl->begin(sampler, st, 4, &p[i], NULL, 0, &err) < 0);
        assert_true(err.text[0]);
    }
    turbo_sample_params q = neutral();
    q.frequency_penalty = 1;
    static const int32_t five[] = {0, 1, 2, 3, 4};
    assert_true(vtbl->begin(sampler, st, 4, &q, five, 5, &err) < 0);
    assert_true(vtbl->begin(sampler, st, 4, &q, beyond, 1, &err) < 0);
    memset(st, 0, bytes);
    assert_int_equal(vtbl->begin(sampler, st, 4, &q, NULL, 0, &err), TURBO_OK);
    for (int32_t i = -2; i < V + 2; i++) /* more than 4, and wrong ones: the sanitizer watches */
        vtbl->accept(sampler, st, &q, i);
    assert_int_equal(((samp_state *)st)->n_seen, 4);
    free(st);
}

/* Penalties at the edge of single precision do not ban what they should favour. */
static void test_overflow(void **s)
{
    (void)s;
    float l[V] = {0};
    static const int32_t prompt[] = {3};
    turbo_sample_params p = neutral();
    p.temperature = 0;
    p.repetition_penalty = 1e-38f;
    l[3] = 100;
    l[4] = 101;
    void *st = begin(&p, prompt, 1);
    assert_int_equal(draw(l, st, &p).token, 3);
    free(st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),    cmocka_unit_test(test_filters),
        cmocka_unit_test(test_distribution), cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_masks),     cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_bad_logits), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_large),     cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_seeds),     cmocka_unit_test(test_range),
        cmocka_unit_test(test_overflow),
    };
    turbo_err err;
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->samplers[0];
    if (vtbl->open(NULL, V, &sampler, &err))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    vtbl->close(sampler);
    return rc;
}
