/* Every family that shares plugins/decoder, as installed plugins: tests/golden/decoder-tiny/golden.json and
 * moe-tiny/golden.json (transformers, float32) on every instruction set of this machine, published vectors,
 * the bytes that expect announces, and weights that do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cases.h"
#include "plugin/host.h"
#include "plugin/registry.h"
#include "unit/tiny_model.h"
#include "util/log.h"

static turbod_registry *registry;
static cJSON *golden, *moe; /* moe: families with experts, and what came with them */

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

static int run_all(const cJSON *file)
{
    int n = 0;
    for (const cJSON *c = turbod_json_get(file, "cases")->child; c; c = c->next, n++) {
        const cJSON *config = turbod_json_get(c, "config");
        const turbo_model_vtbl *v = plugin_of(config);
        const char *type = turbod_json_get(config, "model_type")->valuestring;
        assert_string_equal(v->id, strncmp(type, "qwen", 4) ? "llama" : "qwen");
        cases_run(v, c);
    }
    return n;
}

static void test_transformers(void **state)
{
    (void)state;
    assert_int_equal(run_all(golden), 27);
    assert_int_equal(run_all(moe), 11);
}

/* ---- published vectors ------------------------------------------------------------------------- */

/* The sheet's numbers: matrix k, row r, column c. */
static float val(int k, int r, int c)
{
    return (float)(((7919 * k + 131 * r + 17 * c) % 201 - 100) / 250.0);
}

static float nw(int k, int c)
{
    return (float)(1 + 0.1 * ((k + c) % 3));
}

/* The sheet packs q, k and v for four heads and two KV heads: q0 q1 k0 v0 q2 q3 k1 v1. */
static int packed_row(char part, int row, int D)
{
    static const int q[] = {0, 1, 4, 5}, k[] = {2, 6}, v[] = {3, 7};
    const int *slot = part == 'q' ? q : part == 'k' ? k : v;
    return slot[row / D] * D + row % D;
}

static float published(const turbo_tensor_spec *s, int32_t row, int32_t col)
{
    int n = 0;
    char part[64] = "";
    if (strstr(s->name, ".bias"))
        return 0;
    if (!strcmp(s->name, "model.embed_tokens.weight"))
        return val(1, row, col);
    if (!strcmp(s->name, "lm_head.weight"))
        return val(2, row, col);
    if (!strcmp(s->name, "model.norm.weight"))
        return nw(5, row);
    assert_int_equal(sscanf(s->name, "model.layers.%d.%63s", &n, part), 2);
    if (!strcmp(part, "input_layernorm.weight"))
        return nw(n, row);
    if (!strcmp(part, "post_attention_layernorm.weight"))
        return nw(n + 1, row);
    if (!strncmp(part, "self_attn.", 10) && part[10] != 'o') {
        int D = (int)s->dims[1] / 4;
        return val(10 + 10 * n, packed_row(part[10], row, D), col);
    }
    static const char *const rest[] = {"self_attn.o", "mlp.gate", "mlp.up", "mlp.down"};
    for (int i = 0; i < 4; i++)
        if (!strncmp(part, rest[i], strlen(rest[i])))
            return val(11 + 10 * n + i, row, col);
    fail_msg("%s is no tensor of the sheet", s->name);
    return 0;
}

/* Computed in double precision from the formulas, printed with six decimals: the logits of position 2,
 * and of layer 0 one head of K and of V. A model without biases is one with zeros. */
