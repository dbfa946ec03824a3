/* core/net/door.c: the door thread: accepts, looks at the first head before libmicrohttpd does, keeps
 * all deadlines, notices clients that leave, and sends pings.
 *
 * The head is read with MSG_PEEK, so the daemon finds every byte in place. After the hand-over the
 * door still watches the socket for the peer's end, because the daemon does not while a connection is
 * suspended. Must not know: JSON, generations beyond cancel. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "net/net.h"
#include "util/err.h"
#include "util/log.h"

#define PEEK_BYTES (TURBOD_HEAD_MAX + TURBOD_LINE_MAX)
#define ACCEPTS 64 /* accepted at a time */
#define LAST_HEAD_MS 200 /* time for a head when the server stops */
#define LINGER_MS 1500       /* time a refused client gets to read its answer */
#define LINGER_LOSS_MS 50    /* pause of accept() when descriptors ran out */
#define GONE_MS 250 /* the daemon closes a connection whose peer left; else the door does */
#define MIN_PROGRESS 1024    /* bytes a reader must take in send_timeout_ms */
#define BODY_RATE 64         /* bytes a ms on top of body_timeout_ms */
#define STATE_ESTABLISHED 1      /* tcp_info.tcpi_state */
#define TAG_LISTEN UINT64_MAX
#define TAG_WAKE (UINT64_MAX - 1)

static const char *reason_of(int status)
{
    switch (status) {
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 417: return "Expectation Failed";
    case 431: return "Request Header Fields Too Large";
    default: return "Bad Request";
    }
}

static uint64_t tag_of(const turbod_client *c)
{
    return (uint64_t)(uint32_t)c->fd | (uint64_t)c->generation << 32;
}

turbod_client *turbod_client_of(turbod_http *h, int fd)
{
    return fd >= 0 && (size_t)fd < h->n_by_fd ? h->by_fd[fd] : NULL;
}

void turbod_client_drop(turbod_http *h, turbod_client *c)
{
    if (c->prev)
        c->prev->next = c->next;
    else
        h->clients = c->next;
    if (c->next)
        c->next->prev = c->prev;
    h->n_clients--;
    if (turbod_client_of(h, c->fd) == c)
        h->by_fd[c->fd] = NULL;
    free(c);
}

static void close_client(turbod_http *h, turbod_client *c)
{
    int fd = c->fd;
    turbod_client_drop(h, c);
    close(fd);
}

/* ---- accepting -------------------------------------------------------------------------------------- */

static void identify(turbod_client *c)
{
    /* Copies: reading one socket address type through another is what aliasing rules forbid, and gcc
     * does drop such reads. */
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    memcpy(&v4, &c->addr, sizeof v4);
    memcpy(&v6, &c->addr, sizeof v6);
    if (c->addr.ss_family == AF_INET) {
        memcpy(c->ip, &v4.sin_addr, 4);
        c->loopback = ntohl(v4.sin_addr.s_addr) >> 24 == 127;
    } else if (c->addr.ss_family == AF_INET6) {
        memcpy(c->ip, &v6.sin6_addr, 8);
        c->ip[15] = 6;
        c->loopback = IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
        if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
            memset(c->ip, 0, sizeof c->ip);
            memcpy(c->ip, v6.sin6_addr.s6_addr + 12, 4);
            c->loopback = c->ip[0] == 127;
        }
    }
}

static bool has_room(turbod_http *h, const turbod_client *c)
{
    if (h->n_clients >= h->max_connections)
        return false;
    if (c->loopback)
        return true;
    int same = 0;
    for (const turbod_client *o = h->clients; o; o = o->next)
        same += !memcmp(o->ip, c->ip, sizeof c->ip);
    return same < h->max_per_ip;
}

static bool remember(turbod_http *h, turbod_client *c)
{
    if ((size_t)c->fd >= h->n_by_fd) {
        size_t n = (size_t)c->fd + 256;
        turbod_client **p = realloc(h->by_fd, n * sizeof *p);
        if (!p)
            return false;
        memset(p + h->n_by_fd, 0, (n - h->n_by_fd) * sizeof *p);
        h->by_fd = p;
        h->n_by_fd = n;
    }
    if (h->by_fd[c->fd]) /* its fd is ours now, so the old owner is gone */
        turbod_client_drop(h, h->by_fd[c->fd]);
    c->generation = ++h->generation & 0x7fffffffu;
    h->by_fd[c->fd] = c;
    c->next = h->clients;
    if (c->next)
        c->next->prev = c;
    h->clients = c;
    h->n_clients++;
    return true;
}

static void socket_options(int fd)
{
    const struct {
        int level, name, value;
    } rows[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},      {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 60},    {IPPROTO_TCP, TCP_KEEPINTVL, 10},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},      {IPPROTO_TCP, TCP_USER_TIMEOUT, 30000},
        {SOL_SOCKET, SO_SNDBUF, 128 << 10},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        (void)setsockopt(fd, rows[i].level, rows[i].name, &rows[i].value, sizeof rows[i].value);
}

