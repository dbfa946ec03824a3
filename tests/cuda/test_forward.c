/* What forward() may do between the beginning and the end of a step on a CUDA device, whatever the model: functions
 * of this file in a model's place. On the fake driver, or with TURBO_CHECK_GPU on the machine's own. */
#include "on_gpu.h"

#include "cpu/half.h"
#include "engine/state.h"
#include "internal.h"
#include "util/err.h"

enum { TOKENS = 280, E = 256, H = 2, D = 128, OUT = (H + 2) * D };

static const turbo_model_vtbl *model;
static turbo_model_vtbl stand_in;
static turbo_status (*instead)(turbo_exec *x, const turbo_batch *b, turbo_err *err);

/* The model's own, and then what stands in for it. */
static turbo_status forward(void *m, turbo_exec *x, const turbo_batch *b, float *logits,
                            turbo_err *err)
{
    turbo_status st = model->forward(m, x, b, logits, err);
    return st || !instead ? st : instead(x, b, err);
}

/* An engine on a card that calls `forward` above; a step takes up to `chunk` tokens. */
static turbod_engine *open_with_forward(const char *folder, int32_t chunk, bool deterministic)
{
    turbod_engine_opts o = on_cuda("bf16");
    o.kv_dtype = TURBO_BF16;
    o.deterministic = deterministic;
    o.max_step_tokens = o.max_batch = chunk;
    turbod_engine *e = open_engine(folder, o);
    model = e->model_vtbl;
    stand_in = *model;
    stand_in.forward = forward;
    e->model_vtbl = &stand_in;
    return e;
}

static void write_model(char folder[64])
{
    tiny_model m = random_model;
    m.bf16 = 1;
    m.embed = E, m.heads = H, m.kv_heads = 1, m.inner = 64, m.layers = 1;
    tiny_model_write(&m, folder);
}

/* ---- a product, RoPE and the cache in one launch, where queries come over the inputs of the product ---- */

static struct {
    const turbo_ops *ops;
    turbo_linear *wqkv, *in, *qkv, *q; /* q: apart from in, or in itself */
    turbo_attn at;
} turned;

static turbo_status turn(turbo_exec *x, const turbo_batch *b, turbo_err *err)
{
    (void)err;
    turned.ops->linear(x, turned.wqkv, turned.in->data, b->n_tokens, turned.qkv->data);
    turned.ops->qkv_rope_store(x, &turned.at, b, turned.qkv->data, turned.q->data);
    return TURBO_OK;
}

/* from [rows][n] */
static turbo_linear *matrix(turbok_device *d, int64_t rows, int64_t n, const uint16_t *from)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    if (turbok_linear_new(d, TURBO_BF16, from, rows, n, NULL, TURBO_F32, 0, &w, &err))
        fail_msg("%s", err.text);
    return w;
}

/* Everything of `turned` but q, for rows of tokens. w [OUT][E], and rows of OUT; in [rows][E]. */
static turbo_rope *begin_turned(turbok_device *d, int32_t rows, const uint16_t *w,
                                const uint16_t *in)
{
    const turbo_rope_spec spec = {
        .size = sizeof spec, .dim = D, .max_position = 512, .factor = 1, .base = 1e4};
    turbo_rope *rope = NULL;
    turbo_err err = {{0}};
    turned.ops = turbok_device_ops(d);
    if (turbok_rope_new(d, &spec, &rope, &err))
        fail_msg("%s", err.text);
    turned.wqkv = matrix(d, OUT, E, w);
    turned.in = matrix(d, rows, E, in);
    turned.qkv = matrix(d, rows, OUT, w);
    turned.at = (turbo_attn){.size = sizeof turned.at,
                             .n_heads = H,
                             .n_kv = 1,
                             .head_dim = D,
                             .layout = TURBO_QKV_GROUPED,
                             .scale = 0.0884f,
                             .rope = rope};
    return rope;
}

