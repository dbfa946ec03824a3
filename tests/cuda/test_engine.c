/* The engine on a CUDA device against the engine on the CPU, on tiny checkpoints: logits, greedy tokens, recorded
 * steps, no memory taken after the start, nothing left behind. On the fake driver, or with TURBO_CHECK_GPU on
 * the machine's own. */
#include "on_gpu.h"

#include <math.h>

#include "internal.h"

/* Largest difference of the logits of a prompt of n tokens, and how large logits are. */
static double worst(const char *folder, const char *precision, int32_t kv, int32_t n, int32_t chunk,
                    double *size)
{
    static int32_t ids[200];
    static float want[200 * 300], got[200 * 300];
    turbo_err err = {{0}};
    turbod_engine_opts o = on_cuda(precision);
    make_prompt(ids, n, 7, 300);
    turbod_engine_opts plain = small();
    plain.kv_dtype = o.kv_dtype = kv;
    turbod_engine *cpu = open_engine(folder, plain);
    if (turbod_engine_logits(cpu, ids, n, true, want, &err))
        fail_msg("%s", err.text);
    turbod_engine_close(cpu);
    o.max_step_tokens = chunk;
    o.max_batch = chunk < o.max_batch ? chunk : o.max_batch; /* rows of a step with all logits */
    turbod_engine *e = open_engine(folder, o);
    if (turbod_engine_logits(e, ids, n, true, got, &err))
        fail_msg("%s", err.text);
    turbod_engine_close(e);
    nothing_left();
    double most = 0;
    *size = 0;
    for (int32_t i = 0; i < n * 300; i++) {
        double d = fabs((double)want[i] - (double)got[i]);
        most = d > most || isnan(d) ? d : most;
        *size = fmax(*size, fabs((double)want[i]));
    }
    return most;
}

static void test_logits(void **state)
{
    (void)state;
    char folder[64];
    double size;
    tiny_model m = random_model;
    tiny_model_write(&m, folder);
    double d = worst(folder, "f32", TURBO_F32, 70, 64, &size);
    print_message("f32: %g of %g\n", d, size);
    assert_true(d < 1e-4);
    d = worst(folder, "bf16", TURBO_F32, 33, 16, &size);
    print_message("bf16: %g of %g\n", d, size);
    assert_true(d < 2e-2 * size);
    d = worst(folder, "f16", TURBO_F32, 33, 16, &size);
    print_message("f16: %g of %g\n", d, size);
    assert_true(d < 4e-3 * size);
    tiny_model_remove(folder);
}

/* With `deterministic` the bits of a token are those that it has alone, however many come with it. */
static void test_deterministic(void **state)
{
    (void)state;
    enum { TOKENS = 40 };
    static const int32_t chunks[] = {1, 7, 64};
    static float logits[3][TOKENS * 300];
    char folder[64];
    tiny_model m = random_model;
    m.bf16 = 1;
    tiny_model_write(&m, folder);
    const long wide = fake.handle ? fake.launched("gemm_wide") : 0,
               plain = fake.handle ? fake.launched("gemm_any") : 0;
    for (int i = 0; i < 3; i++) {
        turbod_engine_opts o = on_cuda("bf16");
        o.deterministic = true;
        logits_of(folder, o, TOKENS, chunks[i], 300, logits[i]);
        assert_memory_equal(logits[0], logits[i], sizeof logits[0]);
    }
    if (fake.handle) /* all dense products */
        assert_true(fake.launched("gemm_wide") > wide && fake.launched("gemm_any") == plain);
    tiny_model_remove(folder);
}

