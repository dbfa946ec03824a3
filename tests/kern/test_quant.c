/* tests/kern/test_quant.c: keys and values as int8 and int4: what an element may be off by, the same bits
 * on every instruction set, odd shapes, degenerate rows, NaN, and the products with codes. */
#include <math.h>

#include "kit.h"

static const int bits_of[] = {8, 4};
static turbok_device *devices[KIT_ISAS];
static int n_devices;

static int open_devices(void **state)
{
    (void)state;
    for (int i = 0; i < KIT_ISAS; i++) {
        turbok_device_opts o = {.isa = kit_isas[i], .threads = 1};
        turbo_err err;
        if (!turbok_device_open(&o, &devices[n_devices], &err))
            n_devices++;
        else
            print_message("NOTE: instruction set %d is not tested: %s\n", kit_isas[i], err.text);
    }
    return n_devices ? 0 : -1;
}

static int close_devices(void **state)
{
    (void)state;
    for (int i = 0; i < n_devices; i++)
        turbok_device_close(devices[i]);
    return 0;
}

static double bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return (double)f;
}

/* |x - (scale u + zero)| <= scale / 2: exactly, but for the quotient, which is taken in fp32: it may
 * fall on the other side of a tie by 2^b * 2^-23 of a code. The scale itself is the ideal one but for
 * two roundings to bf16: 2^-7 of the scale, and 2^-7 |min| more range, or 2^-133 of either. */
static void check_row(int bits, const float *in, int64_t n, const uint8_t *codes,
                      const uint16_t *par)
{
    double scale = bf16(par[0]), zero = bf16(par[1]), top = bits == 8 ? 255 : 15;
    double lo = INFINITY, hi = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        assert_in_range(codes[i], 0, (int)top);
        kit_near("element", (size_t)i, scale * codes[i] + zero, (double)in[i],
                 scale / 2 * (1 + 0x1p-14));
        lo = (double)in[i] < lo ? (double)in[i] : lo;
        hi = (double)in[i] > hi ? (double)in[i] : hi;
    }
    assert_true(zero <= lo);
    assert_true(scale >= 0);
    double ideal = (hi - lo + 0x1p-7 * fabs(lo) + 0x1p-133) / top * (1 + 0x1p-7);
    assert_true(scale <= ideal * (1 + 0x1p-20) + 0x1p-133);
}

static void check_all(int bits, const float *row, int64_t n)
{
    uint8_t want[256];
    uint16_t par[2];
    turbok_prim_scalar.quantize(bits, row, n, want, par);
    check_row(bits, row, n, want, par);
    for (int d = 0; d < n_devices; d++) {
        kit_mem m = {0};
        float *in = kit_new_floats(&m, (size_t)n);
        uint8_t *codes = kit_new(&m, (size_t)n);
        uint16_t *p = kit_new(&m, 4);
        memcpy(in, row, (size_t)n * sizeof *in);
        kit_freeze(&m, in);
        devices[d]->exec.prim->quantize(bits, in, n, codes, p);
        kit_equal(turbok_device_name(devices[d]), codes, want, (size_t)n);
        kit_equal("scale and zero", p, par, 4);
        kit_verify(&m);
        kit_drop(&m);
    }
}

/* Random rows of all lengths, magnitudes from 2^-130 to 2^120, around zero and far from it. */
static void test_error(void **state)
{
    kit_rng r = {21};
    float row[200];
    (void)state;
    for (int round = 0; round < KIT_ROUNDS(4000); round++) {
        int64_t n = round < 400 ? round / 2 + 1 : kit_range(&r, 1, 200);
        float size = ldexpf(1, kit_range(&r, -130, 120)), shift = (float)kit_range(&r, -3, 3);
        for (int64_t i = 0; i < n; i++)
            row[i] = (kit_float(&r) + shift) * size;
        for (int b = 0; b < 2; b++)
            check_all(bits_of[b], row, n);
    }
}

static void test_degenerate(void **state)
{
    static const float constants[] = {0.0f,     -0.0f, 1.0f,     -1.0f,  1.003f,  -1.003f,
                                      65504.0f, 1e30f, -3.3e38f, 1e-45f, -1e-45f, 1e-38f};
    static const float pairs[][2] = {{-1.5e38f, 1.5e38f},    {0, 3e38f},
                                     {100000.0f, 100000.1f}, {-70000.0f, 70000.0f},
                                     {1e-45f, 3e-45f},       {-0.0f, 0.0f}};
    float row[40];
    (void)state;
    for (int b = 0; b < 2; b++) {
        for (size_t c = 0; c < sizeof constants / sizeof *constants; c++) {
            for (int i = 0; i < 40; i++)
                row[i] = constants[c];
            for (int64_t n = 1; n <= 40; n++)
                check_all(bits_of[b], row, n);
        }
        for (size_t c = 0; c < sizeof pairs / sizeof *pairs; c++) {
            for (int i = 0; i < 40; i++)
                row[i] = pairs[c][i % 3 == 1];
            check_all(bits_of[b], row, 40);
        }
    }
}