static void test_queries_over_inputs(void **state)
{
    static uint16_t w[OUT * TOKENS], in[TOKENS * E],
        got[2][TOKENS * H * D]; /* w: and rows of TOKENS */
    static float logits[TOKENS * 300];
    static int32_t ids[TOKENS];
    char folder[64];
    turbo_err err = {{0}};
    (void)state;
    for (uint32_t i = 0; i < OUT * E; i++)
        w[i] = (uint16_t)(0x3c00 + i * 2654435761u % 200 + (i * 40503u % 3 ? 0x8000u : 0));
    for (uint32_t i = 0; i < TOKENS * E; i++)
        in[i] = (uint16_t)(0x3f00 + i * 2246822519u % 150 + (i % 5 ? 0 : 0x8000u));
    make_prompt(ids, TOKENS, 7, 300);
    write_model(folder);
    for (int over = 0; over < 2; over++) {
        turbod_engine *e = open_with_forward(folder, TOKENS, true);
        turbod_visit(e);
        turbo_rope *rope = begin_turned(e->device, TOKENS, w, in);
        turned.q = over ? turned.in : matrix(e->device, TOKENS, H * D, in);
        turbod_leave(e);
        const long apart = fake.handle ? fake.launched("rope") : 0;
        instead = turn;
        if (turbod_engine_logits(e, ids, TOKENS, true, logits, &err))
            fail_msg("%s", err.text);
        instead = NULL;
        if (fake.handle) /* the one launch is what this is about */
            assert_int_equal(fake.launched("rope") > apart, over);
        turbod_visit(e);
        e->device->backend->block_read(e->device, got[over], turned.q->data, sizeof got[0]);
        turbok_rope_free(e->device, rope);
        turbok_linear_free(e->device, turned.wqkv), turbok_linear_free(e->device, turned.qkv);
        turbok_linear_free(e->device, turned.in);
        if (!over)
            turbok_linear_free(e->device, turned.q);
        turbod_leave(e);
        turbod_engine_close(e);
        nothing_left();
    }
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    assert_true(memcmp(got[0], in, sizeof in) != 0);
    tiny_model_remove(folder);
}

/* ---- RoPE, the cache and attention in one launch, where buffers lie apart and nobody looks between ---- */

enum { APART, OVER_QUERIES, OVER_HEADS, LOOKED_AT, WAYS };
static struct {
    turbo_linear *out, *seen;
    int how;
} attended;

static turbo_status attend(turbo_exec *x, const turbo_batch *b, turbo_err *err)
{
    const turbo_ops *ops = turned.ops;
    void *q = turned.q->data, *out = attended.how == OVER_QUERIES ? q
                                     : attended.how == OVER_HEADS ? turned.qkv->data
                                                                  : attended.out->data;
    (void)err;
    ops->linear(x, turned.wqkv, turned.in->data, 1, turned.qkv->data);
    ops->qkv_rope_store(x, &turned.at, b, turned.qkv->data, q);
    if (attended.how == LOOKED_AT)
        ops->add(x, attended.seen->data, q, 1, H * D);
    ops->attention(x, &turned.at, b, q, out);
    if (out != attended.out->data) {
        const int32_t row = 0;
        ops->gather(x, out, &row, 1, H * D, attended.out->data);
    }
    return TURBO_OK;
}

