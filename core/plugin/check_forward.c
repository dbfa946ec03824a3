/* core/plugin/check_forward.c: conformance tests of forward(): it computes on a checkpoint of random
 * weights, under kernels that look at their arguments. Whether the numbers are those of the architecture
 * no such test can tell. Each runs in a child process of `turbo plugin check`. */
#include <stdlib.h>
#include <string.h>

#include "plugin/check_rig.h"
#include "plugin/check_run.h"
#include "util/err.h"

#define N 9 /* tokens of the first sequence, 3 blocks of the cache touched by the longest */
#define M 4 /* of the second */

static const int32_t ids_a[N] = {1, 17, 3, 99, 42, 42, 7, 250, 11}, ids_b[M] = {1, 5, 200, 64};

/* The expected logits: each token in a step of its own. [N+M,V] */
static int one_by_one(rig *r, float *ref, turbo_err *why)
{
    size_t V = (size_t)r->info.vocab;
    static const int32_t row[] = {0};
    int result = CHECK_OK;
    rig_forget(r);
    for (int32_t i = 0; i < N + M && !result; i++) {
        rig_piece p =
            i < N ? (rig_piece){0, 1, i, &ids_a[i]} : (rig_piece){1, 1, i - N, &ids_b[i - N]};
        result = rig_forward(r, &p, 1, row, 1, 0, ref + (size_t)i * V, why);
    }
    return result;
}

/* Rows got[k] must be ref[want[k]], to the bit. */
static int equal(const rig *r, const float *ref, const float *got, const int32_t *want, int32_t n,
                 const char *what, turbo_err *why)
{
    size_t V = (size_t)r->info.vocab;
    for (int32_t k = 0; k < n; k++)
        if (memcmp(ref + (size_t)want[k] * V, got + (size_t)k * V, V * sizeof *got)) {
            turbod_err(why, 0, "%s: row %d differs from the same token computed alone", what, k);
            return CHECK_FAILED;
        }
    return CHECK_OK;
}

static int whole(rig *r, const float *ref, float *got, int fill, turbo_err *why)
{
    int32_t all[N];
    for (int32_t i = 0; i < N; i++)
        all[i] = i;
    rig_piece p = {0, N, 0, ids_a};
    rig_forget(r);
    int result = rig_forward(r, &p, 1, all, N, fill, got, why);
    return result ? result
                  : equal(r, ref, got, all, N,
                          fill ? "a prompt in one step, workspace full of NaN"
                               : "a prompt in one step",
                          why);
}

/* Two sequences; the rows that are wanted are few and in no order. */
static int ragged(rig *r, const float *ref, float *got, turbo_err *why)
{
    static const int32_t rows[] = {M + N - 1, M - 1, M + 3}, want[] = {N - 1, N + M - 1, 3};
    rig_piece p[] = {{1, M, 0, ids_b}, {0, N, 0, ids_a}};
    rig_forget(r);
    int result = rig_forward(r, p, 2, rows, 3, 0xff, got, why);
    return result ? result
                  : equal(r, ref, got, want, 3,
                          "two sequences in one step, 3 rows chosen by row_index", why);
}

/* A piece of a prompt wants no logits; the rest follows beside a decode of the other sequence. */
static int pieces(rig *r, const float *ref, float *got, turbo_err *why)
{
    static const int32_t rows[] = {0, N - 5}, want[] = {N + M - 1, N - 1};
    rig_piece first[] = {{0, 5, 0, ids_a}, {1, M - 1, 0, ids_b}};
    rig_piece then[] = {{1, 1, M - 1, ids_b + M - 1}, {0, N - 5, 5, ids_a + 5}};
    rig_forget(r);
    int result = rig_forward(r, first, 2, NULL, 0, 0, got, why);
    if (!result)
        result = rig_forward(r, then, 2, rows, 2, 0xff, got, why);
    return result
               ? result
               : equal(r, ref, got, want, 2, "a prompt in two pieces, the first without rows", why);
}

static int room(const turbo_model_vtbl *v, rig **r, float **ref, float **got, turbo_err *why)
{
    int result = rig_open(v, r, why);
    if (result)
        return result;
    size_t row = (size_t)(*r)->info.vocab * sizeof(float);
    *ref = calloc(N + M, row);
    *got = calloc(N + M, row);
    if (*ref && *got)
        return CHECK_OK;
    turbod_err(why, 0, "no memory for the test");
    return CHECK_FAILED;
}

static int model_forward(const void *vtbl, turbo_err *why)
{
    rig *r = NULL;
    float *ref = NULL, *got = NULL;
    int result = room(vtbl, &r, &ref, &got, why);
    if (!result)
        result = one_by_one(r, ref, why);
    if (!result && !memcmp(ref, ref + r->info.vocab, (size_t)r->info.vocab * sizeof *ref)) {
        turbod_err(why, 0, "the logits are the same whatever the token");
        result = CHECK_FAILED;
    }
    if (!result)
        r->v->close(r->model);
    return result;
}

static int model_rows(const void *vtbl, turbo_err *why)
{
    rig *r = NULL;
    float *ref = NULL, *got = NULL;
    int result = room(vtbl, &r, &ref, &got, why);
    if (!result)
        result = one_by_one(r, ref, why);
    if (!result)
        result = whole(r, ref, got, 0, why);
    if (!result)
        result = whole(r, ref, got, 0xff, why);
    if (!result)
        result = ragged(r, ref, got, why);
    return result ? result : pieces(r, ref, got, why);
}

static int model_calls(const void *vtbl, turbo_err *why)
{
    rig *r = NULL;
    float *ref = NULL, *got = NULL;
    int result = room(vtbl, &r, &ref, &got, why);
    if (result)
        return result;
    if (!check_trap(vtbl, why))
        return CHECK_SKIPPED;
    result = one_by_one(r, ref, why);
    return result ? result : pieces(r, ref, got, why);
}

const check_test check_forward_tests[] = {
    {"forward computes inside its workspace", model_forward},
    {"a row is the same alone and in a batch", model_rows},
    {"forward neither allocates, locks nor writes files", model_calls},
    {NULL, NULL},
};
