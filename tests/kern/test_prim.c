/* tests/kern/test_prim.c: number formats exhaustively, and the primitives of each instruction set on
 * lengths around their vector widths and on NaN, infinities and zeros. */
#include <math.h>

#include "kit.h"

static const turbok_prim *prims[KIT_ISAS];
static turbok_isa isas[KIT_ISAS];
static int n_prims;

/* Only what this CPU has: a device of the other kinds does not open. */
static int find(void **state)
{
    (void)state;
    for (int i = 0; i < KIT_ISAS; i++) {
        turbok_device_opts o = {.isa = kit_isas[i], .threads = 1};
        turbok_device *d = NULL;
        turbo_err err;
        if (turbok_device_open(&o, &d, &err))
            continue;
        isas[n_prims] = kit_isas[i];
        prims[n_prims++] = d->exec.prim;
        print_message("primitives: %s\n", d->exec.prim->name);
        turbok_device_close(d);
    }
    return n_prims ? 0 : -1;
}

static bool same(float a, float b)
{
    return isnan(a) ? isnan(b) : !memcmp(&a, &b, 4);
}

static void test_widen(void **state)
{
    uint16_t *h = malloc(65536 * 2);
    float *f = malloc(65536 * 4);
    (void)state;
    assert_true(h && f);
    for (int i = 0; i < 65536; i++)
        h[i] = (uint16_t)i;
    for (int p = 0; p < n_prims; p++) {
        prims[p]->widen(TURBO_F16, h, 65536, f);
        for (int i = 0; i < 65536; i++) {
            _Float16 x;
            memcpy(&x, &h[i], 2);
            if (!same(f[i], (float)x))
                fail_msg("%s: f16 %04x gives %g", prims[p]->name, i, (double)f[i]);
        }
        prims[p]->widen(TURBO_BF16, h, 65536, f);
        for (int i = 0; i < 65536; i++) {
            uint32_t u = (uint32_t)i << 16;
            if (memcmp(&u, &f[i], 4) && !isnan(f[i]))
                fail_msg("%s: bf16 %04x gives %g", prims[p]->name, i, (double)f[i]);
        }
    }
    free(h);
    free(f);
}

/* Every half value, the middle to the next one (a tie) and the floats just beside that middle. */
static void fill_narrow(int32_t dtype, float *f)
{
    for (int i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i, h2 = (uint16_t)(i + 1);
        float a, b;
        prims[0]->widen(dtype, &h, 1, &a);
        prims[0]->widen(dtype, &h2, 1, &b);
        float mid = (float)(0.5 * ((double)a + (double)b));
        f[4 * i] = a;
        f[4 * i + 1] = mid;
        f[4 * i + 2] = nextafterf(mid, INFINITY);
        f[4 * i + 3] = nextafterf(mid, -INFINITY);
    }
}

static void test_narrow(void **state)
{
    const int64_t n = 4 * 65536;
    float *f = malloc((size_t)n * 4), *back = malloc((size_t)n * 4);
    uint16_t *h = malloc((size_t)n * 2);
    (void)state;
    assert_true(f && back && h);
    for (int32_t dtype = TURBO_F16; dtype <= TURBO_BF16; dtype++) {
        fill_narrow(dtype, f);
        for (int p = 0; p < n_prims; p++) {
            prims[p]->narrow(dtype, f, n, h);
            prims[p]->widen(dtype, h, n, back);
            for (int64_t i = 0; i < n; i++) {
                float want = kit_round(dtype, f[i]);
                if (!same(back[i], want))
                    fail_msg("%s: type %d: %a gives %a, expected %a", prims[p]->name, dtype,
                             (double)f[i], (double)back[i], (double)want);
            }
        }
    }
    free(f);
    free(back);
    free(h);
}

/* All lengths around the vector widths, in place of only even ones; nothing behind the end. */
static void test_lengths(void **state)
{
    kit_rng r = {4};
    (void)state;
    for (int64_t n = 1; n <= 70; n++)
        for (int p = 0; p < n_prims; p++)
            for (int32_t dtype = TURBO_F32; dtype <= TURBO_BF16; dtype++) {
                kit_mem m = {0};
                size_t es = dtype == TURBO_F32 ? 4 : 2;
                float *f = kit_new_floats(&m, (size_t)n), *back = kit_new_floats(&m, (size_t)n);
                char *h = kit_new(&m, (size_t)n * es);
                kit_floats(&r, f, (size_t)n);
                kit_freeze(&m, f);
                prims[p]->narrow(dtype, f, n, h);
                kit_freeze(&m, h);
                prims[p]->widen(dtype, h, n, back);
                for (int64_t i = 0; i < n; i++)
                    assert_true(same(back[i], kit_round(dtype, f[i])));
                kit_verify(&m);
                kit_drop(&m);
            }
}

