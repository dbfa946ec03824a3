/* What the llama and qwen plugins make of real, of incomplete and of wrong config.json files. Real ones
 * are shared test data; without them that part is skipped loudly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plugin/host.h"
#include "plugin/registry.h"
#include "shared.h"
#include "util/file.h"
#include "util/json.h"
#include "util/log.h"
#include "weights/config.h"

#define LLAMA "\"architectures\":[\"LlamaForCausalLM\"]"
#define MISTRAL "\"architectures\":[\"MistralForCausalLM\"]"
#define QWEN "\"architectures\":[\"Qwen2ForCausalLM\"]"
#define MIXTRAL "\"architectures\":[\"MixtralForCausalLM\"]"
#define QWEN2MOE "\"architectures\":[\"Qwen2MoeForCausalLM\"]"
#define QWEN3MOE "\"architectures\":[\"Qwen3MoeForCausalLM\"]"

static turbod_registry *registry;
static char real[4096]; /* .../hf-configs, or "" */

static turbo_config *parse(const char *text)
{
    turbo_config *c = NULL;
    turbo_err err = {{0}};
    if (turbod_config_parse(text, strlen(text), "config.json", &c, &err))
        fail_msg("%s: %s", text, err.text);
    return c;
}

/* What expect names, as one line a tensor. */
typedef struct listing {
    char text[65536];
    size_t len;
    int n, biases;
} listing;

static turbo_status list(void *ctx, const turbo_tensor_spec *s)
{
    listing *l = ctx;
    int k =
        snprintf(l->text + l->len, sizeof l->text - l->len, "%s [%lld,%lld] %d %s\n", s->name,
                 (long long)s->dims[0], (long long)s->dims[1], s->group, s->alias ? s->alias : "-");
    assert_true(k > 0 && (size_t)k < sizeof l->text - l->len);
    l->len += (size_t)k;
    l->n++;
    l->biases += strstr(s->name, ".bias") != NULL;
    return TURBO_OK;
}

/* The plugin's answers to a config; *id is NULL when nobody takes it. */
static turbo_status ask(const char *text, const char **id, turbo_model_info *m, listing *l,
                        turbo_err *err)
{
    const turbo_host *h = turbod_host_table();
    const turbo_model_vtbl *v = NULL;
    turbo_config *c = parse(text);
    *m = (turbo_model_info){.size = sizeof *m};
    *err = (turbo_err){{0}};
    l->len = 0;
    l->n = l->biases = 0;
    turbo_status st = turbod_registry_model_for(registry, c, &v, err);
    *id = v ? v->id : NULL;
    if (!st)
        st = v->describe(h, c, m, err);
    if (!st)
        st = v->expect(h, c, list, l, err);
    turbod_config_close(c);
    return st;
}

/* Those of the configuration classes of transformers. */
static void test_defaults(void **state)
{
    static listing l;
    turbo_model_info m;
    turbo_err err;
    const char *id;
    (void)state;
    assert_int_equal(ask("{" LLAMA "}", &id, &m, &l, &err), 0);
    assert_string_equal(id, "llama");
    assert_string_equal(m.arch, "Llama");
    assert_string_equal(m.chat, "");
    assert_true(m.vocab == 32000 && m.embed_dim == 4096 && m.mlp_dim == 11008 && m.n_layers == 32 &&
                m.n_heads == 32 && m.n_kv == 32 && m.head_dim == 128 && m.max_position == 2048 &&
                m.bos == 1 && m.n_eos == 1 && m.eos[0] == 2 && m.dtype == TURBO_F32);
    assert_true(l.n == 3 + 32 * 9 && !l.biases);
    assert_int_equal(ask("{" MISTRAL "}", &id, &m, &l, &err), 0);
    assert_string_equal(id, "llama");
    assert_string_equal(m.arch, "Mistral");
    assert_true(m.mlp_dim == 14336 && m.n_kv == 8 && m.max_position == 131072);
    assert_int_equal(ask("{" MISTRAL ",\"num_key_value_heads\":null}", &id, &m, &l, &err), 0);
    assert_int_equal(m.n_kv, 32);
    assert_int_equal(ask("{" QWEN "}", &id, &m, &l, &err), 0);
    assert_string_equal(id, "qwen");
    assert_string_equal(m.chat, "");
    assert_true(m.vocab == 151936 && m.mlp_dim == 22016 && m.n_kv == 32 &&
                m.max_position == 32768 && m.bos == -1 && !m.n_eos);
    assert_true(l.n == 3 + 32 * 12 && l.biases == 32 * 3);
}

