/* tests/bench/bench_sched.c: what a step costs beside the model: arrivals, plan, batch, sampling,
 * detokenising, stop strings, events. `make bench-sched` runs it; it is no part of `make check`.
 *
 * The null model answers; this program stands between engine and model, and between engine and
 * sampler, and reads the engine thread's CPU clock at each crossing. A step's cost is the way from
 * the end of one forward to the begin of the next. The median of all full steps is printed.
 *
 *   bench_sched [TOKENIZER_FOLDER [STEPS]]    (TURBO_PLUGIN_PATH names the plugins) */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/state.h"

#define MAX_BATCH 256
#define MAX_STEPS 20000
#define PROMPT 32

/* Of the run under way; engine thread only, read when it is idle. */
static struct {
    const turbo_model_vtbl *model;
    const turbo_sampler_vtbl *sampler;
    int32_t batch;
    int n;
    bool armed; /* the step before was a full one */
    int64_t left, sampled, sampling;
    double step[MAX_STEPS], sample[MAX_STEPS];
} run;

static _Atomic int n_ended;

static int64_t cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static turbo_status forward(void *m, turbo_exec *x, const turbo_batch *b, float *logits,
                            turbo_err *err)
{
    int64_t t = cpu_ns();
    bool full = b->n_rows == run.batch && b->n_tokens == run.batch;
    if (full && run.armed && run.n < MAX_STEPS) {
        run.step[run.n] = (double)(t - run.left) * 1e-3;
        run.sample[run.n++] = (double)run.sampling * 1e-3;
    }
    turbo_status st = run.model->forward(m, x, b, logits, err);
    run.armed = full;
    run.left = cpu_ns();
    return st;
}

static turbo_status sample(void *s, turbo_sample_row *rows, int32_t n, turbo_err *err)
{
    int64_t t = cpu_ns();
    turbo_status st = run.sampler->sample(s, rows, n, err);
    run.sampling = cpu_ns() - t;
    return st;
}

static void on_event(void *ctx, const turbod_event *ev)
{
    _Atomic uint64_t *bytes = ctx;
    atomic_fetch_add_explicit(bytes, ev->text_len, memory_order_relaxed);
    if (ev->kind != TURBOD_EV_TOKEN)
        atomic_fetch_add(&n_ended, 1);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *v, int n, double q)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n ? v[(int)((double)(n - 1) * q)] : 0;
}

typedef struct kind {
    const char *name;
    float temperature, top_p;
    int n_stops;
} kind;

static int measure(turbod_engine *e, const kind *k, int32_t batch, int32_t steps)
{
    static const char *const stops[] = {"\n\nUser:", "<|im_end|>", "###", "zzzz"};
    static _Atomic uint64_t bytes;
    int32_t prompt[PROMPT], ended = 0;
    turbod_request *r[MAX_BATCH];
    turbo_err err = {{0}};
    for (int32_t i = 0; i < PROMPT; i++)
        prompt[i] = 300 + i;
    run.batch = batch;
    run.n = 0;
    run.armed = false;
    atomic_store(&n_ended, 0);
    for (int32_t i = 0; i < batch; i++) {
        turbod_request_spec spec = {
            .prompt = prompt,
            .n_prompt = PROMPT,
            .max_tokens = steps,
            .stops = stops,
            .n_stops = k->n_stops,
            .ignore_eos = true,
            .on_event = on_event,
            .ctx = &bytes,
        };
        turbod_sample_defaults(&spec.params);
        spec.params.temperature = k->temperature;
        spec.params.top_p = k->top_p;
        prompt[0] = 300 + i; /* no two prompts share a block */
        if (turbod_engine_submit(e, &spec, &r[i], &err)) {
            fprintf(stderr, "bench_sched: %s\n", err.text);
            return 1;
        }
    }
    for (; ended < batch; ended = atomic_load(&n_ended))
        usleep(10000);
    while (!turbod_engine_idle(e))
        usleep(1000);
    for (int32_t i = 0; i < batch; i++)
        turbod_request_release(r[i]);
    double s50 = quantile(run.sample, run.n, 0.5);
    double p50 = quantile(run.step, run.n, 0.5), p99 = quantile(run.step, run.n, 0.99);
    printf("%-22s %5d %9.1f %9.1f %9.1f %9.1f %7d\n", k->name, batch, p50, p99, s50, p50 - s50,
           run.n);
    return 0;
}

