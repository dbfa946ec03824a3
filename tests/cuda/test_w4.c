/* tests/cuda/test_w4.c: products with matrices of 4 and 8 bits against a model in double precision that
 * reads the grid by its definition. Random odd shapes, every kind of grid, every type. */
#include "cuda/ops.h"
#include "grid_kit.h"

/* Row o as the device multiplies it: tables in the type of the activations. size[k]: the numbers that meet
 * in the sum, for the error bound. */
static void row_of(const grid *t, int32_t act, int64_t o, double *w, double *size)
{
    const turbok_grid *g = &t->g;
    for (int64_t k = 0; k < t->in; k++) {
        int64_t i = o * (t->in / g->group) + k / g->group, to = g->perm ? g->perm[k] : k;
        unsigned c = g->codes[g->bits == 8 ? o * t->in + k : o * (t->in / 2) + k / 2];
        if (g->bits == 4)
            c = k % 2 ? c >> 4 : c & 15;
        double s = (double)act_get(g->scale_dtype, g->scale, i), v;
        if (g->table)
            v = s * (double)act_round(act, g->table[c]);
        else
            v = s * ((double)c - (double)(g->zero ? g->zero[i] : g->offset));
        size[to] = fabs(v);
        if (g->min) {
            v -= (double)g->min[i];
            size[to] += fabs((double)g->min[i]);
        }
        if (g->min && g->offset == 200) /* the offset goes into the minimum */
            size[to] += fabs(s) * 200;
        w[to] = v;
    }
}

/* sum and bound of |error| of one output. rounding: bound of the relative error of a weight before it is multiplied. */
static double dot(const double *w, const double *size, int32_t act, const void *x, int64_t at,
                  int64_t in, double rounding, double *bound)
{
    double sum = 0, all = 0;
    for (int64_t k = 0; k < in; k++) {
        double v = (double)act_get(act, x, at + k);
        sum += w[k] * v;
        all += size[k] * fabs(v);
    }
    *bound = all * (rounding + 0x1p-23 * (8 + (double)in / 16));
    return sum;
}

static double silu(double v)
{
    return v / (1 + exp(-v));
}

typedef struct run {
    int32_t act, rows, out_dtype;
    bool bias;
} run;

static void *random_rows(int32_t act, int64_t n)
{
    void *x = malloc((size_t)n * 4);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        act_put(act, x, i, uniform(-2, 2));
    return x;
}

/* By warp groups, numbers of groups of 32 and 64 are rounded to the type of the activations, after their scale was; not to fp16
 * where scales have another type. */
static double rounding_of(const grid *t, const run *r)
{
    bool wide = cu->warp_groups && r->act != TURBO_F32 && t->in % 128 == 0 &&
                (r->rows > 8 || cu->deterministic);
    if (!wide || t->g.table || t->g.min || (t->g.group != 32 && t->g.group != 64) ||
        (r->act == TURBO_F16 && t->g.scale_dtype != TURBO_F16))
        return 0;
    return (r->act == TURBO_F16 ? 0x1p-11 : 0x1p-8) * (t->g.scale_dtype == r->act ? 0.5 : 1.01);
}

