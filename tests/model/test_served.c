/* The golden cases of tests/golden/decoder-tiny through the engine, with chunked prompts, neighbours and a
 * prefix cache: the greedy ids of transformers, and the same bits when the beginning of a prompt comes
 * from the cache, whatever window a layer has. */
#include "unit/engine_kit.h"

#include "cases.h"
#include "plugin/registry.h"
#include "util/log.h"

#define STEPS 64

/* A dtype of its own would round the cache: fp32 is what the reference has. */
static turbod_engine *serve(const cJSON *c, char *folder, int32_t *ids, int32_t n)
{
    (void)cases_model(registry, c, folder);
    turbod_engine_opts o = small();
    o.kv_dtype = TURBO_F32;
    o.session_len = 512;
    turbod_engine *e = open_engine(folder, o);
    int32_t V = turbod_engine_facts_of(e)->model.vocab;
    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)i) % (uint32_t)V);
    return e;
}

static void check(const cJSON *c)
{
    static result alone, again, half, many[6];
    char folder[64];
    int32_t ids[512], k = 0, n = (int32_t)turbod_json_get(c, "n_ids")->valuedouble;
    turbod_engine *e = serve(c, folder, ids, n);
    turbo_sample_params p = greedy();
    start(e, &alone, ids, n, STEPS, &p);
    finish(&alone);
    assert_int_equal(alone.n, STEPS);
    for (const cJSON *v = turbod_json_get(c, "greedy")->child; v; v = v->next)
        assert_int_equal(alone.ids[k++], (int32_t)v->valuedouble);
    assert_int_equal(k, STEPS);
    start(e, &again, ids, n, STEPS, &p);
    finish(&again);
    same_answer(&alone, &again);
    assert_true(again.end.timings.cached_n >= (n - 1) / 16 * 16);
    start(e, &half, ids, n / 2, STEPS, &p); /* ends inside a block of the other */
    for (size_t i = 0; i < 6; i++)
        start(e, &many[i], ids, n, STEPS, &p);
    for (size_t i = 0; i < 6; i++) {
        finish(&many[i]);
        same_answer(&alone, &many[i]);
    }
    finish(&half);
    all_blocks_back(e);
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

static void test_served(void **state)
{
    cJSON *golden = cases_load("decoder-tiny", "golden.json");
    int n = 0;
    (void)state;
    assert_non_null(golden);
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next)
        if (cJSON_GetArraySize(turbod_json_get(c, "greedy")) == STEPS) {
            print_message("%s\n", turbod_json_get(c, "name")->valuestring);
            check(c);
            n++;
        }
    assert_int_equal(n, 17);
    cJSON_Delete(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_served)};
    turbod_log_level(TURBO_LOG_ERROR);
    return engine_kit_main(tests, 1, NULL, NULL);
}
