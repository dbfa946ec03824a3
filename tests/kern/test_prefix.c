/* tests/kern/test_prefix.c: the prefix cache: keys, matches to the token, copy on write, the order of
 * eviction, and a long random walk in which every block says what it holds. */
#include "kit.h"

enum { BT = 16, ROOM = 8 };

static turbok_device *dev;

static int open_device(void **state)
{
    turbok_device_opts o = {.isa = TURBOK_ISA_AUTO, .threads = 1};
    turbo_err err;
    (void)state;
    return turbok_device_open(&o, &dev, &err);
}

static int close_device(void **state)
{
    (void)state;
    turbok_device_close(dev);
    return 0;
}

static turbok_kv_pool *pool_of(int32_t n)
{
    static const turbok_kv_dims dims = {.n_layers = 1, .n_kv = 1, .head_dim = 4, .block_tokens = BT,
                                        .dtype = TURBO_F32};
    turbok_kv_pool *p = NULL;
    turbo_err err = {{0}};
    if (turbok_kv_pool_new(dev, &dims, n, &p, &err) || turbok_kv_prefix_enable(p, &err))
        fail_msg("%s", err.text);
    return p;
}

/* A text, its keys, and the table of a sequence that computes it. */
typedef struct text {
    int32_t tokens[BT * ROOM];
    turbok_kv_key keys[ROOM + 1];
    turbok_kv_table t;
} text;

static void name(text *x, turbok_kv_pool *p, const char *salt)
{
    x->keys[0] = turbok_kv_root(p, salt, strlen(salt));
    for (int i = 0; i < ROOM; i++)
        x->keys[i + 1] = turbok_kv_chain(p, x->keys[i], x->tokens + i * BT, NULL, 0);
}

static void fill(text *x, turbok_kv_pool *p, int seed)
{
    turbo_err err;
    for (int i = 0; i < BT * ROOM; i++)
        x->tokens[i] = seed * 1000 + i;
    name(x, p, "");
    assert_int_equal(turbok_kv_table_init(&x->t, p, BT * ROOM, &err), 0);
}

/* What a block holds is written as the token into its first lane of V. */
static void write_to(text *x, turbok_kv_pool *p, int32_t n)
{
    float v[4] = {0}, tmp[4];
    assert_true(turbok_kv_table_reserve(&x->t, p, n));
    for (int32_t i = x->t.len; i < n; i++) {
        v[0] = (float)x->tokens[i];
        turbok_kv_write(&turbok_prim_scalar, p, &x->t, 0, true, 0, i, v, tmp);
    }
    x->t.len = n;
}

static void publish(text *x, turbok_kv_pool *p, int32_t n, bool ready)
{
    for (int32_t i = 0; i < n / BT; i++)
        turbok_kv_publish(p, x->t.blocks[i], x->keys[i], &x->keys[i + 1], x->tokens + i * BT, BT,
                          false, ready);
    if (n % BT)
        turbok_kv_publish(p, x->t.blocks[n / BT], x->keys[n / BT], NULL, x->tokens + n / BT * BT,
                          n % BT, false, ready);
}

static void holds(const text *x, const turbok_kv_pool *p)
{
    for (int32_t i = 0; i < x->t.len; i++) {
        float v[4];
        turbok_kv_read(p, &x->t, 0, i, true, v);
        assert_int_equal((int32_t)v[0], x->tokens[i]);
    }
}

/* The first reference vector of SipHash-2-4-128 (key 00..0f, no input), and input in any pieces. */
static void test_hash(void **state)
{
    static const unsigned char none[16] = {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6,
                                           0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93};
    unsigned char in[64];
    turbok_kv_key key, whole, parts;
    turbok_hash h;
    (void)state;
    for (int i = 0; i < 64; i++)
        in[i] = (unsigned char)i;
    memcpy(&key, in, sizeof key);
    turbok_hash_init(&h, key);
    whole = turbok_hash_end(&h);
    assert_memory_equal(&whole, none, 16);
    for (size_t cut = 0; cut <= 64; cut++) {
        turbok_hash_init(&h, key);
        turbok_hash_add(&h, in, 64);
        whole = turbok_hash_end(&h);
        turbok_hash_init(&h, key);
        turbok_hash_add(&h, in, cut / 2);
        turbok_hash_add(&h, in + cut / 2, cut - cut / 2);
        turbok_hash_add(&h, in + cut, 64 - cut);
        parts = turbok_hash_end(&h);
        assert_memory_equal(&whole, &parts, 16);
    }
}

