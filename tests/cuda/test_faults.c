/* Every call of the driver fails once: for each function that the backend calls, its first call, its second and so
 * on until an engine starts, answers, saves, restores and stops without the fault. Whatever it is, the engine says
 * so in a sentence or ends its requests with an error, gives no answer afterwards, and leaves nothing on the
 * device. */
#include "../unit/engine_kit.h"

#include <malloc.h>
#include <unistd.h>

#include "conf/paths.h"
#include "engine/snapshot.h"
#include "gpu.h"
#include "util/log.h"

#define PROMPT 18
#define ANSWER 4
#define ASKED 2 /* requests, the second one partly cached */

enum { OUT_OF_MEMORY = 2, BAD_HANDLE = 400, LAUNCH_TIMED_OUT = 702 };

static fake_driver fake;
static char folder[64], slots[64];
static int32_t prompt[PROMPT], expected[2][ASKED][ANSWER]; /* without and with kernels that run */
static int32_t (*wanted)[ANSWER];

static const char *const functions[] = {
#define F(field, name, args) name,
#include "cuda/driver.def"
#undef F
};

/* Giving back what nobody will use any more may fail: there is nothing to do about it, and what is broken for good
 * shows at the next call. */
static bool gives_back(const char *name)
{
    return strstr(name, "Free") || strstr(name, "Destroy") || strstr(name, "Unload") ||
           strstr(name, "Release");
}

