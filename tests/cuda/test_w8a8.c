/* tests/cuda/test_w8a8.c: rows as codes of 8 bits, and their products with matrices of 8 bits, against a model in double
 * precision that reads the same codes. Integers and e4m3, one scale a row and one for 128 inputs; by warps and, on cards of
 * 9.0, by warp groups. */
#include "cuda/w8a8.h"
#include "internal.h"
#include "q_kit.h"

enum { GROUP = 128 };

static bool has_groups; /* the card, and this build for it */

/* Products by warp groups, where the card has them, or by warps as on all others. */
static void by_groups(bool groups)
{
    cu->warp_groups = groups && has_groups;
}

typedef struct matrix {
    turbok_grid g;
    int64_t out, in;
    uint8_t *codes;
    float *scale, *bias;
    float table[256];
    bool e4m3;
} matrix;

static double e4m3_value(unsigned c)
{
    int e = (int)(c >> 3 & 15), m = (int)(c & 7);
    double v = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return c & 128 ? -v : v;
}

static double value(bool e4m3, unsigned code)
{
    return e4m3 ? e4m3_value(code) : (double)(int8_t)code;
}

static matrix *make_matrix(bool e4m3, bool blocks, int64_t out, int64_t in)
{
    matrix *m = calloc(1, sizeof *m);
    assert_non_null(m);
    int64_t groups = blocks ? in / GROUP : 1;
    *m = (matrix){.out = out, .in = in, .e4m3 = e4m3};
    m->codes = malloc((size_t)(out * in));
    m->scale = malloc((size_t)(out * groups) * sizeof *m->scale);
    m->bias = malloc((size_t)out * sizeof *m->bias);
    assert_true(m->codes && m->scale && m->bias);
    for (int64_t i = 0; i < out * in; i++) {
        m->codes[i] = (uint8_t)rnd();
        if (e4m3 && (m->codes[i] & 127) == 127) /* no number */
            m->codes[i] ^= 1;
    }
    for (int64_t i = 0; i < out * groups; i++)
        m->scale[i] = uniform(0.001f, 0.02f) * (i % 5 ? 1 : -1);
    for (int64_t o = 0; o < out; o++)
        m->bias[o] = uniform(-1, 1);
    for (unsigned c = 0; c < 256; c++)
        m->table[c] = (c & 127) == 127 ? NAN : (float)e4m3_value(c);
    m->g = (turbok_grid){.bits = 8,
                         .group = (int32_t)(in / groups),
                         .scale_dtype = TURBO_F32,
                         .offset = 128,
                         .codes = m->codes,
                         .scale = m->scale,
                         .table = e4m3 ? m->table : NULL,
                         .coded_inputs = 1};
    return m;
}

static void drop(matrix *m)
{
    free(m->codes);
    free(m->scale);
    free(m->bias);
    free(m);
}

static turbok_cu_wq put_matrix(const matrix *m, bool bias)
{
    turbok_cu_wq w;
    turbo_err err = {{0}};
    bool e4m3;
    must(turbok_cu_wq_plan(&m->g, m->out, m->in, bias, &w, &err), &err);
    must(turbok_cu_wq_check(&m->g, m->out, m->in, &e4m3, &err), &err);
    assert_int_equal(e4m3, m->e4m3);
    if (e4m3)
        w.kind = TURBOK_CU_Q_E4M3;
    char *image = malloc(w.bytes);
    assert_non_null(image);
    memset(image, 0xff, w.bytes);
    turbok_cu_wq_pack(&w, &m->g, 0, m->out, bias ? m->bias : NULL, TURBO_F32, 0, w.tiles, image);
    turbok_cu_wq_place(&w, turbok_cu_at(device_put(image, w.bytes)));
    free(image);
    return w;
}

