/* Fuzz target: a GGUF file as a model: its settings through the plugins' tables, the plan of memory, its tokenizer,
 * and a text through that. Returns 1 when the model or the tokenizer is refused. */
#include "driver.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"
#include "plugin/host.h"
#include "unit/gguf_writer.h"
#include "util/log.h"
#include "weights/gguf.h"

static turbod_registry *registry;

static bool tokenise(const char *path)
{
    static const char text[] = "ab abc <s> \xC3\xA9 12 <x>";
    const turbo_tokenizer_vtbl *v = NULL;
    const turbo_host *h = turbod_host_table();
    void *tok = NULL;
    int32_t ids[128];
    uint64_t n = 0;
    turbo_err err;
    if (turbod_registry_tokenizer_for(registry, path, &v, &err) || v->open(h, path, &tok, &err))
        return false;
    for (uint32_t flags = 0; flags < 4; flags++)
        if (!v->encode(tok, text, sizeof text - 1, flags, ids, 128, &n, &err))
            for (uint64_t i = 0; i < n; i++) {
                const char *p;
                uint32_t len;
                v->piece(tok, ids[i], flags, &p, &len);
            }
    v->close(tok);
    return true;
}

int fuzz_one(const uint8_t *data, size_t size)
{
    static const turbod_weights_opts none;
    char path[256];
    turbod_plan_model m;
    turbo_err err;
    turbod_log_level(-1);
    if (!registry) {
        const char *plugins = getenv("TURBO_PLUGIN_PATH");
        if (turbod_registry_open(plugins ? plugins : "", &registry, &err)) {
            fprintf(stderr, "%s\n", err.text);
            abort();
        }
    }
    fuzz_put("model.gguf", data, size);
    bool model = !turbod_plan_model_read(fuzz_path("model.gguf", path), registry, &none, &m, &err);
    if (model)
        turbod_plan_model_free(&m);
    return !(tokenise(path) && model);
}

static void key_list(gguf_writer *w, const char *key, uint32_t elem, uint64_t n)
{
    gguf_key(w, key, TURBO_GGUF_ARRAY);
    gguf_u32(w, elem);
    gguf_u64(w, n);
}

/* The byte-level name of a byte that is printed as itself, or one of the 68 others. */
static void byte_name(int b, char name[8])
{
    int cp = b, others = 0;
    for (int i = 0; i <= b; i++) {
        bool printed = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
        cp = printed ? i : 256 + others;
        others += !printed;
    }
    snprintf(name, 8, cp < 128 ? "%c" : "%c%c", cp < 128 ? cp : 0xc0 | cp >> 6, 0x80 | (cp & 63));
}

enum { EXTRA = 6 };

/* Bytes and a few pieces. */
static void tokenizer(gguf_writer *w, bool bpe)
{
    static const char *const extra[EXTRA] = {"<unk>", "<s>", "<x>", "ab", "abc", "bc"};
    static const uint32_t types[EXTRA] = {2, 3, 4, 1, 1, 1};
    char name[8];
    gguf_key_text(w, "tokenizer.ggml.model", bpe ? "gpt2" : "llama");
    gguf_key_text(w, "tokenizer.ggml.pre", bpe ? "qwen2" : "default");
    key_list(w, "tokenizer.ggml.tokens", TURBO_GGUF_STRING, EXTRA + 256);
    for (int i = 0; i < EXTRA; i++)
        gguf_text(w, extra[i]);
    for (int i = 0; i < 256; i++) {
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        if (bpe)
            byte_name(i, name);
        gguf_text(w, name);
    }
    key_list(w, "tokenizer.ggml.token_type", TURBO_GGUF_I32, EXTRA + 256);
    for (int i = 0; i < EXTRA + 256; i++)
        gguf_u32(w, i < EXTRA ? types[i] : bpe ? 1 : 6);
    if (bpe) {
        key_list(w, "tokenizer.ggml.merges", TURBO_GGUF_STRING, 3);
        gguf_text(w, "a b");
        gguf_text(w, "b c");
        gguf_text(w, "ab c");
    } else {
        key_list(w, "tokenizer.ggml.scores", TURBO_GGUF_F32, EXTRA + 256);
        for (int i = 0; i < EXTRA + 256; i++)
            gguf_u32(w, 0xbf800000u + (uint32_t)i);
    }
    gguf_key_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_key_u32(w, "tokenizer.ggml.eos_token_id", 1);
    gguf_key_text(w, "tokenizer.chat_template", "{{ x }}");
}

uint8_t *fuzz_seed(int i, size_t *size)
{
    static const char *const archs[] = {"llama", "internlm2", "qwen2"};
    enum { E = 32, D = 16, V = 262 };
    static const struct {
        const char *name;
        uint64_t rows, cols;
    } rows[] = {{"token_embd", V, E},     {"output_norm", 0, E},       {"blk.0.attn_norm", 0, E},
                {"blk.0.attn_q", E, E},   {"blk.0.attn_k", D, E},      {"blk.0.attn_v", D, E},
                {"blk.0.ffn_norm", 0, E}, {"blk.0.attn_output", E, E}, {"blk.0.ffn_gate", E, E},
                {"blk.0.ffn_up", E, E},   {"blk.0.ffn_down", E, E}};
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        {"context_length", 64},        {"embedding_length", E},     {"block_count", 1},
        {"feed_forward_length", E},    {"attention.head_count", 2}, {"rope.dimension_count", D},
        {"attention.head_count_kv", 1}};
    static const uint8_t zeros[V * E * 4];
    gguf_writer w;
    char name[96];
    if (i >= 6)
        return NULL;
    gguf_begin(&w);
    gguf_key_text(&w, "general.architecture", archs[i % 3]);
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        snprintf(name, sizeof name, "%s.%s", archs[i % 3], keys[k].key);
        gguf_key_u32(&w, name, keys[k].value);
    }
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", archs[i % 3]);
    gguf_key_f32(&w, name, 1e-5f);
    snprintf(name, sizeof name, "%s.rope.scaling.type", archs[i % 3]);
    gguf_key_text(&w, name, "linear");
    snprintf(name, sizeof name, "%s.rope.scaling.factor", archs[i % 3]);
    gguf_key_f32(&w, name, 2);
    tokenizer(&w, i >= 3);
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        uint64_t n = (rows[k].rows ? rows[k].rows : 1) * rows[k].cols;
        bool quantised = rows[k].rows && i % 2;
        snprintf(name, sizeof name, "%s.weight", rows[k].name);
        gguf_tensor(&w, name, quantised ? 8 : 0, rows[k].rows, rows[k].cols, zeros,
                    quantised ? n / 32 * 34 : 4 * n);
        if (i % 3 == 2 && !strncmp(rows[k].name, "blk.0.attn_", 11) && rows[k].rows &&
            rows[k].name[11] != 'o') {
            snprintf(name, sizeof name, "%s.bias", rows[k].name);
            gguf_tensor(&w, name, 0, 0, rows[k].rows, zeros, 4 * rows[k].rows);
        }
    }
    gguf_end(&w);
    *size = w.n;
    uint8_t *out = w.p;
    free(w.data);
    return out;
}
