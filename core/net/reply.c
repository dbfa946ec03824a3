/* core/net/reply.c: error objects and the headers of every reply.
 * Texts that lower layers wrote pass a filter: clients learn what to change, never a path or address. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "net/gen.h"
#include "net/net.h"
#include "util/err.h"

#define MAX_REPLY ((size_t)256 << 20)

static const char *type_of(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void turbod_error_json(turbod_buf *b, int status, const char *code, const char *param,
                       const char *message)
{
    turbod_buf_str(b, "{\"error\":{\"message\":\"");
    turbod_buf_json(b, message, strlen(message));
    turbod_buf_printf(b, "\",\"type\":\"%s\",\"param\":", type_of(status));
    if (param) {
        turbod_buf_str(b, "\"");
        turbod_buf_json(b, param, strlen(param));
        turbod_buf_str(b, "\"");
    } else {
        turbod_buf_str(b, "null");
    }
    turbod_buf_printf(b, ",\"code\":\"%s\"}}", code);
}

void turbod_reply_error(turbod_exchange *x, int status, const char *code, const char *param,
                        const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof text, fmt, ap) < 0)
        text[0] = '\0';
    va_end(ap);
    turbod_reply *r = &x->reply;
    turbod_buf_free(&r->body);
    *r = (turbod_reply){.status = status};
    turbod_buf_init(&r->body, MAX_REPLY);
    turbod_error_json(&r->body, status, code, param, text);
}

static bool ends_word(char c)
{
    return !c || strchr(" \t,;\"'()<>|", c);
}

/* A word that begins with "/x" (but is no route of ours in the message) or with "0x" goes. */
void turbod_clean_message(char *text)
{
    char *out = text;
    const char *in = text;
    bool at_start = true;
    while (*in) {
        size_t n = 0;
        while (!ends_word(in[n]))
            n++;
        const char *slash = n ? memchr(in, '/', n) : NULL;
        bool path = at_start && slash && (slash == in || in[0] == '.' || in[0] == '~') && n > 2;
        bool address = at_start && n > 6 && in[0] == '0' && in[1] == 'x';
        if (path || address) {
            const char *put = path ? "..." : "?";
            size_t l = strlen(put);
            memcpy(out, put, l);
            out += l;
            if (in[n - 1] == ':')
                *out++ = ':';
            in += n;
        } else if (n) {
            memmove(out, in, n);
            out += n;
            in += n;
        }
        if (*in) {
            *out++ = *in++;
            at_start = true;
        }
    }
    *out = '\0';
}

void turbod_reply_status(turbod_exchange *x, turbo_status st, const char *param,
                         const turbo_err *err)
{
    static const struct {
        turbo_status st;
        int http;
        const char *code;
    } rows[] = {
        {TURBO_EINVAL, 400, "invalid_value"},
        {TURBO_EUNSUPPORTED, 400, "unsupported_value"},
        {TURBO_ELIMIT, 400, "limit_exceeded"},
        {TURBO_ENOENT, 404, "not_found"},
        {TURBO_EBUSY, 429, "rate_limit_exceeded"},
        {TURBO_ENOMEM, 503, "out_of_memory"},
        {TURBO_EDATA, 500, "server_data_error"},
    };
    char text[sizeof err->text];
    memcpy(text, err->text, sizeof text);
    text[sizeof text - 1] = '\0';
    turbod_clean_message(text);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].st == st) {
            turbod_reply_error(x, rows[i].http, rows[i].code, param, "%s", text);
            if (rows[i].http == 503)
                x->reply.retry_after = 2;
            return;
        }
    turbod_reply_error(x, 500, "internal_error", param, "%s", text);
}

static ssize_t stream_reader(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    return turbod_stream_read(cls, buf, max);
}

static bool header(struct MHD_Response *m, const char *name, const char *value)
{
    return !value || MHD_add_response_header(m, name, value) == MHD_YES;
}

static bool cors(struct MHD_Response *m, const turbod_exchange *x)
{
    if (!x->origin[0])
        return true;
    return header(m, "Access-Control-Allow-Origin", x->origin) && header(m, "Vary", "Origin") &&
           header(m, "Access-Control-Expose-Headers", "X-Request-Id") &&
           (x->reply.status != 204 ||
            (header(m, "Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS") &&
             header(m, "Access-Control-Allow-Headers",
                    "Authorization, Content-Type, X-Request-Id, X-Turbo-Strict") &&
             header(m, "Access-Control-Max-Age", "600")));
}

static bool headers(struct MHD_Response *m, const turbod_exchange *x)
{
    const turbod_reply *r = &x->reply;
    char retry[16];
    snprintf(retry, sizeof retry, "%d", r->retry_after);
    const char *type = r->type ? r->type : "application/json";
    return header(m, "Content-Type", r->status != 204 ? type : NULL) &&
           header(m, "Cache-Control", r->stream ? "no-cache" : "no-store") &&
           header(m, "X-Content-Type-Options", "nosniff") && header(m, "X-Request-Id", x->id) &&
           header(m, "X-Accel-Buffering", r->stream ? "no" : NULL) &&
           header(m, "Allow", r->allow) &&
           header(m, "WWW-Authenticate", r->want_key ? "Bearer" : NULL) &&
           header(m, "Retry-After", r->retry_after ? retry : NULL) &&
           header(m, "Connection", r->close || x->force_close ? "close" : NULL) && cors(m, x);
}

struct MHD_Response *turbod_reply_response(turbod_exchange *x)
{
    turbod_reply *r = &x->reply;
    struct MHD_Response *m;
    if (r->body.failed) /* memory ran out while the reply was written */
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this answer");
    if (r->stream)
        m = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, stream_reader, x, NULL);
    else
        m = MHD_create_response_from_buffer(r->body.len, r->body.len ? r->body.ptr : "",
                                            MHD_RESPMEM_PERSISTENT); /* x outlives it */
    /* A reply without one of its fields could be read as another: rather none. */
    if (m && !headers(m, x)) {
        MHD_destroy_response(m);
        m = NULL;
    }
    return m;
}
