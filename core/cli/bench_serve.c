/* core/cli/bench_serve.c: turbo bench serve: from flags and trace to a plan of requests, and from the load
 * to reports. Main thread. Must not know the engine: any server of the OpenAI API is measured the same way. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/checked.h"
#include "util/err.h"

#define DEFAULT_REQUESTS 100
#define MOST_REQUESTS 200000

static const cli_flag flags[] = {
    {"trace", CLI_TEXT, "FILE", "Lengths, and arrival times unless --rate is given, from a file.",
     0, 0},
    {"trace-format", CLI_TEXT, "NAME", "azure, mooncake or sharegpt. Default: seen from the file.",
     0, 0},
    {"speed", CLI_NUM, "X", "Plays the trace X times as fast. Default: 1.", 1e-3, 1e6},
    {"rate", CLI_TEXT, "R",
     "Poisson arrivals, R a second; inf with --concurrency. Default without a trace: 1.", 0, 0},
    {"concurrency", CLI_INT, "N",
     "With --rate inf: N requests at any time, the next when one ends.", 1, 65536},
    {"limit", CLI_INT, "N",
     "Requests at most. Default: 100 without a trace or --seconds, else all.", 1, MOST_REQUESTS},
    {"seconds", CLI_NUM, "S", "Sends requests for S seconds.", 1e-3, 1e6},
    {"input", CLI_INT, "TOKENS", "Prompt length without a trace. Default: 256.", 1,
     CLI_BENCH_MOST_TOKENS},
    {"output", CLI_INT, "TOKENS", "Answer length without a trace. Default: 64.", 1,
     CLI_BENCH_MOST_TOKENS},
    {"context", CLI_INT, "TOKENS", "Clips requests to this. Default: what the server says.", 16,
     CLI_BENCH_MOST_TOKENS},
    {"endpoint", CLI_TEXT, "NAME", "completions or chat. Default: completions.", 0, 0},
    {"model", CLI_TEXT, "NAME", "Model to ask for. Default: the first of GET /v1/models.", 0, 0},
    {"api-key-file", CLI_TEXT, "FILE", "File whose first line is the key.", 0, 0},
    {"ignore-eos", CLI_SWITCH, "",
     "Sends \"ignore_eos\": answers of the full length, where the server knows it.", 0, 0},
    {"continuous-usage", CLI_SWITCH, "",
     "Sends \"continuous_usage_stats\", which turbod, vLLM and SGLang know: the gap between two "
     "events is "
     "then shared by the tokens in it.",
     0, 0},
    {"temperature", CLI_NUM, "T", "Default: 0, greedy.", 0, 2},
    {"timeout", CLI_NUM, "S", "Gives a request up after S seconds without a byte. Default: 120.",
     0.05, 86400},
    {"seed", CLI_INT, "N", "Of arrivals and prompts. Default: 1.", 0, 9007199254740992},
    {"slo", CLI_TEXT, "ttft=MS,itl=MS,e2e=MS", "Bounds of a good request; any of the three.", 0, 0},
    {"json", CLI_TEXT, "FILE", "Writes a report with every request; - is standard output.", 0, 0},
    {"svg", CLI_TEXT, "FILE", "Draws TTFT, ITL and the course of the run.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

typedef struct job {
    cli_args *args;
    cli_target target;
    cli_prompts prompts;
    cli_trace trace;
    cli_load load;
    cli_about about;
    cli_slo slo;
    char model[256], arrivals[96];
    double rate, seconds; /* rate 0: the trace's times */
    bool chat;
    turbod_buf text; /* of the prompt that is being made */
} job;

/* ---- flags ----------------------------------------------------------------------------------------------- */