static void *random_rows(int32_t act, int64_t rows, int64_t in)
{
    uint16_t *x = malloc((size_t)(rows * in) * sizeof *x);
    assert_non_null(x);
    for (int64_t r = 0; r < rows; r++) {
        float size = uniform(0.01f, 30); /* rows are of several sizes, as tokens are */
        for (int64_t k = 0; k < in; k++)
            act_put(act, x, r * in + k, uniform(-size, size) * (rnd() % 50 ? 0.2f : 1));
    }
    return x;
}

/* ---- rows to codes ---------------------------------------------------------------------------------- */

/* Codes and scales of rows on the host: value and scale of row r, input k. */
typedef struct coded {
    uint8_t *codes;
    float *scale;
    int64_t in, wide;
    int32_t ld, groups, tile;
    bool e4m3;
} coded;

static coded get_codes(const turbok_cu_coded_rows *c, int64_t in, bool e4m3)
{
    coded h = {.in = in,
               .wide = (in + 63) / 64,
               .ld = c->ld,
               .groups = c->groups,
               .tile = c->tile,
               .e4m3 = e4m3};
    size_t bytes = (size_t)(h.ld / 8 * h.wide) * 512, n = (size_t)(h.groups * h.ld);
    h.codes = malloc(bytes);
    h.scale = malloc(n * sizeof *h.scale);
    assert_true(h.codes && h.scale);
    device_get(h.codes, c->codes, bytes);
    device_get(h.scale, c->scale, n * sizeof *h.scale);
    return h;
}

static unsigned code_at(const coded *h, int64_t r, int64_t k)
{
    int64_t unit = k % 64 / 8, lane = r % 8 * 4 + unit % 4;
    if (h->tile) { /* args_q.h */
        int64_t first = r / h->tile * h->tile, here = h->ld - first;
        here = here < h->tile ? here : h->tile;
        int64_t piece = k % 128 / 32 * 2 + k % 8 / 4;
        return h->codes[first * h->in + k / 128 * here * 128 + (r - first) * 128 +
                        (piece ^ r % 8) * 16 + unit % 4 * 4 + k % 4];
    }
    return h->codes[((r / 8 * h->wide + k / 64) * 32 + lane) * 16 + unit / 4 * 8 + k % 8];
}

static float scale_at(const coded *h, int64_t r, int64_t k)
{
    return h->scale[(h->groups == 1 ? 0 : k / GROUP) * h->ld + r];
}

static void drop_codes(coded *h)
{
    free(h->codes);
    free(h->scale);
}

/* Half a step of e4m3 at v. */
static double half_step(double v)
{
    return fabs(v) < 0x1p-6 ? 0x1p-10 : ldexp(1, ilogb(v) - 4);
}

/* The code of x is one of the nearest, the scale of its group the quotient of its largest, and the largest is the
 * largest code; what is beyond rows and inputs is 0. */
static void check_codes(const coded *h, int32_t act, const void *x, int64_t rows, int64_t in)
{
    const float top = h->e4m3 ? 448 : 127;
    const int64_t span = h->groups == 1 ? in : GROUP;
    for (int64_t r = 0; r < h->ld; r++)
        for (int64_t k0 = 0; k0 < h->wide * 64; k0 += span) {
            float most = 0;
            for (int64_t k = k0; k < k0 + span && k < in && r < rows; k++)
                most = fmaxf(most, fabsf(act_get(act, x, r * in + k)));
            bool some = most >= 1e-35f;
            if (k0 < in)
                assert_true(scale_at(h, r, k0) == (some ? most / top : 0));
            for (int64_t k = k0; k < k0 + span && k < h->wide * 64; k++) {
                if (r >= rows || k >= in || !some) {
                    assert_int_equal(code_at(h, r, k), 0);
                    continue;
                }
                double want = (double)act_get(act, x, r * in + k) * (double)top / (double)most;
                double got = value(h->e4m3, code_at(h, r, k));
                double half = h->e4m3 ? half_step(want) : 0.5;
                assert_true(fabs(got - want) <= half + fabs(want) * 0x1p-22);
                if (fabs(want) >= (double)top)
                    assert_true(fabs(got) == (double)top);
            }
        }
}