/* Whatever is not finite, or spans more than an fp32 can say, makes the whole row NaN. */
static void test_not_finite(void **state)
{
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    (void)state;
    for (int d = 0; d < n_devices; d++)
        for (int b = 0; b < 2; b++)
            for (int at = 0; at <= 40; at++)
                for (int c = 0; c < 3; c++) {
                    float row[40];
                    uint8_t codes[40];
                    uint16_t par[2] = {0, 0};
                    for (int i = 0; i < 40; i++)
                        row[i] = (float)i;
                    if (at < 40) {
                        row[at] = strange[c];
                    } else {
                        row[3] = -3e38f;
                        row[4] = 3e38f;
                    }
                    devices[d]->exec.prim->quantize(bits_of[b], row, 40, codes, par);
                    assert_true(isnan(bf16(par[0])) && isnan(bf16(par[1])));
                }
}

/* Every slot of two blocks reads back as what was written, whatever its neighbours are. */
static void pool_of(turbok_device *d, int32_t dtype, int32_t D, int32_t bt)
{
    enum { K = 2, L = 2 };
    const turbok_kv_dims dims = {L, K, D, bt, dtype};
    turbok_kv_pool *p = NULL;
    turbok_kv_table t;
    turbo_err err = {{0}};
    float in[K * 192], tmp[192], out[K * 192];
    int32_t n = 2 * bt - 3;
    assert_int_equal(turbok_kv_pool_new(d, &dims, 3, &p, &err), 0);
    assert_int_equal(turbok_kv_table_init(&t, p, 2 * bt, &err), 0);
    assert_true(turbok_kv_table_reserve(&t, p, n));
    memset(p->map, 0xff, p->map_bytes);
    for (int value = 0; value < 2; value++) {
        for (int32_t i = 0; i < n; i++) {
            kit_rng row = {(uint64_t)i + 1};
            kit_floats(&row, in, (size_t)(K * D));
            for (int32_t h = 0; h < K; h++)
                turbok_kv_write(d->exec.prim, p, &t, 1, value, h, n - 1 - i, in + h * D, tmp);
        }
        for (int32_t i = 0; i < n; i++) {
            kit_rng row = {(uint64_t)i + 1};
            kit_floats(&row, in, (size_t)(K * D));
            turbok_kv_read(p, &t, 1, n - 1 - i, value, out);
            for (int32_t h = 0; h < K; h++) {
                uint8_t codes[192];
                uint16_t par[2];
                turbok_prim_scalar.quantize(dtype == TURBOK_KV_INT8 ? 8 : 4, in + h * D, D, codes,
                                            par);
                for (int32_t k = 0; k < D; k++)
                    kit_near("stored", (size_t)k, (double)out[h * D + k],
                             bf16(par[0]) * codes[k] + bf16(par[1]),
                             KIT_U * fabs((double)out[h * D + k]));
            }
        }
    }
    turbok_kv_read(p, &t, 0, 0, false, out);
    assert_true(isnan(out[0])); /* the other layer was not touched */
    turbok_kv_table_free(&t, p);
    turbok_kv_pool_free(p);
}

static void test_pools(void **state)
{
    static const int32_t dims[] = {2, 6, 8, 48, 64, 80, 96, 128, 130, 192};
    static const int32_t blocks[] = {8, 24, 64, 72, 128, 1024};
    (void)state;
    for (int d = 0; d < n_devices; d++)
        for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
            for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++) {
                pool_of(devices[d], TURBOK_KV_INT8, dims[i], blocks[b]);
                pool_of(devices[d], TURBOK_KV_INT4, dims[i], blocks[b]);
            }
}

