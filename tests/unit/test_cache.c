/* cache_dir: matrices repacked once and mapped afterwards, and everything that must not be used or must not
 * fail: damaged, cut and foreign files, two processes, a stop, a full disk, a folder that is none, a bound. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "st_file.h"
#include "util/log.h"
#include "weights/cache.h"
#include "weights/guard.h"
#include "weights/weights.h"

#define IN 192
#define TALL 9000 /* rows: together with IN more than two pieces of the file */
#define OUTPUTS (TALL + 100 + 70)

static char model[64], dir[96], log_path[96];

static void put_model(int seed)
{
    uint16_t *data = malloc((size_t)TALL * IN * 2);
    float bias[100];
    st_file f = {0};
    uint32_t x = (uint32_t)seed * 2654435761u + 1;
    assert_non_null(data);
    for (int i = 0; i < TALL * IN; i++) {
        x = x * 1664525u + 1013904223u;
        data[i] = (uint16_t)(0x3c00 + (x >> 23) + (x >> 8 & 0x8000)); /* bf16 of about 0.01 */
    }
    for (int i = 0; i < 100; i++)
        bias[i] = (float)(i - seed);
    st_add(&f, "tall.weight", "BF16", TALL, IN, 0, data, (size_t)TALL * IN * 2);
    st_add(&f, "q.weight", "BF16", 100, IN, 0, data + 77, (size_t)100 * IN * 2);
    st_add(&f, "q.bias", "F32", 100, -1, 0, bias, sizeof bias);
    st_add(&f, "k.weight", "BF16", 70, IN, 0, data + 777, (size_t)70 * IN * 2);
    st_write(&f, model);
    free(data);
}

static turbod_weights_opts usual(void)
{
    return (turbod_weights_opts){.cache_dir = dir, .cache_dir_size = (uint64_t)1 << 30};
}

/* Loads the model's matrices and multiplies with them: out [OUTPUTS]. What is logged comes to log_path. more: also
 * asks for a matrix that others do not. */
static void load(turbod_weights_opts o, turbok_isa isa, bool more, float *out)
{
    static const char *const qk[] = {"q", "k"};
    static const int64_t rows[] = {100, 70};
    turbok_device_opts dev = {.threads = 2, .spin_us = -1, .isa = isa};
    const turbo_linear *a = NULL, *b = NULL, *c = NULL;
    turbo_weights *w = NULL;
    turbo_err err = {{0}};
    float in[IN];
    for (int i = 0; i < IN; i++)
        in[i] = (float)(i % 7) - 3;
    fflush(stderr);
    int saved = dup(2), log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(saved >= 0 && log >= 0);
    dup2(log, 2);
    close(log);
    turbo_status st = turbok_device_open(&dev, &o.device, &err);
    if (!st)
        st = turbod_weights_open(model, &o, &w, &err);
    if (!st)
        st = turbod_host_linear(w, "tall", TALL, IN, 0, &a, &err);
    if (!st)
        st = turbod_host_linear_rows(w, qk, rows, 2, IN, TURBO_LINEAR_OPTIONAL_BIAS, &b, &err);
    if (!st && more)
        st = turbod_host_linear(w, "k", 70, IN, 0, &c, &err);
    if (!st)
        st = turbod_weights_unmap(w, &err);
    dup2(saved, 2);
    close(saved);
    if (st)
        fail_msg("%s", err.text);
    const turbo_ops *ops = turbok_device_ops(o.device);
    ops->linear(turbok_device_exec(o.device), a, in, 1, out);
    ops->linear(turbok_device_exec(o.device), b, in, 1, out + TALL);
    turbok_part parts[2] = {{.rows = 100, .bias = out, .bias_dtype = TURBO_F32}, {.rows = 70}};
    if (!o.quantize)
        assert_int_equal(turbok_device_mem(o.device, TURBOK_MEM_LINEAR) -
                             (c ? turbok_linear_bytes(o.device, TURBO_BF16, 70, IN, false, 0) : 0),
                         turbok_linear_bytes(o.device, TURBO_BF16, TALL, IN, false, 0) +
                             turbok_linear_rows_bytes(o.device, TURBO_BF16, parts, 2, IN, 0, NULL));
    turbod_weights_close(w);
    assert_int_equal(turbok_device_alloc_bytes(o.device), 0);
    turbok_device_close(o.device);
}

