/* tests/cuda/test_experts.c: models with experts on a CUDA device: logits against transformers (tests/golden/moe-tiny) in
 * each type and with quantised experts, and the engine against the engine on the CPU: greedy tokens, memory as
 * planned, steps that are recorded and take none. On the fake driver, or with TURBO_CHECK_GPU on the machine's own. */
#include "on_gpu.h"

#include <math.h>

#include "model/cases.h"
#include "plugin/host.h"
#include "plugin/registry.h"

static cJSON *golden;

static const cJSON *case_of(const char *name)
{
    const cJSON *c = turbod_json_get(golden, "cases")->child;
    while (c && strcmp(turbod_json_get(c, "name")->valuestring, name))
        c = c->next;
    assert_non_null(c);
    return c;
}

/* Bounds: of the difference in f32, else of it by the largest logit. Rounding may give a token another expert, so
 * these are cases where it gives none. */
static void test_transformers(void **state)
{
    static const struct {
        const char *name;
        int32_t act;
        const char *quantize;
        double bound;
        bool slow; /* for the host */
    } rows[] = {
        {"mixtral", TURBO_F32, NULL, 1e-4, true},
        {"mixtral, bf16, window 16", TURBO_BF16, NULL, 2e-2, false}, /* on tensor cores */
        {"mixtral, every expert", TURBO_F16, "int8", 5e-2, false},
        {"mixtral, 3 of 5", TURBO_F16, NULL, 4e-3, true},
        {"qwen 1.5 moe", TURBO_F32, NULL, 1e-4, true},
        {"qwen 1.5 moe", TURBO_BF16, NULL, 2e-2, true},
        {"qwen 2 moe, a dense first layer", TURBO_F16, NULL, 4e-3, true}, /* experts 17 wide */
        {"qwen 3 moe", TURBO_F32, NULL, 1e-4, false},
        {"qwen 3 moe", TURBO_F16, NULL, 4e-3, true},
        {"qwen 3 moe, bias, not normalised", TURBO_BF16, NULL, 2e-2, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const cJSON *c = case_of(rows[i].name);
        char folder[64];
        if (rows[i].slow && fake.handle)
            continue;
        const turbo_model_vtbl *v = cases_model(registry, c, folder);
        int32_t ids[64], n = turbod_json_get(c, "n_ids")->valueint;
        static float logits[64 * 96];
        double most = 0, size = 0;
        runner r;
        turbo_err err = {{0}};
        runner_opts o = {.threads = 2,
                         .kv_dtype = rows[i].act,
                         .max_tokens = n + 8,
                         .quantize = rows[i].quantize,
                         .cuda = turbod_backend_path(),
                         .act_dtype = rows[i].act};
        if (runner_open(&r, v, folder, &o, &err))
            fail_msg("%s", err.text);
        assert_int_equal(r.info.vocab, 96);
        for (int32_t k = 0; k < n; k++)
            ids[k] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)k) % 96);
        cases_step(&r, ids, n, n, n, logits);
        const cJSON *want = turbod_json_get(c, "logits")->child;
        for (const cJSON *row = turbod_json_get(c, "rows")->child; row;
             row = row->next, want = want->next) {
            const float *got = logits + row->valueint * 96;
            for (const cJSON *l = want->child; l; l = l->next, got++) {
                double d = fabs(l->valuedouble - (double)*got);
                most = d > most || isnan(d) ? d : most;
                size = fmax(size, fabs(l->valuedouble));
            }
        }
        print_message("%-34s %-4s %-4s %.1e of %.2f\n", rows[i].name,
                      turbok_kv_type_name(rows[i].act), rows[i].quantize ? rows[i].quantize : "",
                      most, size);
        assert_true(most <= rows[i].bound * (rows[i].bound < 1e-3 ? 1 : size));
        runner_close(&r);
        nothing_left();
        tiny_model_remove(folder);
    }
}

/* Greedy answers of requests that come and go are those of the CPU. */
static void test_tokens(void **state)
{
    enum { N = 2 };
    char folder[64];
    int32_t prompts[N][40];
    static result want[N], got[N];
    turbo_sample_params p = greedy();
    (void)state;
    cases_model(registry, case_of("qwen 1.5 moe"), folder);
    for (int i = 0; i < N; i++)
        make_prompt(prompts[i], 40, (uint32_t)i, 96);
    turbod_engine_opts plain = small(), o = on_cuda("f32");
    plain.kv_dtype = o.kv_dtype = TURBO_F32;
    turbod_engine *e = open_engine(folder, plain);
    as_planned(e);
    for (int i = 0; i < N; i++) {
        start(e, &want[i], prompts[i], 3 + 2 * i, 8 + i, &p);
        finish(&want[i]);
    }
    turbod_engine_close(e);
    e = open_engine(folder, o);
    as_planned(e);
    long taken = fake.handle ? fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc") : 0;
    for (int i = 0; i < N; i++)
        start(e, &got[i], prompts[i], 3 + 2 * i, 8 + i, &p);
    for (int i = 0; i < N; i++) {
        finish(&got[i]);
        assert_int_equal(got[i].n, want[i].n);
        assert_memory_equal(got[i].ids, want[i].ids, (size_t)want[i].n * sizeof(int32_t));
    }
    all_blocks_back(e);
    if (fake.handle) {
        assert_true(fake.calls("cuGraphInstantiateWithFlags") < fake.calls("cuGraphLaunch"));
        assert_int_equal(fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc"), taken);
    }
    turbod_engine_close(e);
    o = on_cuda("bf16");
    o.quantize = "int4";
    e = open_engine(folder, o);
    as_planned(e);
    turbod_engine_close(e);
    nothing_left();
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers),
        cmocka_unit_test(test_tokens),
    };
    fake = fake_driver_open();
    golden = cases_load("moe-tiny", "golden.json");
    if (!golden)
        return 1;
    int rc = engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
    cJSON_Delete(golden);
    return rc;
}
