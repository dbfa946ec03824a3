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

static const machine machines[] = {
    {500e3, 100e3, 200e3, 0}, /* a small model */
    {0, 6.5e6, 6.5e6, 66e6}, /* memory-bound decode, compute-bound prompts */
    {5e6, 20e3, 8e3, 0}, /* a GPU */
};

/* What a mixed step costs, as a multiple of a plain one, once the pace knows the machine. */
static double converged(const machine *m, int d, double stretch, int64_t backlog, int *tokens)
{
    turbod_pace p = {.stretch = stretch};
    assert_int_equal(turbod_pace_budget(&p, d, backlog, 4096), 4096); /* nothing is known yet */
    double mixed = 0;
    for (int step = 0; step < 400; step++) {
        int n = step % 4 ? turbod_pace_budget(&p, d, backlog, 4096) : 0;
        mixed = n ? cost(m, d, n) : mixed;
        *tokens = n ? n : *tokens;
        turbod_pace_note(&p, d, n, (int64_t)cost(m, d, n));
    }
    return mixed / cost(m, d, 0);
}

/* The largest stretch is none. */
static void test_off(void **state)
{
    turbod_pace p = {.stretch = 1000};
    (void)state;
    turbod_pace_note(&p, 8, 0, 1000000);
    turbod_pace_note(&p, 8, 4, 2000000);
    assert_int_equal(turbod_pace_budget(&p, 8, 100, 2048), 2048);
    p.stretch = 4;
    assert_true(turbod_pace_budget(&p, 8, 100, 2048) < 8);
}

static void test_converges(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        for (int d = 1; d <= 64; d *= 4)
            for (double stretch = 1.25; stretch < 6; stretch *= 2)
                for (int64_t backlog = 0; backlog <= 10000000; backlog = backlog * 100 + 1000) {
                    const machine *m = &machines[i];
                    int n = 0;
                    double got = converged(m, d, stretch, backlog, &n);
                    double plain = cost(m, d, 0), step = (cost(m, d, n) - plain) / n;
                    double want = 1 + 0.5 * (1 + (double)backlog * step / 2000 / plain);
                    want = want < stretch ? want : stretch;
                    if (n > 1 && n < 4096)
                        assert_true(got < 1.15 * want && got > 0.7 * want);
                    assert_true(n == 1 || got < 1.15 * stretch);
                }
}

static void test_bounds(void **state)
{
    (void)state;
    turbod_pace p = {.stretch = 4};
    turbod_pace_note(&p, 4, 0, 1000000);
    turbod_pace_note(&p, 4, 100, 1000000 + 100 * 1000000);
    assert_int_equal(turbod_pace_budget(&p, 4, 0, 256), 1); /* it must advance */
    assert_int_equal(turbod_pace_budget(&p, 4, 1 << 30, 256), 3); /* to the limit */
    assert_int_equal(turbod_pace_budget(&p, 4, 1 << 30, 2), 2); /* no more than there is room for */
    assert_int_equal(turbod_pace_budget(&p, 0, 0, 256), 256); /* nobody waits */
    assert_int_equal(turbod_pace_budget(&p, 500, 0, 256), 1); /* from what is known */
    /* One step in which the machine did something else does not change much. */
    turbod_pace q = p;
    turbod_pace_note(&q, 4, 0, 1000000000);
    assert_true(q.decode_ns[2] < 1.5 * p.decode_ns[2]);
    /* A token of a large chunk costs less than one beside decodes, which is what is asked for. */
    q = p;
    turbod_pace_note(&q, 0, 256, 256 * 1000);
    assert_true(q.token_ns >= p.token_ns && q.token_ns <= p.token_ns);
    /* Where everything is fast, prompts are not cut into crumbs. */
    turbod_pace r = {.stretch = 2};
    turbod_pace_note(&r, 0, 100, 100 * 2000); /* until more is known */
    turbod_pace_note(&r, 4, 0, 10000);
    assert_int_equal(turbod_pace_budget(&r, 4, 0, 4096), 50);
    turbod_pace_note(&r, 4, 100, 10000 + 100 * 1000);
    for (int i = 0; i < 100; i++)
        turbod_pace_note(&r, 4, 100, 10000 + 100 * 1000);
    assert_int_equal(turbod_pace_budget(&r, 4, 0, 4096), 99);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_off), cmocka_unit_test(test_converges),
                                       cmocka_unit_test(test_bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
