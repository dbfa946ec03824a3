/* tests/unit/engine_kit.c: see engine_kit.h. */
#include "engine_kit.h"

#include <time.h>

/* ---- an allocation counter in front of the C library ---------------------------------------------- */

_Atomic long allocations;
_Thread_local long fail_allocation;
#ifdef COUNTS_ALLOCATIONS
static bool refused(void)
{
    allocations++;
    return fail_allocation > 0 && --fail_allocation == 0;
}
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t n)
{
    return refused() ? NULL : __libc_malloc(n);
}
void *calloc(size_t a, size_t b)
{
    return refused() ? NULL : __libc_calloc(a, b);
}
void *realloc(void *p, size_t n)
{
    return refused() ? NULL : __libc_realloc(p, n);
}
void *aligned_alloc(size_t a, size_t n)
{
    return refused() ? NULL : __libc_memalign(a, n);
}
#endif

/* ---- helpers ------------------------------------------------------------------------------------------ */

turbod_registry *registry;

turbod_engine *open_engine(const char *folder, turbod_engine_opts o)
{
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    o.model_dir = folder;
    o.registry = registry;
    if (turbod_engine_open(&o, &e, &err))
        fail_msg("%s", err.text);
    return e;
}

turbod_engine_opts small(void)
{
    turbod_engine_opts o;
    turbod_engine_defaults(&o);
    o.cache_bytes = 4 << 20;
    o.max_batch = 16;
    o.max_step_tokens = 64;
    o.block_tokens = 16;
    return o;
}

static _Atomic int firsts, tokens;
_Atomic bool gate;

void on_event(void *ctx, const turbod_event *ev)
{
    result *r = ctx;
    while (gate)
        nap_ms(1);
    pthread_mutex_lock(&r->mu);
    if (ev->kind == TURBOD_EV_TOKEN) {
        tokens++;
        if (!r->n) {
            r->first_at = ++firsts;
            r->began = tokens;
        }
        r->marks[r->n] = allocations;
        r->logprobs[r->n] = ev->logprob;
        r->ids[r->n++] = ev->token;
        for (int32_t i = 0; i < ev->n_top; i++) { /* FNV-1a over the bits */
            uint32_t bits;
            memcpy(&bits, &ev->top[i].logprob, sizeof bits);
            r->tops = (r->tops ^ (uint64_t)ev->top[i].id) * 0x100000001b3u;
            r->tops = (r->tops ^ bits) * 0x100000001b3u;
        }
    } else {
        r->end = *ev;
        r->ended = tokens;
        r->terminal++;
        if (ev->message)
            strncpy(r->message, ev->message, sizeof r->message - 1);
        pthread_cond_signal(&r->done);
    }
    pthread_mutex_unlock(&r->mu);
}

turbod_request_spec ask(const int32_t *prompt, int32_t n, int32_t max)
{
    return (turbod_request_spec){
        .prompt = prompt,
        .n_prompt = n,
        .max_tokens = max,
        .params = greedy(),
        .ignore_eos = true,
    };
}

void start_spec(turbod_engine *e, result *r, turbod_request_spec spec)
{
    turbo_err err = {{0}};
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->mu, NULL);
    pthread_cond_init(&r->done, NULL);
    spec.on_event = on_event;
    spec.ctx = r;
    if (turbod_engine_submit(e, &spec, &r->req, &err))
        fail_msg("submit: %s", err.text);
}

void start(turbod_engine *e, result *r, const int32_t *prompt, int32_t n, int32_t max,
           const turbo_sample_params *p)
{
    turbod_request_spec spec = ask(prompt, n, max);
    spec.params = *p;
    start_spec(e, r, spec);
}

void finish(result *r)
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

turbo_sample_params greedy(void)
{
    turbo_sample_params p;
    turbod_sample_defaults(&p);
    p.temperature = 0;
    p.n_logprobs = 0;
    return p;
}

void make_prompt(int32_t *ids, int n, uint32_t seed, int vocab)
{
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)(seed >> 8) % vocab;
    }
}

const tiny_model random_model = {
    .vocab = 300, .embed = 64, .layers = 2, .heads = 4, .kv_heads = 2, .inner = 96,
    .max_position = 512, .random = 11,
};

void same_answer(const result *a, const result *b)
{
    assert_int_equal(a->end.kind, TURBOD_EV_DONE);
    assert_int_equal(b->end.kind, TURBOD_EV_DONE);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n * sizeof *a->ids);
    assert_memory_equal(a->logprobs, b->logprobs, (size_t)a->n * sizeof *a->logprobs);
    assert_true(a->tops == b->tops);
}

void nap_ms(int ms)
{
    struct timespec nap = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&nap, NULL);
}

void all_blocks_back(turbod_engine *e)
{
    turbod_metrics *m = turbod_engine_metrics(e);
    for (int i = 0; i < 5000 && m->kv_free + m->kv_cached != m->kv_total; i++)
        nap_ms(1);
    assert_int_equal(m->kv_free + m->kv_cached, m->kv_total);
    assert_int_equal(m->running + m->waiting, 0);
}

int engine_kit_main(const struct CMUnitTest *tests, size_t n, CMFixtureFunction set_up,
                    CMFixtureFunction tear_down)
{
    turbo_err err;
    const char *path = getenv("TURBO_PLUGIN_PATH");
    if (!path || turbod_registry_open(path, &registry, &err)) {
        printf("set TURBO_PLUGIN_PATH to the plugin folders\n");
        return 1;
    }
    int rc = _cmocka_run_group_tests("engine", tests, n, set_up, tear_down);
    turbod_registry_close(registry);
    return rc;
}
