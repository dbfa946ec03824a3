/* tests/kern/test_grid.c: quantised matrices of every kind at random odd shapes, on every instruction set
 * of this CPU and several thread counts.
 *
 * The judge is a model in double precision of the dequantised weights, which the test takes from the
 * definition in turbok.h by itself. Activations become int8 by blocks of b inputs (32, or 16 where groups
 * are no multiples of 32), so an output may be off by sum |W[o,k]| a_k / 254, a_k the largest |x| of the
 * block, and by the rounding of sums. All instruction sets must agree to the bit, a row's bits must
 * not depend on the rows beside it, and an exact device must stay within the rounding of fp32. */
#include <math.h>

#include "model.h"

typedef struct spec {
    const char *name;
    int32_t bits, group, scale_dtype, offset; /* group 0: the row */
    char
        kind; /* 'o' offset, 'z' zero, 'm' min, 'i' integer table, 'f' table, 'e' floats of 8 bits */
    bool perm;
    float outlier;
} spec;

static const spec specs[] = {
    {"int8 row", 8, 0, TURBO_F32, 128, 'o', false, 0},
    {"int8 row, outliers", 8, 0, TURBO_F32, 128, 'o', false, 0.7f},
    {"int8 32", 8, 32, TURBO_F16, 128, 'o', false, 0},
    {"int8 32 at 0", 8, 32, TURBO_F32, 0, 'o', false, 0},
    {"int8 16 small", 8, 16, TURBO_F32, 32, 'o', false, 0},
    {"int8 128 zero", 8, 128, TURBO_BF16, 0, 'z', false, 0},
    {"int8 32 min", 8, 32, TURBO_F32, 0, 'm', false, 0},
    {"int4 row", 4, 0, TURBO_F32, 8, 'o', false, 0},
    {"int4 32", 4, 32, TURBO_F16, 8, 'o', false, 0},
    {"int4 16 min", 4, 16, TURBO_F32, 0, 'm', false, 0},
    {"int4 32 min", 4, 32, TURBO_F16, 0, 'm', false, 0},
    {"int4 128 zero", 4, 128, TURBO_F16, 0, 'z', false, 0},
    {"int4 64 zero, order", 4, 64, TURBO_F16, 0, 'z', true, 0},
    {"int4 48 offset", 4, 48, TURBO_BF16, 3, 'o', false, 0},
    {"int4 32 outliers", 4, 32, TURBO_F16, 8, 'o', true, 0.5f},
    {"integers 32", 4, 32, TURBO_F32, 0, 'i', false, 0},
    {"integers 16", 4, 16, TURBO_F16, 0, 'i', false, 0},
    {"table 64", 4, 64, TURBO_F32, 0, 'f', false, 0},
    {"table 8 row", 8, 0, TURBO_F32, 0, 'f', false, 0},
    {"table 8 128", 8, 128, TURBO_BF16, 0, 'f', true, 0},
    {"e4m3 128", 8, 128, TURBO_F32, 4, 'e', false, 0},
    {"e5m2 row", 8, 0, TURBO_F32, 5, 'e', false, 0},
};
#define SPECS (sizeof specs / sizeof *specs)

typedef struct grid {
    turbok_grid g;
    int32_t out, in;
    uint8_t *codes, *zero;
    void *scale;
    float *min, *table, *bias, *w; /* w [out,in]: by the definition */
    double *size; /* [out,in] largest number met on the way to w */
    int32_t *perm;
} grid;

/* Sign, `exponent` bits, the rest fraction; what the widest exponent means is up to the format: NaN. */
static float small_float(int exponent, int c)
{
    int fraction = 7 - exponent, e = c >> fraction & ((1 << exponent) - 1),
        bias = (1 << (exponent - 1)) - 1;
    double m = c & ((1 << fraction) - 1), one = 1 << fraction;
    double v = e ? ldexp(1 + m / one, e - bias) : ldexp(m / one, 1 - bias);
    if (e == (1 << exponent) - 1 && (exponent == 5 || (c & 7) == 7))
        return NAN;
    return (float)(c & 128 ? -v : v);
}

