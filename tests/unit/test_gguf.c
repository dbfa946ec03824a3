/* GGUF files: what is in one is found, what becomes of it as config.json, and files that are cut, lie about
 * themselves or hold what is not read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf_writer.h"
#include "turbo/ext/gguf.h"
#include "util/json.h"
#include "weights/gguf.h"
#include "weights/gguf_map.h"

static char folder[64], path[128];

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/turbo-gguf-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/x.gguf", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

/* ---- whole files ------------------------------------------------------------------------------------ */

static void key_array(gguf_writer *w, const char *key, uint32_t elem, uint64_t n)
{
    gguf_key(w, key, TURBO_GGUF_ARRAY);
    gguf_u32(w, elem);
    gguf_u64(w, n);
}

/* One value of each type, three tensors. */
static void good(gguf_writer *w)
{
    float v[64] = {1, 2, 3};
    uint8_t q[34] = {0, 0x3c, 1, 255};
    gguf_begin(w);
    gguf_key_text(w, "general.architecture", "test");
    gguf_key_u32(w, "a.u32", 4000000000u);
    gguf_key_f32(w, "a.f32", 1.5f);
    gguf_key(w, "a.u8", TURBO_GGUF_U8);
    gguf_bytes(w, "\xff", 1);
    gguf_key(w, "a.i8", TURBO_GGUF_I8);
    gguf_bytes(w, "\xff", 1);
    gguf_key(w, "a.i16", TURBO_GGUF_I16);
    gguf_bytes(w, "\xfe\xff", 2);
    gguf_key(w, "a.bool", TURBO_GGUF_BOOL);
    gguf_bytes(w, "\1", 1);
    gguf_key(w, "a.i64", TURBO_GGUF_I64);
    gguf_u64(w, (uint64_t)-3);
    gguf_key(w, "a.f64", TURBO_GGUF_F64);
    gguf_bytes(w, &(double){0.1}, 8);
    key_array(w, "a.list", TURBO_GGUF_I32, 3);
    for (uint32_t i = 0; i < 3; i++)
        gguf_u32(w, i - 1);
    key_array(w, "a.texts", TURBO_GGUF_STRING, 2);
    gguf_text(w, "x");
    gguf_text(w, "");
    gguf_tensor(w, "matrix.weight", 0, 4, 16, v, sizeof v);
    gguf_tensor(w, "vector.weight", 0, 0, 3, v, 12);
    gguf_tensor(w, "quant.weight", 8, 1, 32, q, sizeof q);
    gguf_end(w);
}

static turbo_status open_it(const gguf_writer *w, turbod_gguf **g, turbo_err *err)
{
    gguf_save(w, path);
    *g = NULL;
    *err = (turbo_err){{0}};
    return turbod_gguf_open(path, g, err);
}

static double number(const turbod_gguf *g, const char *key, uint64_t i)
{
    double d = NAN;
    const turbod_gguf_value *v = turbod_gguf_find(g, key);
    assert_non_null(v);
    assert_true(turbod_gguf_number(v, i, &d));
    return d;
}

static void test_values(void **state)
{
    (void)state;
    gguf_writer w;
    turbod_gguf *g;
    turbo_err err;
    double d;
    good(&w);
    assert_int_equal(open_it(&w, &g, &err), TURBO_OK);
    assert_true(number(g, "a.u32", 0) == 4e9 && number(g, "a.f32", 0) == 1.5);
    assert_true(number(g, "a.u8", 0) == 255 && number(g, "a.i8", 0) == -1);
    assert_true(number(g, "a.i16", 0) == -2 && number(g, "a.bool", 0) == 1);
    assert_true(number(g, "a.i64", 0) == -3 && number(g, "a.f64", 0) == 0.1);
    assert_true(number(g, "a.list", 0) == -1 && number(g, "a.list", 2) == 1);
    assert_false(turbod_gguf_number(turbod_gguf_find(g, "a.list"), 3, &d));
    assert_false(turbod_gguf_number(turbod_gguf_find(g, "a.u32"), 1, &d));
    assert_false(turbod_gguf_number(turbod_gguf_find(g, "a.texts"), 0, &d));
    assert_true(turbod_gguf_is_string(turbod_gguf_find(g, "general.architecture"), "test"));
    assert_null(turbod_gguf_find(g, "a.u3"));
    const turbod_st_tensor *t = turbod_gguf_tensor(g, "matrix.weight");
    assert_non_null(t);
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->dims[0], 4); /* rows first, other than in the file */
    assert_int_equal(t->dims[1], 16);
    assert_int_equal(t->dtype, TURBO_F32);
    assert_memory_equal(t->data + 4, &(float){2}, 4);
    assert_int_equal(turbod_gguf_tensor(g, "quant.weight")->bytes, 34);
    turbod_gguf_close(g);
    gguf_free(&w);
}

