/* Stop strings are found however the text is cut, and nothing of them is shown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/stop.h"

/* Feeds text in pieces of the given sizes (cycled); returns what was shown, and the match. */
static int32_t feed(const char *const *stops, int32_t n, const char *text, size_t piece,
                    bool include, char *shown)
{
    turbod_stop s;
    assert_true(turbod_stop_init(&s, stops, n));
    size_t len = strlen(text), w = 0;
    int32_t hit = -1;
    const char *out;
    size_t out_len;
    for (size_t i = 0; i < len && hit < 0; i += piece) {
        size_t l = len - i < piece ? len - i : piece;
        hit = turbod_stop_push(&s, text + i, l, include, &out, &out_len);
        memcpy(shown + w, out, out_len);
        w += out_len;
    }
    if (hit < 0) {
        turbod_stop_flush(&s, &out, &out_len);
        memcpy(shown + w, out, out_len);
        w += out_len;
    }
    shown[w] = '\0';
    turbod_stop_free(&s);
    return hit;
}

static void test_every_split(void **state)
{
    (void)state;
    static const char *const stops[] = {"</s>", "END", "ababc"};
    static const struct {
        const char *text, *want, *with;
        int32_t hit;
    } rows[] = {
        {"hello world", "hello world", "hello world", -1},
        {"one END two", "one ", "one END", 1},
        {"abababcd", "ab", "abababc", 2},
        {"x</s", "x</s", "x</s", -1},
        {"</</s>tail", "</", "</</s>", 0},
        {"ENENDEND", "EN", "ENEND", 1},
        {"END</s>", "", "END", 1},
    };
    char shown[256];
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
        for (size_t piece = 1; piece <= strlen(rows[r].text); piece++) {
            assert_int_equal(feed(stops, 3, rows[r].text, piece, false, shown), rows[r].hit);
            assert_string_equal(shown, rows[r].want);
            assert_int_equal(feed(stops, 3, rows[r].text, piece, true, shown), rows[r].hit);
            assert_string_equal(shown, rows[r].with);
        }
}

/* Of two that start at one place the longer wins when both are there. */
static void test_longest_at_one_place(void **state)
{
    (void)state;
    static const char *const stops[] = {"ab", "abc"};
    char shown[64];
    assert_int_equal(feed(stops, 2, "xabcd", 5, true, shown), 1);
    assert_string_equal(shown, "xabc");
}

/* Random texts over a small alphabet against a plain search in the whole text. */
static void test_random(void **state)
{
    (void)state;
    uint32_t seed = 7;
    for (int round = 0; round < 3000; round++) {
        char text[41], a[6], b[6], shown[64];
        const char *stops[] = {a, b};
#define RND(n) ((seed = seed * 1664525u + 1013904223u) >> 16) % (n)
        size_t n = 1 + RND(40);
        for (size_t i = 0; i < n; i++)
            text[i] = (char)('a' + RND(2));
        text[n] = '\0';
        for (int k = 0; k < 2; k++) {
            char *s = k ? b : a;
            size_t l = 2 + RND(3);
            for (size_t i = 0; i < l; i++)
                s[i] = (char)('a' + RND(2));
            s[l] = '\0';
        }
        const char *ma = strstr(text, a), *mb = strstr(text, b);
        /* One byte at a time the stop that ends first is found first. */
        size_t ea = ma ? (size_t)(ma - text) + strlen(a) : 1000;
        size_t eb = mb ? (size_t)(mb - text) + strlen(b) : 1000;
        size_t end = ea < eb ? ea : eb;
        int32_t hit = feed(stops, 2, text, 1, true, shown);
        if (end == 1000) {
            assert_int_equal(hit, -1);
            assert_string_equal(shown, text);
        } else {
            assert_true(hit >= 0);
            assert_int_equal(strlen(shown), end);
            assert_memory_equal(shown, text, end);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_split),
        cmocka_unit_test(test_longest_at_one_place),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