static turbo_status read_arrivals(job *j, turbo_err *err)
{
    const cli_args *a = j->args;
    const char *rate = cli_text(a, "rate"), *trace = cli_text(a, "trace");
    int32_t n = (int32_t)cli_int(a, "concurrency", 0);
    if (rate && !strcmp(rate, "inf")) {
        if (!n)
            return turbod_err(err, TURBOD_EUSAGE, "--rate inf needs --concurrency N");
        j->load.concurrency = n;
        snprintf(j->arrivals, sizeof j->arrivals, "closed loop, %d at any time", n);
    } else if (rate || !trace) {
        char *end = NULL;
        j->rate = rate ? strtod(rate, &end) : 1;
        if (rate && (*end || !turbod_d_in(j->rate, 1e-6, 1e6)))
            return turbod_err(err, TURBOD_EUSAGE,
                              "--rate is \"%.40s\"; requests a second or inf are needed", rate);
        snprintf(j->arrivals, sizeof j->arrivals, "Poisson, %g requests/s", j->rate);
    } else {
        snprintf(j->arrivals, sizeof j->arrivals, "the trace's, %gx", cli_num(a, "speed", 1));
    }
    if (n && !j->load.concurrency)
        return turbod_err(err, TURBOD_EUSAGE, "--concurrency goes with --rate inf");
    if (cli_given(a, "speed") && (!trace || rate))
        return turbod_err(err, TURBOD_EUSAGE,
                          "--speed plays a trace's own times; it goes with --trace without --rate");
    if (trace && (cli_given(a, "input") || cli_given(a, "output")))
        return turbod_err(err, TURBOD_EUSAGE, "with --trace the lengths are the trace's");
    if (!trace && cli_given(a, "trace-format"))
        return turbod_err(err, TURBOD_EUSAGE, "--trace-format goes with --trace");
    return TURBO_OK;
}

static turbo_status read_flags(job *j, turbo_err *err)
{
    const cli_args *a = j->args;
    const char *endpoint = cli_text(a, "endpoint"), *slo = cli_text(a, "slo");
    const char *format = cli_text(a, "trace-format"), *model = cli_text(a, "model");
    if (endpoint && strcmp(endpoint, "completions") && strcmp(endpoint, "chat"))
        return turbod_err(err, TURBOD_EUSAGE, "--endpoint is \"%.40s\"; completions or chat",
                          endpoint);
    if (format && !cli_trace_format_of(format))
        return turbod_err(err, TURBOD_EUSAGE,
                          "--trace-format is \"%.40s\"; azure, mooncake or sharegpt", format);
    if (model && strlen(model) >= sizeof j->model)
        return turbod_err(err, TURBOD_EUSAGE, "--model has at most %zu bytes", sizeof j->model - 1);
    if (model)
        snprintf(j->model, sizeof j->model, "%s", model);
    j->chat = endpoint && !strcmp(endpoint, "chat");
    j->seconds = cli_num(a, "seconds", HUGE_VAL);
    turbo_status st = slo ? cli_slo_parse(slo, &j->slo, err) : TURBO_OK;
    return st ? st : read_arrivals(j, err);
}

/* ---- the plan ----------------------------------------------------------------------------------------------- */

static turbo_status read_trace(job *j, turbo_err *err)
{
    const cli_args *a = j->args;
    const char *path = cli_text(a, "trace"), *format = cli_text(a, "trace-format");
    if (!path)
        return TURBO_OK;
    bool own_times = !j->rate && !j->load.concurrency;
    turbo_status st =
        cli_trace_read(path, format ? cli_trace_format_of(format) : CLI_TRACE_AUTO,
                       (size_t)cli_int(a, "limit", MOST_REQUESTS),
                       own_times ? j->seconds * cli_num(a, "speed", 1) : HUGE_VAL, &j->trace, err);
    if (!st && own_times && j->trace.format == CLI_TRACE_SHAREGPT)
        st = turbod_err(err, TURBOD_EUSAGE,
                        "%s has no times; give --rate R, or --rate inf --concurrency N", path);
    return st;
}

/* Prompt and answer within the context: the answer keeps up to half of it, the prompt gets the rest. */
static void clip(job *j, cli_shot *s)
{
    int32_t C = j->about.context, in = s->n_in, out = s->n_out;
    if (C && (int64_t)in + out > C) {
        int32_t most = C - in > C / 2 ? C - in : C / 2;
        out = out < most ? out : most;
        in = in < C - out ? in : C - out;
    }
    j->about.clipped_in += in < s->n_in;
    j->about.clipped_out += out < s->n_out;
    j->about.lost_in += s->n_in - in;
    j->about.lost_out += s->n_out - out;
    s->n_in = in;
    s->n_out = out;
}