static float table_entry(kit_rng *r, char kind, int i)
{
    return kind == 'i' ? 0.5f * (float)kit_range(r, i ? -127 : 127, 127) : 8 * kit_float(r);
}

static bool tabled(const spec *s)
{
    return s->kind == 'i' || s->kind == 'f' || s->kind == 'e';
}

static void fill(kit_rng *r, const spec *s, grid *m)
{
    size_t groups = (size_t)(m->in / m->g.group) * (size_t)m->out,
           cells = (size_t)m->out * (size_t)m->in;
    float *f = malloc(groups * sizeof *f);
    assert_true(f && (m->codes = malloc(cells + 1)) && (m->zero = malloc(groups)));
    assert_true((m->min = malloc(groups * sizeof *f)) && (m->table = malloc(256 * sizeof *f)));
    int top = s->bits == 4 ? 15 : s->offset == 32 ? 63 : 255;
    for (size_t i = 0; i < cells; i++)
        m->codes[i] = (uint8_t)(s->bits == 4 ? kit_range(r, 0, 255) : kit_range(r, 0, top));
    for (int i = 0; i < 256; i++)
        m->table[i] = s->kind == 'e' ? small_float(s->offset, i) : table_entry(r, s->kind, i);
    for (size_t i = 0; i < cells && s->kind == 'e'; i++)
        m->codes[i] &= isnan(m->table[m->codes[i]]) ? 0x8f : 0xff;
    for (size_t i = 0; i < groups; i++) {
        f[i] = kit_range(r, 0, 9) ? 0.01f + 0.02f * fabsf(kit_float(r)) : 0.0f;
        m->zero[i] = (uint8_t)kit_range(r, 0, top);
        m->min[i] = kit_float(r);
    }
    m->scale = kit_store(s->scale_dtype, f, groups);
    m->g.codes = m->codes;
    m->g.scale = m->scale;
    m->g.zero = s->kind == 'z' ? m->zero : NULL;
    m->g.min = s->kind == 'm' ? m->min : NULL;
    m->g.table = tabled(s) ? m->table : NULL;
    for (int32_t o = 0; o < m->out; o++)
        for (int32_t k = 0; k < m->in; k++) {
            size_t at = (size_t)o * (size_t)m->in + (size_t)k;
            size_t p = (size_t)o * (size_t)(m->in / m->g.group) + (size_t)(k / m->g.group);
            int c = s->bits == 8 ? m->codes[at]
                    : k % 2      ? m->codes[((size_t)o * (size_t)m->in + (size_t)k) / 2] >> 4
                                 : m->codes[((size_t)o * (size_t)m->in + (size_t)k) / 2] & 15;
            volatile float product = f[p] * (tabled(s)        ? m->table[c]
                                             : s->kind == 'z' ? (float)(c - m->zero[p])
                                                              : (float)(c - s->offset));
            float w = s->kind == 'm' ? product - m->min[p] : product;
            size_t to = (size_t)o * (size_t)m->in + (size_t)(m->perm ? m->perm[k] : k);
            m->w[to] = w;
            m->size[to] = (double)f[p] * (tabled(s)      ? fmax(64, fabs((double)m->table[c]))
                                          : s->bits == 8 ? 511
                                                         : 31) +
                          (s->kind == 'm' ? fabs((double)m->min[p]) : 0);
        }
    free(f);
}

static grid make(kit_rng *r, const spec *s, int32_t out, int32_t in, bool bias)
{
    size_t cells = (size_t)out * (size_t)in;
    grid m = {.out = out, .in = in};
    m.g = (turbok_grid){.bits = s->bits,
                        .group = s->group ? s->group : in,
                        .outlier = s->outlier,
                        .scale_dtype = s->scale_dtype,
                        .offset = s->offset};
    assert_true((m.w = malloc(cells * sizeof *m.w)) && (m.size = malloc(cells * sizeof *m.size)));
    if (s->perm) {
        m.perm = malloc((size_t)in * sizeof *m.perm);
        assert_non_null(m.perm);
        for (int32_t k = 0; k < in; k++) { /* Fisher and Yates */
            int32_t j = kit_range(r, 0, k);
            m.perm[k] = m.perm[j];
            m.perm[j] = k;
        }
        m.g.perm = m.perm;
    }
    if (bias) {
        m.bias = malloc((size_t)out * sizeof *m.bias);
        assert_non_null(m.bias);
        kit_floats(r, m.bias, (size_t)out);
    }
    fill(r, s, &m);
    return m;
}

