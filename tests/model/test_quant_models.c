/* Models whose layers are quantised, in every format: the logits are those of the same folder with the codes
 * written out as numbers, the plan counts what is taken, and the views of a folder find quantised
 * matrices. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "plan/plan.h"
#include "plugin/host.h"
#include "quant_folder.h"
#include "runner.h"
#include "util/log.h"

#define TOKENS 40
#define VOCAB 96

static turbod_registry *registry;

static const char llama[] =
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":96,"
    "\"hidden_size\":64,\"intermediate_size\":192,\"num_hidden_layers\":2,\"num_attention_heads\":"
    "4,"
    "\"num_key_value_heads\":2,\"max_position_embeddings\":64,\"torch_dtype\":\"float32\"";
static const char internlm2[] =
    "\"architectures\":[\"InternLM2ForCausalLM\"],\"model_type\":\"internlm2\",\"vocab_size\":96,"
    "\"hidden_size\":64,\"intermediate_size\":192,\"num_hidden_layers\":2,\"num_attention_heads\":"
    "4,"
    "\"num_key_value_heads\":2,\"max_position_embeddings\":64,\"torch_dtype\":\"float32\",\"bias\":"
    "false";

static const turbo_model_vtbl *plugin_of(const char *folder)
{
    turbo_config *c = NULL;
    const turbo_model_vtbl *v = NULL;
    turbo_err err = {{0}};
    if (turbod_config_open(folder, &c, &err) || turbod_registry_model_for(registry, c, &v, &err))
        fail_msg("%s", err.text);
    turbod_config_close(c);
    return v;
}

/* Logits [TOKENS,VOCAB]; the matrices of the plan are those that were made. */
static void run_cached(const char *folder, const char *quantize, bool exact, const char *cache_dir,
                       float *logits)
{
    runner r;
    turbo_err err = {{0}};
    runner_opts o = {.threads = 2,
                     .kv_dtype = TURBO_F32,
                     .max_tokens = TOKENS,
                     .quantize = quantize,
                     .cache_dir = cache_dir,
                     .exact = exact};
    if (runner_open(&r, plugin_of(folder), folder, &o, &err))
        fail_msg("%s", err.text);
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (7 * i + 3) % VOCAB;
    if (runner_step(&r, ids, TOKENS, TOKENS, TOKENS, logits, &err))
        fail_msg("%s", err.text);

    turbod_weights_opts opts = {.device = r.device, .quantize = quantize};
    turbod_weights_sums sums;
    turbo_weights *w = NULL;
    assert_int_equal(turbod_weights_open(folder, &opts, &w, &err), TURBO_OK);
    assert_int_equal(turbod_weights_count(w, turbod_host_table(), r.vtbl, r.config, VOCAB, &sums,
                                          &err),
                     0);
    assert_int_equal(sums.linear, turbok_device_mem(r.device, TURBOK_MEM_LINEAR));
    assert_int_equal(sums.vector, turbok_device_mem(r.device, TURBOK_MEM_VECTOR));
    assert_int_equal(sums.params, 2 * 96 * 64 + 5 * 64 + 2 * (128 * 64 + 64 * 64 + 3 * 192 * 64));
    turbod_weights_close(w);
    runner_close(&r);
}

static void run(const char *folder, const char *quantize, bool exact, float *logits)
{
    run_cached(folder, quantize, exact, NULL, logits);
}

/* want: of a run without a cache. Written, and then mapped, repacked matrices are the same bits. */
static void check_cache(const char *folder, const float *want)
{
    static float got[TOKENS * VOCAB];
    char cache[96], path[400];
    snprintf(cache, sizeof cache, "%s/cache", folder);
    for (int i = 0; i < 2; i++) {
        memset(got, 0, sizeof got);
        run_cached(folder, "", false, cache, got);
        assert_memory_equal(got, want, sizeof got);
    }
    DIR *d = opendir(cache);
    assert_non_null(d);
    int files = 0;
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", cache, e->d_name);
        files += unlink(path) == 0;
    }
    closedir(d);
    assert_int_equal(files, 1);
    assert_int_equal(rmdir(cache), 0);
}