/* Compares y [rows,out] with the model; up NULL: a plain product. every: of the outputs. */
static void compare(const grid *t, const grid *up, const run *r, const void *x, const void *y,
                    int64_t every)
{
    double *w = malloc((size_t)t->in * sizeof *w), *size = malloc((size_t)t->in * sizeof *size);
    const double rounding = rounding_of(t, r);
    for (int64_t o = 0; o < t->out; o += every) {
        for (int32_t row = 0; row < r->rows; row++) {
            double bound, bound_up = 0, u = 0;
            row_of(t, r->act, o, w, size);
            double v = dot(w, size, r->act, x, row * t->in, t->in, rounding, &bound);
            v += r->bias ? (double)t->bias[o] : 0;
            if (up) {
                row_of(up, r->act, o, w, size);
                u = dot(w, size, r->act, x, row * t->in, t->in, rounding, &bound_up);
                u += r->bias ? (double)up->bias[o] : 0;
                if (r->act != TURBO_F32 && r->rows > 8) { /* the two are rounded before they meet */
                    bound += act_half(r->act, v);
                    bound_up += act_half(r->act, u);
                }
                double g = silu(v);
                bound =
                    1.2 * bound * (fabs(u) + bound_up) + fabs(g) * bound_up + fabs(g * u) * 1e-6;
                v = g * u;
            }
            double got = (double)act_get(r->out_dtype, y, row * t->out + o);
            bound += act_half(r->out_dtype, v) + 0x1p-22 * fabs(v);
            if (!(fabs(got - v) <= bound))
                printf("[%lld,%lld] group %d bits %d act %d rows %d: row %d output %lld is "
                       "%g, not %g\n",
                       (long long)t->out, (long long)t->in, t->g.group, t->g.bits, r->act, r->rows,
                       row, (long long)o, got, v);
            assert_true(fabs(got - v) <= bound);
        }
    }
    free(w);
    free(size);
}

static void *scratch_for(int64_t in, int32_t rows)
{
    size_t n = turbok_cu_wq_scratch(cu, in, rows);
    void *p = device_new(n);
    turbok_cu_fill(cu, turbok_cu_at(p), 0, TURBOK_CU_WQ_COUNTERS);
    return p;
}

static void linear_case(const grid *t, const run *r, int64_t every)
{
    int64_t n = (int64_t)r->rows * t->out;
    turbok_cu_wq w = put_grid(t, r->bias);
    void *x = random_rows(r->act, r->rows * t->in), *y = malloc((size_t)n * 4);
    void *scratch = scratch_for(t->in, r->rows);
    void *dx = device_put(x, (size_t)(r->rows * t->in) * act_size(r->act));
    void *dy = device_new((size_t)n * act_size(r->out_dtype));
    for (int again = 0; again < 2;
         again++) { /* the second time with the counters as the first left them */
        turbok_cu_wq_linear(cu, r->act, &w, dx, r->rows, r->out_dtype, dy, t->out, scratch);
        device_get(y, dy, (size_t)n * act_size(r->out_dtype));
        compare(t, NULL, r, x, y, every);
    }
    device_end();
    free(x);
    free(y);
}

static void test_linear(void)
{
    static const int groups[] = {16, 32, 48, 64, 80, 128, 0};
    static const int32_t rows[] = {1, 3, 8, 9, 16, 17, 33, 70};
    int n = 0;
    for (int bits = 4; bits <= 8; bits += 4)
        for (int kind = 0; kind < KINDS; kind++)
            for (int gi = 0; gi < 7; gi++)
                for (int32_t act = TURBO_F32; act <= TURBO_BF16; act++, n++) {
                    int group = groups[gi],
                        in = group ? group * between(1, 4) : 16 * between(1, 16);
                    if (bits == 8 && kind == FAR)
                        continue;
                    grid t = make_grid(bits, kind, between(1, 40), in, group ? group : in,
                                       between(0, 2), n % 3 == 0);
                    if (bits == 8 && kind == TABLE && n % 2)
                        make_e4m3(&t);
                    run r = {.act = act, .rows = rows[n % 8], .bias = n % 5 < 3};
                    r.out_dtype = n % 4 ? act : TURBO_F32;
                    linear_case(&t, &r, 1);
                    drop_grid(&t);
                }
}

/* What decoding of a common format runs: several tiles for a block, several entries for a warp, entries that end
 * beyond the inputs, rows that take two passes. */
