/* tests/kern/test_kv.c: the KV pool (sizes, exhaustion, reference counts) and block tables, first case
 * by case and then in a long random walk against a plain model of them. */
#include "kit.h"

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

static const turbok_kv_dims dims = {3, 2, 20, 16, TURBO_BF16};

static turbok_kv_pool *pool_of(int32_t n)
{
    turbok_kv_pool *p = NULL;
    turbo_err err = {{0}};
    if (turbok_kv_pool_new(dev, &dims, n, &p, &err))
        fail_msg("turbok_kv_pool_new: %s", err.text);
    return p;
}

static void test_sizes(void **state)
{
    (void)state;
    assert_int_equal(turbok_kv_block_bytes(&dims), 2 * 3 * 2 * 20 * 16 * 2);
    const turbok_kv_dims f32 = {24, 8, 128, 64, TURBO_F32};
    assert_int_equal(turbok_kv_block_bytes(&f32), 2ull * 24 * 8 * 128 * 64 * 4);
    /* The 1.8B shape, bytes of a token: 4 bytes of scale and zero for each head of K and of V. */
    const turbok_kv_dims b16 = {24, 8, 128, 64, TURBO_BF16}, i8 = {24, 8, 128, 64, TURBOK_KV_INT8};
    const turbok_kv_dims i4 = {24, 8, 128, 64, TURBOK_KV_INT4}, odd = {1, 1, 7, 8, TURBOK_KV_INT8};
    assert_int_equal(turbok_kv_block_bytes(&b16), 64 * 98304);
    assert_int_equal(turbok_kv_block_bytes(&i8), 64 * 50688); /* 1.94 times the tokens */
    assert_int_equal(turbok_kv_block_bytes(&i4), 64 * 26112); /* 3.76 times */
    assert_int_equal(98304 * 100 / 50688, 193);
    assert_int_equal(98304 * 100 / 26112, 376);
    assert_int_equal(turbok_kv_block_bytes(&odd), 2 * (7 * 8 + 4 * 8));
    static const turbok_kv_dims bad[] = {
        {1, 1, 7, 8, TURBOK_KV_INT4},
        {0, 2, 20, 16, TURBO_F32},
        {3, 0, 20, 16, TURBO_F32},
        {3, 2, 0, 16, TURBO_F32},
        {3, 2, 20, 0, TURBO_F32},
        {3, 2, 20, 12, TURBO_F32},
        {3, 2, 20, 2048, TURBO_F32},
        {-1, 2, 20, 16, TURBO_F32},
        {3, -2, 20, 16, TURBO_F32},
        {3, 2, -20, 16, TURBO_F32},
        {3, 2, 20, 16, TURBO_I8},
        {3, 2, 20, 16, 99},
        {INT32_MAX, INT32_MAX, INT32_MAX, 8, 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        turbok_kv_pool *p = NULL;
        turbo_err err = {{0}};
        assert_int_equal(turbok_kv_block_bytes(&bad[i]), 0);
        assert_int_equal(turbok_kv_pool_new(dev, &bad[i], 4, &p, &err), TURBO_EINVAL);
        assert_null(p);
        assert_true(strlen(err.text) > 0);
    }
    turbok_kv_pool *p = NULL;
    turbo_err err = {{0}};
    assert_int_equal(turbok_kv_pool_new(dev, &dims, 0, &p, &err), TURBO_EINVAL);
    assert_int_equal(turbok_kv_pool_new(dev, &dims, -3, &p, &err), TURBO_EINVAL);
    /* 2^20 blocks of 256 GiB: more than an address space holds */
    const turbok_kv_dims huge = {4096, 64, 128, 1024, TURBO_F32};
    assert_int_equal(turbok_kv_pool_new(dev, &huge, 1 << 20, &p, &err), TURBO_ENOMEM);
    assert_null(p);
    assert_int_equal(turbok_kv_pool_new(dev, &huge, INT32_MAX, &p, &err), TURBO_EINVAL); /* 2^69 */
}

static void test_counts(void **state)
{
    (void)state;
    turbok_kv_pool *p = pool_of(5);
    bool seen[5] = {false};
    assert_int_equal(turbok_kv_pool_total(p), 5);
    for (int32_t i = 0; i < 5; i++) {
        int32_t b = turbok_kv_block_get(p);
        assert_in_range(b, 0, 4);
        assert_false(seen[b]);
        seen[b] = true;
        assert_int_equal(turbok_kv_pool_free_count(p), 4 - i);
    }
    assert_int_equal(turbok_kv_block_get(p), -1);
    assert_int_equal(turbok_kv_pool_free_count(p), 0);
    turbok_kv_block_ref(p, 3);
    turbok_kv_block_ref(p, 3);
    turbok_kv_block_put(p, 3);
    turbok_kv_block_put(p, 3);
    assert_int_equal(turbok_kv_block_get(p), -1); /* one reference is left */
    turbok_kv_block_put(p, 3);
    assert_int_equal(turbok_kv_pool_free_count(p), 1);
    assert_int_equal(turbok_kv_block_get(p), 3);
    turbok_kv_pool_free(p);
    turbok_kv_pool_free(NULL);
}

static void test_tables(void **state)
{
    (void)state;
    turbok_kv_pool *p = pool_of(6);
    turbok_kv_table a, b;
    turbo_err err = {{0}};
    assert_int_equal(turbok_kv_table_init(&a, p, 0, &err), TURBO_EINVAL);
    assert_int_equal(turbok_kv_table_init(&a, p, 80, &err), 0);
    assert_int_equal(a.cap, 5);
    assert_int_equal(turbok_kv_table_init(&b, p, 33, &err), 0);
    assert_int_equal(b.cap, 3);
    assert_true(turbok_kv_table_reserve(&a, p, 1));
    assert_int_equal(a.n, 1);
    assert_true(turbok_kv_table_reserve(&a, p, 16));
    assert_int_equal(a.n, 1);
    assert_true(turbok_kv_table_reserve(&a, p, 17));
    assert_int_equal(a.n, 2);
    assert_true(turbok_kv_table_reserve(&a, p, 5)); /* never shrinks */
    assert_int_equal(a.n, 2);
    assert_true(turbok_kv_table_reserve(&b, p, 33));
    assert_int_equal(turbok_kv_pool_free_count(p), 1);
    assert_false(turbok_kv_table_reserve(&a, p, 80)); /* needs 3 more, 1 is free */
    assert_int_equal(a.n, 2);
    assert_int_equal(turbok_kv_pool_free_count(p), 1);
    assert_false(turbok_kv_table_reserve(&b, p, 49)); /* beyond its own room */
    a.len = 30;
    turbok_kv_table_truncate(&a, p, 16);
    assert_int_equal(a.n, 1);
    assert_int_equal(a.len, 16);
    turbok_kv_table_truncate(&a, p, 16);
    assert_int_equal(a.n, 1);
    turbok_kv_table_truncate(&a, p, 200); /* nothing to forget */
    assert_int_equal(a.len, 16);
    assert_int_equal(turbok_kv_pool_free_count(p), 2);
    turbok_kv_block_ref(p, a.blocks[0]); /* shared, as a prefix is */
    int32_t shared = a.blocks[0];
    turbok_kv_table_free(&a, p);
    assert_int_equal(turbok_kv_pool_free_count(p), 2);
    turbok_kv_block_put(p, shared);
    assert_int_equal(turbok_kv_pool_free_count(p), 3);
    turbok_kv_table_free(&b, p);
    assert_int_equal(turbok_kv_pool_free_count(p), 6);
    turbok_kv_table_free(&b, p); /* again: an empty table */
    turbok_kv_pool_free(p);
}

/* Tables grow, shrink and share at random; the model counts the references of each block. */
static void test_walk(void **state)
{
    enum { BLOCKS = 40, TABLES = 8, ROOM = 12 };
    (void)state;
    turbok_kv_pool *p = pool_of(BLOCKS);
    turbok_kv_table t[TABLES];
    turbo_err err;
    kit_rng r = {99};
    for (int i = 0; i < TABLES; i++)
        assert_int_equal(turbok_kv_table_init(&t[i], p, ROOM * dims.block_tokens, &err), 0);
    for (int step = 0; step < 20000; step++) {
        turbok_kv_table *a = &t[kit_range(&r, 0, TABLES - 1)], *b = &t[kit_range(&r, 0, TABLES - 1)];
        int32_t n = kit_range(&r, 1, ROOM * dims.block_tokens), before = a->n;
        int32_t need = (n + dims.block_tokens - 1) / dims.block_tokens;
        int32_t free_before = turbok_kv_pool_free_count(p);
        if (kit_range(&r, 0, 2) == 0) {
            bool fits = need - before <= free_before;
            assert_int_equal(turbok_kv_table_reserve(a, p, n), fits);
            assert_int_equal(a->n, fits && need > before ? need : before);
        } else if (kit_range(&r, 0, 1)) {
            turbok_kv_table_truncate(a, p, kit_range(&r, 0, n));
        } else if (a != b && !a->n && b->n) { /* a starts with the blocks of b */
            for (int32_t i = 0; i < b->n; i++) {
                turbok_kv_block_ref(p, b->blocks[i]);
                a->blocks[a->n++] = b->blocks[i];
            }
        }
        int32_t refs[BLOCKS] = {0}, used = 0;
        for (int i = 0; i < TABLES; i++)
            for (int32_t k = 0; k < t[i].n; k++)
                refs[t[i].blocks[k]]++;
        for (int i = 0; i < BLOCKS; i++) {
            used += refs[i] > 0;
            assert_int_equal(refs[i], p->refs[i]);
        }
        assert_int_equal(used + turbok_kv_pool_free_count(p), BLOCKS);
    }
    for (int i = 0; i < TABLES; i++)
        turbok_kv_table_free(&t[i], p);
    assert_int_equal(turbok_kv_pool_free_count(p), BLOCKS);
    turbok_kv_pool_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sizes), cmocka_unit_test(test_counts),
                                       cmocka_unit_test(test_tables), cmocka_unit_test(test_walk)};
    return cmocka_run_group_tests_name("KV pool and tables", tests, open_device, close_device);
}
