/* The engine on a CUDA device that draws tokens itself: the same tokens as the sampler plugin draws from the
 * logits of the same device, alone, in mixed batches and after preemptions; what a step copies; numbers that are
 * none. A request with logprobs is drawn on the host, so it is the model of one without. On the fake driver,
 * or with TURBO_CHECK_GPU on the machine's own. */
#include "../unit/engine_kit.h"

#include "conf/paths.h"
#include "gpu.h"

enum { KINDS = 9, PROMPT = 24, VOCAB = 300 };

static fake_driver fake;
static char folder[64];
/* Small: kernels take their time on the host. */
static const tiny_model tiny = {
    .vocab = VOCAB,
    .embed = 16,
    .layers = 1,
    .heads = 2,
    .kv_heads = 1,
    .inner = 16,
    .max_position = 256,
    .random = 11,
};

static turbod_engine_opts on_cuda(void)
{
    turbod_engine_opts o = small();
    o.device = "cuda";
    o.device_precision = "f32";
    o.deterministic = true;
    o.backend_path = turbod_backend_path();
    return o;
}

/* Parameters of kind i; every stage of doc/sampling.md is in some. */
static turbo_sample_params params(int i)
{
    static const turbo_logit_bias bias[] = {{7, 2.5f}, {11, -40}, {7, 1}, {200, 3}};
    static const int32_t bad[] = {5, 17, 18, 40}, bad_len[] = {1, 2, 1}, stop[] = {1, 9, 30};
    static int32_t allowed[150];
    turbo_sample_params p = greedy();
    p.seed = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
    p.temperature = i % KINDS ? 0.9f : 0;
    switch (i % KINDS) {
    case 2: p.top_k = 20; break;
    case 3: p.top_p = 0.8f; break;
    case 4: p.min_p = 0.02f; break;
    case 5:
        p.repetition_penalty = 1.3f;
        p.presence_penalty = 0.4f;
        p.frequency_penalty = 0.3f;
        break;
    case 6:
        p.bias = bias;
        p.n_bias = 4;
        p.bad_ids = bad;
        p.bad_len = bad_len;
        p.n_bad = 3;
        break;
    case 7:
        for (int k = 0; k < 150; k++)
            allowed[k] = 2 * k;
        p.allowed = allowed;
        p.n_allowed = 150;
        break;
    case 8:
        p.stop_ids = stop;
        p.n_stop = 3;
        p.min_tokens = 6;
        p.top_k = 50;
        p.top_p = 0.95f;
        p.frequency_penalty = 1;
        break;
    default: break;
    }
    return p;
}

static void begin(turbod_engine *e, result *r, int i, int32_t max, bool by_host)
{
    int32_t prompt[PROMPT];
    turbo_sample_params p = params(i);
    p.n_logprobs = by_host ? 0 : -1;
    make_prompt(prompt, PROMPT, (uint32_t)i, VOCAB);
    turbod_request_spec spec = ask(prompt, PROMPT - i % 5, max + i);
    spec.params = p;
    spec.stop_ids = p.stop_ids;
    spec.n_stop_ids = p.n_stop;
    start_spec(e, r, spec);
}

static void same_tokens(const result *got, const result *want, int i)
{
    assert_int_equal(got->end.kind, TURBOD_EV_DONE);
    if (got->n != want->n || memcmp(got->ids, want->ids, (size_t)want->n * sizeof *want->ids) != 0)
        fail_msg("request %d: other tokens than on the host", i);
}

/* Requests 0 .. KINDS-1 at once; those that by_host has a bit for are drawn on the host. */
static void run(turbod_engine *e, result *r, int32_t max, unsigned by_host)
{
    gate = true;
    for (int i = 0; i < KINDS; i++)
        begin(e, &r[i], i, max, by_host >> i & 1);
    gate = false;
    for (int i = 0; i < KINDS; i++)
        finish(&r[i]);
    all_blocks_back(e);
}

static void test_tokens(void **state)
{
    static result want[KINDS], got[KINDS];
    (void)state;
    turbod_engine *e = open_engine(folder, on_cuda());
    const turbod_engine_facts *f = turbod_engine_facts_of(e);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++)
        assert_int_equal(f->plan.bytes[k], f->alloc[k]);
    run(e, want, 8, ~0u);
    static const unsigned by_host[] = {0, 0x92};
    for (int k = 0; k < 2; k++) {
        run(e, got, 8, by_host[k]);
        for (int i = 0; i < KINDS; i++)
            same_tokens(&got[i], &want[i], i);
    }
    turbod_engine_close(e);
}

/* A step that only decodes is one launch of a graph: it copies nothing to the host outside it, and no logits. */
static void test_copies(void **state)
{
    static const char *const kinds[] = {"cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2",
                                        "cuLaunchKernel",       "cuLaunchKernelEx",
                                        "cuMemAlloc_v2",        "cuMemHostAlloc"};
    enum { CALLS = sizeof kinds / sizeof kinds[0] };
    static result r;
    long calls[2][CALLS], launched;
    (void)state;
    if (!fake.handle)
        skip();
    turbod_engine_opts o = on_cuda();
    o.prefix_caching = false;
    turbod_engine *e = open_engine(folder, o);
    begin(e, &r, 5, 0, false); /* records */
    finish(&r);
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < CALLS; i++)
            calls[k][i] = -fake.calls(kinds[i]);
        launched = -fake.calls("cuGraphLaunch");
        begin(e, &r, 5, k ? 15 : 5, false);
        finish(&r);
        launched += fake.calls("cuGraphLaunch");
        assert_true(launched >= r.n - 1);
        for (int i = 0; i < CALLS; i++)
            calls[k][i] += fake.calls(kinds[i]);
    }
    for (int i = 0; i < CALLS; i++)
        if (calls[0][i] != calls[1][i])
            fail_msg("%s: %ld with 10 tokens, %ld with 20", kinds[i], calls[0][i], calls[1][i]);
    turbod_engine_close(e);
}

