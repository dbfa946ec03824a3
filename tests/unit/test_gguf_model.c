/* A GGUF file as a model: what the plugins make of its settings and tensors, up to the plan of memory; files that
 * are not the model they say they are; the chat template and the fingerprint of a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chat/choose.h"
#include "gguf_writer.h"
#include "plan/plan.h"
#include "plugin/host.h"
#include "weights/fingerprint.h"
#include "weights/gguf.h"

enum { E = 64, H = 4, K = 2, D = 16, I = 96, V = 32, L = 2, F32 = 0, F16 = 1, Q8_0 = 8 };

static char folder[64], path[128];
static turbod_registry *registry;

static int setup(void **state)
{
    (void)state;
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    turbo_err err = {{0}};
    strcpy(folder, "/tmp/turbo-gguf-XXXXXX");
    if (!mkdtemp(folder) || turbod_registry_open(plugins ? plugins : "", &registry, &err))
        return -1;
    snprintf(path, sizeof path, "%s/x.gguf", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    turbod_registry_close(registry);
    return rmdir(folder);
}

/* What a file has other than a good one. */
typedef struct variant {
    const char *arch; /* NULL: llama */
    const char *drop; /* this key or tensor is left out */
    const char *wide; /* this tensor has 32 rows more */
    const char *key; /* one more key, a number */
    uint32_t value;
    const char *text_key, *text; /* one more key, a text */
    uint32_t type; /* of matrices */
    const char *other; /* this matrix has other_type */
    uint32_t other_type;
    bool tied, bias;
} variant;

static bool is(const char *name, const char *other)
{
    return other && !strcmp(name, other);
}

static void number(gguf_writer *w, const variant *v, const char *key, uint32_t n)
{
    char full[96];
    snprintf(full, sizeof full, "%s.%s", v->arch ? v->arch : "llama", key);
    if (!is(key, v->drop))
        gguf_key_u32(w, full, n);
}

static void tensor(gguf_writer *w, const variant *v, const char *name, uint64_t rows, uint64_t cols)
{
    static const uint8_t zeros[65536];
    uint32_t type = rows ? v->type : F32;
    if (is(name, v->other))
        type = v->other_type;
    if (is(name, v->wide))
        rows += 32;
    uint64_t n = (rows ? rows : 1) * cols;
    if (!is(name, v->drop))
        gguf_tensor(w, name, type, rows, cols, zeros,
                    type == F32   ? 4 * n
                    : type == F16 ? 2 * n
                                  : n / 32 * 34);
}

static void write_file(const variant *v)
{
    const char *arch = v->arch ? v->arch : "llama";
    gguf_writer w;
    char name[64];
    gguf_begin(&w);
    if (!is("general.architecture", v->drop))
        gguf_key_text(&w, "general.architecture", arch);
    number(&w, v, "context_length", 128);
    number(&w, v, "embedding_length", E);
    number(&w, v, "block_count", L);
    number(&w, v, "feed_forward_length", I);
    number(&w, v, "attention.head_count", H);
    number(&w, v, "attention.head_count_kv", K);
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_key_f32(&w, name, 1e-5f);
    if (v->key)
        gguf_key_u32(&w, v->key, v->value);
    if (v->text_key)
        gguf_key_text(&w, v->text_key, v->text);
    tensor(&w, v, "token_embd.weight", V, E);
    tensor(&w, v, "output_norm.weight", 0, E);
    if (!v->tied)
        tensor(&w, v, "output.weight", V, E);
    const struct {
        const char *part;
        uint64_t rows, cols;
    } rows[] = {
        {"attn_norm.weight", 0, E},  {"attn_q.weight", H * D, E},      {"attn_k.weight", K * D, E},
        {"attn_v.weight", K * D, E}, {"attn_output.weight", E, H * D}, {"ffn_norm.weight", 0, E},
        {"ffn_gate.weight", I, E},   {"ffn_up.weight", I, E},          {"ffn_down.weight", E, I},
        {"attn_q.bias", 0, H * D},   {"attn_k.bias", 0, K * D},        {"attn_v.bias", 0, K * D},
        {"attn_output.bias", 0, E},
    };
    size_t biases = !v->bias ? 0 : is(arch, "qwen2") ? 3 : 4;
    for (int l = 0; l < L; l++)
        for (size_t i = 0; i < 9 + biases; i++) {
            snprintf(name, sizeof name, "blk.%d.%s", l, rows[i].part);
            tensor(&w, v, name, rows[i].rows, rows[i].cols);
        }
    gguf_end(&w);
    gguf_save(&w, path);
    gguf_free(&w);
}

