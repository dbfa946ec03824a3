/* Quantised matrices on a CUDA device: models of every format, quantising while loading, matrices of parts of
 * several kinds, tables of embeddings, what is refused. On the fake driver, or with TURBO_CHECK_GPU on the
 * machine's own. The CPU quantises activations, CUDA does not, so what CUDA computes is compared with the CPU on
 * the numbers that the codes stand for, in fp32. */
#include "on_gpu.h"

#include "cuda/state.h"
#include "internal.h"
#include "model/quant_folder.h"
#include "model/runner.h"
#include "util/log.h"

#define TOKENS 12
#define VOCAB 96

static const char llama[] =
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":96,"
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":1,\"num_attention_heads\":"
    "4,\"num_key_value_heads\":2,\"max_position_embeddings\":128,\"torch_dtype\":\"float32\"";
static const char internlm2[] =
    "\"architectures\":[\"InternLM2ForCausalLM\"],\"model_type\":\"internlm2\",\"vocab_size\":96,"
    "\"hidden_size\":64,\"intermediate_size\":128,\"num_hidden_layers\":1,\"num_attention_heads\":"
    "4,\"num_key_value_heads\":2,\"max_position_embeddings\":128,\"torch_dtype\":\"float32\","
    "\"bias\":false";

/* Activations and the numbers of tables are rounded: by how much layers of noise enlarge that, the same numbers
 * unquantised say. */
static void in_16_bits(const char *quantised, const char *plain, bool bf16, const float *want)
{
    static float got[TOKENS * VOCAB];
    int32_t chunk = bf16 ? 6 : TOKENS; /* kernels for few rows, and for many */
    turbod_engine_opts o = on_cuda(bf16 ? "bf16" : "f16");
    logits_of(plain, o, TOKENS, chunk, VOCAB, got);
    double dense = relative(got, want, TOKENS * VOCAB);
    logits_of(quantised, o, TOKENS, chunk, VOCAB, got);
    double off = relative(got, want, TOKENS * VOCAB);
    print_message("    %s %.2e, not quantised %.2e\n", o.device_precision, off, dense);
    assert_true(off < 2 * dense);
}

/* Every format. In f32 nothing is rounded but sums. */
static void test_formats(void **state)
{
    static float got[TOKENS * VOCAB], want[TOKENS * VOCAB];
    (void)state;
    for (int i = 0; i < n_quant_cases; i++) {
        char quantised[64], plain[64];
        bool packed = i % 4 == 3; /* of q, k and v, as the file has them */
        quant_folders(registry, packed ? internlm2 : llama, &quant_cases[i], quantised, plain);
        logits_of(plain, small(), TOKENS, TOKENS, VOCAB, want);
        logits_of(quantised, on_cuda("f32"), TOKENS, TOKENS, VOCAB, got);
        double off = relative(got, want, TOKENS * VOCAB);
        assert_true(off < 1e-5);
        print_message("%s: f32 %.2e\n", quant_cases[i].name, off);
        if (i % 3 == 0 || i == 11) /* a case of each kind of codes */
            in_16_bits(quantised, plain, i % 2, want);
        quant_folder_remove(quantised);
        quant_folder_remove(plain);
    }
}

