/* core/cli/bench_load.c: thousands of streams at once from one thread: non-blocking sockets, epoll, a
 * timer. Main thread. Must not know where prompts come from or what becomes of the figures.
 *
 * Open loop: a request leaves at its time whatever became of those before it, and its times count from
 * when it should have left, so that a slow server (or client) cannot hide. How late requests left, and
 * how long the loop took to come around, are measured too. Each request has a connection of its own. */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/checked.h"
#include "util/err.h"

#define READ_SIZE ((size_t)256 << 10)
#define MOST_EVENTS 256
#define REQUEST_MAX ((size_t)1 << 30)
#define GONE 16 /* refused connections in a row with nothing running: the server is gone */
#define LOOK 0.25 /* seconds between looks at deadlines */

typedef struct conn {
    struct conn *next, *prev;
    cli_shot *shot;
    int fd;
    bool sending;
    double heard; /* when something last happened */
    double gap_from; /* last event with text */
    double now; /* of the read that is being parsed */
    struct loop *loop;
    turbod_buf request, reply; /* reply: of an answer that is no stream */
    size_t sent;
    cli_http http;
    cli_sse sse;
    bool done, failed, no_json; /* as the events told */
} conn;

typedef struct loop {
    cli_load *l;
    int ep, timer;
    double t0;
    size_t next; /* shot to send */
    size_t running, ended, failures;
    turbod_buf ready; /* request of shot `next`, made before its time */
    bool has_ready;
    conn open; /* list head */
    char *space;
    double looked, shown;
} loop;

const char *cli_outcome_name(cli_outcome o)
{
    static const char *const names[] = {"not sent", "ok",          "connect",
                                        "status",   "error event", "cut off",
                                        "protocol", "timeout",     "cancelled"};
    return names[o];
}

/* Keeps the first complaint: later ones mostly repeat it. */
static void complain(cli_load *l, const char *about, const char *what)
{
    if (!l->message[0])
        snprintf(l->message, sizeof l->message, "%s%s%.200s", about, *about ? ": " : "", what);
}

static void end(conn *c, cli_outcome outcome)
{
    loop *lp = c->loop;
    cli_shot *s = c->shot;
    s->outcome = outcome;
    s->status = c->http.status;
    s->end = cli_now() - lp->t0;
    lp->failures = outcome == CLI_SHOT_CONNECT ? lp->failures + 1 : 0;
    c->prev->next = c->next;
    c->next->prev = c->prev;
    if (c->fd >= 0)
        close(c->fd);
    turbod_buf_free(&c->request);
    turbod_buf_free(&c->reply);
    cli_sse_free(&c->sse);
    free(c);
    lp->running--;
    lp->ended++;
}

/* ---- what comes ----------------------------------------------------------------------------------------- */

static void on_event(void *ctx, const char *p, size_t n)
{
    conn *c = ctx;
    cli_shot *s = c->shot;
    cli_load *l = c->loop->l;
    cli_event e;
    if (!cli_event_read(p, n, &e)) {
        c->no_json = true;
        return;
    }
    double t = c->now - c->loop->t0;
    if (e.text) {
        if (s->events++) {
            double gap = t - c->gap_from;
            int32_t tokens = e.so_far - s->so_far;
            /* No count, or none that can be: more than were asked for. */
            tokens = !e.so_far || tokens < 1 || tokens > s->n_out ? 1 : tokens;
            cli_samples_add(&l->gap, gap);
            l->gap_zero += gap <= 0;
            for (int32_t i = 0; i < tokens; i++)
                cli_samples_add(&l->itl, gap / tokens);
            s->worst_gap = gap > s->worst_gap ? gap : s->worst_gap;
        } else {
            s->first = t;
        }
        s->last = c->gap_from = t;
        s->so_far = e.so_far ? e.so_far : s->so_far;
        l->counted |= e.so_far > 0;
    }
    if (e.usage) {
        s->usage = true;
        s->prompt = e.prompt;
        s->completion = e.completion;
        s->cached = e.cached;
    }
    s->finished |= e.finished;
    s->length |= e.length;
    c->done |= e.done;
    if (e.error) {
        c->failed = true;
        complain(l, "", e.message);
    }
}

static void on_body(void *ctx, const char *p, size_t n)
{
    conn *c = ctx;
    if (c->http.status == 200 && c->http.stream) {
        if (!cli_sse_feed(&c->sse, p, n, on_event, c))
            c->no_json = true;
    } else if (c->reply.len < 4096) {
        turbod_buf_add(&c->reply, p, n < 4096 ? n : 4096);
    }
}