static void admit(turbod_http *h, int fd, const struct sockaddr_storage *addr, socklen_t len,
                  int64_t now)
{
    turbod_client *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    *c = (turbod_client){.fd = fd, .addr = *addr, .addr_len = len};
    identify(c);
    c->deadline = now + h->rules->header_ms;
    if (!has_room(h, c) || !remember(h, c)) {
        atomic_fetch_add(&h->refused_connections, 1);
        free(c);
        close(fd);
        return;
    }
    socket_options(fd);
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = tag_of(c)};
    if (epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, fd, &ev))
        close_client(h, c);
}

/* Descriptors ran out: one kept in reserve lets the caller be refused instead of waiting for ever. */
static void refuse_one(turbod_http *h)
{
    if (h->spare_fd >= 0)
        close(h->spare_fd);
    int fd = accept4(h->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    h->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    atomic_fetch_add(&h->refused_connections, 1);
}

/* True when accept() should rest for a while. */
static bool accept_some(turbod_http *h, int64_t now)
{
    for (int i = 0; i < ACCEPTS; i++) {
        struct sockaddr_storage addr;
        socklen_t len = sizeof addr;
        memset(&addr, 0, sizeof addr);
        int fd = accept4(h->listen_fd, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
            refuse_one(h);
            return true;
        }
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0)
            return false;
        pthread_mutex_lock(&h->mu);
        admit(h, fd, &addr, len, now);
        pthread_mutex_unlock(&h->mu);
    }
    return false;
}

/* ---- the first head --------------------------------------------------------------------------------- */

/* Answers and closes without the daemon. The peer's unread bytes are taken for a moment, or close()
 * would reset the connection before the answer was read. http.mu is held. */
static void answer(turbod_http *h, turbod_client *c, int status, const char *why, int64_t now)
{
    turbod_buf body, all;
    turbod_buf_init(&body, 4096);
    turbod_buf_init(&all, 8192);
    turbod_error_json(&body, status,
                      status == 413   ? "body_too_large"
                      : status == 408 ? "timeout"
                                      : "bad_request",
                      NULL, why);
    turbod_buf_printf(&all,
                      "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: application/json\r\n"
                      "Content-Length: %zu\r\nCache-Control: no-store\r\n"
                      "X-Content-Type-Options: nosniff\r\n\r\n%s",
                      status, reason_of(status), body.len, body.ptr ? body.ptr : "");
    if (!all.failed)
        (void)!send(c->fd, all.ptr, all.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    atomic_fetch_add(&h->responses[status / 100], 1);
    turbod_log(TURBO_LOG_INFO, "id=- key=- refused head %d: %s", status, why);
    turbod_buf_free(&body);
    turbod_buf_free(&all);
    shutdown(c->fd, SHUT_WR);
    c->phase = CLIENT_LINGER;
    c->deadline = now + LINGER_MS;
}

static void hand_over(turbod_http *h, turbod_client *c, const turbod_head *head, int64_t now)
{
    bool small = head->length <= TURBOD_SMALL_HEAD && head->n_fields <= TURBOD_SMALL_FIELDS;
    turbod_loop *loop = h->loops[small ? DAEMON_SMALL : DAEMON_LARGE];
    struct epoll_event ev = {.events = EPOLLRDHUP | EPOLLET, .data.u64 = tag_of(c)};
    c->loop = loop;
    c->phase = CLIENT_DAEMON;
    c->idle_since = now;
    if (epoll_ctl(h->epoll_fd, EPOLL_CTL_MOD, c->fd, &ev) ||
        !turbod_loop_adopt(loop, c->fd, &c->addr, c->addr_len, ev.data.u64))
        close_client(h, c);
}

void turbod_door_lost(turbod_http *h, int fd, uint64_t tag)
{
    pthread_mutex_lock(&h->mu);
    turbod_client *c = turbod_client_of(h, fd);
    if (c && tag_of(c) == tag)
        turbod_client_drop(h, c);
    pthread_mutex_unlock(&h->mu);
}

static void peek(turbod_http *h, turbod_client *c, char *space, int64_t now)
{
    turbod_head head;
    ssize_t n = recv(c->fd, space, PEEK_BYTES, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close_client(h, c);
        return;
    }
    c->got_bytes = true;
    int bad = turbod_head_scan(space, (size_t)n, &head);
    if (bad > 0) {
        answer(h, c, bad, head.why, now);
    } else if (bad < 0) {
        struct tcp_info info; /* the peer's end without a whole head: nothing more will come */
        socklen_t len = sizeof info;
        if (!getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) &&
            info.tcpi_state != STATE_ESTABLISHED)
            close_client(h, c);
    } else if (head.content_length > h->rules->body_limit) {
        answer(h, c, 413, "the body is larger than body_limit", now);
    } else {
        hand_over(h, c, &head, now);
    }
}