static bool logged(const char *text)
{
    char all[8192];
    FILE *f = fopen(log_path, "r");
    assert_non_null(f);
    all[fread(all, 1, sizeof all - 1, f)] = '\0';
    fclose(f);
    return strstr(all, text) != NULL;
}

/* Files with that ending in the cache folder; the last one's path. */
static int files(const char *ending, char path[400])
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t len = strlen(e->d_name), k = strlen(ending);
        if (len < k || strcmp(e->d_name + len - k, ending) || e->d_name[0] == '.')
            continue;
        n++;
        snprintf(path, 400, "%s/%s", dir, e->d_name);
    }
    if (d)
        closedir(d);
    return n;
}

static void clear(void)
{
    char path[400];
    while (files("", path))
        assert_int_equal(unlink(path), 0);
}

static struct stat stat_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st;
}

static float want[OUTPUTS], got[OUTPUTS];

static void same(turbod_weights_opts o)
{
    memset(got, 0, sizeof got);
    load(o, TURBOK_ISA_AUTO, false, got);
    assert_memory_equal(want, got, sizeof want);
}

/* One miss, then hits: the file stays, the products are those of a load without a cache. */
static void test_hit(void **state)
{
    char path[400];
    (void)state;
    clear();
    load((turbod_weights_opts){0}, TURBOK_ISA_AUTO, false, want);
    assert_int_equal(files("", path), 0);
    same(usual());
    assert_true(logged("holds the repacked weights"));
    assert_int_equal(files("", path), 1);
    assert_int_equal(stat_of(path).st_mode & 0777, 0600);
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    ino_t first = stat_of(path).st_ino;
    same(usual());
    assert_true(logged("cache_dir: 2 matrices of"));
    assert_false(logged("warn"));
    assert_int_equal(stat_of(path).st_ino, first);
    assert_true(stat_of(path).st_mtim.tv_sec > 1000); /* it was used just now */
}

static void flip(const char *path, off_t at)
{
    uint8_t b;
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &b, 1, at), 1);
    b ^= 0x10;
    assert_int_equal(pwrite(fd, &b, 1, at), 1);
    close(fd);
}

/* Loads right all the same, warns, and the file is replaced by a sound one. */
static void replaced(const char *path, const char *why)
{
    ino_t before = stat_of(path).st_ino;
    same(usual());
    if (!logged("is not used") || !logged(why))
        fail_msg("not said: %s", why);
    assert_int_not_equal(stat_of(path).st_ino, before);
    before = stat_of(path).st_ino;
    same(usual());
    assert_int_equal(stat_of(path).st_ino, before);
}

static void test_damage(void **state)
{
    char path[400];
    (void)state;
    clear();
    same(usual());
    assert_int_equal(files(".weights", path), 1);
    off_t size = stat_of(path).st_size;
    const struct {
        off_t at;
        const char *why;
    } flips[] = {
        {0, "no file of repacked weights"},
        {10, "truncated or damaged"},
        {20, "truncated or damaged"},
        {40, "another model, build or set of options"},
        {72, "its table is damaged"},
        {4096, "its contents are damaged"},
        {5000, "its contents are damaged"},
        {1 << 20, "its contents are damaged"},
        {(2 << 20) - 1, "its contents are damaged"},
        {(3 << 20) + 12345, "its contents are damaged"},
        {size - 100, "its table is damaged"},
        {size - 1, "its table is damaged"},
    };
    for (size_t i = 0; i < sizeof flips / sizeof flips[0]; i++) {
        flip(path, flips[i].at);
        replaced(path, flips[i].why);
    }
    const off_t sizes[] = {0, 100, 4096, 1 << 20, size - 8, size + 8};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        assert_int_equal(truncate(path, sizes[i]), 0);
        replaced(path, sizes[i] ? "damaged" : "truncated or damaged");
    }
    assert_int_equal(chmod(path, 0662), 0);
    replaced(path, "others may write it");
    char aside[420];
    snprintf(aside, sizeof aside, "%s.aside", path);
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(symlink(aside, path), 0); /* not followed, though what it names is sound */
    same(usual());
    assert_true(logged("is not used"));
    assert_int_equal(unlink(aside), 0);
}

