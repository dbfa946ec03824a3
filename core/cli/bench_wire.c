/* core/cli/bench_wire.c: HTTP/1.1 answers and event streams, parsed as the bytes come, cut anywhere.
 * Main thread. Must not know sockets or what the events mean.
 *
 * HTTP: RFC 9112 (status line, header fields, chunked coding with extensions and trailers, length, or
 * until the peer closes). Event streams: the WHATWG HTML standard, 9.2. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli/bench.h"

#define HEAD_MAX 65536
#define EVENT_MAX ((size_t)1 << 20)

enum { STATUS, FIELD, BODY, UNTIL_CLOSE, SIZE, CHUNK, CHUNK_END, TRAILER, DONE };

static bool named(const char *line, const char *name, const char **value)
{
    size_t n = strlen(name);
    if (strncasecmp(line, name, n) || line[n] != ':')
        return false;
    *value = line + n + 1 + strspn(line + n + 1, " \t");
    return true;
}

static bool number(const char *s, int base, uint64_t *out)
{
    char *end;
    size_t digits = strspn(s, base == 16 ? "0123456789abcdefABCDEF" : "0123456789");
    if (!digits || digits > 15)
        return false;
    *out = strtoull(s, &end, base);
    end += strspn(end, " \t");
    return !*end || (base == 16 && *end == ';');
}

static const char *status_line(cli_http *h)
{
    const char *s = h->line;
    if (strncmp(s, "HTTP/1.", 7) || !s[7] || s[8] != ' ' || strspn(s + 9, "0123456789") != 3)
        return "the answer is no HTTP/1.1";
    h->status = (s[9] - '0') * 100 + (s[10] - '0') * 10 + s[11] - '0';
    h->state = FIELD;
    return NULL;
}

static const char *head_end(cli_http *h)
{
    if (h->status < 200) /* an interim answer: the real one follows */
        *h = (cli_http){0};
    else if (h->status == 204 || h->status == 304)
        h->state = DONE;
    else if (h->chunked)
        h->state = SIZE;
    else if (h->has_length)
        h->state = h->left ? BODY : DONE;
    else
        h->state = UNTIL_CLOSE;
    return NULL;
}

static const char *field(cli_http *h)
{
    const char *v;
    if (!h->n_line)
        return head_end(h);
    if (named(h->line, "Content-Length", &v)) {
        if (h->has_length || !number(v, 10, &h->left))
            return "Content-Length is no number, or comes twice";
        h->has_length = true;
    } else if (named(h->line, "Transfer-Encoding", &v)) {
        if (strcasecmp(v, "chunked"))
            return "a Transfer-Encoding other than chunked";
        h->chunked = true;
    } else if (named(h->line, "Content-Type", &v)) {
        h->stream = !strncasecmp(v, "text/event-stream", 17);
    }
    return NULL;
}

static const char *take_line(cli_http *h)
{
    size_t stored = h->n_line < sizeof h->line ? h->n_line : sizeof h->line - 1;
    if (stored && h->n_line == stored && h->line[stored - 1] == '\r')
        h->n_line = --stored;
    h->line[stored] = '\0';
    const char *wrong = NULL;
    switch (h->state) {
    case STATUS: wrong = status_line(h); break;
    case FIELD: wrong = field(h); break;
    case SIZE:
        if (!number(h->line, 16, &h->left))
            wrong = "a chunk without a size";
        h->state = h->left ? CHUNK : TRAILER;
        break;
    case CHUNK_END:
        if (h->n_line)
            wrong = "a chunk longer than its size";
        h->state = SIZE;
        break;
    default:
        if (!h->n_line)
            h->state = DONE;
    }
    h->n_line = 0;
    return wrong;
}

/* Takes bytes up to a line feed. *p moves behind what was used. */
static const char *feed_line(cli_http *h, const char **p, const char *end)
{
    const char *lf = memchr(*p, '\n', (size_t)(end - *p));
    size_t n = (size_t)((lf ? lf : end) - *p);
    if (h->n_line < sizeof h->line - 1) {
        size_t room = sizeof h->line - 1 - h->n_line;
        memcpy(h->line + h->n_line, *p, n < room ? n : room);
    }
    h->n_line += n;
    *p += n + (lf != NULL);
    if (h->state == STATUS || h->state == FIELD)
        h->n_head += n;
    if (h->n_head > HEAD_MAX || h->n_line > HEAD_MAX)
        return "a head of more than 64 KiB";
    return lf ? take_line(h) : NULL;
}

const char *cli_http_feed(cli_http *h, const char *p, size_t n, cli_bytes_fn sink, void *ctx)
{
    const char *end = p + n, *wrong = NULL;
    while (p < end && !wrong && h->state != DONE) {
        size_t have = (size_t)(end - p);
        if (h->state == UNTIL_CLOSE) {
            sink(ctx, p, have);
            p = end;
        } else if (h->state == BODY || h->state == CHUNK) {
            size_t part = have < h->left ? have : (size_t)h->left;
            sink(ctx, p, part);
            p += part;
            h->left -= part;
            if (!h->left)
                h->state = h->state == BODY ? DONE : CHUNK_END;
        } else {
            wrong = feed_line(h, &p, end);
        }
    }
    return wrong ? wrong : p < end ? "bytes behind the end of the answer" : NULL;
}

bool cli_http_whole(const cli_http *h)
{
    return h->state == DONE;
}

bool cli_http_closed(const cli_http *h)
{
    return h->state == DONE || h->state == UNTIL_CLOSE;
}

/* ---- event streams ------------------------------------------------------------------------------------ */

void cli_sse_init(cli_sse *s)
{
    *s = (cli_sse){0};
    turbod_buf_init(&s->line, EVENT_MAX);
    turbod_buf_init(&s->data, EVENT_MAX);
}

void cli_sse_free(cli_sse *s)
{
    turbod_buf_free(&s->line);
    turbod_buf_free(&s->data);
}

static void sse_line(cli_sse *s, const char *p, size_t n, cli_bytes_fn event, void *ctx)
{
    if (!n) {
        if (s->has_data)
            event(ctx, s->data.ptr, s->data.len);
        turbod_buf_clear(&s->data);
        s->has_data = false;
        return;
    }
    if (n < 4 || memcmp(p, "data", 4) || (n > 4 && p[4] != ':'))
        return;
    size_t skip = n > 5 && p[5] == ' ' ? 6 : n > 4 ? 5 : 4;
    if (s->has_data)
        turbod_buf_add(&s->data, "\n", 1);
    turbod_buf_add(&s->data, p + skip, n - skip);
    s->has_data = true;
}

bool cli_sse_feed(cli_sse *s, const char *p, size_t n, cli_bytes_fn event, void *ctx)
{
    const char *end = p + n;
    while (p < end) {
        if (s->after_cr && *p == '\n')
            p++;
        s->after_cr = false;
        if (p == end)
            break;
        const char *lf = memchr(p, '\n', (size_t)(end - p));
        const char *cr = memchr(p, '\r', (size_t)((lf ? lf : end) - p));
        const char *stop = cr ? cr : lf;
        size_t part = (size_t)((stop ? stop : end) - p);
        if (stop && !s->line.len) { /* the whole line is here: no copy */
            sse_line(s, p, part, event, ctx);
        } else {
            turbod_buf_add(&s->line, p, part);
            if (stop) {
                sse_line(s, s->line.ptr, s->line.len, event, ctx);
                turbod_buf_clear(&s->line);
            }
        }
        if (s->line.failed || s->data.failed)
            return false;
        s->after_cr = cr != NULL;
        p += part + (stop != NULL);
    }
    return true;
}
