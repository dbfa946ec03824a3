/* core/net/head.h: what a request head may look like. Any thread; pure functions on bytes.
 *
 * libmicrohttpd accepts heads that a proxy in front may read differently (request smuggling). The raw
 * scan sees the bytes before it does; the field rules are shared with the second look at the headers
 * that it hands out, for requests on a kept-alive connection. Must not know: sockets, routes, keys. */
#ifndef TURBOD_HEAD_H
#define TURBOD_HEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TURBOD_HEAD_MAX 32768 /* whole head */
#define TURBOD_LINE_MAX 8192  /* request line */
#define TURBOD_FIELDS_MAX 64
#define TURBOD_NAME_MAX 256

typedef struct turbod_text {
    const char *p;
    size_t n;
} turbod_text;

typedef struct turbod_head {
    size_t length; /* bytes up to the end of the blank line (raw scan only) */
    turbod_text method, target;
    bool http10;
    int n_fields, n_host, n_length, n_coding, n_authorization, n_origin, n_type;
    size_t bytes;
    uint64_t content_length;
    turbod_text host, authorization, origin, type, request_id;
    bool expect, strict;
    const char *why; /* what is wrong, when a function below says so */
} turbod_head;

/* The functions answer 0 when all is well, else the HTTP status of the refusal with h->why set. */
int turbod_head_field(turbod_head *h, const char *name, size_t name_len, const char *value,
                      size_t value_len);
int turbod_head_finish(turbod_head *h); /* rules over all fields, once they were seen */
/* The request line's parts: method a token, target printable, as "/..." or "http://host/...". */
int turbod_head_target(turbod_head *h);

/* Raw bytes of a head that may still be arriving. Answers 0 for a whole, good head (h filled, texts
 * point into p), -1 when more bytes are needed, else a status. */
int turbod_head_scan(const char *p, size_t n, turbod_head *h);

/* The host of "host", "host:port", "[v6]" or "[v6]:port", without port. False: none of these. */
bool turbod_head_host(turbod_text host, turbod_text *name);
bool turbod_text_is(turbod_text t, const char *s);
bool turbod_text_same(turbod_text t, const char *s); /* ignoring case */

#endif
