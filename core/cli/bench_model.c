/* core/cli/bench_model.c: turbo bench offline, decode and prefill: a model in this process, without HTTP.
 * Main thread. Rounds go through all points of a measurement in turn, so that a busy moment of the machine
 * does not fall on one point; medians and the spread are printed. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "plugin/host.h"
#include "util/checked.h"
#include "util/err.h"
#include "weights/config.h"

#define MOST_POINTS 64
#define MOST_LIST 16
#define MOST_ROUNDS 100

#define MODEL_KEYS "model plugin_path log_level model_format quantize allow_nonfinite engine"

typedef struct point {
    int32_t batch, len;
    double value[MOST_ROUNDS]; /* decode: seconds a step; prefill: seconds; offline: seconds */
} point;

typedef struct study {
    cli_args *args;
    const char *what;
    turbod_service service;
    point *points; /* [n] */
    int n, rounds;
    double read[MOST_ROUNDS]; /* bytes a second, measured in each round */
    /* Of the model, from its table of tensors: weights that every token is multiplied with, of the head too,
     * and all of them. 0 when the model has no table. */
    double linear, head, all;
    cli_ask *asks; /* offline */
    size_t n_asks;
    cli_crowd last;
} study;

/* ---- what a model costs on paper ------------------------------------------------------------------------ */

static turbo_status count_tensor(void *ctx, const turbo_tensor_spec *t)
{
    study *s = ctx;
    const turbo_model_info *m = &turbod_engine_facts_of(s->service.engine)->model;
    double n = 1;
    for (int32_t i = 0; i < t->ndim && i < 4; i++)
        n *= (double)t->dims[i];
    s->all += n;
    if (t->ndim != 2)
        return TURBO_OK;
    if (t->dims[0] == m->vocab && t->dims[1] == m->embed_dim)
        s->head = n; /* embedding and head have one shape; one of them is multiplied with */
    else
        s->linear += n;
    return TURBO_OK;
}

static void count_weights(study *s)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->service.engine);
    const turbo_model_vtbl *v = NULL;
    turbo_err err;
    if (!turbod_host_model_for(f->config, &v, &err) && v->expect)
        (void)v->expect(turbod_host_table(), f->config, count_tensor, s, &err);
}

/* Multiplications and additions of a prompt of n tokens, its head for the last one only; attention over all
 * before (causal): scores and sums of values, 2 FLOP each. */
static double flops_of(const study *s, double n)
{
    const turbo_model_info *m = &turbod_engine_facts_of(s->service.engine)->model;
    double attention = 4.0 * m->n_heads * m->head_dim * m->n_layers * n * (n + 1) / 2;
    return 2 * s->linear * n + 2 * s->head + attention;
}

/* Bytes that a decode step has to read: the weights once, each sequence's keys and values. */
static double bytes_of(const study *s, const point *p, int32_t steps)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->service.engine);
    double weights =
        s->all > 0 ? (double)f->plan.bytes[TURBOD_MEM_WEIGHTS] * (s->linear + s->head) / s->all : 0;
    double token = (double)f->plan.bytes[TURBOD_MEM_KV] / ((double)f->kv_blocks * f->block_tokens);
    return weights + token * p->batch * (p->len + steps / 2.0);
}

/* ---- running -------------------------------------------------------------------------------------------------- */

static void note(point *p, int round, double seconds)
{
    p->value[round < 0 ? 0 : round] = seconds;
}

static turbo_status decode_once(study *s, point *p, int round, turbo_err *err)
{
    cli_crowd c;
    turbo_status st =
        cli_crowd_decode(&s->service, p->batch, p->len, (int32_t)cli_int(s->args, "steps", 64),
                         (uint64_t)p->len << 32, &c, err);
    if (!st)
        note(p, round, c.window / c.steps);
    return st;
}

static turbo_status prefill_once(study *s, point *p, int round, turbo_err *err)
{
    cli_ask ask = {p->len, 1, cli_mix((uint64_t)p->len << 32 | (uint32_t)round) + 1};
    turbo_status st = cli_crowd_run(&s->service, &ask, 1, &s->last, err);
    note(p, round, s->last.prompt_ms * 1e-3);
    return st;
}

