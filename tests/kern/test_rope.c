/* tests/kern/test_rope.c: rotary embedding against numbers worked out by hand: the example of the
 * reference sheet, dynamic NTK bases, llama3 and yarn, positions beyond the precomputed table. */
#include <math.h>

#include "kit.h"

/* Rotates one key of one head through the op and reads it back from an F32 cache. */
static void rotate(const turbo_rope_spec *spec, int32_t rope_len, int32_t pos, const float *in,
                   int32_t D, float *out)
{
    turbok_device_opts o = {.isa = TURBOK_ISA_AUTO, .threads = 1};
    const turbok_kv_dims dims = {1, 1, D, 8, TURBO_F32};
    turbok_device *d = NULL;
    turbok_kv_pool *pool = NULL;
    turbok_kv_table table;
    turbo_rope *rope = NULL;
    turbo_err err;
    float row[3 * 128], q[128];
    assert_int_equal(turbok_device_open(&o, &d, &err), 0);
    assert_int_equal(turbok_rope_new(d, spec, &rope, &err), 0);
    assert_int_equal(turbok_kv_pool_new(d, &dims, pos / 8 + 1, &pool, &err), 0);
    assert_int_equal(turbok_kv_table_init(&table, pool, pos + 1, &err), 0);
    assert_true(turbok_kv_table_reserve(&table, pool, pos + 1));
    turbok_kv_table *tables[1] = {&table};
    struct turbo_kv kv = {pool, tables};
    int32_t cu[2] = {0, 1}, len = pos + 1;
    const turbo_attn a = {.size = sizeof a, .n_heads = 1, .n_kv = 1, .head_dim = D, .rope = rope};
    const turbo_batch b = {.size = sizeof b, .n_tokens = 1, .n_seqs = 1, .positions = &pos,
                           .cu_seqlens = cu, .kv_lens = &len, .rope_lens = &rope_len, .kv = &kv};
    for (int32_t i = 0; i < D; i++)
        row[i] = row[D + i] = row[2 * D + i] = in[i];
    turbok_device_ops(d)->qkv_rope_store(turbok_device_exec(d), &a, &b, row, q);
    turbok_kv_read(pool, &table, 0, pos, false, out);
    kit_equal("query and key", q, out, (size_t)D * sizeof *out);
    turbok_kv_table_free(&table, pool);
    turbok_kv_pool_free(pool);
    turbok_rope_free(d, rope);
    turbok_device_close(d);
}

static turbo_rope_spec spec_of(int32_t style, int32_t scaling, int32_t dim, int32_t max, float factor,
                               double base)
{
    return (turbo_rope_spec){.size = sizeof(turbo_rope_spec), .style = style, .scaling = scaling,
                             .dim = dim, .max_position = max, .factor = factor, .base = base};
}

/* d = 4, theta = 10000, position 3, x = [1,2,3,4]. */
static void test_example(void **state)
{
    static const float x[4] = {1, 2, 3, 4};
    static const double half[4] = {-1.413353, 1.879118, -2.828857, 4.058191};
    static const double inter[4] = {-1.272233, -1.838865, 2.878668, 4.088187};
    float y[4];
    (void)state;
    for (int scaling = TURBO_ROPE_PLAIN; scaling <= TURBO_ROPE_DYNAMIC; scaling++) {
        turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, scaling, 4, 100, 1, 10000);
        rotate(&s, 4, 3, x, 4, y);
        for (size_t i = 0; i < 4; i++)
            kit_near("half", i, (double)y[i], half[i], 1e-6);
        s.style = TURBO_ROPE_INTERLEAVED;
        rotate(&s, 4, 3, x, 4, y);
        for (size_t i = 0; i < 4; i++)
            kit_near("interleaved", i, (double)y[i], inter[i], 1e-6);
    }
}

/* LINEAR with factor 2: position 6 turns as far as position 3 does without. */
static void test_linear_scaling(void **state)
{
    static const float x[4] = {1, 2, 3, 4};
    float y[4], z[4];
    (void)state;
    const turbo_rope_spec plain = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_PLAIN, 4, 100, 1, 10000);
    const turbo_rope_spec linear = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_LINEAR, 4, 100, 2, 10000);
    rotate(&plain, 4, 3, x, 4, y);
    rotate(&linear, 7, 6, x, 4, z);
    for (size_t i = 0; i < 4; i++)
        kit_near("linear", i, (double)z[i], (double)y[i], 1e-6);
}