/* q, k and v are one group, and a tied embedding may have the name of the head. */
static void test_tensors(void **state)
{
    static const char want[] = "model.embed_tokens.weight [96,48] 0 lm_head.weight\n"
                               "model.layers.0.input_layernorm.weight [48,0] 0 -\n"
                               "model.layers.0.self_attn.q_proj.weight [64,48] 1 -\n"
                               "model.layers.0.self_attn.k_proj.weight [32,48] 1 -\n"
                               "model.layers.0.self_attn.v_proj.weight [32,48] 1 -\n"
                               "model.layers.0.self_attn.q_proj.bias [64,0] 1 -\n"
                               "model.layers.0.self_attn.k_proj.bias [32,0] 1 -\n"
                               "model.layers.0.self_attn.v_proj.bias [32,0] 1 -\n"
                               "model.layers.0.self_attn.o_proj.weight [48,64] 0 -\n"
                               "model.layers.0.post_attention_layernorm.weight [48,0] 0 -\n"
                               "model.layers.0.mlp.gate_proj.weight [80,48] 0 -\n"
                               "model.layers.0.mlp.up_proj.weight [80,48] 0 -\n"
                               "model.layers.0.mlp.down_proj.weight [48,80] 0 -\n"
                               "model.norm.weight [48,0] 0 -\n";
    static listing l;
    turbo_model_info m;
    turbo_err err;
    const char *id;
    (void)state;
    assert_int_equal(ask("{" QWEN ",\"vocab_size\":96,\"hidden_size\":48,\"intermediate_size\":80,"
                         "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"head_dim\":16,"
                         "\"num_key_value_heads\":2,\"tie_word_embeddings\":true}",
                         &id, &m, &l, &err),
                     0);
    assert_string_equal(l.text, want);
    assert_int_equal(ask("{" LLAMA ",\"attention_bias\":true,\"mlp_bias\":true}", &id, &m, &l,
                         &err),
                     0);
    assert_int_equal(l.biases, 32 * 7);
    assert_int_equal(ask("{" LLAMA ",\"mlp_bias\":true}", &id, &m, &l, &err), 0);
    assert_int_equal(l.biases, 32 * 3);
}

/* What experts are called, and which layers have them. */
static void test_experts(void **state)
{
    static const char want[] = "model.layers.1.post_attention_layernorm.weight [48,0] 0 -\n"
                               "model.layers.1.mlp.shared_expert.gate_proj.weight [64,48] 0 -\n"
                               "model.layers.1.mlp.shared_expert.up_proj.weight [64,48] 0 -\n"
                               "model.layers.1.mlp.shared_expert.down_proj.weight [48,64] 0 -\n"
                               "model.layers.1.mlp.gate.weight [2,48] 0 -\n"
                               "model.layers.1.mlp.experts.0.gate_proj.weight [16,48] 0 -\n"
                               "model.layers.1.mlp.experts.0.up_proj.weight [16,48] 0 -\n"
                               "model.layers.1.mlp.experts.0.down_proj.weight [48,16] 0 -\n"
                               "model.layers.1.mlp.experts.1.gate_proj.weight [16,48] 0 -\n"
                               "model.layers.1.mlp.experts.1.up_proj.weight [16,48] 0 -\n"
                               "model.layers.1.mlp.experts.1.down_proj.weight [48,16] 0 -\n"
                               "model.layers.1.mlp.shared_expert_gate.weight [1,48] 0 -\n";
    static listing l;
    turbo_model_info m;
    turbo_err err;
    const char *id;
    (void)state;
    assert_int_equal(ask("{" QWEN2MOE
                         ",\"vocab_size\":96,\"hidden_size\":48,\"num_hidden_layers\":5,"
                         "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"num_experts\":2,"
                         "\"num_experts_per_tok\":1,\"moe_intermediate_size\":16,"
                         "\"shared_expert_intermediate_size\":64,\"decoder_sparse_step\":2,"
                         "\"mlp_only_layers\":[3,400]}",
                         &id, &m, &l, &err),
                     0);
    assert_non_null(strstr(l.text, want));
    assert_non_null(strstr(l.text, "model.layers.0.mlp.gate_proj.weight [5632,48]"));
    assert_non_null(strstr(l.text, "model.layers.3.mlp.gate_proj.weight"));
    assert_null(strstr(l.text, "model.layers.3.mlp.experts"));
    assert_null(strstr(l.text, "model.layers.1.mlp.gate_proj"));
    assert_true(m.n_experts == 2 && m.n_chosen == 1 && m.expert_dim == 16 && m.shared_dim == 64);
    assert_int_equal(ask("{" MIXTRAL ",\"num_hidden_layers\":1}", &id, &m, &l, &err), 0);
    assert_true(m.n_experts == 8 && m.n_chosen == 2 && m.expert_dim == 14336 && !m.shared_dim &&
                m.n_kv == 8);
    assert_non_null(
        strstr(l.text, "model.layers.0.block_sparse_moe.experts.7.w2.weight [4096,14336]"));
    assert_int_equal(ask("{" QWEN3MOE ",\"num_hidden_layers\":1}", &id, &m, &l, &err), 0);
    assert_true(m.n_experts == 128 && m.n_chosen == 8 && m.expert_dim == 768 && m.head_dim == 64);
    assert_non_null(strstr(l.text, "model.layers.0.self_attn.k_norm.weight [64,0] 0 -"));
    assert_true(!l.biases && strstr(m.arch, "Qwen3"));
}