/* Heads of 128 dims and many rows: the product turns them and fills the cache, with the bits of both apart. */
static void test_turned(void **state)
{
    (void)state;
    enum { TOKENS = 280 };
    static const int32_t chunks[] = {64, TOKENS};
    static float logits[2][TOKENS * 300];
    char folder[64];
    tiny_model m = random_model;
    m.bf16 = 1;
    m.embed = 256, m.heads = 2, m.kv_heads = 1, m.inner = 64, m.layers = 1;
    tiny_model_write(&m, folder);
    for (int i = 0; i < 2; i++) {
        turbod_engine_opts o = on_cuda("bf16");
        const long apart = fake.handle ? fake.launched("rope") : 0;
        o.deterministic = true;
        logits_kept(folder, o, TOKENS, chunks[i], 300, TURBO_BF16, logits[i]);
        if (fake.handle)
            assert_int_equal(fake.launched("rope") > apart, !i);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    tiny_model_remove(folder);
}

/* The same with quantised keys and values, in pieces of a prompt and one token after the other, which other
 * kernels compute. In f32 the codes are the CPU's; in bf16 a number that is rounded otherwise can get the next
 * code, so the bound is that of the type. */
static void test_coded_cache(void **state)
{
    static const struct {
        const char *precision;
        int32_t kv, chunk;
        double bound; /* of the largest logit */
    } rows[] = {{"f32", TURBOK_KV_INT8, 1, 2e-5},  {"f32", TURBOK_KV_INT4, 1, 2e-5},
                {"f32", TURBOK_KV_INT8, 16, 2e-5}, {"f32", TURBOK_KV_INT4, 16, 2e-5},
                {"bf16", TURBOK_KV_INT8, 1, 2e-2}, {"bf16", TURBOK_KV_INT8, 16, 2e-2}};
    char folder[64];
    (void)state;
    tiny_model_write(&random_model, folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double size, d = worst(folder, rows[i].precision, rows[i].kv, 17, rows[i].chunk, &size);
        print_message("%s, %s, %d at a time: %g of %g\n", rows[i].precision,
                      turbok_kv_type_name(rows[i].kv), rows[i].chunk, d, size);
        assert_true(d < rows[i].bound * size);
    }
    tiny_model_remove(folder);
}

/* Greedy answers of requests that come and go are those of the CPU. */
static void test_tokens(void **state)
{
    (void)state;
    char folder[64];
    int32_t prompts[7][40];
    static result want[7], got[7];
    turbo_sample_params p = greedy();
    tiny_model_write(&random_model, folder);
    for (int i = 0; i < 7; i++)
        make_prompt(prompts[i], 40, (uint32_t)i, 300);
    turbod_engine *e = open_engine(folder, small());
    for (int i = 0; i < 7; i++) {
        start(e, &want[i], prompts[i], 3 + 5 * i, 12 + i, &p);
        finish(&want[i]);
    }
    turbod_engine_close(e);
    e = open_engine(folder, on_cuda("f32"));
    as_planned(e);
    long taken = fake.handle ? fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc") : 0;
    for (int round = 0; round < 2; round++) { /* the second one replays, and finds cached prompts */
        for (int i = 0; i < 7; i++)
            start(e, &got[i], prompts[i], 3 + 5 * i, 12 + i, &p);
        for (int i = 0; i < 7; i++) {
            finish(&got[i]);
            assert_int_equal(got[i].n, want[i].n);
            assert_memory_equal(got[i].ids, want[i].ids, (size_t)want[i].n * sizeof(int32_t));
        }
    }
    all_blocks_back(e);
    if (fake.handle) {
        assert_true(fake.calls("cuGraphLaunch") > 0);
        assert_true(fake.calls("cuGraphInstantiateWithFlags") < fake.calls("cuGraphLaunch"));
        assert_int_equal(fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc"), taken);
    }
    turbod_engine_close(e);
    nothing_left();
    tiny_model_remove(folder);
}

/* The time between recorded steps, where it is asked for: one between each two, and none otherwise. */
static void test_gaps(void **state)
{
    static result got;
    char folder[64];
    int32_t prompt[8];
    const float *us;
    turbo_sample_params p = greedy();
    (void)state;
    tiny_model_write(&random_model, folder);
    make_prompt(prompt, 8, 3, 300);
    for (int asked = 0; asked < 2; asked++) {
        if (asked)
            setenv("TURBO_CUDA_GAPS", "1", 1);
        turbod_engine *e = open_engine(folder, on_cuda("f32"));
        unsetenv("TURBO_CUDA_GAPS");
        start(e, &got, prompt, 8, 16, &p);
        finish(&got);
        all_blocks_back(e);
        int32_t n = turbod_engine_gaps(e, &us);
        assert_in_range(n, asked ? 8 : 0, asked ? 15 : 0);
        for (int32_t i = 0; i < n; i++)
            assert_true(fake.handle ? us[i] == 1000.0f : us[i] >= 0 && us[i] < 1e6f);
        turbod_engine_close(e);
        nothing_left();
    }
    tiny_model_remove(folder);
}

/* A card that is only described plans what an engine on it plans, and takes: all kinds, to the byte. */
static void test_described(void **state)
{
    static const shape rows[] = {
        {"f32", "", -1, 16, 64, 0.3},
        {"bf16", "", TURBO_BF16, 3, 200, 0.9},
        {"f16", "int8", TURBOK_KV_INT8, 7, 33, 1e-2},
    };
    char folder[64];
    const char *named = getenv("TURBO_CUDA_DRIVER");
    char *driver = strdup(named ? named : "");
    (void)state;
    tiny_model_write(&random_model, folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_engine_opts o = shaped(&rows[i]);
        turbod_engine *e = open_engine(folder, o);
        const turbok_card card = card_of(e);
        turbod_plan p;
        as_planned(e);
        o.model_dir = folder;
        setenv("TURBO_CUDA_DRIVER", "/nonexistent", 1); /* it is not looked for */
        plan_on(&card, e, &o, &p);
        setenv("TURBO_CUDA_DRIVER", driver, 1);
        taken_as(&p, e, TURBOD_MEM_KINDS);
        assert_int_equal(p.blocks, turbod_engine_facts_of(e)->plan.blocks);
        assert_int_equal(p.session_len, turbod_engine_facts_of(e)->plan.session_len);
        turbod_engine_close(e);
        nothing_left();
    }
    free(driver);
    tiny_model_remove(folder);
}

/* Tokens of answers that grow from short to long, alone and beside a long one, are those without attention by clusters. */
static void test_brief(void **state)
{
    (void)state;
    enum { SHORT = 512, NEW = 24 };
    static const char *const together[2] = {"0", "1"}; /* times SHORT keys */
    static const int32_t lens[2][2] = {{SHORT - 7, 0}, {20, SHORT - 7}};
    static int32_t prompts[2][SHORT];
    static result got[2][2];
    char folder[64];
    tiny_model m = random_model;
    m.bf16 = 1;
    m.max_position = 2 * SHORT;
    tiny_model_write(&m, folder);
    turbo_sample_params p = greedy();
    for (int i = 0; i < 2; i++)
        make_prompt(prompts[i], SHORT, (uint32_t)i + 3, 300);
    setenv("FAKECUDA_SMS", "132", 1); /* fewer have no clusters for all heads */
    for (int k = 0; k < 2; k++) {
        for (int t = 0; t < 2; t++) {
            const long before = fake.handle ? fake.launched("brief") : 0;
            setenv("TURBO_CUDA_TOGETHER", together[t], 1);
            turbod_engine_opts o = on_cuda("bf16");
            o.kv_dtype = TURBO_BF16;
            o.cache_bytes = 16 << 20;
            turbod_engine *e = open_engine(folder, o);
            as_planned(e);
            for (int i = 0; i <= k; i++)
                start(e, &got[t][i], prompts[i], lens[k][i], NEW, &p);
            for (int i = 0; i <= k; i++)
                finish(&got[t][i]);
            turbod_engine_close(e);
            if (fake.handle)
                assert_int_equal(fake.launched("brief") > before, t);
        }
        for (int i = 0; i <= k; i++) {
            assert_int_equal(got[1][i].n, NEW);
            assert_memory_equal(got[0][i].ids, got[1][i].ids, NEW * sizeof(int32_t));
        }
    }
    unsetenv("TURBO_CUDA_TOGETHER");
    unsetenv("FAKECUDA_SMS");
    nothing_left();
    tiny_model_remove(folder);
}

/* Steps of one and two tokens have the bits they have with every norm as a kernel of its own, of which there are fewer. */
static void test_fused(void **state)
{
    static const struct {
        const char *quantize;
        int32_t chunk;
    } rows[] = {{"", 1}, {"", 2}, {"int4", 1}};
    static const char *const widths[2] = {"2147483647", "1"};
    static float got[2][20 * 300];
    char folder[64];
    (void)state;
    tiny_model m = random_model;
    m.bf16 = 1; /* products of mixed types are another kernel's */
    tiny_model_write(&m, folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        long norms[2] = {0, 0};
        for (int fused = 0; fused < 2; fused++) {
            turbod_engine_opts o = on_cuda("bf16");
            o.quantize = rows[i].quantize;
            setenv("TURBO_CUDA_FUSE", widths[fused], 1);
            norms[fused] -= fake.handle ? fake.launched("rmsnorm") : 0;
            logits_of(folder, o, 20, rows[i].chunk, 300, got[fused]);
            norms[fused] += fake.handle ? fake.launched("rmsnorm") : 0;
        }
        assert_memory_equal(got[0], got[1], sizeof got[0]);
        if (fake.handle) /* the first of a step has no product before it that could add */
            assert_true(norms[0] >= 5 * 20 / rows[i].chunk && norms[1] * 2 < norms[0]);
    }
    tiny_model_remove(folder);
}

/* Room for n numbers on the device that are `from`: memory of a matrix. */
static turbo_linear *numbers(turbok_device *d, const uint16_t *from, int64_t rows, int64_t n)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    if (turbok_linear_new(d, TURBO_BF16, from, rows, n, NULL, TURBO_F32, 0, &w, &err))
        fail_msg("%s", err.text);
    return w;
}

/* A sum behind a product of the very rows that it is added to: all of them are read before one is changed. */
static void test_sum_on_itself(void **state)
{
    enum { E = 256 };
    static const char *const widths[2] = {"2147483647", "1"};
    static uint16_t w[E * E], h[E], got[2][E];
    static float ones[E];
    (void)state;
    for (uint32_t i = 0; i < E * E; i++)
        w[i] = (uint16_t)(0x3d00 + i * 2654435761u % 100 + (i % 3 ? 0x8000u : 0));
    for (uint32_t i = 0; i < E; i++)
        h[i] = (uint16_t)(0x3f80 + i * 40503u % 90), ones[i] = 1;
    for (int fused = 0; fused < 2; fused++) {
        turbok_device_opts o = {.on = TURBOK_ON_CUDA,
                                .path = turbod_backend_path(),
                                .act_dtype = TURBO_BF16,
                                .threads = 2,
                                .spin_us = -1};
        turbok_device *d = NULL;
        turbo_vector *norm = NULL;
        turbo_err err = {{0}};
        setenv("TURBO_CUDA_FUSE", widths[fused], 1);
        if (turbok_device_open(&o, &d, &err) ||
            turbok_vector_new(d, TURBO_F32, ones, E, &norm, &err))
            fail_msg("%s", err.text);
        turbo_linear *m = numbers(d, w, E, E), *rows = numbers(d, h, 1, E);
        turbo_linear *sum = numbers(d, h, 1, E), *out = numbers(d, h, 1, E);
        const turbo_ops *ops = turbok_device_ops(d);
        turbo_exec *x = turbok_device_exec(d);
        ops->linear(x, m, rows->data, 1, sum->data);
        ops->rmsnorm(x, rows->data, sum->data, norm, 1e-5f, 1, E, out->data);
        d->backend->block_read(d, got[fused], rows->data, sizeof got[0]);
        turbok_vector_free(d, norm);
        turbok_linear_free(d, m), turbok_linear_free(d, rows);
        turbok_linear_free(d, sum), turbok_linear_free(d, out);
        turbok_device_close(d);
    }
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    assert_true(memcmp(got[0], h, sizeof h) != 0);
    nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),    cmocka_unit_test(test_coded_cache),
        cmocka_unit_test(test_tokens),    cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_described), cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_turned),    cmocka_unit_test(test_fused),
        cmocka_unit_test(test_brief),     cmocka_unit_test(test_sum_on_itself),
    };
    setenv("TURBO_CUDA_FUSE", "1",
           1); /* norms of rows as narrow as these, too, become parts of products */
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