static void test_stream(void)
{
    static const struct {
        int bits, kind, group, scale;
        int64_t out, in;
        int32_t act, rows;
    } cases[] = {
        {4, PLAIN, 32, TURBO_BF16, 150, 4384, TURBO_BF16, 1},
        {4, ZERO, 128, TURBO_F16, 90, 2304, TURBO_BF16, 8},
        {4, MIN, 32, TURBO_F16, 70, 2208, TURBO_F16, 4},
        {4, MIN, 64, TURBO_F32, 100, 2240, TURBO_BF16, 5},
        {4, ZERO, 256, TURBO_F32, 33, 4608, TURBO_F16, 2},
        {4, FAR, 1088, TURBO_F32, 70, 1088, TURBO_BF16, 3},
        {4, PLAIN, 32, TURBO_BF16, 20, 14336, TURBO_BF16, 8},
        {4, ZERO, 128, TURBO_BF16, 32, 4096, TURBO_BF16, 1},
        {4, ZERO, 64, TURBO_F16, 70, 2112, TURBO_BF16, 2},
        {4, MIN, 32, TURBO_F32, 20, 1120, TURBO_F16, 2},
        {4, FAR, 128, TURBO_F32, 35, 640, TURBO_BF16, 1},
        {4, ZERO, 128, TURBO_BF16, 20, 14336, TURBO_BF16, 1},
        {4, PLAIN, 32, TURBO_F32, 19, 16928, TURBO_F16, 2},
        {8, ZERO, 32, TURBO_F16, 30, 1056, TURBO_BF16, 2},
        {8, PLAIN, 32, TURBO_BF16, 150, 2080, TURBO_BF16, 1},
        {8, PLAIN, 1120, TURBO_F32, 90, 1120, TURBO_BF16, 6},
        {8, ZERO, 64, TURBO_F16, 80, 1216, TURBO_F16, 8},
        {8, MIN, 128, TURBO_BF16, 40, 2176, TURBO_BF16, 2},
        {8, MIN, 32, TURBO_F32, 20, 96, TURBO_F16, 7},
        {4, TABLE, 32, TURBO_F32, 90, 2240, TURBO_BF16, 2},
        {8, TABLE, 128, TURBO_F32, 90, 2304, TURBO_BF16, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        grid t = make_grid(cases[i].bits, cases[i].kind, cases[i].out, cases[i].in, cases[i].group,
                           cases[i].scale, false);
        run r = {.act = cases[i].act, .rows = cases[i].rows, .bias = i % 2};
        r.out_dtype = i % 3 ? r.act : TURBO_F32;
        linear_case(&t, &r, 1);
        drop_grid(&t);
    }
}

/* Inputs that several splits share, and more tiles than a block has. */
static void split_cases(void)
{
    for (int bits = 4; bits <= 8; bits += 4)
        for (int i = 0; i < 3; i++) {
            grid t = make_grid(bits, i, 270, 128 * 9, 128, TURBO_F16, i == 1);
            run r = {.act = TURBO_BF16,
                     .rows = i == 2 ? 20 : 12,
                     .out_dtype = TURBO_BF16,
                     .bias = true};
            linear_case(&t, &r, 1);
            drop_grid(&t);
        }
}

static void test_split(void)
{
    const bool groups = cu->warp_groups;
    split_cases();
    cu->warp_groups = false;
    split_cases();
    cu->warp_groups = groups;
}

/* Products by warp groups, where the card has them: every size of block, rows and outputs that end within one, groups that
 * are a part of a span of 128 inputs, one, or several. sms: multiprocessors that the launcher is to count on. */
static void test_wide(void)
{
    static const struct {
        int bits, kind, group, scale;
        int64_t out, in;
        int32_t act, rows, sms;
        bool perm;
    } cases[] = {
        {4, PLAIN, 32, TURBO_BF16, 40, 256, TURBO_BF16, 9, 1, false},
        {4, ZERO, 128, TURBO_F16, 150, 1280, TURBO_F16, 31, 9, false},
        {4, ZERO, 64, TURBO_F32, 129, 640, TURBO_BF16, 33, 4, true},
        {4, PLAIN, 384, TURBO_BF16, 300, 768, TURBO_BF16, 64, 6, false},
        {4, ZERO, 32, TURBO_F32, 130, 1408, TURBO_F16, 70, 6, false},
        {4, PLAIN, 256, TURBO_F16, 128, 512, TURBO_BF16, 130, 20, true},
        {4, ZERO, 128, TURBO_BF16, 300, 384, TURBO_BF16, 257, 4, false},
        {4, PLAIN, 32, TURBO_F16, 33, 1152, TURBO_F16, 300, 4, false},
        {4, PLAIN, 640, TURBO_F32, 70, 640, TURBO_F16, 200, 1, false},
        {8, ZERO, 32, TURBO_F32, 150, 384, TURBO_BF16, 17, 8, false},
        {8, PLAIN, 1280, TURBO_F32, 90, 1280, TURBO_BF16, 32, 9, true},
        {8, ZERO, 64, TURBO_F16, 260, 640, TURBO_F16, 40, 4, false},
        {8, PLAIN, 32, TURBO_BF16, 260, 512, TURBO_BF16, 129, 10, false},
        {8, ZERO, 128, TURBO_BF16, 300, 640, TURBO_F16, 150, 2, false},
        {8, PLAIN, 32, TURBO_BF16, 70, 768, TURBO_BF16, 140, 2, true},
        {4, PLAIN, 16, TURBO_BF16, 150, 384, TURBO_F16, 40, 8, false},
        {4, MIN, 32, TURBO_F32, 150, 640, TURBO_BF16, 70, 6, true},
        {4, MIN, 128, TURBO_F16, 33, 384, TURBO_F16, 33, 3, false},
        {4, MIN, 16, TURBO_BF16, 130, 256, TURBO_BF16, 150, 2, false},
        {4, FAR, 64, TURBO_F32, 140, 640, TURBO_BF16, 20, 8, false},
        {4, TABLE, 64, TURBO_F32, 150, 768, TURBO_BF16, 65, 5, false},
        {4, TABLE, 32, TURBO_BF16, 40, 384, TURBO_F16, 129, 3, true},
        {4, TABLE, 16, TURBO_F16, 40, 256, TURBO_BF16, 12, 3, false},
        {8, MIN, 32, TURBO_F32, 140, 384, TURBO_BF16, 140, 3, false},
        {8, MIN, 64, TURBO_F16, 40, 640, TURBO_F16, 64, 5, true},
        {8, PLAIN, 16, TURBO_F32, 150, 384, TURBO_BF16, 30, 6, false},
        {8, MIN, 16, TURBO_F32, 30, 512, TURBO_F16, 100, 4, false},
        {8, TABLE, 128, TURBO_F32, 150, 384, TURBO_BF16, 66, 6, false},
        {8, TABLE, 256, TURBO_BF16, 150, 512, TURBO_F16, 50, 6, false},
    };
    const int sms = cu->sm_count;
    if (!cu->warp_groups)
        return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        grid t = make_grid(cases[i].bits, cases[i].kind, cases[i].out, cases[i].in, cases[i].group,
                           cases[i].scale, cases[i].perm);
        if (t.g.bits == 8 && t.g.table && i % 2)
            make_e4m3(&t);
        run r = {.act = cases[i].act, .rows = cases[i].rows, .bias = i % 2};
        r.out_dtype = i % 3 ? r.act : TURBO_F32;
        cu->sm_count = cases[i].sms;
        linear_case(&t, &r, 1);
        drop_grid(&t);
    }
    cu->sm_count = sms;
    /* Scales that are nothing in fp16. */
    grid t = make_grid(8, PLAIN, 40, 384, 32, TURBO_F32, false);
    run r = {.act = TURBO_F16, .rows = 20, .out_dtype = TURBO_F32};
    for (size_t i = 0; i < 40 * 384 / 32; i++)
        ((float *)t.scale)[i] *= 1e-6f;
    linear_case(&t, &r, 1);
    drop_grid(&t);
}

