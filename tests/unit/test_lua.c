/* tests/unit/test_lua.c: the sandbox against tests/lua/hostile.txt, and the library that scripts
 * see. Environment: srcdir, the source folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lua/sandbox.h"

/* On a slow or busy machine a memory hog may run out of time first: an M line takes an L. */

static const char *source_dir(void)
{
    const char *s = getenv("srcdir");
    return s && *s ? s : ".";
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* How one script ends: L, M, N or R. */
static char class_of(const char *text, turbo_err *err)
{
    turbod_script script;
    turbod_lua s;
    char c = 'N';
    err->text[0] = '\0';
    if (turbod_script_compile(text, strlen(text), "hostile.lua", &script, err))
        return 'N';
    assert_int_equal(turbod_lua_open(&s, 0, NULL, err), TURBO_OK);
    turbod_lua_clock(&s, TURBOD_LUA_REQUEST_MS);
    turbo_status st = turbod_lua_run(&s, &script, err);
    if (!st)
        c = 'R';
    else if (st == TURBO_ELIMIT)
        c = s.dead ? 'L' : 'M';
    assert_int_equal(s.dead, c == 'L');
    turbod_lua_close(&s);
    assert_int_equal(s.used, 0);
    turbod_script_free(&script);
    return c;
}

/* Every script of the file ends as it must, in time. */
static int run_hostile(double *slowest)
{
    char path[4096], line[1024];
    int n = 0, wrong = 0;
    snprintf(path, sizeof path, "%s/tests/lua/hostile.txt", source_dir());
    FILE *f = fopen(path, "r");
    if (!f)
        fail_msg("%s is missing; set srcdir", path);
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *script = strchr(line, ' ');
        if (line[0] == '#' || !script)
            continue;
        *script++ = '\0';
        turbo_err err;
        double t = now_ms();
        char c = class_of(script, &err);
        t = now_ms() - t;
        if (!strchr(line, c) && !(c == 'L' && strchr(line, 'M'))) {
            print_message("ended as %c, not %s: %s\n(%s)\n", c, line, script, err.text);
            wrong++;
        }
        if (c != 'R')
            assert_true(strlen(err.text) > 0);
        *slowest = t > *slowest ? t : *slowest;
        n++;
    }
    fclose(f);
    assert_int_equal(wrong, 0);
    return n;
}

static void test_hostile(void **state)
{
    (void)state;
    double slowest = 0;
#if defined(__SANITIZE_THREAD__)
    print_message("SKIP: ThreadSanitizer loses count of stack frames over the library's longjmp\n");
    skip();
#endif
    int n = run_hostile(&slowest);
    assert_true(n >= 90);
    print_message("%d scripts, slowest %.1f ms\n", n, slowest);
}

static long rss_kib(void)
{
    long size = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &size, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

/* Memory hogs a thousand times: the process does not grow. */
static void test_rss(void **state)
{
    static const char *const hogs[] = {
        "local t = {} while true do t = { t } end",
        "local s = '' while true do s = s .. s .. 'x' end",
        "local t = {} for i = 1, 1e6 do t[i] = 1 end",
        "return tostring(('x'):rep(1e9))",
    };
    turbo_err err;
    long before = 0;
    (void)state;
    for (int round = 0; round < 1000; round++) {
        class_of(hogs[round % 4], &err);
        if (round == 100)
            before = rss_kib();
    }
    long grown = rss_kib() - before;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    print_message("grown by %ld KiB (not judged under a sanitizer)\n", grown);
#else
    if (grown > 8 * 1024)
        fail_msg("grown by %ld KiB", grown);
#endif
}

/* What one script leaves behind the next does not see. */
static void test_fresh(void **state)
{
    turbo_err err;
    (void)state;
    assert_int_equal(class_of("string.len = function() return 1 end secret = 7 "
                              "string.upper = nil math.floor = nil",
                              &err),
                     'R');
    assert_int_equal(class_of("assert(secret == nil) assert(('abc'):len() == 3) "
                              "assert(('a'):upper() == 'A') assert(math.floor(1.5) == 1)",
                              &err),
                     'R');
    assert_int_equal(class_of("assert(secret == 7, 'nothing was left')", &err), 'N');
    assert_string_equal(err.text, "nothing was left");
}

/* The replaced functions do what Lua's manual says, within their bounds. */
static void test_library(void **state)
{
    static const char *const good[] = {
        "assert(('ab'):rep(3, '-') == 'ab-ab-ab')",
        "assert(('ab'):rep(0) == '' and ('x'):rep(-5) == '')",
        "assert(#('x'):rep(65536) == 65536)",
        "local a, b = ('hello'):find('l') assert(a == 3 and b == 3)",
        "assert(('a.b'):find('.') == 2)",
        "assert(('hello'):find('l', 4) == 4 and ('hello'):find('l', 5) == nil)",
        "assert(('hello'):find('o', -1) == 5 and ('hello'):find('h', -99) == 1)",
        "local a, b = ('abc'):find('') assert(a == 1 and b == 0)",
        "local a, b = ('abc'):find('', 4) assert(a == 4 and b == 3)",
        "assert(('abc'):find('', 5) == nil and ('a\\0b'):find('\\0') == 2)",
        "assert(string.format('%d %5.2f %s %s', 3, 1.5, 'x', nil) == '3  1.50 x nil')",
        "assert(string.format('%-5s|%05d|%x', 'ab', 42, 255) == 'ab   |00042|ff')",
        "assert(string.format('%q', 'a\"b') == '\"a\\\\\"b\"')",
        "assert(string.format('100%%') == '100%')",
        "assert(tostring(12) == '12' and tostring(true) == 'true' and tostring(nil) == 'nil')",
        "assert(tostring({}) == 'table' and tostring(tostring) == 'function')",
        "assert(select('#', assert(1, 2, 3)) == 3)",
        "local ok, e = pcall(error, 'x') assert(not ok and e == 'x')",
        "local ok, e = pcall(error, {1}) assert(not ok and e[1] == 1)",
        "assert(tonumber('0x10') == 16 and '10' + 1 == 11)",
    };
    turbo_err err;
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        if (class_of(good[i], &err) != 'R')
            fail_msg("%s: %s", good[i], err.text);
}

/* Texts: the script's own words, or file and line; always one line of UTF-8. */
static void test_texts(void **state)
{
    turbo_err err;
    (void)state;
    class_of("error('plain words')", &err);
    assert_string_equal(err.text, "plain words");
    class_of("\n\nlocal x = nil; x.y = 1", &err);
    assert_non_null(strstr(err.text, "hostile.lua:3: "));
    class_of("x = = 1", &err);
    assert_non_null(strstr(err.text, "hostile.lua:1: "));
    class_of("error('a\\nb\\0c\\xff')", &err);
    assert_string_equal(err.text, "a?b?c?");
    class_of("error({})", &err);
    assert_non_null(strstr(err.text, "raised a table"));
    /* Binary code never comes in from outside. */
    assert_int_equal(class_of("\x1bLua", &err), 'N');
    assert_non_null(strstr(err.text, "binary"));
    static char long_script[TURBOD_LUA_SOURCE_MAX + 2];
    memset(long_script, ' ', sizeof long_script - 1);
    class_of(long_script, &err);
    assert_non_null(strstr(err.text, "65537"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile), cmocka_unit_test(test_rss),   cmocka_unit_test(test_fresh),
        cmocka_unit_test(test_library), cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