/* Cut anywhere it is refused, with a reason. */
static void test_truncated(void **state)
{
    (void)state;
    gguf_writer w;
    turbod_gguf *g;
    turbo_err err;
    good(&w);
    size_t whole = w.n;
    for (w.n = 0; w.n < whole; w.n++) {
        turbo_status st = open_it(&w, &g, &err);
        if (!st || !strstr(err.text, "x.gguf"))
            fail_msg("%zu of %zu bytes: %d %s", w.n, whole, st, err.text);
        if (w.n > 4 && !strstr(err.text, "truncated") && !strstr(err.text, "the file ends") &&
            !strstr(err.text, "past the end") && !strstr(err.text, "bytes left"))
            fail_msg("%zu of %zu bytes: not said that it is cut: %s", w.n, whole, err.text);
    }
    gguf_free(&w);
}

/* No byte turned into another one does more harm than a refusal. Run under ASan too. */
static void test_changed(void **state)
{
    (void)state;
    gguf_writer w;
    turbod_gguf *g;
    turbo_err err;
    int opened = 0, refused = 0;
    good(&w);
    for (size_t i = 0; i < w.n - w.data_n; i++)
        for (int k = 0; k < 4; k++) {
            static const uint8_t with[] = {0x01, 0x80, 0xff, 0x40};
            uint8_t keep = w.p[i];
            w.p[i] ^= with[k];
            turbo_status st = open_it(&w, &g, &err);
            w.p[i] = keep;
            opened += !st;
            refused += st != 0;
            assert_true(!st || err.text[0]);
            turbod_gguf_close(g);
        }
    assert_true(opened > 100 && refused > 100);
    gguf_free(&w);
}

/* ---- lies ------------------------------------------------------------------------------------------- */

static void refused(gguf_writer *w, const char *words)
{
    turbod_gguf *g;
    turbo_err err;
    turbo_status st = open_it(w, &g, &err);
    if (!st || !strstr(err.text, words))
        fail_msg("\"%s\" is expected, got %d: %s", words, st, err.text);
    gguf_free(w);
}

static void set64(gguf_writer *w, size_t at, uint64_t v)
{
    memcpy(w->p + at, &v, 8);
}

static void test_header(void **state)
{
    (void)state;
    gguf_writer w;
    good(&w);
    memcpy(w.p, "GGML", 4);
    refused(&w, "no GGUF file");
    static const struct {
        uint32_t version;
        const char *words;
    } versions[] = {{2, "version 2 "}, {4, "version 4 "}, {0x03000000, "big-endian"}};
    for (size_t i = 0; i < 3; i++) {
        good(&w);
        memcpy(w.p + 4, &versions[i].version, 4);
        refused(&w, versions[i].words);
    }
    static const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 62, 100, 65537};
    for (size_t i = 0; i < 4; i++) {
        good(&w);
        set64(&w, 8, counts[i]);
        refused(&w, "tensors");
        good(&w);
        set64(&w, 16, counts[i]);
        refused(&w, i == 2 ? "x.gguf" : "keys");
    }
}