static void test_attention_over(void **state)
{
    enum { STEPS = 40 };
    static uint16_t w[OUT * E], in[E], got[H * D], zeros[H * D];
    static float logits[STEPS * 300], first[H * D];
    static int32_t ids[STEPS];
    char folder[64];
    turbo_err err = {{0}};
    (void)state;
    for (uint32_t i = 0; i < OUT * E; i++)
        w[i] = (uint16_t)(0x3c00 + i * 2654435761u % 200 + (i * 40503u % 3 ? 0x8000u : 0));
    for (uint32_t i = 0; i < E; i++)
        in[i] = (uint16_t)(0x3f00 + i * 2246822519u % 150 + (i % 5 ? 0 : 0x8000u));
    make_prompt(ids, STEPS, 7, 300);
    write_model(folder);
    setenv("FAKECUDA_SMS", "132", 1); /* fewer have no clusters for all heads */
    for (int how = 0; how < WAYS; how++) {
        turbod_engine *e = open_with_forward(folder, 1, false);
        turbod_visit(e);
        turbo_rope *rope = begin_turned(e->device, 1, w, in);
        turned.q = matrix(e->device, 1, H * D, w);
        attended.out = matrix(e->device, 1, H * D, w);
        attended.seen = matrix(e->device, 1, H * D, zeros);
        attended.how = how;
        turbod_leave(e);
        /* The model's own attention is one launch whatever stands behind it. */
        const long before = fake.handle ? fake.launched("rope_store") : 0;
        instead = attend;
        if (turbod_engine_logits(e, ids, STEPS, true, logits, &err))
            fail_msg("%s", err.text);
        instead = NULL;
        if (fake.handle)
            assert_int_equal(fake.launched("rope_store") > before, how != APART);
        turbod_visit(e);
        e->device->backend->block_read(e->device, got, attended.out->data, sizeof got);
        for (int i = 0; i < H * D; i++) {
            const float v = turbok_bf16_to_f32(got[i]);
            if (!how)
                first[i] = v;
            /* Sums of two kernels: a rounding to bf16 of weights and of the result. */
            assert_true(fabsf(v - first[i]) <= 0x1p-6f * (fabsf(first[i]) + 0.25f));
        }
        if (how == LOOKED_AT) {
            static uint16_t seen[H * D];
            int different = 0;
            e->device->backend->block_read(e->device, seen, attended.seen->data, sizeof seen);
            for (int i = 0; i < H * D; i++)
                different += turbok_bf16_to_f32(seen[i]) != 0;
            assert_true(different > H * D / 2);
        }
        turbok_rope_free(e->device, rope);
        turbo_linear *all[] = {turned.wqkv, turned.in,    turned.qkv,
                               turned.q,    attended.out, attended.seen};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            turbok_linear_free(e->device, all[i]);
        turbod_leave(e);
        turbod_engine_close(e);
        nothing_left();
    }
    unsetenv("FAKECUDA_SMS");
    tiny_model_remove(folder);
}

/* ---- two norms in a row, both read later ---- */

enum { WIDE = 4096 }; /* from here on norms are kept */
static struct {
    turbo_linear *h, *out[2], *read[2];
    turbo_vector *w;
} norms;

static turbo_status norm_twice(turbo_exec *x, const turbo_batch *b, turbo_err *err)
{
    const turbo_ops *ops = turned.ops;
    const int32_t row = 0;
    (void)b;
    (void)err;
    for (int i = 0; i < 2; i++)
        ops->rmsnorm(x, norms.h->data, NULL, norms.w, 1e-5f, 1, WIDE, norms.out[i]->data);
    for (int i = 0; i < 2; i++)
        ops->gather(x, norms.out[i]->data, &row, 1, WIDE, norms.read[i]->data);
    return TURBO_OK;
}

static void test_two_norms(void **state)
{
    static uint16_t h[WIDE], other[WIDE], got[WIDE];
    static float ones[WIDE], logits[300];
    char folder[64];
    const int32_t id = 5;
    turbo_err err = {{0}};
    (void)state;
    for (int i = 0; i < WIDE; i++)
        h[i] = 0x4040, other[i] = 0x429a, ones[i] = 1; /* 3, 77 */
    write_model(folder);
    turbod_engine *e = open_with_forward(folder, 1, false);
    turbod_visit(e);
    turned.ops = turbok_device_ops(e->device);
    assert_int_equal(turbok_vector_new(e->device, TURBO_F32, ones, WIDE, &norms.w, &err), 0);
    norms.h = matrix(e->device, 1, WIDE, h);
    for (int i = 0; i < 2; i++)
        norms.out[i] = matrix(e->device, 1, WIDE, other),
        norms.read[i] = matrix(e->device, 1, WIDE, other);
    turbod_leave(e);
    instead = norm_twice;
    if (turbod_engine_logits(e, &id, 1, true, logits, &err))
        fail_msg("%s", err.text);
    instead = NULL;
    turbod_visit(e);
    for (int i = 0; i < 2; i++) {
        e->device->backend->block_read(e->device, got, norms.read[i]->data, sizeof got);
        assert_int_equal(got[0], 0x3f80); /* 1 */
        assert_int_equal(got[WIDE - 1], 0x3f80);
        turbok_linear_free(e->device, norms.out[i]);
        turbok_linear_free(e->device, norms.read[i]);
    }
    turbok_linear_free(e->device, norms.h);
    turbok_vector_free(e->device, norms.w);
    turbod_leave(e);
    turbod_engine_close(e);
    nothing_left();
    tiny_model_remove(folder);
}

