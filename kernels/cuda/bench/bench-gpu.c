/* kernels/cuda/bench/bench-gpu.c: how near the kernels come to what the card gives: read bandwidth, products,
 * attention, and whole decode steps of model shapes, made of the launchers the backend uses, with random
 * weights made on the device. Times are those of events around replays of a graph; medians.
 *   bench-gpu [--quick] [--csv FILE] [--batch N] [memory|single|gemv|decode|step|parts|dense|prefill|quant|quant-rows|w8a8|load|tower ...]
 * Nothing named: all. single: steps of one sequence; step: of more. parts: what a step is made of, by the size of the batch (N: that one only).
 * --quick: small shapes and few rounds, to see that it runs (also on the host). */
#include "bench-gpu.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

turbok_cu *cu;
bool quick;
int32_t only_batch;
double read_rate;
static FILE *csv;

static void stop(const char *what)
{
    turbo_err err = {""};
    turbok_cu_status(cu, &err);
    fprintf(stderr, "bench-gpu: %s: %s\n", what, err.text);
    fflush(NULL);
    _exit(1);
}

void *room(size_t bytes)
{
    turbok_cu_ptr p = 0;
    turbok_cu_note(cu, cu->drv.mem_alloc(&p, bytes ? bytes : 1), "memory of the device");
    if (turbok_cu_bad(cu))
        stop("no memory; end what else uses the device");
    return (void *)(uintptr_t)p;
}

void give(void *p)
{
    cu->drv.mem_free(turbok_cu_at(p));
}

void *numbers(int64_t n, float scale)
{
    static uint32_t seed;
    void *p = room((size_t)n * 2);
    turbok_cu_random(cu, TURBO_BF16, p, n, scale, ++seed);
    return p;
}