static void test_keys(void **state)
{
    (void)state;
    gguf_writer w;
    static const uint64_t huge[] = {UINT64_MAX, UINT64_MAX / 4 + 2, (uint64_t)1 << 40, 1000000};
    for (size_t i = 0; i < 4; i++) {
        gguf_begin(&w);
        gguf_u64(&w, huge[i]); /* the length of a key */
        gguf_bytes(&w, "abcdefghijklmnop", 16);
        w.n_keys = 1;
        gguf_end(&w);
        refused(&w, "metadata key 0");
        gguf_begin(&w);
        gguf_key(&w, "k.text", TURBO_GGUF_STRING);
        gguf_u64(&w, huge[i]);
        gguf_end(&w);
        refused(&w, "k.text");
        for (uint32_t elem = 0; elem < 13; elem++) {
            gguf_begin(&w);
            key_array(&w, "k.list", elem, huge[i]);
            gguf_end(&w);
            refused(&w, "k.list");
        }
        gguf_begin(&w);
        key_array(&w, "k.texts", TURBO_GGUF_STRING, 2);
        gguf_text(&w, "x");
        gguf_u64(&w, huge[i]);
        gguf_end(&w);
        refused(&w, "string 1 of its array");
    }
    static const uint32_t types[] = {13, 99, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        gguf_begin(&w);
        gguf_key(&w, "k.odd", types[i]);
        gguf_u64(&w, 0);
        gguf_end(&w);
        refused(&w, "unknown type");
        gguf_begin(&w);
        key_array(&w, "k.odd", types[i], 1);
        gguf_u64(&w, 0);
        gguf_end(&w);
        refused(&w, "k.odd is an array of the type");
    }
    gguf_begin(&w);
    gguf_key(&w, "k.flag", TURBO_GGUF_BOOL);
    gguf_bytes(&w, "\2", 1);
    gguf_end(&w);
    refused(&w, "truth value is 2");
    gguf_begin(&w);
    gguf_key_u32(&w, "k.twice", 1);
    gguf_key_f32(&w, "k.other", 1);
    gguf_key_u32(&w, "k.twice", 2);
    gguf_end(&w);
    refused(&w, "k.twice stands there twice");
    static const uint32_t alignments[] = {0, 1, 7, 24, 1u << 21};
    for (size_t i = 0; i < 5; i++) {
        gguf_begin(&w);
        gguf_key_u32(&w, "general.alignment", alignments[i]);
        gguf_end(&w);
        refused(&w, "general.alignment");
    }
    gguf_begin(&w);
    gguf_key_u32(&w, "split.count", 3);
    gguf_end(&w);
    refused(&w, "one of 3 parts");
}

/* A description that gguf_tensor would not write; its data is `room` bytes. */
static void odd(gguf_writer *w, uint32_t ndim, const uint64_t *dims, uint32_t type, uint64_t offset,
                size_t room)
{
    gguf_begin(w);
    gguf_text(w, "t.weight");
    gguf_u32(w, ndim);
    for (uint32_t i = 0; i < ndim && i < 8; i++)
        gguf_u64(w, dims[i]);
    gguf_u32(w, type);
    gguf_u64(w, offset);
    w->n_tensors = 1;
    w->data = calloc(1, room + 1);
    w->data_n = room;
    gguf_end(w);
}