static void test_codes(void)
{
    static const int64_t widths[] = {32, 64, 96, 160, 2080, 128, 384, 1152};
    for (int i = 0; i < 32; i++) {
        bool e4m3 = i % 2, blocks = i % 8 > 4;
        int32_t act = i / 2 % 2 ? TURBO_F16 : TURBO_BF16, rows = between(1, 20);
        int64_t in = widths[i % 8];
        matrix *m = make_matrix(e4m3, blocks, 1, in);
        by_groups(i / 8 % 2);
        turbok_cu_wq w = put_matrix(m, false);
        uint16_t *x = random_rows(act, rows, in);
        if (i > 15) {
            memset(x, 0, (size_t)in * 2); /* a row of zeros, and one too small for a reciprocal */
            for (int64_t k = 0; act == TURBO_BF16 && rows > 1 && k < in; k++)
                x[in + k] = (uint16_t)(k % 3);
        }
        void *room = device_new(turbok_cu_w8a8_bytes(in, rows));
        turbok_cu_coded_rows c =
            turbok_cu_w8a8_code(cu, act, &w, device_put(x, (size_t)(rows * in) * 2), rows, room);
        coded h = get_codes(&c, in, e4m3);
        assert_int_equal(h.groups, blocks ? in / GROUP : 1);
        check_codes(&h, act, x, rows, in);
        drop_codes(&h);
        device_end();
        free(x);
        drop(m);
    }
}

/* ---- products ------------------------------------------------------------------------------------- */

typedef struct run {
    int32_t act, rows, out_dtype;
    bool bias;
} run;

/* What sums may be off by. Integers are exact within a group. The host adds e4m3 in double and rounds once in 32 inputs; a
 * card adds the 32 products of an instruction to what is there with 13 bits or more below the largest of them
 * (so cards of 8.9 and 9 have been found to do), for four instructions until the sum moves to fp32. */
typedef struct total {
    double sum, all, largest; /* of a group or 128 inputs: sum, sum of sizes, largest product */
    double v, bound; /* of all so far */
} total;

static void settle(const matrix *m, total *t, double scale)
{
    double off = m->e4m3 ? t->all * 0x1p-24 * 4 : 0;
    if (m->e4m3 && getenv("TURBO_CHECK_GPU"))
        off = 4 * 0x1p-13 * (33 * t->largest + t->all);
    t->v += t->sum * scale;
    /* The sum so far, the scales and this group's sum are rounded. */
    t->bound += (off + t->all * 0x1p-22) * fabs(scale) + fabs(t->v) * 0x1p-23;
    t->sum = t->all = t->largest = 0;
}

static void compare(const matrix *m, const run *r, const coded *h, const void *y, int64_t every)
{
    const int64_t groups = m->in / m->g.group;
    double *x = malloc((size_t)(r->rows * m->in) * sizeof *x), w[256], of[256];
    assert_non_null(x);
    for (unsigned c = 0; c < 256; c++) {
        w[c] = m->e4m3 ? e4m3_value(c) : (double)c - 128;
        of[c] = value(m->e4m3, c);
    }
    for (int64_t i = 0; i < r->rows * m->in; i++)
        x[i] = of[code_at(h, i / m->in, i % m->in)];
    for (int64_t row = 0; row < r->rows; row++)
        for (int64_t o = row % every; o < m->out; o += every) {
            total t = {0};
            for (int64_t k = 0; k < m->in; k++) {
                double p = w[m->codes[o * m->in + k]] * x[row * m->in + k];
                t.sum += p;
                t.all += fabs(p);
                t.largest = fmax(t.largest, fabs(p));
                if (k % GROUP == GROUP - 1 || k == m->in - 1)
                    settle(m, &t,
                           (double)m->scale[o * groups + k / m->g.group] *
                               (double)scale_at(h, row, k));
            }
            t.v += r->bias ? (double)m->bias[o] : 0;
            t.bound += act_half(r->out_dtype, t.v) * 1.01 + fabs(t.v) * 0x1p-22;
            double got = (double)act_get(r->out_dtype, y, row * m->out + o);
            if (!(fabs(got - t.v) <= t.bound))
                printf("[%lld,%lld] e4m3 %d group %d rows %d: row %lld output %lld is %.9g, not "
                       "%.9g +- %.2g\n",
                       (long long)m->out, (long long)m->in, m->e4m3, m->g.group, r->rows,
                       (long long)row, (long long)o, got, t.v, t.bound);
            assert_true(fabs(got - t.v) <= t.bound);
        }
    free(x);
}

