/* tests/unit/test_load.c: the engine with more requests than it can hold: nothing is lost, nobody starves,
 * tenants share fairly, cached text is found to the token, and every answer has the same bits as alone. */
#include <limits.h>

#include "engine_kit.h"
#include "sched/scheduler.h"
#include "turbok.h"

enum { VOCAB = 300 };

static char folder[64];

static int write_model(void **state)
{
    (void)state;
    tiny_model_write(&random_model, folder);
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    tiny_model_remove(folder);
    return 0;
}

/* What the cache holds: the model's numbers, int8 or int4. */
static int32_t kv_type = -1;

static int use_int8(void **state)
{
    (void)state;
    kv_type = TURBOK_KV_INT8;
    return 0;
}

static int use_int4(void **state)
{
    (void)state;
    kv_type = TURBOK_KV_INT4;
    return 0;
}

static int use_plain(void **state)
{
    (void)state;
    kv_type = -1;
    return 0;
}

static turbod_engine_opts options(void)
{
    turbod_engine_opts o = small();
    o.kv_dtype = kv_type;
    return o;
}

static void block_bytes_for(turbod_engine_opts *o, int32_t blocks)
{
    const turbok_kv_dims dims = {2, 2, 16, 16, kv_type < 0 ? TURBO_F32 : kv_type};
    o->cache_bytes = (uint64_t)blocks * turbok_kv_block_bytes(&dims);
}

/* Answers without anything else in the engine and without a cache. */
static void solo_run(result *r, int32_t n, const turbod_request_spec *specs)
{
    turbod_engine_opts o = options();
    o.prefix_caching = false;
    turbod_engine *e = open_engine(folder, o);
    for (int i = 0; i < n; i++) {
        start_spec(e, &r[i], specs[i]);
        finish(&r[i]);
    }
    turbod_engine_close(e);
}

/* 64 requests of 400 tokens, a pool for eight of them. Eight at a time would take an eighth of the whole time
 * each: the i-th fairly waits for the i / 8 groups before it. Nobody waits three times as long, not counting
 * less than one group, and nobody who began takes three times as long as his group would. */
static void test_many_times_the_pool(void **state)
{
    enum { N = 64, PLACES = 8, PROMPT = 40, ANSWER = 360 };
    (void)state;
    static int32_t prompts[N][PROMPT];
    static result solo[N], crowd[N];
    static turbod_request_spec specs[N];
    for (int i = 0; i < N; i++) {
        make_prompt(prompts[i], PROMPT, (uint32_t)(500 + i), VOCAB);
        specs[i] = ask(prompts[i], PROMPT, ANSWER);
        specs[i].params.temperature = i % 2 ? 0.8f : 0;
        specs[i].params.seed = (uint64_t)i;
    }
    solo_run(solo, N, specs);
    turbod_engine_opts o = options();
    o.max_batch = N;
    o.session_len = PROMPT + ANSWER;
    block_bytes_for(&o, PLACES * (PROMPT + ANSWER) / 16);
    turbod_engine *e = open_engine(folder, o);
    gate = true; /* until all are there */
    for (int i = 0; i < N; i++)
        start_spec(e, &crowd[i], specs[i]);
    gate = false;
    /* The clock is the tokens of all: the machine may have other work. */
    int first = INT_MAX;
    double wait = 0, service = 0;
    for (int i = 0; i < N; i++) {
        finish(&crowd[i]);
        same_answer(&solo[i], &crowd[i]);
        first = crowd[i].began < first ? crowd[i].began : first;
    }
    for (int i = 0; i < N; i++) {
        double group = PLACES * ANSWER, fair = group * (i < PLACES ? 1 : (double)(i / PLACES));
        double waited = (crowd[i].began - first) / fair;
        double own = (crowd[i].ended - crowd[i].began) / group;
        wait = waited > wait ? waited : wait;
        service = own > service ? own : service;
    }
    assert_true(wait <= 3);
    assert_true(service <= 3);
    turbod_metrics *m = turbod_engine_metrics(e);
    print_message("%d requests, %d preemptions; longest wait %.2f of the fair one, longest answer "
                  "%.2f of its group's time\n",
                  N, (int)m->preemptions, wait, service);
    assert_true(m->preemptions <= TURBOD_MAX_PREEMPTIONS * N);
    all_blocks_back(e);
    turbod_engine_close(e);
}

