/* core/net/serve.c: libmicrohttpd's callbacks: heads, bodies, replies, the end. Daemon thread.
 *
 * The daemon runs without a listening socket; the door hands it connections. A POST is suspended
 * while a worker or the engine has it; a stream is suspended whenever there is nothing to send. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "net/gen.h"
#include "net/net.h"
#include "util/err.h"
#include "util/log.h"

#define SMALL_MEMORY ((size_t)12 << 10)
#define LARGE_MEMORY ((size_t)64 << 10)

static void set_stage(turbod_exchange *x, turbod_stage s)
{
    atomic_store(&x->stage_since, turbod_ms());
    atomic_store(&x->stage, s);
}

/* ---- begin ------------------------------------------------------------------------------------------ */

static turbod_client *client_of(struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return i ? i->socket_context : NULL;
}

/* Called with the raw target, before the header fields arrived. */
static void *on_target(void *cls, const char *target, struct MHD_Connection *conn)
{
    turbod_http *h = cls;
    turbod_client *c = client_of(conn);
    turbod_exchange *x = c ? calloc(1, sizeof *x) : NULL;
    if (!x)
        return NULL;
    *x = (turbod_exchange){
        .http = h, .conn = conn, .client = c, .t0 = turbod_ms(), .own_id = true, .left = LEFT_NONE};
    atomic_init(&x->refs, 1);
    x->label[0] = '-';
    x->raw_target = strdup(target);
    if (!x->raw_target) {
        free(x);
        return NULL;
    }
    x->rules = turbod_http_rules(h);
    turbod_buf_init(&x->body, (size_t)x->rules->body_limit);
    turbod_buf_init(&x->reply.body, (size_t)256 << 20);
    turbod_buf_init(&x->out, (size_t)4 << 20);
    turbod_buf_init(&x->rest, (size_t)4 << 20);
    pthread_mutex_init(&x->mu, NULL);
    set_stage(x, STAGE_HEAD);
    pthread_mutex_lock(&h->mu);
    x->next = h->exchanges;
    if (x->next)
        x->next->prev = x;
    h->exchanges = x;
    h->n_exchanges++;
    h->n_answering++;
    c->exchange = x;
    c->n_requests++;
    x->head_was_seen = c->n_requests == 1;
    x->force_close = c->n_requests >= TURBOD_MAX_PER_CONNECTION || atomic_load(&h->quiet);
    pthread_mutex_unlock(&h->mu);
    return x;
}

typedef struct field_scan {
    turbod_head head;
    int bad;
} field_scan;

static enum MHD_Result on_field(void *cls, enum MHD_ValueKind kind, const char *name,
                                size_t name_len, const char *value, size_t value_len)
{
    field_scan *f = cls;
    (void)kind;
    f->bad = turbod_head_field(&f->head, name, name_len, value ? value : "", value ? value_len : 0);
    return f->bad ? MHD_NO : MHD_YES;
}

static bool id_ok(turbod_text t)
{
    for (size_t i = 0; i < t.n; i++) {
        char c = t.p[i];
        if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
              c == '.' || c == '_' || c == '-'))
            return false;
    }
    return t.n >= 1 && t.n <= 64;
}

static void name_exchange(turbod_exchange *x, turbod_text wanted)
{
    uint64_t r = 0;
    if (id_ok(wanted)) {
        memcpy(x->id, wanted.p, wanted.n);
        x->own_id = false;
        return;
    }
    if (getrandom(&r, sizeof r, 0) != (ssize_t)sizeof r)
        r = (uint64_t)turbod_ms() ^ (uint64_t)(uintptr_t)x;
    snprintf(x->id, sizeof x->id, "req-%016llx", (unsigned long long)r);
}

/* Looks at a whole head. Fills x->route, or x->reply with the refusal; true when the refusal must not
 * wait for the body, because the connection's framing or size cannot be trusted. */