static turbo_status offline_once(study *s, point *p, int round, turbo_err *err)
{
    for (size_t i = 0; i < s->n_asks; i++) /* other prompts each time: the cache must not help */
        s->asks[i].seed = cli_mix((uint64_t)(round + 1) << 32 | i);
    turbo_status st = cli_crowd_run(&s->service, s->asks, s->n_asks, &s->last, err);
    note(p, round, s->last.end - s->last.begin);
    return st;
}

typedef turbo_status (*once_fn)(study *, point *, int, turbo_err *);

/* Round -1 warms up and is not kept. */
static turbo_status run_rounds(study *s, once_fn once, turbo_err *err)
{
    int64_t asked = s->args->conf->threads;
    int threads = (int)(asked ? asked : sysconf(_SC_NPROCESSORS_ONLN));
    turbo_status st = TURBO_OK;
    for (int round = -1; !st && round < s->rounds; round++) {
        s->read[round < 0 ? 0 : round] = cli_read_rate(threads);
        for (int i = 0; !st && i < s->n; i++)
            st = once(s, &s->points[i], round, err);
    }
    return st;
}

/* ---- reports ----------------------------------------------------------------------------------------------------- */

typedef struct figure { /* of one point */
    double mid, lo, hi; /* seconds */
} figure;

static figure figure_of(const double *v, int n)
{
    double copy[MOST_ROUNDS];
    figure f = {0, v[0], v[0]};
    memcpy(copy, v, (size_t)n * sizeof *v);
    for (int i = 0; i < n; i++) {
        f.lo = v[i] < f.lo ? v[i] : f.lo;
        f.hi = v[i] > f.hi ? v[i] : f.hi;
    }
    f.mid = cli_median(copy, (size_t)n);
    return f;
}

static void head_of(study *s, FILE *out)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->service.engine);
    char machine[200];
    cli_machine(machine, sizeof machine);
    fprintf(out,
            "%s, %s, %s; weights %.1f MB, read bandwidth %.1f GB/s; median of %d rounds (spread)\n",
            s->service.name, f->device, machine, (double)f->plan.bytes[TURBOD_MEM_WEIGHTS] * 1e-6,
            figure_of(s->read, s->rounds).mid * 1e-9, s->rounds);
}

static void print_points(study *s, FILE *out)
{
    bool decode = !strcmp(s->what, "decode"), offline = !strcmp(s->what, "offline");
    int32_t steps = (int32_t)cli_int(s->args, "steps", 64);
    double read = figure_of(s->read, s->rounds).mid;
    head_of(s, out);
    fputs(decode ? "  batch context   tokens/s      ms a step (spread)             GB/s  of read\n"
          : offline ? "  requests   requests/s  tokens/s in   out    seconds (spread)\n"
                    : "  length   tokens/s      ms (spread)                     GFLOP/s\n",
          out);
    for (int i = 0; i < s->n; i++) {
        const point *p = &s->points[i];
        figure f = figure_of(p->value, s->rounds);
        if (decode) {
            double rate = bytes_of(s, p, steps) / f.mid;
            fprintf(out, "  %5d %7d %10.1f %10.3f (%.3f..%.3f) %12.2f %8.2f\n", p->batch, p->len,
                    p->batch / f.mid, f.mid * 1e3, f.lo * 1e3, f.hi * 1e3, rate * 1e-9,
                    read > 0 ? rate / read : 0);
        } else if (offline) {
            fprintf(out, "  %8zu %12.2f %12.1f %7.1f %8.3f (%.3f..%.3f)\n", s->n_asks,
                    (double)s->n_asks / f.mid, (double)s->last.in / f.mid,
                    (double)s->last.out / f.mid, f.mid, f.lo, f.hi);
        } else {
            fprintf(out, "  %6d %10.1f %10.3f (%.3f..%.3f) %14.2f\n", p->len, p->len / f.mid,
                    f.mid * 1e3, f.lo * 1e3, f.hi * 1e3, flops_of(s, p->len) / f.mid * 1e-9);
        }
    }
}

