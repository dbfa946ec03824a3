/* tests/cuda/test_sample.c: sampling on the device against the plugin samp-std on the CPU: the same tokens
 * for the same logits, over random parameters, distributions and several tokens of a sequence. */
#include "cuda/sample.h"
#include "q_kit.h"
#include "samp.h"

enum { ROWS = 8, PROMPT = 12, STEPS = 3, MOST = 24 };

/* One sequence on both sides. */
typedef struct side {
    turbo_sample_params p;
    void *state; /* of the plugin */
    turbo_logit_bias bias[MOST];
    int32_t stop[4], bad[MOST], bad_len[6], *allowed, prompt[PROMPT];
    turbok_cu_sample_row row; /* of the device */
} side;

static const turbo_sampler_vtbl *vtbl;
static void *sampler;

static int32_t id_below(int32_t V)
{
    return (int32_t)(rnd() % (uint32_t)V);
}

/* Logits of several shapes: peaked, flat, with many ties, far apart, partly banned. */
static void fill_logits(float *l, int32_t V, int kind)
{
    float width = kind == 0   ? 1.0f
                  : kind == 1 ? 0.01f
                  : kind == 2 ? 4.0f
                  : kind == 3 ? 30.0f
                              : 8.0f;
    for (int32_t i = 0; i < V; i++) {
        float v = uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1);
        l[i] = v * width;
        if (kind == 2)
            l[i] = (float)(int)l[i]; /* ties, and both zeros */
        if (kind == 5 && rnd() % 3)
            l[i] = -INFINITY;
    }
    if (kind == 5)
        l[id_below(V)] = 3;
}

static void random_params(side *s, int32_t V)
{
    turbo_sample_params *p = &s->p;
    *p = (turbo_sample_params){
        .size = sizeof *p,
        .temperature = rnd() % 6 ? uniform(0.05f, 2) : 0,
        .top_p = rnd() % 2 ? uniform(0.05f, 1) : 1,
        .min_p = rnd() % 3 ? 0 : uniform(0, 0.3f),
        .top_k = rnd() % 2   ? 0
                 : rnd() % 4 ? between(1, 60)
                             : between(1, V),
        .repetition_penalty = rnd() % 2 ? 1 : uniform(0.5f, 2),
        .presence_penalty = rnd() % 2 ? 0 : uniform(-2, 2),
        .frequency_penalty = rnd() % 2 ? 0 : uniform(-2, 2),
        .min_tokens = rnd() % 2 ? 0 : 2,
        .n_logprobs = -1,
        .n_bias = rnd() % 3 ? 0 : between(1, MOST),
        .n_stop = between(0, 4),
        .n_bad = rnd() % 3 ? 0 : between(1, 6),
        .seed = (uint64_t)rnd() << 32 | rnd(),
        .bias = s->bias,
        .stop_ids = s->stop,
        .bad_ids = s->bad,
        .bad_len = s->bad_len,
    };
    for (int i = 0; i < PROMPT; i++)
        s->prompt[i] = id_below(V);
    for (int i = 0; i < MOST; i++) { /* some ids twice */
        s->bias[i] = (turbo_logit_bias){i % 3 ? id_below(V) : s->bias[0].id, uniform(-20, 20)};
        s->bad[i] = i % 2 ? id_below(V) : s->prompt[PROMPT - 1];
    }
    for (int i = 0; i < 4; i++)
        s->stop[i] = id_below(V);
    for (int i = 0; i < 6; i++)
        s->bad_len[i] = between(1, 4);
    p->n_allowed = rnd() % 4 ? 0 : between(1, rnd() % 2 && V > 5 ? 5 : V);
    s->allowed = malloc((size_t)V * sizeof *s->allowed);
    for (int i = 0; i < p->n_allowed; i++)
        s->allowed[i] = id_below(V);
    p->allowed = s->allowed;
}

static void begin_both(side *s, int32_t V)
{
    const turbo_sample_params *p = &s->p;
    turbo_err err = {{0}};
    s->state = calloc(1, vtbl->state_bytes(sampler, 64));
    must(vtbl->begin(sampler, s->state, 64, p, s->prompt, PROMPT, &err), &err);
    bool tracking = p->repetition_penalty < 1 || p->repetition_penalty > 1 ||
                    fabsf(p->presence_penalty) > 0 || fabsf(p->frequency_penalty) > 0;
    int32_t ids[MOST];
    float bias[MOST];
    for (int i = 0; i < MOST; i++) {
        ids[i] = s->bias[i].id;
        bias[i] = s->bias[i].bias;
    }
    size_t words = ((size_t)V + 31) / 32;
    uint32_t *mask = calloc(words, sizeof *mask);
    for (int i = 0; i < p->n_allowed; i++)
        mask[s->allowed[i] / 32] |= 1u << (s->allowed[i] % 32);
    s->row = (turbok_cu_sample_row){
        .seed = p->seed,
        .state = device_new(sizeof(turbok_cu_sample_state)),
        .counts = tracking ? device_new((size_t)V * sizeof(uint32_t)) : NULL,
        .allowed = p->n_allowed ? device_put(mask, words * sizeof *mask) : NULL,
        .bias_ids = device_put(ids, sizeof ids),
        .bias = device_put(bias, sizeof bias),
        .stop_ids = device_put(s->stop, sizeof s->stop),
        .bad_ids = device_put(s->bad, sizeof s->bad),
        .bad_len = device_put(s->bad_len, sizeof s->bad_len),
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition = p->repetition_penalty,
        .presence = p->presence_penalty,
        .frequency = p->frequency_penalty,
        .top_k = p->top_k,
        .min_tokens = p->min_tokens,
        .n_bias = p->n_bias,
        .n_stop = p->n_stop,
        .n_bad = p->n_bad,
    };
    turbok_cu_sample_tokens(cu, s->row.state, s->row.counts,
                            device_put(s->prompt, sizeof s->prompt), PROMPT, V, true);
    free(mask);
}