/* Cached, chunked anyhow, in batches of 2, 8 and 64, preempted: the same bits. */
static void test_same_bits(void **state)
{
    enum { N = 64, PROMPT = 150, ANSWER = 24 };
    static const struct {
        int32_t batch, step, threads, blocks, block;
        bool caching;
    } ways[] = {
        {2, 64, 1, 800, 16, true},   {8, 17, 2, 800, 16, true},  {64, 256, 2, 800, 16, true},
        {64, 100, 1, 800, 16, false}, {64, 64, 2, 36, 16, true}, {8, 512, 2, 36, 16, false},
        {16, 33, 3, 400, 8, true},   {16, 64, 2, 100, 64, true},
    };
    (void)state;
    static int32_t prompts[N][PROMPT];
    static result solo[N], other[N];
    static turbod_request_spec specs[N];
    for (int i = 0; i < N; i++) { /* groups of eight share a beginning of any length */
        make_prompt(prompts[i], PROMPT, (uint32_t)(900 + i), VOCAB);
        memcpy(prompts[i], prompts[i & ~7], (size_t)(i * 37 % PROMPT) * sizeof(int32_t));
        specs[i] = ask(prompts[i], PROMPT - i % 5 * 20, ANSWER);
        specs[i].params.temperature = i % 3 ? 0.7f : 0;
        specs[i].params.seed = (uint64_t)i;
        specs[i].params.repetition_penalty = i % 4 ? 1.0f : 1.2f;
        specs[i].params.n_logprobs = 20; /* each is a logit less the sum over all of them */
    }
    solo_run(solo, N, specs);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        turbod_engine_opts o = options();
        o.max_batch = ways[w].batch;
        o.max_step_tokens = ways[w].step;
        o.threads = ways[w].threads;
        o.block_tokens = ways[w].block;
        o.prefix_caching = ways[w].caching;
        o.session_len = 200;
        block_bytes_for(&o, ways[w].blocks * ways[w].block / 16);
        turbod_engine *e = open_engine(folder, o);
        for (int round = 0; round < 2; round++) { /* the second finds what the first left */
            gate = true;
            for (int i = 0; i < N; i++)
                start_spec(e, &other[i], specs[i]);
            gate = false;
            for (int i = 0; i < N; i++) {
                finish(&other[i]);
                same_answer(&solo[i], &other[i]);
            }
        }
        turbod_metrics *m = turbod_engine_metrics(e);
        if (ways[w].blocks == 36)
            assert_true(m->preemptions > 0);
        assert_true(ways[w].caching == (m->prefix_hits > 0));
        all_blocks_back(e);
        turbod_engine_close(e);
    }
}

static int32_t cached_of(turbod_engine *e, turbod_request_spec spec)
{
    static result r;
    start_spec(e, &r, spec);
    finish(&r);
    assert_int_equal(r.end.kind, TURBOD_EV_DONE);
    return r.end.timings.cached_n;
}

static void test_prefix(void **state)
{
    (void)state;
    int32_t text[200];
    turbod_engine *e = open_engine(folder, options());
    make_prompt(text, 200, 3, VOCAB);
    turbod_request_spec s = ask(text, 100, 10);
    assert_int_equal(cached_of(e, s), 0);
    assert_int_equal(cached_of(e, s), 99); /* all but the last, whose logits are wanted */
    s.n_prompt = 61;
    assert_int_equal(cached_of(e, s), 60);
    text[50]++; /* parts inside a block */
    s.n_prompt = 100;
    assert_int_equal(cached_of(e, s), 50);
    text[50]--;
    s.cache_salt = "another";
    assert_int_equal(cached_of(e, s), 0);
    assert_int_equal(cached_of(e, s), 99);
    s.cache_salt = NULL;
    s.tenant = "somebody";
    assert_int_equal(cached_of(e, s), 0);
    turbod_engine_close(e);

    turbod_engine_opts o = options();
    o.cache_per_tenant = false;
    e = open_engine(folder, o);
    assert_int_equal(cached_of(e, s), 0);
    s.tenant = "somebody else";
    assert_int_equal(cached_of(e, s), 99);
    turbod_engine_close(e);

    o.prefix_caching = false;
    e = open_engine(folder, o);
    assert_int_equal(cached_of(e, s), 0);
    assert_int_equal(cached_of(e, s), 0);
    all_blocks_back(e);
    assert_int_equal(turbod_engine_metrics(e)->kv_cached, 0);
    turbod_engine_close(e);
}

