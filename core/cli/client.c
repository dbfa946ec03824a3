/* core/cli/client.c: turbo client: the chat loop over HTTP, to turbod or any server that speaks the
 * same API. Main thread. Must not know the engine. */
#include <string.h>

#include "cli/remote.h"
#include "util/err.h"
#include "util/json.h"

#define REPLY_MAX ((size_t)64 << 20)

static const cli_flag flags[] = {
    {"once", CLI_MULTI, "TEXT", "Asks this and leaves; may be given several times: one dialogue.",
     0, 0},
    {"system", CLI_TEXT, "TEXT", "System message at the start.", 0, 0},
    {"model", CLI_TEXT, "NAME", "Model to ask for. Default: the first of GET /v1/models.", 0, 0},
    {"api-key", CLI_TEXT, "KEY", "Key of the server. Default: $TURBO_API_KEY.", 0, 0},
    {"max-tokens", CLI_INT, "N", "Longest answer.", 1, 16777216},
    {"temperature", CLI_NUM, "T", "0 is greedy.", 0, 2},
    {"top-p", CLI_NUM, "P", "Nucleus sampling.", 1e-6, 1},
    {"top-k", CLI_INT, "K", "The K likeliest tokens only.", 0, 2147483647},
    {"seed", CLI_INT, "N", "Makes answers repeatable.", 0, 9007199254740992},
    {"policy", CLI_TEXT, "NAME", "Sampling policy of the server.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

typedef struct remote {
    cli_args *args;
    cli_remote to;
    char model[256];
    turbod_buf line; /* of the event stream that is being received */
    turbod_buf *answer;
    bool interrupted, failed;
    turbo_err err;
    double rate;
    int32_t n_tokens;
} remote;

/* ---- what comes ---------------------------------------------------------------------------------- */

static void take_error(remote *r, const cJSON *e)
{
    const cJSON *m = turbod_json_get(e, "message");
    turbod_err(&r->err, TURBO_EBUSY, "server: %s",
               cJSON_IsString(m) ? m->valuestring : "an error without a message");
    r->failed = true;
}

static void take_chunk(remote *r, const cJSON *j)
{
    const cJSON *error = turbod_json_get(j, "error"), *usage = turbod_json_get(j, "usage");
    const cJSON *timings = turbod_json_get(j, "timings");
    const cJSON *choice = cJSON_GetArrayItem(turbod_json_get(j, "choices"), 0);
    const cJSON *text = turbod_json_get(turbod_json_get(choice, "delta"), "content");
    int64_t n;
    if (error) {
        take_error(r, error);
        return;
    }
    if (cJSON_IsString(text)) {
        fputs(text->valuestring, stdout);
        fflush(stdout);
        turbod_buf_str(r->answer, text->valuestring);
    }
    if (usage && turbod_json_int(turbod_json_get(usage, "completion_tokens"), 0, INT32_MAX, &n))
        r->n_tokens = (int32_t)n;
    if (timings)
        turbod_json_num(turbod_json_get(timings, "predicted_per_second"), 0, 1e12, &r->rate);
}

/* One line of the stream: "data: {...}", "data: [DONE]", ": ping", or empty. */
static void take_line(remote *r)
{
    const char *p = r->line.ptr;
    cJSON *j = NULL;
    turbo_err err;
    size_t n = r->line.len;
    if (n && p[n - 1] == '\r')
        n--;
    if (n < 5 || memcmp(p, "data:", 5))
        return;
    p += 5;
    n -= 5;
    while (n && *p == ' ') {
        p++;
        n--;
    }
    if (n == 6 && !memcmp(p, "[DONE]", 6))
        return;
    if (turbod_json_parse(p, n, &turbod_json_request, &j, &err)) {
        turbod_err(&r->err, TURBO_EDATA, "the server sent an event that is no JSON: %s", err.text);
        r->failed = true;
        return;
    }
    take_chunk(r, j);
    cJSON_Delete(j);
}

static size_t on_body(char *data, size_t one, size_t n, void *ctx)
{
    remote *r = ctx;
    (void)one; /* always 1 */
    long status = 0;
    curl_easy_getinfo(r->to.curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        return turbod_buf_add(&r->to.body, data, n) ? n : 0;
    for (size_t i = 0; i < n; i++) {
        if (data[i] == '\n') {
            turbod_buf_str(&r->line, "");
            take_line(r);
            turbod_buf_clear(&r->line);
        } else if (!turbod_buf_add(&r->line, data + i, 1)) {
            return 0;
        }
    }
    return r->failed ? 0 : n;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    remote *r = ctx;
    (void)a, (void)b, (void)c, (void)d;
    r->interrupted = r->interrupted || cli_interrupted();
    return r->interrupted;
}

/* ---- what goes ----------------------------------------------------------------------------------- */

/* One question and the stream of its answer. */
static turbo_status perform(remote *r, const char *path, const char *body, turbo_err *err)
{
    long status = 0;
    cli_remote_prepare(&r->to, path, body);
    curl_easy_setopt(r->to.curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(r->to.curl, CURLOPT_WRITEDATA, (void *)r);
    curl_easy_setopt(r->to.curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(r->to.curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(r->to.curl, CURLOPT_XFERINFODATA, (void *)r);
    r->interrupted = r->failed = false;
    r->err.text[0] = '\0';
    turbod_buf_clear(&r->line);
    turbo_status st = cli_remote_perform(&r->to, &status, err);
    if (r->interrupted)
        return turbod_err(err, TURBO_ECANCELLED, "stopped");
    if (r->failed) {
        *err = r->err;
        return TURBO_EBUSY;
    }
    return st || status == 200 ? st : cli_remote_refused(&r->to, status, err);
}

static void put_field(turbod_buf *b, const cli_args *a, const char *flag, const char *key)
{
    const char *v = cli_text(a, flag);
    if (v)
        turbod_buf_printf(b, ",\"%s\":%s", key, v + (*v == '+'));
}

static void put_body(remote *r, const turbod_message *msgs, size_t n, uint64_t round, turbod_buf *b)
{
    const char *policy = cli_text(r->args, "policy");
    turbod_buf_str(b, "{\"model\":\"");
    turbod_buf_json(b, r->model, strlen(r->model));
    turbod_buf_str(b,
                   "\",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"messages\":[");
    for (size_t i = 0; i < n; i++) {
        turbod_buf_printf(b, "%s{\"role\":\"%s\",\"content\":\"", i ? "," : "", msgs[i].role);
        turbod_buf_json(b, msgs[i].content, msgs[i].content_len);
        turbod_buf_str(b, "\"}");
    }
    turbod_buf_str(b, "]");
    put_field(b, r->args, "max-tokens", "max_tokens");
    put_field(b, r->args, "temperature", "temperature");
    put_field(b, r->args, "top-p", "top_p");
    put_field(b, r->args, "top-k", "top_k");
    if (cli_given(r->args, "seed")) /* another one a round, so that /regen says something else */
        turbod_buf_printf(b, ",\"seed\":%lld",
                          (long long)(cli_int(r->args, "seed", 0) + (int64_t)round));
    if (policy) {
        turbod_buf_str(b, ",\"policy\":\"");
        turbod_buf_json(b, policy, strlen(policy));
        turbod_buf_str(b, "\"");
    }
    turbod_buf_str(b, "}");
}

static turbo_status ask(void *ctx, const turbod_message *msgs, size_t n_msgs, uint64_t round,
                        turbod_buf *answer, double *rate, int32_t *n, turbo_err *err)
{
    remote *r = ctx;
    turbod_buf body;
    turbod_buf_init(&body, REPLY_MAX);
    put_body(r, msgs, n_msgs, round, &body);
    r->answer = answer;
    r->rate = 0;
    r->n_tokens = 0;
    (void)cli_interrupted();
    turbo_status st = body.failed ? turbod_err(err, TURBO_ELIMIT,
                                               "the dialogue is too long; /clear "
                                               "starts a new one")
                                  : perform(r, "/v1/chat/completions", body.ptr, err);
    turbod_buf_free(&body);
    *rate = r->rate;
    *n = r->n_tokens;
    return st;
}

/* ---- start --------------------------------------------------------------------------------------- */

static turbo_status find_model(remote *r, turbo_err *err)
{
    const char *given = cli_text(r->args, "model");
    cJSON *j = NULL;
    if (given) {
        snprintf(r->model, sizeof r->model, "%s", given);
        return TURBO_OK;
    }
    long status = 0;
    cli_remote_prepare(&r->to, "/v1/models", NULL);
    turbo_status st = cli_remote_perform(&r->to, &status, err);
    if (!st && status != 200)
        st = cli_remote_refused(&r->to, status, err);
    if (!st)
        st = turbod_json_parse(r->to.body.ptr, r->to.body.len, &turbod_json_request, &j, err);
    if (!st) {
        const cJSON *id = turbod_json_get(cJSON_GetArrayItem(turbod_json_get(j, "data"), 0), "id");
        if (cJSON_IsString(id))
            snprintf(r->model, sizeof r->model, "%s", id->valuestring);
        else
            st = turbod_err(err, TURBO_EDATA, "%s lists no model", r->to.base);
    }
    cJSON_Delete(j);
    return st;
}

static turbo_status ask_once(remote *r, turbo_err *err)
{
    const char *system = cli_text(r->args, "system");
    turbod_message m[2 * CLI_MAX_MULTI + 1];
    turbod_buf answers[CLI_MAX_MULTI];
    size_t n = 0;
    int k = 0;
    turbo_status st = TURBO_OK;
    if (system)
        m[n++] =
            (turbod_message){.role = "system", .content = system, .content_len = strlen(system)};
    for (; !st && k < r->args->n_multi; k++) {
        const char *q = r->args->multi[k];
        double rate = 0;
        int32_t n_tokens = 0;
        turbod_buf_init(&answers[k], REPLY_MAX);
        turbod_buf_str(&answers[k], "");
        m[n++] = (turbod_message){.role = "user", .content = q, .content_len = strlen(q)};
        st = ask(r, m, n, (uint64_t)k, &answers[k], &rate, &n_tokens, err);
        putchar('\n');
        fflush(stdout);
        if (!st)
            fprintf(stderr, "[%d tokens, %.1f tokens/s]\n", n_tokens, rate);
        m[n++] = (turbod_message){.role = "assistant",
                                  .content = answers[k].ptr,
                                  .content_len = answers[k].len};
    }
    while (k)
        turbod_buf_free(&answers[--k]);
    return st;
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    remote r = {.args = a};
    int code = 0;
    if (curl_global_init(CURL_GLOBAL_DEFAULT))
        return cli_fail(turbod_err(&err, TURBO_EINTERNAL, "libcurl does not start"), &err);
    turbod_buf_init(&r.line, REPLY_MAX);
    cli_catch_interrupts();
    turbo_status st = cli_remote_open(&r.to, a, a->n_words ? a->words[0] : "http://127.0.0.1:23333",
                                      REPLY_MAX, &err);
    if (!st)
        st = find_model(&r, &err);
    if (!st && a->n_multi) {
        st = ask_once(&r, &err);
    } else if (!st) {
        char where[1400];
        snprintf(where, sizeof where, "%s at %s", r.model, r.to.base);
        cli_backend b = {.ctx = &r, .where = where, .ask = ask};
        code = cli_dialog(&b, cli_text(a, "system"));
    }
    turbod_buf_free(&r.line);
    cli_remote_close(&r.to);
    curl_global_cleanup();
    return st ? cli_fail(st, &err) : code;
}

const cli_cmd cli_client = {
    .name = "client",
    .words = "[URL] [flags]",
    .summary = "Talks with a running server.",
    .about = "URL is http://127.0.0.1:23333 by default. The dialogue works as in turbo chat.\n",
    .flags = flags,
    .keys = "",
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
