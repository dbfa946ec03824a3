/* core/net/listen.c: the socket that turbod listens on. Main thread. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "net/net.h"
#include "util/err.h"

static turbo_status bind_one(turbod_http *h, const struct addrinfo *a, const turbod_conf *c,
                             turbo_err *err)
{
    const int on = 1;
    struct sockaddr_storage bound;
    socklen_t len = sizeof bound;
    h->listen_fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
    if (h->listen_fd < 0)
        return turbod_err(err, TURBO_EIO, "no socket: %s", strerror(errno));
    (void)setsockopt(h->listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(h->listen_fd, a->ai_addr, a->ai_addrlen) || listen(h->listen_fd, TURBOD_BACKLOG)) {
        if (errno == EADDRINUSE)
            return turbod_err(err, TURBO_EIO,
                              "port %d of %s is in use; stop the other server or set port (0 takes "
                              "a free one)",
                              (int)c->port, c->host);
        return turbod_err(err, TURBO_EIO, "cannot listen on %s port %d: %s", c->host, (int)c->port,
                          strerror(errno));
    }
    memset(&bound, 0, sizeof bound);
    if (getsockname(h->listen_fd, (struct sockaddr *)&bound, &len))
        return turbod_err(err, TURBO_EIO, "getsockname: %s", strerror(errno));
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memcpy(&v4, &bound, sizeof v4);
    memcpy(&v6, &bound, sizeof v6);
    h->port = ntohs(bound.ss_family == AF_INET6 ? v6.sin6_port : v4.sin_port);
    return TURBO_OK;
}

turbo_status turbod_listen(turbod_http *h, const turbod_conf *c, turbo_err *err)
{
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                             .ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    char port[8];
    const bool name = !strcmp(c->host, "localhost");
    snprintf(port, sizeof port, "%d", (int)c->port);
    hints.ai_flags |= AI_NUMERICHOST;
    if (getaddrinfo(name ? "127.0.0.1" : c->host, port, &hints, &list) || !list)
        return turbod_err(err, TURBO_EINVAL,
                          "host \"%s\" is no address; give one such as 127.0.0.1, 0.0.0.0 or ::1",
                          c->host);
    turbo_status st = bind_one(h, list, c, err);
    freeaddrinfo(list);
    return st;
}