/* Root mean square of the difference by that of the numbers. */
static double relative(const float *a, const float *b)
{
    double d = 0, n = 0;
    for (int i = 0; i < TOKENS * VOCAB; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        n += (double)b[i] * (double)b[i];
    }
    assert_true(n > 0);
    return sqrt(d / n);
}

static void compare(const char *config, const char *family)
{
    static float got[TOKENS * VOCAB], want[TOKENS * VOCAB];
    for (int i = 0; i < n_quant_cases; i++) {
        char quantised[64], plain[64];
        quant_folders(registry, config, &quant_cases[i], quantised, plain);
        run(plain, "", true, want);
        run(quantised, "", true, got);
        double exact = relative(got, want);
        run(quantised, "", false, got);
        double fast = relative(got, want);
        if (config == llama)
            check_cache(quantised, got);
        printf("%s, %s: %.2e in fp32, %.2e as computed\n", family, quant_cases[i].name, exact,
               fast);
        /* 8-bit activations on the way through layers of noise; 4.5e-2 was measured */
        if (!(exact < 2e-6) || !(fast < 0.1))
            fail_msg("%s, %s: relative error %g in fp32, %g as computed", family,
                     quant_cases[i].name, exact, fast);
        quant_folder_remove(quantised);
        quant_folder_remove(plain);
    }
}

static void test_llama(void **state)
{
    (void)state;
    compare(llama, "separate q, k, v");
}

static void test_internlm2(void **state)
{
    (void)state;
    compare(internlm2, "packed qkv");
}

/* Before there is a file, config.json says as much as the files will. */
static void test_plan(void **state)
{
    (void)state;
    for (int i = 0; i < n_quant_cases; i++) {
        char quantised[64], plain[64], path[128];
        turbod_plan_model with, without;
        turbo_err err;
        quant_folders(registry, llama, &quant_cases[i], quantised, plain);
        assert_int_equal(turbod_plan_model_read(quantised, registry, &(turbod_weights_opts){0},
                                                &with, &err),
                         0);
        snprintf(path, sizeof path, "%s/model.safetensors", quantised);
        assert_int_equal(remove(path), 0);
        assert_int_equal(turbod_plan_model_read(quantised, registry, &(turbod_weights_opts){0},
                                                &without, &err),
                         0);
        assert_true(without.from_config);
        if (with.weights.linear != without.weights.linear)
            fail_msg("%s: %llu bytes of matrices, %llu by config.json", quant_cases[i].name,
                     (unsigned long long)with.weights.linear,
                     (unsigned long long)without.weights.linear);
        assert_int_equal(with.weights.params, without.weights.params);
        turbod_plan_model_free(&with);
        turbod_plan_model_free(&without);
        quant_folder_remove(quantised);
        quant_folder_remove(plain);
    }
}

/* Quantised while it loads: one more round of codes than the folder has, and the plan knows. */
static void test_online(void **state)
{
    static float got[TOKENS * VOCAB], want[TOKENS * VOCAB];
    static const struct {
        const char *quantize;
        double exact;
    } rows[] = {{"int8", 2e-2}, {"int4", 0.3}};
    char quantised[64], plain[64];
    (void)state;
    quant_folders(registry, llama, &quant_cases[0], quantised, plain);
    run(plain, "", true, want);
    for (size_t i = 0; i < 2; i++) {
        run(plain, rows[i].quantize, true, got);
        double off = relative(got, want);
        printf("%s while loading: %.2e\n", rows[i].quantize, off);
        assert_true(off > 1e-6 && off < rows[i].exact);
    }
    turbo_weights *w = NULL;
    turbo_err err;
    assert_int_equal(turbod_weights_open(plain, &(turbod_weights_opts){.quantize = "int3"}, &w,
                                         &err),
                     TURBO_EINVAL);
    assert_non_null(strstr(err.text, "use int8 or int4"));
    quant_folder_remove(quantised);
    quant_folder_remove(plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_internlm2),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_online),
    };
    turbo_err err = {{0}};
    const char *path = getenv("TURBO_PLUGIN_PATH");
    turbod_log_level(TURBO_LOG_ERROR);
    if (!path || turbod_registry_open(path, &registry, &err)) {
        printf("set TURBO_PLUGIN_PATH to the plugin folders: %s\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    return rc;
}
