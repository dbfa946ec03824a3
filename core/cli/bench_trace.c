/* core/cli/bench_trace.c: files that say who asked when, for how much. Main thread. Must not know
 * servers or models.
 *
 * Azure 2023 (github Azure/AzurePublicDataset): CSV, TIMESTAMP,ContextTokens,GeneratedTokens.
 * Mooncake FAST25 (github kvcache-ai/Mooncake): JSON lines, timestamp in ms, input_length, output_length,
 * hash_ids of the prompt's blocks of 512 tokens. ShareGPT: one JSON list of dialogues, no times. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/json.h"

#define FILE_MAX ((size_t)2 << 30)
#define DAYS_MAX 1e6 /* seconds of a trace: 11 days; more is a damaged time */

static const char *const names[] = {"auto", "azure", "mooncake", "sharegpt"};

cli_trace_format cli_trace_format_of(const char *name)
{
    for (int i = 1; i < 4; i++)
        if (!strcmp(name, names[i]))
            return (cli_trace_format)i;
    return CLI_TRACE_AUTO;
}

const char *cli_trace_format_name(cli_trace_format f)
{
    return names[f];
}

typedef struct reading {
    const char *path, *p, *end;
    size_t line; /* of p, from 1 */
    cli_trace *out;
    size_t limit;
    double seconds, zero; /* zero: time of the first request */
    bool began;
    turbo_err *err;
} reading;

static turbo_status no_memory(reading *r)
{
    return turbod_err(r->err, TURBO_ENOMEM, "%s: no memory for %zu requests", r->path, r->out->n);
}

/* A request at an absolute time; the trace counts from its first. */
static turbo_status add(reading *r, double at, const cli_trace_item *item)
{
    cli_trace *t = r->out;
    if (!r->began)
        r->zero = at;
    r->began = true;
    if (!(at - r->zero >= -DAYS_MAX && at - r->zero <= DAYS_MAX))
        return turbod_err(r->err, TURBO_EDATA,
                          "%s:%zu: the time is %.0f s away from the first line's", r->path, r->line,
                          at - r->zero);
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 1024, bytes;
        cli_trace_item *p = turbod_mul(cap, sizeof *p, &bytes) ? realloc(t->items, bytes) : NULL;
        if (!p)
            return no_memory(r);
        t->items = p;
        t->cap = cap;
    }
    t->items[t->n] = *item;
    t->items[t->n++].at = at - r->zero;
    return TURBO_OK;
}

/* The next line without its end; false at the end of the file. Counts lines. */
static bool next_line(reading *r, const char **line, size_t *n)
{
    if (r->p >= r->end)
        return false;
    const char *lf = memchr(r->p, '\n', (size_t)(r->end - r->p)), *stop = lf ? lf : r->end;
    *line = r->p;
    *n = (size_t)(stop - r->p);
    r->p = lf ? lf + 1 : r->end;
    r->line++;
    if (*n && (*line)[*n - 1] == '\r')
        (*n)--;
    return true;
}

static bool enough(const reading *r)
{
    const cli_trace *t = r->out;
    return t->n >= r->limit;
}

/* ---- Azure --------------------------------------------------------------------------------------------- */

static bool digits(const char **p, const char *end, int least, int most, int64_t *out)
{
    int n = 0;
    for (*out = 0; *p < end && **p >= '0' && **p <= '9' && n < most; (*p)++, n++)
        *out = *out * 10 + (**p - '0');
    return n >= least;
}

static bool byte(const char **p, const char *end, char c)
{
    return *p < end && **p == c && (*p)++;
}

