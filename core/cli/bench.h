/* core/cli/bench.h: what the files of `turbo bench` share. Main thread, except where stated.
 *
 * serve:  bench_serve.c (command) -> bench_trace.c (who asks when, for how much), bench_prompt.c (texts
 *         of exact length), bench_load.c (the event loop) -> bench_wire.c (HTTP and SSE, byte by byte),
 *         bench_event.c (what an event says); bench_target.c (the server's address, single questions);
 *         then bench_report.c and bench_svg.c.
 * offline, decode, prefill: bench_model.c, on an engine in this process.
 * Times are seconds (double, CLOCK_MONOTONIC) inside and milliseconds where a name says so. */
#ifndef TURBOD_CLI_BENCH_H
#define TURBOD_CLI_BENCH_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

#include "turbo/plugin.h"
#include "util/buf.h"

#define CLI_BENCH_MOST_TOKENS 16777216

/* ---- bench_stat.c ------------------------------------------------------------------------------------ */

typedef struct cli_samples { /* grows; add fails silently into `lost`, which the report tells */
    double *v;
    size_t n, cap, lost;
    bool sorted;
} cli_samples;

void cli_samples_add(cli_samples *s, double v);
void cli_samples_free(cli_samples *s);
/* Linear between the two nearest ranks: h = (n - 1) q, as numpy's default. 0 without samples. */
double cli_samples_quantile(cli_samples *s, double q);
double cli_samples_mean(const cli_samples *s);
/* of a short list; reorders v */
double cli_median(double *v, size_t n);

/* splitmix64 (Steele, Lea, Flood 2014): the same numbers everywhere for one seed. */
uint64_t cli_random(uint64_t *state);
uint64_t cli_mix(uint64_t x); /* its output function: a hash of x */
double cli_random_exp(uint64_t *state, double mean); /* exponential: gaps of a Poisson process */
double cli_now(void);

/* ---- bench_trace.c ------------------------------------------------------------------------------------- */

typedef enum {
    CLI_TRACE_AUTO,
    CLI_TRACE_AZURE,
    CLI_TRACE_MOONCAKE,
    CLI_TRACE_SHAREGPT
} cli_trace_format;

typedef struct cli_trace_item {
    double at; /* seconds after the first request; 0 in ShareGPT */
    int32_t n_in, n_out; /* tokens; 0 in ShareGPT, whose texts are to be counted */
    size_t blocks, n_blocks; /* range of cli_trace.blocks: Mooncake's hash_ids, 512 tokens each */
    char *prompt, *answer; /* ShareGPT: owned by the trace */
} cli_trace_item;

typedef struct cli_trace {
    cli_trace_format format;
    cli_trace_item *items; /* by time */
    size_t n, cap;
    int64_t *blocks;
    size_t n_blocks, cap_blocks;
    size_t skipped; /* ShareGPT: entries that do not begin with a question and an answer */
} cli_trace;

#define CLI_TRACE_BLOCK 512 /* tokens a Mooncake block, FAST25 release README */

/* "azure" ...; AUTO for anything else. */
cli_trace_format cli_trace_format_of(const char *name);
const char *cli_trace_format_name(cli_trace_format f);
/* Reads the first `limit` requests that come before `seconds` of the trace's own time. Errors name
 * file:line. ENOENT, EIO, EDATA, ELIMIT, ENOMEM. Free in any case. */
turbo_status cli_trace_read(const char *path, cli_trace_format format, size_t limit, double seconds,
                            cli_trace *out, turbo_err *err);
void cli_trace_free(cli_trace *t);

/* ---- bench_wire.c -------------------------------------------------------------------------------------- */

typedef void (*cli_bytes_fn)(void *ctx, const char *p, size_t n);

typedef struct cli_http { /* one answer as it comes; zeroed: at its begin */
    int state, status;
    bool chunked, has_length, stream; /* stream: text/event-stream */
    uint64_t left; /* bytes of the body or chunk that are to come */
    char line[512]; /* of the head; longer lines are cut, none we read is */
    size_t n_line, n_head;
} cli_http;

/* Bytes as they come, cut anywhere; the body goes to sink. NULL, or what is wrong with them. */
const char *cli_http_feed(cli_http *h, const char *p, size_t n, cli_bytes_fn sink, void *ctx);
bool cli_http_whole(const cli_http *h); /* the answer is complete */
/* The peer closed: does that complete the answer? */
bool cli_http_closed(const cli_http *h);

typedef struct cli_sse {
    turbod_buf line, data; /* initialised with their maxima by the owner */
    bool after_cr, has_data;
} cli_sse;

void cli_sse_init(cli_sse *s);
void cli_sse_free(cli_sse *s);
/* Calls event with the data of each complete event; comments and other fields are passed over.
 * False: an event is longer than a megabyte. */
bool cli_sse_feed(cli_sse *s, const char *p, size_t n, cli_bytes_fn event, void *ctx);

/* ---- bench_event.c ------------------------------------------------------------------------------------- */