static void drop(grid *m)
{
    free(m->codes);
    free(m->zero);
    free(m->scale);
    free(m->min);
    free(m->table);
    free(m->bias);
    free(m->w);
    free(m->size);
    free(m->perm);
}

static int32_t random_in(kit_rng *r, const spec *s)
{
    static const int32_t rows[] = {2, 16, 30, 32, 34, 100, 172, 576, 1030};
    return s->group ? s->group * kit_range(r, 1, s->group > 64 ? 5 : 21) : kit_pick(r, rows);
}

static turbo_linear *handle(turbok_device *d, const grid *m)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    uint64_t before = turbok_device_alloc_bytes(d);
    if (turbok_grid_new(d, &m->g, m->out, m->in, m->bias, TURBO_F32, TURBO_LINEAR_TABLE, &w, &err))
        fail_msg("turbok_grid_new: %s", err.text);
    assert_int_equal(turbok_device_alloc_bytes(d) - before,
                     turbok_grid_bytes(d, &m->g, m->out, m->in, m->bias != NULL,
                                       TURBO_LINEAR_TABLE));
    assert_int_equal(turbok_linear_out(w), m->out);
    assert_int_equal(turbok_linear_in(w), m->in);
    return w;
}

/* Half of a step of the int8 activations, for each input of a row; 0 for what stays fp32. */
static void steps(const grid *m, const float *x, double *step)
{
    int32_t b = m->g.group == m->in || m->g.group % 32 == 0 ? 32 : 16;
    for (int32_t k0 = 0; k0 < m->in; k0 += b) {
        double most = 0;
        for (int32_t k = k0; k < m->in && k < k0 + b; k++) {
            double a = fabs((double)x[m->perm ? m->perm[k] : k]);
            if (!(m->g.outlier > 0) || a < (double)m->g.outlier)
                most = a > most ? a : most;
        }
        for (int32_t k = k0; k < m->in && k < k0 + b; k++) {
            int32_t i = m->perm ? m->perm[k] : k;
            bool far = m->g.outlier > 0 && fabs((double)x[i]) >= (double)m->g.outlier;
            step[i] = far ? 0 : most / 254 * (1 + 8 * KIT_U * 127);
        }
    }
}

/* exact: activations stay fp32. */
static void expected(const grid *m, const float *x, int32_t T, bool exact, bounded *y)
{
    double *step = calloc((size_t)m->in, sizeof *step);
    assert_non_null(step);
    for (int32_t t = 0; t < T; t++) {
        const float *row = x + (size_t)t * (size_t)m->in;
        if (!exact)
            steps(m, row, step);
        for (int32_t o = 0; o < m->out; o++) {
            double sum = m->bias ? (double)m->bias[o] : 0, mag = fabs(sum), off = 0;
            for (int32_t k = 0; k < m->in; k++) {
                size_t at = (size_t)o * (size_t)m->in + (size_t)k;
                sum += (double)m->w[at] * (double)row[k];
                mag += m->size[at] * (fabs((double)row[k]) + step[k]);
                off += fabs((double)m->w[at]) * step[k];
            }
            y[(size_t)t * (size_t)m->out + (size_t)o] =
                (bounded){sum, off + (2.0 * m->in + 8) * KIT_U * mag + 1e-30};
        }
    }
    free(step);
}

static void within(const char *what, const float *got, const bounded *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        kit_near(what, i, (double)got[i], want[i].v, want[i].tol);
}

static kit_devices devices;
static turbok_device *exact;