/* An answer is whole, or its connection has closed. */
static void settle(conn *c, bool closed)
{
    cli_load *l = c->loop->l;
    char status[16];
    if (c->http.status && c->http.status != 200) {
        snprintf(status, sizeof status, "%d", c->http.status);
        complain(l, status, c->reply.len ? c->reply.ptr : "no text");
        end(c, CLI_SHOT_STATUS);
    } else if (c->failed) {
        end(c, CLI_SHOT_ERROR);
    } else if (c->no_json || (c->http.status && !c->http.stream)) {
        complain(l, "", "status 200, but no event stream of JSON");
        end(c, CLI_SHOT_PROTOCOL);
    } else if (c->done && (cli_http_whole(&c->http) || closed)) {
        end(c, CLI_SHOT_OK);
    } else {
        complain(l, "", "an answer was cut off");
        end(c, CLI_SHOT_CUT);
    }
}

static void receive(conn *c)
{
    loop *lp = c->loop;
    ssize_t n = recv(c->fd, lp->space, READ_SIZE, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    c->heard = c->now = cli_now();
    if (n <= 0) {
        settle(c, n == 0 && cli_http_closed(&c->http));
        return;
    }
    lp->l->bytes += (uint64_t)n;
    const char *wrong = cli_http_feed(&c->http, lp->space, (size_t)n, on_body, c);
    if (wrong) {
        complain(lp->l, "", wrong);
        end(c, CLI_SHOT_PROTOCOL);
    } else if (cli_http_whole(&c->http)) {
        settle(c, true);
    }
}

/* ---- what goes -------------------------------------------------------------------------------------------- */

static void watch(conn *c, uint32_t what, int op)
{
    struct epoll_event ev = {.events = what, .data.ptr = c};
    if (epoll_ctl(c->loop->ep, op, c->fd, &ev)) {
        complain(c->loop->l, "epoll", strerror(errno));
        c->failed = true;
    }
}

static void transmit(conn *c)
{
    int e = 0;
    socklen_t len = sizeof e;
    if (!c->sent && (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &len) || e)) {
        complain(c->loop->l, "connect", strerror(e));
        end(c, CLI_SHOT_CONNECT);
        return;
    }
    while (c->sent < c->request.len) {
        ssize_t n = send(c->fd, c->request.ptr + c->sent, c->request.len - c->sent, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) { /* an answer (413, say) may be there all the same */
            c->sending = false;
            watch(c, EPOLLIN, EPOLL_CTL_MOD);
            return;
        }
        c->heard = cli_now();
        c->sent += (size_t)n;
    }
    turbod_buf_free(&c->request);
    c->sending = false;
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static turbo_status make_ready(loop *lp, turbo_err *err)
{
    turbod_buf body;
    if (lp->has_ready || lp->next >= lp->l->n)
        return TURBO_OK;
    turbod_buf_init(&body, REQUEST_MAX);
    turbod_buf_init(&lp->ready, REQUEST_MAX);
    lp->l->body(lp->l->ctx, lp->next, &body);
    cli_target_head(lp->l->target, &lp->ready, "POST", lp->l->path, body.len);
    turbod_buf_add(&lp->ready, body.ptr, body.len);
    bool failed = body.failed || lp->ready.failed;
    turbod_buf_free(&body);
    lp->has_ready = true;
    return failed ? turbod_err(err, TURBO_ENOMEM, "no memory for a request") : TURBO_OK;
}

static turbo_status launch(loop *lp, turbo_err *err)
{
    cli_load *l = lp->l;
    turbo_status st = make_ready(lp, err);
    conn *c = calloc(1, sizeof *c);
    if (st || !c) {
        free(c);
        return st ? st : turbod_err(err, TURBO_ENOMEM, "no memory for a connection");
    }
    c->loop = lp;
    c->shot = &l->shots[lp->next++];
    c->request = lp->ready;
    lp->has_ready = false;
    turbod_buf_init(&c->reply, 8192);
    cli_sse_init(&c->sse);
    c->next = lp->open.next;
    c->prev = &lp->open;
    c->next->prev = lp->open.next = c;
    lp->running++;
    c->sending = true;
    double now = cli_now();
    c->heard = now;
    c->shot->sent = now - lp->t0;
    if (!l->concurrency) {
        double late = c->shot->sent - c->shot->at;
        cli_samples_add(&l->late, late > 0 ? late : 0);
    }
    const struct sockaddr *addr = (const struct sockaddr *)&l->target->addr;
    c->fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    if (c->fd >= 0)
        (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (c->fd < 0 || (connect(c->fd, addr, l->target->addr_len) && errno != EINPROGRESS)) {
        complain(l, "connect", strerror(errno));
        end(c, CLI_SHOT_CONNECT);
        return TURBO_OK;
    }
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);
    if (c->failed)
        end(c, CLI_SHOT_CONNECT);
    return TURBO_OK;
}

/* ---- the loop ------------------------------------------------------------------------------------------------ */

static bool may_send(const loop *lp, double t)
{
    const cli_load *l = lp->l;
    if (lp->next >= l->n || t >= l->seconds)
        return false;
    return l->concurrency ? lp->running < (size_t)l->concurrency : l->shots[lp->next].at <= t;
}

static void set_timer(const loop *lp)
{
    const cli_load *l = lp->l;
    double now = cli_now(), until = now + LOOK;
    bool more = lp->next < l->n && now - lp->t0 < l->seconds && lp->failures < GONE;
    if (more && !l->concurrency && lp->t0 + l->shots[lp->next].at < until)
        until = lp->t0 + l->shots[lp->next].at;
    if (more && l->concurrency && lp->running < (size_t)l->concurrency)
        until = now;
    int64_t ns = (int64_t)(until * 1e9);
    struct itimerspec when = {.it_value = {ns / 1000000000, ns % 1000000000}};
    (void)timerfd_settime(lp->timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void look(loop *lp)
{
    double now = cli_now();
    cli_load *l = lp->l;
    if (now - lp->looked < LOOK)
        return;
    lp->looked = now;
    for (conn *c = lp->open.next, *next; c != &lp->open; c = next) {
        next = c->next;
        if (now - c->heard > l->timeout)
            end(c, CLI_SHOT_TIMEOUT);
    }
    if (l->progress && now - lp->shown > 0.5) {
        lp->shown = now;
        fprintf(stderr, "\r%7.1f s  %zu of %zu sent, %zu running, %zu ended, %zu events ",
                now - lp->t0, lp->next, l->n, lp->running, lp->ended, l->itl.n);
    }
}

static bool over(loop *lp)
{
    cli_load *l = lp->l;
    if (cli_interrupted())
        l->interrupted = true;
    if (lp->failures >= GONE && !lp->running)
        l->gone = true;
    return l->interrupted || l->gone ||
           (!lp->running && (lp->next >= l->n || cli_now() - lp->t0 >= l->seconds));
}

static turbo_status turn(loop *lp, turbo_err *err)
{
    struct epoll_event ev[MOST_EVENTS];
    turbo_status st = TURBO_OK;
    set_timer(lp);
    int n = epoll_wait(lp->ep, ev, MOST_EVENTS, -1);
    if (n < 0 && errno != EINTR)
        return turbod_err(err, TURBO_EIO, "epoll: %s", strerror(errno));
    double from = cli_now();
    for (int i = 0; i < n; i++) {
        conn *c = ev[i].data.ptr;
        uint64_t ticks;
        if (!c) {
            if (read(lp->timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
                return turbod_err(err, TURBO_EIO, "timer: %s", strerror(errno));
        } else if (c->sending) {
            transmit(c);
        } else {
            receive(c);
        }
    }
    while (!st && lp->failures < GONE && may_send(lp, cli_now() - lp->t0))
        st = launch(lp, err);
    if (lp->failures >= GONE && lp->running == 0)
        return st;
    look(lp);
    cli_samples_add(&lp->l->pass, cli_now() - from);
    return st ? st : make_ready(lp, err);
}

static double thread_cpu(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static turbo_status run(loop *lp, turbo_err *err)
{
    cli_load *l = lp->l;
    turbo_status st = make_ready(lp, err);
    double cpu = thread_cpu();
    lp->t0 = cli_now();
    while (!st && !over(lp))
        st = turn(lp, err);
    l->cpu = thread_cpu() - cpu;
    while (lp->open.next != &lp->open) /* closing makes the server cancel */
        end(lp->open.next, CLI_SHOT_CANCELLED);
    l->wall = cli_now() - lp->t0;
    if (l->progress)
        fputs("\r\033[K", stderr);
    return st;
}

/* A descriptor a stream, and some for ourselves. */
static void raise_limit(void)
{
    struct rlimit lim;
    if (!getrlimit(RLIMIT_NOFILE, &lim) && lim.rlim_cur < lim.rlim_max) {
        lim.rlim_cur = lim.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &lim);
    }
}

turbo_status cli_load_run(cli_load *l, turbo_err *err)
{
    loop lp = {.l = l, .ep = -1, .timer = -1};
    turbo_status st = TURBO_OK;
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    lp.open.next = lp.open.prev = &lp.open;
    lp.space = malloc(READ_SIZE);
    lp.ep = epoll_create1(EPOLL_CLOEXEC);
    lp.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    raise_limit();
    if (!lp.space)
        st = turbod_err(err, TURBO_ENOMEM, "no memory to read into");
    else if (lp.ep < 0 || lp.timer < 0 || epoll_ctl(lp.ep, EPOLL_CTL_ADD, lp.timer, &ev))
        st = turbod_err(err, TURBO_EIO, "epoll: %s", strerror(errno));
    if (!st)
        st = run(&lp, err);
    if (lp.has_ready)
        turbod_buf_free(&lp.ready);
    if (lp.ep >= 0)
        close(lp.ep);
    if (lp.timer >= 0)
        close(lp.timer);
    free(lp.space);
    return st;
}

void cli_load_free(cli_load *l)
{
    cli_samples_free(&l->itl);
    cli_samples_free(&l->gap);
    cli_samples_free(&l->late);
    cli_samples_free(&l->pass);
}
