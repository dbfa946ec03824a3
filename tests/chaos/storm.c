/* tests/chaos/storm.c: mixed requests against a real turbod whose KV pool is too small for them, a fifth of
 * the clients leaving at any moment, and witnesses in between whose answers are known.
 *
 *   storm SECONDS [REQUESTS [SEED]]
 *
 * Runs for SECONDS and on until REQUESTS were made. Every few seconds all clients leave at once, and then
 * everything must be back: KV blocks, queue, connections, descriptors, memory. $TURBOD is the server, $srcdir
 * the source tree, $CHAOS_SANITIZED tells that memory cannot be judged. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

#define LIVE 40
#define MOST_GROWTH_KIB (8 << 10)
#define BACK_LIMIT                                                                                 \
    10.0 /* seconds; what is allowed is one step, what is waited for is the machine */
#define WARM_ROUNDS 2

typedef struct calm { /* the server with nobody there */
    double took, steps;
    long rss;
    int fds;
} calm;

static bool quiet(const gauges *g)
{
    return g->running <= 0 && g->waiting <= 0 && g->free + g->cached >= g->total &&
           g->answering <= 1 && g->alive <= 1 && g->body_bytes <= 0 && g->clients <= 1;
}

static calm settle(const server *s)
{
    gauges first, g;
    double t0 = now();
    read_gauges(s->port, &first);
    for (g = first; !quiet(&g); read_gauges(s->port, &g)) {
        if (now() - t0 > BACK_LIMIT)
            die("not everything came back: running %g, waiting %g, blocks %g + %g of %g, answering "
                "%g, alive "
                "%g, bodies %g, clients %g",
                g.running, g.waiting, g.free, g.cached, g.total, g.answering, g.alive, g.body_bytes,
                g.clients);
        nap(0.002);
    }
    if (g.free + g.cached > g.total)
        die("more blocks than there are: %g + %g of %g", g.free, g.cached, g.total);
    if (g.five > 0)
        die("%g answers with a 5xx status", g.five);
    calm c = {now() - t0, g.steps - first.steps, rss_kib(s->pid), count_fds(s->pid)};
    for (int i = 0; i < 20; i++) { /* the look at the gauges was a connection too */
        int n = count_fds(s->pid);
        c.fds = n < c.fds ? n : c.fds;
        nap(0.005);
    }
    return c;
}

static const char *in_source(char *path, size_t n, const char *rest)
{
    const char *top = getenv("srcdir");
    snprintf(path, n, "%s/%s", top ? top : ".", rest);
    return path;
}

static void start_small(server *s, const char *turbod, const char *log)
{
    static char model[4096], policies[4096];
    const char *flags[] = {"--model",
                           in_source(model, sizeof model, "conf/models/internlm2-demo"),
                           "--policies",
                           in_source(policies, sizeof policies, "scripts/sampling"),
                           "--cache-max-entry-count",
                           "1MiB",
                           "--cache-block-seq-len",
                           "16",
                           "--max-batch-size",
                           "24",
                           "--max-prefill-token-num",
                           "64",
                           "--queue-timeout-ms",
                           "3600000",
                           "--request-timeout-ms",
                           "3600000",
                           NULL};
    server_start(s, turbod, log, flags);
}

/* What the witnesses say to nobody else, without a cache, with room. */
static void learn(storm *m, const char *turbod, const char *log)
{
    static char model[4096];
    server s;
    const char *flags[] = {"--model",
                           in_source(model, sizeof model, "conf/models/internlm2-demo"),
                           "--no-enable-prefix-caching",
                           "--cache-max-entry-count",
                           "32MiB",
                           "--threads",
                           "1",
                           NULL};
    server_start(&s, turbod, log, flags);
    m->port = s.port;
    storm_witnesses(m, true);
    storm_leave(m);
    if (server_stop(&s, 60))
        die("the reference server ends badly");
}

static void check_end(server *s)
{
    text log = {0};
    int code = server_stop(s, 60);
    server_log(s, &log);
    const char *bad = strstr(log.p, " error ");
    if (!bad)
        bad = strstr(log.p, "Sanitizer");
    if (!bad)
        bad = strstr(log.p, "runtime error");
    if (code || bad)
        die("turbod ended with %d:\n%.6000s", code, bad ? bad : log.p);
    free(log.p);
    unlink(s->log);
}

static void report(const storm *m, const gauges *g, double spent, const calm *base, const calm *end)
{
    const tally *t = &m->t;
    uint64_t left = 0;
    for (int i = 1; i < N_LEAVES; i++)
        left += t->left[i];
    printf("%llu requests in %.0f s: %llu answered whole, %llu of them witnesses, %llu refused as "
           "they must, "
           "%llu to a busy session, %llu too long; %.1f %% left:",
           (unsigned long long)t->asked, spent, (unsigned long long)t->whole,
           (unsigned long long)t->witnesses, (unsigned long long)t->refused,
           (unsigned long long)t->busy_session, (unsigned long long)t->too_long,
           100.0 * (double)left / (double)(t->asked ? t->asked : 1));
    for (int i = 1; i < N_LEAVES; i++)
        printf(" %s %llu", leaving_names[i], (unsigned long long)t->left[i]);
    printf("\n%.0f preemptions, %.0f of %.0f prompt tokens cached, longest answer %.2f s; RSS %ld "
           "-> %ld KiB, "
           "descriptors %d -> %d\n",
           g->preemptions, g->hits, g->queries, t->longest, base->rss, end->rss, base->fds,
           end->fds);
}

int main(int argc, char **argv)
{
    static storm m;
    char log[256];
    server s;
    gauges g;
    calm c = {0}, base = {0}, worst = {0};
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 60;
    uint64_t most = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    uint64_t seed = argc > 3 && *argv[3] ? strtoull(argv[3], NULL, 10) : (uint64_t)time(NULL);
    const char *turbod = getenv("TURBOD"), *temp = getenv("TMPDIR");
    bool sanitized = getenv("CHAOS_SANITIZED") && *getenv("CHAOS_SANITIZED");
    if (!turbod || seconds <= 0)
        die("usage: TURBOD=... storm SECONDS [REQUESTS [SEED]]");
    snprintf(log, sizeof log, "%s/turbod-storm-%d.log", temp ? temp : "/tmp", (int)getpid());
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    storm_init(&m, 0, seed);
    learn(&m, turbod, log);
    start_small(&s, turbod, log);
    m.port = s.port;
    double t0 = now(), round = seconds / 10 < 6 ? seconds / 10 : 6;
    for (int i = 0; now() - t0 < seconds || m.t.asked < most; i++) {
        storm_run(&m, LIVE, round, UINT64_MAX);
        storm_leave(&m);
        c = settle(&s);
        worst.took = c.took > worst.took ? c.took : worst.took;
        worst.steps = c.steps > worst.steps ? c.steps : worst.steps;
        storm_witnesses(&m, false);
        storm_leave(&m);
        if (i <= WARM_ROUNDS)
            base = settle(&s);
    }
    c = settle(&s);
    read_gauges(s.port, &g);
    report(&m, &g, now() - t0, &base, &c);
    printf("everything back within %.0f ms and %.0f steps of what the clients could see\n",
           worst.took * 1e3, worst.steps);
    if (g.preemptions < 1 && m.t.asked > 1000)
        die("nothing was preempted: the pool is not small");
    if (c.fds != base.fds)
        die("descriptors grew from %d to %d", base.fds, c.fds);
    if (!sanitized && c.rss - base.rss > MOST_GROWTH_KIB)
        die("memory grew from %ld to %ld KiB", base.rss, c.rss);
    check_end(&s);
    return 0;
}
