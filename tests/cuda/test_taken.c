/* What a plan says of a card, by what is gone of it: the allocations of the backend where a driver tells them (the
 * fake one), and on a card, with TURBO_CHECK_GPU, what it has free before and after, with every step
 * recorded. Nobody else may use the card meanwhile. */
#include "on_gpu.h"

#include "engine/state.h"
#include "plan/roof.h"

enum {
    SLACK = 1 << 20, /* behind the weights, in the kind "graphs"; small things find room there */
    PIECE = 2 << 20, /* a card gives memory in such pieces */
    PIECES = 8, /* allocations of an engine that end within one */
};

/* Of the card: the other kinds are memory of the host, or none. */
static uint64_t of_device(const turbod_plan *p)
{
    static const turbod_mem kinds[] = {TURBOD_MEM_WEIGHTS,   TURBOD_MEM_VECTORS, TURBOD_MEM_ROPE,
                                       TURBOD_MEM_WORKSPACE, TURBOD_MEM_SCRATCH, TURBOD_MEM_IMAGES,
                                       TURBOD_MEM_KV};
    uint64_t n = p->logits;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        n += p->bytes[kinds[i]];
    return n;
}

/* As much of the card is gone as was planned: not less, and of `more` bytes, which come later, perhaps some. */
static void gone(const char *when, turbod_engine *e, uint64_t more)
{
    const turbod_plan *p = &turbod_engine_facts_of(e)->plan;
    turbod_visit(e);
    const uint64_t before = p->vacant - p->bytes[TURBOD_MEM_CONTEXT];
    const uint64_t now = turbok_device_vacant(e->device), took = before - now;
    turbod_leave(e);
    const uint64_t planned = of_device(p) + SLACK, rounding = (uint64_t)PIECES * PIECE;
    print_message("%s: planned %llu, later %llu, gone %llu\n", when, (unsigned long long)planned,
                  (unsigned long long)more, (unsigned long long)took);
    assert_true(now <= before);
    if (fake.handle) {
        assert_int_equal(took, fake.live("device"));
        assert_in_range(took, planned - SLACK, planned);
    }
    assert_true(took + rounding >= planned && took <= planned + more + rounding);
}

/* Steps of every size that is recorded, each of them twice: one is prepared while the other runs. The host run
 * would take minutes for it: some. */
static void record_all(turbod_engine *e)
{
    static result r[64];
    static int32_t prompts[64][600];
    const int32_t most = fake.handle ? 2 : e->max_batch < 64 ? e->max_batch : 64;
    turbo_sample_params p = greedy();
    for (int i = 0; i < 64; i++)
        make_prompt(prompts[i], 600, (uint32_t)i + 1, 300);
    for (int32_t len = 8; len <= (fake.handle ? 8 : 600); len += 592)
        for (int32_t n = 1; n <= most; n *= 2) {
            for (int32_t i = 0; i < n; i++)
                start(e, &r[i], prompts[i], len, 8, &p);
            for (int32_t i = 0; i < n; i++) {
                finish(&r[i]);
                assert_int_equal(r[i].end.kind, TURBOD_EV_DONE);
            }
        }
    all_blocks_back(e);
}

static void test_taken(void **state)
{
    static const shape rows[] = {
        {"bf16", "", TURBO_BF16, 64, 256, 0.3},
        {"bf16", "int4", TURBOK_KV_INT8, 5, 700, 0.9},
        {"f32", "", -1, 16, 64, 1e-2},
    };
    char folder[64];
    tiny_model m = random_model;
    m.bf16 = 1;
    m.max_position = 4096;
    m.embed = 256, m.inner = 512;
    (void)state;
    tiny_model_write(&m, folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbod_engine_opts o = shaped(&rows[i]);
        o.session_len = 1024;
        turbod_engine *e = open_engine(folder, o);
        as_planned(e);
        gone("opened", e, 0);
        record_all(e);
        gone("after steps", e, turbod_engine_facts_of(e)->plan.bytes[TURBOD_MEM_GRAPHS] - SLACK);
        turbod_engine_close(e);
        nothing_left();
    }
    tiny_model_remove(folder);
}

/* `turbo plan --device` of this card, which it describes by its table, says what an engine on it takes. */
static void test_table(void **state)
{
    char folder[64];
    const turbod_gpu *g = NULL;
    (void)state;
    tiny_model_write(&random_model, folder);
    setenv("FAKECUDA_SMS", "132", 1); /* as one of the table */
    setenv("FAKECUDA_MEMORY", "150109880320", 1);
    turbod_engine_opts o = on_cuda("bf16");
    o.cache_bytes = 64 << 20;
    turbod_engine *e = open_engine(folder, o);
    turbok_card card = card_of(e);
    turbod_plan p;
    for (size_t i = 0; i < turbod_n_gpus; i++)
        if (strstr(turbod_gpus[i].memory_note, "measured on one") &&
            turbod_gpus[i].sm_count == card.sm_count &&
            turbod_gpus[i].capability == card.major * 10 + card.minor &&
            card.memory <= (uint64_t)turbod_gpus[i].memory &&
            card.memory > (uint64_t)turbod_gpus[i].memory / 8 * 7)
            g = &turbod_gpus[i];
    if (!g) {
        print_message("no card of core/plan/roof.c that was measured: nothing to compare\n");
        turbod_engine_close(e);
        tiny_model_remove(folder);
        skip();
    }
    const uint64_t context = card.context;
    card.memory = (uint64_t)g->memory;
    card.context = (uint64_t)g->context;
    o.model_dir = folder;
    plan_on(&card, e, &o, &p);
    taken_as(&p, e, TURBOD_MEM_CONTEXT);
    print_message("%s: context %llu, in the table %llu\n", g->name, (unsigned long long)context,
                  (unsigned long long)card.context);
    if (context > card.context)
        fail_msg("the context is larger than core/plan/roof.c has it: set it to what is above");
    turbod_engine_close(e);
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_taken), cmocka_unit_test(test_table)};
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
