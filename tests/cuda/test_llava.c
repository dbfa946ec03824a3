/* tests/cuda/test_llava.c: models that look at pictures on a CUDA device: features and logits against transformers
 * (tests/golden/llava-tiny) in each type, and the engine against the engine on the CPU: pictures beside text,
 * several in a batch, known ones, a store that has room for two. On the fake driver, or with TURBO_CHECK_GPU on the
 * machine's own. */
#include "on_gpu.h"

#include <math.h>
#include <unistd.h>

#include "backend.h"
#include "engine/metrics.h"
#include "internal.h"
#include "media/image.h"
#include "model/cases.h"
#include "plugin/host.h"
#include "prim.h"
#include "turbo/ext/media.h"
#include "util/log.h"
#include "util/sha256.h"

static cJSON *golden;

static int number(const cJSON *v, const char *key)
{
    return turbod_json_get(v, key)->valueint;
}

static void write_case(const cJSON *c, char folder[64], const turbo_model_vtbl **v)
{
    char path[96];
    turbo_config *config = NULL;
    turbo_err err = {{0}};
    char *text = cJSON_PrintUnformatted(turbod_json_get(c, "config"));
    strcpy(folder, "/tmp/turbo-llava-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    cJSON_free(text);
    if (turbod_config_open(folder, &config, &err) ||
        turbod_registry_model_for(registry, config, v, &err) ||
        !checkpoint_write_as(*v, folder, config, NULL, &err))
        fail_msg("%s", err.text);
    turbod_config_close(config);
}

/* ---- against transformers --------------------------------------------------------------------------- */

typedef struct off {
    double most, size; /* largest difference; largest number that was wanted */
} off;

static void compare(const cJSON *want, const float *got, off *o)
{
    for (const cJSON *v = want->child; v; v = v->next, got++) {
        double d = fabs(v->valuedouble - (double)*got);
        o->most = d > o->most || isnan(d) ? d : o->most;
        o->size = fmax(o->size, fabs(v->valuedouble));
    }
}

/* Rows [2 * n_rows, E] of both pictures of a case, on the device; what was there before is not a number. */
static void *embed(runner *r, const cJSON *c, const turbo_media_info *info, off *o)
{
    turbok_device *d = r->device;
    const turbo_media_vtbl *m = turbod_registry_extension(registry, r->vtbl, TURBO_MEDIA_ID);
    size_t n = (size_t)info->width * (size_t)info->height * 3, E = (size_t)r->info.embed_dim;
    size_t bytes = (size_t)info->n_rows * E * (size_t)r->act_bytes, space_bytes = info->workspace;
    int32_t act = turbok_device_ops(d)->act_dtype;
    char *rows = turbok_space_new(d, 2 * bytes), *space = turbok_space_new(d, space_bytes);
    char *host = malloc(bytes > space_bytes ? bytes : space_bytes);
    float *wide = malloc((size_t)info->n_rows * E * sizeof *wide);
    uint8_t *pixels = malloc(n);
    turbo_err err = {{0}};
    memset(host, 0xff, bytes > space_bytes ? bytes : space_bytes);
    for (uint32_t p = 0; p < 2; p++) {
        char *to = rows + p * bytes;
        for (uint32_t i = 0; i < n; i++)
            pixels[i] = (uint8_t)checkpoint_stream(1000 + p, i);
        memset(host, 0xff, bytes);
        d->backend->block_write(d, space, host, space_bytes);
        d->backend->block_write(d, to, host, bytes);
        if (turbok_device_enter(d, &err) ||
            m->embed(r->model, turbok_device_exec(d), pixels, space, space_bytes, to, &err))
            fail_msg("%s", err.text);
        memset(pixels, 0, n); /* they are the plugin's during the call only */
        d->backend->block_read(d, host, to, bytes);
        turbok_prim_scalar.widen(act, host, info->n_rows * (int64_t)E, wide);
        const cJSON *want = cJSON_GetArrayItem(turbod_json_get(c, "features"), (int)p);
        compare(cJSON_GetArrayItem(want, 0), wide, o);
        compare(cJSON_GetArrayItem(want, 1), wide + (size_t)(info->n_rows - 1) * E, o);
    }
    turbok_space_free(d, space, space_bytes);
    free(host);
    free(wide);
    free(pixels);
    return rows;
}

/* Logits of the case's prompt with the pictures' rows in it. */
static void forward(runner *r, const cJSON *c, const turbo_media_info *info, const void *rows,
                    off *o)
{
    int32_t n = number(c, "n_ids");
    size_t V = (size_t)r->info.vocab;
    int32_t *ids = malloc((size_t)n * sizeof *ids), *at = malloc((size_t)n * sizeof *at);
    float *logits = malloc((size_t)n * V * sizeof *logits);
    for (int32_t i = 0; i < n; i++) {
        ids[i] = (int32_t)(checkpoint_stream((uint32_t)n, (uint32_t)i) % 90);
        at[i] = -1;
    }
    for (int p = 0; p < 2; p++)
        for (int32_t i = 0; i < info->n_rows; i++) {
            int32_t pos = cJSON_GetArrayItem(turbod_json_get(c, "starts"), p)->valueint + i;
            ids[pos] = info->placeholder;
            at[pos] = p * info->n_rows + i;
        }
    r->embed_rows = rows;
    r->embed_at = at;
    cases_step(r, ids, n, n, n, logits);
    const cJSON *want = turbod_json_get(c, "logits")->child;
    for (const cJSON *v = turbod_json_get(c, "rows")->child; v; v = v->next, want = want->next)
        compare(want, logits + (size_t)v->valueint * V, o);
    free(ids);
    free(at);
    free(logits);
}

/* bound: in f32 of the difference, else of the difference by the largest number. quantize: NULL, or what becomes of
 * the matrices. */
static void run_case(const cJSON *c, const char *folder, const turbo_model_vtbl *v, int32_t act,
                     const char *quantize, double bound)
{
    runner r;
    turbo_err err = {{0}};
    turbo_media_info info = {.size = sizeof info};
    off features = {0}, logits = {0};
    turbo_config *config = NULL;
    const turbo_media_vtbl *m = turbod_registry_extension(registry, v, TURBO_MEDIA_ID);
    assert_non_null(m);
    if (turbod_config_open(folder, &config, &err) ||
        turbod_registry_model_for(registry, config, &v,
                                  &err) || /* whom it asks about the text half */
        m->describe(turbod_host_table(), config, &info, &err))
        fail_msg("%s", err.text);
    turbod_config_close(config);
    runner_opts o = {.threads = 2,
                     .kv_dtype = act,
                     .max_tokens = number(c, "n_ids") + 8,
                     .quantize = quantize,
                     .registry = registry,
                     .cuda = turbod_backend_path(),
                     .act_dtype = act,
                     .picture_bytes = (uint64_t)info.width * (uint64_t)info.height * 3};
    if (runner_open(&r, v, folder, &o, &err))
        fail_msg("%s", err.text);
    void *rows = embed(&r, c, &info, &features);
    forward(&r, c, &info, rows, &logits);
    print_message("%-36s %-5s %-4s features %.1e of %.2f, logits %.1e of %.2f\n",
                  turbod_json_get(c, "name")->valuestring, turbok_kv_type_name(act),
                  quantize ? quantize : "", features.most, features.size, logits.most, logits.size);
    assert_true(features.most <= bound * (act == TURBO_F32 ? 1 : features.size));
    assert_true(logits.most <= bound * (act == TURBO_F32 ? 1 : logits.size));
    turbok_space_free(r.device, rows,
                      2 * (size_t)info.n_rows * (size_t)r.info.embed_dim * (size_t)r.act_bytes);
    runner_close(&r);
    nothing_left();
}

/* On a card every case in every type; on the host, which is slow, some. */
static void test_transformers(void **state)
{
    static const struct {
        int32_t act;
        double bound;
        int cases; /* bit i: case i, on the host */
    } types[] = {{TURBO_F32, 1e-4, 0x05}, {TURBO_BF16, 2e-2, 0x20}, {TURBO_F16, 4e-3, 0x02}};
    int n = 0;
    (void)state;
    for (const cJSON *c = turbod_json_get(golden, "cases")->child; c; c = c->next, n++) {
        char folder[64];
        const turbo_model_vtbl *v;
        write_case(c, folder, &v);
        for (int i = 0; i < 3; i++)
            if (!fake.handle || types[i].cases >> n & 1)
                run_case(c, folder, v, types[i].act, NULL, types[i].bound);
        if (!n) /* no more than the rounding of the weights */
            run_case(c, folder, v, TURBO_F32, "int8", 6e-2);
        tiny_model_remove(folder);
    }
    assert_int_equal(n, 6);
}

/* ---- the engine --------------------------------------------------------------------------------------- */

enum {
    SIDE = 24,
    PIXELS = SIDE * SIDE * 3,
    ROWS = 16,
    PLACEHOLDER = 90,
    SHORT = 26,
    LONG = 46,
    ASKED = 4
};

static turbod_image *picture(uint32_t seed)
{
    turbod_image *i = calloc(1, sizeof *i + PIXELS);
    assert_non_null(i);
    i->refs = 1;
    for (uint32_t k = 0; k < PIXELS; k++)
        i->pixels[k] = (uint8_t)checkpoint_stream(seed, k);
    turbod_sha256(i->pixels, PIXELS, i->digest);
    return i;
}

/* As start_spec, when those who ended have given back what they held of the store. */
static void start_with_room(turbod_engine *e, result *r, turbod_request_spec spec)
{
    turbo_err err = {{0}};
    turbo_status st;
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->mu, NULL);
    pthread_cond_init(&r->done, NULL);
    spec.on_event = on_event;
    spec.ctx = r;
    for (int i = 0; (st = turbod_engine_submit(e, &spec, &r->req, &err)) == TURBO_EBUSY; i++) {
        assert_true(i < 10000);
        nap_ms(1);
    }
    if (st)
        fail_msg("submit: %s", err.text);
}