static void test_match(void **state)
{
    (void)state;
    turbok_kv_pool *p = pool_of(20);
    text a, b;
    int32_t soon;
    fill(&a, p, 1);
    write_to(&a, p, 3 * BT + 5);
    publish(&a, p, 3 * BT + 5, true);
    fill(&b, p, 1);
    /* The same text: all of it, or as much as is asked for. */
    static const int32_t lens[] = {1, BT - 1, BT, BT + 1, 3 * BT, 3 * BT + 4, 3 * BT + 5, 3 * BT + 9};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        int32_t want = lens[i] < 3 * BT + 5 ? lens[i] : 3 * BT + 5;
        assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, lens[i], 0, &soon), want);
        assert_int_equal(b.t.len, want);
        assert_int_equal(soon, want);
        holds(&b, p);
        turbok_kv_table_truncate(&b.t, p, 0);
    }
    /* Another ending: the match goes on inside the block where they part. */
    b.tokens[BT + 7] = -1;
    name(&b, p, "");
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 4 * BT, 0, &soon), BT + 7);
    assert_int_equal(b.t.n, 2);
    write_to(&b, p, 2 * BT); /* copies the shared block */
    assert_int_not_equal(b.t.blocks[1], a.t.blocks[1]);
    assert_int_equal(b.t.blocks[0], a.t.blocks[0]);
    holds(&a, p);
    holds(&b, p);
    turbok_kv_table_free(&b.t, p);
    /* Another salt: nothing. */
    fill(&b, p, 1);
    name(&b, p, "somebody else");
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 3 * BT, 0, &soon), 0);
    /* With other inputs only whole blocks with the same digest. */
    b.keys[0] = a.keys[0];
    b.keys[1] = turbok_kv_chain(p, b.keys[0], b.tokens, "picture 1", 9);
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 3 * BT, INT32_MAX, &soon), 0);
    turbok_kv_table_free(&a.t, p);
    turbok_kv_table_free(&b.t, p);
    assert_int_equal(turbok_kv_pool_free_count(p), 16);
    assert_int_equal(turbok_kv_pool_cached_count(p), 4);
    turbok_kv_pool_free(p);
}

static void test_announced(void **state)
{
    (void)state;
    turbok_kv_pool *p = pool_of(20);
    text a, b;
    int32_t soon;
    fill(&a, p, 1);
    fill(&b, p, 1);
    assert_true(turbok_kv_table_reserve(&a.t, p, 2 * BT + 9));
    publish(&a, p, 2 * BT + 9, false);
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 2 * BT + 8, 0, &soon), 0);
    assert_int_equal(soon, BT);
    write_to(&a, p, 2 * BT);
    publish(&a, p, 2 * BT, true);
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 2 * BT + 8, 0, &soon), 2 * BT);
    assert_int_equal(soon, 2 * BT + 8);
    turbok_kv_table_truncate(&b.t, p, 0);
    turbok_kv_table_free(&a.t, p); /* it never came to the rest */
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 2 * BT + 8, 0, &soon), 2 * BT);
    assert_int_equal(soon, 2 * BT);
    turbok_kv_table_free(&b.t, p);
    assert_int_equal(turbok_kv_pool_cached_count(p), 2);
    assert_int_equal(turbok_kv_pool_free_count(p), 18);
    turbok_kv_pool_free(p);
}

/* Among idle texts the one used longest ago goes first, and its end before its beginning. */
static void test_eviction(void **state)
{
    (void)state;
    turbok_kv_pool *p = pool_of(8);
    text a, b, c;
    int32_t soon;
    fill(&a, p, 1);
    fill(&b, p, 2);
    fill(&c, p, 3);
    write_to(&a, p, 3 * BT);
    publish(&a, p, 3 * BT, true);
    write_to(&b, p, 3 * BT);
    publish(&b, p, 3 * BT, true);
    turbok_kv_table_truncate(&a.t, p, 0);
    turbok_kv_table_truncate(&b.t, p, 0);
    assert_int_equal(turbok_kv_match(p, &a.t, a.keys, a.tokens, 3 * BT, 0, &soon), 3 * BT);
    turbok_kv_table_truncate(&a.t, p, 0); /* a is now the younger */
    write_to(&c, p, 3 * BT);              /* two free blocks and one of b */
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 3 * BT, 0, &soon), 2 * BT);
    assert_int_equal(turbok_kv_match(p, &a.t, a.keys, a.tokens, 3 * BT, 0, &soon), 3 * BT);
    assert_int_equal(turbok_kv_pool_free_count(p) + turbok_kv_pool_cached_count(p), 0);
    assert_false(turbok_kv_table_reserve(&c.t, p, 4 * BT));
    turbok_kv_table_free(&a.t, p);
    turbok_kv_table_free(&b.t, p);
    turbok_kv_table_free(&c.t, p);
    turbok_kv_pool_free(p);
}