/* Few blocks: sequences lose theirs and come back, to a place of the device that another one had. */
static void test_preemption(void **state)
{
    static result want[KINDS], got[KINDS];
    (void)state;
    turbod_engine *e = open_engine(folder, on_cuda());
    run(e, want, 24, ~0u);
    turbod_engine_close(e);
    turbod_engine_opts o = on_cuda();
    o.session_len = 64;
    o.block_tokens = 8;
    o.cache_bytes = 26 * 2 * 8 * 8 * 4; /* 26 blocks */
    e = open_engine(folder, o);
    run(e, got, 24, 0);
    for (int i = 0; i < KINDS; i++)
        same_tokens(&got[i], &want[i], i);
    assert_true(turbod_engine_metrics(e)->preemptions > 0);
    turbod_engine_close(e);
}

/* Steps started so far, at each token of a request. */
typedef struct watch {
    result r;
    long started[64];
} watch;

static void on_watched(void *ctx, const turbod_event *ev)
{
    watch *w = ctx;
    if (ev->kind == TURBOD_EV_TOKEN)
        w->started[w->r.n] = fake.calls("cuGraphLaunch");
    on_event(&w->r, ev);
}

/* When a token is handed out, the step of the next one has been started, but for the last. */
static void test_ahead(void **state)
{
    static watch w;
    int32_t prompt[PROMPT];
    turbo_err err = {{0}};
    (void)state;
    if (!fake.handle)
        skip();
    turbod_engine *e = open_engine(folder, on_cuda());
    make_prompt(prompt, PROMPT, 3, VOCAB);
    turbod_request_spec spec = ask(prompt, PROMPT, 12);
    spec.params.n_logprobs = -1;
    spec.on_event = on_watched;
    spec.ctx = &w;
    pthread_mutex_init(&w.r.mu, NULL);
    pthread_cond_init(&w.r.done, NULL);
    long before = fake.calls("cuGraphLaunch");
    assert_int_equal(turbod_engine_submit(e, &spec, &w.r.req, &err), TURBO_OK);
    finish(&w.r);
    assert_int_equal(w.r.n, 12);
    for (int i = 0; i < 12; i++)
        assert_int_equal(w.started[i] - before, i < 11 ? i + 1 : 11);
    turbod_engine_close(e);
}

/* What ends while its next step is on its way: by a stop id, or cancelled; the others do not notice. */
static void test_ends(void **state)
{
    static result want[KINDS], got[KINDS];
    (void)state;
    turbod_engine *e = open_engine(folder, on_cuda());
    run(e, want, 20, ~0u);
    for (int round = 0; round < 2; round++) {
        gate = true;
        for (int i = 0; i < KINDS; i++) {
            if (i != 1) {
                begin(e, &got[i], i, 20, false);
                continue;
            }
            int32_t prompt[PROMPT];
            make_prompt(prompt, PROMPT, 1, VOCAB);
            turbod_request_spec spec = ask(prompt, PROMPT - 1, 21);
            spec.params = params(1);
            spec.params.n_logprobs = -1;
            spec.stop_ids = &want[1].ids[7];
            spec.n_stop_ids = 1;
            start_spec(e, &got[1], spec);
        }
        gate = false;
        if (round)
            turbod_request_cancel(got[4].req);
        for (int i = 0; i < KINDS; i++)
            finish(&got[i]);
        for (int i = 0; i < KINDS; i++) {
            if (round && i == 4 && got[4].end.kind == TURBOD_EV_ERROR) {
                assert_int_equal(got[4].end.status, TURBO_ECANCELLED);
                assert_int_equal(got[4].end.timings.predicted_n, got[4].n);
                assert_memory_equal(got[4].ids, want[4].ids, (size_t)got[4].n * sizeof(int32_t));
            } else if (i != 1) {
                same_tokens(&got[i], &want[i], i);
            }
        }
        assert_int_equal(got[1].end.stop_token, want[1].ids[7]);
        assert_true(got[1].n <= 7);
        assert_memory_equal(got[1].ids, want[1].ids, (size_t)got[1].n * sizeof(int32_t));
        all_blocks_back(e);
    }
    turbod_engine_close(e);
}

static void test_not_finite(void **state)
{
    char bad[64];
    const tiny_model *m = &tiny;
    static result r;
    (void)state;
    tiny_model_write(m, bad);
    tiny_model_overflow(m, bad);
    turbod_engine *e = open_engine(bad, on_cuda());
    for (int k = 0; k < 2; k++) {
        begin(e, &r, 1, 5, k);
        finish(&r);
        assert_int_equal(r.end.kind, TURBOD_EV_ERROR);
        assert_int_equal(r.end.status, TURBO_EDATA);
        assert_non_null(strstr(r.message, "numeric_error"));
        all_blocks_back(e);
    }
    turbod_engine_close(e);
    tiny_model_remove(bad);
}

static int set_up(void **state)
{
    (void)state;
    tiny_model_write(&tiny, folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tiny_model_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens),     cmocka_unit_test(test_copies),
        cmocka_unit_test(test_preemption), cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_ends),       cmocka_unit_test(test_not_finite),
    };
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], set_up, tear_down);
}