/* Text alone, the same question about one picture and another, and two pictures; all at a time or one after the
 * other. */
static void ask_all(turbod_engine *e, result r[ASKED], bool at_once)
{
    static const int shown[ASKED][2] = {{-1, -1}, {0, -1}, {1, -1}, {1, 2}};
    static int32_t ids[ASKED][LONG];
    turbod_image *pictures[3];
    for (uint32_t i = 0; i < 3; i++)
        pictures[i] = picture(1000 + i);
    for (int i = 0; i < ASKED; i++) {
        turbod_slot slots[2];
        turbod_request_spec spec = ask(ids[i], shown[i][1] < 0 ? SHORT : LONG, 2);
        make_prompt(ids[i], LONG, 9, PLACEHOLDER);
        spec.images = slots;
        for (int k = 0; k < 2 && shown[i][k] >= 0; k++, spec.n_images++) {
            slots[k] = (turbod_slot){.at = 5 + k * (ROWS + 2), .image = pictures[shown[i][k]]};
            for (int32_t j = 0; j < ROWS; j++)
                ids[i][slots[k].at + j] = PLACEHOLDER;
        }
        start_with_room(e, &r[i], spec);
        if (!at_once)
            finish(&r[i]);
    }
    for (int i = 0; i < ASKED && at_once; i++)
        finish(&r[i]);
    for (int i = 0; i < 3; i++)
        turbod_image_release(pictures[i]);
}