static bool takes(const char *name)
{
    static const char *const names[] = {"cuMemAlloc_v2",
                                        "cuMemHostAlloc",
                                        "cuModuleLoadData",
                                        "cuDevicePrimaryCtxRetain",
                                        "cuStreamCreate",
                                        "cuEventCreate",
                                        "cuGraphInstantiateWithFlags"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

typedef struct outcome {
    bool opened, noticed; /* noticed: an error was told, from the start to the last answer */
    long fired; /* faults until then */
    char text[sizeof(turbo_err)]; /* why it did not open */
} outcome;

/* One request. True: it was answered, with what a sound device answers. */
static bool answered(turbod_engine *e, int i)
{
    result r;
    turbo_err err = {{0}};
    turbod_request_spec spec = ask(prompt, PROMPT, ANSWER);
    memset(&r, 0, sizeof r);
    pthread_mutex_init(&r.mu, NULL);
    pthread_cond_init(&r.done, NULL);
    spec.on_event = on_event;
    spec.ctx = &r;
    if (turbod_engine_submit(e, &spec, &r.req, &err)) {
        assert_true(err.text[0]);
        return false;
    }
    finish(&r);
    if (wanted[i][0] < 0)
        memcpy(wanted[i], r.ids, sizeof wanted[i]);
    if (memcmp(wanted[i], r.ids, (size_t)r.n * sizeof r.ids[0]))
        fail_msg("another token than without a fault");
    assert_int_equal(r.end.kind == TURBOD_EV_DONE, r.n == ANSWER);
    if (r.end.kind != TURBOD_EV_DONE)
        assert_non_null(strstr(r.message, "needs a restart"));
    return r.end.kind == TURBOD_EV_DONE;
}

static bool saved(turbod_engine *e)
{
    turbo_err err = {{0}};
    char note[] = "note";
    turbod_snapshot s = {.tenant = "", .ids = prompt, .n_ids = PROMPT, .note = note, .n_note = 4};
    if (turbod_snapshot_save(e, slots, "a", &s, &err)) {
        assert_true(err.text[0]);
        return false;
    }
    s = (turbod_snapshot){.tenant = ""};
    if (turbod_snapshot_load(e, slots, "a", &s, &err)) {
        assert_true(err.text[0]);
        return false;
    }
    free(s.ids);
    free(s.note);
    return true;
}

static outcome run(void)
{
    outcome o = {0};
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    turbod_engine_opts opts = small();
    opts.model_dir = folder;
    opts.registry = registry;
    opts.device = "cuda";
    opts.device_precision = "f32";
    opts.backend_path = turbod_backend_path();
    opts.cache_bytes = 64 << 10;
    opts.max_batch = 2;
    opts.max_step_tokens = 32;
    opts.threads = 1;
    turbo_status st = turbod_engine_open(&opts, &e, &err);
    o.opened = !st;
    o.noticed = st;
    memcpy(o.text, err.text, sizeof o.text);
    bool broken = false; /* from the first error on there is no answer any more */
    for (int i = 0; i < ASKED && e; i++) {
        bool ok = answered(e, i);
        assert_false(ok && broken);
        broken = !ok;
        o.noticed = o.noticed || broken;
        if (i + 1 < ASKED && !broken && !saved(e))
            broken = o.noticed = true;
    }
    o.fired = fake.fired();
    /* An engine that has nothing to do looks after its device, too. */
    for (int ms = 0; e && o.fired && !o.noticed && ms < 10000; ms++) {
        o.noticed = turbod_engine_age(e) < 0;
        nap_ms(1);
    }
    turbod_engine_close(e);
    return o;
}

static void nothing_left(const char *name, long n)
{
    static const char *const kinds[] = {"device", "pinned",  "streams", "events",
                                        "graphs", "modules", "contexts"};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (fake.live(kinds[i]))
            fail_msg("%s, call %ld: %zu %s left behind", name, n, fake.live(kinds[i]), kinds[i]);
}

/* The n-th call returns code, for all n. */
static long each_call(const char *name, int code)
{
    for (long n = 1;; n++) {
        fake.plant(name, n, code, 1);
        outcome o = run();
        bool fired = fake.fired();
        fake.plant(NULL, 0, 0, 0);
        nothing_left(name, n);
        if (o.fired && !o.noticed && !gives_back(name))
            fail_msg("%s, call %ld returned %d and nobody noticed", name, n, code);
        if (!o.opened && !o.text[0])
            fail_msg("%s, call %ld returned %d: no text", name, n, code);
        if (!o.opened && code == OUT_OF_MEMORY && !strstr(o.text, "; "))
            fail_msg("%s, call %ld: no advice in \"%s\"", name, n, o.text);
        if (!fired)
            return n - 1;
    }
}

/* Whether kernels run or do nothing is all the same to the host, so most of the time they do nothing. */
static void kernels(bool really)
{
    fake.kernels(really);
    wanted = expected[really];
    if (wanted[0][0] < 0)
        assert_false(run().noticed);
}

static void test_each_call(void **state)
{
    long runs = 0;
    (void)state;
    turbod_log_level(-1);
    kernels(true);
    runs = each_call("cuGraphLaunch", LAUNCH_TIMED_OUT);
    assert_true(runs > 2);
    kernels(false);
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        long n = each_call(functions[i], LAUNCH_TIMED_OUT);
        if (takes(functions[i]))
            n += each_call(functions[i], OUT_OF_MEMORY);
        else if (!gives_back(functions[i]))
            n += each_call(functions[i], BAD_HANDLE);
        if (n)
            print_message("%s: %ld\n", functions[i], n);
        runs += n;
    }
    print_message("%ld faults\n", runs);
    assert_true(runs > 100);
}

static int set_up(void **state)
{
    (void)state;
    const tiny_model m = {.vocab = 24,
                          .embed = 8,
                          .layers = 1,
                          .heads = 2,
                          .kv_heads = 1,
                          .inner = 8,
                          .max_position = 64,
                          .random = 5};
    tiny_model_write(&m, folder);
    make_prompt(prompt, PROMPT, 3, 24);
    snprintf(slots, sizeof slots, "/tmp/turbod-faults-XXXXXX");
    memset(expected, 0xff, sizeof expected);
    return mkdtemp(slots) ? 0 : 1;
}

static int tear_down(void **state)
{
    char file[80];
    (void)state;
    snprintf(file, sizeof file, "%s/a", slots);
    unlink(file);
    rmdir(slots);
    tiny_model_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_call)};
    if (getenv("TURBO_CHECK_GPU")) {
        printf("SKIP: faults can be planted in the driver of the build only\n");
        return 77;
    }
    mallopt(M_MMAP_THRESHOLD, 64 << 20); /* hundreds of starts: buffers are used again */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    fake = fake_driver_open();
    return engine_kit_main(tests, 1, set_up, tear_down);
}
