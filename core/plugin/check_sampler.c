/* core/plugin/check_sampler.c: conformance tests of sampler tables. Each runs in a child process of
 * `turbo plugin check`. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/check_run.h"
#include "plugin/host.h"
#include "util/checked.h"
#include "util/err.h"

#define V 1000
#define STEPS 48
#define ROWS 4
#define GUARD 64
#define MARK 0xA5

typedef struct rig {
    const turbo_sampler_vtbl *v;
    void *sampler;
    uint8_t *state[ROWS]; /* state_bytes, then GUARD bytes of MARK */
    uint64_t state_bytes;
    float logits[ROWS][V];
    turbo_logprob top[ROWS][20];
    turbo_sample_params p[ROWS];
    turbo_sample_row rows[ROWS];
    const char *problem;
} rig;

static turbo_sample_params neutral(uint64_t seed)
{
    return (turbo_sample_params){.size = sizeof(turbo_sample_params),
                                 .temperature = 1,
                                 .top_p = 1,
                                 .repetition_penalty = 1,
                                 .n_logprobs = -1,
                                 .seed = seed};
}

static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Logits of step s: the same for every row, roughly as wide as a model's. */
static void fill(float *to, int step)
{
    for (uint64_t i = 0; i < V; i++)
        to[i] = (float)(mix((uint64_t)step * V + i) >> 40) * (16.0f / 16777216.0f) - 8.0f;
}

static void rig_close(rig *g)
{
    for (int i = 0; i < ROWS; i++)
        free(g->state[i]);
    if (g->sampler)
        g->v->close(g->sampler);
    free(g);
}

static rig *rig_open(const void *vtbl, turbo_err *why)
{
    rig *g = calloc(1, sizeof *g);
    size_t bytes;
    if (!g)
        return NULL;
    g->v = vtbl;
    turbo_status st = g->v->open(turbod_host_table(), V, &g->sampler, why);
    if (st) {
        g->sampler = NULL;
        rig_close(g);
        return NULL;
    }
    g->state_bytes = g->v->state_bytes(g->sampler, STEPS + 8);
    if (g->state_bytes > UINT64_C(1) << 28 || !turbod_add(g->state_bytes, GUARD, &bytes)) {
        turbod_err(why, 0, "state_bytes(%d) is %llu", STEPS + 8,
                   (unsigned long long)g->state_bytes);
        rig_close(g);
        return NULL;
    }
    for (int i = 0; i < ROWS; i++)
        if (!(g->state[i] = malloc(bytes))) {
            rig_close(g);
            return NULL;
        }
    return g;
}

/* Starts row i. Returns begin's status. */
static turbo_status start(rig *g, int i, const turbo_sample_params *p, turbo_err *why)
{
    static const int32_t prompt[] = {1, 2, 3, 2, 1};
    g->p[i] = *p;
    memset(g->state[i], 0, g->state_bytes);
    memset(g->state[i] + g->state_bytes, MARK, GUARD);
    g->rows[i] = (turbo_sample_row){.logits = g->logits[i],
                                    .state = g->state[i],
                                    .params = &g->p[i],
                                    .top = g->top[i],
                                    .token = -1};
    return g->v->begin(g->sampler, g->state[i], STEPS + 8, &g->p[i], prompt, 5, why);
}

static int say(turbo_err *why, const char *text)
{
    turbo_err had = *why;
    had.text[sizeof had.text - 1] = '\0';
    turbod_err(why, 0, "%s%s%.120s", text, had.text[0] ? ": " : "", had.text);
    return CHECK_FAILED;
}

/* One step of rows 0..n-1 on the logits of `step`. */
static int step_rows(rig *g, int n, int step, turbo_err *why)
{
    for (int i = 0; i < n; i++)
        fill(g->logits[i], step);
    if (g->v->sample(g->sampler, g->rows, n, why))
        return say(why, "sample fails");
    for (int i = 0; i < n; i++) {
        if (g->rows[i].status)
            return say(why, "a row of finite logits has a status");
        if (g->rows[i].token < 0 || g->rows[i].token >= V)
            return say(why, "a token is outside 0..V-1");
        g->v->accept(g->sampler, g->state[i], &g->p[i], g->rows[i].token);
        for (size_t k = 0; k < GUARD; k++)
            if (g->state[i][g->state_bytes + k] != MARK)
                return say(why, "writes behind its state_bytes");
    }
    return CHECK_OK;
}

static int run_steps(rig *g, int n, int32_t out[STEPS], turbo_err *why)
{
    for (int s = 0; s < STEPS; s++) {
        int bad = step_rows(g, n, s, why);
        if (bad)
            return bad;
        out[s] = g->rows[0].token;
    }
    return CHECK_OK;
}

static int sampler_state(const void *vtbl, turbo_err *why)
{
    static const int32_t sizes[] = {1, 2, 100, 4096, 131072};
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    int result = CHECK_OK;
    uint64_t last = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && !result; i++) {
        uint64_t b = g->v->state_bytes(g->sampler, sizes[i]);
        if (b < last || b > UINT64_C(1) << 28)
            result = say(why, "state_bytes shrinks or is beyond 256 MiB");
        last = b;
    }
    rig_close(g);
    return result;
}

