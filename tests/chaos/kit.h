/* tests/chaos/kit.h: a turbod under load and the numbers it shows: start, metrics, memory, descriptors, end.
 * One thread. Errors end the program with a line on stderr: this is a test, nothing needs to survive. */
#ifndef CHAOS_KIT_H
#define CHAOS_KIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Prints the line, kills the server that runs, and leaves with status 1. */
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

double now(void); /* monotonic seconds */
void nap(double seconds);

/* splitmix64: every number follows from the seed. */
uint64_t mix64(uint64_t *state);
/* 0 .. n-1 */
uint32_t upto(uint64_t *state, uint32_t n);

typedef struct text {
    char *p; /* always ends with a NUL once something was added */
    size_t n, cap;
} text;
void text_add(text *t, const char *p, size_t n);
void text_printf(text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

typedef struct server {
    pid_t pid;
    int port;
    char log[256]; /* path of its output */
} server;

/* Starts `turbod` with the flags (NULL ends them) on a free port and waits until it is ready. */
void server_start(server *s, const char *turbod, const char *name, const char *const *flags);
/* SIGTERM; the exit code, which must come within limit seconds. */
int server_stop(server *s, double limit);
void server_log(const server *s, text *out);

int dial(int port); /* a connected non-blocking socket */
/* One whole exchange on its own connection: the reply's status, the body behind its head. */
int ask(int port, const char *method, const char *path, const char *body, text *reply);

typedef struct gauges {
    double running, waiting, total, free, cached, preemptions, steps;
    double answering, alive, body_bytes, clients, five, hits, queries;
} gauges;
void read_gauges(int port, gauges *g);
long rss_kib(pid_t pid);
int count_fds(pid_t pid);

#endif