/* A dialogue's next turn computes what is new; several answers to one prompt compute it once. */
static void test_turns_and_answers(void **state)
{
    (void)state;
    int32_t text[200];
    static result a, n[5];
    turbod_engine *e = open_engine(folder, options());
    make_prompt(text, 30, 9, VOCAB);
    turbod_request_spec s = ask(text, 30, 20);
    start_spec(e, &a, s);
    finish(&a);
    memcpy(text + 30, a.ids, 20 * sizeof(int32_t));
    make_prompt(text + 50, 10, 10, VOCAB);
    s.n_prompt = 60;
    /* The last sampled token was never computed, so 49 of the 50 are in the cache. */
    assert_int_equal(cached_of(e, s), 49);
    turbod_metrics *m = turbod_engine_metrics(e);
    uint64_t before = m->step_tokens.sum_nano;
    make_prompt(text, 150, 77, VOCAB);
    s = ask(text, 150, 10);
    for (int i = 0; i < 5; i++) {
        s.params.temperature = 1;
        s.params.seed = (uint64_t)i;
        start_spec(e, &n[i], s);
    }
    int cold = 0;
    for (int i = 0; i < 5; i++) {
        finish(&n[i]);
        cold += n[i].end.timings.cached_n == 0;
        assert_true(n[i].end.timings.cached_n == 0 || n[i].end.timings.cached_n == 149);
    }
    assert_int_equal(cold, 1);
    all_blocks_back(e);
    assert_int_equal((m->step_tokens.sum_nano - before) / 1000000000, 150 + 4 + 5 * 9);
    turbod_engine_close(e);
}

/* One tenant with eighty requests, another with one now and then: the other does not wait for them. */
static void test_tenants(void **state)
{
    enum { HEAVY = 80 };
    (void)state;
    int32_t text[64];
    static result heavy[HEAVY], light[4];
    turbod_engine_opts o = options();
    o.max_batch = 8;
    turbod_engine *e = open_engine(folder, o);
    make_prompt(text, 64, 1, VOCAB);
    turbod_request_spec s = ask(text, 20, 200);
    s.tenant = "heavy";
    for (int i = 0; i < HEAVY; i++) {
        text[0] = i;
        start_spec(e, &heavy[i], s);
    }
    s.tenant = "light";
    s.max_tokens = 5;
    for (int i = 0; i < 4; i++) {
        nap_ms(5);
        text[0] = 200 + i;
        start_spec(e, &light[i], s);
        finish(&light[i]);
        assert_int_equal(light[i].end.kind, TURBOD_EV_DONE);
    }
    int after = 0;
    for (int i = 0; i < HEAVY; i++) {
        finish(&heavy[i]);
        assert_int_equal(heavy[i].n, 200);
        after += heavy[i].first_at > light[3].first_at;
    }
    print_message("%d of %d began after the light tenant's last\n", after, HEAVY);
    assert_true(after >= HEAVY / 4);
    all_blocks_back(e);
    turbod_engine_close(e);
}

/* Eight tenants with as much to do get as much done: Jain's index of service at a moment in between. */
static void test_equal_tenants(void **state)
{
    enum { T = 8, EACH = 6 };
    (void)state;
    int32_t text[32];
    char names[T][8];
    static result r[T * EACH], earlier[5];
    turbod_engine_opts o = options();
    o.max_batch = 5; /* not a multiple */
    turbod_engine *e = open_engine(folder, o);
    make_prompt(text, 32, 1, VOCAB);
    turbod_request_spec s = ask(text, 32, 100);
    gate = true; /* until everybody is there */
    for (int i = 0; i < 5; i++) {
        snprintf(names[i], sizeof names[0], "e%d", i);
        s.tenant = names[i];
        start_spec(e, &earlier[i], s);
    }
    for (int i = 0; i < T * EACH; i++) { /* one after another: who came first must not win */
        snprintf(names[i / EACH], sizeof names[0], "t%d", i / EACH);
        s.tenant = names[i / EACH];
        text[0] = i;
        start_spec(e, &r[i], s);
    }
    gate = false;
    for (int i = 0; i < 5; i++)
        finish(&earlier[i]);
    for (int i = 0; i < T * EACH; i++)
        finish(&r[i]);
    double sum = 0, squares = 0;
    for (int t = 0; t < T; t++) { /* how many of each are among the first half */
        int early = 0;
        for (int i = 0; i < EACH; i++) {
            int before = 0;
            for (int k = 0; k < T * EACH; k++)
                before += r[k].first_at < r[t * EACH + i].first_at;
            early += before < T * EACH / 2;
        }
        sum += early;
        squares += early * early;
    }
    print_message("Jain's index %.3f\n", sum * sum / (T * squares));
    assert_true(sum * sum / (T * squares) >= 0.95);
    turbod_engine_close(e);
}