static bool look_at_head(turbod_exchange *x, const char *method, const char *version)
{
    field_scan f = {0};
    f.head.method = (turbod_text){method, strlen(method)};
    f.head.target = (turbod_text){x->raw_target, strlen(x->raw_target)};
    f.head.http10 = !strcmp(version, "HTTP/1.0");
    x->chunked = !f.head.http10;
    MHD_get_connection_values_n(x->conn, MHD_HEADER_KIND, on_field, &f);
    name_exchange(x, f.bad ? (turbod_text){0} : f.head.request_id);
    if (!f.bad)
        f.bad = turbod_head_finish(&f.head);
    snprintf(x->method, sizeof x->method, "%.32s", method);
    if (f.bad) {
        turbod_reply_error(x, f.bad, "bad_request", NULL, "%s", f.head.why);
        x->force_close = true;
        return true;
    }
    /* The door saw the bytes of the first head only. A body behind a head that it did not see, or one
     * in chunks, might be framed otherwise by a proxy: nothing after it is believed. */
    bool body = f.head.n_coding || f.head.content_length;
    if ((body && !x->head_was_seen) || f.head.n_coding)
        x->force_close = true;
    turbod_route_judge(x, &f.head);
    if (!x->reply.status)
        return false;
    bool large = f.head.content_length > 65536 || f.head.n_coding;
    if (body && (large || f.head.expect)) {
        x->force_close = true;
        return true;
    }
    return false;
}

/* ---- body -------------------------------------------------------------------------------------------- */

static void take_body(turbod_exchange *x, const char *p, size_t n)
{
    turbod_http *h = x->http;
    if (x->reply.status)
        return; /* refused already: read and dropped */
    if (x->body.len + n > x->rules->body_limit) {
        turbod_reply_error(x, 413, "body_too_large", NULL, "the body is larger than %llu bytes",
                           (unsigned long long)x->rules->body_limit);
        x->force_close = true;
    } else if (atomic_fetch_add(&h->body_bytes, n) + n > TURBOD_BODY_BUDGET) {
        atomic_fetch_sub(&h->body_bytes, n);
        turbod_reply_error(x, 503, "overloaded", NULL, "too many large requests at once; try again");
        x->reply.retry_after = 2;
    } else if (atomic_fetch_add(&x->charged, n), !turbod_buf_add(&x->body, p, n)) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this body; try again");
        x->reply.retry_after = 2;
    }
}

static enum MHD_Result send_reply(turbod_exchange *x)
{
    struct MHD_Response *m = turbod_reply_response(x);
    if (!m)
        return MHD_NO;
    set_stage(x, STAGE_REPLY);
    atomic_fetch_add(&x->http->responses[x->reply.status / 100 % 6], 1);
    enum MHD_Result ok = MHD_queue_response(x->conn, (unsigned)x->reply.status, m);
    MHD_destroy_response(m);
    return ok;
}

static void suspend_locked(turbod_exchange *x)
{
    x->suspended = true;
    MHD_suspend_connection(x->conn);
}

static bool peer_left(turbod_exchange *x)
{
    pthread_mutex_lock(&x->http->mu);
    bool gone = x->client->gone || x->client->cut;
    pthread_mutex_unlock(&x->http->mu);
    return gone;
}

static enum MHD_Result body_complete(turbod_exchange *x)
{
    if (x->reply.status)
        return send_reply(x);
    if (!strcmp(x->method, "GET")) {
        x->route->handle(x);
        return send_reply(x);
    }
    if (peer_left(x)) /* it closed its side behind the request: as good as gone */
        return MHD_NO;
    set_stage(x, STAGE_WORK);
    /* Under the lock, so that the job cannot be done before the connection sleeps. */
    pthread_mutex_lock(&x->mu);
    bool pushed = turbod_job_push(x->http, x);
    if (pushed)
        suspend_locked(x);
    pthread_mutex_unlock(&x->mu);
    if (!pushed)
        return MHD_NO;
    /* The end may have been noticed between the look and the suspension. */
    if (peer_left(x))
        turbod_exchange_gone(x);
    return MHD_YES;
}

static enum MHD_Result work_done(turbod_exchange *x)
{
    pthread_mutex_lock(&x->mu);
    if (x->gone) {
        pthread_mutex_unlock(&x->mu);
        return MHD_NO;
    }
    if (!x->reply_ready) {
        suspend_locked(x);
        pthread_mutex_unlock(&x->mu);
        return MHD_YES;
    }
    if (!x->reply.status && x->gen)
        turbod_gen_reply_locked(x->gen);
    pthread_mutex_unlock(&x->mu);
    return send_reply(x);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **con_cls)
{
    turbod_exchange *x = *con_cls;
    (void)cls;
    (void)conn;
    (void)url;
    if (!x)
        return MHD_NO;
    switch (atomic_load(&x->stage)) {
    case STAGE_HEAD: {
        bool now = look_at_head(x, method, version);
        if (now)
            return send_reply(x);
        set_stage(x, STAGE_BODY);
        if (peer_left(x)) { /* before the stage was set, so that the door did not see to it */
            if (strcmp(x->method, "GET"))
                return MHD_NO;
            x->force_close = true;
        }
        return MHD_YES;
    }
    case STAGE_BODY:
        if (*size) {
            take_body(x, data, *size);
            *size = 0;
            return MHD_YES;
        }
        return body_complete(x);
    case STAGE_WORK:
        return work_done(x);
    default:
        return MHD_NO;
    }
}

