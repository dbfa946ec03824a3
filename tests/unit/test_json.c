/* The strict JSON reader: what must be refused, what must be taken, limits, duplicates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/json.h"

static turbo_status parse(const char *text, size_t n)
{
    cJSON *v = NULL;
    turbo_err err = {{0}};
    turbo_status st = turbod_json_parse(text, n, &turbod_json_request, &v, &err);
    if (st)
        assert_true(strlen(err.text) > 0);
    cJSON_Delete(v);
    return st;
}

static void test_refused(void **s)
{
    (void)s;
    static const char *const bad[] = {
        "", " ", "{", "}", "[", "]", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}",
        "{a:1}", "{'a':1}", "{\"a\":1 \"b\":2}", "{\"a\":1,,\"b\":2}", "nul", "True", "NaN", "Infinity",
        "-Infinity", "01", "-01", "+1", "1.", ".5", "1e", "1e+", "0x10", "1.e3", "--1", "\"", "\"a",
        "\"\t\"", "\"\n\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud800\"", "\"\\udc00\"",
        "\"\\ud800\\u0041\"", "\"\\u0000\"", "1 1", "[1]]", "{}{}", "/**/1", "[1]//x", "\xEF\xBB\xBF{}",
        "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\"",
        "{\"a\":1,\"a\":2}", "{\"a\":{\"b\":1,\"b\":1}}", "[{\"x\":1,\"y\":2,\"x\":3}]",
        "{\"a\":1,\"\\u0061\":2}", "\f1", "1\v",
        "1111111111111111111111111111111111111111111111111111111111111111",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (parse(bad[i], strlen(bad[i])) == TURBO_OK)
            fail_msg("taken: %s", bad[i]);
    assert_int_not_equal(parse("\"a\0b\"", 5), TURBO_OK);
    assert_int_not_equal(parse("1\0", 2), TURBO_OK);
}

static void test_taken(void **s)
{
    (void)s;
    static const char *const good[] = {
        "{}", "[]", "1", "-0", "0.5", "1e5", "1E-5", "-1.5e+10", "\"\"", "true", "false", "null", " [ 1 , 2 ] ",
        "{\"a\":{\"b\":[{}]}}", "\"\\u00e9\\ud83d\\ude00\\n\\\"\\\\\\/\\b\\f\\r\\t\"", "\"\xc3\xa9\xf0\x9f\x98\x80\"",
        "[[[[[]]]]]", "{\"a\":1,\"A\":2}", "\r\n\t {\"x\":null}\n", "\"\x7f\"",
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        if (parse(good[i], strlen(good[i])) != TURBO_OK)
            fail_msg("refused: %s", good[i]);
}

static void test_limits(void **s)
{
    (void)s;
    char *text = malloc(400000);
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    assert_int_equal(parse(text, 128), TURBO_OK);
    memset(text, '[', 65);
    memset(text + 65, ']', 65);
    assert_int_equal(parse(text, 130), TURBO_EINVAL);
    memset(text, '[', 100000);
    assert_int_equal(parse(text, 100000), TURBO_EINVAL);
    size_t n = 1;
    text[0] = '[';
    for (int i = 0; i < 65536; i++, n += 2)
        memcpy(text + n, "1,", 2);
    text[n - 1] = ']';
    assert_int_equal(parse(text, n), TURBO_EINVAL); /* 65,536 values and the array itself */
    n = 0;
    n += (size_t)sprintf(text, "{\"%0256d\":1}", 0);
    assert_int_equal(parse(text, n), TURBO_OK);
    n = (size_t)sprintf(text, "{\"%0257d\":1}", 0);
    assert_int_equal(parse(text, n), TURBO_EINVAL);
    free(text);
}

static void test_numbers(void **s)
{
    (void)s;
    cJSON *v = NULL;
    turbo_err err;
    int64_t i;
    double d;
    static const char text[] = "{\"a\":9007199254740991,\"b\":1.5,\"c\":1e999,\"d\":\"1\",\"e\":null,\"f\":-3}";
    assert_int_equal(turbod_json_parse(text, sizeof text - 1, &turbod_json_request, &v, &err), TURBO_OK);
    assert_true(turbod_json_int(turbod_json_get(v, "a"), 0, INT64_MAX, &i) && i == 9007199254740991);
    assert_false(turbod_json_int(turbod_json_get(v, "b"), 0, 10, &i));
    assert_false(turbod_json_num(turbod_json_get(v, "c"), -1e308, 1e308, &d));
    assert_false(turbod_json_int(turbod_json_get(v, "d"), 0, 10, &i));
    assert_null(turbod_json_get(v, "e"));
    assert_null(turbod_json_get(v, "A"));
    assert_true(turbod_json_int(turbod_json_get(v, "f"), -3, 0, &i));
    assert_false(turbod_json_int(turbod_json_get(v, "f"), -2, 0, &i));
    cJSON_Delete(v);
}

static void test_spelling(void **s)
{
    static const struct {
        const char *text;
        bool holds;
    } rows[] = {
        {"{\"image_url\":1}", true},
        {"{\"\\u0069mage_url\":1}", true},
        {"{\"image\\u005furl\":1}", true},
        {"{\"image\\u005Fur\\u006C\":1}", true},
        {"{\"imimage_ur\\u006c\":1}", true},
        {"{\"\\u0069\\u006d\\u0061\\u0067\\u0065\\u005f\\u0075\\u0072\\u006c\":1}", true},
        {"{\"image_uri\":1,\"\\u0069mage\":2}", false},
        {"{\"\\u0169mage_url\":1}", false},
        {"{\"image_ur\\u006", false},
        {"image_ur\\u00", false},
        {"", false},
    };
    (void)s;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t n = strlen(rows[i].text);
        char *exact = malloc(n ? n : 1); /* no byte behind the text: a tool sees a read past it */
        memcpy(exact, rows[i].text, n);
        if (turbod_json_spells(exact, n, "image_url") != rows[i].holds)
            fail_msg("%s", rows[i].text);
        free(exact);
    }
    assert_false(turbod_json_spells(NULL, 0, "image_url"));
}

/* Any change of a byte gives an answer, never a crash; what is taken, cJSON could parse. */
static void test_mutations(void **s)
{
    (void)s;
    static const char seed_text[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"a\\u00e9\\n\"}],\"n\":1.5e3,\"x\":[true,null]}";
    char text[sizeof seed_text];
    uint32_t r = 1;
    for (int round = 0; round < 50000; round++) {
        memcpy(text, seed_text, sizeof text);
        for (int k = 0; k < 1 + round % 3; k++) {
            r = r * 1664525u + 1013904223u;
            text[(r >> 8) % (sizeof text - 1)] = (char)(r >> 24);
        }
        turbo_status st = parse(text, sizeof text - 1);
        assert_true(st == TURBO_OK || st == TURBO_EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_taken),
        cmocka_unit_test(test_limits),    cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_mutations), cmocka_unit_test(test_spelling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
