/* tests/unit/test_samp_lua.c: sampling programs: each step against tests/golden/samp-lua (transformers, and
 * brute force from the definitions), and what holds for programs as a whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "turbo/plugin.h"

#define V 40
#define ROOM 128

/* Logits are float32 on both sides, probabilities float32 there and double here: golden rows are drawn
 * from few enough tokens that no cut lies within this of a boundary. */
#define TOLERANCE 2e-5

static const turbo_sampler_vtbl *vtbl;
static void *sampler;

static turbo_sample_params neutral(void)
{
    return (turbo_sample_params){.size = sizeof(turbo_sample_params),
                                 .temperature = 1,
                                 .top_p = 1,
                                 .repetition_penalty = 1,
                                 .n_logprobs = -1};
}

static void *begin(const turbo_sample_params *p, const int32_t *prompt, int n)
{
    turbo_err err = {{0}};
    void *state = calloc(1, vtbl->state_bytes(sampler, ROOM));
    if (vtbl->begin(sampler, state, ROOM, p, prompt, n, &err))
        fail_msg("%s", err.text);
    return state;
}

static turbo_sample_row draw(float *logits, void *state, const turbo_sample_params *p)
{
    static turbo_logprob top[20];
    turbo_err err;
    turbo_sample_row row = {.logits = logits, .state = state, .params = p, .top = top, .token = -1};
    assert_int_equal(vtbl->sample(sampler, &row, 1, &err), TURBO_OK);
    return row;
}

static int kind_of(const char *name)
{
    static const char *const names[] = {
        "penalize",    "temperature", "top_k", "top_p",    "min_p",          "typical",
        "top_n_sigma", "xtc",         "dry",   "mirostat", "scale",          "add",
        "set",         "allow",       "ban",   "force",    "no_repeat_ngram"};
    for (int i = 0; i < TURBO_STEP_NO_REPEAT_NGRAM; i++)
        if (!strcmp(names[i], name))
            return i + 1;
    fail_msg("unknown step %s", name);
    return 0;
}

static double arg(const cJSON *c, const char *key)
{
    const cJSON *v =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(c, "args"), key);
    return v ? v->valuedouble : 0;
}

static int list(const cJSON *a, int32_t *out)
{
    int n = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, a) out[n++] = (int32_t)v->valuedouble;
    return n;
}

static void check_case(const cJSON *c, int number)
{
    const char *name = cJSON_GetObjectItemCaseSensitive(c, "step")->valuestring;
    int32_t history[ROOM], ids[ROOM];
    float logits[V];
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(c, "logits")->child;
    for (int i = 0; i < V; i++, v = v->next)
        logits[i] = (float)v->valuedouble;
    int n_history = list(cJSON_GetObjectItemCaseSensitive(c, "history"), history);
    turbo_sample_step step = {.size = sizeof step,
                              .kind = kind_of(name),
                              .a = (float)arg(c, "a"),
                              .b = (float)arg(c, "b"),
                              .n = (int32_t)arg(c, "n"),
                              .m = (int32_t)arg(c, "m"),
                              .ids = ids};
    step.n_ids =
        list(cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(c, "args"), "ids"),
             ids);
    turbo_sample_params p = neutral();
    p.program = &step;
    p.n_program = 1;
    void *state = begin(&p, history, n_history);
    turbo_sample_row row = draw(logits, state, &p);
    bool left = false;
    v = cJSON_GetObjectItemCaseSensitive(c, "want")->child;
    for (int i = 0; i < V; i++, v = v->next) {
        double want = cJSON_IsNull(v) ? -INFINITY : v->valuedouble, got = (double)logits[i];
        left = left || !cJSON_IsNull(v);
        if (isinf(want) ? !(isinf(got) && got < 0)
                        : !(fabs(got - want) <= TOLERANCE * (1 + fabs(want))))
            fail_msg("case %d, %s: logit %d is %g, not %g", number, name, i, got, want);
    }
    assert_int_equal(row.status, left ? TURBO_OK : TURBO_EINVAL);
    if (left)
        assert_true(logits[row.token] > -INFINITY);
    free(state);
}

static void test_steps(void **s)
{
    char path[4096];
    const char *src = getenv("srcdir");
    (void)s;
    snprintf(path, sizeof path, "%s/tests/golden/samp-lua/golden.json", src && *src ? src : ".");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *text = calloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    cJSON *all = cJSON_ParseWithLength(text, n);
    assert_non_null(all);
    int number = 0;
    const cJSON *c;
    cJSON_ArrayForEach(c, all) check_case(c, number++);
    assert_true(number >= 200);
    cJSON_Delete(all);
    free(text);
}

