/* A model without weights: the folder needs no safetensors when the architecture names no tensor, and
 * is refused when it does. What the null model answers is known beforehand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/engine.h"

#define V 1000

static turbod_registry *registry;
static char folder[] = "/tmp/turbo-null-XXXXXX";

static void put_config(const char *arch)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "{\"architectures\":[\"%s\"],\"vocab_size\":%d,\"max_position_embeddings\":4096}",
            arch, V);
    fclose(f);
}

static turbo_status open_it(turbod_engine **e, turbo_err *err)
{
    turbod_engine_opts o;
    turbod_engine_defaults(&o);
    o.model_dir = folder;
    o.registry = registry;
    o.cache_bytes = 4 << 20;
    return turbod_engine_open(&o, e, err);
}

typedef struct answer {
    pthread_mutex_t mu;
    pthread_cond_t done;
    int32_t ids[64];
    int n, ended;
} answer;

static void on_event(void *ctx, const turbod_event *ev)
{
    answer *a = ctx;
    pthread_mutex_lock(&a->mu);
    if (ev->kind == TURBOD_EV_TOKEN)
        a->ids[a->n++] = ev->token;
    else
        a->ended = ev->kind == TURBOD_EV_DONE ? 1 : -1;
    pthread_cond_signal(&a->done);
    pthread_mutex_unlock(&a->mu);
}

static void ask(turbod_engine *e, float temperature)
{
    static const int32_t prompt[] = {5, 6, 7};
    answer a = {.mu = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
    turbod_request_spec spec = {.prompt = prompt, .n_prompt = 3, .max_tokens = 64,
                                .on_event = on_event, .ctx = &a};
    turbod_request *r;
    turbo_err err = {{0}};
    turbod_sample_defaults(&spec.params);
    spec.params.temperature = temperature;
    if (turbod_engine_submit(e, &spec, &r, &err))
        fail_msg("%s", err.text);
    pthread_mutex_lock(&a.mu);
    while (!a.ended)
        pthread_cond_wait(&a.done, &a.mu);
    pthread_mutex_unlock(&a.mu);
    turbod_request_release(r);
    assert_int_equal(a.ended, 1);
    assert_int_equal(a.n, 64);
    for (int i = 0; i < 64; i++)
        assert_int_equal(a.ids[i], V / 4 + (2 + i) % (V / 2));
}

static void test_answer(void **state)
{
    (void)state;
    turbod_engine *e = NULL;
    turbo_err err = {{0}};
    put_config("NullForCausalLM");
    if (open_it(&e, &err))
        fail_msg("%s", err.text);
    assert_int_equal(turbod_engine_facts_of(e)->alloc[TURBOD_MEM_WEIGHTS], 0);
    ask(e, 0);
    ask(e, 1);
    ask(e, 2);
    turbod_engine_close(e);
}

static void test_refused(void **state)
{
    (void)state;
    turbod_engine *e = NULL;
    turbo_err err = {{0}};
    put_config("InternLM2ForCausalLM");
    assert_int_equal(open_it(&e, &err), TURBO_ENOENT);
    assert_non_null(strstr(err.text, "model.safetensors"));
    assert_null(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answer),
                                       cmocka_unit_test(test_refused)};
    turbo_err err = {{0}};
    char path[128];
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    if (!plugins) {
        puts("SKIP: TURBO_PLUGIN_PATH is not set; run it with make check");
        return 77;
    }
    if (!mkdtemp(folder) || turbod_registry_open(plugins, &registry, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    snprintf(path, sizeof path, "%s/config.json", folder);
    unlink(path);
    rmdir(folder);
    return rc;
}