/* ---- arrays that reach into what a norm takes or gives, while it is kept ---- */

enum { ONCE, TWICE, SUMMED };
enum { HALF = WIDE / 2, FROM = WIDE, TO = 3 * WIDE, ROOM = 4 * WIDE }; /* places in `room` */
static const struct {
    int from, to, n; /* numbers of `room` that are copied between; to ROOM: elsewhere */
    int then; /* a norm of what the first gave, in its place; with a product added */
    int launched; /* norms, what lies in `room` being read in the end */
} reaches[] = {
    /* What it gives is written: the beginning, the end, from before it on, all of it (nobody wants the norm any more). */
    {0, TO, HALF, ONCE, 1},
    {0, TO + HALF, HALF, ONCE, 1},
    {0, TO - HALF, WIDE, ONCE, 1},
    {0, TO, WIDE, ONCE, 0},
    /* What it takes is written. */
    {2 * WIDE, FROM - HALF, WIDE, ONCE, 1},
    {0, FROM + HALF, HALF, ONCE, 1},
    /* What it gives is read, and what it takes. */
    {TO - HALF, ROOM, WIDE, ONCE, 1},
    {TO + HALF, ROOM, HALF, ONCE, 1},
    {FROM, FROM - WIDE, WIDE, ONCE, 1},
    {0, 2 * WIDE, WIDE, TWICE, 2},
    {0, 2 * WIDE, WIDE, SUMMED, 2},
};
static struct {
    turbo_linear *room, *seen; /* [ROOM + WIDE] */
    turbo_linear *zeros, *in, *product; /* [WIDE][E], [E], [WIDE] */
    size_t way;
} reaching;

static void copy_numbers(turbo_exec *x, const uint16_t *from, int n, uint16_t *to)
{
    const int32_t row = 0;
    turned.ops->gather(x, from, &row, 1, n, to);
}

static turbo_status norm_and_reach(turbo_exec *x, const turbo_batch *b, turbo_err *err)
{
    uint16_t *room = reaching.room->data;
    const size_t i = reaching.way;
    (void)b;
    (void)err;
    turned.ops->rmsnorm(x, room + FROM, NULL, norms.w, 1e-5f, 1, WIDE, room + TO);
    copy_numbers(x, room + reaches[i].from, reaches[i].n, room + reaches[i].to);
    if (reaches[i].then == SUMMED)
        turned.ops->linear(x, reaching.zeros, reaching.in->data, 1, reaching.product->data);
    if (reaches[i].then != ONCE)
        turned.ops->rmsnorm(x, room + TO, reaches[i].then == SUMMED ? reaching.product->data : NULL,
                            norms.w, 1e-5f, 1, WIDE, room + TO);
    copy_numbers(x, room, ROOM + WIDE, reaching.seen->data);
    return TURBO_OK;
}