/* Greedy answers are those of the numbers on the CPU; steps are recorded and replayed, nothing is allocated. */
static void test_tokens(void **state)
{
    static const int which[] = {0, 4, 6}; /* 4 bits, 4 bits with orders of inputs, 8 bits */
    static result want[3], got[3];
    int32_t prompts[3][30];
    turbo_sample_params p = greedy();
    (void)state;
    for (int i = 0; i < 3; i++)
        make_prompt(prompts[i], 30, (uint32_t)i, VOCAB);
    for (size_t k = 0; k < sizeof which / sizeof which[0]; k++) {
        char quantised[64], plain[64];
        quant_folders(registry, llama, &quant_cases[which[k]], quantised, plain);
        for (int on = 0; on < 2; on++) {
            turbod_engine *e = open_engine(on ? quantised : plain, on ? on_cuda("f32") : small());
            result *r = on ? got : want;
            as_planned(e);
            long taken =
                fake.handle ? fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc") : 0;
            for (int i = 0; i < 3; i++)
                start(e, &r[i], prompts[i], 3 + 5 * i, 8 + i, &p);
            for (int i = 0; i < 3; i++)
                finish(&r[i]);
            all_blocks_back(e);
            if (fake.handle && on) {
                assert_true(fake.calls("cuGraphInstantiateWithFlags") <
                            fake.calls("cuGraphLaunch"));
                assert_int_equal(fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc"), taken);
            }
            turbod_engine_close(e);
            nothing_left();
        }
        for (int i = 0; i < 3; i++) {
            assert_int_equal(got[i].n, want[i].n);
            assert_memory_equal(got[i].ids, want[i].ids, (size_t)want[i].n * sizeof(int32_t));
        }
        quant_folder_remove(quantised);
        quant_folder_remove(plain);
    }
}

/* The runner multiplies the same codes as fp32. */
static void exact_logits(const char *folder, const char *quantize, int vocab, float *out)
{
    runner r;
    turbo_err err = {{0}};
    turbo_config *c = NULL;
    const turbo_model_vtbl *v = NULL;
    runner_opts o = {.threads = 2,
                     .kv_dtype = TURBO_F32,
                     .max_tokens = TOKENS,
                     .quantize = quantize,
                     .exact = true};
    int32_t ids[TOKENS];
    make_prompt(ids, TOKENS, 7, vocab);
    if (turbod_config_open(folder, &c, &err) || turbod_registry_model_for(registry, c, &v, &err) ||
        runner_open(&r, v, folder, &o, &err) ||
        runner_step(&r, ids, TOKENS, TOKENS, TOKENS, out, &err))
        fail_msg("%s", err.text);
    turbod_config_close(c);
    runner_close(&r);
}

static void test_online(void **state)
{
    static float got[TOKENS * 300], want[TOKENS * 300];
    (void)state;
    for (int i = 0; i < 2; i++) {
        char folder[64];
        const char *quantize = i ? "int8" : "int4";
        tiny_model m = random_model;
        m.bias = i;
        tiny_model_write(&m, folder);
        exact_logits(folder, quantize, 300, want);
        turbod_engine_opts o = on_cuda("f32");
        o.quantize = quantize;
        logits_of(folder, o, TOKENS, TOKENS, 300, got);
        double off = relative(got, want, TOKENS * 300);
        print_message("%s while loading: %.2e\n", quantize, off);
        assert_true(off < 1e-5);
        tiny_model_remove(folder);
    }
}

/* ---- matrices of a device --------------------------------------------------------------------------------- */

typedef struct numbers {
    turbok_grid g;
    uint8_t codes[64 * 64], zero[64 * 4];
    float scale[64 * 4], min[64 * 4], table[256], bias[64];
    int32_t perm[64];
} numbers;

static uint32_t seed = 99;

static uint32_t noise(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

static float small_number(void)
{
    return (float)(noise() >> 8) * 0x1p-24f - 0.5f;
}

enum { ZERO = 1, MIN = 2, TABLE = 4, PERM = 8 };

/* At most 64 rows of 64 inputs. */
static turbok_part make_part(numbers *m, int64_t rows, int bits, int group, unsigned has, bool bias)
{
    for (size_t i = 0; i < sizeof m->codes; i++)
        m->codes[i] = (uint8_t)noise();
    for (int i = 0; i < 64 * 4; i++) {
        m->zero[i] = (uint8_t)(noise() % 16);
        m->scale[i] = 0.1f + small_number() * 0.1f;
        m->min[i] = small_number();
        m->table[i] = small_number();
    }
    for (int i = 0; i < 64; i++) {
        m->bias[i] = small_number();
        m->perm[i] = (i * 37 + 5) % 64;
    }
    m->g = (turbok_grid){.bits = bits,
                         .group = group,
                         .scale_dtype = TURBO_F32,
                         .offset = bits == 8 ? 128 : 8,
                         .codes = m->codes,
                         .scale = m->scale,
                         .zero = has & ZERO ? m->zero : NULL,
                         .min = has & MIN ? m->min : NULL,
                         .table = has & TABLE ? m->table : NULL,
                         .perm = has & PERM ? m->perm : NULL};
    return (turbok_part){.rows = rows, .grid = &m->g, .bias = bias ? m->bias : NULL};
}

static void *to_device(turbok_device *d, const void *from, size_t bytes)
{
    void *p = turbok_space_new(d, bytes);
    assert_non_null(p);
    if (from)
        d->backend->upload(d, p, from, bytes);
    return p;
}

/* y [T,out] of the device is x W^T + bias, to the rounding of fp32 sums. */
static void same_product(turbok_device *d, const turbo_linear *w, const turbok_part *parts,
                         int32_t n, int64_t in, int32_t T)
{
    size_t out = (size_t)turbok_linear_out(w), wide = (size_t)in;
    float *x = calloc((size_t)T * wide, sizeof *x), *y = calloc((size_t)T * out, sizeof *y);
    float *row = calloc(wide, sizeof *row);
    for (size_t i = 0; i < (size_t)T * wide; i++)
        x[i] = small_number();
    void *dx = to_device(d, x, (size_t)T * wide * sizeof *x);
    void *dy = to_device(d, NULL, (size_t)T * out * sizeof *y);
    turbok_device_ops(d)->linear(turbok_device_exec(d), w, dx, T, dy);
    d->backend->block_read(d, y, dy, (size_t)T * out * sizeof *y);
    size_t o = 0;
    for (int32_t p = 0; p < n; p++)
        for (int64_t r = 0; r < parts[p].rows; r++, o++) {
            turbok_grid_row(parts[p].grid, r, in, row);
            for (int32_t t = 0; t < T; t++) {
                double want = parts[p].bias ? (double)((const float *)parts[p].bias)[r] : 0;
                double size = fabs(want);
                for (size_t k = 0; k < wide; k++) {
                    double v = (double)row[k] * (double)x[(size_t)t * wide + k];
                    want += v;
                    size += fabs(v);
                }
                double got = (double)y[(size_t)t * out + o];
                if (!(fabs(got - want) <= 1e-30 + size * 0x1p-24 * ((double)in / 4 + 4)))
                    fail_msg("row %zu of token %d is %.9g, not %.9g", o, t, got, want);
            }
        }
    assert_int_equal(o, out);
    turbok_space_free(d, dx, (size_t)T * wide * sizeof *x);
    turbok_space_free(d, dy, (size_t)T * out * sizeof *y);
    free(x);
    free(y);
    free(row);
}

/* Parts of one kind, of several, and such that end within a tile. */
static void test_parts(void **state)
{
    static numbers m[6];
    turbok_device *d = open_device();
    turbo_err err = {{0}};
    const turbok_part parts[] = {
        make_part(&m[0], 32, 8, 16, 0, true),    make_part(&m[1], 24, 8, 16, 0, true),
        make_part(&m[2], 19, 8, 16, 0, false),   make_part(&m[3], 17, 4, 32, ZERO, true),
        make_part(&m[4], 33, 4, 16, MIN, false), make_part(&m[5], 21, 4, 64, ZERO | PERM, true),
    };
    (void)state;
    for (int32_t from = 0; from < 6; from++)
        for (int32_t n = 1; n <= 6 - from; n++) {
            turbo_linear *w = NULL;
            uint64_t bytes = turbok_linear_rows_bytes(d, TURBO_F32, parts + from, n, 64, 0, &err);
            if (turbok_linear_rows_new(d, TURBO_F32, parts + from, n, 64, 0, &w, &err))
                fail_msg("%s", err.text);
            assert_true(bytes > 0);
            assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), bytes);
            same_product(d, w, parts + from, n, 64, 1 + n * 3);
            turbok_linear_free(d, w);
            assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), 0);
        }
    turbok_device_close(d);
    nothing_left();
}

