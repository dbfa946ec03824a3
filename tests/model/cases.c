/* tests/model/cases.c: see cases.h. */
#include "cases.h"

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

#include "unit/tiny_model.h"
#include "util/file.h"

#if defined(__aarch64__)
const turbok_isa cases_isas[CASES_ISAS] = {TURBOK_ISA_SCALAR, TURBOK_ISA_NEON};
#else
const turbok_isa cases_isas[CASES_ISAS] = {TURBOK_ISA_SCALAR, TURBOK_ISA_AVX2, TURBOK_ISA_AVX512};
#endif

bool cases_open(runner *r, const turbo_model_vtbl *vtbl, const char *folder, turbok_isa isa,
                int32_t kv, int32_t max)
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

void cases_step(runner *r, const int32_t *ids, int32_t n, int32_t rope_len, int32_t rows,
                float *logits)
{
    turbo_err err = {{0}};
    if (runner_step(r, ids, n, rope_len, rows, logits, &err))
        fail_msg("%s", err.text);
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
            cases_step(r, ids + at, m, n, all ? m : at + m == n, logits);
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
        cases_step(r, &id, 1, n, 1, logits);
    }
    free(logits);
}

void cases_write(const turbo_model_vtbl *vtbl, const cJSON *config, checkpoint_value value,
                 char *folder)
{
    char path[128];
    turbo_err err = {{0}};
    strcpy(folder, "/tmp/turbo-wide-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/config.json", folder);
    char *text = cJSON_PrintUnformatted(config);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    cJSON_free(text);
    if (!checkpoint_write(vtbl, folder, value, &err))
        fail_msg("cannot write a checkpoint: %s", err.text);
}

