/* Folders that say that inputs are quantised, on a CUDA device: which ones are taken at their word, that prompts are then
 * multiplied as codes, and what that does to logits. On the fake driver, or with TURBO_CHECK_GPU on the machine's own. */
#include "on_gpu.h"

#include "model/quant_folder.h"
#include "util/log.h"
#include "weights/quant/quant.h"

#define TOKENS 24
#define VOCAB 96

static const char llama[] =
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":96,"
    "\"hidden_size\":128,\"intermediate_size\":256,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"max_position_embeddings\":128,"
    "\"torch_dtype\":\"float32\"";

#define CT(format, weights, inputs)                                                                \
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"" format                                \
    "\",\"config_groups\":{\"group_0\":{\"weights\":{" weights "},\"input_activations\":" inputs   \
    "}}}"
#define INT8 "\"num_bits\":8,\"type\":\"int\",\"strategy\":\"channel\""
#define FP8 "\"num_bits\":8,\"type\":\"float\",\"strategy\":\"tensor\""
#define TOKEN(type) "{\"num_bits\":8,\"type\":\"" type "\",\"strategy\":\"token\",\"dynamic\":true}"

/* The case of that name with another config. */
static quant_case with_config(const char *name, const char *config)
{
    int i = 0;
    while (strcmp(quant_cases[i].name, name))
        i++;
    return (quant_case){name, config, quant_cases[i].add};
}

/* Does the folder's reader say so of a matrix? */
static bool declared(const char *folder)
{
    turbod_index *ix = NULL;
    turbod_quant *q = NULL;
    turbod_quant_part p;
    turbo_err err = {{0}};
    if (turbod_index_open(folder, &ix, &err) || turbod_quant_open(folder, "", &q, &err) ||
        turbod_quant_find(q, ix, "model.layers.0.self_attn.o_proj", 128, 128, &p, &err))
        fail_msg("%s", err.text);
    assert_non_null(p.format);
    turbod_quant_close(q);
    turbod_index_close(ix);
    return p.grid.coded_inputs;
}

static void test_declared(void **state)
{
    static const struct {
        const char *name, *config;
        bool want;
    } cases[] = {
        {"int8", CT("int-quantized", INT8, TOKEN("int")), true},
        {"int8", CT("int-quantized", INT8, "null"), false},
        {"int8", "{\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\"}", false},
        {"int8", CT("int-quantized", INT8, TOKEN("float")), false},
        {"int8",
         CT("int-quantized", INT8,
            "{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"token\",\"symmetric\":false}"),
         false},
        {"int8",
         CT("int-quantized", INT8, "{\"num_bits\":4,\"type\":\"int\",\"strategy\":\"token\"}"),
         false},
        {"int8",
         CT("int-quantized", INT8,
            "{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"group\",\"group_size\":128}"),
         false},
        {"int8", "{\"quant_method\":\"smooth_quant\"}", true},
        {"int8", "{\"quant_method\":\"int8\"}", false},
        {"fp8", CT("float-quantized", FP8, TOKEN("float")), true},
        {"fp8",
         CT("float-quantized", FP8,
            "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"tensor\",\"dynamic\":false}"),
         true},
        {"fp8", CT("float-quantized", FP8, "null"), false},
        {"fp8", "{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}", true},
        {"fp8", "{\"quant_method\":\"fp8\"}", false},
        {"fp8 blocks",
         "{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\","
         "\"weight_block_size\":[128,128]}",
         true},
        {"fp8 blocks",
         CT("float-quantized",
            "\"num_bits\":8,\"type\":\"float\",\"strategy\":\"block\",\"block_structure\":[128,"
            "128]",
            "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"group\",\"group_size\":128}"),
         true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char quantised[64], plain[64];
        const quant_case c = with_config(cases[i].name, cases[i].config);
        quant_folders(registry, llama, &c, quantised, plain);
        if (declared(quantised) != cases[i].want)
            fail_msg("%s", cases[i].config);
        quant_folder_remove(quantised);
        quant_folder_remove(plain);
    }
}

static long launched(const char *kernel)
{
    return fake.handle ? fake.launched(kernel) : 0;
}

/* Logits of a card against the CPU's of the same folder. The CPU quantises the inputs of integers too, by 32, and multiplies
 * those of fp8 as they are. Rounding to 127 steps up to the largest of a row is off by about 0.7 % of a number's
 * size where numbers are normal, rounding to e4m3 by 2.6 %; five products and 16-bit sums stand one behind the other. */
static void test_logits(void **state)
{
    static const struct {
        const char *name, *config, *weights_only;
        const char *kernels[2];
        long n[2]; /* launches for a step: q, k and v are one product */
        double most;
    } cases[] = {
        {"int8",
         CT("int-quantized", INT8, TOKEN("int")),
         CT("int-quantized", INT8, "null"),
         {"w8a8_wide32_s8", "w8a8_wide32_e4m3"},
         {5, 0},
         0.03},
        {"fp8",
         CT("float-quantized", FP8, TOKEN("float")),
         CT("float-quantized", FP8, "null"),
         {"w8a8_wide32_e4m3", "w8a8_wide32_e4m3_blocks"},
         {5, 0},
         0.1},
        {"fp8 blocks",
         "{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\","
         "\"weight_block_size\":[128,128]}",
         "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}",
         {"w8a8_wide32_e4m3", "w8a8_wide32_e4m3_blocks"},
         {5, 1},
         0.1},
    };
    static float want[TOKENS * VOCAB], got[TOKENS * VOCAB], kept[TOKENS * VOCAB];
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char coded[64], weights[64], plain[64];
        const char *precision = i % 2 ? "f16" : "bf16";
        const quant_case c = with_config(cases[i].name, cases[i].config);
        const quant_case d = with_config(cases[i].name, cases[i].weights_only);
        quant_folders(registry, llama, &c, coded, plain);
        quant_folder_remove(plain);
        quant_folders(registry, llama, &d, weights, plain);
        quant_folder_remove(plain);
        logits_of(coded, small(), TOKENS, TOKENS, VOCAB, want);
        long before[2] = {launched(cases[i].kernels[0]), launched(cases[i].kernels[1])};
        logits_of(coded, on_cuda(precision), TOKENS, TOKENS, VOCAB, got);
        for (int k = 0; k < 2 && fake.handle; k++)
            assert_int_equal(launched(cases[i].kernels[k]) - before[k], cases[i].n[k]);
        /* Nor are weights alone, or few rows, or fp32. */
        long after = launched("w8a8_");
        logits_of(weights, on_cuda(precision), TOKENS, TOKENS, VOCAB, kept);
        double off = relative(got, want, TOKENS * VOCAB),
               alone = relative(kept, want, TOKENS * VOCAB);
        print_message("%s %s: %.2e, weights alone %.2e\n", cases[i].name, precision, off, alone);
        assert_true(off < cases[i].most);
        assert_true(relative(got, kept, TOKENS * VOCAB) > 1e-3);
        logits_of(coded, on_cuda(precision), TOKENS, 12, VOCAB, got);
        logits_of(weights, on_cuda(precision), TOKENS, 12, VOCAB, kept);
        assert_memory_equal(got, kept, sizeof got);
        logits_of(coded, on_cuda("f32"), TOKENS, TOKENS, VOCAB, got);
        assert_int_equal(launched("w8a8_"), after);
        quant_folder_remove(coded);
        quant_folder_remove(weights);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_declared),
        cmocka_unit_test(test_logits),
    };
    turbod_log_level(TURBO_LOG_ERROR);
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