static void test_taken(void **state)
{
    static listing l;
    turbo_model_info m;
    turbo_err err;
    const char *id;
    (void)state;
    static const struct {
        const char *text, *id;
    } rows[] = {
        {"{\"model_type\":\"llama\"}", "llama"},
        {"{\"model_type\":\"mistral\"}", "llama"},
        {"{\"model_type\":\"qwen2\"}", "qwen"},
        {"{\"architectures\":[\"LLaMAForCausalLM\"]}", "llama"},
        {"{" QWEN ",\"model_type\":\"llama\"}", "qwen"},
        {"{" MIXTRAL ",\"num_hidden_layers\":1,\"model_type\":\"mistral\"}", "llama"},
        {"{\"model_type\":\"mixtral\",\"num_hidden_layers\":1}", "llama"},
        {"{" QWEN2MOE ",\"num_hidden_layers\":1}", "qwen"},
        {"{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":1}", "qwen"},
        {"{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\"}", "qwen"},
        {"{\"architectures\":[\"Qwen3NextForCausalLM\"],\"model_type\":\"qwen3_next\"}", NULL},
        {"{\"architectures\":[\"PhimoeForCausalLM\"],\"model_type\":\"phimoe\"}", NULL},
        {"{\"architectures\":[\"QWenLMHeadModel\"],\"model_type\":\"qwen\"}", NULL},
        {"{\"architectures\":[\"LlamaForSequenceClassification\"],\"model_type\":\"llama\"}", NULL},
        {"{\"architectures\":[\"LlavaNextForConditionalGeneration\"],\"model_type\":\"llava_"
         "next\"}",
         NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbo_status st = ask(rows[i].text, &id, &m, &l, &err);
        if (!rows[i].id != !id || (id && strcmp(id, rows[i].id)))
            fail_msg("%s: %s, status %d, %s", rows[i].text, id ? id : "nobody", st, err.text);
    }
}

/* One clear line each, which names the key. */
static void test_refused(void **state)
{
#define SCALED(member) "\"rope_scaling\":{\"factor\":4," member "}"
    static const struct {
        const char *member, *says;
    } rows[] = {
        {LLAMA ",\"hidden_act\":\"gelu\"", "hidden_act is \"gelu\"; Llama uses silu"},
        {QWEN ",\"hidden_act\":\"relu\"", "Qwen2 uses silu"},
        {LLAMA ",\"attention_bias\":1", "attention_bias"},
        {LLAMA ",\"mlp_bias\":\"yes\"", "mlp_bias"},
        {LLAMA ",\"num_key_value_heads\":7", "num_key_value_heads 7"},
        {MISTRAL ",\"num_attention_heads\":4", "num_key_value_heads 8"},
        {LLAMA ",\"dtype\":\"int8\"", "int8"},
        {MISTRAL ",\"sliding_window\":0", "sliding_window"},
        {MISTRAL ",\"sliding_window\":-1", "sliding_window"},
        {QWEN ",\"sliding_window\":\"x\"", "sliding_window"},
        {QWEN ",\"use_sliding_window\":7", "use_sliding_window"},
        {QWEN ",\"max_window_layers\":-1", "max_window_layers"},
        {QWEN ",\"layer_types\":[]", "layer_types has 0 entries"},
        {QWEN ",\"num_hidden_layers\":1,\"layer_types\":[\"chunked_attention\"]",
         "layer_types.0 is \"chunked_attention\""},
        {QWEN ",\"num_hidden_layers\":1,\"layer_types\":[\"sliding_attention\"]",
         "layer_types.0 is \"sliding_attention\""},
        {QWEN ",\"num_hidden_layers\":1,\"layer_types\":[7]", "layer_types.0"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"factor\":4}",
         "\"longrope\"; Llama has default, linear, dynamic, llama3, yarn"},
        {LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"yarn\"},\"factor\":2}",
         "rope_parameters has no type"},
        {LLAMA ",\"rope_scaling\":{\"factor\":4}", "rope_scaling has no type"},
        {LLAMA ",\"rope_parameters\":7", "rope_parameters is no object"},
        {LLAMA ",\"rope_parameters\":{\"rope_theta\":-1}", "rope_parameters.rope_theta"},
        {LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\"}", "rope_scaling.factor is missing"},
        {LLAMA "," SCALED("\"rope_type\":\"llama3\",\"high_freq_factor\":4"),
         "low_freq_factor is missing"},
        {LLAMA "," SCALED("\"rope_type\":\"llama3\",\"low_freq_factor\":1"),
         "high_freq_factor is missing"},
        {LLAMA "," SCALED("\"rope_type\":\"llama3\",\"low_freq_factor\":4,\"high_freq_factor\":4"),
         "high_freq_factor 4 is not above"},
        {LLAMA "," SCALED("\"rope_type\":\"yarn\",\"original_max_position_embeddings\":0"),
         "original_max_position_embeddings"},
        {LLAMA "," SCALED("\"rope_type\":\"yarn\",\"beta_fast\":-1"), "beta_fast"},
        {LLAMA "," SCALED("\"rope_type\":\"yarn\",\"truncate\":1"), "truncate"},
        {LLAMA "," SCALED("\"rope_type\":\"yarn\",\"rope_theta\":0.5"), "yarn needs more than 1"},
        {LLAMA "," SCALED("\"rope_type\":\"yarn\",\"attention_factor\":0"), "attention_factor"},
        {MIXTRAL ",\"num_local_experts\":0", "num_local_experts is 0"},
        {MIXTRAL ",\"num_local_experts\":1025", "num_local_experts is 1025"},
        {MIXTRAL ",\"num_experts_per_tok\":9",
         "num_experts_per_tok 9 is more than num_local_experts 8"},
        {MIXTRAL ",\"num_experts_per_tok\":0", "num_experts_per_tok"},
        {QWEN2MOE ",\"num_experts\":3", "num_experts_per_tok 4 is more than num_experts 3"},
        {QWEN2MOE ",\"num_experts\":200,\"num_experts_per_tok\":129", "num_experts_per_tok"},
        {QWEN2MOE ",\"moe_intermediate_size\":0", "moe_intermediate_size"},
        {QWEN2MOE ",\"shared_expert_intermediate_size\":0", "shared_expert_intermediate_size"},
        {QWEN2MOE ",\"norm_topk_prob\":1", "norm_topk_prob"},
        {QWEN2MOE ",\"use_sliding_window\":true", "use_sliding_window is true"},
        {QWEN3MOE ",\"decoder_sparse_step\":0", "decoder_sparse_step"},
        {QWEN3MOE ",\"mlp_only_layers\":3", "mlp_only_layers is no list"},
        {QWEN3MOE ",\"mlp_only_layers\":[\"x\"]", "mlp_only_layers.0"},
        {QWEN3MOE ",\"num_local_experts\":7", "more than num_local_experts 7"},
        {QWEN3MOE ",\"layer_types\":[\"sliding_attention\"],\"num_hidden_layers\":1",
         "layer_types.0 is \"sliding_attention\""},
    };
    static listing l;
    turbo_model_info m;
    turbo_err err;
    const char *id;
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, "{%s}", rows[i].member);
        turbo_status st = ask(text, &id, &m, &l, &err);
        if ((st != TURBO_EDATA && st != TURBO_EUNSUPPORTED) || !strstr(err.text, rows[i].says))
            fail_msg("%s: status %d, %s", rows[i].member, st, err.text);
    }
}