/* Reads what a refused client still sends. */
static void discard(turbod_http *h, turbod_client *c, char *space)
{
    for (int i = 0; i < 64; i++) {
        ssize_t n = recv(c->fd, space, PEEK_BYTES, MSG_DONTWAIT);
        if (n > 0)
            continue;
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            close_client(h, c);
        return;
    }
}

static void on_client(turbod_http *h, uint64_t tag, uint32_t events, char *space, int64_t now)
{
    turbod_exchange *x = NULL;
    pthread_mutex_lock(&h->mu);
    turbod_client *c = turbod_client_of(h, (int)(uint32_t)tag);
    if (!c || tag_of(c) != tag) {
        pthread_mutex_unlock(&h->mu);
        return;
    }
    if (c->phase == CLIENT_PEEK) {
        peek(h, c, space, now);
    } else if (c->phase == CLIENT_LINGER) {
        discard(h, c, space);
    } else if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        c->gone = true;
        if ((x = c->exchange))
            turbod_exchange_ref(x);
        /* A body that will never be whole. The daemon misses an end that came with the bytes before it. */
        if (x && atomic_load(&x->stage) == STAGE_BODY)
            shutdown(c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&h->mu);
    if (x) {
        turbod_exchange_gone(x);
        turbod_exchange_release(x);
    }
}

/* ---- deadlines -------------------------------------------------------------------------------------- */

/* Did the peer take at least MIN_PROGRESS bytes in send_ms while bytes wait for it? */
static bool stalled(turbod_client *c, int64_t send_ms, int64_t now)
{
    struct tcp_info info;
    socklen_t len = sizeof info;
    int queued = 0;
    memset(&info, 0, sizeof info);
    if (ioctl(c->fd, SIOCOUTQ, &queued) || queued <= 0 ||
        getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len)) {
        c->acked_at = 0;
        return false;
    }
    if (!c->acked_at || info.tcpi_bytes_acked - c->acked >= MIN_PROGRESS) {
        c->acked = info.tcpi_bytes_acked;
        c->acked_at = now;
        return false;
    }
    return now - c->acked_at > send_ms;
}

static void ping(turbod_exchange *x, int64_t now)
{
    pthread_mutex_lock(&x->mu);
    if (x->suspended && x->reply.stream && x->last_out && now - x->last_out >= x->rules->ping_ms) {
        x->ping = true;
        turbod_exchange_wake_locked(x);
    }
    pthread_mutex_unlock(&x->mu);
}

/* shutdown() and not close(): the fd belongs to the daemon, which sees the end of the stream; and a
 * suspended connection is woken through its exchange. http.mu is held. */
static void cut(turbod_client *c, turbod_exchange **gone)
{
    shutdown(c->fd, SHUT_RDWR);
    c->cut = true;
    if (c->exchange && !*gone) {
        *gone = c->exchange;
        turbod_exchange_ref(*gone);
    }
}

static void check_daemon_client(turbod_http *h, turbod_client *c, int64_t now,
                                turbod_exchange **gone)
{
    turbod_exchange *x = c->exchange;
    if (!x) {
        if (now - c->idle_since > (c->gone ? GONE_MS : h->rules->idle_ms))
            cut(c, gone);
        return;
    }
    int64_t spent = now - atomic_load(&x->stage_since);
    switch (atomic_load(&x->stage)) {
    case STAGE_HEAD:
        if (spent > (c->gone ? GONE_MS : x->rules->header_ms))
            cut(c, gone);
        break;
    case STAGE_BODY:
        if (spent > x->rules->body_ms + (int64_t)(x->charged / BODY_RATE))
            cut(c, gone);
        break;
    case STAGE_REPLY:
        if (stalled(c, x->rules->send_ms, now)) {
            turbod_log(TURBO_LOG_INFO, "id=%s: the client does not read; connection dropped", x->id);
            cut(c, gone);
        } else {
            ping(x, now);
        }
        break;
    default:
        break;
    }
}

static void check_deadlines(turbod_http *h, int64_t now)
{
    turbod_exchange *gone; /* one a round: its cancel must not run under http.mu */
    do {
        gone = NULL;
        pthread_mutex_lock(&h->mu);
        for (turbod_client *c = h->clients, *next; c && !gone; c = next) {
            next = c->next;
            if (c->phase == CLIENT_DAEMON) {
                if (!c->cut)
                    check_daemon_client(h, c, now, &gone);
            } else if (now > c->deadline) {
                if (c->phase == CLIENT_PEEK && c->got_bytes)
                    answer(h, c, 408, "the head did not arrive in header_timeout_ms", now);
                else
                    close_client(h, c);
            }
        }
        pthread_mutex_unlock(&h->mu);
        if (gone) {
            turbod_exchange_gone(gone);
            turbod_exchange_release(gone);
        }
    } while (gone);
}

