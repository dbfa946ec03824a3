/* kernels/cuda/bench/load.c: bench-gpu's loading of weights: a file in the page cache to matrices on the device, read
 * and mapped, as it is and quantised on the way, against a copy of pinned memory in the same run. Bytes are those
 * of the file. */
#include "bench-gpu.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cuda/state.h"

enum { IN = 4096 };

static double clock_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what, const turbo_err *err)
{
    fprintf(stderr, "bench-gpu: %s: %s\n", what, err->text);
    fflush(NULL);
    _exit(1);
}

/* n matrices of `rows`, from the file, which is read or, mapped, not. */
static double load(turbok_device *d, const char *map, int fd, bool mapped, const turbok_grid *g,
                   int n, int64_t rows)
{
    const turbok_cuda *s = d->exec.self;
    turbo_linear *w[64] = {NULL};
    turbo_err err = {""};
    if (d->backend->expect(d, (uint64_t)n * (uint64_t)rows * IN * 2, &err))
        fail("memory", &err);
    turbok_cuda *self = d->exec.self;
    self->arena_used = 0; /* nothing lies there from the time before */
    double from = clock_s();
    for (int i = 0; i < n; i++) {
        uint64_t at = (uint64_t)i * (uint64_t)rows * IN * 2;
        const turbok_file file = {.fd = fd, .mapped = mapped, .at = at};
        const turbok_part part = {
            .data = map + at,
            .rows = rows,
            .grid = g,
            .finite = 1,
            .file = &file,
            .dtype = TURBO_BF16,
            .later = !g,
        };
        if (turbok_cuda_linear_rows_new(d, TURBO_BF16, &part, 1, IN, 0, &w[i], &err))
            fail("loading", &err);
    }
    if (turbok_cuda_finish_loads(d, &err) || turbok_cu_wait(s->cu, &err))
        fail("loading", &err);
    double t = clock_s() - from;
    for (int i = 0; i < n; i++)
        turbok_cuda_linear_free(d, w[i]);
    return t;
}

static double pinned(const turbok_cuda *s, size_t bytes)
{
    turbo_err err = {""};
    char *to = room(STAGE_BYTES * STAGES);
    double from = clock_s();
    for (size_t at = 0, i = 0; at < bytes; at += STAGE_BYTES, i = (i + 1) % STAGES)
        turbok_cu_to_device(s->cu, turbok_cu_at(to) + i * STAGE_BYTES, s->stage[i], STAGE_BYTES);
    if (turbok_cu_wait(s->cu, &err))
        fail("copying", &err);
    double t = clock_s() - from;
    give(to);
    return t;
}

/* Numbers that are finite, in a file without a name. */
static int make_file(size_t bytes)
{
    FILE *f = tmpfile();
    size_t chunk = (size_t)1 << 20;
    uint16_t *some = malloc(chunk);
    for (size_t i = 0; some && i < chunk / 2; i++)
        some[i] = (uint16_t)(0x3c00u + i * 2654435761u % 512 + (i % 3 ? 0x8000u : 0));
    bool ok = f && some;
    for (size_t at = 0; ok && at < bytes; at += chunk)
        ok = fwrite(some, 1, chunk, f) == chunk;
    ok = ok && !fflush(f);
    free(some);
    int fd = ok ? dup(fileno(f)) : -1;
    if (f)
        fclose(f);
    return fd;
}

void bench_load(void)
{
    static const struct {
        const char *name;
        bool mapped;
        int bits;
    } rows[] = {{"bf16, read", false, 0},
                {"bf16, mapped", true, 0},
                {"bf16 to int8, read", false, 8},
                {"bf16 to int4, read", false, 4}};
    int n = quick ? 2 : 16;
    int64_t out = quick ? 128 : 14336;
    size_t bytes = (size_t)n * (size_t)out * IN * 2;
    turbo_err err = {""};
    turbok_device d = {.backend = turbok_backend_entry()};
    d.exec.prim = &turbok_prim_scalar;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
        d.exec.prim = &turbok_prim_avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        d.exec.prim = &turbok_prim_avx512;
#endif
    const turbok_device_opts o = {.act_dtype = TURBO_BF16};
    if (turbok_pool_new(0, false, 2000, &d.exec.pool, &err) || d.backend->open(&d, &o, &err))
        fail("opening", &err);
    int fd = make_file(bytes);
    char *map = fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        fail("a file of weights cannot be made in the folder for temporary files", &err);
    double best = 0, copy = 0;
    for (int k = 0; k < 3; k++) {
        copy = pinned(d.exec.self, bytes);
        best = k && best < copy ? best : copy;
    }
    double rate = (double)bytes / best;
    report("load", "copy of pinned memory", best, (double)bytes, 0, 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const turbok_grid g = {.bits = rows[i].bits,
                               .group = 32,
                               .scale_dtype = TURBO_BF16,
                               .offset = rows[i].bits == 8 ? 128 : 8};
        for (int k = 0; k < 3; k++) {
            double t = load(&d, map, fd, rows[i].mapped, g.bits ? &g : NULL, n, out);
            best = k && best < t ? best : t;
        }
        report("load", rows[i].name, best, (double)bytes, 0, rate);
    }
    munmap(map, bytes);
    close(fd);
    d.backend->close(&d);
    turbok_pool_free(d.exec.pool);
}
