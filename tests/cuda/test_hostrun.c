/* tests/cuda/test_hostrun.c: hostrun itself: a right kernel gives the right numbers in every order of
 * threads, and each deliberately wrong one of faulty.cu is caught. Accesses out of bounds are the address
 * sanitizer's to find: those run in a child, in builds that have it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda/hostrun/hostrun.h"
#include "faulty.h"

enum { N = 128 };
static int in[4 * N + 4] __attribute__((aligned(16)));

static int run(const char *name, struct turbok_cu_faulty_args a, size_t shared, char *err)
{
    const unsigned grid[3] = {1, 1, 1}, block[3] = {N, 1, 1};
    const hostrun_kernel *k = hostrun_find(name);
    assert_non_null(k);
    assert_int_equal(k->args_bytes, sizeof a);
    err[0] = 0;
    return hostrun_launch(k, grid, block, 1, shared, &a, err, 256);
}

static void right_kernel(void **state)
{
    (void)state;
    int out[2 * N];
    char err[256];
    const unsigned grid[3] = {2, 1, 1}, block[3] = {N, 1, 1};
    struct turbok_cu_faulty_args a = {out, in, 0};
    for (int order = 0; order < 4; order++) {
        hostrun_order(order);
        memset(out, 0xff, sizeof out);
        assert_int_equal(hostrun_launch(hostrun_find("fine"), grid, block, 1, 0, &a, err,
                                        sizeof err),
                         0);
        for (int i = 0; i < 2 * N; i++) {
            int t = i % N, sum = 0;
            for (int l = 0; l < 32; l++)
                sum += t / 32 * 32 + l;
            assert_int_equal(out[i], N - 1 - t + 1000 * sum + 2);
        }
    }
    hostrun_order(0);
}

static void wrong_kernels(void **state)
{
    (void)state;
    static const struct {
        const char *name, *words;
    } rows[] = {
        {"leaves_barrier", "for 128 threads, 127 came; others have left"},
        {"two_barriers", "while others are at that of line"},
        {"short_barrier", "waits at barrier 2"},
        {"missing_lane", "lane 3, which has left"},
        {"mixed_operations", "while lane"},
        {"foreign_lane", "lane 9, which mask 000000ff does not name"},
        {"misaligned", "a load of 16 bytes"},
    };
    int out[N];
    char err[256];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int order = 1; order < 4; order++) {
            hostrun_order(order);
            int r = run(rows[i].name, (struct turbok_cu_faulty_args){out, in, 0}, 0, err);
            int missing =
                strcmp(rows[i].name, "missing_lane") == 0 && r == -1 && strstr(err, "lane 3");
            if (r != -1 || (!strstr(err, rows[i].words) && !missing))
                fail_msg("%s: %d, \"%s\"", rows[i].name, r, err);
        }
    hostrun_order(0);
    /* and after all of that a right one still runs */
    assert_int_equal(run("fine", (struct turbok_cu_faulty_args){out, in, 0}, 0, err), 0);
}

static void poison(void **state)
{
    (void)state;
    int out[N], bad = 0;
    char err[256];
    float f;
    assert_int_equal(run("unwritten_shared", (struct turbok_cu_faulty_args){out, in, 0}, 0, err),
                     0);
    for (int i = 0; i < N; i++) {
        memcpy(&f, &out[i], sizeof f);
        assert_true(isnan(f));
    }
    for (int order = 1; order < 3; order++) {
        hostrun_order(order);
        assert_int_equal(run("no_barrier", (struct turbok_cu_faulty_args){out, in, 0}, 4 * N, err),
                         0);
        for (int i = 0; i < N; i++) {
            memcpy(&f, &out[i], sizeof f);
            bad += isnan(f);
        }
    }
    hostrun_order(0);
    assert_true(bad >= N / 2);
    for (int i = 0; i < 4 * N; i++)
        in[i] = i;
    assert_int_equal(run("copy_not_awaited", (struct turbok_cu_faulty_args){out, in, 0}, 32 * N,
                         err),
                     0);
    for (int i = 0; i < N; i++)
        assert_int_equal(out[i], 4 * i);
    assert_int_equal(run("copy_not_awaited", (struct turbok_cu_faulty_args){out, in, 1}, 32 * N,
                         err),
                     0);
    for (int i = 0; i < N; i++)
        assert_int_equal(out[i], -1);
}

static void group_products(void **state)
{
    (void)state;
    enum { SHARED = 10 << 10 };
    int out[N];
    char err[256];
    for (int n = 0; n < 4; n += 3) {
        assert_int_equal(run("group_product", (struct turbok_cu_faulty_args){out, in, n}, SHARED,
                             err),
                         0);
        for (int i = 0; i < N; i++)
            assert_int_equal(out[i], n ? -1 : 9 + 2 * (i % 4));
    }
    for (int n = 1; n < 3; n++) {
        assert_int_equal(run("group_product", (struct turbok_cu_faulty_args){out, in, n}, SHARED,
                             err),
                         -1);
        assert_non_null(strstr(err, n == 1 ? "without wgmma_fence()" : "without proxy_fence()"));
    }
}

