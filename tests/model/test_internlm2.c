/* The InternLM2 plugin through its vtable, on every instruction set of this machine: published
 * vectors with their keys and values, and tests/golden/internlm2-tiny/wide.json (transformers,
 * float32). Tolerances: the vectors are printed with six decimals; 2e-5 is rounding in another
 * order of additions (4e-6 was measured, over 3000 tokens). */
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

#include "runner.h"
#include "unit/tiny_model.h"
#include "util/file.h"
#include "util/json.h"
#include "util/log.h"

static const turbo_model_vtbl *vtbl;
static cJSON *golden;

static const turbok_isa isas[] = {TURBOK_ISA_SCALAR, TURBOK_ISA_AVX2, TURBOK_ISA_AVX512};

/* False when this machine lacks the instruction set. */
static bool try_open(runner *r, const char *folder, turbok_isa isa, int32_t kv, int32_t max)
{
    turbo_err err = {{0}};
    runner_opts o = {.isa = isa, .threads = 2, .kv_dtype = kv, .max_tokens = max};
    turbo_status st = runner_open(r, vtbl, folder, &o, &err);
    if (st == TURBO_EUNSUPPORTED && isa != TURBOK_ISA_SCALAR) {
        runner_close(r);
        return false;
    }
    if (st)
        fail_msg("%s", err.text);
    return true;
}

static void step(runner *r, const int32_t *ids, int32_t n, int32_t rope_len, int32_t rows,
                 float *logits)
{
    turbo_err err = {{0}};
    if (runner_step(r, ids, n, rope_len, rows, logits, &err))
        fail_msg("%s", err.text);
}

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
        for (size_t k = 0; k < 3; k++) {
            runner r;
            if (!try_open(&r, folder, isas[k], TURBO_F32, 16))
                continue;
            step(&r, ids, 3, 3, 1, logits);
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

/* Any way of cutting a prompt gives the same bits, and rows that nobody wants change nothing. */
static void check_chunks(runner *r, const int32_t *ids, int32_t n, const float *whole)
{
    size_t V = (size_t)r->info.vocab;
    static const int32_t chunks[] = {1, 7, 64};
    float *logits = malloc(64 * V * sizeof *logits);
    for (size_t c = 0; c < 3; c++) {
        runner_reset(r);
        for (int32_t at = 0; at < n; at += chunks[c]) {
            int32_t m = n - at < chunks[c] ? n - at : chunks[c];
            bool all = c == 1;
            step(r, ids + at, m, n, all ? m : at + m == n, logits);
            if (all)
                assert_memory_equal(logits, whole + (size_t)at * V, (size_t)m * V * sizeof *logits);
        }
        if (c != 1)
            assert_memory_equal(logits, whole + (size_t)(n - 1) * V, V * sizeof *logits);
    }
    free(logits);
}

static int argmax(const float *l, int32_t n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = l[i] > l[best] ? i : best;
    return best;
}

static void check_greedy(runner *r, int32_t n, const float *last, const cJSON *list)
{
    int32_t V = r->info.vocab;
    float *logits = malloc((size_t)V * sizeof *logits);
    memcpy(logits, last, (size_t)V * sizeof *logits);
    for (const cJSON *v = list->child; v; v = v->next, n++) {
        int32_t id = argmax(logits, V);
        assert_int_equal(id, (int32_t)v->valuedouble);
        step(r, &id, 1, n, 1, logits);
    }
    free(logits);
}

static void write_case(const cJSON *c, char *folder)
{
    char path[128];
    turbo_err err = {{0}};
    strcpy(folder, "/tmp/turbo-wide-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/config.json", folder);
    char *text = cJSON_PrintUnformatted(turbod_json_get(c, "config"));
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    cJSON_free(text);
    if (!checkpoint_write(vtbl, folder, &err))
        fail_msg("cannot write a checkpoint: %s", err.text);
}

static double worst_of(const cJSON *c, const float *logits, size_t V)
{
    double worst = 0;
    const cJSON *row = turbod_json_get(c, "rows")->child,
                *want = turbod_json_get(c, "logits")->child;
    for (; row; row = row->next, want = want->next) {
        const float *got = logits + (size_t)row->valuedouble * V;
        assert_int_equal(cJSON_GetArraySize(want), (int)V);
        for (const cJSON *v = want->child; v; v = v->next)
            worst = fmax(worst, fabs(v->valuedouble - (double)*got++));
    }
    return worst;
}

static void check_case(const cJSON *c)
{
    char folder[64];
    int32_t n = (int32_t)turbod_json_get(c, "n_ids")->valuedouble;
    write_case(c, folder);
    for (size_t k = 0; k < 3; k++) {
        runner r;
        if (!try_open(&r, folder, isas[k], TURBO_F32, n + 64))
            continue;
        size_t V = (size_t)r.info.vocab;
        int32_t *ids = malloc((size_t)n * sizeof *ids);
        float *logits = malloc((size_t)n * V * sizeof *logits);
        for (int32_t i = 0; i < n; i++)
            ids[i] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)i) % (uint32_t)V);
        step(&r, ids, n, n, n, logits);
        double worst = worst_of(c, logits, V);
        print_message("%-26s %-18s |dlogit| %.1e\n", turbod_json_get(c, "name")->valuestring,
                      turbok_device_name(r.device), worst);
        assert_true(worst <= 2e-5);
        check_greedy(&r, n, logits + (size_t)(n - 1) * V, turbod_json_get(c, "greedy"));
        if (n <= 256)
            check_chunks(&r, ids, n, logits);
        free(ids);
        free(logits);
        runner_close(&r);
    }
    tiny_model_remove(folder);
}

static void test_transformers(void **state)
{
    (void)state;
    int n = 0;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next, n++)
        check_case(c);
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
        write_case(c, folder);
        assert_true(try_open(&r, folder, TURBOK_ISA_SCALAR, TURBO_BF16, n));
        size_t V = (size_t)r.info.vocab, i = 0;
        float *logits = malloc(V * sizeof *logits);
        double worst = 0;
        for (int32_t t = 0; t < n; t++)
            ids[t] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)t) % (uint32_t)V);
        step(&r, ids, n, n, 1, logits);
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
    turbo_err err = {{0}};
    char folder[4096];
    uint8_t *text = NULL;
    uint64_t len;
    const char *src = getenv("srcdir");
    snprintf(folder, sizeof folder, "%s/tests/golden/internlm2-tiny", src ? src : ".");
    turbod_log_level(TURBO_LOG_ERROR);
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->models[0];
    if (turbod_file_read(folder, "wide.json", 1 << 24, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err)) {
        printf("cannot start: %s\n", err.text);
        return 1;
    }
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    cJSON_Delete(golden);
    free(text);
    return rc;
}