static void test_softmax(void **state)
{
    kit_rng r = {8};
    (void)state;
    for (int p = 0; p < n_prims; p++)
        for (int64_t n = 1; n <= 64; n++)
            for (int round = 0; round < 8; round++) {
                float s[64], in[64], m = round % 2 ? -INFINITY : 3.0f;
                float scale = round < 4 ? 1.0f : 30.0f;
                double top = (double)m, sum = 0;
                memset(s, 0xff, sizeof s);
                for (int64_t i = 0; i < n; i++) {
                    s[i] = in[i] = 8 * kit_float(&r);
                    float t = in[i] * scale;
                    top = (double)t > top ? (double)t : top;
                }
                float got = prims[p]->softmax(s, n, scale, &m);
                kit_near("maximum", (size_t)n, (double)m, top, 0);
                for (int64_t i = 0; i < n; i++) {
                    double e = exp((double)(in[i] * scale) - top);
                    /* the difference is rounded once (u |x|), exp to 4 ulp, below e^-87 it is 0 */
                    kit_near(prims[p]->name, (size_t)i, (double)s[i], e,
                             e * KIT_U * (8 + fabs((double)(in[i] * scale) - top)) + 2e-38);
                    sum += (double)s[i];
                }
                kit_near("sum", (size_t)n, (double)got, sum, sum * 64 * KIT_U);
            }
}

/* A group of codes of 4 bits, in double precision: its squared error is about that of steps of a seventh of the
 * largest number, or less. */
static void check_four(const char *name, const float *w, int64_t n, const uint8_t *codes,
                       float scale)
{
    double most = 0, error = 0, plain = 0;
    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)w[i]));
    assert_true(isfinite(scale));
    for (int64_t i = 0; i < n; i++) {
        double step = most / 7, q = step > 0 ? nearbyint((double)w[i] / step) * step : 0;
        double e = (codes[i] - 8) * (double)scale - (double)w[i];
        error += e * e;
        plain += (q - (double)w[i]) * (q - (double)w[i]);
    }
    /* with one large number among small ones what is left is the rounding of the scale to bf16 */
    if (error > 2 * plain && error > most * most * 0x1p-16)
        fail_msg("%s: an error of %g, plain rounding has %g", name, sqrt(error), sqrt(plain));
}

/* Codes of weights: the bits of the reference, from zeros to the largest floats. */
static void test_encode(void **state)
{
    static const int32_t lengths[] = {16, 32, 96, 128, 160};
    static const float sizes[] = {1, 0, 1e-20f, 0x1p55f, 0x1p56f, 0x1p57f, 1e30f, 3.4e38f};
    enum { GROUPS = 19, MOST = 160 };
    static float w[GROUPS * MOST], scale[GROUPS], want_scale[GROUPS];
    static uint8_t codes[GROUPS * MOST], want[GROUPS * MOST];
    kit_rng r = {19};
    (void)state;
    for (int round = 0; round < 40; round++) {
        int64_t n = lengths[round % 5], cells = GROUPS * n;
        for (int64_t g = 0; g < GROUPS; g++) {
            float size = sizes[kit_range(&r, 0, 7)];
            for (int64_t i = 0; i < n; i++) /* all of a size, or one among small ones */
                w[g * n + i] = (float)kit_range(&r, -1000, 1000) / 1000 * (g % 3 ? size : 0.02f);
            w[g * n + kit_range(&r, 0, (int)n - 1)] = kit_range(&r, 0, 1) ? size : -size;
        }
        for (int bits = 4; bits <= 8; bits += 4) {
            turbok_prim_scalar.encode(bits, true, w, GROUPS, n, want, want_scale);
            for (int64_t g = 0; g < GROUPS && bits == 4; g++)
                check_four("4 bits", w + g * n, n, want + g * n, want_scale[g]);
            for (int p = 0; p < n_prims; p++) {
                prims[p]->encode(bits, true, w, GROUPS, n, codes, scale);
                if (memcmp(codes, want, (size_t)cells) || memcmp(scale, want_scale, sizeof scale))
                    fail_msg("%s: other codes of %d bits in groups of %d", prims[p]->name, bits,
                             (int)n);
            }
        }
    }
}

