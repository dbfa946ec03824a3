/* Every family that shares plugins/decoder, as installed plugins: tests/golden/decoder-tiny/golden.json
 * (transformers, float32) on every instruction set of this machine, and which plugin takes which
 * config.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cases.h"
#include "plugin/registry.h"
#include "util/log.h"

static turbod_registry *registry;
static cJSON *golden;

static const turbo_model_vtbl *plugin_of(const cJSON *config)
{
    turbo_config *c = NULL;
    const turbo_model_vtbl *v = NULL;
    turbo_err err = {{0}};
    char *text = cJSON_PrintUnformatted(config);
    if (turbod_config_parse(text, strlen(text), "config.json", &c, &err) ||
        turbod_registry_model_for(registry, c, &v, &err))
        fail_msg("%s", err.text);
    turbod_config_close(c);
    cJSON_free(text);
    return v;
}

static void test_transformers(void **state)
{
    (void)state;
    int n = 0;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next, n++) {
        const cJSON *config = turbod_json_get(c, "config");
        const turbo_model_vtbl *v = plugin_of(config);
        const char *type = turbod_json_get(config, "model_type")->valuestring;
        assert_string_equal(v->id, strcmp(type, "qwen2") ? "llama" : "qwen");
        cases_run(v, c);
    }
    assert_int_equal(n, 27);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers),
    };
    turbo_err err = {{0}};
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    turbod_log_level(TURBO_LOG_ERROR);
    golden = cases_load("decoder-tiny", "golden.json");
    if (!golden || !plugins || turbod_registry_open(plugins, &registry, &err)) {
        printf("cannot start; TURBO_PLUGIN_PATH must name the plugins. %s\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    cJSON_Delete(golden);
    return rc;
}
