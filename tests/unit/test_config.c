/* config.json: the accessors plugins read it by, and what InternLM2 makes of real and of incomplete
 * ones. The real files are shared test data; without them that part is skipped loudly. */
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

#include "plugin/host.h"
#include "shared.h"
#include "util/file.h"
#include "util/json.h"
#include "weights/config.h"

static const turbo_model_vtbl *vtbl;

static turbo_config *parse(const char *text)
{
    turbo_config *c = NULL;
    turbo_err err = {{0}};
    if (turbod_config_parse(text, strlen(text), "config.json", &c, &err))
        fail_msg("%s: %s", text, err.text);
    return c;
}

static void test_accessors(void **state)
{
    (void)state;
    turbo_config *c =
        parse("{\"i\":7,\"d\":1.5,\"big\":9007199254740993,\"inf\":1e999,\"neg\":-3,\"n\":null,"
              "\"b\":true,\"s\":\"x\",\"a\":[4,{\"z\":5},null],\"o\":{\"p\":{\"q\":6}},"
              "\"I\":8,\"e\":{},\"ea\":[]}");
    turbo_err err;
    int64_t i = 0;
    double d = 0;
    int32_t b = 0;
    const char *s = NULL;
    assert_int_equal(turbod_host_cfg_int(c, "i", 0, 0, 10, &i, &err), TURBO_OK);
    assert_int_equal(i, 7);
    assert_int_equal(turbod_host_cfg_int(c, "a.1.z", 0, 0, 10, &i, &err), TURBO_OK);
    assert_int_equal(i, 5);
    assert_int_equal(turbod_host_cfg_int(c, "o.p.q", 0, 0, 10, &i, &err), TURBO_OK);
    assert_int_equal(i, 6);
    static const char *const absent[] = {
        "n",   "x",   "o.p.x", "a.2", "a.3",    "a.99999999999999999999", "a.-1", "a.x",
        "i.0", "s.0", "o..q",  ".",   "o.p.q.r"};
    for (size_t k = 0; k < sizeof absent / sizeof absent[0]; k++) {
        assert_int_equal(turbod_host_cfg_int(c, absent[k], 99, 0, 10, &i, &err), TURBO_OK);
        assert_int_equal(i, 99); /* the default, whatever its range */
        assert_int_equal(turbod_host_cfg_has(c, absent[k]), 0);
    }
    static const char *const refused[] = {"d", "inf", "neg", "b", "s", "a", "o", "big"};
    for (size_t k = 0; k < sizeof refused / sizeof refused[0]; k++) {
        memset(&err, 0, sizeof err);
        assert_int_equal(turbod_host_cfg_int(c, refused[k], 0, 0, INT64_MAX, &i, &err),
                         TURBO_EDATA);
        assert_non_null(strstr(err.text, refused[k])); /* names the key */
        assert_non_null(strstr(err.text, "config.json"));
    }
    assert_int_equal(turbod_host_cfg_int(c, "i", 0, 8, 10, &i, &err), TURBO_EDATA);
    assert_string_equal(err.text, "config.json: i is 7; an integer from 8 to 10 is needed");
    assert_int_equal(turbod_host_cfg_num(c, "d", 0, 0, 2, &d, &err), TURBO_OK);
    assert_true(d > 1.49 && d < 1.51);
    assert_int_equal(turbod_host_cfg_num(c, "inf", 0, 0, 1e308, &d, &err), TURBO_EDATA);
    assert_int_equal(turbod_host_cfg_num(c, "s", 0, 0, 1, &d, &err), TURBO_EDATA);
    assert_int_equal(turbod_host_cfg_bool(c, "b", 0, &b, &err), TURBO_OK);
    assert_int_equal(b, 1);
    assert_int_equal(turbod_host_cfg_bool(c, "i", 0, &b, &err), TURBO_EDATA);
    assert_int_equal(turbod_host_cfg_str(c, "s", NULL, &s, &err), TURBO_OK);
    assert_string_equal(s, "x");
    assert_int_equal(turbod_host_cfg_str(c, "x", NULL, &s, &err), TURBO_OK);
    assert_null(s);
    assert_int_equal(turbod_host_cfg_str(c, "i", NULL, &s, &err), TURBO_EDATA);
    assert_int_equal(turbod_host_cfg_len(c, "a"), 3);
    assert_int_equal(turbod_host_cfg_len(c, "o"), 1);
    assert_int_equal(turbod_host_cfg_len(c, "e"), 0);
    assert_int_equal(turbod_host_cfg_len(c, "ea"), 0);
    assert_int_equal(turbod_host_cfg_len(c, "s"), -1);
    assert_int_equal(turbod_host_cfg_len(c, "x"), -1);
    assert_string_equal(turbod_host_cfg_key(c, "", 0), "i");
    assert_string_equal(turbod_host_cfg_key(c, "o.p", 0), "q");
    assert_null(turbod_host_cfg_key(c, "o.p", 1));
    assert_null(turbod_host_cfg_key(c, "o.p", -1));
    assert_null(turbod_host_cfg_key(c, "a", 0));
    turbod_config_close(c);
}

