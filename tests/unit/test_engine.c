/* The engine with the real InternLM2 and sampler plugins on tiny checkpoints: published logits, batch
 * invariance, chunking, preemption, cancellation, sessions, limits, and no allocation while decoding.
 * Plugins come from TURBO_PLUGIN_PATH. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "tiny_model.h"

/* ---- an allocation counter in front of the C library ---------------------------------------------- */

static _Atomic long allocations;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t n)
{
    allocations++;
    return __libc_malloc(n);
}
void *calloc(size_t a, size_t b)
{
    allocations++;
    return __libc_calloc(a, b);
}
void *realloc(void *p, size_t n)
{
    allocations++;
    return __libc_realloc(p, n);
}
void *aligned_alloc(size_t a, size_t n)
{
    allocations++;
    return __libc_memalign(a, n);
}
#endif

/* ---- helpers ------------------------------------------------------------------------------------------ */

static turbod_registry *registry;

static turbod_engine *open_engine(const char *folder, turbod_engine_opts o)
{
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    o.model_dir = folder;
    o.registry = registry;
    if (turbod_engine_open(&o, &e, &err))
        fail_msg("%s", err.text);
    return e;
}

static turbod_engine_opts small(void)
{
    turbod_engine_opts o;
    turbod_engine_defaults(&o);
    o.cache_bytes = 4 << 20;
    o.max_batch = 16;
    o.max_step_tokens = 64;
    o.block_tokens = 16;
    return o;
}

typedef struct result {
    pthread_mutex_t mu;
    pthread_cond_t done;
    int32_t ids[512];
    float logprobs[512];
    int n, terminal;
    turbod_event end;
    char message[256];
    long marks[512]; /* allocations so far, at each token */
    turbod_request *req;
    int cancel_at;
} result;

static void on_event(void *ctx, const turbod_event *ev)
{
    result *r = ctx;
    pthread_mutex_lock(&r->mu);
    if (ev->kind == TURBOD_EV_TOKEN) {
        r->marks[r->n] = allocations;
        r->logprobs[r->n] = ev->logprob;
        r->ids[r->n++] = ev->token;
    } else {
        r->end = *ev;
        r->terminal++;
        if (ev->message)
            strncpy(r->message, ev->message, sizeof r->message - 1);
        pthread_cond_signal(&r->done);
    }
    pthread_mutex_unlock(&r->mu);
}

static void start(turbod_engine *e, result *r, const int32_t *prompt, int32_t n, int32_t max,
                  const turbo_sample_params *p, turbod_session *s)
{
    turbo_err err = {{0}};
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->mu, NULL);
    pthread_cond_init(&r->done, NULL);
    turbod_request_spec spec = {
        .prompt = prompt,
        .n_prompt = n,
        .max_tokens = max,
        .params = *p,
        .ignore_eos = true,
        .session = s,
        .on_event = on_event,
        .ctx = r,
    };
    if (turbod_engine_submit(e, &spec, &r->req, &err))
        fail_msg("submit: %s", err.text);
}

static void finish(result *r)
{
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 60;
    pthread_mutex_lock(&r->mu);
    while (!r->terminal)
        if (pthread_cond_timedwait(&r->done, &r->mu, &limit))
            break;
    int terminal = r->terminal;
    pthread_mutex_unlock(&r->mu);
    assert_int_equal(terminal, 1);
    turbod_request_release(r->req);
    pthread_mutex_destroy(&r->mu);
    pthread_cond_destroy(&r->done);
}

static turbo_sample_params greedy(void)
{
    turbo_sample_params p;
    turbod_sample_defaults(&p);
    p.temperature = 0;
    p.n_logprobs = 0;
    return p;
}

static void make_prompt(int32_t *ids, int n, uint32_t seed, int vocab)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)(seed >> 8) % vocab;
    }
}

static const tiny_model random_model = {
    .vocab = 300, .embed = 64, .layers = 2, .heads = 4, .kv_heads = 2, .inner = 96,
    .max_position = 512, .random = 11,
};

/* ---- tests -------------------------------------------------------------------------------------------- */