static void test_dynamic(void **state)
{
    static const struct {
        int64_t len;
        double base;
    } rows[] = {{1, 1e6}, {32768, 1e6}, {32769, 1000062.004}, {65536, 3052773.675}, {200000, 11645259.31}};
    const turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_DYNAMIC, 128, 32768, 2, 1e6);
    const turbo_rope_spec p = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_PLAIN, 128, 32768, 2, 1e6);
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kit_near("base", i, turbok_rope_base(&s, rows[i].len), rows[i].base, rows[i].base * 1e-9);
        kit_near("plain base", i, turbok_rope_base(&p, rows[i].len), 1e6, 0);
    }
    /* dim 2 has one frequency, 1, whatever the base: no division by dim - 2 */
    const turbo_rope_spec two = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_DYNAMIC, 2, 8, 2, 1e4);
    kit_near("base of dim 2", 0, turbok_rope_base(&two, 100), 1e4, 0);
}

/* A key early in a long sequence already turns with the base of the whole length. */
static void test_fixed_base(void **state)
{
    const turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_DYNAMIC, 8, 16, 2, 1e4);
    static const float x[8] = {1, 0.5f, -1, 2, 3, -2, 1, 1};
    float y[8];
    (void)state;
    for (int32_t len = 10; len <= 100; len += 30) {
        rotate(&s, len, 5, x, 8, y);
        double base = len <= 16 ? 1e4 : 1e4 * pow(2.0 * len / 16.0 - 1.0, 8.0 / 6.0);
        for (int i = 0; i < 4; i++) {
            double angle = 5 * pow(base, -2.0 * i / 8.0);
            kit_near("fixed base", (size_t)i, (double)y[i],
                     (double)x[i] * cos(angle) - (double)x[i + 4] * sin(angle), 2e-6);
        }
    }
}

/* Within and beyond the table of 32768 positions: angle = fp32(pos) * fp32(inv) in fp32. */
static void test_far(void **state)
{
    static const int32_t positions[] = {0, 1, 32766, 32767, 32768, 32769, 100000, 262143, 1000000};
    const turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_PLAIN, 6, 262144, 1, 1e6);
    static const float x[6] = {1, 1, 1, 0, 0, 0};
    float y[6];
    (void)state;
    for (size_t p = 0; p < sizeof positions / sizeof *positions; p++) {
        rotate(&s, positions[p] + 1, positions[p], x, 6, y);
        for (int i = 0; i < 3; i++) {
            volatile float inv = (float)pow(1e6, -2.0 * i / 6.0), angle = (float)positions[p] * inv;
            kit_near("cos", (size_t)positions[p], (double)y[i], cos((double)angle), 1e-7);
            kit_near("sin", (size_t)positions[p], (double)y[i + 3], sin((double)angle), 1e-7);
        }
    }
}

/* Many angles at a time: what the C library has, to the last bit of a float, for any number of them, far and near,
 * and nothing is written behind them. */
static void test_turns(void **state)
{
    enum { MOST = 75, ROUNDS = 4000 };
    float angle[MOST], c[MOST + 1], s[MOST + 1];
    uint32_t seed = 1;
    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        size_t n = (size_t)round % (MOST + 1);
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            angle[i] = (float)((double)(int32_t)seed * ldexp(1, round % 48 - 56));
        }
        if (n > 3 && round % 3 == 0)
            angle[n / 2] = INFINITY;
        c[n] = s[n] = 7;
        turbok_turns(angle, n, c, s);
        for (size_t i = 0; i < n; i++) {
            float want_c = (float)cos((double)angle[i]), want_s = (float)sin((double)angle[i]);
            assert_true(isinf(angle[i]) ? isnan(c[i]) && isnan(s[i])
                                        : !memcmp(&c[i], &want_c, 4) && !memcmp(&s[i], &want_s, 4));
        }
        assert_true(c[n] >= 7 && s[n] >= 7);
    }
}

/* The frequency of index i, read from the angle of position 1: the sine of x = 1 with y = 0. */
static double frequency(const turbo_rope_spec *spec, int32_t i)
{
    float x[128] = {0}, y[128];
    x[i] = 1;
    rotate(spec, 2, 1, x, spec->dim, y);
    return atan2((double)y[i + spec->dim / 2], (double)y[i]);
}

/* Llama 3.1: base 5e5, factor 8, low 1, high 4, 8192 tokens. */
static void test_llama3(void **state)
{
    static const struct {
        int32_t i;
        double f;
    } rows[] = {{28, 3.2114460e-3}, {32, 5.2484616e-4}, {35, 9.5562124e-5}, {0, 1}};
    turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_BANDS, 128, 131072, 8, 5e5);
    s.original_max = 8192;
    s.low_freq = 1;
    s.high_freq = 4;
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        kit_near("llama3", (size_t)rows[i].i, frequency(&s, rows[i].i), rows[i].f,
                 rows[i].f * 2e-7);
    const turbo_rope_spec plain = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_PLAIN, 128, 131072, 1, 5e5);
    for (int32_t i = 0; i <= 28; i++) /* untouched: not one bit */
        kit_near("high frequencies", (size_t)i, frequency(&s, i), frequency(&plain, i), 0);
}

