/* core/cli/bench_target.c: the address of a server, and single questions to it, before the load begins.
 * Main thread. Plain HTTP only: what is measured is the server, not a TLS library. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/err.h"

#define CONNECT_SECONDS 10

/* The key never stands on a command line, where every user of the machine could read it. */
static turbo_status read_key(cli_target *t, const char *file, turbo_err *err)
{
    char line[600];
    FILE *f = fopen(file, "re");
    if (!f)
        return turbod_err(err, errno == ENOENT ? TURBO_ENOENT : TURBO_EIO, "%s: %s", file,
                          strerror(errno));
    bool ok = fgets(line, sizeof line, f) != NULL;
    fclose(f);
    line[ok ? strcspn(line, "\r\n") : 0] = '\0';
    size_t n = strlen(line);
    if (!n || n > 512 || line[strcspn(line, " \t")])
        return turbod_err(err, TURBO_EDATA,
                          "%s: the first line is the key: 1 to 512 bytes without blanks", file);
    snprintf(t->auth, sizeof t->auth, "Authorization: Bearer %s\r\n", line);
    return TURBO_OK;
}

/* host, port and prefix of http://host[:port][/prefix][/v1][/] */
static turbo_status split(cli_target *t, const char *url, char port[8], turbo_err *err)
{
    const char *p = url;
    if (!strncmp(p, "https://", 8))
        return turbod_err(
            err, TURBOD_EUSAGE,
            "turbo bench speaks plain HTTP; measure behind the TLS proxy, with http://");
    if (!strncmp(p, "http://", 7))
        p += 7;
    size_t host = *p == '[' ? strcspn(p, "]") + 1 : strcspn(p, ":/"), skip = *p == '[';
    const char *q = p + host;
    size_t digits = *q == ':' ? strspn(q + 1, "0123456789") : 0;
    size_t n = host - 2 * skip;
    snprintf(port, 8, "%.*s", digits ? (int)digits : 2, digits ? q + 1 : "80");
    q += digits ? digits + 1 : 0;
    size_t path = strlen(q);
    while (path && q[path - 1] == '/')
        path--;
    if (path >= 3 && !memcmp(q + path - 3, "/v1", 3))
        path -= 3;
    if (host <= 2 * skip || n >= sizeof t->host || digits > 5 || path >= sizeof t->prefix ||
        (*q && *q != '/') || q[strcspn(q, " \t\r\n?#")])
        return turbod_err(err, TURBOD_EUSAGE,
                          "\"%.80s\" is no URL of a server; http://HOST:PORT is expected", url);
    memcpy(t->host, p + skip, n);
    memcpy(t->prefix, q, path);
    return TURBO_OK;
}

static bool wait_for(int fd, short what, double until)
{
    double left = until - cli_now();
    struct pollfd pf = {fd, what, 0};
    return left > 0 && poll(&pf, 1, (int)(left * 1000) + 1) > 0;
}

static int dial(const struct sockaddr *addr, socklen_t len, double until)
{
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), e = 0;
    socklen_t n = sizeof e;
    if (fd < 0)
        return -1;
    if (!connect(fd, addr, len))
        return fd;
    if (errno == EINPROGRESS && wait_for(fd, POLLOUT, until) &&
        !getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) && !e)
        return fd;
    e = e ? e : errno == EINPROGRESS ? ETIMEDOUT : errno;
    close(fd);
    errno = e;
    return -1;
}