/* Days since 1970-01-01 of a Gregorian date (Hinnant, "chrono-Compatible Low-Level Date Algorithms"). */
static int64_t days_of(int64_t y, int64_t m, int64_t d)
{
    y -= m <= 2;
    int64_t era = (y >= 0 ? y : y - 399) / 400, yoe = y - era * 400;
    int64_t doy = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

/* "2023-11-16 18:15:46.6805900" */
static bool time_of(const char **p, const char *end, double *out)
{
    int64_t y, mo, d, h, mi, s, f = 0;
    if (!digits(p, end, 4, 4, &y) || !byte(p, end, '-') || !digits(p, end, 2, 2, &mo) ||
        !byte(p, end, '-') || !digits(p, end, 2, 2, &d) ||
        !(byte(p, end, ' ') || byte(p, end, 'T')) || !digits(p, end, 2, 2, &h) ||
        !byte(p, end, ':') || !digits(p, end, 2, 2, &mi) || !byte(p, end, ':') ||
        !digits(p, end, 2, 2, &s))
        return false;
    if (mo < 1 || mo > 12 || d < 1 || d > 31 || h > 23 || mi > 59 || s > 60)
        return false;
    double scale = 1;
    if (byte(p, end, '.')) {
        const char *from = *p;
        if (!digits(p, end, 1, 9, &f))
            return false;
        for (const char *q = from; q < *p; q++)
            scale *= 10;
        while (*p < end && **p >= '0' && **p <= '9')
            (*p)++;
    }
    *out = (double)(days_of(y, mo, d) * 86400 + h * 3600 + mi * 60 + s) + (double)f / scale;
    return true;
}

static turbo_status read_azure(reading *r)
{
    const char *line;
    size_t n;
    turbo_status st = TURBO_OK;
    while (!st && !enough(r) && next_line(r, &line, &n)) {
        const char *p = line, *end = line + n;
        int64_t in, out;
        double at;
        if (!n || (r->line == 1 && n >= 9 && !memcmp(line, "TIMESTAMP", 9)))
            continue;
        if (!time_of(&p, end, &at) || !byte(&p, end, ','))
            return turbod_err(r->err, TURBO_EDATA,
                              "%s:%zu: no time such as 2023-11-16 18:15:46.6805900 and a comma",
                              r->path, r->line);
        if (!digits(&p, end, 1, 8, &in) || !byte(&p, end, ',') || !digits(&p, end, 1, 8, &out) ||
            p != end || in > CLI_BENCH_MOST_TOKENS || out > CLI_BENCH_MOST_TOKENS)
            return turbod_err(r->err, TURBO_EDATA,
                              "%s:%zu: behind the time two numbers of at most %d are expected: "
                              "ContextTokens,GeneratedTokens",
                              r->path, r->line, CLI_BENCH_MOST_TOKENS);
        cli_trace_item item = {.n_in = (int32_t)in, .n_out = (int32_t)out};
        st = add(r, at, &item);
    }
    return st;
}

/* ---- Mooncake ------------------------------------------------------------------------------------------- */

static turbo_status add_blocks(reading *r, const cJSON *ids, cli_trace_item *item)
{
    cli_trace *t = r->out;
    const cJSON *e;
    item->blocks = t->n_blocks;
    if (!ids)
        return TURBO_OK;
    if (!cJSON_IsArray(ids))
        return turbod_err(r->err, TURBO_EDATA, "%s:%zu: hash_ids is %s; a list is expected",
                          r->path, r->line, turbod_json_kind(ids));
    cJSON_ArrayForEach(e, ids)
    {
        int64_t id;
        if (!turbod_json_int(e, INT32_MIN, (int64_t)1 << 53, &id))
            return turbod_err(r->err, TURBO_EDATA,
                              "%s:%zu: hash_ids holds %s; integers are expected", r->path, r->line,
                              turbod_json_kind(e));
        if (t->n_blocks == t->cap_blocks) {
            size_t cap = t->cap_blocks ? 2 * t->cap_blocks : 4096, bytes;
            int64_t *p = turbod_mul(cap, sizeof *p, &bytes) ? realloc(t->blocks, bytes) : NULL;
            if (!p)
                return no_memory(r);
            t->blocks = p;
            t->cap_blocks = cap;
        }
        t->blocks[t->n_blocks++] = id;
        item->n_blocks++;
    }
    return TURBO_OK;
}

static turbo_status mooncake_line(reading *r, const cJSON *j)
{
    int64_t in, out;
    double at;
    cli_trace_item item = {0};
    if (!turbod_json_num(turbod_json_get(j, "timestamp"), 0, 1e15, &at) ||
        !turbod_json_int(turbod_json_get(j, "input_length"), 0, CLI_BENCH_MOST_TOKENS, &in) ||
        !turbod_json_int(turbod_json_get(j, "output_length"), 0, CLI_BENCH_MOST_TOKENS, &out))
        return turbod_err(r->err, TURBO_EDATA,
                          "%s:%zu: timestamp (ms), input_length and output_length (tokens, at most "
                          "%d) are expected",
                          r->path, r->line, CLI_BENCH_MOST_TOKENS);
    item.n_in = (int32_t)in;
    item.n_out = (int32_t)out;
    turbo_status st = add_blocks(r, turbod_json_get(j, "hash_ids"), &item);
    if (!st && item.n_blocks && item.n_blocks * CLI_TRACE_BLOCK < (size_t)in)
        st = turbod_err(r->err, TURBO_EDATA,
                        "%s:%zu: input_length %lld needs %zu hash_ids of %d tokens; there are %zu",
                        r->path, r->line, (long long)in,
                        ((size_t)in + CLI_TRACE_BLOCK - 1) / CLI_TRACE_BLOCK, CLI_TRACE_BLOCK,
                        item.n_blocks);
    return st ? st : add(r, at * 1e-3, &item);
}

static turbo_status read_mooncake(reading *r)
{
    const char *line;
    size_t n;
    turbo_status st = TURBO_OK;
    while (!st && !enough(r) && next_line(r, &line, &n)) {
        cJSON *j = NULL;
        turbo_err why = {{0}};
        if (!n)
            continue;
        if (turbod_json_parse(line, n, &turbod_json_file, &j, &why))
            return turbod_err(r->err, TURBO_EDATA, "%s:%zu: %s", r->path, r->line, why.text);
        st = mooncake_line(r, j);
        cJSON_Delete(j);
    }
    return st;
}

/* ---- ShareGPT -------------------------------------------------------------------------------------------- */

static bool said_by(const cJSON *turn, const char *a, const char *b)
{
    const cJSON *who = turbod_json_get(turn, "from");
    return cJSON_IsString(who) && (!strcmp(who->valuestring, a) || !strcmp(who->valuestring, b)) &&
           cJSON_IsString(turbod_json_get(turn, "value")) &&
           *turbod_json_get(turn, "value")->valuestring;
}

static turbo_status sharegpt_entry(reading *r, const cJSON *j)
{
    const cJSON *turns = turbod_json_get(j, "conversations");
    const cJSON *q = cJSON_GetArrayItem(turns, 0), *a = cJSON_GetArrayItem(turns, 1);
    if (!cJSON_IsArray(turns))
        return turbod_err(r->err, TURBO_EDATA,
                          "%s:%zu: a dialogue without a list \"conversations\"", r->path, r->line);
    if (!said_by(q, "human", "user") || !said_by(a, "gpt", "assistant")) {
        r->out->skipped++;
        return TURBO_OK;
    }
    cli_trace_item item = {.prompt = strdup(turbod_json_get(q, "value")->valuestring),
                           .answer = strdup(turbod_json_get(a, "value")->valuestring)};
    turbo_status st = item.prompt && item.answer ? add(r, 0, &item) : no_memory(r);
    if (st) {
        free(item.prompt);
        free(item.answer);
    }
    return st;
}

static void blanks(reading *r)
{
    for (; r->p < r->end && strchr(" \t\r\n", *r->p) && *r->p; r->p++)
        r->line += *r->p == '\n';
}

/* The object at p; its end is where the braces outside of strings close. The file may be far larger than
 * what is wanted of it, so it is not parsed as a whole. */
static size_t object_length(const reading *r)
{
    int depth = 0;
    bool text = false;
    for (const char *q = r->p; q < r->end; q++) {
        if (text && *q == '\\') {
            q++;
        } else if (*q == '"') {
            text = !text;
        } else if (!text && (*q == '{' || *q == '[')) {
            depth++;
        } else if (!text && (*q == '}' || *q == ']') && !--depth) {
            return (size_t)(q - r->p) + 1;
        }
    }
    return 0;
}

static turbo_status read_sharegpt(reading *r)
{
    turbo_status st = TURBO_OK;
    r->line = 1;
    blanks(r);
    if (r->p >= r->end || *r->p++ != '[')
        return turbod_err(r->err, TURBO_EDATA, "%s:%zu: a list of dialogues begins with [", r->path,
                          r->line);
    for (blanks(r); !st && !enough(r) && r->p < r->end && *r->p != ']'; blanks(r)) {
        size_t n = *r->p == '{' ? object_length(r) : 0;
        cJSON *j = NULL;
        turbo_err why = {{0}};
        if (!n)
            return turbod_err(r->err, TURBO_EDATA,
                              "%s:%zu: a dialogue {...} is expected here, whole", r->path, r->line);
        st = turbod_json_parse(r->p, n, &turbod_json_file, &j, &why);
        if (st)
            return turbod_err(r->err, TURBO_EDATA, "%s:%zu: in the dialogue that begins here: %s",
                              r->path, r->line, why.text);
        st = sharegpt_entry(r, j);
        cJSON_Delete(j);
        for (; n; n--, r->p++)
            r->line += *r->p == '\n';
        blanks(r);
        if (r->p < r->end && *r->p == ',')
            r->p++;
        else if (r->p >= r->end || *r->p != ']')
            return turbod_err(r->err, TURBO_EDATA,
                              "%s:%zu: a comma or the ] of the list is missing", r->path, r->line);
    }
    return st;
}

/* ---- all -------------------------------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
    const cli_trace_item *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

/* In order of time, from 0, and only what comes before `seconds`. */
static void arrange(reading *r)
{
    cli_trace *t = r->out;
    bool sorted = true;
    for (size_t i = 1; i < t->n && sorted; i++)
        sorted = t->items[i - 1].at <= t->items[i].at;
    if (!sorted)
        qsort(t->items, t->n, sizeof *t->items, by_time);
    double zero = t->n ? t->items[0].at : 0;
    for (size_t i = 0; i < t->n; i++)
        t->items[i].at -= zero;
    if (t->format == CLI_TRACE_SHAREGPT)
        return;
    while (t->n && t->items[t->n - 1].at >= r->seconds)
        t->n--;
}

static turbo_status load(const char *path, turbod_buf *text, turbo_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 1;
    if (fd < 0)
        return turbod_err(err, errno == ENOENT ? TURBO_ENOENT : TURBO_EIO, "%s: %s", path,
                          strerror(errno));
    while (n > 0 && turbod_buf_reserve(text, 1 << 20)) {
        n = read(fd, text->ptr + text->len, 1 << 20);
        if (n < 0 && errno == EINTR)
            n = 1;
        else if (n > 0)
            text->len += (size_t)n;
    }
    turbo_status st = TURBO_OK;
    if (text->ptr)
        text->ptr[text->len] = '\0';
    if (n < 0)
        st = turbod_err(err, TURBO_EIO, "%s: %s", path, strerror(errno));
    else if (n > 0)
        st = turbod_err(err, TURBO_ELIMIT, "%s is longer than %zu MiB, or memory is out", path,
                        FILE_MAX >> 20);
    close(fd);
    return st;
}

turbo_status cli_trace_read(const char *path, cli_trace_format format, size_t limit, double seconds,
                            cli_trace *out, turbo_err *err)
{
    turbod_buf text;
    *out = (cli_trace){.format = format};
    turbod_buf_init(&text, FILE_MAX);
    turbo_status st = load(path, &text, err);
    reading r = {.path = path, .out = out, .limit = limit, .seconds = seconds, .err = err};
    if (!st) {
        r.p = text.ptr;
        r.end = text.ptr + text.len;
        size_t skip = strspn(text.len ? text.ptr : "", " \t\r\n");
        char c = skip < text.len ? text.ptr[skip] : '\0';
        if (format == CLI_TRACE_AUTO)
            out->format = c == '{'                             ? CLI_TRACE_MOONCAKE
                          : c == '['                           ? CLI_TRACE_SHAREGPT
                          : c == 'T' || (c >= '0' && c <= '9') ? CLI_TRACE_AZURE
                                                               : CLI_TRACE_AUTO;
        if (out->format == CLI_TRACE_AUTO)
            st = turbod_err(
                err, TURBO_EDATA,
                "%s:1: neither Azure CSV (TIMESTAMP,...) nor Mooncake JSON lines ({...}) "
                "nor ShareGPT JSON ([...]); say which with --trace-format",
                path);
        else
            st = out->format == CLI_TRACE_AZURE      ? read_azure(&r)
                 : out->format == CLI_TRACE_MOONCAKE ? read_mooncake(&r)
                                                     : read_sharegpt(&r);
    }
    if (!st)
        arrange(&r);
    if (!st && !out->n)
        st = turbod_err(err, TURBO_EDATA, "%s holds no requests%s", path,
                        out->skipped ? " that begin with a question and an answer" : "");
    turbod_buf_free(&text);
    return st;
}

void cli_trace_free(cli_trace *t)
{
    for (size_t i = 0; i < t->n; i++) {
        free(t->items[i].prompt);
        free(t->items[i].answer);
    }
    free(t->items);
    free(t->blocks);
    *t = (cli_trace){0};
}