const turbo_model_vtbl *cases_model(const turbod_registry *r, const cJSON *c, char *folder)
{
    turbo_config *config = NULL;
    const turbo_model_vtbl *v = NULL;
    turbo_err err = {{0}};
    char *text = cJSON_PrintUnformatted(turbod_json_get(c, "config"));
    if (turbod_config_parse(text, strlen(text), "config.json", &config, &err) ||
        turbod_registry_model_for(r, config, &v, &err))
        fail_msg("%s", err.text);
    turbod_config_close(config);
    cJSON_free(text);
    cases_write(v, turbod_json_get(c, "config"), NULL, folder);
    return v;
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

/* One sequence of a ragged batch: the first len tokens of the prompt. */
typedef struct part {
    turbok_kv_table table;
    int32_t len;
} part;

/* One step: each sequence that has tokens left gives some, and the last one's logits are wanted. */
static int32_t ragged_step(runner *r, turbok_kv_pool *pool, part *parts, int32_t n_parts, int turn,
                           const int32_t *ids, int32_t rope_len, const float *whole)
{
    int32_t tokens[256], positions[256], embed[256], cu[8] = {0}, kv_lens[8], ropes[8], rows[8],
                                                     S = 0, T = 0;
    turbok_kv_table *tables[8];
    size_t V = (size_t)r->info.vocab;
    turbo_err err = {{0}};
    for (int32_t s = 0; s < n_parts; s++) {
        part *p = &parts[s];
        int32_t left = p->len - p->table.len, n = 1 + (7 * s + 5 * turn) % 23;
        n = n < left ? n : left;
        if (!n)
            continue;
        assert_true(turbok_kv_table_reserve(&p->table, pool, p->table.len + n));
        for (int32_t i = 0; i < n; i++, T++) {
            positions[T] = p->table.len + i;
            tokens[T] = ids[positions[T]];
            embed[T] = r->embed_rows ? r->embed_at[positions[T]] : -1;
        }
        p->table.len += n;
        tables[S] = &p->table;
        kv_lens[S] = p->table.len;
        ropes[S] = rope_len;
        rows[S] = T - 1;
        cu[++S] = T;
    }
    if (!S)
        return 0;
    float *logits = malloc((size_t)S * V * sizeof *logits);
    struct turbo_kv kv = {pool, tables};
    const turbo_batch b = {.size = sizeof b,
                           .n_tokens = T,
                           .n_seqs = S,
                           .n_rows = S,
                           .tokens = tokens,
                           .positions = positions,
                           .cu_seqlens = cu,
                           .kv_lens = kv_lens,
                           .rope_lens = ropes,
                           .row_index = rows,
                           .embed_rows = r->embed_rows,
                           .embed_index = r->embed_rows ? embed : NULL,
                           .kv = &kv,
                           .workspace = r->workspace,
                           .workspace_bytes = r->workspace_bytes};
    if (r->vtbl->forward(r->model, turbok_device_exec(r->device), &b, logits, &err))
        fail_msg("%s", err.text);
    for (int32_t s = 0; s < S; s++)
        assert_memory_equal(logits + (size_t)s * V, whole + (size_t)positions[rows[s]] * V,
                            V * sizeof *logits);
    free(logits);
    return S;
}

/* Beginnings of the prompt beside each other, in uneven chunks: every row has the bits it has alone. */
static void check_ragged(runner *r, const int32_t *ids, int32_t n, const float *whole)
{
    part parts[5] = {{.len = n}, {.len = 1}, {.len = n / 2}, {.len = n - 1}, {.len = n / 3 + 1}};
    const turbok_kv_dims dims = {r->info.n_layers, r->info.n_kv, r->info.head_dim, 16, TURBO_F32};
    turbok_kv_pool *pool = NULL;
    turbo_err err;
    assert_int_equal(turbok_kv_pool_new(r->device, &dims, 5 * (n / 16 + 1), &pool, &err), 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(turbok_kv_table_init(&parts[i].table, pool, n, &err), 0);
    for (int turn = 0; ragged_step(r, pool, parts, 5, turn, ids, n, whole); turn++)
        ;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(parts[i].table.len, parts[i].len);
        turbok_kv_table_free(&parts[i].table, pool);
    }
    turbok_kv_pool_free(pool);
}

void cases_same_bits(runner *r, const int32_t *ids, int32_t n, const float *whole)
{
    check_chunks(r, ids, n, whole);
    check_ragged(r, ids, n, whole);
}

void cases_run(const turbo_model_vtbl *vtbl, const cJSON *c)
{
    char folder[64];
    int32_t n = (int32_t)turbod_json_get(c, "n_ids")->valuedouble;
    cases_write(vtbl, turbod_json_get(c, "config"), NULL, folder);
    for (size_t k = 0; k < CASES_ISAS; k++) {
        runner r;
        if (!cases_open(&r, vtbl, folder, cases_isas[k], TURBO_F32, n + 128))
            continue;
        size_t V = (size_t)r.info.vocab;
        int32_t *ids = malloc((size_t)n * sizeof *ids);
        float *logits = malloc((size_t)n * V * sizeof *logits);
        for (int32_t i = 0; i < n; i++)
            ids[i] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)i) % (uint32_t)V);
        cases_step(&r, ids, n, n, n, logits);
        double worst = worst_of(c, logits, V);
        print_message("%-38s %-18s |dlogit| %.1e\n", turbod_json_get(c, "name")->valuestring,
                      turbok_device_name(r.device), worst);
        assert_true(worst <= CASES_TOLERANCE);
        check_greedy(&r, n, logits + (size_t)(n - 1) * V, turbod_json_get(c, "greedy"));
        if (n <= 600)
            cases_same_bits(&r, ids, n, logits);
        free(ids);
        free(logits);
        runner_close(&r);
    }
    tiny_model_remove(folder);
}

cJSON *cases_load(const char *folder, const char *name)
{
    char path[4096];
    uint8_t *text = NULL;
    uint64_t len;
    turbo_err err = {{0}};
    cJSON *root = NULL;
    const char *src = getenv("srcdir");
    snprintf(path, sizeof path, "%s/tests/golden/%s", src ? src : ".", folder);
    if (turbod_file_read(path, name, 1 << 24, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &root, &err))
        printf("cannot start: %s\n", err.text);
    free(text);
    return root;
}