/* Another model, instruction set or option has a file of its own, and does not use that of others. */
static void test_foreign(void **state)
{
    char path[400], mine[400];
    float other[OUTPUTS];
    (void)state;
    clear();
    same(usual());
    assert_int_equal(files(".weights", mine), 1);
    turbod_weights_opts o = usual();
    o.quantize = "int8";
    load(o, TURBOK_ISA_AUTO, false, other);
    assert_int_equal(files(".weights", path), 2);
    load(o, TURBOK_ISA_AUTO, false, got);
    assert_true(logged("matrices of"));
    assert_memory_equal(other, got, sizeof got);
    load(usual(), TURBOK_ISA_SCALAR, false, got);
    int n = files(".weights", path);
    assert_true(n == 3 || n == 2); /* two on a machine that is no more than scalar */
    put_model(2); /* the same names and shapes */
    load(usual(), TURBOK_ISA_AUTO, false, other);
    assert_memory_not_equal(want, other, sizeof want);
    assert_int_equal(files(".weights", path), n + 1);
    put_model(1); /* the first one's bytes, but of another time */
    same(usual());
    assert_int_equal(files(".weights", path), n + 2);
    /* under the name of another */
    int fd = open(mine, O_RDONLY);
    uint8_t front[4096];
    assert_int_equal(pread(fd, front, sizeof front, 0), sizeof front);
    close(fd);
    clear();
    same(usual());
    assert_int_equal(files(".weights", path), 1);
    fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, front, sizeof front, 0), sizeof front);
    close(fd);
    replaced(path, "another model, build or set of options");
}

/* A plugin that asks for more than the one that wrote the file: it gets it, and the file goes. */
static void test_lacking(void **state)
{
    char path[400];
    (void)state;
    clear();
    same(usual());
    load(usual(), TURBOK_ISA_AUTO, true, got);
    assert_memory_equal(want, got, sizeof want);
    assert_true(logged("lacks matrices"));
    assert_int_equal(files("", path), 0);
    load(usual(), TURBOK_ISA_AUTO, true, got);
    load(usual(), TURBOK_ISA_AUTO, true, got);
    assert_true(logged("3 matrices of"));
}

/* Runs same() in a process of its own, after prepare(). Its exit status. */
static pid_t spawn(void (*prepare)(void))
{
    fflush(stdout);
    pid_t p = fork();
    if (p)
        return p;
    char mine[sizeof log_path + 16];
    snprintf(mine, sizeof mine, "%.80s.%d", log_path, (int)getpid());
    snprintf(log_path, sizeof log_path, "%.90s", mine);
    if (prepare)
        prepare();
    float out[OUTPUTS];
    load(usual(), TURBOK_ISA_AUTO, false, out);
    unlink(log_path);
    _exit(memcmp(out, want, sizeof want) ? 3 : 0);
}

static int joined(pid_t p)
{
    int status = -1;
    assert_int_equal(waitpid(p, &status, 0), p);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_two(void **state)
{
    char path[400], part[420];
    (void)state;
    for (int round = 0; round < 4; round++) {
        clear();
        pid_t p[3];
        for (int i = 0; i < 3; i++)
            p[i] = spawn(NULL);
        for (int i = 0; i < 3; i++)
            assert_int_equal(joined(p[i]), 0);
        assert_int_equal(files(".part", path), 0);
        assert_int_equal(files(".weights", path), 1);
        same(usual());
        assert_true(logged("matrices of"));
    }
    /* one that is being written is left alone, one that was left behind is taken over, or removed */
    assert_int_equal(files(".weights", path), 1);
    snprintf(part, sizeof part, "%.*s.part", (int)(strlen(path) - strlen(".weights")), path);
    clear();
    int fd = open(part, O_RDWR | O_CREAT, 0600);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    same(usual());
    assert_true(logged("another process writes"));
    assert_int_equal(files("", path), 1);
    close(fd);
    snprintf(path, sizeof path, "%s/turbo-%032d.part", dir, 7);
    assert_int_equal(close(open(path, O_RDWR | O_CREAT, 0600)), 0);
    same(usual());
    assert_int_equal(files(".part", path), 0);
    assert_int_equal(files(".weights", path), 1);
}

/* In a process of its own: begins to write a file and says so, and is stopped. */
static pid_t spawn_stopped(int sig)
{
    fflush(stdout);
    pid_t p = fork();
    if (p)
        return p;
    turbod_weights_opts o = usual();
    turbok_device_opts dev = {.threads = 2, .spin_us = -1};
    const turbo_linear *a;
    turbo_weights *w;
    turbo_err err;
    char path[400];
    signal(SIGINT,
           SIG_DFL); /* whoever started the tests may have them ignored: what is ignored stays so */
    signal(SIGHUP, SIG_DFL);
    turbod_guard_files();
    turbod_guard_cache();
    if (turbok_device_open(&dev, &o.device, &err) || turbod_weights_open(model, &o, &w, &err) ||
        turbod_host_linear(w, "tall", TALL, IN, 0, &a, &err) || files(".part", path) != 1)
        _exit(3);
    if (sig)
        raise(sig);
    turbod_cache_abandon();
    _exit(files("", path) ? 4 : 0);
}

static void test_stopped(void **state)
{
    static const int sigs[] = {SIGTERM, SIGINT, SIGHUP, SIGBUS};
    char path[400], part[400];
    int status;
    (void)state;
    clear();
    assert_int_equal(joined(spawn_stopped(0)), 0);
    for (int i = 0; i < 4; i++) {
        pid_t p = spawn_stopped(sigs[i]);
        assert_int_equal(waitpid(p, &status, 0), p);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == sigs[i]);
        assert_int_equal(files("", path), 0);
    }
    /* nothing is left to do for a signal once the file is there */
    same(usual());
    turbod_cache_abandon();
    assert_int_equal(files(".weights", path), 1);
    /* a start that only maps removes what others left, also of its own name, and not what is held */
    int held = -1;
    for (int i = 0; i < 3; i++) {
        snprintf(part, sizeof part, "%s/turbo-%032d.part", dir, i);
        if (i == 2)
            snprintf(part, sizeof part, "%.*s.part", (int)(strlen(path) - strlen(".weights")),
                     path);
        int fd = open(part, O_RDWR | O_CREAT, 0600);
        assert_true(fd >= 0);
        if (i)
            close(fd);
        else
            held = fd;
    }
    assert_int_equal(flock(held, LOCK_EX), 0);
    same(usual());
    assert_true(logged("matrices of"));
    assert_int_equal(files(".part", part), 1);
    close(held);
    same(usual());
    assert_int_equal(files(".part", part), 0);
}

