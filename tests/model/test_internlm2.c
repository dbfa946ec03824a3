/* The InternLM2 plugin through its vtable, on every instruction set of this machine: published
 * vectors with their keys and values, and tests/golden/internlm2-tiny/wide.json (transformers,
 * float32). The vectors are printed with six decimals. */
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

#include "cases.h"
#include "unit/tiny_model.h"
#include "util/log.h"

static const turbo_model_vtbl *vtbl;
static cJSON *golden;

static void near_all(const float *got, const double *want, int n, const char *what)
{
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= 2e-6 * fmax(1, fabs(want[i]))))
            fail_msg("%s %d: %.7f, published %.6f", what, i, (double)got[i], want[i]);
}

/* Computed in double precision from the formulas; every logit, one head of K and of V. */
static void test_published(void **state)
{
    (void)state;
    static const int32_t ids[] = {1, 4, 7};
    static const struct {
        int32_t embed, head_dim;
        double logits[10], k1[4], v0[4];
    } rows[] = {
        {8,
         2,
         {-0.962869, -0.032665, 0.594884, -0.933674, 0.397010, 0.624079, -1.896963, 0.426205,
          0.653273, -1.867768},
         {0.799268, 0.303427},
         {0.885203, -1.037478}},
        {16,
         4,
         {-0.321024, -0.334293, 0.983718, -0.244724, 0.516530, -0.907106, -0.212191, 0.592830,
          -0.830807, -0.135892},
         {-3.422987, -0.943585, -3.366927, -1.590675},
         {0.044417, -1.810674, 0.692195, 0.110004}},
    };
    for (size_t i = 0; i < 2; i++) {
        tiny_model m = {.vocab = 10,
                        .embed = rows[i].embed,
                        .layers = 2,
                        .heads = 4,
                        .kv_heads = 2,
                        .inner = 12,
                        .max_position = 64};
        char folder[64];
        float logits[10], kv[8];
        int32_t D = rows[i].head_dim;
        tiny_model_write(&m, folder);
        for (size_t k = 0; k < CASES_ISAS; k++) {
            runner r;
            if (!cases_open(&r, vtbl, folder, cases_isas[k], TURBO_F32, 16))
                continue;
            cases_step(&r, ids, 3, 3, 1, logits);
            near_all(logits, rows[i].logits, 10, "logit");
            turbok_kv_read(r.pool, &r.table, 0, 2, false, kv);
            near_all(kv + D, rows[i].k1, D, "K");
            turbok_kv_read(r.pool, &r.table, 0, 2, true, kv);
            near_all(kv, rows[i].v0, D, "V");
            runner_close(&r);
        }
        tiny_model_remove(folder);
    }
}

static void test_transformers(void **state)
{
    (void)state;
    int n = 0;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next, n++)
        cases_run(vtbl, c);
    assert_int_equal(n, 10);
}

/* Weights and cache of bf16, against transformers computing in bf16 throughout. That one rounds
 * every activation to eight bits, this one does not: the difference is its error, 2^-6 of the
 * largest logit. */
static void test_bf16(void **state)
{
    (void)state;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next) {
        const cJSON *want = turbod_json_get(c, "bf16_logits");
        char folder[64];
        int32_t ids[64], n = (int32_t)turbod_json_get(c, "n_ids")->valuedouble;
        runner r;
        if (!want)
            continue;
        cases_write(vtbl, turbod_json_get(c, "config"), NULL, folder);
        assert_true(cases_open(&r, vtbl, folder, TURBOK_ISA_SCALAR, TURBO_BF16, n));
        size_t V = (size_t)r.info.vocab, i = 0;
        float *logits = malloc(V * sizeof *logits);
        double worst = 0;
        for (int32_t t = 0; t < n; t++)
            ids[t] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)t) % (uint32_t)V);
        cases_step(&r, ids, n, n, 1, logits);
        for (const cJSON *v = want->child; v; v = v->next, i++)
            worst = fmax(worst, fabs(v->valuedouble - (double)logits[i]));
        print_message("%-26s bf16 against bf16  |dlogit| %.1e\n",
                      turbod_json_get(c, "name")->valuestring, worst);
        assert_true(worst <= 4e-2);
        free(logits);
        runner_close(&r);
        tiny_model_remove(folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_transformers),
        cmocka_unit_test(test_bf16),
    };
    turbod_log_level(TURBO_LOG_ERROR);
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->models[0];
    golden = cases_load("internlm2-tiny", "wide.json");
    if (!golden)
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    cJSON_Delete(golden);
    return rc;
}