/* Greedy answers are those of the CPU; in bf16 how likely the first token is. */
static void same(const result *want, const result *got, bool f32)
{
    for (int i = 0; i < ASKED; i++) {
        assert_int_equal(got[i].end.kind, TURBOD_EV_DONE);
        assert_int_equal(got[i].n, want[i].n);
        for (int k = 0; k < (f32 ? want[i].n : 1); k++) {
            float d = fabsf(got[i].logprobs[k] - want[i].logprobs[k]);
            assert_true(!f32 || got[i].ids[k] == want[i].ids[k]);
            if (!(d < (f32 ? 1e-4f : 2e-2f)))
                fail_msg("token %d of request %d differs by %g", k, i, (double)d);
        }
    }
}

static void run_engine(const char *folder, turbod_engine_opts o, uint64_t store, bool at_once,
                       result r[ASKED])
{
    o.max_step_tokens = 24; /* chunks end inside pictures */
    o.image_bytes = store;
    o.deterministic = fake.handle != NULL; /* the host is slow with products of few rows */
    turbod_engine *e = open_engine(folder, o);
    as_planned(e);
    long taken = fake.handle ? fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc") : 0;
    const int rounds = at_once ? 2 : 1; /* the second one finds prompts and pictures */
    for (int round = 0; round < rounds; round++) {
        ask_all(e, r, at_once);
        all_blocks_back(e);
    }
    turbod_metrics *m = turbod_engine_metrics(e);
    if (at_once) {
        assert_int_equal(m->image_queries, 2 * 4);
        assert_int_equal(m->image_hits, 2 * 4 - 3);
    }
    if (fake.handle)
        assert_int_equal(fake.calls("cuMemAlloc_v2") + fake.calls("cuMemHostAlloc"), taken);
    turbod_engine_close(e);
}

static void test_engine(void **state)
{
    static result want[ASKED], got[ASKED];
    char folder[64];
    const turbo_model_vtbl *v;
    const uint64_t large = 1 << 20, two = 2 * (ROWS * 48 * sizeof(float) + PIXELS);
    (void)state;
    write_case(turbod_json_get(golden, "cases")->child, folder, &v);
    run_engine(folder, small(), large, true, want);
    assert_true(fabsf(want[1].logprobs[0] - want[2].logprobs[0]) >
                1e-2f); /* what is shown matters */
    run_engine(folder, small(), two, false, got);
    same(want, got, true);
    run_engine(folder, on_cuda("f32"), large, true, got);
    nothing_left();
    same(want, got, true);
    run_engine(folder, on_cuda("bf16"), two, false, got);
    nothing_left();
    same(want, got, false);
    tiny_model_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers),
        cmocka_unit_test(test_engine),
    };
    turbod_log_level(-1);
    fake = fake_driver_open();
    golden = cases_load("llava-tiny", "golden.json");
    if (!golden)
        return 1;
    int rc = engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
    cJSON_Delete(golden);
    return rc;
}