/* A matrix that is larger than a pinned buffer, in two parts. */
static void test_large(void **state)
{
    enum { IN = 1024, ROWS = 9008 };
    turbok_device *d = open_device();
    turbo_err err = {{0}};
    turbo_linear *w = NULL;
    uint8_t *codes = malloc((size_t)IN * ROWS);
    uint16_t *scale = malloc(ROWS * 2);
    (void)state;
    assert_non_null(codes);
    assert_non_null(scale);
    for (size_t i = 0; i < (size_t)IN * ROWS; i++)
        codes[i] = (uint8_t)noise();
    for (size_t i = 0; i < ROWS; i++)
        scale[i] = (uint16_t)(0x3c00 + noise() % 256);
    turbok_grid g[2] = {{.bits = 8,
                         .group = IN,
                         .scale_dtype = TURBO_BF16,
                         .offset = 128,
                         .codes = codes,
                         .scale = scale}};
    g[1] = g[0];
    g[1].codes = codes + (size_t)IN * 8400;
    g[1].scale = scale + 8400;
    const turbok_part parts[2] = {{.rows = 8400, .grid = &g[0]},
                                  {.rows = ROWS - 8400, .grid = &g[1]}};
    if (turbok_linear_rows_new(d, TURBO_F32, parts, 2, IN, 0, &w, &err))
        fail_msg("%s", err.text);
    same_product(d, w, parts, 2, IN, 1);
    turbok_linear_free(d, w);
    turbok_device_close(d);
    nothing_left();
    free(codes);
    free(scale);
}

