/* tests/chaos/client.c: see client.h. */
#include "client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_LIMIT 240.0 /* seconds: longer than any answer takes under sanitizers */
#define CLOSE_LIMIT 20.0 /* the server closes what was half-closed within */

void storm_init(storm *m, int port, uint64_t seed)
{
    m->port = port;
    m->seed = seed;
    m->epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < MOST_LIVE; i++)
        m->slots[i].fd = -1;
    if (m->epoll < 0)
        die("epoll: %s", strerror(errno));
}

static void hang_up(slot *s, way how)
{
    const struct linger now_off = {1, 0};
    if (s->fd < 0)
        return;
    if (how == BY_RST)
        setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &now_off, sizeof now_off);
    close(s->fd); /* leaves the epoll by itself */
    s->fd = -1;
}

static void over(storm *m, slot *s)
{
    s->busy = false;
    m->n_live--;
}

static void leave(storm *m, slot *s)
{
    m->t.left[s->s.leave]++;
    if (s->s.how == BY_HALF_CLOSE) { /* the server ends the connection then */
        shutdown(s->fd, SHUT_WR);
        s->half_closed = true;
        s->leave_at = now() + CLOSE_LIMIT;
        return;
    }
    hang_up(s, s->s.how);
    over(m, s);
}

/* ---- answers ------------------------------------------------------------------------------------------- */

static size_t count_of(const char *in, const char *what)
{
    size_t n = 0;
    for (const char *p = in; (p = strstr(p, what)); p += strlen(what))
        n++;
    return n;
}

static const char *body_of(const text *in)
{
    const char *end = in->n ? strstr(in->p, "\r\n\r\n") : NULL;
    return end ? end + 4 : NULL;
}

/* Is the whole answer there? Chunks hold JSON, in which no line break is raw, so that the last chunk shows. */
static bool complete(const text *in)
{
    const char *body = body_of(in), *length;
    if (!body)
        return false;
    size_t have = in->n - (size_t)(body - in->p);
    length = strcasestr(in->p, "\r\nContent-Length: ");
    if (length && length < body)
        return have >= strtoul(length + 18, NULL, 10);
    return have >= 5 && !memcmp(in->p + in->n - 5, "0\r\n\r\n", 5) &&
           (have == 5 || in->p[in->n - 6] == '\n');
}

static void dechunk(const char *p, text *out)
{
    out->n = 0;
    text_add(out, "", 0);
    for (;;) {
        char *rest;
        size_t n = strtoul(p, &rest, 16);
        if (rest == p || rest[0] != '\r' || strlen(rest) < n + 4)
            die("a broken chunk: %.60s", p);
        if (!n)
            return;
        text_add(out, rest + 2, n);
        p = rest + 2 + n + 2;
    }
}

static void wrong(const slot *s, const char *why, const char *answer)
{
    fprintf(stderr, "request %llu: %.2000s\n", (unsigned long long)s->number, s->s.bytes.p);
    die("request %llu: %s: %.3000s", (unsigned long long)s->number, why, answer);
}

/* The values of a key, joined: what does not depend on how a stream was cut into events. */
static void join(const char *in, const char *key, char end, text *out)
{
    size_t n = strlen(key);
    for (const char *p = in; (p = strstr(p, key));) {
        const char *q = p += n;
        while (*q && *q != end)
            q += *q == '\\' && q[1] ? 2 : 1;
        text_add(out, p, (size_t)(q - p));
        if (end == ']')
            text_add(out, ",", 1);
        p = q;
    }
    text_add(out, "\n", 1);
}

/* What must be the same each time: everything but ids, times and usage. */
static void essence(const slot *s, const char *body, text *out)
{
    out->n = 0;
    text_add(out, "", 0);
    if (s->s.stream) {
        join(body, "\"content\":\"", '"', out);
        join(body, "\"token_ids\":[", ']', out);
        join(body, "\"finish_reason\":\"", '"', out);
        return;
    }
    const char *from = strstr(body, "\"choices\":"), *to = from ? strstr(from, ",\"usage\"") : NULL;
    if (!to)
        wrong(s, "no choices", body);
    text_add(out, from, (size_t)(to - from));
}

static void check_good(storm *m, slot *s, const char *body)
{
    static text e;
    const char *done = strstr(body, "data: [DONE]\n\n");
    if (strstr(body, "\"error\":{"))
        wrong(s, "an error in the answer", body);
    if (s->s.stream && !s->s.ndjson && (!done || done[14]))
        wrong(s, "the stream has no end", body);
    if (count_of(body, "\"finish_reason\":\"") != (size_t)s->s.n)
        wrong(s, "not as many ends as answers", body);
    if (s->s.witness < 0)
        return;
    essence(s, body, &e);
    text *want = &m->known[s->s.witness];
    if (!want->n)
        text_add(want, e.p, e.n);
    else if (want->n != e.n || memcmp(want->p, e.p, e.n)) {
        fprintf(stderr, "alone: %s\n", want->p);
        wrong(s, "a witness answers differently", e.p);
    }
    m->t.witnesses++;
}

static void check_refusal(storm *m, slot *s, int status, const char *body)
{
    bool shape = !strncmp(body, "{\"error\":{\"message\":\"", 21) && strstr(body, "\"code\":\"");
    if (shape && s->s.bad && status >= 400 && status < 500)
        m->t.refused++;
    else if (shape && s->s.session && status == 400 && strstr(body, "\"session_busy\""))
        m->t.busy_session++;
    else if (shape && status == 400 && strstr(body, "\"context_length_exceeded\""))
        m->t.too_long++;
    else
        wrong(s, "an unexpected status", s->in.p);
}