typedef struct cli_event {
    bool text; /* carries text of the answer, or of its reasoning or tool calls */
    bool done; /* [DONE] */
    bool finished; /* carries a finish_reason */
    bool length; /* and it is "length" */
    bool error, usage;
    int32_t so_far; /* tokens of the answer up to here, of a chunk with text and usage; else 0 */
    int32_t prompt, completion, cached; /* with usage; cached 0 when not told */
    char message[160]; /* with error */
} cli_event;

/* What a chunk of /v1/completions or /v1/chat/completions says. False: it is no JSON object. */
bool cli_event_read(const char *data, size_t n, cli_event *e);

/* ---- bench_target.c ------------------------------------------------------------------------------------- */

typedef struct cli_target {
    char host[256], prefix[256]; /* prefix: path before /v1, "" mostly */
    char auth[640]; /* header line with \r\n, or "" */
    struct sockaddr_storage addr;
    socklen_t addr_len;
} cli_target;

/* "http://host:port[/prefix][/v1]"; key_file: NULL, or a file whose first line is the key. Finds the
 * address that answers a connect. EUSAGE for other URLs, EIO when nobody listens. */
turbo_status cli_target_open(cli_target *t, const char *url, const char *key_file, turbo_err *err);
/* Request line and headers of a request with n bytes of body. */
void cli_target_head(const cli_target *t, turbod_buf *out, const char *method, const char *path,
                     size_t n);
/* One question, one answer. EIO when there is none within `seconds`; any status is an answer. */
turbo_status cli_target_ask(const cli_target *t, const char *method, const char *path,
                            const turbod_buf *body, double seconds, int *status, turbod_buf *reply,
                            turbo_err *err);

/* ---- bench_prompt.c -------------------------------------------------------------------------------------- */

#define CLI_MAX_WORDS 256

typedef struct cli_prompts {
    const cli_target *target;
    const char *model;
    bool chat, ignore_eos, continuous_usage, tokenize; /* tokenize: the server has /tokenize */
    int tokenize_field; /* which name it gives the text */
    double timeout, temperature; /* temperature < 0: not sent */
    const char *words[CLI_MAX_WORDS]; /* each one token behind others */
    int n_words;
    int32_t overhead; /* tokens of a prompt beside its words: bos, first word, chat template */
    int32_t context; /* of the server, 0 when it does not tell */
    int questions; /* asked to find this out */
} cli_prompts;

/* Asks the server for its model (when *model is empty), context, and what a token is. */
turbo_status cli_prompts_learn(cli_prompts *p, char model[256], bool words, turbo_err *err);
/* Tokens of a text, from /tokenize, or -1. */
int32_t cli_prompts_count(cli_prompts *p, const char *text, size_t n);
/* Text of n_in tokens as the server counts them: from the trace's blocks, else from the seed. */
void cli_prompts_text(const cli_prompts *p, turbod_buf *out, int32_t n_in, const int64_t *blocks,
                      size_t n_blocks, uint64_t seed);
/* The body of a streamed request. */
void cli_prompts_body(const cli_prompts *p, turbod_buf *out, const char *text, size_t n,
                      int32_t max_tokens, bool stream);

/* ---- bench_load.c ---------------------------------------------------------------------------------------- */

typedef enum {
    CLI_SHOT_UNSENT,
    CLI_SHOT_OK,
    CLI_SHOT_CONNECT, /* no connection */
    CLI_SHOT_STATUS, /* not 200 */
    CLI_SHOT_ERROR, /* an error event in the stream */
    CLI_SHOT_CUT, /* closed before the end of the answer */
    CLI_SHOT_PROTOCOL, /* no HTTP, no event stream, no JSON */
    CLI_SHOT_TIMEOUT, /* nothing came for --timeout */
    CLI_SHOT_CANCELLED, /* Ctrl-C, or the run ended */
    CLI_SHOT_KINDS
} cli_outcome;

const char *cli_outcome_name(cli_outcome o);

typedef struct cli_shot { /* one request: the plan, then what came of it. Times after the start. */
    double at; /* when to send; closed loop: ignored */
    int32_t n_in, n_out; /* tokens asked for */
    size_t item; /* of the trace */
    cli_outcome outcome;
    int status; /* HTTP */
    bool usage, finished, length;
    double sent, first, last, end; /* first: first text; 0: never */
    double worst_gap;
    int32_t events, prompt, completion, cached;
    int32_t so_far; /* tokens up to the last event with text, where the server counts them */
} cli_shot;

typedef struct cli_load {
    const cli_target *target;
    const char *path;
    cli_shot *shots;
    size_t n;
    int32_t concurrency; /* closed loop; 0: open, by shots[].at */
    double timeout, seconds; /* seconds: no new request afterwards */
    void (*body)(void *ctx, size_t i, turbod_buf *out);
    void *ctx;
    bool progress;
    /* results */
    cli_samples gap; /* seconds between events with text of one answer */
    size_t gap_zero; /* of them zero: the events came in one read */
    cli_samples
        itl; /* of each token: its share of the gap, where the server counts tokens; else as gap */
    bool counted; /* it does */
    cli_samples late; /* send after plan, open loop */
    cli_samples pass; /* one turn of the event loop */
    double wall, cpu; /* of this thread while the load ran */
    uint64_t bytes;
    bool interrupted, gone; /* gone: nobody answers connects any more */
    char message[256]; /* the first complaint of the server or network */
} cli_load;