/* Harmless keys stay harmless; yarn tells how far it reaches. */
static void test_accepted(void **state)
{
    static listing l;
    turbo_model_info m;
    turbo_err err;
    const char *id;
    (void)state;
    static const struct {
        const char *member;
        int32_t max_position;
    } rows[] = {
        {LLAMA ",\"pretraining_tp\":2,\"attention_dropout\":0.1,\"rope_scaling\":{}", 2048},
        {LLAMA ",\"rope_scaling\":null,\"rope_parameters\":{\"rope_theta\":5e5}", 2048},
        {LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\"}", 2048},
        {LLAMA "," SCALED("\"type\":\"linear\""), 2048},
        {QWEN "," SCALED("\"type\":\"yarn\",\"original_max_position_embeddings\":32768"), 131072},
        {QWEN "," SCALED("\"type\":\"yarn\",\"original_max_position_embeddings\":1024"), 32768},
        {QWEN ",\"layer_types\":null,\"sliding_window\":null,\"use_sliding_window\":true", 32768},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[512];
        snprintf(text, sizeof text, "{%s}", rows[i].member);
        if (ask(text, &id, &m, &l, &err) || m.max_position != rows[i].max_position)
            fail_msg("%s: %d positions, %s", rows[i].member, m.max_position, err.text);
    }
}