static void bulk_copies(void **state)
{
    (void)state;
    static const char *const words[] = {NULL,
                                        "was not begun",
                                        "1 arrivals and 0 bytes",
                                        "0 arrivals and 16 bytes",
                                        "1 copies were on their way",
                                        NULL};
    int out[N];
    char err[256];
    for (int i = 0; i < N; i++)
        in[i] = i;
    for (int n = 0; n < 6; n++)
        for (int order = 1; order < 4; order++) {
            hostrun_order(order);
            int r = run("bulk", (struct turbok_cu_faulty_args){out, in, n}, 4 * N, err);
            assert_int_equal(r, words[n] ? -1 : 0);
            if (words[n] && !strstr(err, words[n]))
                fail_msg("%d: \"%s\"", n, err);
            for (int i = 0; i < N && n == 0; i++)
                assert_int_equal(out[i], i);
            if (n == 5 && order == 1)
                assert_int_equal(out[0], -1);
        }
    hostrun_order(0);
}

/* Rows of 72 numbers, of which 64 are there; a tile has 64 columns from 8 on, and the last of its rows is not there. */
static void tiles(void **state)
{
    (void)state;
    enum { ROWS = 16, COLUMNS = 64 };
    static uint16_t numbers[ROWS * 72];
    const hostrun_map map = {HOSTRUN_MAP, (const char *)numbers, COLUMNS, ROWS, 144, 64, 16};
    struct turbok_cu_faulty_args a = {.in = (const int *)(const void *)&map};
    int out[N];
    char err[256];
    a.out = out;
    for (int i = 0; i < ROWS * 72; i++)
        numbers[i] = (uint16_t)(i + 1);
    assert_int_equal(run("tile", a, 2048, err), 0);
    for (int i = 0; i < N; i++) {
        int row = 1 + i / 8, column = 8 + i % 8 * 8, at = row * 72 + column + 1;
        assert_int_equal(out[i], row < ROWS && column < COLUMNS ? at | (at + 1) << 16 : 0);
    }
    a.in = in;
    assert_int_equal(run("tile", a, 2048, err), -1);
    assert_non_null(strstr(err, "is no map"));
}

static void clusters(void **state)
{
    (void)state;
    static const char *const words[] = {NULL, "before the cluster has met",
                                        "at a barrier of the cluster, to which",
                                        "of the cluster, which is ending"};
    enum { BLOCKS = 8, CREW = 4 };
    const unsigned grid[3] = {BLOCKS, 1, 1}, block[3] = {N, 1, 1};
    const hostrun_kernel *k = hostrun_find("cluster");
    int out[BLOCKS * N];
    char err[256];
    for (int n = 0; n < 4; n++)
        for (int order = 1; order < 4; order++) {
            struct turbok_cu_faulty_args a = {out, in, n};
            hostrun_order(order);
            int r = hostrun_launch(k, grid, block, CREW, 0, &a, err, sizeof err);
            assert_int_equal(r, words[n] ? -1 : 0);
            if (words[n] && !strstr(err, words[n]))
                fail_msg("%d: \"%s\"", n, err);
            for (int i = 0; i < BLOCKS * N && !n; i++)
                assert_int_equal(out[i], i / N / CREW * CREW + (i / N + CREW - 1) % CREW);
        }
    hostrun_order(0);
    struct turbok_cu_faulty_args a = {out, in, 0};
    assert_int_equal(hostrun_launch(k, grid, block, 3, 0, &a, err, sizeof err), -1);
    assert_non_null(strstr(err, "clusters of 3 blocks"));
    assert_int_equal(hostrun_launch(k, grid, block, 1, 0, &a, err, sizeof err), 0);
    for (int i = 0; i < BLOCKS * N; i++)
        assert_int_equal(out[i], i / N); /* alone: its own */
}

static void bad_launches(void **state)
{
    (void)state;
    int out[N];
    char err[256];
    const unsigned grid[3] = {1, 1, 1}, none[3] = {0, 1, 1}, high[3] = {1, 65536, 1};
    const unsigned block[3] = {N, 1, 1}, large[3] = {N + 32, 1, 1};
    struct turbok_cu_faulty_args a = {out, in, 0};
    const hostrun_kernel *k = hostrun_find("fine");
    assert_int_equal(hostrun_launch(k, grid, large, 1, 0, &a, err, sizeof err), -1);
    assert_non_null(strstr(err, "launch bound is 128"));
    assert_int_equal(hostrun_launch(k, none, block, 1, 0, &a, err, sizeof err), -1);
    assert_int_equal(hostrun_launch(k, high, block, 1, 0, &a, err, sizeof err), -1);
    assert_int_equal(hostrun_launch(k, grid, block, 1, 1 << 20, &a, err, sizeof err), -1);
    assert_null(hostrun_find("no such kernel"));
}

/* In a child, which the sanitizer must end. */
static void out_of_bounds(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    static const struct {
        const char *name;
        long n;
        int dies;
    } rows[] = {{"beyond_shared", 0, 0},
                {"beyond_shared", 1, 1},
                {"beyond_global", 0, 0},
                {"beyond_global", 1, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            char err[256];
            int *out = malloc(N * sizeof *out);
            fclose(stderr);
            _exit(
                run(rows[i].name, (struct turbok_cu_faulty_args){out, in, rows[i].n}, N * 4, err));
        }
        int st = 0;
        waitpid(pid, &st, 0);
        assert_int_equal(!(WIFEXITED(st) && WEXITSTATUS(st) == 0), rows[i].dies);
    }
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_kernel), cmocka_unit_test(wrong_kernels),
        cmocka_unit_test(poison),       cmocka_unit_test(group_products),
        cmocka_unit_test(bulk_copies),  cmocka_unit_test(clusters),
        cmocka_unit_test(bad_launches), cmocka_unit_test(out_of_bounds),
        cmocka_unit_test(tiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