turbo_status cli_target_open(cli_target *t, const char *url, const char *key_file, turbo_err *err)
{
    char port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    memset(t, 0, sizeof *t);
    turbo_status st = split(t, url, port, err);
    if (!st && key_file)
        st = read_key(t, key_file, err);
    if (st)
        return st;
    int rc = getaddrinfo(t->host, port, &hints, &list), why = 0;
    if (rc)
        return turbod_err(err, TURBO_EIO, "%s: %s", t->host, gai_strerror(rc));
    for (struct addrinfo *a = list; a && !t->addr_len; a = a->ai_next) {
        int fd = dial(a->ai_addr, a->ai_addrlen, cli_now() + CONNECT_SECONDS);
        why = errno;
        if (fd < 0)
            continue;
        close(fd);
        memcpy(&t->addr, a->ai_addr, a->ai_addrlen);
        t->addr_len = a->ai_addrlen;
    }
    freeaddrinfo(list);
    /* For the Host header. */
    size_t n = strlen(t->host);
    bool v6 = strchr(t->host, ':') != NULL;
    if (n + 10 > sizeof t->host)
        return turbod_err(err, TURBOD_EUSAGE, "the host's name is too long");
    if (v6) {
        memmove(t->host + 1, t->host, n);
        t->host[0] = '[';
        n++;
    }
    snprintf(t->host + n, sizeof t->host - n, "%s:%s", v6 ? "]" : "", port);
    return t->addr_len ? TURBO_OK
                       : turbod_err(err, TURBO_EIO, "%s: %s; is the server running there?", t->host,
                                    strerror(why));
}

void cli_target_head(const cli_target *t, turbod_buf *out, const char *method, const char *path,
                     size_t n)
{
    turbod_buf_printf(out, "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: turbo-bench\r\n", method,
                      t->prefix, path, t->host);
    turbod_buf_str(out, t->auth);
    if (n)
        turbod_buf_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", n);
    turbod_buf_str(out, "Connection: close\r\n\r\n");
}

static void keep(void *ctx, const char *p, size_t n)
{
    turbod_buf_add(ctx, p, n);
}

static turbo_status exchange(int fd, const turbod_buf *request, double until, cli_http *h,
                             turbod_buf *reply, turbo_err *err)
{
    char space[16384];
    const char *wrong = NULL;
    for (size_t at = 0; at < request->len;) {
        ssize_t n = send(fd, request->ptr + at, request->len - at, MSG_NOSIGNAL);
        if (n > 0)
            at += (size_t)n;
        else if (errno != EAGAIN || !wait_for(fd, POLLOUT, until))
            return turbod_err(err, TURBO_EIO, "the server takes no request");
    }
    while (!cli_http_whole(h) && !wrong) {
        ssize_t n = recv(fd, space, sizeof space, 0);
        if (n > 0) {
            wrong = cli_http_feed(h, space, (size_t)n, keep, reply);
        } else if (!n) {
            if (cli_http_closed(h))
                break;
            wrong = "the connection closed in the middle of the answer";
        } else if (errno != EAGAIN && errno != EINTR) {
            wrong = strerror(errno);
        } else if (cli_interrupt_waits()) {
            return turbod_err(err, TURBO_ECANCELLED, "interrupted");
        } else if (!wait_for(fd, POLLIN, until) && cli_now() >= until) {
            wrong = "no answer in time (--timeout)";
        }
    }
    return wrong ? turbod_err(err, TURBO_EIO, "server: %s", wrong) : TURBO_OK;
}

turbo_status cli_target_ask(const cli_target *t, const char *method, const char *path,
                            const turbod_buf *body, double seconds, int *status, turbod_buf *reply,
                            turbo_err *err)
{
    turbod_buf request;
    cli_http h = {0};
    double until = cli_now() + seconds;
    turbo_status st = TURBO_OK;
    turbod_buf_init(&request, (size_t)1 << 30);
    cli_target_head(t, &request, method, path, body ? body->len : 0);
    if (body)
        turbod_buf_add(&request, body->ptr, body->len);
    turbod_buf_clear(reply);
    turbod_buf_str(reply, "");
    int fd = dial((const struct sockaddr *)&t->addr, t->addr_len, until);
    if (fd < 0)
        st = turbod_err(err, TURBO_EIO, "%s: %s; is the server running there?", t->host,
                        strerror(errno));
    else if (request.failed)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for a request");
    else
        st = exchange(fd, &request, until, &h, reply, err);
    if (!st && reply->failed)
        st = turbod_err(err, TURBO_ELIMIT, "an answer to %s of more than %zu MiB", path,
                        reply->max >> 20);
    if (fd >= 0)
        close(fd);
    *status = h.status;
    turbod_buf_free(&request);
    return st;
}