/* Rows of a quantised table are the numbers to the bit, also of tokens that a row of the step before has drawn, and rows
 * of pictures go over them. */
static void test_table(void **state)
{
    static numbers m;
    turbok_device *d = open_device();
    turbok_kv_dims dims = {1, 1, 16, 16, TURBO_F32};
    turbok_kv_pool *pool = NULL;
    turbok_kv_table table;
    turbo_err err = {{0}};
    turbo_linear *w = NULL;
    const turbok_part part = make_part(&m, 50, 8, 16, MIN, false);
    const int32_t tokens[7] = {49, 0, 3, 3, 0, 0, 17}, positions[7] = {0, 1, 2, 3, 4, 5, 6};
    const int32_t waited[7] = {49, ~0, ~1, 3, 0, 0, ~2}, drawn[3] = {0, 3, 17};
    const int32_t cu[2] = {0, 7}, len = 7, rows = 6, at[7] = {-1, -1, 2, 3, 0, -1, -1};
    float pictures[4 * 64], want[64], got[7 * 64];
    (void)state;
    for (int i = 0; i < 4 * 64; i++)
        pictures[i] = small_number();
    if (turbok_linear_rows_new(d, TURBO_F32, &part, 1, 64, TURBO_LINEAR_TABLE, &w, &err) ||
        turbok_kv_pool_new(d, &dims, 4, &pool, &err) ||
        turbok_kv_table_init(&table, pool, 64, &err))
        fail_msg("%s", err.text);
    assert_true(turbok_kv_table_reserve(&table, pool, 7));
    void *out = to_device(d, NULL, sizeof got), *dp = to_device(d, pictures, sizeof pictures);
    turbok_kv_table *tables[1] = {&table};
    struct turbo_kv kv = {pool, tables};
    turbo_batch b = {.size = sizeof b,
                     .n_tokens = 7,
                     .n_seqs = 1,
                     .n_rows = 1,
                     .tokens = tokens,
                     .positions = positions,
                     .cu_seqlens = cu,
                     .kv_lens = &len,
                     .rope_lens = &len,
                     .row_index = &rows,
                     .kv = &kv};
    const turbok_cuda *s = d->exec.self;
    d->backend->block_write(d, s->draw, drawn, sizeof drawn);
    for (int with = 0; with < 3; with++) {
        turbo_batch as;
        bool replay;
        b.tokens = with == 2 ? waited : tokens;
        b.embed_rows = with ? dp : NULL;
        b.embed_index = with ? at : NULL;
        assert_int_equal(turbok_step_begin(d, &b, NULL, &as, &replay, &err), 0);
        turbok_device_ops(d)->embed(turbok_device_exec(d), w, &as, out);
        assert_int_equal(turbok_step_end(d, NULL, NULL, 0, NULL, &err), 0);
        assert_int_equal(turbok_step_wait(d, NULL, 0, &err), 0);
        d->backend->block_read(d, got, out, sizeof got);
        for (int t = 0; t < 7; t++) {
            turbok_grid_row(&m.g, tokens[t], 64, want);
            const float *row = with && at[t] >= 0 ? pictures + at[t] * 64 : want;
            assert_memory_equal(got + t * 64, row, sizeof want);
        }
    }
    turbok_space_free(d, out, sizeof got);
    turbok_space_free(d, dp, sizeof pictures);
    turbok_kv_table_free(&table, pool);
    turbok_kv_pool_free(pool);
    turbok_linear_free(d, w);
    turbok_device_close(d);
    nothing_left();
}