static void ramp(float *l)
{
    for (int i = 0; i < V; i++)
        l[i] = (float)((i * 7) % V) / 8;
}

#define STEP(k, ...)                                                                               \
    {                                                                                              \
        .size = sizeof(turbo_sample_step), .kind = TURBO_STEP_##k, __VA_ARGS__                     \
    }

/* The rest: steps on ids, their order, what cannot be undone. */
static void test_ids(void **s)
{
    static const int32_t three[] = {3, 5, 9}, five[] = {5}, all[V] = {0};
    static const float values[] = {1, -2, 0.5f};
    float l[V], want[V];
    (void)s;
    (void)all;
    ramp(want);
    const turbo_sample_step add[] = {STEP(ADD, .n_ids = 3, .ids = three, .values = values),
                                     STEP(ADD, .a = 2, .n_ids = 1, .ids = five),
                                     STEP(SCALE, .a = 0.5f),
                                     STEP(SET, .a = -4, .n_ids = 1, .ids = five)};
    turbo_sample_params p = neutral();
    p.program = add;
    p.n_program = 4;
    void *state = begin(&p, NULL, 0);
    ramp(l);
    draw(l, state, &p);
    want[3] += 1, want[5] += -2 + 2, want[9] += 0.5f;
    for (int i = 0; i < V; i++)
        assert_true(fabsf(l[i] - (i == 5 ? -4 : want[i] * 0.5f)) < 1e-6f);
    const turbo_sample_step allow[] = {STEP(ALLOW, .n_ids = 3, .ids = three),
                                       STEP(BAN, .n_ids = 1, .ids = five)};
    p.program = allow;
    p.n_program = 2;
    for (int i = 0; i < 50; i++) {
        ramp(l);
        p.seed = (uint64_t)i;
        int32_t t = draw(l, state, &p).token;
        assert_true(t == 3 || t == 9);
    }
    /* Nothing left is an error; a forced token comes even then. */
    const turbo_sample_step none[] = {STEP(ALLOW, .n_ids = 1, .ids = five),
                                      STEP(BAN, .n_ids = 1, .ids = five),
                                      STEP(FORCE, .n_ids = 1, .ids = five)};
    p.program = none;
    p.n_program = 2;
    ramp(l);
    assert_int_equal(draw(l, state, &p).status, TURBO_EINVAL);
    p.n_program = 3;
    p.temperature = 0;
    p.n_logprobs = 0;
    ramp(l);
    double sum = 0;
    for (int i = 0; i < V; i++)
        sum += exp((double)l[i]);
    double lp = (double)l[5] - log(sum);
    turbo_sample_row row = draw(l, state, &p);
    assert_int_equal(row.token, 5);
    assert_true(fabs((double)row.logprob - lp) < 1e-5); /* of the model, not of the program */
    free(state);
}

/* Programs are checked before anything indexes with them. */
static void test_refused(void **s)
{
    static const int32_t beyond[] = {V}, below[] = {-1}, two[] = {1, 2};
    const turbo_sample_step bad[] = {
        STEP(BAN, .n_ids = 1, .ids = beyond),
        STEP(ADD, .a = 1, .n_ids = 1, .ids = below),
        STEP(FORCE, .n_ids = 2, .ids = two),
        STEP(FORCE),
        STEP(TOP_P, .a = 0),
        STEP(TOP_P, .a = NAN),
        STEP(TEMPERATURE, .a = -1),
        STEP(NO_REPEAT_NGRAM),
        STEP(MIROSTAT, .a = INFINITY),
        {.size = sizeof bad[0], .kind = 18},
        {.size = sizeof bad[0]},
    };
    char state[1 << 16];
    turbo_err err;
    (void)s;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        turbo_sample_params p = neutral();
        p.program = &bad[i];
        p.n_program = 1;
        memset(state, 0, sizeof state);
        assert_true(vtbl->state_bytes(sampler, ROOM) <= sizeof state);
        if (vtbl->begin(sampler, state, ROOM, &p, NULL, 0, &err) != TURBO_EINVAL)
            fail_msg("bad step %zu is taken", i);
    }
}

/* A chain's order is the order in which it is written. */
static void test_order(void **s)
{
    const turbo_sample_step cool[] = {STEP(TEMPERATURE, .a = 0.25f), STEP(MIN_P, .a = 0.5f)},
                            late[] = {STEP(MIN_P, .a = 0.5f), STEP(TEMPERATURE, .a = 0.25f)};
    int left[2] = {0};
    float l[V];
    (void)s;
    for (int k = 0; k < 2; k++) {
        turbo_sample_params p = neutral();
        p.program = k ? late : cool;
        p.n_program = 2;
        void *state = begin(&p, NULL, 0);
        ramp(l);
        draw(l, state, &p);
        for (int i = 0; i < V; i++)
            left[k] += l[i] > -INFINITY;
        free(state);
    }
    /* exp(x/0.25) >= 1/2: within 0.173 of the best, 2 values; exp(x) >= 1/2: within 0.693, 6 values. */
    assert_int_equal(left[0], 2);
    assert_int_equal(left[1], 6);
}