static void check_answer(storm *m, slot *s)
{
    static text plain;
    const char *body = body_of(&s->in);
    int status = (int)strtol(s->in.p + 9, NULL, 10);
    bool chunked = strcasestr(s->in.p, "\r\nTransfer-Encoding: chunked") != NULL;
    if (chunked) {
        dechunk(body, &plain);
        body = plain.p;
    }
    if (status == 200 && !s->s.bad)
        check_good(m, s, body);
    else
        check_refusal(m, s, status, body);
    m->t.whole++;
    double took = now() - s->began;
    m->t.longest = took > m->t.longest ? took : m->t.longest;
    if (strcasestr(s->in.p, "\r\nConnection: close") || !s->s.keep)
        hang_up(s, BY_FIN);
}

/* ---- one connection -------------------------------------------------------------------------------------- */

static void watch(storm *m, slot *s)
{
    struct epoll_event ev = {.events = EPOLLIN | (s->sent < s->s.bytes.n ? EPOLLOUT : 0u),
                             .data.ptr = s};
    if (epoll_ctl(m->epoll, EPOLL_CTL_ADD, s->fd, &ev) &&
        epoll_ctl(m->epoll, EPOLL_CTL_MOD, s->fd, &ev))
        die("epoll_ctl: %s", strerror(errno));
}

static void push(storm *m, slot *s)
{
    size_t want = s->s.leave == LEAVES_BODY ? s->s.at : s->s.bytes.n;
    while (s->sent < want) {
        ssize_t n = send(s->fd, s->s.bytes.p + s->sent, want - s->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) /* refused before all was sent: the answer says why, when there is one */
            s->sent = want;
        else
            s->sent += (size_t)n;
    }
    if (s->s.leave == LEAVES_BODY || s->s.leave == LEAVES_QUEUE)
        leave(m, s);
    else if (s->s.leave == LEAVES_PREFILL || (s->s.leave == LEAVES_DECODE && !s->s.stream))
        s->leave_at = now() + s->s.at * 1e-3;
    if (s->busy && s->fd >= 0)
        watch(m, s);
}

static void launch(storm *m, slot *s)
{
    bool fresh = s->fd < 0;
    s->busy = true;
    m->n_live++;
    m->t.asked++;
    s->sent = s->in.n = 0;
    s->began = now();
    s->leave_at = 0;
    s->half_closed = false;
    if (fresh)
        s->fd = dial(m->port);
    push(m, s);
}

static bool far_enough(const slot *s)
{
    if (s->s.leave == LEAVES_BYTES)
        return s->in.n >= s->s.at;
    return s->s.leave == LEAVES_DECODE && s->s.stream &&
           count_of(s->in.p, s->s.ndjson ? "{\"text\":" : "data: {") >= s->s.at;
}

static void pull(storm *m, slot *s)
{
    static char part[65536];
    ssize_t n = read(s->fd, part, s->s.leave == LEAVES_BYTES ? 512 : sizeof part);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n > 0)
        text_add(&s->in, part, (size_t)n);
    if (n <= 0) {
        if (!s->half_closed)
            wrong(s, n ? strerror(errno) : "closed without a whole answer", s->in.n ? s->in.p : "");
        hang_up(s, BY_FIN);
        over(m, s);
    } else if (s->half_closed) {
        return; /* read to the end, whatever it is */
    } else if (complete(&s->in)) {
        check_answer(m, s);
        over(m, s);
    } else if (far_enough(s)) {
        leave(m, s);
    }
}

static void tick(storm *m, slot *s, double t)
{
    if (!s->busy)
        return;
    if (s->leave_at > 0 && t >= s->leave_at) {
        if (s->half_closed)
            wrong(s, "half-closed and never closed by the server", s->in.n ? s->in.p : "");
        s->leave_at = 0;
        leave(m, s);
    } else if (t - s->began > ANSWER_LIMIT) {
        wrong(s, "no answer for minutes", s->in.n ? s->in.p : "");
    }
}

static void spin(storm *m)
{
    struct epoll_event ev[MOST_LIVE];
    int n = epoll_wait(m->epoll, ev, MOST_LIVE, 2);
    for (int i = 0; i < n; i++) {
        slot *s = ev[i].data.ptr;
        if (!s->busy) { /* kept open and idle: the server closed it */
            hang_up(s, BY_FIN);
            continue;
        }
        if ((ev[i].events & EPOLLOUT) && !s->half_closed)
            push(m, s);
        if (s->busy && s->fd >= 0 && (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            pull(m, s);
    }
    double t = now();
    for (int i = 0; i < MOST_LIVE; i++)
        tick(m, &m->slots[i], t);
}

void storm_run(storm *m, int live, double seconds, uint64_t most)
{
    double end = now() + seconds;
    while (now() < end && m->t.asked < most) {
        for (int i = 0; i < live && m->t.asked < most; i++)
            if (!m->slots[i].busy) {
                slot *s = &m->slots[i];
                s->number = m->next++;
                mix_shot(&s->s, m->seed, s->number);
                launch(m, s);
            }
        spin(m);
    }
}

void storm_leave(storm *m)
{
    for (int i = 0; i < MOST_LIVE; i++) {
        slot *s = &m->slots[i];
        hang_up(s, i % 2 ? BY_RST : BY_FIN);
        if (s->busy)
            over(m, s);
    }
}

void storm_witnesses(storm *m, bool learn)
{
    for (int i = 0; i < N_WITNESSES; i++) {
        slot *s = &m->slots[0];
        hang_up(s, BY_FIN);
        if (learn)
            m->known[i].n = 0;
        s->number = (uint64_t)i;
        mix_witness(&s->s, i);
        launch(m, s);
        while (s->busy)
            spin(m);
    }
}