static void test_gated(void)
{
    for (int i = 0; i < 24; i++) {
        int bits = i % 2 ? 4 : 8, group = i % 3 ? 128 : i % 6 ? 48 : 32, kind = i % KINDS;
        if (bits == 8 && kind == FAR)
            continue;
        run r = {.act = i / 2 % 3, .rows = between(1, 8), .bias = i % 4 == 0};
        r.out_dtype = r.act;
        if (i >= 16 && cu->warp_groups) { /* many rows */
            group = i % 3 ? 128 : 64;
            r.rows = between(9, 140);
        }
        bool wide = i < 8 && r.act != TURBO_F16; /* whose products do not become too large */
        int64_t out = between(1, wide ? 200 : 60), in = group * 2 * between(1, wide ? 20 : 3);
        int64_t n = out * r.rows;
        grid gate = make_grid(bits, kind, out, in, group, TURBO_BF16, false);
        grid up = make_grid(bits, kind, out, in, group, TURBO_BF16, false);
        turbok_cu_wq wg = put_grid(&gate, r.bias), wu = put_grid(&up, r.bias);
        void *x = random_rows(r.act, r.rows * in), *y = malloc((size_t)n * 4);
        void *dx = device_put(x, (size_t)(r.rows * in) * act_size(r.act));
        void *dy = device_new((size_t)n * act_size(r.act));
        assert_true(turbok_cu_wq_gated(cu, r.act, &wg, &wu, TURBO_ACT_SILU, dx, r.rows, dy,
                                       scratch_for(in, r.rows), NULL));
        device_get(y, dy, (size_t)n * act_size(r.act));
        compare(&gate, &up, &r, x, y, 1);
        device_end();
        free(x);
        free(y);
        drop_grid(&gate);
        drop_grid(&up);
    }
}

