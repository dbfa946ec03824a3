/* tests/unit/test_util.c: checked arithmetic, buffers, UTF-8, errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/buf.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/log.h"
#include "util/utf8.h"

static void test_checked(void **state)
{
    size_t r;
    uint64_t n, dims[9] = {3, 4, 5, 1, 1, 1, 1, 1, 1};
    int64_t i;
    (void)state;
    assert_true(turbod_mul(1u << 31, 2, &r) && r == (size_t)1 << 32);
    assert_false(turbod_mul(SIZE_MAX, 2, &r));
    assert_false(turbod_add(SIZE_MAX, 1, &r));
    assert_true(turbod_numel(dims, 3, &n) && n == 60);
    assert_true(turbod_numel(dims, 0, &n) && n == 1);
    assert_false(turbod_numel(dims, 9, &n));
    dims[0] = 0;
    dims[1] = UINT64_MAX;
    assert_true(turbod_numel(dims, 2, &n) && n == 0);
    dims[2] = 2;
    assert_false(turbod_numel(dims, 3, &n)); /* a zero does not hide an overflow */
    assert_true(turbod_range(10, 0, 10));
    assert_false(turbod_range(11, 0, 10));
    assert_false(turbod_range(UINT64_MAX, 2, 10));
    assert_true(turbod_round_up(65, 64, &r) && r == 128);
    assert_false(turbod_round_up(SIZE_MAX - 3, 64, &r));
    assert_true(turbod_d2i(3.0, 0, 5, &i) && i == 3);
    assert_false(turbod_d2i(3.5, 0, 5, &i));
    assert_false(turbod_d2i((double)NAN, 0, 5, &i));
    assert_false(turbod_d2i(1e300, INT64_MIN, INT64_MAX, &i));
    assert_false(turbod_d_in((double)NAN, 0, 1));
}

static void test_buf(void **state)
{
    turbod_buf b;
    (void)state;
    turbod_buf_init(&b, 10);
    assert_true(turbod_buf_str(&b, "hello"));
    assert_true(turbod_buf_printf(&b, "%d", 12345));
    assert_int_equal(b.len, 10);
    assert_string_equal(b.ptr, "hello12345");
    assert_false(turbod_buf_add(&b, "x", 1));
    assert_true(b.failed);
    assert_string_equal(b.ptr, "hello12345"); /* what was there stays */
    turbod_buf_clear(&b);
    assert_false(b.failed);
    assert_false(turbod_buf_printf(&b, "%s", "eleven bytes"));
    turbod_buf_free(&b);

    turbod_buf_init(&b, 1000);
    assert_true(turbod_buf_json(&b, "a\"\\\n\x01\xff\xc3\xa4", 8));
    assert_string_equal(b.ptr, "a\\\"\\\\\\n\\u0001\xef\xbf\xbd\xc3\xa4");
    turbod_buf_free(&b);
}

static void test_utf8_valid(void **state)
{
    const struct {
        const char *s;
        bool valid;
    } rows[] = {
        {"", true},
        {"abc", true},
        {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", true},
        {"\xf4\x8f\xbf\xbf", true},
        {"\xc0\x80", false}, /* overlong NUL */
        {"\xe0\x80\xaf", false}, /* overlong */
        {"\xf0\x80\x80\xaf", false}, /* overlong */
        {"\xed\xa0\x80", false}, /* surrogate */
        {"\xf4\x90\x80\x80", false}, /* beyond U+10FFFF */
        {"\xff", false},
        {"\x80", false},
        {"\xe2\x82", false}, /* cut */
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(turbod_utf8_valid(rows[i].s, strlen(rows[i].s)), rows[i].valid);
    assert_true(turbod_utf8_valid("a\0b", 3));
}

/* However a text is cut, the pieces join to the same text. */
static void test_utf8_join(void **state)
{
    static const char text[] = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\xff z\xe2\x82";
    static const char want[] =
        "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\xef\xbf\xbd z\xef\xbf\xbd\xef\xbf\xbd";
    size_t n = sizeof text - 1;
    (void)state;
    for (size_t i = 0; i <= n; i++)
        for (size_t k = i; k <= n; k++) {
            turbod_utf8_join j = {0};
            char out[256], piece[128];
            size_t at = 0, from[4] = {0, i, k, n};
            for (int p = 0; p < 3; p++) {
                size_t len = turbod_utf8_push(&j, text + from[p], from[p + 1] - from[p], piece);
                assert_true(turbod_utf8_valid(piece, len)); /* never half a character */
                memcpy(out + at, piece, len);
                at += len;
            }
            at += turbod_utf8_flush(&j, out + at);
            assert_int_equal(at, sizeof want - 1); /* each byte of the cut sequence is one U+FFFD */
            assert_memory_equal(out, want, at);
            assert_true(turbod_utf8_valid(out, at));
        }
}

static void test_err(void **state)
{
    turbo_err err;
    char longer[600];
    (void)state;
    assert_int_equal(turbod_err(&err, TURBO_EDATA, "x\ny %d", 3), TURBO_EDATA);
    assert_string_equal(err.text, "x?y 3");
    memset(longer, 'a', sizeof longer);
    memcpy(longer + 253, "\xe2\x82\xac", 3); /* the cut falls into a character */
    longer[599] = '\0';
    turbod_err(&err, TURBO_EDATA, "%s", longer);
    assert_true(strlen(err.text) < sizeof err.text);
    assert_true(turbod_utf8_valid(err.text, strlen(err.text)));
    assert_int_equal(turbod_err(NULL, TURBO_EIO, "nobody listens"), TURBO_EIO);
    assert_string_equal(turbod_status_name(TURBO_ENOMEM), "ENOMEM");
    const struct {
        turbo_status st;
        int code;
    } rows[] = {{TURBO_OK, 0},      {TURBO_EDATA, 65},  {TURBO_ENOENT, 66},      {TURBO_ENOMEM, 71},
                {TURBO_EIO, 74},    {TURBO_EINVAL, 78}, {TURBO_EINTERNAL, 75},   {TURBO_EBUSY, 75},
                {TURBO_ELIMIT, 65}, {TURBO_EABI, 78},   {TURBO_EUNSUPPORTED, 65}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(turbod_exit_code(rows[i].st), rows[i].code);
}

static void test_log_level(void **state)
{
    (void)state;
    assert_int_equal(turbod_log_level_of("debug"), TURBO_LOG_DEBUG);
    assert_int_equal(turbod_log_level_of("loud"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checked),    cmocka_unit_test(test_buf),
        cmocka_unit_test(test_utf8_valid), cmocka_unit_test(test_utf8_join),
        cmocka_unit_test(test_err),        cmocka_unit_test(test_log_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