static void put(const char *folder, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    if (!text)
        return;
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* generation_config.json stands under "generation", and nothing else can. */
static void test_generation(void **state)
{
    (void)state;
    char folder[] = "/tmp/turbo-config-XXXXXX";
    turbo_config *c = NULL;
    turbo_err err = {{0}};
    turbo_model_info info = {.size = sizeof info};
    assert_non_null(mkdtemp(folder));
    assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_ENOENT);
    put(folder, "config.json",
        "{\"architectures\":[\"InternLM2ForCausalLM\"],\"eos_token_id\":[2,3],"
        "\"generation\":{\"eos_token_id\":9}}");
    assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_OK);
    assert_int_equal(turbod_host_cfg_has(c, "generation"), 0);
    turbod_config_close(c);
    put(folder, "generation_config.json", "{\"eos_token_id\":[2,92542]}");
    assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_OK);
    assert_int_equal(vtbl->describe(turbod_host_table(), c, &info, &err), TURBO_OK);
    assert_int_equal(info.n_eos, 3);
    assert_true(info.eos[0] == 2 && info.eos[1] == 3 && info.eos[2] == 92542);
    turbod_config_close(c);
    static const char *const bad[] = {"{", "{\"eos_token_id\":1,\"eos_token_id\":2}", "\xff"};
    for (size_t i = 0; i < 3; i++) {
        put(folder, "generation_config.json", bad[i]);
        assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_EDATA);
        assert_non_null(strstr(err.text, "generation_config.json"));
        assert_int_equal(turbod_config_open(folder, &c, NULL), TURBO_EDATA);
    }
    put(folder, "generation_config.json", NULL);
    put(folder, "config.json", "[]");
    assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_EDATA);
    put(folder, "config.json", NULL);
    rmdir(folder);
}

static turbo_status count_names(void *ctx, const turbo_tensor_spec *s)
{
    int *n = ctx;
    n[0]++;
    n[1] += strstr(s->name, ".bias") != NULL;
    n[2] += !strcmp(s->name, "output.weight");
    return TURBO_OK;
}

static turbo_status describe(const char *text, turbo_model_info *m, int *names, turbo_err *err)
{
    const turbo_host *h = turbod_host_table();
    turbo_config *c = parse(text);
    memset(names, 0, 3 * sizeof *names);
    *m = (turbo_model_info){.size = sizeof *m};
    *err = (turbo_err){{0}};
    turbo_status st = vtbl->describe(h, c, m, err);
    if (!st)
        st = vtbl->expect(h, c, count_names, names, err);
    turbod_config_close(c);
    return st;
}

/* The defaults of the published configuration class: with a bias, and with an old vocabulary. */
static void test_defaults(void **state)
{
    (void)state;
    turbo_model_info m;
    turbo_err err;
    int names[3];
    assert_int_equal(describe("{\"architectures\":[\"InternLM2ForCausalLM\"]}", &m, names, &err),
                     TURBO_OK);
    assert_int_equal(m.vocab, 103168);
    assert_int_equal(m.embed_dim, 4096);
    assert_int_equal(m.mlp_dim, 11008);
    assert_int_equal(m.n_layers, 32);
    assert_int_equal(m.n_heads, 32);
    assert_int_equal(m.n_kv, 32);
    assert_int_equal(m.head_dim, 128);
    assert_int_equal(m.max_position, 2048);
    assert_int_equal(m.bos, 1);
    assert_int_equal(m.n_eos, 1);
    assert_int_equal(m.eos[0], 2);
    assert_int_equal(names[0], 3 + 32 * 9);
    assert_int_equal(names[1], 32 * 2);
    assert_int_equal(describe("{\"tie_word_embeddings\":true,\"bias\":false}", &m, names, &err),
                     TURBO_OK);
    assert_true(names[0] == 2 + 32 * 7 && !names[1] && !names[2]);
    assert_int_equal(describe("{\"vocab_size\":2,\"bos_token_id\":null}", &m, names, &err),
                     TURBO_OK);
    assert_int_equal(m.n_eos, 0); /* the class's 2 is beyond this vocabulary */
}