/* Rows as numbers: bit for bit what turbok_grid_row says, rounded once. */
static void test_rows(void)
{
    for (int i = 0; i < 40; i++) {
        int bits = i % 2 ? 4 : 8, kind = i / 2 % KINDS, group = 16 * between(1, 9);
        if (kind == FAR)
            continue;
        int64_t out = between(1, 50), in = group * between(1, 4);
        int32_t act = i % 3, n = between(1, 9), rows[9];
        grid t = make_grid(bits, kind, out, in, group, i % 3, i % 4 == 0);
        turbok_cu_wq w = put_grid(&t, false);
        for (int k = 0; k < n; k++)
            rows[k] = between(-1, (int)out);
        void *dr = device_put(rows, sizeof rows),
             *dy = device_new((size_t)(n * in) * act_size(act));
        void *y = malloc((size_t)(n * in) * 4);
        float *want = malloc((size_t)in * sizeof *want);
        turbok_cu_wq_rows(cu, act, &w, i % 5 ? dr : NULL, 1, n, dy);
        device_get(y, dy, (size_t)(n * in) * act_size(act));
        for (int k = 0; k < n; k++) {
            int64_t o = i % 5 ? rows[k] : k + 1;
            bool there = o >= 0 && o < out;
            if (there)
                turbok_grid_row(&t.g, o, in, want);
            for (int64_t j = 0; j < in; j++) {
                float v = there ? act_round(act, want[j]) : 0;
                assert_memory_equal(&v, &(float){act_get(act, y, k * in + j)}, sizeof v);
            }
        }
        device_end();
        free(y);
        free(want);
        drop_grid(&t);
    }
}

/* With `deterministic` a row's bits do not depend on its neighbours. */
static void invariance_cases(void)
{
    static const int groups[] = {128, 32, 1024};
    cu->deterministic = true;
    for (int i = 0; i < 6; i++) {
        grid t = make_grid(i % 2 ? 8 : 4, ZERO, 40, 128 * 8, groups[i / 2], TURBO_F16, false);
        turbok_cu_wq w = put_grid(&t, true);
        enum { ROWS = 140 };
        uint16_t *x = random_rows(TURBO_BF16, ROWS * t.in), all[ROWS * 40], one[40];
        void *dx = device_put(x, (size_t)(ROWS * t.in) * 2), *dy = device_new(sizeof all);
        void *scratch = scratch_for(t.in, ROWS);
        turbok_cu_wq_linear(cu, TURBO_BF16, &w, dx, ROWS, TURBO_BF16, dy, t.out, scratch);
        device_get(all, dy, sizeof all);
        static const int picks[] = {0, 7, 63, 139};
        for (int k = 0; k < 4; k++) {
            int r = picks[k];
            turbok_cu_wq_linear(cu, TURBO_BF16, &w, (uint16_t *)dx + r * t.in, 1, TURBO_BF16, dy,
                                t.out, scratch);
            device_get(one, dy, sizeof one);
            assert_memory_equal(one, all + r * 40, sizeof one);
        }
        device_end();
        free(x);
        drop_grid(&t);
    }
    cu->deterministic = false;
}