static void test_published(void **state)
{
    static const struct {
        int E;
        double logits[10], k1[4], v0[4];
    } rows[] = {{8,
                 {-0.962869, -0.032665, 0.594884, -0.933674, 0.397010, 0.624079, -1.896963,
                  0.426205, 0.653273, -1.867768},
                 {0.799268, 0.303427},
                 {0.885203, -1.037478}},
                {16,
                 {-0.321024, -0.334293, 0.983718, -0.244724, 0.516530, -0.907106, -0.212191,
                  0.592830, -0.830807, -0.135892},
                 {-3.422987, -0.943585, -3.366927, -1.590675},
                 {0.044417, -1.810674, 0.692195, 0.110004}}};
    static const char *const classes[] = {"Llama", "Mistral", "Qwen2"};
    static const int32_t ids[] = {1, 4, 7};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        char text[512], folder[64];
        float logits[10], kv[8];
        int E = rows[i / 3].E, D = E / 4;
        runner r;
        snprintf(text, sizeof text,
                 "{\"architectures\":[\"%sForCausalLM\"],\"vocab_size\":10,\"hidden_size\":%d,"
                 "\"intermediate_size\":12,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
                 "\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5,\"rope_theta\":10000}",
                 classes[i % 3], E);
        cJSON *config = cJSON_Parse(text);
        assert_non_null(config);
        const turbo_model_vtbl *v = plugin_of(config);
        cases_write(v, config, published, folder);
        assert_true(cases_open(&r, v, folder, TURBOK_ISA_SCALAR, TURBO_F32, 16));
        cases_step(&r, ids, 3, 3, 1, logits);
        for (int k = 0; k < 10; k++)
            assert_true(fabs((double)logits[k] - rows[i / 3].logits[k]) <= 2e-6);
        turbok_kv_read(r.pool, &r.table, 0, 2, false, kv);
        for (int k = 0; k < D; k++)
            assert_true(fabs((double)kv[D + k] - rows[i / 3].k1[k]) <= 4e-6);
        turbok_kv_read(r.pool, &r.table, 0, 2, true, kv);
        for (int k = 0; k < D; k++)
            assert_true(fabs((double)kv[k] - rows[i / 3].v0[k]) <= 4e-6);
        runner_close(&r);
        tiny_model_remove(folder);
        cJSON_Delete(config);
    }
}

/* ---- bytes -------------------------------------------------------------------------------------- */

typedef struct plan {
    const runner *r;
    uint64_t bytes;
    int32_t group; /* of the matrix that is being collected; 0: none */
    int64_t rows, in;
    bool bias;
} plan;

static void close_group(plan *p)
{
    if (p->group)
        p->bytes += turbok_linear_bytes(p->r->device, p->r->info.dtype, p->rows, p->in, p->bias, 0);
    p->group = 0;
    p->rows = 0;
    p->bias = false;
}

/* Counts as a plan of memory does: matrices of a group are one. Without groups a bias belongs to the
 * matrix before it. */
static turbo_status count(void *ctx, const turbo_tensor_spec *s)
{
    plan *p = ctx;
    bool bias = strstr(s->name, ".bias") != NULL;
    int32_t group = s->group ? s->group : -1;
    if (!bias && (group != p->group || group < 0))
        close_group(p);
    if (s->ndim == 1 && !bias) {
        p->bytes += ((uint64_t)s->dims[0] * sizeof(float) + 63) / 64 * 64;
    } else if (bias) {
        assert_int_equal(group, p->group);
        p->bias = true;
    } else {
        p->group = group;
        p->rows += s->dims[0];
        p->in = s->dims[1];
    }
    return TURBO_OK;
}

/* What expect announces is what the device holds, to the byte. */
static void test_bytes(void **state)
{
    (void)state;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next) {
        const cJSON *config = turbod_json_get(c, "config");
        const turbo_model_vtbl *v = plugin_of(config);
        char folder[64];
        runner r;
        turbo_err err;
        cases_write(v, config, NULL, folder);
        assert_true(cases_open(&r, v, folder, TURBOK_ISA_SCALAR, TURBO_F32, 16));
        plan p = {.r = &r};
        assert_int_equal(v->expect(turbod_host_table(), r.config, count, &p, &err), 0);
        close_group(&p);
        assert_int_equal(p.bytes, turbok_device_mem(r.device, TURBOK_MEM_LINEAR) +
                                      turbok_device_mem(r.device, TURBOK_MEM_VECTOR));
        runner_close(&r);
        tiny_model_remove(folder);
    }
}

/* What a plan counts of experts, stored and made smaller, is what the device holds; and a token of theirs has
 * the same bits in any company. int8 is near what fp32 gives. */