static void test_reaching(void **state)
{
    static uint16_t room[ROOM + WIDE], want[ROOM + WIDE], got[ROOM + WIDE], zeros[WIDE * E];
    static float ones[WIDE], logits[300];
    char folder[64];
    const int32_t id = 5;
    turbo_err err = {{0}};
    (void)state;
    /* The norm of numbers that are all 3 is 1; of others here it is not. */
    for (int i = 0; i < ROOM + WIDE; i++)
        room[i] = (uint16_t)(i / WIDE == FROM / WIDE ? 0x4040 : 0x4100 + i % 7);
    for (int i = 0; i < WIDE; i++)
        ones[i] = 1;
    write_model(folder);
    for (reaching.way = 0; reaching.way < sizeof reaches / sizeof reaches[0]; reaching.way++) {
        turbod_engine *e = open_with_forward(folder, 1, false);
        turbod_visit(e);
        turned.ops = turbok_device_ops(e->device);
        assert_int_equal(turbok_vector_new(e->device, TURBO_F32, ones, WIDE, &norms.w, &err), 0);
        reaching.room = matrix(e->device, 1, ROOM + WIDE, room);
        reaching.seen = matrix(e->device, 1, ROOM + WIDE, room);
        reaching.zeros = matrix(e->device, WIDE, E, zeros);
        reaching.in = matrix(e->device, 1, E, room);
        reaching.product = matrix(e->device, 1, WIDE, room);
        turbod_leave(e);
        long norms_by[3]; /* before, after the model's own, after both */
        for (int i = 0; i < 3; i++) {
            instead = i == 2 ? norm_and_reach : NULL;
            if (i && turbod_engine_logits(e, &id, 1, true, logits, &err))
                fail_msg("%s", err.text);
            norms_by[i] = fake.handle ? fake.launched("rmsnorm") : 0;
        }
        instead = NULL;
        memcpy(want, room, sizeof want);
        for (int i = 0; i < WIDE; i++)
            want[TO + i] = 0x3f80;
        memmove(want + reaches[reaching.way].to, want + reaches[reaching.way].from,
                (size_t)reaches[reaching.way].n * sizeof *want);
        turbod_visit(e);
        e->device->backend->block_read(e->device, got, reaching.seen->data, sizeof got);
        turbo_linear *all[] = {reaching.room, reaching.seen, reaching.zeros, reaching.in,
                               reaching.product};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
            turbok_linear_free(e->device, all[i]);
        turbok_vector_free(e->device, norms.w);
        turbod_leave(e);
        for (int i = 0; i < ROOM + WIDE; i++)
            if (got[i] != want[i])
                fail_msg("way %zu, number %d: %x, not %x", reaching.way, i, got[i], want[i]);
        if (fake.handle)
            assert_int_equal(norms_by[2] - norms_by[1] - (norms_by[1] - norms_by[0]),
                             reaches[reaching.way].launched);
        turbod_engine_close(e);
        nothing_left();
    }
    tiny_model_remove(folder);
}

/* ---- a forward() that fails on a sound device ---- */

static turbo_status refuse(turbo_exec *x, const turbo_batch *b, turbo_err *err)
{
    (void)x;
    (void)b;
    return turbod_err(err, TURBO_EINTERNAL, "planted");
}

/* Nothing of such a step is left to the next one, whether it was being recorded or not: logits are those of a sound
 * engine. A product outside of steps is launched, and not kept for a RoPE that will not come. */