static void test_invariance(void)
{
    const bool groups = cu->warp_groups;
    invariance_cases();
    cu->warp_groups = false;
    invariance_cases();
    cu->warp_groups = groups;
}

static void same(const void *a, const void *b, size_t bytes)
{
    char *x = malloc(bytes), *y = malloc(bytes);
    device_get(x, a, bytes);
    device_get(y, b, bytes);
    assert_memory_equal(x, y, bytes);
    free(x), free(y);
}

/* Has a block 99 KiB of shared memory, as on 8.6, 8.9 and 12.0? */
static bool is_narrow(void)
{
    return cu->shared_optin < 128 << 10;
}

/* Norms and sums beside a product of one or two rows: the bits are those of the kernels apart. */
static void beside_case(const grid *t, int32_t act, int32_t T, bool bias)
{
    if (is_narrow() && cu->arch_900) /* PTX of 9.0, which wants more */
        return;
    const size_t y_bytes = (size_t)(T * t->out) * 2, x_bytes = (size_t)(T * t->in) * 2;
    turbok_cu_wq w = put_grid(t, bias);
    void *x = random_rows(act, T * t->in), *h = random_rows(act, T * t->out);
    float *norm = random_rows(TURBO_F32, t->in);
    const bool norms = t->in <= TURBOK_CU_BESIDE_INPUTS;
    void *dx = device_put(x, x_bytes), *normed = norms ? device_new(x_bytes) : dx, *y[2], *dh[2];
    void *scratch = scratch_for(t->in, T);
    for (int i = 0; i < 2; i++) {
        dh[i] = device_put(h, y_bytes);
        y[i] = device_new(y_bytes);
    }
    const turbok_cu_beside b = {dh[1], norms ? device_put(norm, (size_t)t->in * 4) : NULL, 1e-5f};
    const turbok_cu_beside only = {.norm = b.norm, .eps = b.eps};
    if (norms)
        turbok_cu_rmsnorm(cu, act, dx, NULL, b.norm, b.eps, T, (int32_t)t->in, normed);
    turbok_cu_wq_linear(cu, act, &w, normed, T, act, y[0], t->out, scratch);
    turbok_cu_add(cu, act, dh[0], y[0], T * t->out);
    assert_true(turbok_cu_wq_beside(cu, act, &w, dx, T, act, y[1], &b));
    same(y[0], y[1], y_bytes);
    same(dh[0], dh[1], y_bytes);
    if (norms) {
        assert_true(
            turbok_cu_wq_gated(cu, act, &w, &w, TURBO_ACT_SILU, normed, T, y[0], scratch, NULL));
        assert_true(
            turbok_cu_wq_gated(cu, act, &w, &w, TURBO_ACT_SILU, dx, T, y[1], scratch, &only));
        same(y[0], y[1], y_bytes);
    }
    device_end();
    free(x), free(h), free(norm);
}

static void test_beside(void)
{
    static const struct {
        int kind, group, scale;
        int64_t out, in;
        int32_t act, T;
        bool
            roomy; /* not in 99 KiB of shared memory, in which all that 7B asks for one row must be */
    } cases[] = {
        {ZERO, 128, TURBO_BF16, 330, 640, TURBO_BF16, 1, false},
        {PLAIN, 32, TURBO_F16, 75, 2208, TURBO_BF16, 2, true},
        {MIN, 64, TURBO_F32, 90, 4224, TURBO_F16, 2, true},
        {ZERO, 64, TURBO_F32, 20, 192, TURBO_F16, 1, false},
        {ZERO, 128, TURBO_F16, 40, 4096, TURBO_BF16, 1, false},
        {PLAIN, 128, TURBO_F16, 40, 14336, TURBO_F16, 1, false},
        {PLAIN, 128, TURBO_BF16, 100, 8192, TURBO_BF16, 2, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i].roomy && is_narrow())
            continue;
        grid t = make_grid(4, cases[i].kind, cases[i].out, cases[i].in, cases[i].group,
                           cases[i].scale, false);
        beside_case(&t, cases[i].act, cases[i].T, i % 2);
        drop_grid(&t);
    }
}