/* ROWS sequences for STEPS tokens each. */
static void compare_batch(int32_t V, int n)
{
    static side sides[ROWS];
    turbok_cu_sample_row rows[ROWS];
    float *l = malloc((size_t)V * ROWS * sizeof *l);
    void *scratch = device_new(turbok_cu_sample_bytes(ROWS, V));
    int32_t *tokens = device_new(sizeof(int32_t) * ROWS),
            *status = device_new(sizeof(int32_t) * ROWS);
    float *dl = device_new((size_t)V * ROWS * sizeof *l);
    turbok_cu_sample_row *dr = device_new(sizeof rows);
    for (int i = 0; i < ROWS; i++) {
        random_params(&sides[i], V);
        begin_both(&sides[i], V);
        rows[i] = sides[i].row;
        rows[i].index = ROWS - 1 - i;
    }
    turbok_cu_to_device(cu, turbok_cu_at(dr), rows, sizeof rows);
    for (int step = 0; step < STEPS; step++) {
        int32_t got[ROWS], how[ROWS];
        for (int i = 0; i < ROWS; i++)
            fill_logits(l + (size_t)rows[i].index * (size_t)V, V, (n + i) % 6);
        if (n % 16 == 0 && step == 1) /* numbers that are none, in one row */
            l[(size_t)rows[n % 32 ? 3 : ROWS - 1].index * (size_t)V + (size_t)id_below(V)] =
                n % 32 ? NAN : INFINITY;
        turbok_cu_to_device(cu, turbok_cu_at(dl), l, (size_t)V * ROWS * sizeof *l);
        /* At first together, then one row alone, whose best logits several blocks look for. */
        int alone = step ? 1 : 0, last = ROWS - alone;
        turbok_cu_sample(cu, dr, last, V, dl, scratch, tokens, status);
        turbok_cu_sample(cu, dr + last, alone, V, dl, scratch, tokens + last, status + last);
        device_get(got, tokens, sizeof got);
        device_get(how, status, sizeof how);
        for (int i = 0; i < ROWS; i++) {
            side *s = &sides[i];
            turbo_err err = {{0}};
            turbo_sample_row row = {.logits = l + (size_t)rows[i].index * (size_t)V,
                                    .state = s->state,
                                    .params = &s->p};
            must(vtbl->sample(sampler, &row, 1, &err), &err);
            assert_int_equal(how[i], row.status);
            if (row.status) {
                assert_int_equal(got[i], -1);
                continue;
            }
            if (got[i] != row.token)
                printf("V %d batch %d row %d step %d: %d, not %d (t %g k %d p %g m %g)\n", V, n, i,
                       step, got[i], row.token, (double)s->p.temperature, s->p.top_k,
                       (double)s->p.top_p, (double)s->p.min_p);
            assert_int_equal(got[i], row.token);
            vtbl->accept(sampler, s->state, &s->p, row.token);
        }
    }
    for (int i = 0; i < ROWS; i++) {
        free(sides[i].state);
        free(sides[i].allowed);
    }
    device_end();
    free(l);
}

static void compare_rows(int32_t V, int n)
{
    turbo_err err = {{0}};
    must(vtbl->open(NULL, V, &sampler, &err), &err);
    for (int i = 0; i < n; i += ROWS * STEPS)
        compare_batch(V, i / (ROWS * STEPS));
    vtbl->close(sampler);
}

/* Rows of a size: on a card, under a sanitizer there, on the host. */
static int rows_of(int card, int checked, int host)
{
    const char *on = getenv("TURBO_CHECK_GPU");
    return !on ? host : strcmp(on, "small") ? card : checked;
}

static void test_small(void)
{
    static const int32_t sizes[] = {1, 2, 31, 64, 65, 700, 1025};
    for (int i = 0; i < 7; i++)
        compare_rows(sizes[i], rows_of(480, 24, 96));
}

static void test_2800(void)
{
    compare_rows(2800, rows_of(10000, 24, 1000));
}

static void test_92544(void)
{
    compare_rows(92544, rows_of(4000, 24, 48));
}

/* Output that came from elsewhere counts as output. */
static void test_tokens(void)
{
    enum { V = 40 };
    turbok_cu_sample_state st;
    uint32_t counts[V];
    int32_t tokens[80];
    for (int i = 0; i < 80; i++)
        tokens[i] = i % 7;
    void *ds = device_new(sizeof st), *dc = device_new(sizeof counts),
         *dt = device_put(tokens, sizeof tokens);
    turbok_cu_sample_tokens(cu, ds, dc, dt, 3, V, true);
    turbok_cu_sample_tokens(cu, ds, dc, dt, 80, V, false);
    device_get(&st, ds, sizeof st);
    device_get(counts, dc, sizeof counts);
    assert_int_equal(st.position, 80);
    assert_int_equal(st.n_recent, 83);
    for (uint32_t i = 83 - TURBOK_CU_RECENT; i < 83; i++)
        assert_int_equal(st.recent[i % TURBOK_CU_RECENT], (int)(i - 3) % 7);
    for (uint32_t i = 0; i < V; i++)
        assert_int_equal(counts[i], (i < 3 ? 0x80000000u : 0) + (i < 7 ? (80 - i + 6) / 7 : 0));
    device_end();
}

int main(void)
{
    vtbl = turbo_plugin_entry(TURBO_ABI_MAJOR << 16)->samplers[0];
    device_open();
    RUN(test_small);
    RUN(test_2800);
    RUN(test_92544);
    RUN(test_tokens);
    turbok_cu_close(cu);
    return 0;
}