/* Runs until every shot has an outcome. */
turbo_status cli_load_run(cli_load *l, turbo_err *err);
void cli_load_free(cli_load *l); /* the samples */

/* ---- bench_report.c, bench_svg.c ------------------------------------------------------------------------- */

typedef struct cli_slo {
    double ttft, itl, e2e; /* seconds; 0: not asked for. itl: mean gap of an answer's tokens */
} cli_slo;

typedef struct cli_report {
    cli_load *load; /* lent */
    cli_samples ttft, e2e, tpot; /* ttft: of answers with text; tpot: of those of several tokens */
    size_t kinds[CLI_SHOT_KINDS], sent, good, no_usage, wrong_in, short_out, events;
    int64_t in, out, cached; /* tokens of the answers that came whole */
    double span; /* first send to last end */
    cli_slo slo;
} cli_report;

typedef struct cli_about { /* what the run was: for table and JSON */
    const char *url, *model, *endpoint, *trace, *arrivals;
    const char *format;
    double rate, speed;
    int32_t concurrency, context;
    bool ignore_eos, continuous_usage;
    uint64_t seed;
    size_t clipped_in, clipped_out;
    int64_t lost_in, lost_out; /* tokens that clipping took */
    size_t dropped; /* texts that do not fit and cannot be shortened */
    bool estimated; /* ShareGPT without /tokenize: tokens are a quarter of the bytes */
} cli_about;

void cli_report_make(cli_report *r, cli_load *l, const cli_slo *slo);
void cli_report_free(cli_report *r);
void cli_report_print(cli_report *r, const cli_about *a, FILE *out);
void cli_report_json(cli_report *r, const cli_about *a, FILE *out);
/* Opens path ("-": standard output), writes, closes; says what went wrong. */
typedef struct cli_out {
    FILE *f;
    const char *path;
} cli_out;
turbo_status cli_out_open(cli_out *o, const char *path, turbo_err *err);
turbo_status cli_out_close(cli_out *o, turbo_err *err);

typedef struct cli_series {
    const char *name;
    const double *x, *y;
    size_t n;
} cli_series;
typedef struct cli_plot {
    const char *title, *x_name, *y_name;
    const cli_series *series;
    int n_series;
    bool log_x;
} cli_plot;
/* Plots below each other in one SVG document. */
void cli_svg(FILE *out, const char *title, const cli_plot *plots, int n);
void cli_report_svg(cli_report *r, const cli_about *a, FILE *out);

/* ---- bench_engine.c: many requests to the engine of this process ------------------------------------------ */

struct turbod_service;
typedef struct cli_ask {
    int32_t n_in, n_out;
    uint64_t seed; /* of the prompt's random ids */
} cli_ask;

typedef struct cli_crowd { /* what came of the requests of one run */
    double begin, end; /* submission of the first, last event */
    double window; /* seconds in which all of them were sampling */
    int32_t steps; /* of one request in that window */
    double prompt_ms; /* of the first request */
    int64_t in, out, cached;
} cli_crowd;

/* Submits all at once, greedy, end tokens ignored; waits for all. ECANCELLED after Ctrl-C. */
turbo_status cli_crowd_run(struct turbod_service *s, const cli_ask *asks, size_t n, cli_crowd *out,
                           turbo_err *err);
#define CLI_CROWD_SLACK 32 /* tokens more than the steps: a large batch needs several steps to start in */
/* Decodes `steps` steps of `batch` prompts of `context` random tokens, all at once: the prompts are computed
 * first, unless an earlier run with this seed left them in the prefix cache. ELIMIT: they did not all fit. */
turbo_status cli_crowd_decode(struct turbod_service *s, int32_t batch, int32_t context,
                              int32_t steps, uint64_t seed, cli_crowd *out, turbo_err *err);
/* Bytes a second that all threads together read from memory, by a plain loop. 0: no memory. */
double cli_read_rate(int threads);

/* ---- bench.c ---------------------------------------------------------------------------------------------- */

/* "1,8,64": ascending or not, each within lo..hi. EUSAGE. */
turbo_status cli_number_list(const char *text, int32_t lo, int32_t hi, int32_t *out, int max,
                             int *n, const char *flag, turbo_err *err);
/* "ttft=500,itl=50,e2e=5000" in ms. */
turbo_status cli_slo_parse(const char *text, cli_slo *out, turbo_err *err);
/* "AMD EPYC, 2 CPUs"; for reports. */
void cli_machine(char *out, size_t size);
void cli_today(char out[32]); /* 2026-01-31T12:00:00Z */

#endif