/* Microseconds between recorded steps, the middle one; 0: not measured. */
static double middle_gap(const study *s)
{
    const float *us;
    int32_t n = turbod_engine_gaps(s->service.engine, &us);
    double *copy = calloc((size_t)n + 1, sizeof *copy), middle;
    for (int32_t i = 0; copy && i < n; i++)
        copy[i] = (double)us[i];
    middle = copy && n ? cli_median(copy, (size_t)n) : 0;
    free(copy);
    return middle;
}

static void json_points(study *s, FILE *out)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(s->service.engine);
    char machine[200], date[32];
    bool decode = !strcmp(s->what, "decode"), offline = !strcmp(s->what, "offline");
    cli_machine(machine, sizeof machine);
    cli_today(date);
    fprintf(out, "{\"bench\":\"%s\",\"date\":\"%s\",\"machine\":", s->what, date);
    cli_put_json(out, machine, strlen(machine));
    fputs(",\"model\":", out);
    cli_put_json(out, s->service.name, strlen(s->service.name));
    fputs(",\"device\":", out);
    cli_put_json(out, f->device, strlen(f->device));
    const double *load = turbod_engine_metrics(s->service.engine)->load_seconds;
    fprintf(out,
            ",\"weight_bytes\":%llu,\"load_seconds\":%.6f,\"weights_seconds\":%.6f,"
            "\"step_gap_us\":%.3f,\"read_bytes_per_s\":%.6g,\"rounds\":%d,\"points\":[",
            (unsigned long long)f->plan.bytes[TURBOD_MEM_WEIGHTS], f->load_seconds,
            load[TURBOD_LOAD_WEIGHTS], middle_gap(s), figure_of(s->read, s->rounds).mid, s->rounds);
    for (int i = 0; i < s->n; i++) {
        const point *p = &s->points[i];
        figure g = figure_of(p->value, s->rounds);
        fprintf(out, "%s\n{\"seconds\":%.9f,\"least\":%.9f,\"most\":%.9f", i ? "," : "", g.mid,
                g.lo, g.hi);
        if (decode)
            fprintf(out, ",\"batch\":%d,\"context\":%d,\"tokens_per_s\":%.3f,\"bytes_per_s\":%.6g}",
                    p->batch, p->len, p->batch / g.mid,
                    bytes_of(s, p, (int32_t)cli_int(s->args, "steps", 64)) / g.mid);
        else if (offline)
            fprintf(out,
                    ",\"requests\":%zu,\"tokens_in\":%lld,\"tokens_out\":%lld,\"cached\":%lld,"
                    "\"tokens_in_per_s\":%.3f,\"tokens_out_per_s\":%.3f}",
                    s->n_asks, (long long)s->last.in, (long long)s->last.out,
                    (long long)s->last.cached, (double)s->last.in / g.mid,
                    (double)s->last.out / g.mid);
        else
            fprintf(out, ",\"length\":%d,\"tokens_per_s\":%.3f,\"flop_per_s\":%.6g}", p->len,
                    p->len / g.mid, flops_of(s, p->len) / g.mid);
    }
    fputs("]}\n", out);
}

/* Tokens a second: decode by batch, a line a context; prefill by length. */
static void svg_points(study *s, FILE *out)
{
    bool decode = !strcmp(s->what, "decode");
    double x[MOST_POINTS], y[MOST_POINTS];
    cli_series lines[MOST_LIST];
    char names[MOST_LIST][32];
    int n = 0, at = 0;
    for (int i = 0; i < s->n; i++) {
        int32_t len = s->points[i].len;
        bool seen = false;
        for (int k = 0; k < i && decode; k++)
            seen |= s->points[k].len == len;
        if (seen || (!decode && n))
            continue;
        snprintf(names[n], sizeof names[n], "context %d", len);
        lines[n] = (cli_series){decode ? names[n] : "prefill", x + at, y + at, 0};
        for (int k = i; k < s->n; k++) {
            const point *p = &s->points[k];
            if (decode && p->len != len)
                continue;
            x[at] = decode ? p->batch : p->len;
            y[at++] = (decode ? p->batch : p->len) / figure_of(p->value, s->rounds).mid;
            lines[n].n++;
        }
        n++;
    }
    cli_plot plot = {decode ? "Decode" : "Prefill",
                     decode ? "sequences in a step" : "prompt tokens",
                     "tokens/s",
                     lines,
                     n,
                     true};
    cli_svg(out, s->service.name, &plot, 1);
}