/* With every other block taken, a cached block that nobody shares is written in place. */
static void test_last_block(void **state)
{
    (void)state;
    turbok_kv_pool *p = pool_of(2);
    text a, b;
    int32_t soon;
    fill(&a, p, 1);
    write_to(&a, p, 2 * BT);
    publish(&a, p, 2 * BT, true);
    turbok_kv_table_free(&a.t, p);
    fill(&b, p, 1);
    b.tokens[BT + 3] = -5;
    name(&b, p, "");
    assert_int_equal(turbok_kv_match(p, &b.t, b.keys, b.tokens, 2 * BT, 0, &soon), BT + 3);
    assert_int_equal(turbok_kv_table_needs(&b.t, p, 2 * BT), 1);
    write_to(&b, p, 2 * BT);
    holds(&b, p);
    turbok_kv_table_free(&b.t, p);
    fill(&a, p, 1);
    assert_int_equal(turbok_kv_match(p, &a.t, a.keys, a.tokens, 2 * BT, 0, &soon), BT);
    turbok_kv_table_free(&a.t, p);
    turbok_kv_pool_free(p);
}

/* Sequences of texts that share beginnings start, grow, publish and end at random; whatever a match gives
 * must hold what the text says, and the counts must add up. */
static void test_walk(void **state)
{
    enum { BLOCKS = 30, SEQS = 6 };
    (void)state;
    turbok_kv_pool *p = pool_of(BLOCKS);
    static text s[SEQS];
    bool live[SEQS] = {false};
    kit_rng r = {7};
    int64_t matched = 0;
    for (int step = 0; step < 40000; step++) {
        int i = kit_range(&r, 0, SEQS - 1);
        text *x = &s[i];
        if (!live[i]) {
            int32_t soon;
            fill(x, p, kit_range(&r, 0, 2));
            int32_t part = kit_range(&r, 0, BT * ROOM - 1); /* parts from the others here */
            for (int k = part; k < BT * ROOM; k++)
                x->tokens[k] += kit_range(&r, 0, 3) * 100000;
            name(x, p, "");
            matched += turbok_kv_match(p, &x->t, x->keys, x->tokens, kit_range(&r, 0, BT * ROOM - 1),
                                       false, &soon);
            assert_true(soon >= x->t.len);
            live[i] = true;
        } else if (kit_range(&r, 0, 3) && x->t.len < BT * ROOM) {
            int32_t n = kit_range(&r, x->t.len + 1, BT * ROOM);
            if (turbok_kv_table_reserve(&x->t, p, n)) {
                bool all = kit_range(&r, 0, 1);
                if (all)
                    publish(x, p, n, false);
                write_to(x, p, n);
                if (all || kit_range(&r, 0, 1))
                    publish(x, p, n, true);
            }
        } else {
            if (kit_range(&r, 0, 9) == 0)
                for (int32_t k = 0; k < x->t.n; k++)
                    turbok_kv_withdraw(p, x->t.blocks[k]);
            turbok_kv_table_free(&x->t, p);
            live[i] = false;
        }
        if (live[i])
            holds(x, p);
        int32_t used = 0;
        for (int b = 0; b < BLOCKS; b++)
            used += turbok_kv_block_refs(p, b) > 0;
        assert_int_equal(
            used + turbok_kv_pool_free_count(p) + turbok_kv_pool_cached_count(p), BLOCKS);
    }
    assert_true(matched > 100000);
    for (int i = 0; i < SEQS; i++)
        if (live[i])
            turbok_kv_table_free(&s[i].t, p);
    turbok_kv_pool_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash),     cmocka_unit_test(test_match),
        cmocka_unit_test(test_announced), cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_last_block), cmocka_unit_test(test_walk),
    };
    return cmocka_run_group_tests_name("prefix cache", tests, open_device, close_device);
}
