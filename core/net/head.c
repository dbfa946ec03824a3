/* core/net/head.c: see head.h. */
#include "net/head.h"

#include <string.h>
#include <strings.h>

bool turbod_text_is(turbod_text t, const char *s)
{
    return t.p && strlen(s) == t.n && !memcmp(t.p, s, t.n);
}

bool turbod_text_same(turbod_text t, const char *s)
{
    return t.p && strlen(s) == t.n && !strncasecmp(t.p, s, t.n);
}

static int refuse(turbod_head *h, int status, const char *why)
{
    h->why = why;
    return status;
}

/* RFC 9110, 5.6.2 */
static bool token_byte(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!token_byte((unsigned char)p[i]))
            return false;
    return n > 0;
}

bool turbod_head_host(turbod_text host, turbod_text *name)
{
    const char *p = host.p;
    size_t n = host.n, end = 0;
    if (!n || n > 255)
        return false;
    if (p[0] == '[') {
        while (end < n && p[end] != ']')
            end++;
        if (end == n || end < 3)
            return false;
        for (size_t i = 1; i < end; i++)
            if (!strchr("0123456789abcdefABCDEF:.", p[i]))
                return false;
        end++;
    } else {
        while (end < n && p[end] != ':') {
            unsigned char c = (unsigned char)p[end];
            if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                  c == '.' || c == '-' || c == '_'))
                return false;
            end++;
        }
    }
    *name = (turbod_text){p, end};
    if (!end)
        return false;
    if (end == n)
        return true;
    if (p[end] != ':' || n - end < 2 || n - end > 6)
        return false;
    for (size_t i = end + 1; i < n; i++)
        if (p[i] < '0' || p[i] > '9')
            return false;
    return true;
}

static int content_length(turbod_head *h, turbod_text v)
{
    if (h->n_length++)
        return refuse(h, 400, "Content-Length is given twice");
    if (!v.n || v.n > 18)
        return refuse(h, v.n ? 413 : 400, v.n ? "Content-Length is too large"
                                              : "Content-Length is empty");
    h->content_length = 0;
    for (size_t i = 0; i < v.n; i++) {
        if (v.p[i] < '0' || v.p[i] > '9')
            return refuse(h, 400, "Content-Length is not a plain number");
        h->content_length = h->content_length * 10 + (uint64_t)(v.p[i] - '0');
    }
    return 0;
}

static int known_field(turbod_head *h, turbod_text name, turbod_text v)
{
    if (turbod_text_same(name, "Content-Length"))
        return content_length(h, v);
    if (turbod_text_same(name, "Transfer-Encoding")) {
        if (h->n_coding++ || !turbod_text_same(v, "chunked"))
            return refuse(h, 400, "Transfer-Encoding must be given once and be exactly chunked");
        return 0;
    }
    if (turbod_text_same(name, "Host")) {
        turbod_text host;
        if (h->n_host++)
            return refuse(h, 400, "Host is given twice");
        if (!turbod_head_host(v, &host))
            return refuse(h, 400, "Host is not a valid host name");
        h->host = v;
    } else if (turbod_text_same(name, "Authorization")) {
        h->n_authorization++;
        h->authorization = v;
    } else if (turbod_text_same(name, "Origin")) {
        h->n_origin++;
        h->origin = v;
    } else if (turbod_text_same(name, "Content-Type")) {
        h->n_type++;
        h->type = v;
    } else if (turbod_text_same(name, "X-Request-Id")) {
        h->request_id = v;
    } else if (turbod_text_same(name, "X-Turbo-Strict")) {
        h->strict = turbod_text_is(v, "1");
    } else if (turbod_text_same(name, "Expect")) {
        h->expect = true;
        if (!turbod_text_same(v, "100-continue"))
            return refuse(h, 417, "the only expectation known is 100-continue");
    } else if (turbod_text_same(name, "Upgrade")) {
        return 0; /* never honoured, as RFC 9110 7.8 allows */
    }
    return 0;
}