static turbo_status report(study *s, turbo_err *err)
{
    const char *json = cli_text(s->args, "json"), *svg = cli_text(s->args, "svg");
    turbo_status st = TURBO_OK;
    cli_out o;
    print_points(s, json && !strcmp(json, "-") ? stderr : stdout);
    if (json) {
        st = cli_out_open(&o, json, err);
        if (!st) {
            json_points(s, o.f);
            st = cli_out_close(&o, err);
        }
    }
    if (!st && svg) {
        st = cli_out_open(&o, svg, err);
        if (!st) {
            svg_points(s, o.f);
            st = cli_out_close(&o, err);
        }
    }
    return st;
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

/* An option of the engine, unless the user gave it. */
static turbo_status want_least(cli_args *a, const char *key, int64_t value, turbo_err *err)
{
    char text[32];
    if (turbod_conf_origin(a->conf, key) != TURBOD_FROM_DEFAULT)
        return TURBO_OK;
    snprintf(text, sizeof text, "%lld", (long long)value);
    return turbod_conf_set(a->conf, key, text, err);
}

static turbo_status open_and_run(study *s, int64_t cache_tokens, int32_t longest, once_fn once,
                                 turbo_err *err)
{
    s->rounds = (int)cli_int(s->args, "rounds", 5);
    turbo_status st = cli_open_model_for(s->args, &s->service, false, cache_tokens, err);
    if (st)
        return st;
    cli_catch_interrupts(); /* while it loads Ctrl-C ends the program at once */
    int32_t session = turbod_engine_facts_of(s->service.engine)->session_len;
    if (longest > session)
        st = turbod_err(err, TURBOD_EUSAGE, "a request of %d tokens; session_len is %d", longest,
                        session);
    count_weights(s);
    if (!st)
        st = run_rounds(s, once, err);
    if (!st)
        st = report(s, err);
    turbod_service_close(&s->service);
    return st;
}

static int run_decode(cli_args *a)
{
    turbo_err err = {{0}};
    int32_t batches[MOST_LIST], lens[MOST_LIST], steps = (int32_t)cli_int(a, "steps", 64);
    int n_batches = 0, n_lens = 0;
    int64_t tokens = 0, most = 0;
    int32_t longest = 0;
    static const char *const dflt[] = {"1,2,4,8,16,32", "128,512"};
    const char *batch = cli_text(a, "batch"), *context = cli_text(a, "context");
    study s = {.args = a, .what = "decode"};
    turbo_status st = cli_number_list(batch ? batch : dflt[0], 1, 1024, batches, MOST_LIST,
                                      &n_batches, "batch", &err);
    if (!st)
        st = cli_number_list(context ? context : dflt[1], 1, CLI_BENCH_MOST_TOKENS, lens, MOST_LIST,
                             &n_lens, "context", &err);
    if (!st && n_batches * n_lens > MOST_POINTS)
        st = turbod_err(&err, TURBOD_EUSAGE, "%d points; at most %d are measured at once",
                        n_batches * n_lens, MOST_POINTS);
    if (!st && !a->conf->enable_prefix_caching)
        st = turbod_err(&err, TURBOD_EUSAGE, "turbo bench decode needs enable_prefix_caching");
    s.points = calloc(MOST_POINTS, sizeof *s.points);
    if (!st && !s.points)
        st = turbod_err(&err, TURBO_ENOMEM, "no memory");
    for (int i = 0; !st && i < n_lens; i++)
        for (int k = 0; k < n_batches; k++) {
            int32_t len = lens[i] + steps + CLI_CROWD_SLACK;
            int64_t need = (int64_t)batches[k] * (len + a->conf->cache_block_seq_len);
            s.points[s.n++] = (point){.batch = batches[k], .len = lens[i]};
            tokens = need > tokens ? need : tokens;
            longest = len > longest ? len : longest;
            most = batches[k] > most ? batches[k] : most;
        }
    if (!st)
        st = want_least(a, "max_batch_size", most > 16 ? most : 16, &err);
    if (!st)
        st =
            open_and_run(&s, tokens + 2 * a->conf->cache_block_seq_len, longest, decode_once, &err);
    free(s.points);
    return st ? cli_fail(st, &err) : 0;
}

static int run_prefill(cli_args *a)
{
    turbo_err err = {{0}};
    int32_t lens[MOST_LIST], longest = 0;
    const char *length = cli_text(a, "length");
    study s = {.args = a, .what = "prefill"};
    turbo_status st = cli_number_list(length ? length : "64,256,512", 1, CLI_BENCH_MOST_TOKENS,
                                      lens, MOST_LIST, &s.n, "length", &err);
    s.points = calloc(MOST_LIST, sizeof *s.points);
    if (!st && !s.points)
        st = turbod_err(&err, TURBO_ENOMEM, "no memory");
    for (int i = 0; !st && i < s.n; i++) {
        s.points[i] = (point){.batch = 1, .len = lens[i]};
        longest = lens[i] + 1 > longest ? lens[i] + 1 : longest;
    }
    if (!st)
        st = open_and_run(&s, 0, longest, prefill_once, &err);
    free(s.points);
    return st ? cli_fail(st, &err) : 0;
}

/* The requests: of a trace, or N alike; the longest of them. */
static turbo_status plan_offline(study *s, int32_t *longest, turbo_err *err)
{
    cli_args *a = s->args;
    cli_trace t = {0};
    const char *path = cli_text(a, "trace"), *format = cli_text(a, "trace-format");
    size_t n = (size_t)cli_int(a, "limit", 64);
    int32_t C = (int32_t)cli_int(a, "context", 0);
    turbo_status st = TURBO_OK;
    if (format && (!path || !cli_trace_format_of(format)))
        st = turbod_err(err, TURBOD_EUSAGE, "--trace FILE --trace-format azure or mooncake");
    if (path && (cli_given(a, "input") || cli_given(a, "output")))
        st = turbod_err(err, TURBOD_EUSAGE, "with --trace the lengths are the trace's");
    if (path && !st)
        st = cli_trace_read(path, format ? cli_trace_format_of(format) : CLI_TRACE_AUTO, n, 1e300,
                            &t, err);
    if (!st && path && t.format == CLI_TRACE_SHAREGPT)
        st = turbod_err(err, TURBOD_EUSAGE,
                        "%s has texts, not lengths; turbo bench serve sends them", path);
    s->n_asks = path ? t.n : n;
    s->asks = st ? NULL : calloc(s->n_asks, sizeof *s->asks);
    if (!st && !s->asks)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for %zu requests", s->n_asks);
    for (size_t i = 0; !st && i < s->n_asks; i++) {
        int32_t in = path ? t.items[i].n_in : (int32_t)cli_int(a, "input", 256);
        int32_t out = path ? t.items[i].n_out : (int32_t)cli_int(a, "output", 64);
        in = in < 1 ? 1 : in;
        out = out < 1 ? 1 : out;
        if (C && (int64_t)in + out > C) { /* as turbo bench serve clips */
            int32_t most = C - in > C / 2 ? C - in : C / 2;
            out = out < most ? out : most;
            in = in < C - out ? in : C - out;
            s->points->batch++; /* how many were clipped */
        }
        s->asks[i] = (cli_ask){in, out, 0};
        *longest = in + out > *longest ? in + out : *longest;
    }
    cli_trace_free(&t);
    return st;
}

static int run_offline(cli_args *a)
{
    turbo_err err = {{0}};
    int32_t longest = 0;
    point one = {0};
    study s = {.args = a, .what = "offline", .points = &one, .n = 1};
    turbo_status st = plan_offline(&s, &longest, &err);
    if (!st && one.batch)
        fprintf(stderr, "CLIPPED to %d tokens of context: %d of %zu requests\n",
                (int)cli_int(a, "context", 0), one.batch, s.n_asks);
    if (!st)
        st = want_least(a, "queue_size", (int64_t)s.n_asks < 65536 ? (int64_t)s.n_asks : 65536,
                        &err);
    if (!st) /* nobody waits for a token */
        st = want_least(a, "max_step_stretch", 1000, &err);
    if (!st)
        st = open_and_run(&s, a->conf->max_batch_size * (longest + a->conf->cache_block_seq_len),
                          longest, offline_once, &err);
    free(s.asks);
    return st ? cli_fail(st, &err) : 0;
}

#define ROUNDS_FLAG                                                                                \
    {                                                                                              \
        "rounds", CLI_INT, "N", "Rounds through all points. Default: 5.", 1, MOST_ROUNDS           \
    }
#define JSON_FLAG                                                                                  \
    {                                                                                              \
        "json", CLI_TEXT, "FILE", "Writes a report; - is standard output.", 0, 0                   \
    }

static const cli_flag decode_flags[] = {
    ROUNDS_FLAG,
    JSON_FLAG,
    {"svg", CLI_TEXT, "FILE", "Draws tokens/s by batch and context.", 0, 0},
    {"batch", CLI_TEXT, "N,N,...", "Sequences in a step. Default: 1,2,4,8,16,32.", 0, 0},
    {"context", CLI_TEXT, "N,N,...", "Tokens before the first step. Default: 128,512.", 0, 0},
    {"steps", CLI_INT, "N", "Steps that are timed. Default: 64.", 4, 65536},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

const cli_cmd cli_bench_decode = {
    .name = "bench decode",
    .words = "MODEL [flags]",
    .summary = "Measures decoding by batch and context, against the memory's bandwidth.",
    .about =
        "Bytes are the weights, read once a step, and each sequence's keys and values. The "
        "bandwidth is that\n"
        "of a plain loop on as many threads, in each round. What fits the CPU's caches exceeds "
        "it.\n",
    .flags = decode_flags,
    .keys = MODEL_KEYS,
    .min_words = 0,
    .max_words = 1,
    .run = run_decode,
};

static const cli_flag prefill_flags[] = {
    ROUNDS_FLAG,
    JSON_FLAG,
    {"svg", CLI_TEXT, "FILE", "Draws tokens/s by length.", 0, 0},
    {"length", CLI_TEXT, "N,N,...", "Prompt lengths. Default: 64,256,512.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

const cli_cmd cli_bench_prefill = {
    .name = "bench prefill",
    .words = "MODEL [flags]",
    .summary = "Measures how fast prompts are computed, by length.",
    .about = "Prompts are random tokens, other ones in each round. FLOP: 2 a weight and token, the "
             "head for the\n"
             "last token only, and causal attention.\n",
    .flags = prefill_flags,
    .keys = MODEL_KEYS,
    .min_words = 0,
    .max_words = 1,
    .run = run_prefill,
};

static const cli_flag offline_flags[] = {
    ROUNDS_FLAG,
    JSON_FLAG,
    {"limit", CLI_INT, "N", "Requests. Default: 64.", 1, 65536},
    {"input", CLI_INT, "TOKENS", "Prompt length. Default: 256.", 1, CLI_BENCH_MOST_TOKENS},
    {"output", CLI_INT, "TOKENS", "Answer length. Default: 64.", 1, CLI_BENCH_MOST_TOKENS},
    {"trace", CLI_TEXT, "FILE", "Lengths from an Azure or Mooncake trace.", 0, 0},
    {"trace-format", CLI_TEXT, "NAME", "azure or mooncake. Default: seen from the file.", 0, 0},
    {"context", CLI_INT, "TOKENS", "Clips requests to this.", 16, CLI_BENCH_MOST_TOKENS},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

const cli_cmd cli_bench_offline = {
    .name = "bench offline",
    .words = "MODEL [flags]",
    .summary = "Measures the throughput of many requests at once, without HTTP.",
    .about = "All requests are queued at once; prompts are random tokens, answers have their full "
             "length.\n"
             "max_step_stretch is 1000 unless you set it.\n",
    .flags = offline_flags,
    .keys = MODEL_KEYS,
    .min_words = 0,
    .max_words = 1,
    .run = run_offline,
};
