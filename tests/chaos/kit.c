/* tests/chaos/kit.c: see kit.h. */
#include "kit.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t alive; /* the server that must not outlive us */

void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fputs("FAIL: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    if (alive > 0) {
        kill(alive, SIGKILL);
        waitpid(alive, NULL, 0);
    }
    exit(1);
}

double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

void nap(double seconds)
{
    struct timespec ts = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&ts, NULL);
}

uint64_t mix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t upto(uint64_t *state, uint32_t n)
{
    return (uint32_t)(mix64(state) >> 33) % n;
}

void text_add(text *t, const char *p, size_t n)
{
    if (t->n + n + 1 > t->cap) {
        t->cap = 2 * (t->n + n + 1);
        t->p = realloc(t->p, t->cap);
        if (!t->p)
            die("no memory");
    }
    memcpy(t->p + t->n, p, n);
    t->n += n;
    t->p[t->n] = '\0';
}

void text_printf(text *t, const char *fmt, ...)
{
    char part[4096];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(part, sizeof part, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof part)
        die("a part of a body is too long");
    text_add(t, part, (size_t)n);
}

static void read_all(const char *path, text *out)
{
    char part[65536];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    out->n = 0;
    text_add(out, "", 0);
    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    while ((n = read(fd, part, sizeof part)) > 0)
        text_add(out, part, (size_t)n);
    close(fd);
}

void server_log(const server *s, text *out)
{
    read_all(s->log, out);
}

static void run_server(const server *s, const char *turbod, const char *const *flags)
{
    const char *argv[64] = {turbod, "--port", "0"};
    int n = 3, fd = open(s->log, O_WRONLY | O_CREAT | O_TRUNC, 0600),
        null = open("/dev/null", O_RDONLY);
    for (int i = 0; flags[i] && n < 63; i++)
        argv[n++] = flags[i];
    if (fd < 0 || null < 0 || dup2(null, 0) < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
        _exit(126);
    execv(turbod, (char *const *)argv);
    _exit(127);
}

void server_start(server *s, const char *turbod, const char *name, const char *const *flags)
{
    static const char mark[] = "listening on http://127.0.0.1:";
    text log = {0};
    const char *at;
    snprintf(s->log, sizeof s->log, "%s", name);
    unlink(s->log);
    s->pid = fork();
    if (s->pid < 0)
        die("fork: %s", strerror(errno));
    if (!s->pid)
        run_server(s, turbod, flags);
    alive = s->pid;
    for (double end = now() + 120;; nap(0.01)) {
        if (waitpid(s->pid, NULL, WNOHANG) == s->pid) {
            alive = 0;
            die("turbod ended at its start:\n%s",
                access(s->log, R_OK) ? "" : (read_all(s->log, &log), log.p));
        }
        if (now() > end)
            die("turbod is not ready");
        if (access(s->log, R_OK))
            continue;
        read_all(s->log, &log);
        at = strstr(log.p, mark);
        if (at && strstr(log.p, " ready in "))
            break;
    }
    s->port = (int)strtol(at + sizeof mark - 1, NULL, 10);
    free(log.p);
}

int server_stop(server *s, double limit)
{
    int status;
    kill(s->pid, SIGTERM);
    for (double end = now() + limit; waitpid(s->pid, &status, WNOHANG) != s->pid; nap(0.01))
        if (now() > end)
            die("turbod does not stop in %.0f s", limit);
    alive = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int dial(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    const int on = 1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a))
        die("connect: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (fcntl(fd, F_SETFL, O_NONBLOCK))
        die("fcntl: %s", strerror(errno));
    return fd;
}

int ask(int port, const char *method, const char *path, const char *body, text *reply)
{
    text send_it = {0};
    char part[65536];
    ssize_t n;
    int fd = dial(port);
    fcntl(fd, F_SETFL, 0);
    text_printf(&send_it, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", method,
                path);
    if (body)
        text_printf(&send_it, "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                    strlen(body));
    text_add(&send_it, "\r\n", 2);
    if (body)
        text_add(&send_it, body, strlen(body));
    if (send(fd, send_it.p, send_it.n, MSG_NOSIGNAL) != (ssize_t)send_it.n)
        die("%s: not sent: %s", path, strerror(errno));
    reply->n = 0;
    text_add(reply, "", 0);
    while ((n = read(fd, part, sizeof part)) > 0)
        text_add(reply, part, (size_t)n);
    close(fd);
    free(send_it.p);
    const char *end = strstr(reply->p, "\r\n\r\n");
    if (!end || strncmp(reply->p, "HTTP/1.1 ", 9))
        die("%s: no answer: \"%.200s\"", path, reply->p);
    int status = (int)strtol(reply->p + 9, NULL, 10);
    size_t head = (size_t)(end + 4 - reply->p);
    memmove(reply->p, reply->p + head, reply->n - head + 1);
    reply->n -= head;
    return status;
}

/* The sum of all samples whose line begins so. */
static double sum_of(const char *all, const char *begin)
{
    double sum = 0;
    size_t n = strlen(begin);
    bool any = false;
    for (const char *line = all; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, begin, n) || !strchr(" {,", line[n]))
            continue;
        const char *end = strchr(line, '\n'), *value = end;
        while (value && value > line && value[-1] != ' ')
            value--;
        sum += value ? strtod(value, NULL) : 0;
        any = true;
    }
    if (!any)
        die("/metrics has no %s", begin);
    return sum;
}

void read_gauges(int port, gauges *g)
{
    text m = {0};
    if (ask(port, "GET", "/metrics", NULL, &m) != 200)
        die("/metrics does not answer");
    g->running = sum_of(m.p, "turbo:num_requests_running");
    g->waiting = sum_of(m.p, "turbo:num_requests_waiting");
    g->total = sum_of(m.p, "turbo:kv_blocks_total");
    g->free = sum_of(m.p, "turbo:kv_blocks_free");
    g->cached = sum_of(m.p, "turbo:kv_blocks_cached");
    g->preemptions = sum_of(m.p, "turbo:num_preemptions_total");
    g->steps = sum_of(m.p, "turbo:steps_total");
    g->answering = sum_of(m.p, "turbo:http_requests_answering");
    g->alive = sum_of(m.p, "turbo:http_requests_alive");
    g->body_bytes = sum_of(m.p, "turbo:http_body_bytes");
    g->clients = sum_of(m.p, "turbo:client_fds");
    g->five = sum_of(m.p, "turbo:http_responses_total{code=\"5xx\"}");
    g->queries = sum_of(m.p, "turbo:prefix_cache_queries_total");
    g->hits = sum_of(m.p, "turbo:prefix_cache_hits_total");
    free(m.p);
}

long rss_kib(pid_t pid)
{
    char path[64];
    text t = {0};
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    read_all(path, &t);
    const char *at = strstr(t.p, "VmRSS:");
    long kib = at ? strtol(at + 6, NULL, 10) : 0;
    free(t.p);
    return kib;
}

int count_fds(pid_t pid)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}