/* The 64-lane product with codes: the bits of the reference, any number of rows, any step of k. */
static void test_tiles(void **state)
{
    static const int32_t types[] = {TURBO_U8, TURBOK_U4_PAIR, TURBOK_U4_SPLIT};
    enum { N = 40, LD = 128 };
    kit_rng r = {5};
    (void)state;
    for (int round = 0; round < KIT_ROUNDS(60); round++)
        for (int k = 0; k < 3; k++) {
            kit_mem m = {0};
            int rows = round % 6 + 1, n = 2 * kit_range(&r, 1, N / 2),
                ld = kit_range(&r, 0, 1) ? LD : 64;
            uint8_t *w = kit_new(&m, (size_t)(N * LD));
            float *x = kit_new_floats(&m, 6 * N), want[6 * 64], start[6 * 64];
            for (int i = 0; i < N * LD; i++)
                w[i] = (uint8_t)kit_next(&r);
            kit_floats(&r, x, 6 * N);
            kit_floats(&r, start, 6 * 64);
            kit_freeze(&m, w);
            kit_freeze(&m, x);
            memcpy(want, start, sizeof want);
            /* By hand, an element at a time. */
            for (int i = 0; i < n; i++)
                for (int lane = 0; lane < 64; lane++) {
                    int code = k == 0   ? w[i * ld + lane]
                               : k == 1 ? w[i / 2 * ld + lane] >> (i % 2 ? 4 : 0) & 15
                                        : w[i * (ld / 2) + lane % 32] >> (lane < 32 ? 0 : 4) & 15;
                    for (int row = 0; row < rows; row++)
                        want[row * 64 + lane] =
                            fmaf(x[row * N + i], (float)code, want[row * 64 + lane]);
                }
            for (int d = 0; d < n_devices; d++) {
                float *acc = kit_new_floats(&m, 6 * 64);
                memcpy(acc, start, sizeof start);
                devices[d]->exec.prim->gemm_tile(types[k], w, ld, x, N, rows, n, acc,
                                                 d % 2 ? w : NULL);
                kit_equal(turbok_device_name(devices[d]), acc, want, sizeof want);
            }
            kit_verify(&m);
            kit_drop(&m);
        }
}

static void test_scores_and_weights(void **state)
{
    kit_rng r = {6};
    (void)state;
    for (int d = 0; d < n_devices; d++)
        for (int n = 1; n <= 64; n++) {
            float s[64], in[64], scale[128], zero[128], q = kit_float(&r);
            double sum = 0, mag = 0;
            memset(scale, 0xff, sizeof scale); /* NaN where nothing has been written */
            memset(zero, 0xff, sizeof zero);
            kit_floats(&r, in, 64);
            kit_floats(&r, scale, (size_t)n);
            kit_floats(&r, zero, (size_t)n);
            memcpy(s, in, sizeof s);
            devices[d]->exec.prim->scores(s, scale, zero, q);
            for (int i = 0; i < n; i++) {
                float want = fmaf(in[i], scale[i], q * zero[i]);
                kit_equal("score", &s[i], &want, 4);
            }
            memcpy(s, in, sizeof s);
            float got = devices[d]->exec.prim->weights(s, n, scale, zero);
            for (int i = 0; i < n; i++) {
                float want = in[i] * scale[i];
                kit_equal("weight", &s[i], &want, 4);
                sum += (double)in[i] * (double)zero[i];
                mag += fabs((double)in[i] * (double)zero[i]);
            }
            kit_near("sum of zeros", (size_t)n, (double)got, sum, 66 * KIT_U * mag);
            zero[n / 2] = NAN;
            assert_true(isnan(devices[d]->exec.prim->weights(s, n, scale, zero)));
        }
}

/* Codes of weights: those of the reference, to the bit, also of groups of zeros and at both ends of the range. */
static void test_encode(void **state)
{
    enum { MOST = 4800 };
    static const int64_t groups_of[] = {16, 32, 96, 128, 144, 7};
    static const float scales[] = {0.03f, 1, 1e-38f, 3e38f, 0};
    static float w[MOST], want_s[MOST], got_s[MOST];
    static uint8_t want[MOST], got[MOST];
    kit_rng r = {19};
    (void)state;
    for (int round = 0; round < KIT_ROUNDS(600); round++) {
        int bits = bits_of[round % 2];
        bool rounded = round % 3;
        int64_t group = groups_of[round / 2 % 6], n = kit_range(&r, 1, 33);
        kit_floats(&r, w, (size_t)(group * n));
        for (int64_t i = 0; i < group * n; i++) /* a group in three has a scale of its own */
            w[i] *= i / group % 3 ? 0.03f : scales[(i / group + round) % 5];
        turbok_prim_scalar.encode(bits, rounded, w, n, group, want, want_s);
        for (int d = 0; d < n_devices; d++) {
            memset(got, 0xee, sizeof got);
            devices[d]->exec.prim->encode(bits, rounded, w, n, group, got, got_s);
            assert_memory_equal(got, want, (size_t)(group * n));
            assert_int_equal(got[group * n], 0xee);
            kit_equal("scale", got_s, want_s, (size_t)n * sizeof *got_s);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error),      cmocka_unit_test(test_degenerate),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_pools),
        cmocka_unit_test(test_tiles),      cmocka_unit_test(test_scores_and_weights),
        cmocka_unit_test(test_encode),
    };
    return cmocka_run_group_tests_name("quantised keys and values", tests, open_devices,
                                       close_devices);
}
