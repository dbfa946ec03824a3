/* core/cli/bench_prompt.c: prompts of exact length for a server whose tokenizer is not known. Main thread.
 *
 * A prompt is "A" and words behind it, each of one token. Which words are one token is asked: a group of
 * words is sent once and twice; when the second text has exactly a group's length of tokens more, each is
 * one. /tokenize counts where the server has it, else usage.prompt_tokens of answers of one token. What a
 * prompt costs beside its words (bos, template) comes from usage, on the endpoint that will be measured. */
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/err.h"
#include "util/json.h"

#define REPLY_MAX ((size_t)16 << 20)
#define GROUP 8
#define ENOUGH 48 /* words; 8 of them make 10^13 prompts */
#define LEAST 4

/* Frequent short words first: they are one token in nearly every vocabulary. */
static const char *const candidates[] = {
    "the",  "of",    "and",   "to",      "in",    "is",    "that", "for",  "it",     "as",
    "was",  "with",  "be",    "by",      "on",    "not",   "he",   "this", "are",    "or",
    "his",  "from",  "at",    "which",   "but",   "have",  "an",   "had",  "they",   "you",
    "were", "their", "one",   "all",     "we",    "can",   "her",  "has",  "there",  "been",
    "if",   "more",  "when",  "will",    "would", "who",   "so",   "no",   "she",    "other",
    "its",  "may",   "these", "what",    "them",  "than",  "some", "him",  "time",   "into",
    "only", "do",    "such",  "my",      "new",   "about", "out",  "also", "two",    "any",
    "up",   "first", "could", "our",     "then",  "most",  "see",  "me",   "should", "after",
    "said", "your",  "very",  "between", "made",  "many",  "over", "like", "a",      "b",
    "c",    "d",     "e",     "f",       "g",     "h",     "i",    "j",    "k",      "l",
    "m",    "n",     "o",     "p",
};
#define N_CANDIDATES (sizeof candidates / sizeof candidates[0])

static turbo_status ask(cli_prompts *p, const char *method, const char *path,
                        const turbod_buf *body, int *status, cJSON **out, turbo_err *err)
{
    turbod_buf reply;
    turbod_buf_init(&reply, REPLY_MAX);
    *out = NULL;
    p->questions++;
    turbo_status st =
        cli_target_ask(p->target, method, path, body, p->timeout, status, &reply, err);
    if (!st) {
        turbo_err why;
        if (turbod_json_parse(reply.ptr, reply.len, &turbod_json_file, out, &why) && *status == 200)
            st = turbod_err(err, TURBO_EIO, "%s answers no JSON: %s", path, why.text);
    }
    turbod_buf_free(&reply);
    return st;
}

/* An answer that is not 200, as an error. */
static turbo_status refused(const char *path, int status, const cJSON *j, turbo_err *err)
{
    const cJSON *e = turbod_json_get(j, "error"), *m = turbod_json_get(e, "message");
    return turbod_err(err, TURBO_EBUSY, "%s answers %d: %.160s%s", path, status,
                      cJSON_IsString(m) ? m->valuestring : "no message",
                      status == 401 ? "; --api-key-file names the file with the key" : "");
}

/* Usage of a text asked for one token; prompt tokens. */
static turbo_status by_usage(cli_prompts *p, const char *text, size_t n, int32_t *count,
                             turbo_err *err)
{
    const char *path = p->chat ? "/v1/chat/completions" : "/v1/completions";
    turbod_buf body;
    cJSON *j = NULL;
    int status = 0;
    int64_t v = 0;
    turbod_buf_init(&body, REPLY_MAX);
    cli_prompts_body(p, &body, text, n, 1, false);
    turbo_status st = ask(p, "POST", path, &body, &status, &j, err);
    if (!st && status != 200)
        st = refused(path, status, j, err);
    if (!st && !turbod_json_int(turbod_json_get(turbod_json_get(j, "usage"), "prompt_tokens"), 1,
                                INT32_MAX, &v))
        st = turbod_err(err, TURBO_EUNSUPPORTED,
                        "%s tells no usage.prompt_tokens: prompts of a known length cannot be made",
                        path);
    *count = (int32_t)v;
    cJSON_Delete(j);
    turbod_buf_free(&body);
    return st;
}

