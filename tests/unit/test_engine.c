/* The engine with the real InternLM2 and sampler plugins on tiny checkpoints: published logits, batch
 * invariance, chunking, preemption, cancellation, limits, and no allocation while decoding.
 * Plugins come from TURBO_PLUGIN_PATH. */
#include "engine_kit.h"
#include "turbok.h"

#include <math.h>
#include <time.h>

/* ---- tests -------------------------------------------------------------------------------------------- */

/* Sheet vectors 8.1 A and B: six decimals, computed in fp64; fp32 arithmetic stays within 2e-5. */
static void test_published_logits(void **state)
{
    (void)state;
    static const struct {
        int embed;
        double want[10];
    } cases[] = {
        {8,
         {-0.962869, -0.032665, 0.594884, -0.933674, 0.397010, 0.624079, -1.896963, 0.426205,
          0.653273, -1.867768}},
        {16,
         {-0.321024, -0.334293, 0.983718, -0.244724, 0.516530, -0.907106, -0.212191, 0.592830,
          -0.830807, -0.135892}},
    };
    for (int c = 0; c < 2; c++) {
        char folder[64];
        tiny_model m = {.vocab = 10,
                        .embed = cases[c].embed,
                        .layers = 2,
                        .heads = 4,
                        .kv_heads = 2,
                        .inner = 12,
                        .max_position = 64};
        tiny_model_write(&m, folder);
        turbod_engine *e = open_engine(folder, small());
        static const int32_t ids[] = {1, 4, 7};
        float logits[3 * 10];
        turbo_err err;
        assert_int_equal(turbod_engine_logits(e, ids, 3, true, logits, &err), TURBO_OK);
        for (int i = 0; i < 10; i++)
            assert_true(fabs((double)logits[20 + i] - cases[c].want[i]) < 2e-5);
        turbod_engine_close(e);
        tiny_model_remove(folder);
    }
}

/* The tokens and logprobs of a request are the same bits alone, in a crowd, and in any chunking. */
static void test_batch_invariance(void **state)
{
    (void)state;
    char folder[64];
    int32_t prompts[12][100];
    static result solo[12], crowd[12];
    turbo_sample_params p = greedy();
    tiny_model_write(&random_model, folder);
    for (int i = 0; i < 12; i++)
        make_prompt(prompts[i], 100, (uint32_t)i, 300);
    turbod_engine *e = open_engine(folder, small());
    for (int i = 0; i < 12; i++) {
        p.seed = (uint64_t)i;
        p.temperature = i % 2 ? 0.9f : 0;
        start(e, &solo[i], prompts[i], 5 + 8 * i, 40, &p);
        finish(&solo[i]);
        assert_int_equal(solo[i].n, 40);
    }
    turbod_engine_close(e);
    static const int32_t chunks[] = {17, 64, 512};
    for (int c = 0; c < 3; c++) {
        turbod_engine_opts o = small();
        o.max_step_tokens = chunks[c];
        o.threads = c + 1;
        e = open_engine(folder, o);
        for (int i = 0; i < 12; i++) {
            p.seed = (uint64_t)i;
            p.temperature = i % 2 ? 0.9f : 0;
            start(e, &crowd[i], prompts[i], 5 + 8 * i, 40, &p);
        }
        for (int i = 0; i < 12; i++) {
            finish(&crowd[i]);
            assert_int_equal(crowd[i].n, 40);
            assert_memory_equal(crowd[i].ids, solo[i].ids, 40 * sizeof(int32_t));
            assert_memory_equal(crowd[i].logprobs, solo[i].logprobs, 40 * sizeof(float));
        }
        turbod_engine_close(e);
    }
    tiny_model_remove(folder);
}

/* A pool for about two and a half requests serves eight; each answer equals its solo run. */
static void test_preemption(void **state)
{
    (void)state;
    char folder[64];
    int32_t prompts[8][40];
    static result solo[8], crowd[8];
    turbo_sample_params p = greedy();
    tiny_model_write(&random_model, folder);
    turbod_engine *e = open_engine(folder, small());
    for (int i = 0; i < 8; i++) {
        make_prompt(prompts[i], 40, (uint32_t)(100 + i), 300);
        start(e, &solo[i], prompts[i], 40, 60, &p);
        finish(&solo[i]);
    }
    turbod_engine_close(e);
    turbod_engine_opts o = small();
    o.session_len = 112;
    o.cache_bytes = 18 * 2 * 2 * 2 * 16 * 16 * 4; /* 18 blocks of 16 tokens */
    e = open_engine(folder, o);
    assert_int_equal(turbod_engine_facts_of(e)->kv_blocks, 18);
    gate = true; /* until all are there */
    for (int i = 0; i < 8; i++)
        start(e, &crowd[i], prompts[i], 40, 60, &p);
    gate = false;
    for (int i = 0; i < 8; i++) {
        finish(&crowd[i]);
        assert_int_equal(crowd[i].end.kind, TURBOD_EV_DONE);
        assert_memory_equal(crowd[i].ids, solo[i].ids, 60 * sizeof(int32_t));
    }
    turbod_metrics *m = turbod_engine_metrics(e);
    assert_true(m->preemptions > 0);
    assert_true(m->preemptions <= 3 * 8);
    while (!turbod_engine_idle(e)) {
    }
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

/* Cancelled in the queue, in prefill and in decode: one terminal event each, all blocks free. */
static void test_cancel(void **state)
{
    (void)state;
    char folder[64];
    int32_t prompt[400];
    static result r[12];
    turbo_sample_params p = greedy();
    tiny_model_write(&random_model, folder);
    turbod_engine_opts o = small();
    o.max_batch = 4;
    turbod_engine *e = open_engine(folder, o);
    make_prompt(prompt, 400, 5, 300);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 12; i++)
            start(e, &r[i], prompt, i % 3 ? 10 : 400, 100, &p);
        struct timespec nap = {0, 200000L * round};
        nanosleep(&nap, NULL);
        for (int i = 0; i < 12; i++)
            turbod_request_cancel(r[i].req);
        for (int i = 0; i < 12; i++)
            finish(&r[i]);
    }
    start(e, &r[0], prompt, 10, 5, &p);
    finish(&r[0]);
    assert_int_equal(r[0].end.kind, TURBOD_EV_DONE);
    all_blocks_back(e);
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

