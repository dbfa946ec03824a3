/* The KV of sequences that lose their place, in pinned host memory: the same tokens as with room for all, nothing
 * computed twice, computed again where the space is full, nothing left behind. On the fake driver, or with
 * TURBO_CHECK_GPU on the machine's own. */
#include "on_gpu.h"

enum { N = 3, PROMPT = 9, ANSWER = 12, TOKENS = 8, BLOCK = 2 * 16 * TOKENS * sizeof(float) };
static const tiny_model model = {
    .vocab = 24,
    .embed = 16,
    .layers = 1,
    .heads = 1,
    .kv_heads = 1,
    .inner = 16,
    .max_position = 64,
    .random = 11,
};

static result got[N], want[N];
static int32_t prompts[N][PROMPT];

static turbod_engine_opts with(int blocks, int swapped, bool prefix)
{
    turbod_engine_opts o = on_cuda("f32");
    o.cache_bytes = (uint64_t)blocks * BLOCK;
    o.swap_bytes = (uint64_t)swapped * BLOCK;
    o.prefix_caching = prefix;
    o.block_tokens = TOKENS;
    o.max_batch = N;
    o.max_step_tokens = 16;
    return o;
}

static void run_all(turbod_engine *e, result *all)
{
    turbo_sample_params p = greedy();
    for (int i = 0; i < N; i++)
        start(e, &all[i], prompts[i], PROMPT - i, ANSWER + i, &p);
    for (int i = 0; i < N; i++)
        finish(&all[i]);
    all_blocks_back(e);
}

static void all_slots_back(const turbod_metrics *m)
{
    for (int i = 0; i < 5000 && m->swap_free != m->swap_total; i++)
        nap_ms(1);
    assert_int_equal(m->swap_free, m->swap_total);
}

/* Tokens of an engine with so much room, and what it counts. */
static void compare(const char *folder, turbod_engine_opts o, uint64_t counts[4])
{
    turbod_engine *e = open_engine(folder, o);
    turbod_metrics *m = turbod_engine_metrics(e);
    as_planned(e);
    run_all(e, got);
    for (int i = 0; i < N; i++) {
        assert_int_equal(got[i].n, want[i].n);
        assert_memory_equal(got[i].ids, want[i].ids, (size_t)want[i].n * sizeof(int32_t));
    }
    assert_true(m->preemptions > 0);
    assert_int_equal(m->swap_total, o.swap_bytes / BLOCK);
    all_slots_back(m);
    counts[0] = m->swapped_out;
    counts[1] = m->swapped_in;
    counts[2] = m->swap_full;
    counts[3] = m->prefill_tokens;
    turbod_engine_close(e);
    nothing_left();
}

static void test_tokens(void **state)
{
    char folder[64];
    uint64_t c[4], sum = 0;
    (void)state;
    tiny_model_write(&model, folder);
    for (int i = 0; i < N; i++) {
        make_prompt(prompts[i], PROMPT, (uint32_t)i, 24);
        sum += (uint64_t)(PROMPT - i);
    }
    turbod_engine *e = open_engine(folder, with(20, 0, false));
    run_all(e, want);
    assert_int_equal(turbod_engine_metrics(e)->preemptions, 0);
    turbod_engine_close(e);

    compare(folder, with(7, 0, false), c);
    assert_int_equal(c[0] + c[1] + c[2], 0);
    assert_true(c[3] > sum); /* computed again */
    compare(folder, with(7, 20, false), c);
    assert_true(c[0] > 0 && c[0] == c[1] && !c[2]);
    assert_int_equal(c[3], sum); /* no prompt, and no answer, twice */
    compare(folder, with(7, 20, true), c); /* what is still cached is not fetched */
    assert_true(c[0] > 0 && c[0] >= c[1] && !c[2]);
    assert_int_equal(c[3], sum);
    compare(folder, with(7, 1, false), c);
    assert_true(c[2] > 0 && c[3] > sum);
    tiny_model_remove(folder);
}

/* Who is cancelled while its KV lies in the swap space gives it back. */
static void test_cancel(void **state)
{
    char folder[64];
    turbo_sample_params p = greedy();
    (void)state;
    tiny_model_write(&model, folder);
    turbod_engine *e = open_engine(folder, with(12, 20, false));
    turbod_metrics *m = turbod_engine_metrics(e);
    for (int i = 0; i < N; i++)
        start(e, &got[i], prompts[i], PROMPT, 40, &p);
    for (int i = 0; i < 20000 && m->swap_free == m->swap_total; i++)
        nap_ms(1);
    assert_true(m->swap_free < m->swap_total);
    for (int i = 0; i < N; i++)
        turbod_request_cancel(got[i].req);
    for (int i = 0; i < N; i++)
        finish(&got[i]);
    all_blocks_back(e);
    all_slots_back(m);
    turbod_engine_close(e);
    nothing_left();
    tiny_model_remove(folder);
}

static void test_refused(void **state)
{
    char folder[64];
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    turbod_engine_opts o = with(7, 2, false);
    (void)state;
    tiny_model_write(&model, folder);
    o.model_dir = folder;
    o.registry = registry;
    o.swap_bytes = BLOCK - 1;
    assert_int_equal(turbod_engine_open(&o, &e, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "swap_space"));
    o.swap_bytes = 2 * BLOCK;
    o.device = "cpu";
    assert_int_equal(turbod_engine_open(&o, &e, &err), TURBO_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "swap_space = 0"));
    nothing_left();
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_refused),
    };
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