void *upload(const void *host, size_t bytes)
{
    void *p = room(bytes);
    turbo_err err;
    turbok_cu_to_device(cu, turbok_cu_at(p), host, bytes);
    if (turbok_cu_wait(cu, &err))
        stop("upload");
    return p;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* What it takes to replay what is measured. */
typedef struct replay {
    turbok_cu_graph graph;
    turbok_cu_graph_exec exec;
    double t[64];
} replay;

void in_turns(timed *all, int n, int rounds)
{
    turbok_cu_event from, to;
    turbo_err err;
    const turbok_cu_driver *d = &cu->drv;
    replay *each = calloc((size_t)n, sizeof *each);
    int r = d->event_create(&from, 0);
    r = r ? r : d->event_create(&to, 0);
    rounds = quick ? 2 : rounds;
    for (int i = 0; i < n && !r; i++) {
        all[i].work(all[i].ctx); /* once outside: modules are loaded, shared memory is asked for */
        if (turbok_cu_wait(cu, &err))
            stop("a kernel failed");
        r = d->capture_begin(cu->stream, TURBOK_CU_CAPTURE_THREAD_LOCAL);
        all[i].work(all[i].ctx);
        r = r ? r : d->capture_end(cu->stream, &each[i].graph);
        r = r ? r : d->graph_instantiate(&each[i].exec, each[i].graph, 0);
    }
    for (int k = -2; k < rounds; k++)
        for (int i = 0; i < n && !r; i++) {
            float ms = 0;
            r = d->event_record(from, cu->stream);
            r = r ? r : d->graph_launch(each[i].exec, cu->stream);
            r = r ? r : d->event_record(to, cu->stream);
            r = r ? r : d->event_synchronize(to);
            r = r ? r : d->event_elapsed(&ms, from, to);
            if (k >= 0)
                each[i].t[k] = (double)ms * 1e-3;
        }
    turbok_cu_note(cu, r, "timing");
    if (turbok_cu_bad(cu))
        stop("timing");
    d->event_destroy(from);
    d->event_destroy(to);
    for (int i = 0; i < n; i++) {
        d->graph_exec_destroy(each[i].exec);
        d->graph_destroy(each[i].graph);
        qsort(each[i].t, (size_t)rounds, sizeof each[i].t[0], by_size);
        all[i].seconds = each[i].t[rounds / 2];
    }
    free(each);
}

double seconds(void (*work)(void *), void *ctx, int rounds)
{
    timed t = {work, ctx, 0};
    in_turns(&t, 1, rounds);
    return t.seconds;
}

void report(const char *what, const char *of, double s, double bytes, double flops, double limit)
{
    double rate = bytes > 0 ? bytes / s : flops / s;
    printf("%-22s %-44s %10.2f us %9.1f %s", what, of, s * 1e6, rate / (bytes > 0 ? 1e9 : 1e12),
           bytes > 0 ? "GB/s   " : "TFLOP/s");
    if (limit > 0)
        printf("  %.3f of limit", rate / limit);
    printf("\n");
    fflush(stdout);
    record(what, of, s, bytes, flops, limit);
}

void record(const char *what, const char *of, double s, double bytes, double flops, double limit)
{
    double rate = bytes > 0 ? bytes / s : flops / s;
    if (csv)
        fprintf(csv, "\"%s\",\"%s\",%.3f,%.0f,%.0f,%.4f\n", what, of, s * 1e6, bytes, flops,
                limit > 0 && isfinite(limit) ? rate / limit : 0);
    if (csv)
        fflush(csv); /* the time for all of it may run out */
}

typedef struct read_job {
    char *p;
    int64_t n;
    void *out;
} read_job;

static void read_all(void *ctx)
{
    read_job *j = ctx;
    turbok_cu_read(cu, j->p, j->n, j->out);
}

static void bench_read(void)
{
    read_job j = {.n = (quick ? 1 << 20 : (int64_t)4 << 30) / 16, .out = room(4)};
    j.p = numbers(j.n * 8, 1);
    double s = seconds(read_all, &j, 15);
    read_rate = (double)j.n * 16 / s;
    report("read", quick ? "1 MiB" : "4 GiB", s, (double)j.n * 16, 0, 0);
    give(j.p);
    give(j.out);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {{"memory", bench_memory_later}, /* first: later it finds what others took */
                 {"single", bench_single}, /* before what heats the card */
                 {"gemv", bench_gemv},           {"decode", bench_decode},
                 {"step", bench_step},           {"parts", bench_parts},
                 {"dense", bench_dense},         {"prefill", bench_prefill},
                 {"quant", bench_quant},         {"quant-rows", bench_quant_rows},
                 {"w8a8", bench_w8a8},           {"load", bench_load},
                 {"tower", bench_tower}};
    enum { MEMORY };
    turbo_err err = {""};
    bool all = true;
    bool wanted[sizeof parts / sizeof parts[0]] = {false};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--quick"))
            quick = true;
        else if (!strcmp(argv[i], "--csv") && i + 1 < argc)
            csv = fopen(argv[++i], "w");
        else if (!strcmp(argv[i], "--batch") && i + 1 < argc)
            only_batch = (int32_t)strtol(argv[++i], NULL, 10);
        else
            for (size_t k = 0; k < sizeof parts / sizeof parts[0]; k++)
                if (!strcmp(argv[i], parts[k].name)) {
                    wanted[k] = true;
                    all = false;
                }
    }
    if (csv)
        fprintf(csv, "what,shape,us,bytes,flop,of_limit\n");
    if (all || wanted[MEMORY])
        bench_memory();
    if (turbok_cu_open(0, &cu, &err)) {
        printf("SKIP: bench-gpu: %s\n", err.text);
        return 77;
    }
    printf("%s\n", cu->name);
    bench_read();
    for (size_t k = 0; k < sizeof parts / sizeof parts[0]; k++)
        if (all || wanted[k])
            parts[k].run();
    if (csv)
        fclose(csv);
    turbok_cu_close(cu);
    return 0;
}