static void small_disk(void)
{
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){3 << 20, 3 << 20});
}

static void test_no_room(void **state)
{
    char path[400];
    (void)state;
    clear();
    assert_int_equal(joined(spawn(small_disk)), 0);
    assert_int_equal(files("", path), 0);
    turbod_weights_opts o = usual();
    o.cache_dir_size = 1 << 20;
    same(o);
    assert_true(logged("cache_dir_size is 1 MiB"));
    assert_int_equal(files("", path), 0);
    /* three of four fit, and the one used longest ago goes; what is not ours stays */
    snprintf(path, sizeof path, "%s/notes.weights", dir);
    assert_int_equal(close(open(path, O_RDWR | O_CREAT, 0600)), 0);
    for (int i = 1; i <= 3; i++) {
        snprintf(path, sizeof path, "%s/turbo-%032d.weights", dir, i);
        int fd = open(path, O_RDWR | O_CREAT, 0600);
        assert_int_equal(ftruncate(fd, 4 << 20), 0);
        struct timespec t[2] = {{.tv_sec = 1000 - i}, {.tv_sec = 1000 - i}};
        assert_int_equal(futimens(fd, t), 0);
        close(fd);
    }
    o.cache_dir_size = 12 << 20;
    same(o);
    assert_int_equal(files(".weights", path), 4);
    snprintf(path, sizeof path, "%s/turbo-%032d.weights", dir, 3);
    assert_int_not_equal(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/turbo-%032d.weights", dir, 1);
    assert_int_equal(access(path, F_OK), 0);
    clear();
    /* no folder */
    o = usual();
    o.cache_dir = log_path;
    same(o);
    o.cache_dir = "/proc/turbo-test";
    same(o);
    assert_true(logged("cannot be opened"));
    /* one that cannot be written; root may write anywhere but there */
    o.cache_dir = "/proc";
    same(o);
    assert_true(logged("not kept"));
}

static int set_up(void **state)
{
    (void)state;
    strcpy(model, "/tmp/turbo-cache-XXXXXX");
    if (!mkdtemp(model))
        return -1;
    snprintf(dir, sizeof dir, "%s/cache", model);
    snprintf(log_path, sizeof log_path, "%s/log", model);
    turbod_log_level(TURBO_LOG_INFO);
    put_model(1);
    return 0;
}

static int tear_down(void **state)
{
    char path[128];
    (void)state;
    clear();
    rmdir(dir);
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    unlink(path);
    unlink(log_path);
    return rmdir(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hit),     cmocka_unit_test(test_damage),
        cmocka_unit_test(test_foreign), cmocka_unit_test(test_lacking),
        cmocka_unit_test(test_two),     cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_no_room),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