static void *scratch_for(int64_t in, int32_t rows)
{
    void *p = device_new(turbok_cu_wq_scratch(cu, in, rows));
    turbok_cu_fill(cu, turbok_cu_at(p), 0, TURBOK_CU_WQ_COUNTERS);
    return p;
}

/* Has the card products of such codes? */
static bool multiplies(bool e4m3)
{
    return !e4m3 || cu->major == 9 || (cu->major == 8 && cu->minor == 9);
}

/* Both ways: codes and product by themselves, and as a backend asks for it; where inputs are split once more, with the
 * counters as the first time left them. The same bits. */
static void product_case(const matrix *m, const run *r, int64_t every)
{
    size_t n = (size_t)(r->rows * m->out) * act_size(r->out_dtype);
    turbok_cu_wq w = put_matrix(m, r->bias);
    uint16_t *x = random_rows(r->act, r->rows, m->in);
    void *y = malloc(n), *again = malloc(n);
    assert_true(y && again);
    const uint64_t partial = (uint64_t)cu->sm_count << 17;
    void *dx = device_put(x, (size_t)(r->rows * m->in) * 2), *dy = device_new(n);
    void *room = device_new(turbok_cu_w8a8_bytes(m->in, r->rows)), *sums = device_new(partial);
    void *scratch = scratch_for(m->in, r->rows);
    assert_int_equal(turbok_cu_w8a8_covers(cu, &w, r->act, r->rows), multiplies(m->e4m3));
    if (!multiplies(m->e4m3)) {
        device_end();
        free(x);
        free(y);
        free(again);
        return;
    }
    turbok_cu_coded_rows c = turbok_cu_w8a8_code(cu, r->act, &w, dx, r->rows, room);
    turbok_cu_w8a8_linear(cu, &w, &c, r->out_dtype, dy, m->out, scratch, sums, partial);
    device_get(y, dy, n);
    coded h = get_codes(&c, m->in, m->e4m3);
    compare(m, r, &h, y, every);
    for (int i = 0; i < (m->in > 1024 ? 2 : 1); i++) {
        turbok_cu_fill(cu, turbok_cu_at(dy), 0xff, n);
        turbok_cu_wq_linear(cu, r->act, &w, dx, r->rows, r->out_dtype, dy, m->out, scratch);
        device_get(again, dy, n);
        assert_memory_equal(y, again, n);
    }
    drop_codes(&h);
    device_end();
    free(x);
    free(y);
    free(again);
}

/* Ragged rows, outputs and inputs; every kind and type. */
static void test_products(void)
{
    static const struct {
        int32_t rows;
        int64_t out, in;
    } shapes[] = {{17, 1, 32},   {40, 150, 96},  {129, 40, 160},  {130, 129, 256},
                  {33, 61, 384}, {90, 136, 512}, {260, 150, 128}, {20, 16, 1152}};
    for (int i = 0; i < 16; i++) {
        bool e4m3 = (i + i / 8) % 2, blocks = i / 2 % 2;
        int64_t in = shapes[i % 8].in;
        matrix *m = make_matrix(e4m3, blocks && in % GROUP == 0, shapes[i % 8].out, in);
        run r = {.act = i / 4 % 2 ? TURBO_F16 : TURBO_BF16,
                 .rows = shapes[i % 8].rows,
                 .bias = i % 3 != 0};
        r.out_dtype = i % 5 ? r.act : TURBO_F32;
        by_groups(i / 8 == 0);
        product_case(m, &r, 1);
        drop(m);
    }
}