/* Servers differ in what they call the text. */
static const char *const fields[] = {"prompt", "content"};

int32_t cli_prompts_count(cli_prompts *p, const char *text, size_t n)
{
    turbod_buf body;
    cJSON *j = NULL;
    turbo_err err;
    int status = 0;
    if (!p->tokenize)
        return -1;
    turbod_buf_init(&body, REPLY_MAX);
    turbod_buf_str(&body, "{\"model\":\"");
    turbod_buf_json(&body, p->model, strlen(p->model));
    turbod_buf_printf(&body, "\",\"%s\":\"", fields[p->tokenize_field]);
    turbod_buf_json(&body, text, n);
    turbod_buf_str(&body, "\"}");
    turbo_status st = ask(p, "POST", "/tokenize", &body, &status, &j, &err);
    const cJSON *tokens = turbod_json_get(j, "tokens");
    int32_t count = !st && status == 200 && cJSON_IsArray(tokens) ? cJSON_GetArraySize(tokens) : -1;
    cJSON_Delete(j);
    turbod_buf_free(&body);
    return count;
}

static turbo_status count(cli_prompts *p, const char *text, int32_t *out, turbo_err *err)
{
    size_t n = strlen(text);
    *out = cli_prompts_count(p, text, n);
    return *out >= 0 ? TURBO_OK : by_usage(p, text, n, out, err);
}

/* "A", then the group `times` times. */
static void group_text(char *out, size_t size, size_t from, size_t n, int times)
{
    size_t at = (size_t)snprintf(out, size, "A");
    for (int t = 0; t < times; t++)
        for (size_t i = 0; i < n; i++)
            at += (size_t)snprintf(out + at, size - at, " %s", candidates[from + i]);
}

static turbo_status try_group(cli_prompts *p, size_t from, size_t n, turbo_err *err)
{
    char text[512];
    int32_t once = 0, twice = 0;
    group_text(text, sizeof text, from, n, 1);
    turbo_status st = count(p, text, &once, err);
    group_text(text, sizeof text, from, n, 2);
    if (!st)
        st = count(p, text, &twice, err);
    if (st)
        return st;
    if (twice - once == (int32_t)n) {
        for (size_t i = 0; i < n; i++)
            p->words[p->n_words++] = candidates[from + i];
        return TURBO_OK;
    }
    if (n == 1)
        return TURBO_OK;
    st = try_group(p, from, n / 2, err); /* at most three levels */
    return st ? st : try_group(p, from + n / 2, n - n / 2, err);
}

static turbo_status learn_words(cli_prompts *p, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    for (size_t i = 0; !st && i < N_CANDIDATES && p->n_words < ENOUGH; i += GROUP) {
        size_t n = N_CANDIDATES - i < GROUP ? N_CANDIDATES - i : GROUP;
        st = try_group(p, i, n, err);
    }
    if (!st && p->n_words < LEAST)
        st = turbod_err(err, TURBO_EUNSUPPORTED,
                        "only %d of %zu words are one token each for this server; %d are needed",
                        p->n_words, N_CANDIDATES, LEAST);
    return st;
}