static void experts_as(const turbo_model_vtbl *v, const char *folder, const char *quantize)
{
    enum { N = 40, V = 96 };
    runner_opts o = {.threads = 2,
                     .kv_dtype = TURBO_F32,
                     .max_tokens = N + 8,
                     .quantize = quantize};
    runner r;
    turbo_err err = {{0}};
    int32_t ids[N];
    static float logits[2][N * V];
    if (runner_open(&r, v, folder, &o, &err))
        fail_msg("%s", err.text);
    turbo_weights *w = NULL;
    turbod_weights_sums sums;
    turbod_weights_opts as = {.device = r.device, .quantize = quantize};
    if (turbod_weights_open(folder, &as, &w, &err) ||
        turbod_weights_count(w, turbod_host_table(), v, r.config, V, &sums, &err))
        fail_msg("%s", err.text);
    turbod_weights_close(w);
    assert_int_equal(sums.linear, turbok_device_mem(r.device, TURBOK_MEM_LINEAR));
    assert_int_equal(sums.vector, turbok_device_mem(r.device, TURBOK_MEM_VECTOR));
    assert_int_equal(sums.quantised, *quantize != 0);
    assert_true(sums.idle > 0 && sums.idle < sums.matmul && sums.idle_stored > 0);
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)(checkpoint_stream(N, (uint32_t)i) % V);
    float *got = logits[*quantize != 0];
    cases_step(&r, ids, N, N, N, got);
    cases_same_bits(&r, ids, N, got);
    double worst = 0, most = 0;
    for (int i = 0; i < N * V; i++) {
        worst = fmax(worst, fabs((double)got[i] - (double)logits[0][i]));
        most = fmax(most, fabs((double)logits[0][i]));
    }
    print_message("experts %-4s: %.1e of %.2f\n", quantize, worst, most);
    /* Where 2 of 8 are chosen; of more experts some token gets others. */
    assert_true(strcmp(quantize, "int8") || r.info.n_experts > 8 || worst < 0.05 * most);
    assert_true(!*quantize == !(worst > 0));
    runner_close(&r);
}

static void test_experts(void **state)
{
    static const char *const names[] = {"mixtral", "qwen 1.5 moe", "qwen 3 moe"};
    int n = 0;
    (void)state;
    for (const cJSON *c = turbod_json_get(moe, "cases")->child; c; c = c->next) {
        const cJSON *config = turbod_json_get(c, "config");
        const turbo_model_vtbl *v = plugin_of(config);
        char folder[64];
        if (n == 3 || strcmp(turbod_json_get(c, "name")->valuestring, names[n]))
            continue;
        cases_write(v, config, NULL, folder);
        experts_as(v, folder, "");
        experts_as(v, folder, "int8");
        experts_as(v, folder, "int4");
        tiny_model_remove(folder);
        n++;
    }
    assert_int_equal(n, 3);
}

/* ---- weights that do not fit -------------------------------------------------------------------- */

/* Replaces text of the file's header by text of the same length. */
static void patch(const char *folder, const char *from, const char *to)
{
    char path[128];
    static char text[65536];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    char *at = memmem(text, n, from, strlen(from));
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    assert_int_equal(fseek(f, at - text, SEEK_SET), 0);
    assert_int_equal(fwrite(to, 1, strlen(to), f), strlen(to));
    fclose(f);
}