static int open_all(void **state)
{
    static const int threads[] = {1, 3};
    turbok_device_opts o = {.threads = 2, .spin_us = 20, .exact = true};
    turbo_err err;
    (void)state;
    kit_open(&devices, threads, 2);
    return turbok_device_open(&o, &exact, &err);
}

static int close_all(void **state)
{
    (void)state;
    kit_close(&devices);
    turbok_device_close(exact);
    return 0;
}

/* Rows alone, in twos and so on have the bits that they have together. */
static void alone(turbok_device *d, const turbo_linear *w, const float *x, const float *all,
                  int32_t T, kit_rng *r)
{
    float *y = malloc((size_t)T * (size_t)w->out * sizeof *y);
    assert_non_null(y);
    for (int32_t t = 0; t < T;) {
        int32_t n = kit_range(r, 1, T - t < 9 ? T - t : 9);
        turbok_device_ops(d)->linear(turbok_device_exec(d), w, x + (size_t)t * (size_t)w->in, n, y);
        kit_equal("rows alone", y, all + (size_t)t * (size_t)w->out,
                  (size_t)n * (size_t)w->out * 4);
        t += n;
    }
    free(y);
}

static void one_linear(kit_rng *r, const spec *s, int32_t out, int32_t in, int32_t T)
{
    kit_mem mem = {0};
    grid m = make(r, s, out, in, kit_range(r, 0, 1) != 0);
    size_t n = (size_t)T * (size_t)out;
    float *x = kit_new_floats(&mem, (size_t)T * (size_t)in), *ref = NULL;
    bounded *model = malloc(n * sizeof *model);
    assert_non_null(model);
    kit_floats(r, x, (size_t)T * (size_t)in);
    kit_freeze(&mem, x);
    expected(&m, x, T, s->kind == 'f' || s->kind == 'e', model);
    for (int i = 0; i < devices.n; i++) {
        turbok_device *d = devices.d[i];
        turbo_linear *w = handle(d, &m);
        float *y = kit_new_floats(&mem, n);
        turbok_device_ops(d)->linear(turbok_device_exec(d), w, x, T, y);
        if (i == 0) {
            ref = y;
            within(s->name, y, model, n);
        }
        kit_equal(turbok_device_name(d), y, ref, n * sizeof *y);
        alone(d, w, x, y, T, r);
        turbok_linear_free(d, w);
    }
    turbo_linear *w = handle(exact, &m);
    float *y = kit_new_floats(&mem, n);
    turbok_device_ops(exact)->linear(turbok_device_exec(exact), w, x, T, y);
    expected(&m, x, T, true, model);
    within("exact device", y, model, n);
    turbok_linear_free(exact, w);
    kit_verify(&mem);
    kit_drop(&mem);
    drop(&m);
    free(model);
}

static void test_linear(void **state)
{
    static const int32_t outs[] = {1, 2, 31, 32, 33, 63, 64, 100, 161};
    kit_rng r = {11};
    (void)state;
    for (size_t i = 0; i < SPECS; i++)
        for (int round = 0; round < KIT_ROUNDS(6); round++)
            one_linear(&r, &specs[i], kit_pick(&r, outs), random_in(&r, &specs[i]),
                       (KIT_FEWER == 1 ? round == 5 : i % 2) ? kit_range(&r, 20, 70)
                                                             : kit_range(&r, 1, 12));
}

/* More rows than are prepared together, and rows so long that few are. */
static void test_chunks(void **state)
{
    kit_rng r = {12};
    (void)state;
    one_linear(&r, &specs[2], 33, 64, TURBOK_ACT_ROWS + 5);
    if (KIT_FEWER > 1)
        return;
    one_linear(&r, &specs[1], 3, 40000, 9);
    one_linear(&r, &specs[12], 3, 12800, 90);
}

