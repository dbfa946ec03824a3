/* The memory plan: its arithmetic against figures worked out by hand, the law used = B + r F, and an
 * engine that must take exactly what was planned, kind by kind. */
#include "engine_kit.h"

#include <math.h>

#include "plan/plan.h"
#include "plan/roof.h"

#define MIB (UINT64_C(1) << 20)
#define FIXTURES "tests/golden/plan/"

/* ---- the arithmetic, on a model that asks for round figures ------------------------------------------ */

static uint64_t fixed_workspace;

static uint64_t workspace_of_fixed(const turbo_model_info *info, int32_t T, int32_t R, int32_t act)
{
    (void)info, (void)T, (void)R, (void)act;
    return fixed_workspace;
}

static const turbo_model_vtbl fixed = {.size = sizeof fixed,
                                       .id = "fixed",
                                       .workspace = workspace_of_fixed};

/* 24 layers, 8 KV heads of 128, 16 bits: 98,304 bytes a token, 6 MiB a block of 64. */
static const turbo_model_info shape = {
    .size = sizeof shape,
    .n_layers = 24,
    .n_heads = 16,
    .n_kv = 8,
    .head_dim = 128,
    .embed_dim = 2048,
    .mlp_dim = 8192,
    .vocab = 92544,
    .max_position = 32768,
    .dtype = TURBO_F16,
};

/* Everything but KV sums up to B bytes; F bytes are free beside it. */
static turbod_plan_in input(turbod_weights_sums *w, uint64_t B, uint64_t F, double r)
{
    turbo_err err;
    turbod_plan p;
    *w = (turbod_weights_sums){0};
    turbod_plan_in in = {
        .info = &shape,
        .vtbl = &fixed,
        .weights = w,
        .threads = 1,
        .cache_fraction = r,
        .kv = {.block_tokens = 64, .dtype = -1},
        .max_batch = 16,
        .max_step_tokens = 256,
        .prefix_caching = true,
        .vacant = UINT64_MAX / 2,
    };
    fixed_workspace = 506 * MIB;
    assert_int_equal(turbod_plan_make(&in, &p, &err), 0);
    assert_true(p.fixed < B);
    w->linear = B - p.fixed;
    in.vacant = B + F;
    return in;
}

static void test_law(void **state)
{
    static const double ratios[] = {0.8, 0.5, 0.4, 0.01, 1};
    (void)state;
    for (uint64_t F = 700 * MIB + 12345; F < 30000 * MIB; F = F * 17 / 16 + 4097)
        for (size_t i = 0; i < 5; i++) {
            turbod_weights_sums w;
            turbod_plan p;
            turbo_err err = {{0}};
            turbod_plan_in in = input(&w, 4528 * MIB, F, ratios[i]);
            if (turbod_plan_make(&in, &p, &err))
                fail_msg("%s", err.text);
            assert_int_equal(p.block_bytes, 6 * MIB);
            assert_true(turbod_plan_token_bytes(&p) == 98304);
            assert_int_equal(p.fixed, 4528 * MIB);
            assert_int_equal(p.left, F);
            double rF = (double)F * ratios[i], used = (double)p.total - (double)p.fixed;
            assert_true(used < rF + (double)p.block_bytes && used > rF - (double)p.block_bytes);
            assert_true(p.total <= in.vacant);
            if (ratios[i] < 1) /* and to the block: nothing else keeps blocks out */
                assert_int_equal(p.blocks, (int64_t)(rF / (double)(6 * MIB)));
        }
}

/* The figures that the lesson reports for LMDeploy on 8182 MiB: B = 4528, F = 4160 in fp16, and with W4A16
 * 2115 MiB less in B and more in F (reference: its memory section). Within a block of 6 MiB. */
static void test_lesson_memory(void **state)
{
    static const struct {
        uint64_t B, F;
        double r, used;
    } rows[] = {
        {4528, 4160, 0.8, 7856}, {4528, 4160, 0.5, 6608}, {4528, 4160, 0.01, 4560},
        {4528, 4160, 0.4, 6192}, {2413, 6275, 0.4, 4923}, {2413, 6275, 0.01, 2472},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_weights_sums w;
        turbod_plan p;
        turbo_err err = {{0}};
        turbod_plan_in in = input(&w, rows[i].B * MIB, rows[i].F * MIB, rows[i].r);
        if (turbod_plan_make(&in, &p, &err))
            fail_msg("%s", err.text);
        double used = (double)p.total / (double)MIB;
        assert_true(used > rows[i].used - 6 && used < rows[i].used + 6);
    }
}