/* The same seed gives the same tokens, alone and beside other rows. */
static int sampler_seed(const void *vtbl, turbo_err *why)
{
    int32_t a[STEPS], b[STEPS], c[STEPS];
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    turbo_sample_params p = neutral(42);
    int result = start(g, 0, &p, why) ? say(why, "begin refuses neutral parameters")
                                      : run_steps(g, 1, a, why);
    if (!result)
        result = start(g, 0, &p, why) ? say(why, "begin") : run_steps(g, 1, b, why);
    for (int i = 0; i < ROWS && !result; i++) {
        turbo_sample_params q = neutral(42 + (uint64_t)i);
        result = start(g, i, &q, why) ? say(why, "begin") : CHECK_OK;
    }
    if (!result)
        result = run_steps(g, ROWS, c, why);
    if (!result && memcmp(a, b, sizeof a))
        result = say(why, "the same seed and logits give other tokens the second time");
    if (!result && memcmp(a, c, sizeof a))
        result = say(why, "a row's tokens depend on the rows beside it");
    rig_close(g);
    return result;
}

static int sampler_greedy(const void *vtbl, turbo_err *why)
{
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    int32_t got[STEPS];
    turbo_sample_params p = neutral(1);
    p.temperature = 0;
    int result = CHECK_OK;
    if (start(g, 0, &p, why)) {
        result = CHECK_SKIPPED; /* an honest refusal; its text is in why */
    } else if (!(result = run_steps(g, 1, got, why))) {
        for (int s = 0; s < STEPS && !result; s++) {
            int32_t best = 0;
            fill(g->logits[0], s);
            for (int32_t i = 1; i < V; i++)
                best = g->logits[0][i] > g->logits[0][best] ? i : best;
            if (got[s] != best)
                result = say(why, "temperature 0 does not give the largest logit");
        }
    }
    rig_close(g);
    return result;
}

/* Whatever a caller may ask for is honoured, or begin says no. */
static int sampler_allowed(const void *vtbl, turbo_err *why)
{
    static const int32_t allowed[] = {7, 500, 999};
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    int32_t got[STEPS];
    turbo_sample_params p = neutral(5);
    p.allowed = allowed;
    p.n_allowed = 3;
    int result = CHECK_OK;
    if (start(g, 0, &p, why))
        result = CHECK_SKIPPED;
    else if (!(result = run_steps(g, 1, got, why)))
        for (int s = 0; s < STEPS && !result; s++)
            if (got[s] != 7 && got[s] != 500 && got[s] != 999)
                result =
                    say(why, "a token outside `allowed` is sampled; honour it or refuse in begin");
    rig_close(g);
    return result;
}

static int sampler_bias(const void *vtbl, turbo_err *why)
{
    static const turbo_logit_bias bias[] = {{321, 100.0f}};
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    int32_t got[STEPS];
    turbo_sample_params p = neutral(5);
    p.bias = bias;
    p.n_bias = 1;
    int result = CHECK_OK;
    if (start(g, 0, &p, why))
        result = CHECK_SKIPPED;
    else if (!(result = run_steps(g, 1, got, why)))
        for (int s = 0; s < STEPS && !result; s++)
            if (got[s] != 321)
                result = say(why, "a bias of +100 does not decide; honour it or refuse in begin");
    rig_close(g);
    return result;
}

static int sampler_logprobs(const void *vtbl, turbo_err *why)
{
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    turbo_sample_params p = neutral(9);
    p.n_logprobs = 5;
    int result = CHECK_OK;
    if (start(g, 0, &p, why))
        result = CHECK_SKIPPED;
    for (int s = 0; s < 8 && !result; s++) {
        result = step_rows(g, 1, s, why);
        const turbo_sample_row *r = &g->rows[0];
        if (!result && (r->n_top != 5 || !(r->logprob <= 0)))
            result =
                say(why, "n_logprobs = 5 does not give five alternatives and a log-probability");
        for (int32_t i = 0; i < r->n_top && !result; i++)
            if (r->top[i].id < 0 || r->top[i].id >= V || !(r->top[i].logprob <= 0) ||
                (i && r->top[i].logprob > r->top[i - 1].logprob))
                result = say(why, "alternatives are out of range or not best first");
    }
    rig_close(g);
    return result;
}

/* Rows that cannot be sampled say so and leave their neighbours alone. */
static int sampler_poison(const void *vtbl, turbo_err *why)
{
    rig *g = rig_open(vtbl, why);
    if (!g)
        return say(why, "open or state_bytes");
    turbo_sample_params p = neutral(3);
    int result = CHECK_OK;
    for (int i = 0; i < 3 && !result; i++)
        result = start(g, i, &p, why) ? say(why, "begin") : CHECK_OK;
    for (int i = 0; i < 3; i++)
        fill(g->logits[i], 0);
    g->logits[0][17] = NAN;
    for (int i = 0; i < V; i++)
        g->logits[1][i] = -INFINITY;
    if (!result && g->v->sample(g->sampler, g->rows, 3, why))
        result = say(why, "sample fails as a whole because of one row");
    if (!result && (g->rows[0].status != TURBO_EDATA || g->rows[1].status != TURBO_EDATA))
        result = say(why, "a row with NaN, or without a finite logit, does not get TURBO_EDATA");
    if (!result && (g->rows[2].status || g->rows[2].token < 0 || g->rows[2].token >= V))
        result = say(why, "a good row beside a bad one is not sampled");
    rig_close(g);
    return result;
}

const check_test check_sampler_tests[] = {
    {"state_bytes grows with the length", sampler_state},
    {"ids in range, reproducible, batch-invariant", sampler_seed},
    {"temperature 0 is greedy", sampler_greedy},
    {"allowed ids", sampler_allowed},
    {"logit bias", sampler_bias},
    {"logprobs", sampler_logprobs},
    {"NaN and empty rows", sampler_poison},
    {NULL, NULL},
};
