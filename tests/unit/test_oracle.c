/* InternLM2 against transformers' Llama (tests/golden/internlm2-tiny): GQA shapes, bias, tied heads, every
 * RoPE scaling inside and beyond the trained length. float32: |dlogit| <= 1e-4, the sum of rounding over
 * two layers in another order of additions; bf16 weights with an fp32 cache compute the same numbers;
 * with a bf16 cache <= 2e-2, its eight bits of mantissa. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "tiny_model.h"
#include "util/file.h"
#include "util/json.h"
#include "util/log.h"

static turbod_registry *registry;
static cJSON *golden;

static int32_t number(const cJSON *c, const char *key)
{
    return (int32_t)turbod_json_get(c, key)->valuedouble;
}

static int ids_of(const cJSON *list, int32_t *ids)
{
    int n = 0;
    for (const cJSON *v = list->child; v; v = v->next)
        ids[n++] = (int32_t)v->valuedouble;
    return n;
}

static int argmax(const float *l, int32_t n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = l[i] > l[best] ? i : best;
    return best;
}

static void check_logits(turbod_engine *e, const cJSON *c, double tolerance)
{
    int32_t ids[512], want[512], vocab = number(c, "vocab");
    int n = ids_of(turbod_json_get(c, "ids"), ids), same = 0;
    turbo_err err = {{0}};
    float *logits = malloc((size_t)n * (size_t)vocab * sizeof *logits);
    if (turbod_engine_logits(e, ids, n, true, logits, &err))
        fail_msg("%s", err.text);
    double worst = 0;
    int i = 0;
    for (const cJSON *v = turbod_json_get(c, "last")->child; v; v = v->next, i++)
        worst = fmax(worst, fabs(v->valuedouble - (double)logits[(size_t)(n - 1) * (size_t)vocab + (size_t)i]));
    ids_of(turbod_json_get(c, "argmax"), want);
    for (int t = 0; t < n; t++)
        same += argmax(logits + (size_t)t * (size_t)vocab, vocab) == want[t];
    print_message("%-16s %3d tokens: |dlogit| %.2e, %d of %d arg max equal\n",
                  turbod_json_get(c, "name")->valuestring, n, worst, same, n);
    assert_true(worst <= tolerance);
    assert_true(same >= n - n / 50); /* ties within rounding may fall the other way */
    free(logits);
}

static void check_greedy(turbod_engine *e, const cJSON *c)
{
    int32_t ids[512], want[64], vocab = number(c, "vocab");
    int n = ids_of(turbod_json_get(c, "ids"), ids), m = ids_of(turbod_json_get(c, "greedy"), want);
    float logits[128];
    turbo_err err;
    for (int i = 0; i < m; i++) {
        assert_int_equal(turbod_engine_logits(e, ids, n, false, logits, &err), TURBO_OK);
        ids[n] = argmax(logits, vocab);
        assert_int_equal(ids[n], want[i]);
        n++;
    }
}

static void check_case(const cJSON *c, int32_t kv_dtype, double tolerance)
{
    char folder[64];
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    turbod_engine_opts o;
    tiny_model m = {
        .vocab = number(c, "vocab"),
        .embed = number(c, "embed"),
        .layers = number(c, "layers"),
        .heads = number(c, "heads"),
        .kv_heads = number(c, "kv_heads"),
        .inner = number(c, "inner"),
        .max_position = number(c, "max_position"),
        .random = number(c, "seed"),
        .bf16 = cJSON_IsTrue(turbod_json_get(c, "bf16")),
        .bias = cJSON_IsTrue(turbod_json_get(c, "bias")),
        .tied = cJSON_IsTrue(turbod_json_get(c, "tied")),
        .extra = turbod_json_get(c, "scaling")->valuestring,
    };
    tiny_model_write(&m, folder);
    turbod_engine_defaults(&o);
    o.model_dir = folder;
    o.registry = registry;
    o.cache_bytes = 4 << 20;
    o.session_len = 512;
    o.kv_dtype = kv_dtype;
    turbo_status st = turbod_engine_open(&o, &e, &err);
    tiny_model_remove(folder);
    if (st)
        fail_msg("%s", err.text);
    check_logits(e, c, tolerance);
    if (kv_dtype != TURBO_BF16)
        check_greedy(e, c);
    turbod_engine_close(e);
}

static void test_cases(void **state)
{
    (void)state;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next) {
        check_case(c, TURBO_F32, 1e-4);
        if (cJSON_IsTrue(turbod_json_get(c, "bf16")))
            check_case(c, TURBO_BF16, 2e-2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases)};
    turbo_err err = {{0}};
    char folder[4096];
    uint8_t *text = NULL;
    uint64_t len;
    const char *src = getenv("srcdir"), *plugins = getenv("TURBO_PLUGIN_PATH");
    snprintf(folder, sizeof folder, "%s/tests/golden/internlm2-tiny", src ? src : ".");
    turbod_log_level(TURBO_LOG_ERROR);
    if (!plugins || turbod_registry_open(plugins, &registry, &err) ||
        turbod_file_read(folder, "golden.json", 1 << 24, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err)) {
        printf("cannot start: %s (TURBO_PLUGIN_PATH names the plugin folders)\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    cJSON_Delete(golden);
    free(text);
    return rc;
}
