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
#include "util/file.h"
#include "util/json.h"

static turbod_registry *registry;
static turbod_engine *engine;
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

static void ask(const cJSON *row, const int32_t *prompt, size_t n)
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
    assert_string_equal(a.text, turbod_json_get(row, "answer")->valuestring);
    check_ids(turbod_json_get(row, "answer_ids"), a.ids, (size_t)a.n);
    assert_int_equal(a.finish, TURBOD_FINISH_STOP);
}

static void test_answers(void **state)
{
    (void)state;
    const turbod_engine_facts *f = turbod_engine_facts_of(engine);
    int rows = 0;
    for (const cJSON *row = turbod_json_get(golden, "prompts")->child; row;
         row = row->next, rows++) {
        turbod_message msgs[16];
        turbod_render_opts opts = {.add_generation_prompt = true};
        turbod_render r = {0};
        turbo_err err = {{0}};
        int32_t *ids = NULL;
        size_t n = 0;
        if (turbod_template_render(chat, msgs, messages_of(row, msgs), &opts, &r, &err) ||
            turbod_template_encode(f->tok_vtbl, f->tok, &r, false, &ids, &n, &err))
            fail_msg("%s", err.text);
        check_ids(turbod_json_get(row, "prompt_ids"), ids, n);
        ask(row, ids, n);
        turbod_render_free(&r);
        free(ids);
    }
    assert_int_equal(rows, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers)};
    turbo_err err = {{0}};
    turbod_engine_opts o;
    const char *src = getenv("srcdir"), *plugins = getenv("TURBO_PLUGIN_PATH");
    char model[4096], folder[4096], script[4096];
    uint8_t *text = NULL;
    uint64_t len;
    src = src ? src : ".";
    snprintf(model, sizeof model, "%s/conf/models/internlm2-demo", src);
    snprintf(folder, sizeof folder, "%s/tests/golden", src);
    snprintf(script, sizeof script, "%s/scripts/chat/internlm2.lua", src);
    turbod_engine_defaults(&o);
    o.model_dir = model;
    o.cache_bytes = 64 << 20;
    o.kv_dtype = TURBO_F32;
    if (!plugins || turbod_registry_open(plugins, &registry, &err) ||
        turbod_file_read(folder, "demo-model.json", 1 << 20, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err) ||
        turbod_template_load(script, &chat, &err)) {
        printf("cannot start: %s (TURBO_PLUGIN_PATH names the plugin folders)\n", err.text);
        return 1;
    }
    o.registry = registry;
    if (turbod_engine_open(&o, &engine, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_engine_close(engine);
    turbod_template_free(chat);
    turbod_registry_close(registry);
    cJSON_Delete(golden);
    free(text);
    return rc;
}