static turbo_status read_it(const variant *v, turbod_plan_model *m, turbo_err *err)
{
    static const turbod_weights_opts none;
    write_file(v);
    *err = (turbo_err){{0}};
    return turbod_plan_model_read(path, registry, &none, m, err);
}

static void test_models(void **state)
{
    (void)state;
    static const struct {
        variant v;
        const char *plugin;
        bool biases;
    } rows[] = {
        {{.type = F32}, "llama", false},
        {{.type = F16}, "llama", false},
        {{.type = Q8_0}, "llama", false},
        {{.tied = true}, "llama", false},
        {{.bias = true}, "llama", true},
        {{.type = Q8_0, .other = "blk.0.attn_v.weight", .other_type = F16}, "llama", false},
        {{.arch = "qwen2", .bias = true}, "qwen", true},
        {{.arch = "qwen2", .bias = true, .type = Q8_0}, "qwen", true},
        {{.arch = "internlm2"}, "internlm2", false},
        {{.arch = "internlm2", .type = F16, .bias = true}, "internlm2", true},
        {{.arch = "internlm2", .type = Q8_0}, "internlm2", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_plan_model m;
        turbo_err err;
        if (read_it(&rows[i].v, &m, &err))
            fail_msg("%zu: %s", i, err.text);
        assert_string_equal(m.vtbl->id, rows[i].plugin);
        assert_false(m.from_config);
        assert_int_equal(m.info.n_layers, L);
        assert_int_equal(m.info.n_heads, H);
        assert_int_equal(m.info.n_kv, K);
        assert_int_equal(m.info.head_dim, D);
        assert_int_equal(m.info.embed_dim, E);
        assert_int_equal(m.info.mlp_dim, I);
        assert_int_equal(m.info.vocab, V);
        assert_int_equal(m.info.max_position, 128);
        int params = V * E * (rows[i].v.tied ? 1 : 2) +
                     L * (2 * H * D * E + 2 * K * D * E + 3 * I * E) + (2 * L + 1) * E;
        if (rows[i].biases)
            params += L * ((H + 2 * K) * D + (rows[i].v.arch && *rows[i].v.arch == 'q' ? 0 : E));
        assert_int_equal(m.weights.params, params);
        turbod_plan_model_free(&m);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        variant v;
        const char *words;
    } rows[] = {
        {{.arch = "frob"}, "no plugin runs GGUF files of the architecture \"frob\""},
        {{.drop = "general.architecture"}, "general.architecture is missing"},
        {{.key = "llama.expert_count", .value = 8}, "llama.expert_count is not 0"},
        {{.key = "llama.attention.sliding_window", .value = 4096}, "sliding_window is not 0"},
        {{.key = "llama.rope.dimension_count", .value = 8}, "the header says [32,64]"},
        {{.key = "llama.attention.key_length", .value = 32}, "[64,64]"},
        {{.key = "tokenizer.ggml.bos_token_id", .value = 99}, "bos_token_id 99 is beyond"},
        {{.text_key = "llama.rope.scaling.type", .text = "longrope"}, "longrope"},
        {{.drop = "attention.head_count"}, "key llama.attention.head_count is missing"},
        {{.drop = "context_length"}, "key llama.context_length is missing"},
        {{.drop = "blk.1.attn_k.weight"},
         "tensor model.layers.1.self_attn.k_proj.weight is missing (blk.1.attn_k.weight in the "
         "file)"},
        {{.drop = "embedding_length", .key = "llama.embedding_length"},
         "x.gguf: llama.embedding_length (hidden_size) is 0; an integer"},
        {{.drop = "rope.freq_base", .key = "llama.rope.freq_base"},
         "x.gguf: llama.rope.freq_base (rope_theta) is 0; a number"},
        {{.drop = "token_embd.weight"}, "missing"},
        {{.wide = "blk.0.attn_q.weight"}, "shape [96,64], the header says [64,64]"},
        {{.wide = "blk.0.attn_k.weight", .type = Q8_0}, "shape [64,64]"},
        {{.other = "blk.0.attn_norm.weight", .other_type = F16, .wide = "blk.0.attn_norm.weight"},
         "shape"},
        {{.other = "output_norm.weight", .other_type = Q8_0}, "is Q8_0"},
        {{.other = "blk.0.ffn_up.weight", .other_type = 24},
         "mlp.up_proj.weight is I8; F32, F16 and BF16 are computed here (blk.0.ffn_up.weight in"},
        {{.type = F16, .other = "blk.0.attn_v.weight", .other_type = F32}, "need one type"},
        {{.arch = "internlm2", .drop = "blk.1.attn_v.weight"}, "does not have each of them once"},
        {{.arch = "internlm2", .drop = "blk.0.attn_q.weight"}, "does not have each of them once"},
        {{.arch = "internlm2", .wide = "blk.0.attn_q.weight"}, "has 96 rows; its heads need 64"},
        {{.arch = "internlm2", .other = "blk.0.attn_k.weight", .other_type = F16}, "need one type"},
        {{.arch = "qwen2"}, "self_attn.q_proj.bias is missing"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_plan_model m;
        turbo_err err;
        turbo_status st = read_it(&rows[i].v, &m, &err);
        if (!st || !strstr(err.text, rows[i].words))
            fail_msg("%zu: \"%s\" is expected, got %d: %s", i, rows[i].words, st, err.text);
    }
}

/* The folder instead of the file in it: which file is meant is said. */
static void test_folder(void **state)
{
    (void)state;
    static const turbod_weights_opts none;
    const variant v = {0};
    turbod_plan_model m;
    turbo_err err = {{0}};
    write_file(&v);
    assert_int_equal(turbod_plan_model_read(folder, registry, &none, &m, &err), TURBO_ENOENT);
    assert_non_null(strstr(err.text, "has no config.json, but x.gguf: give that file"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(turbod_plan_model_read(folder, registry, &none, &m, &err), TURBO_ENOENT);
    assert_non_null(strstr(err.text, "has no config.json; a model is a folder with"));
}

/* Layers that the settings do not count: a warning says which tensors are meant. */
static void test_unused(void **state)
{
    (void)state;
    const variant v = {.drop = "block_count", .key = "llama.block_count", .value = 1};
    turbod_plan_model m;
    turbo_err err;
    char log[128], text[2048];
    snprintf(log, sizeof log, "%s/log", folder);
    fflush(stderr);
    int saved = dup(2);
    FILE *f = fopen(log, "w+");
    assert_true(saved >= 0 && f);
    dup2(fileno(f), 2);
    turbo_status st = read_it(&v, &m, &err);
    dup2(saved, 2);
    close(saved);
    unlink(log);
    rewind(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    if (st)
        fail_msg("%s", err.text);
    turbod_plan_model_free(&m);
    if (!strstr(text, "9 tensors of the file are not used by llama; the first is "
                      "model.layers.1.input_layernorm.weight (blk.1.attn_norm.weight in the file)"))
        fail_msg("not said: %s", text);
}

/* The table is that of scripts/chat, the template the well-known one of ChatML as this model has it. */
static void test_template(void **state)
{
    (void)state;
    char hex[65], name[256];
    turbo_err err = {{0}};
    variant v = {.text_key = "tokenizer.chat_template", .text = "abc"};
    write_file(&v);
    assert_int_equal(turbod_chat_fingerprint(path, hex, &err), TURBO_OK);
    assert_string_equal(hex, /* FIPS 180-4, example B.1 */
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *src = getenv("srcdir");
    char data[256];
    snprintf(data, sizeof data, "%s/scripts", src ? src : ".");
    assert_int_equal(turbod_chat_choose("", path, "", data, name, sizeof name, &err),
                     TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, hex));
    v = (variant){0};
    write_file(&v);
    assert_int_equal(turbod_chat_fingerprint(path, hex, &err), TURBO_ENOENT);
}

static void test_fingerprint(void **state)
{
    (void)state;
    uint8_t a[32], b[32];
    turbo_err err;
    variant v = {0};
    write_file(&v);
    assert_int_equal(turbod_fingerprint(path, a, &err), TURBO_OK);
    write_file(&v);
    assert_int_equal(turbod_fingerprint(path, b, &err), TURBO_OK);
    assert_memory_equal(a, b, 32);
    v.key = "tokenizer.ggml.bos_token_id";
    v.value = 1;
    write_file(&v);
    assert_int_equal(turbod_fingerprint(path, b, &err), TURBO_OK);
    assert_memory_not_equal(a, b, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_folder),   cmocka_unit_test(test_unused),
        cmocka_unit_test(test_template), cmocka_unit_test(test_fingerprint),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