static void test_priorities(void **state)
{
    (void)state;
    int32_t text[32];
    static result first, r[9];
    turbod_engine_opts o = options();
    o.max_batch = 1;
    turbod_engine *e = open_engine(folder, o);
    make_prompt(text, 32, 1, VOCAB);
    turbod_request_spec s = ask(text, 32, 300);
    gate = true;
    start_spec(e, &first, s);
    while (!turbod_engine_metrics(e)->running)
        nap_ms(1);
    s.max_tokens = 5;
    for (int i = 0; i < 9; i++) {
        s.priority = 10 - i / 3 * 10; /* 10, 0, -10 */
        start_spec(e, &r[i], s);
    }
    gate = false;
    finish(&first);
    for (int i = 0; i < 9; i++)
        finish(&r[i]);
    static const int order[] = {6, 7, 8, 3, 4, 5, 0, 1, 2};
    for (int i = 1; i < 9; i++)
        assert_true(r[order[i - 1]].first_at < r[order[i]].first_at);
    turbo_err err;
    turbod_request *req;
    s.priority = 1001;
    assert_int_equal(turbod_engine_submit(e, &s, &req, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "priority"));
    turbod_engine_close(e);
}

/* A tenant that fills the queue is told so, and leaves room for others. */
static void test_queue_limit(void **state)
{
    (void)state;
    int32_t text[32];
    static result first, r[40];
    turbo_err err;
    turbod_request *req;
    turbod_engine_opts o = options();
    o.max_batch = 1;
    o.queue_size = 32;
    turbod_engine *e = open_engine(folder, o);
    make_prompt(text, 32, 1, VOCAB);
    turbod_request_spec s = ask(text, 32, 20);
    gate = true;
    start_spec(e, &first, s);
    while (!turbod_engine_metrics(e)->running)
        nap_ms(1);
    s.tenant = "heavy";
    for (int i = 0; i < 32; i++)
        start_spec(e, &r[i], s);
    assert_int_equal(turbod_engine_submit(e, &s, &req, &err), TURBO_EBUSY);
    s.tenant = "light";
    for (int i = 32; i < 35; i++)
        start_spec(e, &r[i], s);
    assert_int_equal(turbod_engine_submit(e, &s, &req, &err), TURBO_EBUSY);
    gate = false;
    finish(&first);
    for (int i = 0; i < 35; i++)
        finish(&r[i]);
    start_spec(e, &first, s);
    finish(&first);
    turbod_engine_close(e);
}

static void test_deadlines(void **state)
{
    (void)state;
    int32_t text[400];
    static result long_one, queued, late;
    turbod_engine_opts o = options();
    o.max_batch = 1;
    turbod_engine *e = open_engine(folder, o);
    make_prompt(text, 400, 1, VOCAB);
    turbod_request_spec s = ask(text, 10, 500);
    start_spec(e, &long_one, s);
    s.queue_timeout_ms = 1;
    start_spec(e, &queued, s);
    s.queue_timeout_ms = 0;
    s.timeout_ms = 2;
    start_spec(e, &late, s);
    finish(&queued);
    finish(&late);
    finish(&long_one);
    assert_int_equal(long_one.end.kind, TURBOD_EV_DONE);
    assert_int_equal(queued.end.kind, TURBOD_EV_ERROR);
    assert_non_null(strstr(queued.message, "queue_timeout_ms"));
    assert_int_equal(late.end.kind, TURBOD_EV_ERROR);
    assert_non_null(strstr(late.message, "request_timeout_ms"));
    all_blocks_back(e);
    turbod_engine_close(e);
}

/* Requests come, are cancelled at any moment and at any number of tokens, share text, run out of room;
 * in between a witness must answer as it does alone. */