static void refused(turbod_plan_in in, turbo_status status, const char *words)
{
    turbod_plan p;
    turbo_err err = {{0}};
    assert_int_equal(turbod_plan_make(&in, &p, &err), status);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

static void test_refusals(void **state)
{
    turbod_weights_sums w;
    turbod_plan_in good = input(&w, 4528 * MIB, 4160 * MIB, 0.8), in = good;
    (void)state;
    in.vacant = 4100 * MIB;
    refused(in, TURBO_ENOMEM,
            "needs 4.4 GiB before any KV cache, 4.0 GiB are free: lower max_batch");
    in.vacant = 2000 * MIB;
    refused(in, TURBO_ENOMEM, "2.0 GiB are free: use a smaller");
    in.vacant = 40 * MIB;
    refused(in, TURBO_ENOMEM,
            "needs 4.4 GiB before any KV cache, 40.0 MiB are free: use a smaller");
    in = good;
    in.cache_bytes = 5000 * MIB;
    refused(in, TURBO_ENOMEM, "asks for 4.9 GiB, 4.1 GiB are free");
    in = input(&w, 4528 * MIB, 20 * MIB, 0.8);
    in.cache_bytes = 1000 * MIB;
    refused(in, TURBO_ENOMEM, "asks for 1000.0 MiB, 20.0 MiB are free");
    in = good;
    in.cache_fraction = 0.001; /* 4.16 MiB */
    refused(in, TURBO_ENOMEM, "at least 6.0 MiB for one block, 4.2 MiB are allowed");
    in.cache_fraction = (double)NAN;
    refused(in, TURBO_EINVAL, "cache_max_entry_count is nan");
    in.cache_fraction = 0;
    refused(in, TURBO_EINVAL, "a fraction above 0");
    in.cache_fraction = 1.01;
    refused(in, TURBO_EINVAL, "at most 1");
    in = good;
    in.session_len = 40000; /* 625 blocks, 554 fit */
    refused(in, TURBO_ENOMEM,
            "needs 3.7 GiB of KV cache, 3.2 GiB are allowed: lower session_len to 35456");
    in.session_len = 35456;
    turbod_plan p;
    turbo_err err;
    assert_int_equal(turbod_plan_make(&in, &p, &err), 0);
    assert_int_equal(p.blocks, 554);
    assert_int_equal(p.session_len, 35456);
    in = good;
    in.vacant = 0;
    refused(in, TURBO_ENOMEM, "give cache_max_entry_count as a size");
    in.cache_bytes = 100 * MIB; /* an absolute size needs no measure */
    assert_int_equal(turbod_plan_make(&in, &p, &err), 0);
    assert_int_equal(p.blocks, 16);
    assert_int_equal(p.session_len, 1024);
    in = good;
    in.kv.block_tokens = 60;
    refused(in, TURBO_EINVAL, "cache_block_seq_len 60");
    fixed_workspace = UINT64_MAX - 7;
    refused(good, TURBO_ELIMIT, "max_batch_size 16 and max_prefill_token_num 256 are too large");
}

/* More than max_batch sequences of full length would never be used. */
static void test_most(void **state)
{
    turbod_weights_sums w;
    turbod_plan_in in = input(&w, 4528 * MIB, 40000 * MIB, 0.8);
    turbod_plan p;
    turbo_err err;
    (void)state;
    in.max_batch = 2;
    in.session_len = 1000;
    assert_int_equal(turbod_plan_make(&in, &p, &err), 0);
    assert_int_equal(p.blocks, 32);
    assert_int_equal(p.most_blocks, 32);
    assert_int_equal(turbod_plan_at_once(&p, 1000), 2);
    assert_int_equal(turbod_plan_at_once(&p, 64), 32);
    assert_int_equal(turbod_plan_at_once(&p, 65), 16);
    in.max_step_tokens = 1; /* a step has a token of every sequence */
    assert_int_equal(turbod_plan_make(&in, &p, &err), 0);
    assert_int_equal(p.max_step_tokens, 2);
}

/* ---- from config.json alone --------------------------------------------------------------------------- */

static turbod_plan_model read_model(const char *name)
{
    char folder[512];
    turbod_plan_model m;
    turbo_err err = {{0}};
    const char *src = getenv("srcdir");
    snprintf(folder, sizeof folder, "%s/" FIXTURES "%s", src ? src : ".", name);
    if (turbod_plan_model_read(folder, registry, &(turbod_weights_opts){0}, &m, &err))
        fail_msg("%s", err.text);
    return m;
}

/* Sums from the table of shapes, worked out by hand: layers * (wqkv + wo + w1 + w2 + w3) + 2 V E. */
static void test_config_alone(void **state)
{
    static const struct {
        const char *name;
        uint64_t E, L, H, I;
    } rows[] = {{"internlm2-1_8b", 2048, 24, 16, 8192}, {"internlm2-20b", 6144, 48, 48, 16384}};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        turbod_plan_model m = read_model(rows[i].name);
        uint64_t E = rows[i].E, D = 128, V = 92544;
        uint64_t layer = (rows[i].H + 16) * D * E + E * rows[i].H * D + 3 * E * rows[i].I;
        assert_true(m.from_config);
        assert_int_equal(m.weights.matmul, rows[i].L * layer + V * E);
        assert_int_equal(m.weights.table, V * E);
        assert_int_equal(m.weights.n_heads, 1);
        assert_int_equal(m.weights.params, rows[i].L * (layer + 2 * E) + 2 * V * E + E);
        assert_int_equal(m.weights.stored, 2 * m.weights.params);
        /* every number of rows is a multiple of 64: no padding */
        assert_int_equal(m.weights.linear, 2 * (m.weights.matmul + m.weights.table));
        assert_int_equal(m.weights.vector, 4 * (2 * rows[i].L + 1) * E);
        assert_int_equal(m.weights.rope, 4 * (64 + 2 * 32768 * 64));
        turbod_plan_model_free(&m);
    }
}