static void test_rows(void **state)
{
    kit_rng r = {13};
    (void)state;
    for (size_t i = 0; i < SPECS; i++) {
        int32_t in = random_in(&r, &specs[i]), out = kit_range(&r, 1, 70);
        grid m = make(&r, &specs[i], out, in, false);
        float *row = malloc((size_t)in * sizeof *row);
        int32_t tokens[3] = {0, out - 1, kit_range(&r, 0, out - 1)};
        float *got = malloc(3 * (size_t)in * sizeof *got);
        turbo_batch b = {.size = sizeof b, .n_tokens = 3, .tokens = tokens};
        assert_true(row && got);
        for (int32_t o = 0; o < out; o++) {
            turbok_grid_row(&m.g, o, in, row);
            kit_equal("turbok_grid_row", row, m.w + (size_t)o * (size_t)in,
                      (size_t)in * sizeof *row);
        }
        for (int k = 0; k < devices.n; k++) {
            turbo_linear *w = handle(devices.d[k], &m);
            turbok_device_ops(devices.d[k])->embed(turbok_device_exec(devices.d[k]), w, &b, got);
            for (size_t t = 0; t < 3; t++)
                kit_equal("embed", got + t * (size_t)in, m.w + (size_t)tokens[t] * (size_t)in,
                          (size_t)in * sizeof *row);
            turbok_linear_free(devices.d[k], w);
        }
        free(row);
        free(got);
        drop(&m);
    }
}

/* A matrix of parts gives what its parts give; gate and up of one kind or two what linear gives. */
static void test_parts(void **state)
{
    kit_rng r = {14};
    (void)state;
    for (int round = 0; round < KIT_ROUNDS(40); round++) {
        const spec *s = &kit_pick(&r, specs), *u = round % 2 ? s : &kit_pick(&r, specs);
        int32_t in = 960,
                rows[3] = {kit_range(&r, 1, 70), kit_range(&r, 1, 70), kit_range(&r, 1, 40)};
        turbok_device *d = devices.d[round % devices.n];
        const turbo_ops *ops = turbok_device_ops(d);
        turbo_exec *ex = turbok_device_exec(d);
        if (960 % (s->group ? s->group : 1) || 960 % (u->group ? u->group : 1))
            continue; /* 128 */
        grid m[2] = {make(&r, s, rows[0], in, round % 3 == 0), make(&r, u, rows[1], in, true)};
        if (s == u)
            memcpy(m[1].table, m[0].table, 256 * sizeof(float));
        float *f = malloc((size_t)rows[2] * (size_t)in * sizeof *f), x[4 * 960];
        assert_non_null(f);
        kit_floats(&r, f, (size_t)rows[2] * (size_t)in);
        kit_floats(&r, x, 4 * 960);
        turbok_part parts[3] = {
            {.grid = &m[0].g, .rows = rows[0], .bias = m[0].bias},
            {.grid = &m[1].g, .rows = rows[1], .bias = m[1].bias},
            {.data = f, .rows = rows[2]},
        };
        int32_t n = round % 4 == 3 ? 3 : 2, out = rows[0] + rows[1] + (n == 3 ? rows[2] : 0);
        turbo_linear *all = NULL, *one[3] = {NULL};
        turbo_err err = {{0}};
        uint64_t before = turbok_device_alloc_bytes(d);
        if (turbok_linear_rows_new(d, TURBO_F32, parts, n, in, 0, &all, &err))
            fail_msg("turbok_linear_rows_new: %s", err.text);
        assert_int_equal(turbok_device_alloc_bytes(d) - before,
                         turbok_linear_rows_bytes(d, TURBO_F32, parts, n, in, 0, NULL));
        float y[4 * 180], part[4 * 70];
        memset(y, 0xff, sizeof y);
        ops->linear(ex, all, x, 4, y);
        for (int32_t p = 0, at = 0; p < n; at += rows[p++]) {
            if (turbok_linear_rows_new(d, TURBO_F32, &parts[p], 1, in, 0, &one[p], &err))
                fail_msg("turbok_linear_rows_new: %s", err.text);
            ops->linear(ex, one[p], x, 4, part);
            for (int32_t t = 0; t < 4; t++)
                kit_equal("part", y + t * out + at, part + t * rows[p], (size_t)rows[p] * 4);
            turbok_linear_free(d, one[p]);
        }
        turbok_linear_free(d, all);
        drop(&m[0]);
        drop(&m[1]);
        free(f);
    }
}

