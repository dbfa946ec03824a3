/* Model folders that are wrong in every way: one clear error each, nothing leaked, nothing crashed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "tiny_model.h"
#include "util/file.h"
#include "util/log.h"
#include "weights/index.h"
#include "weights/safetensors.h"

static turbod_registry *registry;
static char folder[64];
static uint8_t *whole; /* a good model.safetensors */
static uint64_t whole_len;

static void put(const char *name, const void *data, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static turbo_status open_file(turbo_err *err)
{
    turbod_st *f = NULL;
    memset(err, 0, sizeof *err);
    turbo_status st = turbod_st_open(folder, "model.safetensors", &f, err);
    turbod_st_close(f);
    if (st)
        assert_true(strlen(err->text) > 10);
    return st;
}

/* A file with this header and `data` bytes behind it. */
static turbo_status with_header(const char *json, size_t data, turbo_err *err)
{
    size_t n = strlen(json);
    uint8_t *file = calloc(1, 8 + n + data);
    uint64_t len = n;
    memcpy(file, &len, 8);
    memcpy(file + 8, json, n);
    put("model.safetensors", file, 8 + n + data);
    free(file);
    return open_file(err);
}

#define T(shape, from, to) "{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" from "," to "]}"

static void test_headers(void **s)
{
    (void)s;
    turbo_err err;
    assert_int_equal(with_header("{\"a\":" T("2,3", "0", "24") "}", 24, &err), TURBO_OK);
    assert_int_equal(with_header("{\"a\":" T("", "0", "4") "}  ", 4, &err), TURBO_OK);
    assert_int_equal(with_header("{\"a\":" T("0,5", "0", "0") ",\"b\":" T("1", "0", "4") "}", 4, &err), TURBO_OK);
    static const struct {
        const char *json;
        size_t data;
    } bad[] = {
        {"[]", 0},
        {" {}", 0},
        {"{", 0},
        {"{\"a\":" T("2,3", "0", "20") "}", 20},
        {"{\"a\":" T("2,3", "0", "24") "}", 23},
        {"{\"a\":" T("2,3", "0", "24") "}", 25},
        {"{\"a\":" T("2,3", "4", "28") "}", 28},
        {"{\"a\":" T("2", "8", "0") "}", 8},
        {"{\"a\":" T("2", "0", "8") ",\"b\":" T("2", "4", "12") "}", 12},
        {"{\"a\":" T("2", "0", "8") ",\"b\":" T("2", "12", "20") "}", 20},
        {"{\"a\":" T("2", "0", "8") ",\"a\":" T("2", "8", "16") "}", 16},
        {"{\"a\":" T("-1", "0", "8") "}", 8},
        {"{\"a\":" T("1.5", "0", "8") "}", 8},
        {"{\"a\":" T("281474976710657", "0", "8") "}", 8},
        {"{\"a\":" T("4294967296,4294967296,4294967296", "0", "0") "}", 0},
        {"{\"a\":" T("1,1,1,1,1,1,1,1,1", "0", "4") "}", 4},
        {"{\"a\":" T("2", "0", "9223372036854775808") "}", 8},
        {"{\"a\":" T("2", "-8", "0") "}", 8},
        {"{\"a\":{\"dtype\":\"F99\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8},
        {"{\"a\":7}", 0},
        {"{\"\":" T("2", "0", "8") "}", 8},
        {"{\"__metadata__\":{\"a\":1}}", 0},
        {"{\"__metadata__\":[]}", 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (with_header(bad[i].json, bad[i].data, &err) != TURBO_EDATA)
            fail_msg("taken: %s", bad[i].json);
    static const uint8_t huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, '{', '}'};
    put("model.safetensors", huge, sizeof huge);
    assert_int_equal(open_file(&err), TURBO_EDATA);
}

static void test_truncation(void **s)
{
    (void)s;
    turbo_err err;
    uint64_t header = 8;
    memcpy(&header, whole, 8);
    for (uint64_t n = 0; n < whole_len; n += n < 4096 ? 1 : 997) {
        put("model.safetensors", whole, n);
        assert_int_equal(open_file(&err), TURBO_EDATA);
    }
    /* Each bit of the header: refused, or the same bytes under other names. */
    for (uint64_t bit = 0; bit < (8 + header) * 8; bit += 3) {
        whole[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        put("model.safetensors", whole, whole_len);
        turbo_status st = open_file(&err);
        assert_true(st == TURBO_OK || st == TURBO_EDATA);
        whole[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    put("model.safetensors", whole, whole_len);
    assert_int_equal(open_file(&err), TURBO_OK);
}

static turbo_status open_model(const char *config, turbo_err *err)
{
    turbod_engine_opts o;
    turbod_engine *e = NULL;
    memset(err, 0, sizeof *err);
    if (config)
        put("config.json", config, strlen(config));
    turbod_engine_defaults(&o);
    o.model_dir = folder;
    o.registry = registry;
    o.cache_bytes = 1 << 20;
    o.max_batch = 2;
    turbo_status st = turbod_engine_open(&o, &e, err);
    turbod_engine_close(e);
    if (st)
        assert_true(strlen(err->text) > 10);
    return st;
}

/* config.json of the tiny model, with one member replaced. */
static turbo_status with_config(const char *member, turbo_err *err)
{
    static const char *const base[] = {
        "\"architectures\":[\"InternLM2ForCausalLM\"]", "\"vocab_size\":40", "\"hidden_size\":16",
        "\"num_hidden_layers\":2", "\"num_attention_heads\":4", "\"num_key_value_heads\":2",
        "\"intermediate_size\":24", "\"max_position_embeddings\":64", "\"rms_norm_eps\":1e-5",
        "\"rope_theta\":10000", "\"bias\":false", "\"torch_dtype\":\"float32\"", "\"eos_token_id\":2",
        "\"bos_token_id\":1", "\"rope_scaling\":null", "\"hidden_act\":\"silu\"",
    };
    char text[2048] = "{";
    size_t key = strcspn(member, ":");
    bool used = false;
    for (size_t i = 0; i < sizeof base / sizeof base[0]; i++) {
        bool same = !strncmp(base[i], member, key) && base[i][key] == ':';
        used = used || same;
        strcat(text, i ? "," : "");
        strcat(text, same ? member : base[i]);
    }
    if (!used && *member) {
        strcat(text, ",");
        strcat(text, member);
    }
    strcat(text, "}");
    return open_model(text, err);
}

static void test_configs(void **s)
{
    (void)s;
    turbo_err err;
    put("model.safetensors", whole, whole_len);
    assert_int_equal(with_config("", &err), TURBO_OK);
    static const char *const bad[] = {
        "\"vocab_size\":0", "\"vocab_size\":-1", "\"vocab_size\":2147483648", "\"vocab_size\":1e999",
        "\"vocab_size\":\"40\"", "\"vocab_size\":41", "\"hidden_size\":0", "\"hidden_size\":2147483648",
        "\"hidden_size\":17", "\"hidden_size\":32", "\"num_hidden_layers\":0", "\"num_hidden_layers\":1000000000",
        "\"num_hidden_layers\":3", "\"num_attention_heads\":0", "\"num_attention_heads\":3",
        "\"num_attention_heads\":1.5", "\"num_key_value_heads\":0", "\"num_key_value_heads\":3",
        "\"num_key_value_heads\":4", "\"intermediate_size\":0", "\"intermediate_size\":25",
        "\"max_position_embeddings\":0", "\"max_position_embeddings\":1e18", "\"rms_norm_eps\":0",
        "\"rms_norm_eps\":1", "\"rms_norm_eps\":-1e-5", "\"rope_theta\":0", "\"rope_theta\":1e13",
        "\"rope_theta\":\"a\"", "\"bias\":1", "\"bias\":true", "\"torch_dtype\":\"int8\"", "\"torch_dtype\":7",
        "\"eos_token_id\":40", "\"eos_token_id\":[1,99]", "\"bos_token_id\":40", "\"hidden_act\":\"gelu\"",
        "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}", "\"rope_scaling\":{\"factor\":2}",
        "\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", "\"architectures\":[\"LlamaForCausalLM\"]",
        "\"architectures\":[\"InternLMForCausalLM\"]", "\"head_dim\":3", "\"head_dim\":8",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (with_config(bad[i], &err) == TURBO_OK)
            fail_msg("taken: %s", bad[i]);
    assert_int_equal(open_model("{\"architectures\":", &err), TURBO_EDATA);
    assert_int_equal(open_model("[]", &err), TURBO_EDATA);
    assert_int_equal(with_config("\"model_type\":\"internlm\"", &err), TURBO_OK); /* before 2024-01-24 */
    with_config("\"num_hidden_layers\":3", &err);
    assert_non_null(strstr(err.text, "model.layers.2"));
    assert_non_null(strstr(err.text, "6 more"));
}

static void test_nonfinite(void **s)
{
    (void)s;
    turbo_err err;
    uint32_t nan = 0x7fc00000;
    uint8_t saved[4];
    uint64_t at = whole_len - 64;
    memcpy(saved, whole + at, 4);
    memcpy(whole + at, &nan, 4);
    put("model.safetensors", whole, whole_len);
    assert_int_equal(with_config("", &err), TURBO_EDATA);
    assert_non_null(strstr(err.text, "NaN"));
    memcpy(whole + at, saved, 4);
    put("model.safetensors", whole, whole_len);
}

/* Shards: names that leave the folder, names that lie, tensors in two files. */
static void test_index(void **s)
{
    (void)s;
    static const char *const bad[] = {
        "{}", "{\"weight_map\":{}}", "{\"weight_map\":[]}", "{\"weight_map\":{\"a\":7}}",
        "{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}",
        "{\"weight_map\":{\"a\":\"sub/x\"}}", "{\"weight_map\":{\"a\":\".hidden\"}}",
        "{\"weight_map\":{\"a\":\"missing.safetensors\"}}", "{\"weight_map\":{\"a\":\"fifo\"}}",
        "{\"weight_map\":{\"a\":\"dir\"}}", "{\"weight_map\":{\"no.such\":\"model.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"\"}}", "{\"weight_map\":{\"a\":\"model.safetensors\",\"b\":\"twin.safetensors\"}}",
    };
    char path[128];
    turbo_err err;
    put("model.safetensors", whole, whole_len);
    put("twin.safetensors", whole, whole_len);
    snprintf(path, sizeof path, "%s/fifo", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    snprintf(path, sizeof path, "%s/dir", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        turbod_index *ix = NULL;
        put("model.safetensors.index.json", bad[i], strlen(bad[i]));
        turbo_status st = turbod_index_open(folder, &ix, &err);
        turbod_index_close(ix);
        if (!st)
            fail_msg("taken: %s", bad[i]);
    }
    static const char good[] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"model.norm.weight\":\"model.safetensors\"}}";
    put("model.safetensors.index.json", good, sizeof good - 1);
    assert_int_equal(with_config("", &err), TURBO_OK);
    static const char *const litter[] = {"fifo", "dir", "twin.safetensors", "model.safetensors.index.json", "model.safetensors"};
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, litter[i]);
        remove(path);
    }
    put("pytorch_model.bin", "x", 1);
    assert_int_equal(with_config("", &err), TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "safetensors"));
    snprintf(path, sizeof path, "%s/pytorch_model.bin", folder);
    remove(path);
    assert_int_equal(with_config("", &err), TURBO_ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers), cmocka_unit_test(test_truncation), cmocka_unit_test(test_configs),
        cmocka_unit_test(test_nonfinite), cmocka_unit_test(test_index),
    };
    turbo_err err = {{0}};
    const char *path = getenv("TURBO_PLUGIN_PATH");
    tiny_model m = {.vocab = 40, .embed = 16, .layers = 2, .heads = 4, .kv_heads = 2, .inner = 24,
                    .max_position = 64, .random = 3};
    turbod_log_level(-1); /* hundreds of refusals are the point here */
    if (!path || turbod_registry_open(path, &registry, &err)) {
        printf("set TURBO_PLUGIN_PATH to the plugin folders: %s\n", err.text);
        return 1;
    }
    tiny_model_write(&m, folder);
    if (turbod_file_read(folder, "model.safetensors", 1 << 24, &whole, &whole_len, &err))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(whole);
    tiny_model_remove(folder);
    turbod_registry_close(registry);
    return rc;
}