/* Inputs that several blocks share. */
static void test_split(void)
{
    for (int i = 0; i < 8; i++) {
        matrix *m = make_matrix(i % 2, i / 2 % 2, 70, 2432);
        by_groups(i / 4);
        run r = {.act = TURBO_BF16, .rows = 20, .out_dtype = TURBO_BF16, .bias = true};
        product_case(m, &r, 1);
        drop(m);
    }
}

/* The bits of a row do not depend on its neighbours: with `deterministic`, and of integers with one scale a row always. */
static void test_invariance(void)
{
    enum { ROWS = 135, OUT = 24, IN = 2176 }; /* one row alone would be split more often */
    static const int picks[] = {9, 127, 134};
    for (int i = 1; i < 7; i++) {
        bool free_of_it = i == 4;
        by_groups(i < 5);
        matrix *m = make_matrix(i % 2, i / 2 % 2, OUT, IN);
        turbok_cu_wq w = put_matrix(m, true);
        uint16_t *x = random_rows(TURBO_BF16, ROWS, IN);
        float all[ROWS * OUT], some[ROWS * OUT]; /* not rounded: bf16 would hide it */
        void *dx = device_put(x, (size_t)(ROWS * IN) * 2), *dy = device_new(sizeof all);
        void *scratch = scratch_for(IN, ROWS);
        cu->deterministic = !free_of_it;
        turbok_cu_wq_linear(cu, TURBO_BF16, &w, dx, ROWS, TURBO_F32, dy, OUT, scratch);
        device_get(all, dy, sizeof all);
        for (int k = 0; k < 3; k++) {
            int n = free_of_it ? 17 : 1, r = free_of_it ? picks[k] * 118 / 134 : picks[k];
            turbok_cu_wq_linear(cu, TURBO_BF16, &w, (uint16_t *)dx + r * IN, n, TURBO_F32, dy, OUT,
                                scratch);
            device_get(some, dy, (size_t)(n * OUT) * sizeof *some);
            assert_memory_equal(some, all + r * OUT, (size_t)(n * OUT) * sizeof *some);
        }
        cu->deterministic = false;
        device_end();
        free(x);
        drop(m);
    }
}

/* A row that holds NaN or infinity gives NaN alone, and the others what they gave without it. */
static void test_not_finite(void)
{
    enum { ROWS = 20, OUT = 40, IN = 256 };
    for (int i = 0; i < 8; i++) {
        if (!multiplies(i % 2))
            continue;
        by_groups(i % 3);
        int32_t act = i / 4 ? TURBO_F16 : TURBO_BF16;
        matrix *m = make_matrix(i % 2, i / 2 % 2, OUT, IN);
        turbok_cu_wq w = put_matrix(m, true);
        uint16_t *x = random_rows(act, ROWS, IN), before[ROWS * OUT], after[ROWS * OUT];
        void *dx = device_put(x, (size_t)(ROWS * IN) * 2), *dy = device_new(sizeof before);
        void *scratch = scratch_for(IN, ROWS);
        turbok_cu_wq_linear(cu, act, &w, dx, ROWS, act, dy, OUT, scratch);
        device_get(before, dy, sizeof before);
        act_put(act, x, 3 * IN + 7, NAN);
        act_put(act, x, 11 * IN + 255, INFINITY);
        act_put(act, x, 19 * IN + 130, -INFINITY);
        turbok_cu_to_device(cu, turbok_cu_at(dx), x, (size_t)(ROWS * IN) * 2);
        turbok_cu_wq_linear(cu, act, &w, dx, ROWS, act, dy, OUT, scratch);
        device_get(after, dy, sizeof after);
        for (int row = 0; row < ROWS; row++)
            for (int o = 0; o < OUT; o++)
                if (row == 3 || row == 11 || row == 19)
                    assert_true(isnan(act_get(act, after, row * OUT + o)));
                else
                    assert_int_equal(after[row * OUT + o], before[row * OUT + o]);
        device_end();
        free(x);
        drop(m);
    }
}

