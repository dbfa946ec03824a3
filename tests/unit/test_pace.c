/* tests/unit/test_pace.c: how many prompt tokens go beside decodes, against machines whose cost is known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sched/pace.h"

/* A machine: a step costs `base`, plus per decode and per prompt token, but at least `floor`. */
typedef struct machine {
    double base, decode, token, floor;
} machine;

static double cost(const machine *m, int d, int p)
{
    double ns = m->base + d * m->decode + p * m->token;
    return ns > m->floor ? ns : m->floor;
}

static void test_converges(void **state)
{
    static const machine machines[] = {
        {500e3, 100e3, 200e3, 0}, /* a small model */
        {0, 6.5e6, 6.5e6, 66e6}, /* memory-bound decode, compute-bound prompts */
        {5e6, 20e3, 8e3, 0}, /* a GPU */
    };
    (void)state;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        for (int d = 1; d <= 64; d *= 4)
            for (double stretch = 1.5; stretch < 5; stretch *= 2) {
                const machine *m = &machines[i];
                turbod_pace p = {.stretch = stretch};
                assert_int_equal(turbod_pace_budget(&p, d, 4096), 4096); /* nothing is known yet */
                double plain = cost(m, d, 0), mixed = 0;
                for (int step = 0; step < 400; step++) {
                    int n = step % 4 ? turbod_pace_budget(&p, d, 4096) : 0;
                    mixed = n ? cost(m, d, n) : mixed;
                    turbod_pace_note(&p, d, n, (int64_t)cost(m, d, n));
                }
                int least = cost(m, d, TURBOD_PACE_LEAST) > stretch * plain;
                int most = cost(m, d, 4096) < stretch * plain;
                if (!least && !most)
                    assert_true(mixed < 1.15 * stretch * plain && mixed > 0.7 * stretch * plain);
            }
}

static void test_bounds(void **state)
{
    (void)state;
    turbod_pace p = {.stretch = 2};
    turbod_pace_note(&p, 4, 0, 1000000);
    turbod_pace_note(&p, 4, 100, 1000000 + 100 * 1000000);
    assert_int_equal(turbod_pace_budget(&p, 4, 256), TURBOD_PACE_LEAST); /* 1 would fit */
    assert_int_equal(turbod_pace_budget(&p, 4, 3), 3); /* no more than there is room for */
    assert_int_equal(turbod_pace_budget(&p, 0, 256), 256); /* nobody waits */
    assert_int_equal(turbod_pace_budget(&p, 500, 256), TURBOD_PACE_LEAST); /* from what is known */
    /* One step in which the machine did something else does not change much. */
    turbod_pace q = p;
    turbod_pace_note(&q, 4, 0, 1000000000);
    assert_true(q.decode_ns[2] < 1.5 * p.decode_ns[2]);
    /* Where everything is fast, prompts are not cut into crumbs. */
    turbod_pace r = {.stretch = 2};
    turbod_pace_note(&r, 4, 0, 10000);
    turbod_pace_note(&r, 4, 100, 10000 + 100 * 1000);
    assert_int_equal(turbod_pace_budget(&r, 4, 4096), 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_converges),
                                       cmocka_unit_test(test_bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