/* Steps worked out elsewhere (reference tables of what an H200 allows: 4.3 TB/s, 790 TFLOP/s, fp16 weights
 * and KV). They count norm weights as read too, which is up to 0.3 us: within 1 us, the last digit. */
static void test_roof(void **state)
{
    static const struct {
        const char *name;
        double batch, n, ms;
    } rows[] = {
        {"internlm2-1_8b", 1, 512, 0.802},   {"internlm2-1_8b", 64, 4096, 6.783},
        {"internlm2-1_8b", 256, 512, 4.098}, {"internlm2-1_8b", 256, 4096, 25.073},
        {"internlm2-20b", 1, 32768, 10.472}, {"internlm2-20b", 16, 4096, 11.970},
        {"internlm2-20b", 64, 512, 10.472},  {"internlm2-20b", 256, 512, 18.496},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_plan_model m = read_model(rows[i].name);
        turbok_kv_dims wanted = {.block_tokens = 64, .dtype = -1};
        turbok_kv_dims dims = turbod_plan_kv_dims(&m.info, &wanted);
        turbod_roof r = {
            .params = (double)m.weights.matmul,
            .weights = (double)m.weights.matmul_stored,
            .kv_token = (double)turbok_kv_block_bytes(&dims) / 64,
            .heads = (double)m.info.n_layers * m.info.n_heads * m.info.head_dim,
            .flops = 790e12,
            .bandwidth = 4.3e12,
        };
        double ms = turbod_roof_step(&r, rows[i].batch, rows[i].n).seconds * 1e3;
        if (!(fabs(ms - rows[i].ms) < 0.001))
            fail_msg("%s, batch %g at %g: %.4f ms, %.3f expected", rows[i].name, rows[i].batch,
                     rows[i].n, ms, rows[i].ms);
        assert_int_equal((int)turbod_roof_ridge(&r), 183); /* 184 is the first beyond it */
        /* at the turning point of the whole step both resources take as long */
        double at = turbod_roof_ridge_at(&r, 64);
        turbod_step s = turbod_roof_step(&r, at, 64);
        assert_true(isfinite(at) && fabs(s.compute / s.memory - 1) < 1e-9);
        turbod_plan_model_free(&m);
    }
    /* attention of heads that read faster than they compute turns the step, the others never do */
    turbod_roof slow = {.params = 1e9,
                        .weights = 2e9,
                        .kv_token = 1e6,
                        .heads = 1e3,
                        .flops = 1e14,
                        .bandwidth = 1e12};
    assert_true(isinf(turbod_roof_ridge_at(&slow, 1e5)));
    /* 8 experts of 10 bytes, 2 of a token, beside 20: one token reads 40, two 20 + 80 (1 - 0.75^2). */
    turbod_roof moe = {.weights = 100, .idle = 60, .miss = 0.75};
    assert_true(fabs(turbod_roof_read(&moe, 1) - 40) < 1e-12);
    assert_true(fabs(turbod_roof_read(&moe, 2) - 55) < 1e-12);
    assert_true(fabs(turbod_roof_read(&moe, 100) - 100) < 1e-9);
    assert_true(fabs(turbod_roof_read(&slow, 1) - 2e9) < 1);
}

