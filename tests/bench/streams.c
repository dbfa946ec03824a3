/* tests/bench/streams.c: N streams at once against a running server, as cheaply as a client can: one
 * thread, epoll, and a look at the last bytes of what arrives. Prints one line of JSON.
 *
 *   streams PORT STREAMS TOKENS [PROMPT_BYTES]
 *   streams send BYTES        what the kernel alone takes to send so many bytes over loopback, in us */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct stream {
    int fd, events;
    double first, last;
} stream;

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int dial(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static int ask(int fd, int tokens, int prompt, int i)
{
    static char body[70000], head[256], words[65536];
    memset(words, 'a', (size_t)prompt);
    words[prompt] = '\0';
    int n = snprintf(body, sizeof body,
                     "{\"prompt\":\"%d %s\",\"max_tokens\":%d,\"ignore_eos\":true,"
                     "\"temperature\":0,\"stream\":true}",
                     i, words, tokens);
    int h = snprintf(head, sizeof head,
                     "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                     "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n",
                     n);
    return write(fd, head, (size_t)h) != h || write(fd, body, (size_t)n) != n;
}

/* Counts events ("data: " begins one) and sees whether the stream is over. */
static int take(stream *s, const char *p, ssize_t n, double t)
{
    for (const char *q = p; (q = memmem(q, (size_t)(p + n - q), "data: {", 7)); q += 7)
        s->events++;
    if (s->first <= 0 && s->events)
        s->first = t;
    s->last = t;
    return memmem(p, (size_t)n, "[DONE]", 6) != NULL;
}

#define PAIRS 256
#define ROUNDS 100

/* Microseconds of CPU of one send(), over PAIRS connections in turn, as a server with so many streams
 * does; 0 when it cannot be measured. */
static double bare_send(size_t bytes)
{
    static int from[PAIRS], to[PAIRS];
    static char space[65536];
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0);
    int64_t spent = 0;
    struct timespec t0, t1;
    if (l < 0 || bind(l, (struct sockaddr *)&a, len) || listen(l, PAIRS) ||
        getsockname(l, (struct sockaddr *)&a, &len) || bytes > sizeof space)
        return 0;
    for (int i = 0; i < PAIRS; i++) {
        const int on = 1;
        to[i] = dial(ntohs(a.sin_port));
        from[i] = accept(l, NULL, NULL);
        if (to[i] < 0 || from[i] < 0 ||
            setsockopt(from[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
            return 0;
    }
    for (int r = 0; r < ROUNDS; r++) {
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t0);
        for (int i = 0; i < PAIRS; i++)
            if (send(from[i], space, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)bytes)
                return 0;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t1);
        spent += (t1.tv_sec - t0.tv_sec) * 1000000000 + t1.tv_nsec - t0.tv_nsec;
        for (int i = 0; i < PAIRS; i++)
            if (recv(to[i], space, bytes, MSG_WAITALL) != (ssize_t)bytes)
                return 0;
    }
    return (double)spent / (ROUNDS * PAIRS) * 1e-3;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "send")) {
        printf("%.3f\n", bare_send((size_t)strtoul(argv[2], NULL, 10)));
        return 0;
    }
    if (argc < 4) {
        fputs("usage: streams PORT STREAMS TOKENS [PROMPT_BYTES]\n", stderr);
        return 64;
    }
    int port = (int)strtol(argv[1], NULL, 10), n = (int)strtol(argv[2], NULL, 10);
    int tokens = (int)strtol(argv[3], NULL, 10), prompt = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 40;
    stream *all = calloc((size_t)n, sizeof *all);
    char *space = malloc(1 << 18);
    int ep = epoll_create1(0), open = 0, wakes = 0;
    uint64_t bytes = 0, reads = 0;
    if (!all || !space || ep < 0 || prompt < 0 || prompt > 60000)
        return 1;
    for (int i = 0; i < n; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &all[i]};
        all[i].fd = dial(port);
        if (all[i].fd < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, &ev)) {
            perror("connect");
            return 1;
        }
    }
    double t0 = now();
    for (int i = 0; i < n; i++, open++)
        if (ask(all[i].fd, tokens, prompt, i))
            return 1;
    while (open) {
        struct epoll_event ev[256];
        int k = epoll_wait(ep, ev, 256, 60000);
        if (k <= 0)
            return 1;
        wakes++;
        double t = now();
        for (int i = 0; i < k; i++) {
            stream *s = ev[i].data.ptr;
            ssize_t got = read(s->fd, space, 1 << 18);
            if (got <= 0) {
                fprintf(stderr, "streams: a stream broke\n");
                return 1;
            }
            bytes += (uint64_t)got;
            reads++;
            if (take(s, space, got, t)) {
                epoll_ctl(ep, EPOLL_CTL_DEL, s->fd, NULL);
                open--;
            }
        }
    }
    double first = 1e300, last_first = 0, last = 0;
    long events = 0;
    for (int i = 0; i < n; i++) {
        first = all[i].first < first ? all[i].first : first;
        last_first = all[i].first > last_first ? all[i].first : last_first;
        last = all[i].last > last ? all[i].last : last;
        events += all[i].events;
        close(all[i].fd);
    }
    printf("{\"wall_s\":%.6f,\"first_s\":%.6f,\"last_first_s\":%.6f,\"events\":%ld,\"bytes\":%llu,"
           "\"reads\":%llu,\"wakes\":%d}\n",
           last - t0, first - t0, last_first - t0, events, (unsigned long long)bytes,
           (unsigned long long)reads, wakes);
    return 0;
}