static void test_storm(void **state)
{
    enum { N = 400, LIVE = 24 };
    (void)state;
    static int32_t texts[8][300];
    static result r[LIVE], solo, witness;
    uint32_t seed = 12;
    int32_t asked[300];
    make_prompt(asked, 100, 4242, VOCAB);
    turbod_request_spec wit = ask(asked, 100, 30);
    solo_run(&solo, 1, &wit);
    for (int i = 0; i < 8; i++)
        make_prompt(texts[i], 300, (uint32_t)i / 2, VOCAB);
    turbod_engine_opts o = options();
    o.max_batch = 12;
    o.session_len = 400;
    block_bytes_for(&o, 60);
    turbod_engine *e = open_engine(folder, o);
    bool live[LIVE] = {false};
    for (int i = 0; i < N; i++) {
        int k = i % LIVE;
        if (live[k])
            finish(&r[k]);
        seed = seed * 1664525u + 1013904223u;
        uint32_t x = seed >> 8;
        turbod_request_spec s = ask(texts[x % 8], 1 + (int32_t)(x / 8 % 290), 1 + (int32_t)(x / 99 % 90));
        s.priority = (int32_t)(x % 3);
        s.tenant = x % 2 ? "a" : "b";
        start_spec(e, &r[k], s);
        live[k] = true;
        if (x % 5 == 0)
            turbod_request_cancel(r[k].req);
        if (x % 7 == 0)
            turbod_request_cancel(r[x % LIVE % (uint32_t)(k + 1)].req);
        if (i % 50 == 49) {
            start_spec(e, &witness, wit);
            finish(&witness);
            same_answer(&solo, &witness);
        }
    }
    for (int k = 0; k < LIVE; k++)
        if (live[k])
            finish(&r[k]);
    turbod_metrics *m = turbod_engine_metrics(e);
    print_message("%d requests, %d preemptions, %d of %d prompt tokens cached\n", N,
                  (int)m->preemptions, (int)m->prefix_hits, (int)m->prefix_queries);
    all_blocks_back(e);
    turbod_engine_close(e);
}

/* Every allocation of a submission fails once: a clean refusal, and the next request is unharmed. The
 * engine thread allocates nothing, which test_engine counts. */
static void test_no_memory(void **state)
{
    (void)state;
#ifdef COUNTS_ALLOCATIONS
    int32_t text[40];
    static result solo, r;
    turbod_engine *e = open_engine(folder, options());
    make_prompt(text, 40, 8, VOCAB);
    turbod_request_spec s = ask(text, 40, 10);
    static const turbo_logit_bias bias = {3, 1};
    s.params.bias = &bias;
    s.params.n_bias = 1;
    s.params.n_logprobs = 3;
    start_spec(e, &solo, s);
    finish(&solo);
    int refused = 0;
    for (long n = 1;; n++) {
        turbod_request *req = NULL;
        turbo_err err = {{0}};
        s.tenant = n % 2 ? "one" : NULL;
        memset(&r, 0, sizeof r);
        pthread_mutex_init(&r.mu, NULL);
        pthread_cond_init(&r.done, NULL);
        s.ctx = &r;
        s.on_event = on_event;
        fail_allocation = n;
        turbo_status st = turbod_engine_submit(e, &s, &req, &err);
        bool reached = fail_allocation == 0;
        fail_allocation = 0;
        if (st) {
            assert_int_equal(st, TURBO_ENOMEM);
            assert_true(strlen(err.text) > 0);
            refused++;
        } else {
            r.req = req;
            finish(&r);
            same_answer(&solo, &r);
        }
        if (!reached)
            break;
    }
    print_message("%d allocations of a submission failed in turn\n", refused);
    assert_true(refused >= 5);
    s.tenant = NULL;
    start_spec(e, &r, s);
    finish(&r);
    same_answer(&solo, &r);
    all_blocks_back(e);
    turbod_engine_close(e);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_times_the_pool),
        cmocka_unit_test_setup_teardown(test_many_times_the_pool, use_int8, use_plain),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test_setup_teardown(test_same_bits, use_int8, use_plain),
        cmocka_unit_test_setup_teardown(test_same_bits, use_int4, use_plain),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_turns_and_answers),
        cmocka_unit_test_setup_teardown(test_turns_and_answers, use_int8, use_plain),
        cmocka_unit_test_setup_teardown(test_turns_and_answers, use_int4, use_plain),
        cmocka_unit_test(test_tenants),
        cmocka_unit_test(test_equal_tenants),
        cmocka_unit_test(test_priorities),
        cmocka_unit_test(test_queue_limit),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_storm),
        cmocka_unit_test(test_no_memory),
    };
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], write_model, remove_model);
}