/* ---- planned and taken ---------------------------------------------------------------------------------- */

static void same_bytes(const turbod_engine *e)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(e);
    uint64_t total = 0;
    for (int k = 0; k < TURBOD_MEM_KINDS; k++) {
        if (f->plan.bytes[k] != f->alloc[k])
            fail_msg("%s: planned %llu, taken %llu", turbod_mem_names[k],
                     (unsigned long long)f->plan.bytes[k], (unsigned long long)f->alloc[k]);
        if (k != TURBOD_MEM_GRAPHS && k != TURBOD_MEM_IMAGES && k != TURBOD_MEM_CONTEXT &&
            k != TURBOD_MEM_SWAP)
            assert_true(f->alloc[k] > 0);
        total += f->alloc[k];
    }
    assert_int_equal(f->plan.total, total);
}

static void test_engine_takes_it(void **state)
{
    /* odd sizes, biases, tied heads, both types, threads, blocks, with and without a prefix cache */
    static const struct {
        tiny_model m;
        int threads, block, batch, step, kv;
        bool prefix;
    } rows[] = {
        {{300, 64, 2, 4, 2, 96, 512, 0, 11, 0, 0, ""}, 1, 16, 16, 64, -1, true},
        {{301, 60, 3, 6, 3, 100, 512, 1, 12, 1, 0, ""}, 2, 64, 5, 17, TURBO_F16, true},
        {{129, 144, 1, 1, 1, 65, 100, 1, 13, 0, 1, ""}, 3, 8, 1, 16, -1, false},
        {{2000, 256, 2, 1, 1, 300, 40000, 0, 14, 1, 1, ""}, 2, 1024, 33, 300, TURBO_BF16, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char folder[64];
        turbod_engine_opts o = small();
        tiny_model_write(&rows[i].m, folder);
        o.threads = rows[i].threads;
        o.block_tokens = rows[i].block;
        o.max_batch = rows[i].batch;
        o.max_step_tokens = rows[i].step;
        o.kv_dtype = rows[i].kv;
        o.prefix_caching = rows[i].prefix;
        o.cache_bytes = 16 << 20;
        turbod_engine *e = open_engine(folder, o);
        same_bytes(e);

        /* the same plan from the folder, and from its config.json alone where the type agrees */
        turbod_plan_model m;
        turbo_err err = {{0}};
        assert_int_equal(turbod_plan_model_read(folder, registry, &(turbod_weights_opts){0}, &m,
                                                &err),
                         0);
        assert_false(m.from_config);
        turbod_plan_in in = {.info = &m.info, .vtbl = m.vtbl, .weights = &m.weights};
        turbod_plan p;
        turbod_engine_plan_in(&o, &in);
        assert_int_equal(turbod_plan_make(&in, &p, &err), 0);
        assert_memory_equal(p.bytes, turbod_engine_facts_of(e)->plan.bytes, sizeof p.bytes);
        turbod_weights_sums with_files = m.weights;
        turbod_plan_model_free(&m);
        char weights[128];
        snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
        assert_int_equal(remove(weights), 0);
        assert_int_equal(turbod_plan_model_read(folder, registry, &(turbod_weights_opts){0}, &m,
                                                &err),
                         0);
        assert_true(m.from_config);
        assert_memory_equal(&m.weights, &with_files, sizeof with_files);
        turbod_plan_model_free(&m);
        turbod_engine_close(e);
        tiny_model_remove(folder);
    }
}

/* The law once more through an engine: real pools of four sizes out of one free figure. */
static void test_live_law(void **state)
{
    static const double ratios[] = {0.8, 0.5, 0.4, 0.01};
    char folder[64];
    (void)state;
    tiny_model_write(&random_model, folder);
    for (size_t i = 0; i < 4; i++) {
        turbod_engine_opts o = small();
        o.cache_bytes = 0;
        o.cache_fraction = ratios[i];
        o.session_len = 0;
        o.memory_free = 200 * MIB;
        o.max_batch = 1024; /* the pool is bounded by memory, not by what they can use */
        o.block_tokens = 512;
        turbod_engine *e = open_engine(folder, o);
        const turbod_engine_facts *f = turbod_engine_facts_of(e);
        same_bytes(e);
        uint64_t used = 0;
        for (int k = 0; k < TURBOD_MEM_KINDS; k++)
            used += k == TURBOD_MEM_KV_INDEX ? 0 : f->alloc[k];
        double law = (double)f->plan.fixed + ratios[i] * (double)f->plan.left;
        assert_int_equal(f->plan.left, 200 * MIB - f->plan.fixed);
        assert_true(f->kv_blocks < f->plan.most_blocks);
        assert_true((double)used <= law && (double)used > law - (double)f->plan.block_bytes);
        turbod_engine_close(e);
    }
    tiny_model_remove(folder);
}

/* Three models: B of 600 MiB each, one with 64 MiB of KV for itself, the others dividing what is left 3 to 1. */
static void test_divided(void **state)
{
    turbod_weights_sums w[3];
    turbod_plan_share s[3] = {{.share = 3}, {.share = 1}, {.share = 100}};
    turbo_err err;
    size_t which;
    uint64_t vacant = 40000 * MIB, sum = 0;
    (void)state;
    for (int i = 0; i < 3; i++)
        s[i].in = input(&w[i], 600 * MIB, 0, 0.5);
    s[2].in.cache_bytes = 64 * MIB;
    assert_int_equal(turbod_plan_divide(s, 3, vacant, &which, &err), 0);
    uint64_t left = vacant - 3 * 600 * MIB - 64 * MIB - s[2].plan.bytes[TURBOD_MEM_KV_INDEX];
    assert_true(s[0].plan.left == left * 3 / 4 || s[0].plan.left + 1 == left * 3 / 4);
    assert_true(s[1].plan.left == left / 4);
    assert_true(s[0].plan.allowed == s[0].plan.left / 2);
    assert_int_equal(s[2].plan.blocks, 10); /* of 6 MiB */
    for (int i = 0; i < 3; i++) {
        turbod_plan alone; /* what an engine makes of its part */
        assert_int_equal(s[i].plan.fixed, 600 * MIB);
        assert_true(s[i].plan.total <= s[i].in.vacant);
        sum += s[i].in.vacant;
        assert_int_equal(turbod_plan_make(&s[i].in, &alone, &err), 0);
        assert_memory_equal(&alone, &s[i].plan, sizeof alone);
    }
    assert_true(sum <= vacant && sum + 3 > vacant);

    /* Not together, though each alone; one that can never be is named. */
    for (int i = 0; i < 3; i++)
        s[i].in = input(&w[i], 600 * MIB, 0, 0.5);
    assert_int_equal(turbod_plan_divide(s, 3, 1700 * MIB, &which, &err), TURBO_ENOMEM);
    assert_int_equal(which, 3);
    assert_non_null(strstr(err.text, "the 3 models need 1.76 GiB together"));
    assert_int_equal(turbod_plan_divide(s, 3, 1000 * MIB, &which, &err), TURBO_ENOMEM);
    assert_non_null(strstr(err.text, "1000.0 MiB are free"));
    s[1].in.cache_bytes = UINT64_MAX - MIB;
    assert_int_equal(turbod_plan_divide(s, 3, vacant, &which, &err), TURBO_ELIMIT);
    assert_int_equal(which, 1);
    s[1].in = input(&w[1], 600 * MIB, 0, 0.5);
    s[2].in.session_len = 32768;
    s[2].share = 0.01;
    assert_int_equal(turbod_plan_divide(s, 3, vacant, &which, &err), TURBO_ENOMEM);
    assert_int_equal(which, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_law),          cmocka_unit_test(test_lesson_memory),
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_most),
        cmocka_unit_test(test_config_alone), cmocka_unit_test(test_engine_takes_it),
        cmocka_unit_test(test_divided),      cmocka_unit_test(test_live_law),
        cmocka_unit_test(test_roof),
    };
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