/* One clear line each, in ASCII, whatever the file holds. */
static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *member, *says;
    } rows[] = {
        {"\"hidden_size\":0", "hidden_size"},
        {"\"hidden_size\":65537", "hidden_size"},
        {"\"hidden_size\":2147483648", "hidden_size"},
        {"\"hidden_size\":100", "num_attention_heads"},
        {"\"num_hidden_layers\":513", "num_hidden_layers"},
        {"\"num_hidden_layers\":-1", "num_hidden_layers"},
        {"\"num_attention_heads\":0", "num_attention_heads"},
        {"\"num_key_value_heads\":0", "num_key_value_heads"},
        {"\"num_key_value_heads\":5", "num_key_value_heads"},
        {"\"head_dim\":1", "head_dim"},
        {"\"head_dim\":7", "head size"},
        {"\"head_dim\":2048", "head_dim"},
        {"\"intermediate_size\":1048577", "intermediate_size"},
        {"\"vocab_size\":2097153", "vocab_size"},
        {"\"max_position_embeddings\":16777217", "max_position_embeddings"},
        {"\"rms_norm_eps\":0", "rms_norm_eps"},
        {"\"rms_norm_eps\":0.2", "rms_norm_eps"},
        {"\"rms_norm_eps\":1e999", "rms_norm_eps"},
        {"\"rope_theta\":-1", "rope_theta"},
        {"\"rope_theta\":1e999", "rope_theta"},
        {"\"eos_token_id\":103168", "eos_token_id"},
        {"\"eos_token_id\":[1,\"a\"]", "eos_token_id.1"},
        {"\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", "eos_token_id"},
        {"\"bos_token_id\":-2", "bos_token_id"},
        {"\"rope_scaling\":{\"type\":\"linear\"}", "factor is missing"},
        {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":0.5}", "factor"},
        {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":1e999}", "factor"},
        {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}", "llama3"},
        {"\"rope_scaling\":7", "rope_scaling"},
        {"\"rope_scaling\":{\"type\":"
         "\"a\\u00e9\\n\\u6d66\\u6d66\\u6d66\\u6d66\\u6d66\\u6d66\\u6d66\\u6d66\\u6d66\\u6d66\\u6d6"
         "6\",\"factor\":2}",
         "rope_scaling"},
        {"\"hidden_act\":\"gelu\"", "gelu"},
        {"\"torch_dtype\":\"float8\"", "float8"},
    };
    turbo_model_info m;
    turbo_err err;
    int names[3];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, "{%s}", rows[i].member);
        turbo_status st = describe(text, &m, names, &err);
        if (st != TURBO_EDATA && st != TURBO_EUNSUPPORTED)
            fail_msg("%s: status %d", rows[i].member, st);
        if (!strstr(err.text, rows[i].says))
            fail_msg("%s: %s", rows[i].member, err.text);
        for (const char *p = err.text; *p; p++)
            assert_true(*p >= 0x20 && *p < 0x7f);
    }
}

static int32_t probe(const char *text)
{
    turbo_config *c = parse(text);
    int32_t sure = vtbl->probe(turbod_host_table(), c);
    turbod_config_close(c);
    return sure;
}