/* Who is multiplied so: what the folder does not ask for never is, nor what the card or the kernels cannot do. */
static void test_covers(void)
{
    turbok_cu_wq w;
    turbo_err err = {{0}};
    uint8_t zero[64] = {0};
    int32_t perm[256] = {0};
    matrix *m = make_matrix(false, true, 16, 256);
    const turbok_grid good = m->g;
    for (int i = 0; i < 6; i++) {
        turbok_grid g = good;
        g.coded_inputs = i != 1;
        g.zero = i == 2 ? zero : NULL;
        g.perm = i == 3 ? perm : NULL;
        g.offset = i == 4 ? 127 : 128;
        g.group = i == 5 ? 64 : 128;
        must(turbok_cu_wq_plan(&g, 16, 256, false, &w, &err), &err);
        assert_int_equal(turbok_cu_w8a8_covers(cu, &w, TURBO_BF16, 17), i == 0);
    }
    must(turbok_cu_wq_plan(&good, 16, 256, false, &w, &err), &err);
    assert_true(!turbok_cu_w8a8_covers(cu, &w, TURBO_BF16, 16));
    assert_true(!turbok_cu_w8a8_covers(cu, &w, TURBO_F32, 17));
    const int major = cu->major, minor = cu->minor;
    static const int cards[][3] = {{8, 0, 0}, {8, 6, 0}, {8, 9, 1}, {9, 0, 1}, {10, 0, 0}};
    for (int i = 0; i < 5; i++) {
        cu->major = cards[i][0], cu->minor = cards[i][1];
        w.kind = TURBOK_CU_Q_INT;
        assert_true(turbok_cu_w8a8_covers(cu, &w, TURBO_F16, 17));
        w.kind = TURBOK_CU_Q_E4M3;
        assert_int_equal(turbok_cu_w8a8_covers(cu, &w, TURBO_F16, 17), cards[i][2]);
        w.kind = TURBOK_CU_Q_TABLE;
        assert_true(!turbok_cu_w8a8_covers(cu, &w, TURBO_F16, 17));
    }
    cu->major = major, cu->minor = minor;
    drop(m);
    /* Rows that the scratch has no room for are taken in pieces. */
    must(turbok_cu_wq_plan(&good, 16, 256, false, &w, &err), &err);
    int32_t most = turbok_cu_wq_most(cu, TURBO_BF16, &w, 5000, 256, 16);
    assert_true(most >= 8 && most % 8 == 0);
    assert_true(turbok_cu_w8a8_bytes(256, most) <=
                turbok_cu_wq_scratch(cu, 256, 16) - turbok_cu_wq_scratch(cu, 0, 0));
    assert_int_equal(turbok_cu_wq_most(cu, TURBO_BF16, &w, 20, 256, 16), 20);
}

/* On a card: whole shapes of a model, a sample of their outputs. */
static void test_large(void)
{
    static const int64_t shapes[][2] = {{6144, 4096}, {4096, 14336}, {14336, 4096}, {2048, 8192}};
    static const int32_t rows[] = {17, 64, 300, 1000};
    for (int i = 0; i < 24 && on_a_card(); i++) {
        by_groups(i < 16);
        matrix *m = make_matrix(i % 2, i / 2 % 2, shapes[i % 4][0], shapes[i % 4][1]);
        run r = {.act = TURBO_BF16, .rows = rows[i / 4 % 4], .out_dtype = TURBO_BF16};
        product_case(m, &r, 1999);
        drop(m);
    }
}

int main(void)
{
    device_open();
    has_groups = cu->warp_groups;
    RUN(test_codes);
    RUN(test_products);
    RUN(test_split);
    RUN(test_invariance);
    RUN(test_not_finite);
    RUN(test_covers);
    RUN(test_large);
    turbok_cu_close(cu);
    return 0;
}
