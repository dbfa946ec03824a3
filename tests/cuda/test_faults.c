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

static turbod_engine_opts options(void)
{
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
    return opts;
}

static outcome run(void)
{
    outcome o = {0};
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    turbod_engine_opts opts = options();
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

/* What a machine may be like, and the sentence that says what to do. */
static void test_refusals(void **state)
{
    static const struct {
        const char *variable, *value, *device, *says;
        turbo_status status;
    } rows[] = {
        {"TURBO_CUDA_DRIVER", "/nonexistent/libcuda.so", "cuda",
         "no CUDA driver; device = \"cpu\" does without", TURBO_EUNSUPPORTED},
        {"FAKECUDA_VERSION", "11080", "cuda",
         "is for CUDA 11.8, 12.0 or later is needed; update the NVIDIA driver", TURBO_EUNSUPPORTED},
        {"FAKECUDA_DEVICES", "0", "cuda", "sees no device; device = \"cpu\" does without",
         TURBO_EUNSUPPORTED},
        {"FAKECUDA_CAPABILITY", "75", "cuda",
         "has compute capability 7.5, 8.0 or later is needed; device = \"cpu\" does without",
         TURBO_EUNSUPPORTED},
        {"FAKECUDA_DEVICES", "2", "cuda:2",
         "no cuda:2, the driver sees 2 devices; use cuda:0 to cuda:1", TURBO_EINVAL},
        {"FAKECUDA_DEVICES", "1", "cuda:x", "use auto, cpu, cuda or cuda:1", TURBO_EINVAL},
        {"FAKECUDA_DEVICES", "1", "gpu", "use auto, cpu, cuda or cuda:1", TURBO_EINVAL},
        {"FAKECUDA_MEMORY", "65536", "cuda", "before any KV cache", TURBO_ENOMEM},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbo_err err = {{0}};
        turbod_engine *e = NULL;
        turbod_engine_opts opts = options();
        const char *was = getenv(rows[i].variable);
        char *kept = was ? strdup(was) : NULL;
        opts.device = rows[i].device;
        setenv(rows[i].variable, rows[i].value, 1);
        turbo_status st = turbod_engine_open(&opts, &e, &err);
        if (kept)
            setenv(rows[i].variable, kept, 1);
        else
            unsetenv(rows[i].variable);
        free(kept);
        if (st != rows[i].status || !strstr(err.text, rows[i].says))
            fail_msg("%s=%s, %s: status %d, \"%s\"", rows[i].variable, rows[i].value,
                     rows[i].device, st, err.text);
        nothing_left(rows[i].variable, (long)i);
    }
}

/* Another process takes the memory between the plan and any of the allocations. */
static void test_memory_goes(void **state)
{
    (void)state;
    kernels(false);
    for (long n = 1;; n++) {
        fake.plant("cuMemAlloc_v2", n, OUT_OF_MEMORY, 0);
        outcome o = run();
        bool fired = fake.fired();
        fake.plant(NULL, 0, 0, 0);
        nothing_left("memory", n);
        if (!fired)
            break;
        if (o.opened || !(strstr(o.text, "; lower") || strstr(o.text, "; use a smaller")))
            fail_msg("allocation %ld and all behind it fail: \"%s\"", n, o.text);
    }
}

/* Every number of the weights becomes NaN. */
static void spoil(void)
{
    char path[128];
    uint64_t header;
    const uint32_t nan = 0x7fc00000;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fread(&header, sizeof header, 1, f), 1);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    long size = ftell(f);
    assert_int_equal(fseek(f, (long)header + 8, SEEK_SET), 0);
    for (long at = (long)header + 8; at + 4 <= size; at += 4)
        assert_int_equal(fwrite(&nan, sizeof nan, 1, f), 1);
    assert_int_equal(fclose(f), 0);
}

/* Logits that are no numbers: no token, an error, and the engine goes on. The last test: the weights stay so. */
static void test_no_numbers(void **state)
{
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    turbod_engine_opts opts = options();
    (void)state;
    fake.kernels(true);
    spoil();
    assert_int_not_equal(turbod_engine_open(&opts, &e, &err), TURBO_OK);
    assert_non_null(strstr(err.text, "finite"));
    opts.allow_nonfinite = true;
    if (turbod_engine_open(&opts, &e, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < 2; i++) { /* drawn by the device, and by the host */
        static result r;
        turbod_request_spec spec = ask(prompt, PROMPT, ANSWER);
        spec.params.n_logprobs = i ? 3 : 0;
        start_spec(e, &r, spec);
        finish(&r);
        assert_int_equal(r.end.kind, TURBOD_EV_ERROR);
        assert_int_equal(r.end.status, TURBO_EDATA);
        assert_int_equal(r.n, 0);
    }
    assert_true(turbod_engine_age(e) >= 0);
    turbod_engine_close(e);
    nothing_left("no numbers", 0);
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory_goes),
        cmocka_unit_test(test_each_call),
        cmocka_unit_test(test_no_numbers),
    };
    if (getenv("TURBO_CHECK_GPU")) {
        printf("SKIP: faults can be planted in the driver of the build only\n");
        return 77;
    }
    mallopt(M_MMAP_THRESHOLD, 64 << 20); /* hundreds of starts: buffers are used again */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], set_up, tear_down);
}