/* Sheet vectors 8.1 A and B: six decimals, computed in fp64; fp32 arithmetic stays within 2e-5. */
static void test_published_logits(void **state)
{
    (void)state;
    static const struct {
        int embed;
        double want[10];
    } cases[] = {
        {8, {-0.962869, -0.032665, 0.594884, -0.933674, 0.397010, 0.624079, -1.896963, 0.426205,
             0.653273, -1.867768}},
        {16, {-0.321024, -0.334293, 0.983718, -0.244724, 0.516530, -0.907106, -0.212191, 0.592830,
              -0.830807, -0.135892}},
    };
    for (int c = 0; c < 2; c++) {
        char folder[64];
        tiny_model m = {.vocab = 10, .embed = cases[c].embed, .layers = 2, .heads = 4, .kv_heads = 2,
                        .inner = 12, .max_position = 64};
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
        start(e, &solo[i], prompts[i], 5 + 8 * i, 40, &p, NULL);
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
            start(e, &crowd[i], prompts[i], 5 + 8 * i, 40, &p, NULL);
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
        start(e, &solo[i], prompts[i], 40, 60, &p, NULL);
        finish(&solo[i]);
    }
    turbod_engine_close(e);
    turbod_engine_opts o = small();
    o.session_len = 112;
    o.cache_bytes = 18 * 2 * 2 * 2 * 16 * 16 * 4; /* 18 blocks of 16 tokens */
    e = open_engine(folder, o);
    assert_int_equal(turbod_engine_facts_of(e)->kv_blocks, 18);
    for (int i = 0; i < 8; i++)
        start(e, &crowd[i], prompts[i], 40, 60, &p, NULL);
    for (int i = 0; i < 8; i++) {
        finish(&crowd[i]);
        assert_int_equal(crowd[i].end.kind, TURBOD_EV_DONE);
        assert_memory_equal(crowd[i].ids, solo[i].ids, 60 * sizeof(int32_t));
    }
    turbod_metrics *m = turbod_engine_metrics(e);
    assert_true(m->preemptions > 0);
    assert_true(m->preemptions <= 3 * 8);
    while (!turbod_engine_idle(e)) {}
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
            start(e, &r[i], prompt, i % 3 ? 10 : 400, 100, &p, NULL);
        struct timespec nap = {0, 200000L * round};
        nanosleep(&nap, NULL);
        for (int i = 0; i < 12; i++)
            turbod_request_cancel(r[i].req);
        for (int i = 0; i < 12; i++)
            finish(&r[i]);
    }
    start(e, &r[0], prompt, 10, 5, &p, NULL);
    finish(&r[0]);
    assert_int_equal(r[0].end.kind, TURBOD_EV_DONE);
    turbod_metrics *m = turbod_engine_metrics(e);
    for (int i = 0; i < 2000 && m->kv_free != m->kv_total; i++) {
        struct timespec nap = {0, 1000000};
        nanosleep(&nap, NULL);
    }
    assert_int_equal(m->kv_free, m->kv_total);
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

/* A second turn computes only what is new, and answers as if everything had been computed. */
static void test_session(void **state)
{
    (void)state;
    char folder[64];
    int32_t text[200];
    static result a, b, whole;
    turbo_sample_params p = greedy();
    turbo_err err;
    turbod_session *s;
    tiny_model_write(&random_model, folder);
    turbod_engine *e = open_engine(folder, small());
    assert_int_equal(turbod_session_open(e, &s, &err), TURBO_OK);
    make_prompt(text, 30, 9, 300);
    start(e, &a, text, 30, 20, &p, s);
    finish(&a);
    memcpy(text + 30, a.ids, 20 * sizeof(int32_t));
    make_prompt(text + 50, 10, 10, 300);
    start(e, &b, text, 60, 20, &p, s);
    finish(&b);
    /* The last sampled token was never computed, so 49 of the 50 are in the cache. */
    assert_int_equal(b.end.timings.cached_n, 49);
    start(e, &whole, text, 60, 20, &p, NULL);
    finish(&whole);
    assert_memory_equal(b.ids, whole.ids, 20 * sizeof(int32_t));
    assert_memory_equal(b.logprobs, whole.logprobs, 20 * sizeof(float));
    turbod_session_close(e, s);
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
    turbod_request_spec ok = {.prompt = ids, .n_prompt = 10, .max_tokens = 10, .params = greedy(),
                              .on_event = on_event};
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
    start(e, &r, prompt, 8, 400, &p, NULL);
    finish(&r);
    assert_int_equal(r.n, 400);
    assert_int_equal(r.marks[399] - r.marks[8], 0);
    turbod_engine_close(e);
    tiny_model_remove(folder);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_logits), cmocka_unit_test(test_batch_invariance),
        cmocka_unit_test(test_preemption),       cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_session),          cmocka_unit_test(test_limits),
        cmocka_unit_test(test_no_allocation),
    };
    turbo_err err;
    const char *path = getenv("TURBO_PLUGIN_PATH");
    if (!path || turbod_registry_open(path, &registry, &err)) {
        printf("set TURBO_PLUGIN_PATH to the plugin folders\n");
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    return rc;
}