static turbo_status open_engine(const char *folder, turbod_registry *reg, turbod_engine **e,
                                turbo_err *err)
{
    static turbo_model_vtbl model;
    static turbo_sampler_vtbl sampler;
    turbod_engine_opts o;
    turbod_engine_defaults(&o);
    o.model_dir = folder;
    o.registry = reg;
    o.max_batch = MAX_BATCH;
    o.max_step_tokens = 8192;
    o.max_step_stretch = 1000; /* no pace: all sequences are to be there early */
    o.cache_bytes = 64 << 20;
    o.threads = 1;
    turbo_status st = turbod_engine_open(&o, e, err);
    if (st)
        return st;
    pthread_mutex_lock(&(*e)->step_mu); /* no step is under way */
    run.model = (*e)->model_vtbl;
    run.sampler = (*e)->samplers[0].vtbl;
    model = *run.model;
    model.forward = forward;
    sampler = *run.sampler;
    sampler.sample = sample;
    (*e)->model_vtbl = &model;
    (*e)->samplers[0].vtbl = &sampler;
    pthread_mutex_unlock(&(*e)->step_mu);
    return TURBO_OK;
}

/* A folder with a config.json and links to the tokenizer's files. */
static int make_folder(char *folder, const char *tokenizer, int vocab)
{
    static const char *const files[] = {"tokenizer.model", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    char path[4200], from[4200];
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "w");
    if (!f)
        return 1;
    fprintf(f, "{\"architectures\":[\"NullForCausalLM\"],\"vocab_size\":%d}\n", vocab);
    fclose(f);
    for (size_t i = 0; tokenizer && i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        snprintf(from, sizeof from, "%s/%s", tokenizer, files[i]);
        if (symlink(from, path))
            return 1;
    }
    return 0;
}

static void remove_folder(const char *folder)
{
    static const char *const files[] = {"config.json", "tokenizer.model", "tokenizer_config.json",
                                        "special_tokens_map.json"};
    char path[4200];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

static int bench(const char *tokenizer, int vocab, int32_t steps, turbod_registry *reg)
{
    static const kind kinds[] = {
        {"greedy", 0, 1, 0},
        {"greedy, 4 stops", 0, 1, 4},
        {"temperature", 1, 1, 0},
        {"temperature, top_p", 1, 0.9f, 0},
    };
    static const int32_t batches[] = {1, 64, MAX_BATCH};
    char folder[] = "/tmp/turbo-bench-XXXXXX";
    turbo_err err = {{0}};
    turbod_engine *e = NULL;
    int bad = make_folder(folder, tokenizer, vocab);
    if (!bad && open_engine(folder, reg, &e, &err)) {
        fprintf(stderr, "bench_sched: %s\n", err.text);
        bad = 1;
    }
    printf("\nvocabulary %d%s; microseconds of CPU a step, without forward\n%-22s %5s %9s %9s %9s "
           "%9s %7s\n",
           vocab, tokenizer ? ", with text" : ", ids only", "sampling", "batch", "median", "p99",
           "sampler", "rest", "steps");
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0] && !bad; k++)
        for (size_t b = 0; b < sizeof batches / sizeof batches[0] && !bad; b++)
            if (tokenizer || !kinds[k].n_stops)
                bad = measure(e, &kinds[k], batches[b], steps);
    turbod_engine_close(e);
    remove_folder(folder);
    return bad;
}

int main(int argc, char **argv)
{
    const char *tokenizer = argc > 1 ? realpath(argv[1], NULL) : NULL;
    int32_t steps = argc > 2 ? (int32_t)strtol(argv[2], NULL, 10) : 400;
    const char *plugins = getenv("TURBO_PLUGIN_PATH");
    turbod_registry *reg = NULL;
    turbo_err err = {{0}};
    if (!plugins || (argc > 1 && !tokenizer) || steps < 10 || steps >= MAX_STEPS ||
        turbod_registry_open(plugins, &reg, &err)) {
        fprintf(stderr, "bench_sched: %s\n",
                err.text[0] ? err.text
                            : "set TURBO_PLUGIN_PATH; give a tokenizer folder and steps");
        return 64;
    }
    int bad = tokenizer ? bench(tokenizer, 2800, steps, reg) : 0;
    if (!bad)
        bad = bench(NULL, 92544, steps / 10 < 20 ? 20 : steps / 10, reg);
    turbod_registry_close(reg);
    free((void *)tokenizer);
    return bad;
}
