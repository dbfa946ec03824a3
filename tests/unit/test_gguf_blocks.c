/* Blocks of GGUF files, bit for bit against the numbers that the package gguf computed (tests/golden/gguf): each
 * type alone, and beside any other in one matrix. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weights/gguf.h"
#include "weights/gguf_blocks.h"

static const char *const quantised[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",  "Q2_K",
                                        "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"};
enum { TYPES = sizeof quantised / sizeof quantised[0] };

static turbod_gguf *golden(void)
{
    const char *src = getenv("srcdir");
    char name[512];
    turbod_gguf *g = NULL;
    turbo_err err = {{0}};
    snprintf(name, sizeof name, "%s/tests/golden/gguf/blocks.gguf", src ? src : ".");
    if (turbod_gguf_open(name, &g, &err))
        fail_msg("%s", err.text);
    return g;
}

static const turbod_st_tensor *tensor(const turbod_gguf *g, const char *type, const char *end)
{
    char name[32];
    snprintf(name, sizeof name, "%s.%s", type, end);
    const turbod_st_tensor *t = turbod_gguf_tensor(g, name);
    assert_non_null(t);
    return t;
}

/* Row r of t through a grid of form f. */
static bool through(const turbod_st_tensor *t, uint64_t r, const turbod_gguf_form *f, float *out)
{
    uint8_t codes[512];
    float scale[32], min[32];
    int64_t in = (int64_t)t->dims[1];
    turbok_grid g = f->g;
    g.codes = codes;
    g.scale = scale;
    g.min = f->min ? min : NULL;
    bool ok = turbod_gguf_unpack(t->block, t->data + r * (t->bytes / t->dims[0]), in, f, codes,
                                 scale, min);
    turbok_grid_row(&g, 0, in, out);
    return ok;
}

static void same_bits(const turbod_st_tensor *want, uint64_t r, const float *got, const char *what)
{
    uint64_t n = want->dims[1];
    const uint8_t *p = want->data + r * n * 4;
    for (uint64_t i = 0; i < n; i++)
        if (memcmp(p + 4 * i, &got[i], 4) != 0) {
            float w;
            memcpy(&w, p + 4 * i, 4);
            fail_msg("%s: row %d, number %d: %.9g, %.9g is right", what, (int)r, (int)i,
                     (double)got[i], (double)w);
        }
}

static void test_blocks(void **state)
{
    (void)state;
    turbod_gguf *g = golden();
    float out[512];
    for (int i = 0; i < TYPES; i++) {
        const turbod_st_tensor *in = tensor(g, quantised[i], "in"),
                               *want = tensor(g, quantised[i], "out");
        turbod_gguf_form f = turbod_gguf_form_of(&in->block, 1);
        assert_string_equal(in->block->name, quantised[i]);
        assert_int_equal(f.g.bits, in->block->bits);
        assert_int_equal(f.g.group, in->block->group);
        for (uint64_t r = 0; r < in->dims[0]; r++) {
            assert_true(through(in, r, &f, out));
            same_bits(want, r, out, quantised[i]);
        }
    }
    turbod_gguf_close(g);
}

/* Two types in one matrix, as attn_v often differs from attn_q: each keeps its numbers. */
static void test_pairs(void **state)
{
    (void)state;
    turbod_gguf *g = golden();
    float out[512];
    for (int i = 0; i < TYPES; i++)
        for (int j = 0; j < TYPES; j++) {
            const turbod_st_tensor *a = tensor(g, quantised[i], "in");
            const turbod_gguf_type *two[] = {a->block, tensor(g, quantised[j], "in")->block};
            turbod_gguf_form f = turbod_gguf_form_of(two, 2);
            char what[32];
            snprintf(what, sizeof what, "%s beside %s", quantised[i], quantised[j]);
            for (uint64_t r = 0; r < a->dims[0]; r++) {
                assert_true(through(a, r, &f, out));
                same_bits(tensor(g, quantised[i], "out"), r, out, what);
            }
        }
    turbod_gguf_close(g);
}

static void test_scale_not_finite(void **state)
{
    (void)state;
    turbod_gguf *g = golden();
    float out[512];
    static const int at[] = {0, 0, 0, 0, 0, 80, 108, 0, 0, 208, 0};
    static const int second[] = {-1, 2, -1, 2, -1, 82, -1, 2, 2, -1, -1};
    for (int i = 0; i < TYPES; i++)
        for (int k = 0; k < 4; k++) {
            const turbod_st_tensor *in = tensor(g, quantised[i], "in");
            uint8_t bytes[512];
            turbod_st_tensor bad = *in;
            int where = k < 2 ? at[i] : second[i];
            if (where < 0)
                continue;
            bad.bytes /= bad.dims[0];
            bad.dims[0] = 1;
            memcpy(bytes, in->data, bad.bytes);
            bytes[where + 1] = (uint8_t)(k % 2 ? 0x7c : 0xfe); /* infinity, NaN */
            bad.data = bytes;
            turbod_gguf_form f = turbod_gguf_form_of(&bad.block, 1);
            assert_false(through(&bad, 0, &f, out));
            assert_false(turbod_gguf_finite(bad.block, bytes, (int64_t)bad.dims[1]));
            assert_true(turbod_gguf_finite(bad.block, in->data, (int64_t)bad.dims[1]));
        }
    turbod_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_scale_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