static turbo_status learn_model(cli_prompts *p, char model[256], turbo_err *err)
{
    cJSON *j = NULL;
    int status = 0;
    int64_t n;
    turbo_status st = ask(p, "GET", "/v1/models", NULL, &status, &j, err);
    if (!st && status != 200 && !*model)
        st = refused("/v1/models", status, j, err);
    const cJSON *m, *list = turbod_json_get(j, "data"), *found = NULL;
    cJSON_ArrayForEach(m, list)
    {
        const cJSON *id = turbod_json_get(m, "id");
        if (!found && cJSON_IsString(id) && (!*model || !strcmp(model, id->valuestring)))
            found = m;
    }
    if (!st && !found && !*model)
        st = turbod_err(err, TURBO_EIO, "GET /v1/models lists nothing; give --model NAME");
    if (!st && found) {
        const cJSON *meta = turbod_json_get(found, "meta"); /* of some servers */
        snprintf(model, 256, "%s", turbod_json_get(found, "id")->valuestring);
        if (turbod_json_int(turbod_json_get(found, "max_model_len"), 1, INT32_MAX, &n) ||
            turbod_json_int(turbod_json_get(meta, "n_ctx"), 1, INT32_MAX, &n))
            p->context = (int32_t)n;
    }
    cJSON_Delete(j);
    return st;
}

turbo_status cli_prompts_learn(cli_prompts *p, char model[256], bool words, turbo_err *err)
{
    char text[512];
    int32_t n = 0;
    turbo_status st = learn_model(p, model, err);
    p->model = model;
    if (st)
        return st;
    p->tokenize = true;
    for (p->tokenize_field = 0; p->tokenize_field < 2; p->tokenize_field++)
        if (cli_prompts_count(p, "A the of", 8) > 0)
            break;
    if (p->tokenize_field == 2) {
        p->tokenize = false;
        p->tokenize_field = 0;
    }
    if (words)
        st = learn_words(p, err);
    if (!st && words) {
        size_t at = (size_t)snprintf(text, sizeof text, "A");
        for (int i = 0; i < GROUP; i++)
            at += (size_t)snprintf(text + at, sizeof text - at, " %s", p->words[i % p->n_words]);
        st = by_usage(p, text, at, &n, err);
        p->overhead = n - GROUP;
    }
    if (!st && words && p->overhead < 1)
        st = turbod_err(err, TURBO_EUNSUPPORTED,
                        "usage.prompt_tokens is %d for a text of more tokens than that", n);
    return st;
}

void cli_prompts_text(const cli_prompts *p, turbod_buf *out, int32_t n_in, const int64_t *blocks,
                      size_t n_blocks, uint64_t seed)
{
    uint64_t state = seed;
    turbod_buf_str(out, "A");
    for (int32_t i = 0; i < n_in - p->overhead; i++) {
        size_t block = (size_t)i / CLI_TRACE_BLOCK;
        uint64_t r =
            block < n_blocks /* one id, one text, in all prompts */
                ? cli_mix(cli_mix((uint64_t)blocks[block] + 1) + (uint64_t)i % CLI_TRACE_BLOCK)
                : cli_random(&state);
        turbod_buf_add(out, " ", 1);
        turbod_buf_str(out, p->words[r % (uint64_t)p->n_words]);
    }
}

void cli_prompts_body(const cli_prompts *p, turbod_buf *out, const char *text, size_t n,
                      int32_t max_tokens, bool stream)
{
    turbod_buf_str(out, "{\"model\":\"");
    turbod_buf_json(out, p->model, strlen(p->model));
    turbod_buf_str(out, p->chat ? "\",\"messages\":[{\"role\":\"user\",\"content\":\""
                                : "\",\"prompt\":\"");
    turbod_buf_json(out, text, n);
    turbod_buf_printf(out, "%s,\"max_tokens\":%d", p->chat ? "\"}]" : "\"", max_tokens);
    if (p->temperature >= 0)
        turbod_buf_printf(out, ",\"temperature\":%.6g", p->temperature);
    if (p->ignore_eos)
        turbod_buf_str(out, ",\"ignore_eos\":true");
    if (stream)
        turbod_buf_printf(out, ",\"stream\":true,\"stream_options\":{\"include_usage\":true%s}",
                          p->continuous_usage ? ",\"continuous_usage_stats\":true" : "");
    turbod_buf_str(out, "}");
}