int turbod_head_field(turbod_head *h, const char *name, size_t name_len, const char *value,
                      size_t value_len)
{
    if (name_len > TURBOD_NAME_MAX)
        return refuse(h, 431, "a header name is longer than 256 bytes");
    if (++h->n_fields > TURBOD_FIELDS_MAX)
        return refuse(h, 431, "more than 64 header fields");
    h->bytes += name_len + value_len + 4;
    if (h->bytes > TURBOD_HEAD_MAX)
        return refuse(h, 431, "the header fields are longer than 32 KiB");
    if (!is_token(name, name_len))
        return refuse(h, 400, "a header name has a byte that is not allowed there");
    for (size_t i = 0; i < value_len; i++) {
        unsigned char c = (unsigned char)value[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return refuse(h, 400, "a header value has a control byte");
    }
    while (value_len && (*value == ' ' || *value == '\t')) {
        value++;
        value_len--;
    }
    while (value_len && (value[value_len - 1] == ' ' || value[value_len - 1] == '\t'))
        value_len--;
    return known_field(h, (turbod_text){name, name_len}, (turbod_text){value, value_len});
}

int turbod_head_finish(turbod_head *h)
{
    if (!h->n_host)
        return refuse(h, 400, "there is no Host header");
    if (h->n_length && h->n_coding)
        return refuse(h, 400, "Content-Length and Transfer-Encoding exclude each other");
    if (h->n_coding && h->http10)
        return refuse(h, 400, "HTTP/1.0 knows no Transfer-Encoding");
    return turbod_head_target(h);
}

int turbod_head_target(turbod_head *h)
{
    static const char scheme[] = "http://";
    const size_t scheme_len = sizeof scheme - 1;
    turbod_text t = h->target;
    if (!is_token(h->method.p, h->method.n) || h->method.n > 32)
        return refuse(h, 400, "the method is not a token");
    if (t.n > TURBOD_LINE_MAX)
        return refuse(h, 414, "the request line is longer than 8 KiB");
    for (size_t i = 0; i < t.n; i++)
        if ((unsigned char)t.p[i] <= 0x20 || (unsigned char)t.p[i] >= 0x7f)
            return refuse(h, 400, "the target has a byte that must be percent-encoded");
    if (t.n && t.p[0] == '/')
        return 0;
    if (t.n <= scheme_len || strncasecmp(t.p, scheme, scheme_len))
        return refuse(h, 400, "the target does not begin with /");
    t.p += scheme_len;
    t.n -= scheme_len;
    const char *slash = memchr(t.p, '/', t.n);
    size_t host = slash ? (size_t)(slash - t.p) : t.n;
    if (!slash || host != h->host.n || strncasecmp(t.p, h->host.p, host))
        return refuse(h, 400, "the target's host is not the Host header's");
    h->target = (turbod_text){slash, t.n - host};
    return 0;
}

static int request_line(turbod_head *h, const char *p, size_t n)
{
    const char *sp = memchr(p, ' ', n);
    if (!sp)
        return refuse(h, 400, "the request line has no target");
    h->method = (turbod_text){p, (size_t)(sp - p)};
    const char *rest = sp + 1;
    size_t left = n - h->method.n - 1;
    const char *sp2 = memchr(rest, ' ', left);
    if (!sp2)
        return refuse(h, 400, "the request line has no HTTP version");
    h->target = (turbod_text){rest, (size_t)(sp2 - rest)};
    turbod_text version = {sp2 + 1, left - h->target.n - 1};
    h->http10 = turbod_text_is(version, "HTTP/1.0");
    if (!h->http10 && !turbod_text_is(version, "HTTP/1.1"))
        return refuse(h, 400, "the HTTP version is not 1.1 or 1.0");
    return 0;
}

static int header_line(turbod_head *h, const char *p, size_t n)
{
    if (*p == ' ' || *p == '\t')
        return refuse(h, 400, "a header line is folded");
    const char *colon = memchr(p, ':', n);
    if (!colon)
        return refuse(h, n > TURBOD_NAME_MAX ? 431 : 400, "a header line has no colon");
    size_t name = (size_t)(colon - p);
    return turbod_head_field(h, p, name, colon + 1, n - name - 1);
}

int turbod_head_scan(const char *p, size_t n, turbod_head *h)
{
    size_t at = 0;
    *h = (turbod_head){0};
    for (;;) {
        const char *lf = memchr(p + at, '\n', n - at);
        size_t len = lf ? (size_t)(lf - p) - at : n - at;
        if (at == 0 && len > TURBOD_LINE_MAX)
            return refuse(h, 414, "the request line is longer than 8 KiB");
        if (at + len > TURBOD_HEAD_MAX)
            return refuse(h, 431, "the head is longer than 32 KiB");
        const char *cr = memchr(p + at, '\r', len);
        if (cr && cr + 1 < p + at + len)
            return refuse(h, 400, "a line has a bare CR");
        if (memchr(p + at, '\0', len))
            return refuse(h, 400, "the head has a NUL byte");
        if (!lf)
            return -1;
        if (!cr)
            return refuse(h, 400, "a line ends in a bare LF");
        len--;
        if (at == 0) {
            int bad = request_line(h, p, len);
            if (bad)
                return bad;
        } else if (len == 0) {
            h->length = (size_t)(lf - p) + 1;
            return turbod_head_finish(h);
        } else {
            int bad = header_line(h, p + at, len);
            if (bad)
                return bad;
        }
        at = (size_t)(lf - p) + 1;
    }
}