static void test_failing(void **state)
{
    static const int32_t lengths[] = {1, TOKENS};
    static float want[TOKENS * 300], got[TOKENS * 300];
    static uint16_t w[OUT * TOKENS], in[TOKENS * E], out[TOKENS * OUT];
    static int32_t ids[TOKENS];
    char folder[64];
    turbo_err err = {{0}};
    (void)state;
    make_prompt(ids, TOKENS, 7, 300);
    for (int i = 0; i < OUT * E; i++)
        in[i % (TOKENS * E)] = w[i] = 0x3f80;
    write_model(folder);
    for (int i = 0; i < 2; i++) {
        turbod_engine *e = open_with_forward(folder, TOKENS, true);
        const int32_t n = lengths[i];
        if (turbod_engine_logits(e, ids, n, true, want, &err))
            fail_msg("%s", err.text);
        for (int again = 0; again < (n > 1 ? 3 : 1); again++) { /* then one is recorded */
            instead = refuse;
            assert_int_equal(turbod_engine_logits(e, ids, n, true, got, &err), TURBO_EINTERNAL);
            assert_string_equal(err.text, "planted");
            instead = NULL;
            if (n == TOKENS) {
                turbod_visit(e);
                turbo_linear *a = matrix(e->device, OUT, E, w), *x = matrix(e->device, n, E, in);
                turbo_linear *y = matrix(e->device, n, OUT, w);
                const turbo_ops *ops = turbok_device_ops(e->device);
                ops->linear(turbok_device_exec(e->device), a, x->data, n, y->data);
                e->device->backend->block_read(e->device, out, y->data, sizeof out);
                turbok_linear_free(e->device, a), turbok_linear_free(e->device, x);
                turbok_linear_free(e->device, y);
                turbod_leave(e);
                assert_int_equal(out[0], 0x4380); /* 256 */
                assert_int_equal(out[TOKENS * OUT - 1], 0x4380);
            }
            memset(got, 0xff, sizeof got);
            if (turbod_engine_logits(e, ids, n, true, got, &err))
                fail_msg("%s", err.text);
            assert_memory_equal(got, want, (size_t)n * 300 * sizeof *got);
        }
        turbod_engine_close(e);
        nothing_left();
    }
    tiny_model_remove(folder);
}

/* What is asked of the device between two steps, such as the end of a look at a picture, is done before the next. */
static void test_between(void **state)
{
    static float logits[300];
    static uint16_t w[OUT * E], in[E], out[OUT];
    char folder[64];
    int32_t id = 5;
    turbo_err err = {{0}};
    (void)state;
    for (int i = 0; i < OUT * E; i++)
        in[i % E] = w[i] = 0x3f80;
    write_model(folder);
    turbod_engine_opts o = on_cuda("bf16");
    turbod_engine *e = open_engine(folder, o);
    turbod_visit(e);
    turbo_linear *a = matrix(e->device, OUT, E, w), *x = matrix(e->device, 1, E, in);
    turbo_linear *y = matrix(e->device, 1, OUT, w);
    turbok_device_ops(e->device)->linear(turbok_device_exec(e->device), a, x->data, 1, y->data);
    turbod_leave(e);
    if (turbod_engine_logits(e, &id, 1, true, logits, &err))
        fail_msg("%s", err.text);
    turbod_visit(e);
    e->device->backend->block_read(e->device, out, y->data, sizeof out);
    turbok_linear_free(e->device, a), turbok_linear_free(e->device, x);
    turbok_linear_free(e->device, y);
    turbod_leave(e);
    for (int i = 0; i < OUT; i++)
        assert_int_equal(out[i], 0x4380); /* 256 */
    turbod_engine_close(e);
    nothing_left();
    tiny_model_remove(folder);
}

/* In a request it ends the engine, which then gives no logits either, and leaves nothing behind when it closes. */
static void test_failing_request(void **state)
{
    static const int32_t lengths[] = {1, 40};
    static float logits[300];
    static int32_t ids[40];
    char folder[64];
    turbo_err err = {{0}};
    turbo_sample_params p = greedy();
    (void)state;
    make_prompt(ids, 40, 7, 300);
    write_model(folder);
    for (int i = 0; i < 2; i++) {
        static result r;
        turbod_engine *e = open_with_forward(folder, TOKENS, true);
        instead = refuse;
        start(e, &r, ids, lengths[i], 4, &p);
        finish(&r);
        instead = NULL;
        assert_int_equal(r.end.kind, TURBOD_EV_ERROR);
        assert_true(turbod_engine_age(e) < 0);
        assert_int_equal(turbod_engine_logits(e, ids, 1, true, logits, &err), TURBO_EBUSY);
        assert_non_null(strstr(err.text, "needs a restart"));
        turbod_engine_close(e);
        nothing_left();
    }
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queries_over_inputs),
        cmocka_unit_test(test_attention_over),
        cmocka_unit_test(test_two_norms),
        cmocka_unit_test(test_reaching),
        cmocka_unit_test(test_failing),
        cmocka_unit_test(test_failing_request),
        cmocka_unit_test(test_between),
    };
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