/* After a cancel no step begins that still has the request: at most the one that runs comes to its end. */
static void test_one_step(void **state)
{
    (void)state;
    char folder[64];
    int32_t prompt[400];
    static result r;
    turbo_sample_params p = greedy();
    tiny_model_write(&random_model, folder);
    turbod_engine_opts o = small();
    o.max_batch = o.max_step_tokens = 16; /* a prompt of 400 takes 25 steps */
    o.prefix_caching = false;
    turbod_engine *e = open_engine(folder, o);
    turbod_metrics *m = turbod_engine_metrics(e);
    make_prompt(prompt, 400, 5, 300);
    int in_time = 0;
    for (int round = 0; round < 60; round++) {
        uint64_t before = m->steps;
        start(e, &r, prompt, round % 2 ? 400 : 10, round % 2 ? 110 : 490, &p);
        while (m->steps < before + (uint64_t)round / 2) /* in the queue, in prefill, in decode */
            nap_ms(0);
        turbod_request_cancel(r.req);
        uint64_t seen = m->steps;
        finish(&r);
        in_time += r.end.kind == TURBOD_EV_ERROR;
        all_blocks_back(e);
        if (r.end.kind == TURBOD_EV_DONE) /* this thread had no CPU meanwhile */
            continue;
        assert_true(m->steps - seen <= 1);
        assert_int_equal(m->kv_free, m->kv_total);
    }
    assert_true(in_time >= 20);
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

static void test_limits(void **state)
{
    (void)state;
    char folder[64];
    turbo_err err;
    turbod_request *req;
    tiny_model_write(&random_model, folder);
    turbod_engine *e = open_engine(folder, small());
    int32_t ids[600] = {0};
    turbod_request_spec ok = {.prompt = ids, .n_prompt = 10, .max_tokens = 10, .params = greedy()};
    turbod_request_spec bad = ok;
    bad.n_prompt = 0;
    assert_int_equal(turbod_engine_submit(e, &bad, &req, &err), TURBO_EINVAL);
    bad = ok;
    bad.max_tokens = 503; /* session_len is 512 */
    assert_int_equal(turbod_engine_submit(e, &bad, &req, &err), TURBO_ELIMIT);
    assert_non_null(strstr(err.text, "512"));
    bad = ok;
    bad.params.temperature = NAN;
    assert_int_equal(turbod_engine_submit(e, &bad, &req, &err), TURBO_EINVAL);
    bad = ok;
    ids[3] = 300;
    assert_int_equal(turbod_engine_submit(e, &bad, &req, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "300"));
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

/* From the 8th to the last token nothing allocates, whatever the sampler does. */
static void test_no_allocation(void **state)
{
    (void)state;
#ifdef COUNTS_ALLOCATIONS
    char folder[64];
    int32_t prompt[8];
    static result r;
    turbo_sample_params p = greedy();
    p.temperature = 0.8f;
    p.top_p = 0.9f;
    p.repetition_penalty = 1.1f;
    p.n_logprobs = 5;
    tiny_model_write(&random_model, folder);
    turbod_engine *e = open_engine(folder, small());
    make_prompt(prompt, 8, 3, 300);
    start(e, &r, prompt, 8, 400, &p);
    finish(&r);
    assert_int_equal(r.n, 400);
    assert_int_equal(r.marks[399] - r.marks[8], 0);
    turbod_engine_close(e);
    tiny_model_remove(folder);
#else
    skip();
#endif
}

/* A weight of K that overflows: the key of each token holds an infinity. Stored as codes it must not turn
 * into a finite number; the request ends as it does without quantisation. */
static void test_infinite_keys(void **state)
{
    static const int32_t types[] = {-1, TURBOK_KV_INT8, TURBOK_KV_INT4};
    const tiny_model *m = &random_model;
    char folder[64];
    int32_t prompt[8];
    static result r;
    turbo_sample_params p = greedy();
    (void)state;
    tiny_model_write(m, folder);
    tiny_model_overflow(m, folder);
    make_prompt(prompt, 8, 3, 300);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        turbod_engine_opts o = small();
        o.kv_dtype = types[i];
        turbod_engine *e = open_engine(folder, o);
        start(e, &r, prompt, 8, 5, &p);
        finish(&r);
        assert_int_equal(r.end.kind, TURBOD_EV_ERROR);
        assert_non_null(strstr(r.message, "numeric_error"));
        all_blocks_back(e);
        turbod_engine_close(e);
    }
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_logits), cmocka_unit_test(test_batch_invariance),
        cmocka_unit_test(test_preemption),       cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_one_step),         cmocka_unit_test(test_limits),
        cmocka_unit_test(test_no_allocation),    cmocka_unit_test(test_infinite_keys),
    };
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