/* Where the ramp begins and ends for two published models, worked out from the formula of the sheet:
 * low 10, high 23 (rounded), and low 8.092779, high 17.398025, factor of cos and sin 1.346574. */
static void test_yarn(void **state)
{
    turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_YARN, 64, 163840, 40, 1e4);
    s.original_max = 4096;
    s.beta_fast = 32;
    s.beta_slow = 1;
    s.attention_factor = 1;
    s.truncate = 1;
    (void)state;
    for (int32_t i = 0; i < 32; i++) {
        double f = pow(1e4, -i / 32.0), r = fmin(fmax((i - 10) / 13.0, 0), 1);
        kit_near("yarn, rounded", (size_t)i, frequency(&s, i), f / 40 * r + f * (1 - r), f * 2e-7);
    }
    s.base = 150000;
    s.factor = 32;
    s.truncate = 0;
    s.attention_factor = 0;
    for (int32_t i = 0; i < 32; i++) {
        double f = pow(150000, -i / 32.0);
        double r = fmin(fmax((i - 8.092779) / (17.398025 - 8.092779), 0), 1);
        kit_near("yarn", (size_t)i, frequency(&s, i), f / 32 * r + f * (1 - r), f * 4e-7);
    }
    float x[64] = {0}, y[64];
    x[31] = 1;
    rotate(&s, 1, 0, x, 64, y); /* position 0: cos is 1 */
    kit_near("factor of cos", 31, (double)y[31], 1.346574, 1e-6);
    rotate(&s, 40001, 40000, x, 64, y); /* beyond the table */
    kit_near("factor beyond", 31, hypot((double)y[31], (double)y[63]), 1.346574, 1e-6);
}

/* A plugin of ABI 1.0 hands over 32 bytes: what lies behind them is not read. */
static void test_short_spec(void **state)
{
    turbok_device_opts o = {.isa = TURBOK_ISA_AUTO, .threads = 1};
    const turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_LINEAR, 4, 100, 2, 10000);
    struct {
        turbo_rope_spec spec;
    } at;
    turbok_device *d = NULL;
    turbo_rope *r = NULL;
    turbo_err err;
    (void)state;
    memset(&at, 0xff, sizeof at);
    memcpy(&at, &s, 32);
    at.spec.size = 32;
    assert_int_equal(turbok_device_open(&o, &d, &err), 0);
    assert_int_equal(turbok_rope_new(d, &at.spec, &r, &err), 0);
    turbok_rope_free(d, r);
    /* what needs the fields behind is refused, not read */
    for (int32_t scaling = TURBO_ROPE_BANDS; scaling <= TURBO_ROPE_YARN; scaling++) {
        at.spec.scaling = scaling;
        assert_int_equal(turbok_rope_new(d, &at.spec, &r, &err), TURBO_EINVAL);
    }
    at.spec.scaling = TURBO_ROPE_YARN + 1;
    assert_int_equal(turbok_rope_new(d, &at.spec, &r, &err), TURBO_EUNSUPPORTED);
    turbok_device_close(d);
}

static void test_refused(void **state)
{
    turbok_device_opts o = {.isa = TURBOK_ISA_AUTO, .threads = 1};
    turbok_device *d = NULL;
    turbo_err err;
    (void)state;
    assert_int_equal(turbok_device_open(&o, &d, &err), 0);
    static const struct {
        int32_t dim, max;
        float factor;
        double base;
    } bad[] = {{0, 8, 1, 1e4}, {3, 8, 1, 1e4}, {-2, 8, 1, 1e4}, {4, 0, 1, 1e4}, {4, 8, 0, 1e4},
               {4, 8, 1, 0}, {4, 8, 1, -1}, {4, 8, NAN, 1e4}, {4, 8, 1, (double)NAN}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        turbo_rope_spec s = spec_of(TURBO_ROPE_HALF, TURBO_ROPE_LINEAR, bad[i].dim, bad[i].max,
                                    bad[i].factor, bad[i].base);
        turbo_rope *r = NULL;
        err.text[0] = 0;
        assert_int_equal(turbok_rope_new(d, &s, &r, &err), TURBO_EINVAL);
        assert_null(r);
        assert_true(err.text[0] != 0);
    }
    turbok_device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_example), cmocka_unit_test(test_linear_scaling),
        cmocka_unit_test(test_dynamic), cmocka_unit_test(test_fixed_base),
        cmocka_unit_test(test_far),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_turns),   cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_yarn),    cmocka_unit_test(test_short_spec),
    };
    return cmocka_run_group_tests_name("rotary embedding", tests, NULL, NULL);
}