/* ---- real files ------------------------------------------------------------------------------- */

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

static const turbo_model_vtbl *open_real(const char *dir, turbo_config **c, char *folder)
{
    const turbo_model_vtbl *v = NULL;
    turbo_err err = {{0}};
    snprintf(folder, 4200, "%s/%s", real, dir);
    if (turbod_config_open(folder, c, &err) || turbod_registry_model_for(registry, *c, &v, &err))
        fail_msg("%s: %s", dir, err.text);
    return v;
}

/* Every tensor is in the published index; what else is there are buffers that nobody needs. */
static void test_real(void **state)
{
    static const struct {
        const char *dir, *id;
        int32_t layers, heads, n_kv, vocab, positions, dtype, n_eos, eos0;
        int buffers;
    } rows[] = {
        {"llama-2-7b-hf", "llama", 32, 32, 32, 32000, 4096, TURBO_F16, 1, 2, 32},
        {"mistral-7b-instruct-v0.2", "llama", 32, 32, 8, 32000, 32768, TURBO_F32, 1, 2, 0},
        {"mistral-7b-instruct-v0.3", "llama", 32, 32, 8, 32768, 32768, TURBO_BF16, 1, 2, 0},
        {"qwen2-1.5b-instruct", "qwen", 28, 12, 2, 151936, 32768, TURBO_BF16, 2, 151645, -1},
    };
    (void)state;
    if (!*real)
        skip();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char folder[4200];
        turbo_config *c = NULL;
        turbo_err err = {{0}};
        uint8_t *text = NULL;
        uint64_t len;
        cJSON *root = NULL;
        turbo_model_info m = {.size = sizeof m};
        const turbo_model_vtbl *v = open_real(rows[i].dir, &c, folder);
        assert_string_equal(v->id, rows[i].id);
        if (v->describe(turbod_host_table(), c, &m, &err))
            fail_msg("%s: %s", rows[i].dir, err.text);
        assert_true(m.n_layers == rows[i].layers && m.n_heads == rows[i].heads &&
                    m.n_kv == rows[i].n_kv && m.vocab == rows[i].vocab && m.head_dim == 128);
        assert_int_equal(m.max_position, rows[i].positions);
        assert_int_equal(m.dtype, rows[i].dtype);
        assert_int_equal(m.n_eos, rows[i].n_eos);
        assert_int_equal(m.eos[0], rows[i].eos0);
        if (rows[i].buffers >= 0) {
            assert_int_equal(turbod_file_read(folder, "model.safetensors.index.json", 1 << 24,
                                              &text, &len, &err),
                             0);
            assert_int_equal(turbod_json_parse((const char *)text, len, &turbod_json_file, &root,
                                               &err),
                             0);
            names k = {.map = turbod_json_get(root, "weight_map")};
            assert_int_equal(v->expect(turbod_host_table(), c, in_map, &k, &err), TURBO_OK);
            assert_int_equal(k.n + rows[i].buffers, cJSON_GetArraySize(k.map));
            cJSON_Delete(root);
            free(text);
        }
        turbod_config_close(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_experts),  cmocka_unit_test(test_taken),
        cmocka_unit_test(test_refused),  cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_real),
    };
    turbo_err err = {{0}};
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    turbod_log_level(TURBO_LOG_ERROR);
    if (!plugins || turbod_registry_open(plugins, &registry, &err)) {
        printf("cannot start; TURBO_PLUGIN_PATH must name the plugins. %s\n", err.text);
        return 1;
    }
    const char *dir = shared_dir();
    if (dir)
        snprintf(real, sizeof real, "%s/data/models/hf-configs", dir);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    return rc ? rc : dir ? 0 : 77;
}