/* How often deadlines are looked at: often enough for the shortest of them. */
static int tick_ms(turbod_http *h)
{
    pthread_mutex_lock(&h->mu);
    const turbod_rules *r = h->rules;
    int64_t t = r->header_ms;
    const int64_t others[] = {r->body_ms, r->idle_ms, r->send_ms, r->ping_ms};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        t = others[i] < t ? others[i] : t;
    pthread_mutex_unlock(&h->mu);
    t /= 8;
    return (int)(t < 10 ? 10 : t > 250 ? 250 : t);
}

static void listen_for(turbod_http *h, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.u64 = TAG_LISTEN};
    (void)epoll_ctl(h->epoll_fd, EPOLL_CTL_MOD, h->listen_fd, &ev);
}

/* Whoever got through the kernel's door before it closes is answered, if its request comes soon. */
static void stop_listening(turbod_http *h, int64_t now)
{
    if (h->listen_fd < 0)
        return;
    for (int i = 0; i < TURBOD_BACKLOG / ACCEPTS && !accept_some(h, now); i++)
        continue;
    pthread_mutex_lock(&h->mu);
    close(h->listen_fd);
    h->listen_fd = -1;
    for (turbod_client *c = h->clients; c; c = c->next)
        if (c->phase == CLIENT_PEEK && c->deadline > now + LAST_HEAD_MS)
            c->deadline = now + LAST_HEAD_MS;
    pthread_mutex_unlock(&h->mu);
}

static void *door_main(void *arg)
{
    turbod_http *h = arg;
    struct epoll_event ev[64];
    int64_t last = turbod_ms(), rest_until = 0;
    char *space = h->door_space;
    pthread_setname_np(pthread_self(), "turbo-door");
    while (!atomic_load(&h->stopping)) {
        const int tick = tick_ms(h);
        int n = epoll_wait(h->epoll_fd, ev, 64, tick);
        int64_t now = turbod_ms();
        if (atomic_load(&h->quiet))
            stop_listening(h, now);
        if (rest_until && now >= rest_until && h->listen_fd >= 0) {
            rest_until = 0;
            listen_for(h, EPOLLIN);
        }
        for (int i = 0; i < n; i++) {
            if (ev[i].data.u64 == TAG_WAKE) {
                uint64_t v;
                (void)!read(h->wake_fd, &v, sizeof v);
            } else if (ev[i].data.u64 != TAG_LISTEN) {
                on_client(h, ev[i].data.u64, ev[i].events, space, now);
            } else if (h->listen_fd >= 0 && accept_some(h, now)) {
                listen_for(h, 0);
                rest_until = now + LINGER_LOSS_MS;
            }
        }
        if (now - last >= tick) { /* not oftener: it looks at every connection */
            check_deadlines(h, now);
            last = now;
        }
    }
    stop_listening(h, turbod_ms());
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------------- */

turbo_status turbod_door_open(turbod_http *h, const turbod_conf *c, turbo_err *err)
{
    turbo_status st = turbod_listen(h, c, err);
    if (st)
        return st;
    h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    h->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct epoll_event a = {.events = EPOLLIN, .data.u64 = TAG_LISTEN};
    struct epoll_event b = {.events = EPOLLIN, .data.u64 = TAG_WAKE};
    if (h->epoll_fd < 0 || h->wake_fd < 0 || h->spare_fd < 0 ||
        epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, h->listen_fd, &a) ||
        epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, h->wake_fd, &b))
        return turbod_err(err, TURBO_EIO, "epoll: %s", strerror(errno));
    return TURBO_OK;
}

turbo_status turbod_door_start(turbod_http *h, turbo_err *err)
{
    h->door_space = malloc(PEEK_BYTES);
    if (!h->door_space || pthread_create(&h->door, NULL, door_main, h))
        return turbod_err(err, TURBO_ENOMEM, "cannot start the door thread");
    h->door_started = true;
    return TURBO_OK;
}

void turbod_door_poke(turbod_http *h)
{
    const uint64_t one = 1;
    (void)!write(h->wake_fd, &one, sizeof one);
}

void turbod_door_close(turbod_http *h)
{
    if (h->door_started) {
        turbod_door_poke(h);
        pthread_join(h->door, NULL);
        h->door_started = false;
    }
    free(h->door_space);
    h->door_space = NULL;
    const int fds[] = {h->listen_fd, h->epoll_fd, h->wake_fd, h->spare_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    h->listen_fd = h->epoll_fd = h->wake_fd = h->spare_fd = -1;
    while (h->clients) /* the daemon has stopped: only refused and unread ones are left */
        close_client(h, h->clients);
}