static void test_tensors(void **state)
{
    (void)state;
    static const struct {
        uint32_t ndim, type;
        uint64_t dims[5], offset;
        const char *words;
    } rows[] = {
        {0, 0, {1}, 0, "0 dimensions"},
        {5, 0, {1, 1, 1, 1, 1}, 0, "5 dimensions"},
        {UINT32_MAX, 0, {1}, 0, "dimensions"},
        {2, 0, {0, 4}, 0, "dimension of 0"},
        {2, 0, {UINT64_MAX, 4}, 0, "t.weight has a dimension"},
        {2, 0, {(uint64_t)1 << 40, (uint64_t)1 << 40}, 0, "overflows"},
        {4, 0, {(uint64_t)1 << 47, (uint64_t)1 << 15, 1, 1}, 0, "overflows"},
        {1, 0, {(uint64_t)1 << 40}, 0, "truncated"},
        {1, 0, {26}, 0, "truncated"},
        {1, 0, {4}, 96, "truncated"},
        {1, 0, {1}, UINT64_MAX - 31, "truncated"},
        {1, 0, {1}, 8, "no multiple of the alignment"},
        {2, 8, {33, 1}, 0, "blocks of 32 do not divide"},
        {2, 12, {128, 2}, 0, "blocks of 256 do not divide"},
        {1, 16, {256}, 0, "is IQ2_XXS, which is not read"},
        {1, 39, {32}, 0, "is MXFP4, which is not read"},
        {1, 9, {32}, 0, "is Q8_1, which is not read"},
        {1, 4, {32}, 0, "unknown type 4"},
        {1, 4000, {32}, 0, "unknown type 4000"},
    };
    gguf_writer w;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        odd(&w, rows[i].ndim, rows[i].dims, rows[i].type, rows[i].offset, 100);
        refused(&w, rows[i].words);
    }
    float v[16] = {0};
    gguf_begin(&w);
    gguf_tensor(&w, "twice", 0, 0, 8, v, 32);
    gguf_tensor(&w, "twice", 0, 0, 8, v, 32);
    gguf_end(&w);
    refused(&w, "twice stands there twice");
    gguf_begin(&w);
    gguf_tensor(&w, "one", 0, 0, 16, v, 64);
    gguf_tensor(&w, "two", 0, 0, 8, v, 32);
    size_t at = w.n - 8; /* the offset of the second */
    gguf_end(&w);
    set64(&w, at, 32);
    refused(&w, "lies upon tensor one");
    gguf_begin(&w);
    gguf_tensor(&w, "", 0, 0, 8, v, 32);
    gguf_end(&w);
    refused(&w, "no text of 1 to");
    gguf_begin(&w);
    gguf_tensor(&w, "\xff", 0, 0, 8, v, 32);
    gguf_end(&w);
    refused(&w, "no text of 1 to");
}

/* ---- config ------------------------------------------------------------------------------------------ */

static const turbo_gguf_row keys[] = {
    {".must", "", "1", TURBO_GGUF_MUST, 0},
    {".width", "a", 0, TURBO_GGUF_KEY, 0},
    {".other", "a", 0, TURBO_GGUF_KEY, 0},
    {".same", "a", 0, TURBO_GGUF_SAME, 0},
    {".base", "rope_theta", 0, TURBO_GGUF_KEY, 0},
    {"m.weight", "rows", 0, TURBO_GGUF_ROWS, 0},
    {"m.weight", "has", 0, TURBO_GGUF_HAS, 0},
    {"none.weight", "lacks", 0, TURBO_GGUF_LACKS, 0},
    {"bands.weight", "rope", "kind", TURBO_GGUF_BANDS, 0},
    {".type", "scale.type", "none", TURBO_GGUF_OPEN, 0},
    {".factor", "scale.factor", 0, TURBO_GGUF_KEY, 0},
    {".list", "list", 0, TURBO_GGUF_KEY, 0},
    {0},
};
static const turbo_gguf_row no_tensors[] = {{0}};
static const turbo_gguf table = {sizeof table, 0, "test", "{\"x\":1,\"a\":null}", keys, no_tensors};

static turbo_status config(gguf_writer *w, cJSON **out, turbo_err *err)
{
    turbod_gguf *g;
    gguf_end(w);
    turbo_status st = open_it(w, &g, err);
    assert_int_equal(st, TURBO_OK);
    *out = NULL;
    st = turbod_gguf_config(g, &table, out, err);
    turbod_gguf_close(g);
    gguf_free(w);
    return st;
}