static int32_t tokens_of(job *j, const char *text)
{
    size_t n = strlen(text);
    int32_t count = cli_prompts_count(&j->prompts, text, n);
    if (count >= 0)
        return count;
    j->about.estimated = true;
    return (int32_t)(n / 4 < INT32_MAX ? n / 4 : INT32_MAX);
}

/* Lengths of request i; false: it cannot be sent. */
static bool plan_one(job *j, size_t i, cli_shot *s)
{
    const cli_args *a = j->args;
    s->item = i;
    if (!j->trace.n) {
        s->n_in = (int32_t)cli_int(a, "input", 256);
        s->n_out = (int32_t)cli_int(a, "output", 64);
    } else {
        cli_trace_item *item = &j->trace.items[i];
        if (item->prompt) {
            item->n_in = tokens_of(j, item->prompt);
            item->n_out = tokens_of(j, item->answer);
        }
        s->n_in = item->n_in;
        s->n_out = item->n_out;
        s->at = item->at / cli_num(a, "speed", 1);
    }
    s->n_out = s->n_out > 0 ? s->n_out : 1;
    int32_t whole = s->n_in;
    clip(j, s);
    if (j->trace.n && j->trace.items[i].prompt && s->n_in < whole) {
        j->about.clipped_in--;
        j->about.lost_in -= whole - s->n_in;
        j->about.dropped++;
        return false;
    }
    return true;
}

static turbo_status plan(job *j, turbo_err *err)
{
    const cli_args *a = j->args;
    uint64_t state = j->about.seed;
    double at = 0;
    size_t most = j->trace.n ? j->trace.n : MOST_REQUESTS;
    size_t limit =
        (size_t)cli_int(a, "limit",
                        j->trace.n || cli_given(a, "seconds") ? MOST_REQUESTS : DEFAULT_REQUESTS);
    size_t n = limit < most ? limit : most;
    j->load.shots = calloc(n, sizeof *j->load.shots);
    if (!j->load.shots)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu requests", n);
    for (size_t i = 0; i < n && !cli_interrupt_waits(); i++) {
        cli_shot *s = &j->load.shots[j->load.n];
        *s = (cli_shot){0};
        if (!plan_one(j, i, s))
            continue;
        if (j->rate) {
            at += cli_random_exp(&state, 1 / j->rate);
            s->at = at;
        }
        if (!j->load.concurrency && s->at >= j->seconds)
            break;
        j->load.n++;
    }
    return j->load.n ? TURBO_OK : turbod_err(err, TURBOD_EUSAGE, "no request is left to send");
}

static void body(void *ctx, size_t i, turbod_buf *out)
{
    job *j = ctx;
    const cli_shot *s = &j->load.shots[i];
    const cli_trace_item *item = j->trace.n ? &j->trace.items[s->item] : NULL;
    turbod_buf_clear(&j->text);
    if (item && item->prompt)
        turbod_buf_str(&j->text, item->prompt);
    else
        cli_prompts_text(&j->prompts, &j->text, s->n_in,
                         item ? j->trace.blocks + item->blocks : NULL, item ? item->n_blocks : 0,
                         cli_mix(j->about.seed + 1) + s->item * 0x9E3779B97F4A7C15u);
    cli_prompts_body(&j->prompts, out, j->text.ptr, j->text.len, s->n_out, true);
    out->failed |= j->text.failed;
}

/* ---- the run -------------------------------------------------------------------------------------------------- */