static void test_probe(void **state)
{
    (void)state;
    assert_int_equal(
        probe("{\"architectures\":[\"InternLM2ForCausalLM\"],\"model_type\":\"internlm\"}"), 100);
    assert_true(probe("{\"model_type\":\"internlm2\"}") > 0);
    static const char *const others[] = {
        "{}",
        "[]",
        "7",
        "{\"architectures\":[]}",
        "{\"architectures\":\"InternLM2ForCausalLM\"}",
        "{\"architectures\":[7]}",
        "{\"architectures\":[\"InternLMForCausalLM\"],\"model_type\":\"internlm\"}",
        "{\"model_type\":\"internlm\"}",
        "{\"architectures\":[\"InternLM2ForRewardModel\"],\"model_type\":\"internlm2\"}",
        "{\"architectures\":[\"InternLM3ForCausalLM\"],\"model_type\":\"internlm3\"}",
        "{\"model_type\":2}",
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (probe(others[i]))
            fail_msg("taken: %s", others[i]);
}

/* ---- real files
 * --------------------------------------------------------------------------------------- */

static char real[4096]; /* .../hf-configs, or "" */

typedef struct names {
    const cJSON *map;
    int n;
} names;

static turbo_status in_map(void *ctx, const turbo_tensor_spec *s)
{
    names *k = ctx;
    k->n++;
    return turbod_json_get(k->map, s->name) ? TURBO_OK : TURBO_ENOENT;
}

/* Every tensor the plugin asks for is in the published index, and no other is there. */
static void test_real_names(void **state)
{
    (void)state;
    char folder[4200];
    uint8_t *text = NULL;
    uint64_t len;
    cJSON *root = NULL;
    turbo_config *c = NULL;
    turbo_err err = {{0}};
    if (!*real)
        skip();
    snprintf(folder, sizeof folder, "%s/internlm2-chat-7b", real);
    assert_int_equal(turbod_config_open(folder, &c, &err), TURBO_OK);
    assert_int_equal(
        turbod_file_read(folder, "model.safetensors.index.json", 1 << 24, &text, &len, &err), 0);
    assert_int_equal(turbod_json_parse((const char *)text, len, &turbod_json_file, &root, &err),
                     TURBO_OK);
    names k = {.map = turbod_json_get(root, "weight_map")};
    assert_int_equal(vtbl->expect(turbod_host_table(), c, in_map, &k, &err), TURBO_OK);
    assert_int_equal(k.n, cJSON_GetArraySize(k.map));
    turbo_model_info m = {.size = sizeof m};
    assert_int_equal(vtbl->describe(turbod_host_table(), c, &m, &err), TURBO_OK);
    assert_true(m.n_layers == 32 && m.n_heads == 32 && m.n_kv == 8 && m.head_dim == 128);
    assert_true(m.vocab == 92544 && m.embed_dim == 4096 && m.mlp_dim == 14336 &&
                m.max_position == 32768);
    assert_int_equal(m.dtype, TURBO_BF16);
    assert_int_equal(m.n_eos, 1); /* the stop token of the chat format is the template's matter */
    assert_int_equal(m.eos[0], 2);
    turbod_config_close(c);
    cJSON_Delete(root);
    free(text);
}

static int32_t probe_file(const char *dir, const char *file, turbo_status *described)
{
    char folder[4200];
    turbo_config *c = NULL;
    turbo_err err = {{0}};
    turbo_model_info m = {.size = sizeof m};
    snprintf(folder, sizeof folder, "%s/%s", real, dir);
    if (turbod_host_json_open(folder, file, &c, &err))
        fail_msg("%s", err.text);
    int32_t sure = vtbl->probe(turbod_host_table(), c);
    *described = vtbl->describe(turbod_host_table(), c, &m, &err);
    turbod_config_close(c);
    return sure;
}

static void test_real_configs(void **state)
{
    (void)state;
    static const char *const history[] = {"config.2024-01-10.json", "config.2024-01-11.json",
                                          "config.2024-01-19.json", "config.2024-01-24.json",
                                          "config.2024-03-19.json"};
    static const char *const others[] = {"llama-2-7b-hf", "llava-1.5-7b-hf",
                                         "mistral-7b-instruct-v0.2", "mistral-7b-instruct-v0.3",
                                         "qwen2-1.5b-instruct"};
    turbo_status st;
    if (!*real)
        skip();
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(probe_file("internlm2-chat-7b-history", history[i], &st), 100);
        assert_int_equal(st, TURBO_OK);
        assert_int_equal(probe_file(others[i], "config.json", &st), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accessors),    cmocka_unit_test(test_generation),
        cmocka_unit_test(test_defaults),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_probe),        cmocka_unit_test(test_real_names),
        cmocka_unit_test(test_real_configs),
    };
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->models[0];
    const char *dir = shared_dir();
    if (dir)
        snprintf(real, sizeof real, "%s/data/models/hf-configs", dir);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    return rc ? rc : dir ? 0 : 77;
}