static void refused(turbok_device *d, const turbok_part *parts, int32_t n, int64_t in,
                    uint32_t flags, turbo_status want, const char *words)
{
    turbo_err err = {{0}};
    turbo_linear *w = NULL;
    if (want == TURBO_EUNSUPPORTED) { /* known before anything is read */
        assert_int_equal(turbok_linear_rows_bytes(d, TURBO_F32, parts, n, in, flags, &err), 0);
        assert_non_null(strstr(err.text, words));
    }
    assert_int_equal(turbok_linear_rows_new(d, TURBO_F32, parts, n, in, flags, &w, &err), want);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), 0);
}

static void test_refused(void **state)
{
    static numbers m[2];
    static float dense[64 * 64];
    turbok_device *d = open_device();
    turbok_part parts[2] = {make_part(&m[0], 32, 4, 32, ZERO, false), {.rows = 8, .data = dense}};
    (void)state;
    refused(d, parts, 2, 64, 0, TURBO_EUNSUPPORTED, "quantize = \"int8\"");
    refused(d, parts, 1, 24, 0, TURBO_EUNSUPPORTED, "device = \"cpu\"");
    m[0].g.group = 24;
    refused(d, parts, 1, 24, 0, TURBO_EUNSUPPORTED, "groups of 24");
    m[0].g.group = 32;
    refused(d, parts, 1, 1 << 20, 0, TURBO_EUNSUPPORTED, "unquantised weights");
    parts[1] = make_part(&m[1], 16, 8, 32, 0, false);
    refused(d, parts, 2, 64, TURBO_LINEAR_TABLE, TURBO_EUNSUPPORTED, "several ways");
    m[0].zero[37] = 128;
    refused(d, parts, 1, 64, 0, TURBO_EDATA, "zero point");
    m[1].scale[9] = NAN;
    refused(d, parts + 1, 1, 64, 0, TURBO_EDATA, "row 4");
    parts[1] = make_part(&m[1], 16, 8, 32, PERM, false);
    m[1].perm[3] = m[1].perm[4];
    refused(d, parts + 1, 1, 64, 0, TURBO_EDATA, "no permutation");
    turbok_device_close(d);
    nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats), cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_online),  cmocka_unit_test(test_parts),
        cmocka_unit_test(test_large),   cmocka_unit_test(test_table),
        cmocka_unit_test(test_refused),
    };
    turbod_log_level(TURBO_LOG_ERROR);
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
