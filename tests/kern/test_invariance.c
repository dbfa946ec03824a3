/* tests/kern/test_invariance.c: for a given instruction set the bits of a row depend on nothing but
 * the row: not on T, its neighbours, the number of threads, how a prompt was cut into chunks, or the
 * size of a KV block. Compared bit for bit, on every instruction set of this CPU. */
#include "paged.h"

/* An emulator runs the vectors only, the reference is slow enough without. */
static const int32_t counts[] = {1, 2, 3, 5, 6, 7, 8, 33, 48, 49, 64};
#define ROWS 64

static turbok_device *device(turbok_isa isa, int threads)
{
    turbok_device_opts o = {.isa = isa, .threads = threads, .spin_us = 20};
    turbok_device *d = NULL;
    turbo_err err = {{0}};
    turbo_status st = turbok_device_open(&o, &d, &err);
    if (st && st != TURBO_EUNSUPPORTED)
        fail_msg("turbok_device_open: %s", err.text);
    return d;
}

/* y of rows first .. first+T-1 of x. */
typedef struct layer {
    int32_t in, out;
    turbo_linear *w[3];
    turbo_vector *v;
} layer;
typedef void (*row_op)(turbok_device *d, const layer *l, const float *x, int32_t T, float *y);

static void op_linear(turbok_device *d, const layer *l, const float *x, int32_t T, float *y)
{
    turbok_device_ops(d)->linear(turbok_device_exec(d), l->w[0], x, T, y);
}

static void op_mlp(turbok_device *d, const layer *l, const float *x, int32_t T, float *y)
{
    float *s = malloc(2 * (size_t)T * (size_t)l->out * sizeof *s);
    assert_non_null(s);
    turbok_device_ops(d)->gated_mlp(turbok_device_exec(d), l->w[0], l->w[1], l->w[2], TURBO_ACT_SILU,
                                    x, T, s, y);
    free(s);
}

static void op_norm(turbok_device *d, const layer *l, const float *x, int32_t T, float *y)
{
    float *h = malloc((size_t)T * (size_t)l->in * sizeof *h);
    assert_non_null(h);
    memcpy(h, x, (size_t)T * (size_t)l->in * sizeof *h);
    turbok_device_ops(d)->rmsnorm(turbok_device_exec(d), h, x, l->v, 1e-5f, T, l->in, y);
    free(h);
}

static void load(turbok_device *d, layer *l, int32_t dtype, kit_rng r)
{
    turbo_err err = {{0}};
    for (int i = 0; i < 3; i++) {
        int32_t out = i < 2 ? l->out : l->in, in = i < 2 ? l->in : l->out;
        size_t n = (size_t)out * (size_t)in;
        float *f = malloc(n * sizeof *f);
        assert_non_null(f);
        kit_floats(&r, f, n);
        void *stored = kit_store(dtype, f, n);
        assert_int_equal(turbok_linear_new(d, dtype, stored, out, in, f, TURBO_F32, 0, &l->w[i], &err), 0);
        if (i == 0)
            assert_int_equal(turbok_vector_new(d, TURBO_F32, f, l->in, &l->v, &err), 0);
        free(f);
        free(stored);
    }
}

static void unload(turbok_device *d, layer *l)
{
    for (int i = 0; i < 3; i++)
        turbok_linear_free(d, l->w[i]);
    turbok_vector_free(d, l->v);
}

static void rows_once(turbok_device *d, const layer *l, row_op op, int32_t width, const float *x,
                      const float *all, kit_rng *r)
{
    float *y = malloc((size_t)ROWS * (size_t)width * sizeof *y);
    assert_non_null(y);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        int32_t T = counts[c], first = kit_range(r, 0, ROWS - T);
        memset(y, 0xff, (size_t)ROWS * (size_t)width * sizeof *y);
        op(d, l, x + (size_t)first * (size_t)l->in, T, y);
        kit_equal(turbok_device_name(d), y, all + (size_t)first * (size_t)width,
                  (size_t)T * (size_t)width * sizeof *y);
    }
    free(y);
}

static void rows_alone(turbok_isa isa, int32_t dtype, row_op op, bool keeps_width)
{
    layer l = {.in = op == op_linear ? 1500 : 300, .out = 200};
    int32_t width = keeps_width ? l.in : l.out;
    kit_rng r = {77};
    float *x = malloc((size_t)ROWS * (size_t)l.in * sizeof *x);
    float *all = malloc((size_t)ROWS * (size_t)width * sizeof *all);
    assert_true(x && all);
    kit_floats(&r, x, (size_t)ROWS * (size_t)l.in);
    for (int threads = 1; threads <= (KIT_FEWER > 1 ? 2 : 4); threads++) {
        turbok_device *d = device(isa, threads);
        if (!d)
            break;
        load(d, &l, dtype, (kit_rng){5});
        if (threads == 1)
            op(d, &l, x, ROWS, all);
        rows_once(d, &l, op, width, x, all, &r);
        unload(d, &l);
        turbok_device_close(d);
    }
    free(x);
    free(all);
}

static void test_linear(void **state)
{
    (void)state;
    for (size_t i = KIT_FEWER > 1; i < KIT_ISAS; i++)
        for (int32_t dtype = TURBO_F32; dtype <= TURBO_BF16; dtype++)
            rows_alone(kit_isas[i], dtype, op_linear, false);
}

