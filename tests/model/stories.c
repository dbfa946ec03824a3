/* tests/model/stories.c: two real tiny models against their float64 references, one of them as its
 * folder was published and both repacked into the layouts of other plugins: greedy ids through the
 * engine, and the mean loss of real texts, teacher-forced. Usage: stories REPACKED_DIR
 * SHARED_MODELS_DIR */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "util/file.h"
#include "util/json.h"

static turbod_registry *registry;
static int failures;

static void check(int ok, const char *what)
{
    printf("%s: %s\n", ok ? "ok" : "FAIL", what);
    failures += !ok;
}

typedef struct sink {
    pthread_mutex_t mu;
    pthread_cond_t done;
    int32_t ids[512];
    int n, end;
} sink;

static void on_event(void *ctx, const turbod_event *ev)
{
    sink *s = ctx;
    pthread_mutex_lock(&s->mu);
    if (ev->kind == TURBOD_EV_TOKEN) {
        s->ids[s->n++] = ev->token;
    } else {
        s->end = 1;
        pthread_cond_signal(&s->done);
    }
    pthread_mutex_unlock(&s->mu);
}

static turbod_engine *open_model(const char *folder)
{
    turbod_engine_opts o;
    turbod_engine *e = NULL;
    turbo_err err = {{0}};
    turbod_engine_defaults(&o);
    o.model_dir = folder;
    o.registry = registry;
    o.cache_bytes = 16 << 20;
    if (turbod_engine_open(&o, &e, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return e;
}

static cJSON *reference(const char *dir, const char *model)
{
    char folder[4096];
    uint8_t *text;
    uint64_t len;
    turbo_err err = {{0}};
    cJSON *v = NULL;
    snprintf(folder, sizeof folder, "%s/%s", dir, model);
    if (turbod_file_read(folder, "REFERENCE.json", 1 << 24, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &v, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    free(text);
    return v;
}

static int read_ids(const cJSON *list, int32_t *ids, int cap)
{
    int n = 0;
    for (const cJSON *v = list->child; v && n < cap; v = v->next)
        ids[n++] = (int32_t)v->valuedouble;
    return n;
}

static void check_greedy(turbod_engine *e, const cJSON *ref, const char *name)
{
    static sink s;
    int32_t want[512], bos = 1;
    turbo_err err = {{0}};
    turbod_request *r;
    int n = read_ids(turbod_json_get(ref, "greedy_ids_from_bos"), want, 512);
    memset(&s, 0, sizeof s);
    pthread_mutex_init(&s.mu, NULL);
    pthread_cond_init(&s.done, NULL);
    turbod_request_spec spec = {.prompt = &bos,
                                .n_prompt = 1,
                                .max_tokens = n - 1,
                                .ignore_eos = true,
                                .on_event = on_event,
                                .ctx = &s};
    turbod_sample_defaults(&spec.params);
    spec.params.temperature = 0;
    if (turbod_engine_submit(e, &spec, &r, &err)) {
        check(0, err.text);
        return;
    }
    pthread_mutex_lock(&s.mu);
    while (!s.end)
        pthread_cond_wait(&s.done, &s.mu);
    pthread_mutex_unlock(&s.mu);
    turbod_request_release(r);
    char what[128];
    snprintf(what, sizeof what, "%s: %d greedy ids from <s>", name, n - 1);
    check(s.n == n - 1 && !memcmp(s.ids, want + 1, (size_t)(n - 1) * sizeof *want), what);
}

/* Perplexity of each text: equal to four digits. */
static void check_losses(turbod_engine *e, const cJSON *ref)
{
    int32_t ids[512], vocab = turbod_engine_facts_of(e)->model.vocab;
    float *logits = malloc((size_t)512 * (size_t)vocab * sizeof *logits);
    for (const cJSON *t = turbod_json_get(ref, "teacher_forced")->child; t; t = t->next) {
        turbo_err err;
        int n = read_ids(turbod_json_get(t, "ids"), ids, 512);
        double sum = 0, want = turbod_json_get(t, "nll_sum")->valuedouble;
        double tokens = turbod_json_get(t, "tokens")->valuedouble;
        if (turbod_engine_logits(e, ids, n, true, logits, &err)) {
            check(0, err.text);
            continue;
        }
        for (int i = 0; i + 1 < n && i < (int)tokens; i++) {
            const float *l = logits + (size_t)i * (size_t)vocab;
            double z = 0, m = -INFINITY;
            for (int k = 0; k < vocab; k++)
                m = fmax(m, (double)l[k]);
            for (int k = 0; k < vocab; k++)
                z += exp((double)l[k] - m);
            sum += m + log(z) - (double)l[ids[i + 1]];
        }
        char what[128], a[32], b[32];
        snprintf(a, sizeof a, "%.3f", exp(sum / tokens));
        snprintf(b, sizeof b, "%.3f", exp(want / tokens));
        snprintf(what, sizeof what, "perplexity of %d tokens: %s, reference %s", n, a, b);
        check(!strcmp(a, b), what);
    }
    free(logits);
}

int main(int argc, char **argv)
{
    turbo_err err = {{0}};
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    char folder[4096];
    if (argc != 3 || !plugins || turbod_registry_open(plugins, &registry, &err)) {
        fprintf(stderr,
                "usage: stories REPACKED_DIR SHARED_MODELS_DIR, with TURBO_PLUGIN_PATH set. %s\n",
                err.text);
        return 2;
    }
    static const struct {
        const char *folder, *reference;
        int as_it_is;
    } models[] = {{"tinystories-656k-hf", "tinystories-656k-hf", 1},
                  {"tinystories-656k-internlm2", "tinystories-656k-hf", 0},
                  {"tinystories-656k-qwen", "tinystories-656k-hf", 0},
                  {"stories260K-internlm2", "stories260K", 0},
                  {"stories260K-llama", "stories260K", 0},
                  {"stories260K-qwen", "stories260K", 0}};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        snprintf(folder, sizeof folder, "%s/%s", argv[models[i].as_it_is ? 2 : 1],
                 models[i].folder);
        turbod_engine *e = open_model(folder);
        cJSON *ref = reference(argv[2], models[i].reference);
        check_greedy(e, ref, models[i].folder);
        if (turbod_json_get(ref, "teacher_forced"))
            check_losses(e, ref);
        cJSON_Delete(ref);
        turbod_engine_close(e);
    }
    turbod_registry_close(registry);
    return failures != 0;
}
