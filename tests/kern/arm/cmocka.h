/* tests/kern/arm/cmocka.h: what the kernel tests use of cmocka, for a kind of CPU that its library is not
 * installed for. The same names and meanings, but the first failure ends the program with status 1. */
#ifndef ARM_CMOCKA_H
#define ARM_CMOCKA_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*test_func)(void **state);
    int (*setup_func)(void **state), (*teardown_func)(void **state);
    void *initial_state;
};

#define cmocka_unit_test(f)                                                                        \
    {                                                                                              \
        .name = #f, .test_func = f                                                                 \
    }
#define print_message printf

static inline _Noreturn void arm_fail(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static inline _Noreturn void arm_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;
    printf("%s:%d: ", file, line);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    exit(1);
}

#define fail_msg(...) arm_fail(__FILE__, __LINE__, __VA_ARGS__)
#define assert_true(c) ((c) ? (void)0 : fail_msg("%s", #c))
#define assert_false(c) assert_true(!(c))
#define assert_non_null(p) assert_true((p) != NULL)
#define assert_int_equal(a, b)                                                                     \
    ((intmax_t)(a) == (intmax_t)(b)                                                                \
         ? (void)0                                                                                 \
         : fail_msg("%s is %jd, not %jd", #a, (intmax_t)(a), (intmax_t)(b)))
#define assert_in_range(v, lo, hi)                                                                 \
    ((intmax_t)(v) >= (lo) && (intmax_t)(v) <= (hi)                                                \
         ? (void)0                                                                                 \
         : fail_msg("%s is %jd, not %jd to %jd", #v, (intmax_t)(v), (intmax_t)(lo),                \
                    (intmax_t)(hi)))
#define assert_memory_equal(a, b, n) assert_true(!memcmp(a, b, n))

static inline int arm_run(const char *group, const struct CMUnitTest *tests, size_t n,
                          int (*setup)(void **), int (*teardown)(void **))
{
    void *shared = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (setup && setup(&shared))
        fail_msg("%s: the setup failed", group);
    for (size_t i = 0; i < n; i++) {
        void *state = tests[i].initial_state ? tests[i].initial_state : shared;
        printf("%s: %s\n", group, tests[i].name);
        if (tests[i].setup_func && tests[i].setup_func(&state))
            fail_msg("%s: the setup failed", tests[i].name);
        tests[i].test_func(&state);
        if (tests[i].teardown_func && tests[i].teardown_func(&state))
            fail_msg("%s: the teardown failed", tests[i].name);
    }
    return teardown && teardown(&shared) ? 1 : 0;
}

#define cmocka_run_group_tests_name(name, tests, setup, teardown)                                  \
    arm_run(name, tests, sizeof(tests) / sizeof *(tests), setup, teardown)

#endif
