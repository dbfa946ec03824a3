/* The embedded model, the whole way: messages through the chat template and the tokenizer to prompt
 * ids, and greedy answers equal to those another implementation computed (tests/golden). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chat/template.h"
#include "engine/engine.h"
#include "turbok.h"
#include "util/file.h"
#include "util/json.h"

static turbod_registry *registry;
static turbod_engine *engine;
static turbod_engine_opts opts;
static turbod_template *chat;
static cJSON *golden;

typedef struct answer {
    pthread_mutex_t mu;
    pthread_cond_t done;
    int32_t ids[1024];
    int n, terminal;
    char text[8192];
    size_t len;
    turbod_finish finish;
} answer;

static void on_event(void *ctx, const turbod_event *ev)
{
    answer *a = ctx;
    pthread_mutex_lock(&a->mu);
    if (ev->kind != TURBOD_EV_ERROR && a->len + ev->text_len < sizeof a->text) {
        memcpy(a->text + a->len, ev->text, ev->text_len);
        a->len += ev->text_len;
    }
    if (ev->kind == TURBOD_EV_TOKEN) {
        a->ids[a->n++] = ev->token;
    } else {
        a->finish = ev->finish;
        a->terminal = 1;
        pthread_cond_signal(&a->done);
    }
    pthread_mutex_unlock(&a->mu);
}

static size_t messages_of(const cJSON *row, turbod_message *msgs)
{
    size_t n = 0;
    for (const cJSON *m = turbod_json_get(row, "messages")->child; m; m = m->next) {
        const char *text = turbod_json_get(m, "content")->valuestring;
        msgs[n++] = (turbod_message){
            .role = turbod_json_get(m, "role")->valuestring,
            .content = text,
            .content_len = strlen(text),
        };
    }
    return n;
}

static void check_ids(const cJSON *want, const int32_t *ids, size_t n)
{
    size_t i = 0;
    assert_int_equal(cJSON_GetArraySize(want), n);
    for (const cJSON *v = want->child; v; v = v->next)
        assert_int_equal(ids[i++], (int32_t)v->valuedouble);
}

static bool same_answer(const cJSON *row, const answer *a)
{
    const cJSON *v = turbod_json_get(row, "answer_ids")->child;
    int i = 0;
    for (; v && i < a->n && a->ids[i] == (int32_t)v->valuedouble; v = v->next)
        i++;
    return !v && i == a->n && a->finish == TURBOD_FINISH_STOP &&
           !strcmp(a->text, turbod_json_get(row, "answer")->valuestring);
}

static bool ask(const cJSON *row, const int32_t *prompt, size_t n)
{
    static answer a;
    turbo_err err = {{0}};
    memset(&a, 0, sizeof a);
    pthread_mutex_init(&a.mu, NULL);
    pthread_cond_init(&a.done, NULL);
    turbod_request_spec spec = {.prompt = prompt,
                                .n_prompt = (int32_t)n,
                                .max_tokens = 400,
                                .on_event = on_event,
                                .ctx = &a};
    turbod_sample_defaults(&spec.params);
    spec.params.temperature = 0;
    turbod_request *r;
    if (turbod_engine_submit(engine, &spec, &r, &err))
        fail_msg("%s", err.text);
    pthread_mutex_lock(&a.mu);
    while (!a.terminal)
        pthread_cond_wait(&a.done, &a.mu);
    pthread_mutex_unlock(&a.mu);
    turbod_request_release(r);
    a.text[a.len] = '\0';
    return same_answer(row, &a);
}

static int open_with(int32_t kv_dtype)
{
    turbo_err err = {{0}};
    opts.kv_dtype = kv_dtype;
    if (turbod_engine_open(&opts, &engine, &err)) {
        printf("%s\n", err.text);
        return -1;
    }
    return 0;
}

static int open_f32(void **state)
{
    (void)state;
    return open_with(TURBO_F32);
}

static int open_int8(void **state)
{
    (void)state;
    return open_with(TURBOK_KV_INT8);
}

static int open_int4(void **state)
{
    (void)state;
    return open_with(TURBOK_KV_INT4);
}

static int close_engine(void **state)
{
    (void)state;
    turbod_engine_close(engine);
    return 0;
}

/* How many of the golden answers come out, to the token. */
static int right_answers(void)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(engine);
    int rows = 0, right = 0;
    for (const cJSON *row = turbod_json_get(golden, "prompts")->child; row;
         row = row->next, rows++) {
        turbod_message msgs[16];
        turbod_render_opts how = {.add_generation_prompt = true};
        turbod_render r = {0};
        turbo_err err = {{0}};
        int32_t *ids = NULL;
        size_t n = 0;
        if (turbod_template_render(chat, msgs, messages_of(row, msgs), &how, &r, &err) ||
            turbod_template_encode(f->tok_vtbl, f->tok, &r, false, &ids, &n, &err))
            fail_msg("%s", err.text);
        check_ids(turbod_json_get(row, "prompt_ids"), ids, n);
        right += ask(row, ids, n);
        turbod_render_free(&r);
        free(ids);
    }
    assert_int_equal(rows, 20);
    print_message("keys and values as %s: %d of %d answers\n", f->kv_type, right, rows);
    return right;
}

static void test_answers(void **state)
{
    (void)state;
    assert_int_equal(right_answers(), 20);
}

/* int4 is lossy; most answers of this model still come out to the last token. */
static void test_most_answers(void **state)
{
    (void)state;
    assert_in_range(right_answers(), 16, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers, open_f32, close_engine),
        cmocka_unit_test_setup_teardown(test_answers, open_int8, close_engine),
        cmocka_unit_test_setup_teardown(test_most_answers, open_int4, close_engine),
    };
    turbo_err err = {{0}};
    const char *src = getenv("srcdir"), *plugins = getenv("TURBO_PLUGIN_PATH");
    char model[4096], folder[4096], script[4096];
    uint8_t *text = NULL;
    uint64_t len;
    src = src ? src : ".";
    snprintf(model, sizeof model, "%s/conf/models/internlm2-demo", src);
    snprintf(folder, sizeof folder, "%s/tests/golden", src);
    snprintf(script, sizeof script, "%s/scripts/chat/internlm2.lua", src);
    turbod_engine_defaults(&opts);
    opts.model_dir = model;
    opts.cache_bytes = 64 << 20;
    if (!plugins || turbod_registry_open(plugins, &registry, &err) ||
        turbod_file_read(folder, "demo-model.json", 1 << 20, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err) ||
        turbod_template_load(script, &chat, &err)) {
        printf("cannot start: %s (TURBO_PLUGIN_PATH names the plugin folders)\n", err.text);
        return 1;
    }
    opts.registry = registry;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_template_free(chat);
    turbod_registry_close(registry);
    cJSON_Delete(golden);
    free(text);
    return rc;
}