/* ---- stream ------------------------------------------------------------------------------------------ */

/* The library (0.9.75) forgets a connection whose reader reports an error while it is being resumed, and
 * keeps its descriptor. A write that fails is what it ends a connection for at once. */
static ssize_t last_bytes(turbod_exchange *x, char *buf, size_t max)
{
    static const char line[] = "\n";
    shutdown(x->client->fd, SHUT_RDWR);
    if (max < sizeof line - 1)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    memcpy(buf, line, sizeof line - 1);
    return (ssize_t)(sizeof line - 1);
}

/* No memory for the next events: the stream ends with an error, for which the room was taken at its start. */
static void fail_stream(turbod_exchange *x)
{
    turbod_gen *g = x->gen;
    turbod_buf_clear(&x->out);
    turbod_gen_cancel_locked(g);
    g->fail_status = 503;
    g->fail_code = "out_of_memory";
    snprintf(g->fail_text, sizeof g->fail_text, "no memory for the answer");
    turbod_sse_error(g);
}

ssize_t turbod_stream_read(turbod_exchange *x, char *buf, size_t max)
{
    ssize_t n = 0;
    pthread_mutex_lock(&x->mu);
    if (x->gone) {
        n = last_bytes(x, buf, max);
    } else {
        if (x->out_at == x->out.len) {
            turbod_buf_clear(&x->out);
            x->out_at = 0;
            turbod_sse_fill(x->gen);
            if (x->out.failed)
                fail_stream(x);
        }
        size_t have = x->out.len - x->out_at;
        if (have) {
            n = (ssize_t)(have < max ? have : max);
            memcpy(buf, x->out.ptr + x->out_at, (size_t)n);
            x->out_at += (size_t)n;
            x->last_out = turbod_ms();
        } else if (x->gen->stream_over) {
            n = MHD_CONTENT_READER_END_OF_STREAM;
        } else {
            suspend_locked(x);
            x->direct = x->chunked;
        }
    }
    pthread_mutex_unlock(&x->mu);
    return n;
}

/* ---- end --------------------------------------------------------------------------------------------- */

/* Text of a client for one log line: printable ASCII, the rest as \xNN, at most 256 bytes. */
static void log_text(char out[257], const char *s)
{
    size_t w = 0;
    for (; *s && w + 4 < 256; s++) {
        unsigned char c = (unsigned char)*s;
        if (c > 0x20 && c < 0x7f && c != '\\')
            out[w++] = (char)c;
        else
            w += (size_t)snprintf(out + w, 5, "\\x%02x", c);
    }
    out[w] = '\0';
}

/* The model and the figures of an answer for its line in the log. */
static void log_answer(const turbod_exchange *x, const turbod_gen *g, bool whole, char tail[512])
{
    char model[257];
    size_t prompt = 0;
    int32_t cached = 0, tokens = 0, later = 0;
    double ms = 0;
    const char *finish = g->fail_status ? g->fail_code : "stop";
    for (int i = 0; i < g->n_choices; i++) {
        const turbod_choice *c = &g->choices[i];
        prompt += c->first_of_prompt ? g->prompts[c->prompt].n : 0;
        cached += c->first_of_prompt ? c->timings.cached_n : 0;
        int32_t n = c->done ? c->timings.predicted_n : c->n_tokens;
        tokens += n;
        later += n > 1 ? n - 1 : 0;
        double took = c->done      ? c->timings.predicted_ms
                      : x->t_first ? (double)(turbod_ms() - x->t_first)
                                   : 0;
        ms = took > ms ? took : ms;
        if (!g->fail_status && c->done && c->finish == TURBOD_FINISH_LENGTH)
            finish = "length";
    }
    log_text(model, x->svc->name);
    snprintf(tail, 512,
             " model=%s ttft=%lldms prompt=%zu cached=%d tokens=%d rate=%.1f/s finish=%s", model,
             x->t_first ? (long long)(x->t_first - x->t0) : -1, prompt, cached, tokens,
             ms > 0 ? (double)later * 1000 / ms : 0, whole ? finish : "client_left");
}