static turbo_status prepare(job *j, turbo_err *err)
{
    const cli_args *a = j->args;
    const char *path = cli_text(a, "trace");
    turbo_status st = read_trace(j, err);
    if (!st)
        st = cli_target_open(&j->target, a->words[0], cli_text(a, "api-key-file"), err);
    if (st)
        return st;
    j->prompts = (cli_prompts){
        .target = &j->target,
        .chat = j->chat,
        .ignore_eos = cli_given(a, "ignore-eos"),
        .continuous_usage = cli_given(a, "continuous-usage"),
        .timeout = cli_num(a, "timeout", 120),
        .temperature = cli_num(a, "temperature", 0),
    };
    st = cli_prompts_learn(&j->prompts, j->model, j->trace.format != CLI_TRACE_SHAREGPT, err);
    j->about = (cli_about){
        .url = a->words[0],
        .model = j->model,
        .endpoint = j->chat ? "chat" : "completions",
        .trace = path,
        .format = path ? cli_trace_format_name(j->trace.format) : NULL,
        .arrivals = j->arrivals,
        .rate = j->rate,
        .speed = cli_num(a, "speed", 1),
        .concurrency = j->load.concurrency,
        .context = (int32_t)cli_int(a, "context", j->prompts.context),
        .ignore_eos = j->prompts.ignore_eos,
        .continuous_usage = j->prompts.continuous_usage,
        .seed = (uint64_t)cli_int(a, "seed", 1),
    };
    if (!st && j->about.context && j->about.context <= j->prompts.overhead + 1)
        st = turbod_err(err, TURBOD_EUSAGE,
                        "--context %d is not more than the %d tokens around a text",
                        j->about.context, j->prompts.overhead);
    return st ? st : plan(j, err);
}

static turbo_status write_reports(job *j, cli_report *r, turbo_err *err)
{
    const char *json = cli_text(j->args, "json"), *svg = cli_text(j->args, "svg");
    cli_out o;
    turbo_status st = TURBO_OK;
    cli_report_print(r, &j->about, json && !strcmp(json, "-") ? stderr : stdout);
    if (json) {
        st = cli_out_open(&o, json, err);
        if (!st) {
            cli_report_json(r, &j->about, o.f);
            st = cli_out_close(&o, err);
        }
    }
    if (!st && svg) {
        st = cli_out_open(&o, svg, err);
        if (!st) {
            cli_report_svg(r, &j->about, o.f);
            st = cli_out_close(&o, err);
        }
    }
    return st;
}

static turbo_status measure(job *j, turbo_err *err)
{
    cli_report r;
    j->load.target = &j->target;
    j->load.path = j->chat ? "/v1/chat/completions" : "/v1/completions";
    j->load.timeout = j->prompts.timeout;
    j->load.seconds = j->load.concurrency ? j->seconds : HUGE_VAL;
    j->load.body = body;
    j->load.ctx = j;
    j->load.progress = isatty(STDERR_FILENO);
    turbo_status st = cli_load_run(&j->load, err);
    if (st)
        return st;
    cli_report_make(&r, &j->load, &j->slo);
    st = write_reports(j, &r, err);
    if (!st && j->load.gone)
        st = turbod_err(err, TURBO_EIO, "the server is gone: %s", j->load.message);
    else if (!st && j->load.interrupted)
        st = turbod_err(err, TURBO_ECANCELLED, "interrupted; %zu of %zu requests had been sent",
                        r.sent, j->load.n);
    else if (!st && !r.kinds[CLI_SHOT_OK])
        st = turbod_err(err, TURBO_EBUSY, "no request succeeded: %s", j->load.message);
    cli_report_free(&r);
    return st;
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    job j = {.args = a};
    turbod_buf_init(&j.text, (size_t)1 << 30);
    cli_catch_interrupts();
    turbo_status st = read_flags(&j, &err);
    if (!st)
        st = prepare(&j, &err);
    if (!st)
        st = measure(&j, &err);
    cli_load_free(&j.load);
    free(j.load.shots);
    cli_trace_free(&j.trace);
    turbod_buf_free(&j.text);
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_bench_serve = {
    .name = "bench serve",
    .words = "URL [flags]",
    .summary = "Measures a running server: latencies and throughput under load.",
    .about =
        "URL is that of any server of the OpenAI API, http://127.0.0.1:23333 say. Requests leave "
        "at "
        "their\n"
        "times whatever becomes of others (open loop), or N are kept running (--rate inf "
        "--concurrency N).\n"
        "Prompts are random words of a known number of tokens: /tokenize is asked where there is "
        "one, else\n"
        "usage. A Mooncake trace's hash_ids become shared text; a ShareGPT file's texts are sent "
        "as they are.\n"
        "Times count from when a request should have left. TTFT: to the first text. ITL: between "
        "events with\n"
        "text; an event may hold several tokens. Tokens are those of usage. Ctrl-C ends the run "
        "and\n"
        "prints what there is; the server's requests end with it.\n",
    .flags = flags,
    .keys = "",
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