static void test_config(void **state)
{
    (void)state;
    gguf_writer w;
    cJSON *c;
    turbo_err err;
    float v[16] = {0};
    for (int k = 0; k < 4; k++) {
        gguf_begin(&w);
        gguf_key_u32(&w, "test.width", 7);
        gguf_key_u32(&w, "test.other", 8);
        gguf_key_u32(&w, "test.same", k == 1 ? 8 : 7);
        gguf_key_u32(&w, "test.must", k == 2 ? 2 : 1);
        gguf_key_text(&w, "test.type", k == 3 ? "none" : "linear");
        gguf_key_f32(&w, "test.factor", 2);
        key_array(&w, "test.list", TURBO_GGUF_U32, 2);
        gguf_u32(&w, 5);
        gguf_u32(&w, 6);
        gguf_tensor(&w, "m.weight", 0, 2, 8, v, sizeof v);
        turbo_status st = config(&w, &c, &err);
        if (k == 1 || k == 2) {
            assert_int_equal(st, TURBO_EUNSUPPORTED);
            assert_non_null(strstr(err.text, k == 1 ? ".same differs" : "test.must is not 1"));
            continue;
        }
        assert_int_equal(st, TURBO_OK);
        char *text = cJSON_PrintUnformatted(c);
        assert_string_equal(text, k == 3
                                      ? "{\"x\":1,\"a\":7,\"rows\":2,\"has\":true,\"lacks\":true,"
                                        "\"list\":[5,6]}"
                                      : "{\"x\":1,\"a\":7,\"rows\":2,\"has\":true,\"lacks\":true,"
                                        "\"scale\":{\"type\":\"linear\",\"factor\":2},"
                                        "\"list\":[5,6]}");
        free(text);
        cJSON_Delete(c);
    }
}

/* The divisors as converters compute them, in double, stored as fp32. */
static void divisors(float *to, int n, double base, double factor, double low, double high,
                     double original)
{
    for (int i = 0; i < n; i++) {
        double f = pow(base, -2.0 * i / (2 * n)), wave = 2 * M_PI / f;
        double smooth = (original / wave - low) / (high - low);
        double d = wave < original / high  ? 1
                   : wave > original / low ? factor
                                           : 1 / ((1 - smooth) / factor + smooth);
        to[i] = (float)d;
    }
}

static double member(const cJSON *c, const char *key)
{
    return turbod_json_get(turbod_json_get(c, "rope"), key)->valuedouble;
}

static void test_bands(void **state)
{
    (void)state;
    static const struct {
        double base, factor, low, high, original, said_high, said_original;
        int n;
    } rows[] = {
        {500000, 8, 1, 4, 8192, 4, 8192, 64}, /* as published */
        {500000, 32, 1, 4, 8192, 4, 8192, 32},
        {500000, 16, 1, 1, 8192, 0, 0, 64}, /* no band between: not computed */
        {10000, 4, 2, 6, 2048, 3, 1024, 64}, /* only ratios count */
    };
    gguf_writer w;
    cJSON *c;
    turbo_err err;
    float v[64];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int bent = 0; bent < 2; bent++) {
            divisors(v, rows[i].n, rows[i].base, rows[i].factor, rows[i].low, rows[i].high,
                     rows[i].original);
            v[3] += bent ? 0.01f : 0;
            gguf_begin(&w);
            gguf_key_f32(&w, "test.base", (float)rows[i].base);
            gguf_tensor(&w, "bands.weight", 0, 0, (uint64_t)rows[i].n, v, 4 * (size_t)rows[i].n);
            turbo_status st = config(&w, &c, &err);
            if (bent || !(rows[i].said_high > 0)) {
                assert_int_equal(st, TURBO_EUNSUPPORTED);
                assert_non_null(strstr(err.text, "bands.weight"));
                continue;
            }
            assert_int_equal(st, TURBO_OK);
            assert_true(member(c, "factor") == rows[i].factor);
            assert_true(member(c, "low_freq_factor") == 1);
            assert_true(member(c, "high_freq_factor") == rows[i].said_high);
            assert_true(member(c, "original_max_position_embeddings") == rows[i].said_original);
            cJSON_Delete(c);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),  cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_changed), cmocka_unit_test(test_header),
        cmocka_unit_test(test_keys),    cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_config),  cmocka_unit_test(test_bands),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