static void test_mlp(void **state)
{
    kit_rng r = {15};
    (void)state;
    for (int round = 0; round < KIT_ROUNDS(44); round++) {
        const spec *s = &specs[(size_t)round % SPECS], *u = round < 22 ? s : &kit_pick(&r, specs);
        turbok_device *d = devices.d[kit_range(&r, 0, devices.n - 1)];
        const turbo_ops *ops = turbok_device_ops(d);
        turbo_exec *ex = turbok_device_exec(d);
        enum { T = 5, E = 384 };
        int32_t inner = 48 * 8, act = kit_range(&r, TURBO_ACT_SILU, TURBO_ACT_QUICK_GELU);
        grid m[3] = {make(&r, s->group == 48 ? &specs[8] : s, inner, E, false),
                     make(&r, u->group == 48 ? &specs[8] : u, inner, E, false),
                     make(&r, s->group == 48 ? &specs[8] : s, E, inner, true)};
        turbo_linear *w[3];
        float x[T * E], *scratch = malloc(2 * T * (size_t)inner * 4), g[T * 384], h[T * 384],
                        y[T * E], want[T * E];
        assert_non_null(scratch);
        kit_floats(&r, x, T * E);
        for (int i = 0; i < 3; i++)
            w[i] = handle(d, &m[i]);
        ops->gated_mlp(ex, w[0], w[1], w[2], act, x, T, scratch, y);
        ops->linear(ex, w[0], x, T, g);
        ops->linear(ex, w[1], x, T, h);
        ex->prim->gated(act, g, h, T * inner, g);
        ops->linear(ex, w[2], g, T, want);
        kit_equal("gated_mlp", y, want, sizeof y);
        ops->mlp(ex, w[0], w[2], act, x, T, scratch, y);
        ops->linear(ex, w[0], x, T, g);
        ex->prim->activate(act, g, T * inner, g);
        ops->linear(ex, w[2], g, T, want);
        kit_equal("mlp", y, want, sizeof y);
        for (int i = 0; i < 3; i++) {
            turbok_linear_free(d, w[i]);
            drop(&m[i]);
        }
        free(scratch);
    }
}

/* NaN and infinity in a row end in that row as NaN; zeros and numbers near the end of fp32 are harmless. */
static void test_specials(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    kit_rng r = {16};
    (void)state;
    for (size_t i = 0; i < SPECS; i++)
        for (int k = 0; k < devices.n; k++) {
            const spec *s = &specs[i];
            int32_t in = s->group ? 2 * s->group : 64;
            grid m = make(&r, s, 40, in, false);
            turbo_linear *w = handle(devices.d[k], &m);
            float x[3 * 256], y[3 * 40];
            kit_floats(&r, x, 3 * (size_t)in);
            for (int32_t j = 0; j < in; j++)
                x[2 * in + j] = j % 2 ? 0.0f : 1e-42f;
            for (size_t o = 0; o < 3; o++) {
                x[in + 3] = odd[o];
                turbok_device_ops(devices.d[k])
                    ->linear(turbok_device_exec(devices.d[k]), w, x, 3, y);
                for (int j = 0; j < 40; j++) {
                    assert_true(isfinite(y[j]));
                    assert_false(isfinite(y[40 + j]) && m.w[j * in + 3] != 0.0f);
                    kit_near("zeros", (size_t)j, (double)y[80 + j], 0, 1e-33);
                }
            }
            turbok_linear_free(devices.d[k], w);
            drop(&m);
        }
}

static void refused(grid *m, turbo_status want)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    turbok_device *d = devices.d[0];
    uint64_t before = turbok_device_alloc_bytes(d);
    assert_int_equal(turbok_grid_new(d, &m->g, m->out, m->in, NULL, 0, 0, &w, &err), want);
    assert_true(err.text[0] && !w);
    assert_int_equal(turbok_device_alloc_bytes(d), before);
    if (want == TURBO_EINVAL)
        assert_int_equal(turbok_grid_bytes(d, &m->g, m->out, m->in, false, 0), 0);
}