static void test_misfits(void **state)
{
    static const struct {
        const char *from, *to, *says;
        bool tied;
    } rows[] = {
        {"0.self_attn.k_proj.weight\":{\"dtype\":\"BF16\"",
         "0.self_attn.k_proj.weight\":{\"dtype\":\"F16\" ",
         "0.self_attn.k_proj.weight is F16 and model.layers.0.self_attn.q_proj.weight is not",
         false},
        {"0.self_attn.v_proj.bias", "0.self_attn.v_proj.bios",
         "tensor model.layers.0.self_attn.v_proj.bias is missing", false},
        {"0.self_attn.q_proj.weight", "0.self_attn.q_proj.wait  ",
         "tensor model.layers.0.self_attn.q_proj.weight is missing", false},
        {"model.embed_tokens.weight", "lm_head.weight           ",
         "tensor model.embed_tokens.weight", true},
        {"model.embed_tokens.weight\"", "lm_head.weight\"           ", NULL, true},
        {"model.embed_tokens.weight", "model.embed_tokens.wait  ", "embed_tokens.weight is missing",
         false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char folder[64], text[512];
        turbo_err err = {{0}};
        runner_opts o = {.isa = TURBOK_ISA_SCALAR, .threads = 1, .max_tokens = 16};
        runner r;
        snprintf(text, sizeof text,
                 "{\"architectures\":[\"Qwen2ForCausalLM\"],\"vocab_size\":96,\"hidden_size\":48,"
                 "\"intermediate_size\":80,\"num_hidden_layers\":1,\"num_attention_heads\":4,"
                 "\"num_key_value_heads\":2,\"torch_dtype\":\"bfloat16\","
                 "\"tie_word_embeddings\":%s}",
                 rows[i].tied ? "true" : "false");
        cJSON *config = cJSON_Parse(text);
        const turbo_model_vtbl *v = plugin_of(config);
        cases_write(v, config, NULL, folder);
        patch(folder, rows[i].from, rows[i].to);
        turbo_status st = runner_open(&r, v, folder, &o, &err);
        if (!rows[i].says != !st || (st && !strstr(err.text, rows[i].says)))
            fail_msg("%s: status %d, %s", rows[i].to, st, err.text);
        runner_close(&r);
        tiny_model_remove(folder);
        cJSON_Delete(config);
    }
}

/* The same of experts. */
static void test_misfit_experts(void **state)
{
#define EXPERT "0.block_sparse_moe.experts.1."
    static const struct {
        const char *from, *to, *says;
    } rows[] = {
        {EXPERT "w3.weight", EXPERT "w3.wait  ",
         "tensor model.layers.0.block_sparse_moe.experts.1.w3.weight is missing"},
        {EXPERT "w2.weight\":{\"dtype\":\"F32\",\"shape\":[48,64]",
         EXPERT "w2.weight\":{\"dtype\":\"F32\",\"shape\":[64,48]",
         "model.layers.0.block_sparse_moe.experts.1.w2.weight has the shape [64,48]"},
        {"0.block_sparse_moe.gate.weight", "0.block_sparse_moe.gates.eight",
         "tensor model.layers.0.block_sparse_moe.gate.weight is missing"},
    };
    const cJSON *config = turbod_json_get(turbod_json_get(moe, "cases")->child, "config");
    const turbo_model_vtbl *v = plugin_of(config);
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char folder[64];
        turbo_err err = {{0}};
        runner_opts o = {.isa = TURBOK_ISA_SCALAR, .threads = 1, .max_tokens = 16};
        runner r;
        cases_write(v, config, NULL, folder);
        patch(folder, rows[i].from, rows[i].to);
        turbo_status st = runner_open(&r, v, folder, &o, &err);
        if (!st || !strstr(err.text, rows[i].says))
            fail_msg("%s: status %d, %s", rows[i].to, st, err.text);
        assert_int_equal(turbok_device_mem(r.device, TURBOK_MEM_LINEAR), 0);
        runner_close(&r);
        tiny_model_remove(folder);
    }
}

/* ---- plugins of ABI 1.0 ------------------------------------------------------------------------- */

#define SPEC_OF_1_0 56

typedef struct relay {
    turbo_expect_fn emit;
    void *ctx;
} relay;

/* A tensor as a plugin of 1.0 emits it: 56 bytes, and rubbish behind them. */
static turbo_status emit_short(void *ctx, const turbo_tensor_spec *s)
{
    const relay *r = ctx;
    turbo_tensor_spec old;
    memset(&old, 0xff, sizeof old);
    memcpy(&old, s, SPEC_OF_1_0);
    old.size = SPEC_OF_1_0;
    return r->emit(r->ctx, &old);
}

static const turbo_model_vtbl *todays;

static turbo_status expect_short(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                                 void *ctx, turbo_err *err)
{
    relay r = {emit, ctx};
    return todays->expect(h, c, emit_short, &r, err);
}

static void test_short_specs(void **state)
{
    const cJSON *c = turbod_json_get(golden, "cases")->child;
    char folder[64];
    runner r;
    (void)state;
    todays = plugin_of(turbod_json_get(c, "config"));
    turbo_model_vtbl old = *todays;
    old.expect = expect_short;
    cases_write(todays, turbod_json_get(c, "config"), NULL, folder);
    assert_true(cases_open(&r, &old, folder, TURBOK_ISA_SCALAR, TURBO_F32, 16));
    runner_close(&r);
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers), cmocka_unit_test(test_published),
        cmocka_unit_test(test_bytes),        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_misfits),      cmocka_unit_test(test_misfit_experts),
        cmocka_unit_test(test_short_specs),
    };
    turbo_err err = {{0}};
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    turbod_log_level(TURBO_LOG_ERROR);
    golden = cases_load("decoder-tiny", "golden.json");
    moe = cases_load("moe-tiny", "golden.json");
    if (!golden || !moe || !plugins || turbod_registry_open(plugins, &registry, &err)) {
        printf("cannot start; TURBO_PLUGIN_PATH must name the plugins. %s\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    turbod_registry_close(registry);
    cJSON_Delete(golden);
    cJSON_Delete(moe);
    return rc;
}