/* Mirostat steers the surprise of what is drawn towards tau. */
static void test_mirostat(void **s)
{
    const turbo_sample_step step = STEP(MIROSTAT, .a = 2.5f, .b = 0.2f);
    turbo_sample_params p = neutral();
    float l[V], model[V];
    double sum = 0, seen = 0;
    (void)s;
    for (int i = 0; i < V; i++)
        model[i] = -0.25f * (float)i; /* entropy about 3.2 bits */
    for (int i = 0; i < V; i++)
        sum += exp((double)model[i]);
    p.program = &step;
    p.n_program = 1;
    p.seed = 11;
    void *state = begin(&p, NULL, 0);
    for (int n = 0; n < 2000; n++) {
        memcpy(l, model, sizeof l);
        turbo_sample_row row = draw(l, state, &p);
        seen += -((double)model[row.token] - log(sum)) / log(2);
        vtbl->accept(sampler, state, &p, row.token);
    }
    if (!(fabs(seen / 2000 - 2.5) < 0.1))
        fail_msg("the mean surprise is %g bits, not 2.5", seen / 2000);
    free(state);
}

/* XTC leaves the likeliest alone in one of four draws when it is asked to strike in three. */
static void test_xtc(void **s)
{
    const turbo_sample_step step = STEP(XTC, .a = 0.1f, .b = 0.75f);
    turbo_sample_params p = neutral();
    float l[V];
    int struck = 0;
    (void)s;
    p.program = &step;
    p.n_program = 1;
    void *state = begin(&p, NULL, 0);
    for (int n = 0; n < 4000; n++) {
        for (int i = 0; i < V; i++)
            l[i] = i < 3 ? 5.0f - 0.1f * (float)i : 0;
        p.seed = (uint64_t)n;
        draw(l, state, &p);
        struck += isinf(l[0]) && isinf(l[1]) && !isinf(l[2]);
    }
    assert_in_range(struck, 2870, 3130); /* 3000, 5 standard deviations of 27 */
    free(state);
}

/* Without a program it is the standard sampler. */
static void test_like_std(void **s)
{
    extern const turbo_plugin *std_entry(uint32_t abi);
    const turbo_sampler_vtbl *std = std_entry(TURBO_HOST_ABI)->samplers[0];
    void *other = NULL;
    turbo_err err;
    uint32_t r = 5;
    (void)s;
    assert_int_equal(std->open(NULL, V, &other, &err), TURBO_OK);
    for (int n = 0; n < 300; n++) {
        float a[V], b[V];
        for (int i = 0; i < V; i++)
            a[i] = b[i] = (float)((r = r * 1664525u + 1013904223u) >> 8) / 2e6f;
        turbo_sample_params p = neutral();
        p.seed = (uint64_t)n;
        p.temperature = (float)(n % 4) / 2;
        p.top_k = n % 5 ? n % 30 : 0;
        p.top_p = n % 3 ? 0.8f : 1;
        p.repetition_penalty = n % 2 ? 1.3f : 1;
        const int32_t prompt[] = {1, 2, 3, 2};
        void *x = begin(&p, prompt, 4), *y = calloc(1, std->state_bytes(other, ROOM));
        turbo_logprob top[20];
        assert_int_equal(std->begin(other, y, ROOM, &p, prompt, 4, &err), TURBO_OK);
        turbo_sample_row row = {.logits = b, .state = y, .params = &p, .top = top};
        assert_int_equal(std->sample(other, &row, 1, &err), TURBO_OK);
        assert_int_equal(draw(a, x, &p).token, row.token);
        free(x);
        free(y);
    }
    std->close(other);
}

static int open_sampler(void **s)
{
    turbo_err err;
    (void)s;
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->samplers[0];
    return vtbl->open(NULL, V, &sampler, &err) ? -1 : 0;
}

static int close_sampler(void **s)
{
    (void)s;
    vtbl->close(sampler);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps),    cmocka_unit_test(test_ids),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_order),
        cmocka_unit_test(test_mirostat), cmocka_unit_test(test_xtc),
        cmocka_unit_test(test_like_std),
    };
    return cmocka_run_group_tests(tests, open_sampler, close_sampler);
}