static void test_refusals(void **state)
{
    kit_rng r = {17};
    (void)state;
    grid m = make(&r, &specs[6], 5, 96, false), keep = m;
    m.g.group = 64;
    refused(&m, TURBO_EINVAL);
    m.g.group = 24;
    refused(&m, TURBO_EINVAL);
    m.g.group = 0;
    refused(&m, TURBO_EINVAL);
    m = keep;
    m.g.bits = 3;
    refused(&m, TURBO_EINVAL);
    m = keep;
    m.g.zero = m.zero;
    refused(&m, TURBO_EINVAL);
    m = keep;
    m.out = 0;
    refused(&m, TURBO_EINVAL);
    m = keep;
    m.min[14] = INFINITY;
    refused(&m, TURBO_EDATA);
    m.min[14] = 0;
    ((float *)m.scale)[13] = NAN;
    refused(&m, TURBO_EDATA);
    drop(&m);
    m = make(&r, &specs[12], 5, 128, false);
    m.perm[7] = m.perm[8];
    refused(&m, TURBO_EDATA);
    m.perm[7] = 128;
    refused(&m, TURBO_EDATA);
    drop(&m);
}

/* Numbers to grids: 8 bits within half a scale; 4 bits with an error no larger than steps of max / 7 have. */
static void test_quantize(void **state)
{
    kit_rng r = {18};
    turbok_device *d = devices.d[devices.n - 1];
    (void)state;
    for (int round = 0; round < KIT_ROUNDS(30); round++) {
        int32_t bits = round % 2 ? 8 : 4, group = round % 3 ? 32 : 96,
                in = round % 3 == 2 ? 32 : 192;
        int32_t out = kit_range(&r, 1, 40), dtype = kit_range(&r, 0, 2);
        size_t n = (size_t)out * (size_t)in;
        float *f = malloc(n * sizeof *f), *row = malloc((size_t)in * sizeof *row);
        turbok_grid g;
        turbo_err err = {{0}};
        assert_true(f && row);
        for (size_t i = 0; i < n; i++)
            f[i] = kit_float(&r) * (i % 960 < 32 ? 0.0f : 0.03f) + (round % 5 ? 0 : 1e-30f);
        void *stored = kit_store(dtype, f, n);
        if (turbok_grid_quantize(d, dtype, stored, out, in, bits, group, &g, &err))
            fail_msg("turbok_grid_quantize: %s", err.text);
        double error = 0, plain = 0;
        for (int32_t o = 0; o < out; o++) {
            turbok_grid_row(&g, o, in, row);
            for (int32_t k0 = 0; k0 < in; k0 += group) {
                const float *w = f + (size_t)o * (size_t)in + k0;
                double most = 0;
                for (int32_t k = 0; k < group; k++)
                    most = fmax(most, fabs((double)w[k]));
                for (int32_t k = 0; k < group; k++) {
                    double e = (double)row[k0 + k] - (double)w[k];
                    double step = most / 7,
                           q = step > 0 ? nearbyint((double)w[k] / step) * step : 0;
                    if (bits == 8)
                        kit_near("8 bits", (size_t)k, e, 0, most / 254 * (1 + 0x1p-7) + 1e-37);
                    error += e * e;
                    plain += (q - (double)w[k]) * (q - (double)w[k]);
                }
            }
        }
        assert_true(bits == 8 || error <= plain);
        turbok_grid_quantize_free(&g);
        memset(stored, 0xff, 2); /* NaN with 16 bits */
        if (dtype == TURBO_F32)
            memset(stored, 0xff, 4);
        assert_int_equal(turbok_grid_quantize(d, dtype, stored, out, in, bits, group, &g, &err),
                         TURBO_EDATA);
        assert_int_equal(turbok_grid_quantize(d, dtype, stored, out, in, bits, 31, &g, &err),
                         TURBO_EINVAL);
        free(f);
        free(row);
        free(stored);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),   cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_rows),     cmocka_unit_test(test_parts),
        cmocka_unit_test(test_mlp),      cmocka_unit_test(test_specials),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_quantize),
    };
    return cmocka_run_group_tests_name("quantised matrices", tests, open_all, close_all);
}