/* One row without a bias, results of the type of the activations: kernels that know this, and the type of scales. */
static void test_single(void)
{
    static const struct {
        int kind, group;
        int64_t out, in;
    } cases[] = {
        {PLAIN, 32, 90, 3104},  {PLAIN, 128, 70, 2176}, {ZERO, 128, 33, 4224},
        {ZERO, 256, 2200, 256}, {FAR, 1088, 70, 1088},  {PLAIN, 32, 90, 4384}, /* last: roomy */
    };
    const size_t n = sizeof cases / sizeof cases[0] - (is_narrow() ? 1 : 0);
    for (size_t i = 0; i < 4 * n; i++) {
        const int k = (int)i / 4;
        const int32_t act = i % 2 ? TURBO_BF16 : TURBO_F16;
        grid t = make_grid(4, cases[k].kind, cases[k].out, cases[k].in, cases[k].group,
                           i / 2 % 2 ? TURBO_BF16 : TURBO_F16, false);
        run r = {.act = act, .rows = 1, .out_dtype = act};
        linear_case(&t, &r, 1);
        beside_case(&t, act, 1, false);
        drop_grid(&t);
    }
}

static void refused(grid *t, turbo_status want, const char *text)
{
    turbok_cu_wq w;
    turbo_err err = {{0}};
    bool e4m3_codes;
    turbo_status st = turbok_cu_wq_plan(&t->g, t->out, t->in, false, &w, &err);
    if (!st)
        st = turbok_cu_wq_check(&t->g, t->out, t->in, &e4m3_codes, &err);
    assert_int_equal(st, want);
    assert_non_null(strstr(err.text, text));
    drop_grid(t);
}

static void test_refusals(void)
{
    grid t = make_grid(4, PLAIN, 4, 96, 32, TURBO_F32, false);
    t.g.group = 64;
    refused(&t, TURBO_EINVAL, "do not divide");
    t = make_grid(4, PLAIN, 4, 96, 32, TURBO_F32, false);
    ((float *)t.scale)[5] = INFINITY;
    refused(&t, TURBO_EDATA, "not finite in row 1");
    t = make_grid(4, ZERO, 4, 96, 32, TURBO_F32, false);
    t.zero[3] = 128;
    refused(&t, TURBO_EDATA, "zero point");
    t = make_grid(8, MIN, 4, 96, 32, TURBO_F32, false);
    t.min[3] = NAN;
    refused(&t, TURBO_EDATA, "not finite");
    t = make_grid(8, PLAIN, 4, 96, 32, TURBO_F32, true);
    t.perm[3] = t.perm[4];
    refused(&t, TURBO_EDATA, "no permutation");
}

/* On a card: whole shapes of a model, a sample of their outputs. */
static void test_large(void)
{
    if (!on_a_card())
        return;
    static const int64_t shapes[][2] = {{6144, 4096}, {4096, 14336}, {14336, 4096}, {2048, 8192}};
    static const int32_t rows[] = {1, 4, 8, 16, 40, 300};
    for (int i = 0; i < 24; i++) {
        grid t = make_grid(i / 4 % 2 ? 8 : 4, i % 2, shapes[i % 4][0], shapes[i % 4][1], 128,
                           TURBO_F16, false);
        run r = {.act = TURBO_BF16, .rows = rows[i / 4], .out_dtype = TURBO_BF16};
        linear_case(&t, &r, 97);
        drop_grid(&t);
    }
}

int main(void)
{
    device_open();
    RUN(test_linear);
    RUN(test_stream);
    RUN(test_split);
    RUN(test_wide);
    RUN(test_gated);
    RUN(test_rows);
    RUN(test_invariance);
    RUN(test_beside);
    RUN(test_single);
    RUN(test_refusals);
    RUN(test_large);
    turbok_cu_close(cu);
    return 0;
}