static void test_specials(void **state)
{
    (void)state;
    for (int p = 0; p < n_prims; p++) {
        float g[5] = {NAN, 1, -1000, 1000, -0.0f}, u[5] = {1, NAN, 2, 2, 1}, o[5];
        for (int32_t act = TURBO_ACT_SILU; act <= TURBO_ACT_QUICK_GELU; act++) {
            prims[p]->gated(act, g, u, 5, o);
            assert_true(isnan(o[0]) && isnan(o[1]));
            kit_near("act(-1000)", 2, (double)o[2], 0, 1e-30);
            kit_near("act(1000)", 3, (double)o[3], 2000, 1e-3);
            kit_near("act(-0)", 4, (double)o[4], 0, 0);
        }
        /* A NaN among scores must not vanish. */
        float s[64] = {1, NAN, 2}, m = -INFINITY;
        float sum = prims[p]->softmax(s, 3, 1.0f, &m);
        assert_true(isnan(sum));
        /* NaN and infinity in one row of a tile stay in that row. */
        float w[2 * TURBOK_TILE], x[4] = {1, NAN, 1, 1}, acc[2 * TURBOK_TILE] = {0};
        for (int i = 0; i < 2 * TURBOK_TILE; i++)
            w[i] = (float)i;
        prims[p]->gemm_tile(TURBO_F32, w, TURBOK_TILE, x, 2, 2, 2, acc, NULL);
        for (int i = 0; i < TURBOK_TILE; i++) {
            assert_true(isnan(acc[i]));
            kit_near("tile", (size_t)i, (double)acc[TURBOK_TILE + i], 2.0 * i + 64, 0);
        }
        float h[3] = {0, 0, 0}, ones[3] = {1, 1, 1}, y[3];
        prims[p]->rmsnorm(h, NULL, ones, 1e-5f, 3, y);
        for (size_t i = 0; i < 3; i++)
            kit_near("norm of zeros", i, (double)y[i], 0, 0);
    }
}

/* Numbers that are finite but for one, which is found wherever it lies and at any alignment; what lies beside them is
 * not looked at. */
static void test_finite(void **state)
{
    static const struct {
        int32_t dtype;
        uint32_t fine[4], bad[4];
    } types[] = {
        {TURBO_F32,
         {0x7f7fffff, 0xff7fffff, 0x00000001, 0x80000000},
         {0x7f800000, 0xff800000, 0x7f800001, 0xffffffff}},
        {TURBO_F16, {0x7bff, 0xfbff, 0x0001, 0x8000}, {0x7c00, 0xfc00, 0x7c01, 0xffff}},
        {TURBO_BF16, {0x7f7f, 0xff7f, 0x0001, 0x8000}, {0x7f80, 0xff80, 0x7f81, 0xffff}},
    };
    enum { MOST = 600, PLACES = 5 };
    static char room[PLACES + (MOST + 2) * 4];
    (void)state;
    for (int p = 0; p < n_prims; p++)
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++)
            for (size_t n = 0; n <= MOST; n += n < 40 ? 1 : 37) {
                size_t size = turbok_dtype_size(types[t].dtype);
                char *from = room + n % PLACES, *at = from + size;
                for (size_t i = 0; i < n; i++)
                    memcpy(at + i * size, &types[t].fine[i % 4], size);
                memcpy(from, &types[t].bad[3], size);
                memcpy(at + n * size, &types[t].bad[3], size);
                assert_true(turbok_finite_by(isas[p], types[t].dtype, at, n * size));
                assert_true(turbok_all_finite(types[t].dtype, at, n * size));
                for (size_t i = 0; i < n; i++) {
                    memcpy(at + i * size, &types[t].bad[i % 4], size);
                    assert_false(turbok_finite_by(isas[p], types[t].dtype, at, n * size));
                    memcpy(at + i * size, &types[t].fine[i % 4], size);
                }
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widen),    cmocka_unit_test(test_narrow),
        cmocka_unit_test(test_lengths),  cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_specials), cmocka_unit_test(test_encode),
        cmocka_unit_test(test_finite),
    };
    return cmocka_run_group_tests_name("primitives", tests, find, NULL);
}