static void test_mlp(void **state)
{
    (void)state;
    for (size_t i = KIT_FEWER > 1; i < KIT_ISAS; i++)
        rows_alone(kit_isas[i], TURBO_BF16, op_mlp, true);
}

static void test_norm(void **state)
{
    (void)state;
    for (size_t i = KIT_FEWER > 1; i < KIT_ISAS; i++)
        rows_alone(kit_isas[i], TURBO_F32, op_norm, true);
}

/* ---- attention: sequence 0 of the shape, LEN tokens, in chunks, alone or with neighbours ---- */

#define LEN 200

static void attend(turbok_device *d, paged_shape s, const paged_data *data, int32_t chunk,
                   int32_t block_tokens, bool crowd, float *out)
{
    kit_rng r = {3};
    paged p;
    size_t width = (size_t)s.H * (size_t)s.D, room = PAGED_TOKENS * (size_t)paged_row(&s);
    float *qkv = malloc(room * sizeof *qkv), *q = malloc(PAGED_TOKENS * width * sizeof *q);
    float *y = malloc(PAGED_TOKENS * width * sizeof *y);
    assert_true(qkv && q && y);
    s.block_tokens = block_tokens;
    paged_open(&p, &s, data, d, &r);
    int32_t done[PAGED_SEQS] = {0};
    while (done[0] < LEN) {
        int32_t to[PAGED_SEQS] = {0};
        /* Neighbours come before and behind, in chunks of other sizes. Sequence 0 is the one that is
         * watched; the batch leaves out sequences with nothing new. */
        to[0] = done[0] + chunk < LEN ? done[0] + chunk : LEN;
        for (int32_t i = 1; i < s.S; i++) {
            int32_t end = s.history[i] + s.fresh[i], step = 3 * i;
            to[i] = !crowd ? done[i] : done[i] + step < end ? done[i] + step : end;
        }
        paged_batch(&p, data, done, to, qkv);
        turbok_device_ops(d)->qkv_rope_store(turbok_device_exec(d), &p.attn, &p.batch, qkv, q);
        memset(y, 0xff, PAGED_TOKENS * width * sizeof *y);
        turbok_device_ops(d)->attention(turbok_device_exec(d), &p.attn, &p.batch, q, y);
        memcpy(out + (size_t)done[0] * width, y, (size_t)(to[0] - done[0]) * width * sizeof *y);
        memcpy(done, to, sizeof done);
    }
    paged_close(&p);
    free(qkv);
    free(q);
    free(y);
}

static void attention_of(turbok_isa isa, int32_t dtype, int32_t window, int32_t D)
{
    static const int32_t chunks[] = {1, 2, 3, 8, 33, 64}, blocks[] = {8, 24, 64, 128};
    paged_shape s = {.S = 3, .H = 6, .K = 2, .D = D, .layers = 1, .dtype = dtype, .window = window,
                     .layout = TURBO_QKV_GROUPED, .rotate = true, .scale = 0.5f,
                     .fresh = {LEN, 30, 40}, .rope_len = {LEN, 30, 40}};
    s.rope = (turbo_rope_spec){.size = sizeof s.rope, .dim = D, .max_position = 128, .factor = 2,
                               .scaling = TURBO_ROPE_DYNAMIC, .base = 1e4};
    kit_rng r = {11};
    paged_data data;
    paged_fill(&r, &s, &data);
    size_t bytes = (size_t)LEN * (size_t)s.H * (size_t)s.D * sizeof(float);
    float *whole = malloc(bytes), *y = malloc(bytes);
    assert_true(whole && y);
    for (int threads = 1; threads <= (KIT_FEWER > 1 ? 2 : 4); threads++) {
        turbok_device *d = device(isa, threads);
        if (!d)
            break;
        if (threads == 1)
            attend(d, s, &data, LEN, 64, false, whole);
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            attend(d, s, &data, chunks[c], blocks[(c + (size_t)threads) % 4], c % 2 == 1, y);
            kit_equal(turbok_device_name(d), y, whole, bytes);
        }
        turbok_device_close(d);
    }
    free(whole);
    free(y);
    paged_free(&data);
}

static void test_attention(void **state)
{
    (void)state;
    for (size_t i = KIT_FEWER > 1; i < KIT_ISAS; i++) {
        attention_of(kit_isas[i], TURBO_F32, 0, 24);
        attention_of(kit_isas[i], TURBO_BF16, 0, 64);
        attention_of(kit_isas[i], TURBO_F16, 70, 64);
        attention_of(kit_isas[i], TURBOK_KV_INT8, 0, 64);
        attention_of(kit_isas[i], TURBOK_KV_INT8, 70, 24);
        attention_of(kit_isas[i], TURBOK_KV_INT4, 70, 128);
        attention_of(kit_isas[i], TURBOK_KV_INT4, 0, 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_linear), cmocka_unit_test(test_mlp),
                                       cmocka_unit_test(test_norm), cmocka_unit_test(test_attention)};
    return cmocka_run_group_tests_name("batch invariance", tests, NULL, NULL);
}