static void log_exchange(turbod_exchange *x, bool whole)
{
    char target[257], tail[512] = "";
    char *query = strchr(x->raw_target ? x->raw_target : "", '?');
    if (query)
        *query = '\0'; /* a query may hold what somebody took for a safe place */
    log_text(target, x->raw_target ? x->raw_target : "-");
    if (x->gen)
        log_answer(x, x->gen, whole, tail);
    bool probe = x->route && !x->rules->n_keys && x->route->need != NEEDS_KEY;
    probe = probe || (x->route && x->route->need == NEEDS_NOTHING);
    turbod_log(probe ? TURBO_LOG_DEBUG : TURBO_LOG_INFO, "id=%s key=%s %s %s %d %lldms%s%s", x->id,
               x->label, x->method[0] ? x->method : "-", target, x->reply.status,
               (long long)(turbod_ms() - x->t0), whole ? "" : " cut", tail);
}

static void count_leaver(turbod_exchange *x)
{
    int kind = x->left != LEFT_NONE ? x->left : turbod_exchange_phase_locked(x);
    atomic_fetch_add(&x->http->left[kind], 1);
}

static void on_completed(void *cls, struct MHD_Connection *conn, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    turbod_http *h = cls;
    turbod_exchange *x = *con_cls;
    (void)conn;
    if (!x)
        return;
    *con_cls = NULL;
    bool whole = why == MHD_REQUEST_TERMINATED_COMPLETED_OK;
    pthread_mutex_lock(&x->mu);
    /* Clients close when they have read [DONE]; the empty chunk behind it is nobody's loss. */
    whole = whole || (x->gen && x->gen->stream_over && x->out_at == x->out.len && !x->rest.len);
    x->over = true;
    x->suspended = x->direct = false;
    if (!whole && why != MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN)
        count_leaver(x);
    log_exchange(x, whole);
    if (x->gen)
        turbod_gen_cancel_locked(x->gen);
    pthread_mutex_unlock(&x->mu);
    pthread_mutex_lock(&h->mu);
    if (x->client->exchange == x)
        x->client->exchange = NULL;
    x->client->idle_since = turbod_ms();
    x->client->acked_at = 0;
    h->n_answering--;
    pthread_mutex_unlock(&h->mu);
    turbod_exchange_release(x);
}

static void on_connection(void *cls, struct MHD_Connection *conn, void **ctx,
                          enum MHD_ConnectionNotificationCode what)
{
    turbod_http *h = cls;
    pthread_mutex_lock(&h->mu);
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *i =
            MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
        *ctx = i ? turbod_client_of(h, i->connect_fd) : NULL;
    } else if (*ctx) {
        turbod_client_drop(h, *ctx);
        *ctx = NULL;
    }
    pthread_mutex_unlock(&h->mu);
}

static size_t keep_escapes(void *cls, struct MHD_Connection *conn, char *s)
{
    (void)cls;
    (void)conn;
    return strlen(s);
}

static void on_panic(void *cls, const char *file, unsigned line, const char *why)
{
    (void)cls;
    (void)file;
    turbod_log(TURBO_LOG_ERROR, "the HTTP library gave up (line %u): %s", line, why ? why : "?");
    _exit(75); /* the library cannot go on, and would abort */
}

static void on_library_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_library_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];
    (void)cls;
    if (vsnprintf(text, sizeof text, fmt, ap) > 0) {
        text[strcspn(text, "\r\n")] = '\0';
        turbod_log(TURBO_LOG_DEBUG, "http library: %s", text);
    }
}

/* memory: of one connection, for its head, the headers of its answer and what is on the way. */
static struct MHD_Daemon *start_daemon(turbod_http *h, size_t memory)
{
    return MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME |
                                MHD_USE_ITC | MHD_USE_ERROR_LOG,
                            0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER,
                            on_library_log, NULL, MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
                            MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
                            MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
                            MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
                            MHD_OPTION_CONNECTION_LIMIT, (unsigned)h->max_connections + 16,
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, memory,
                            MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
                            MHD_OPTION_END);
}

turbo_status turbod_serve_start(turbod_http *h, turbo_err *err)
{
    MHD_set_panic_func(on_panic, NULL);
    turbo_status st = TURBO_OK;
    for (int i = DAEMON_SMALL; i <= DAEMON_LARGE && !st; i++) {
        struct MHD_Daemon *d = start_daemon(h, i == DAEMON_SMALL ? SMALL_MEMORY : LARGE_MEMORY);
        st = d ? turbod_loop_start(h, d, &h->loops[i], err)
               : turbod_err(err, TURBO_ENOMEM, "the HTTP daemon does not start");
    }
    return st;
}
