/* Where the numbers of matrices on a CUDA device come from: memory and files, as they are and quantised on the way, at
 * once and later. On the fake driver, or with TURBO_CHECK_GPU on the machine's own. */
#include "on_gpu.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda/state.h"
#include "internal.h"
#include "util/log.h"

enum { ROWS = 1100, IN = 4096 }; /* more than a pinned buffer holds */

static void refused(turbok_device *d, const turbok_part *part, turbo_status want, const char *words)
{
    turbo_err err = {{0}};
    turbo_linear *w = NULL;
    assert_int_equal(turbok_linear_rows_new(d, TURBO_BF16, part, 1, IN, 0, &w, &err), want);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    assert_int_equal(turbok_device_mem(d, TURBOK_MEM_LINEAR), 0);
}

/* As files are that are loaded. The file may be shorter than that. */
static char *map_of(FILE *f, size_t bytes)
{
    assert_int_equal(fflush(f), 0);
    void *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fileno(f), 0);
    assert_true(p != MAP_FAILED);
    return p;
}

/* Pages of a mapping that are in the page table; 0: none, or nobody may say. */
static size_t pages_of(const char *map, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int fd = open("/proc/self/pagemap", O_RDONLY);
    size_t n = 0;
    for (size_t at = 0; fd >= 0 && at < bytes; at += page) {
        uint64_t entry = 0;
        if (pread(fd, &entry, 8, (off_t)(((uintptr_t)map + at) / page * 8)) == 8)
            n += entry >> 63;
    }
    if (fd >= 0)
        close(fd);
    return n;
}

/* The bytes of a matrix on the device. */
static char *bytes_of(turbok_device *d, const turbo_linear *w)
{
    char *p = malloc(w->data_bytes);
    assert_non_null(p);
    d->backend->block_read(d, p, w->data, w->data_bytes);
    return p;
}

static turbo_linear *made(turbok_device *d, const turbok_part *part)
{
    turbo_linear *w = NULL;
    turbo_err err = {{0}};
    if (turbok_linear_rows_new(d, TURBO_BF16, part, 1, IN, 0, &w, &err))
        fail_msg("%s", err.text);
    return w;
}

static void same_bytes(turbok_device *d, const turbok_part *part, const void *want, size_t n)
{
    turbo_linear *w = made(d, part);
    char *got = bytes_of(d, w);
    assert_true(w->data_bytes >= n);
    assert_memory_equal(got, want, n);
    free(got);
    turbok_linear_free(d, w);
}

/* From memory and from a file, as it is and quantised on the way: the same bytes on the device. What is not finite or
 * not there is refused. */
static void test_sources(void **state)
{
    enum { HEAD = 10 };
    size_t n = (size_t)ROWS * IN;
    uint16_t *data = malloc(n * sizeof *data);
    char head[HEAD] = {0};
    FILE *f = tmpfile();
    turbok_device *d = open_device();
    (void)state;
    assert_true(data && f);
    for (size_t i = 0; i < n; i++)
        data[i] = (uint16_t)(0x3c00u + i * 2654435761u % 700 + (i % 3 ? 0x8000u : 0));
    assert_int_equal(fwrite(head, 1, HEAD, f) + fwrite(data, sizeof *data, n, f), HEAD + n);
    assert_int_equal(fflush(f), 0);
    char *map = map_of(f, HEAD + n * sizeof *data);
    turbok_file file = {.fd = fileno(f), .at = HEAD};
    turbok_part part = {.data = data, .rows = ROWS, .finite = 1, .dtype = TURBO_BF16};
    for (int from_file = 0; from_file < 3; from_file++) {
        part.file = from_file ? &file : NULL;
        file.mapped = from_file == 2;
        part.data = file.mapped ? (void *)(map + HEAD) : data;
        part.grid = NULL;
        same_bytes(d, &part, data, n * sizeof *data);
        for (int bits = 4; bits <= 8; bits += 4) {
            turbo_err err = {{0}};
            turbok_grid g, form = {.bits = bits,
                                   .group = 32,
                                   .scale_dtype = TURBO_BF16,
                                   .offset = bits == 8 ? 128 : 8};
            assert_int_equal(turbok_grid_quantize(d, TURBO_BF16, data, ROWS, IN, bits, 32, &g,
                                                  &err),
                             TURBO_OK);
            const turbok_part coded = {.rows = ROWS, .grid = &g};
            turbo_linear *w = made(d, &coded);
            char *want = bytes_of(d, w);
            part.grid = &form;
            same_bytes(d, &part, want, w->data_bytes);
            turbok_linear_free(d, w);
            turbok_grid_quantize_free(&g);
            free(want);
        }
    }
    part.data = data;
    const turbok_grid form = {.bits = 8, .group = 32, .scale_dtype = TURBO_BF16, .offset = 128};
    for (int quantised = 0; quantised < 2; quantised++) {
        part.grid = quantised ? &form : NULL;
        part.file = &file;
        file.at = HEAD + 2;
        part.data = map + HEAD;
        for (file.mapped = 0; file.mapped < (quantised ? 1 : 2); file.mapped++)
            refused(d, &part, TURBO_EDATA, "read to its end");
        part.data = data;
        file.at = HEAD;
        part.file = NULL;
        data[n - 5] = 0x7f80;
        refused(d, &part, TURBO_EDATA, "not finite");
        part.finite = quantised; /* what becomes codes has to be */
        if (!quantised)
            same_bytes(d, &part, data, n * sizeof *data);
        data[n - 5] = 0;
        part.finite = 1;
    }
    munmap(map, HEAD + n * sizeof *data);
    fclose(f);
    free(data);
    turbok_device_close(d);
    nothing_left();
}

/* More than all pinned buffers hold, so that each is filled, sent and filled again: every byte comes to its place, and a
 * number that is not finite is found wherever it lies, as the end of a file is; the device is good after it. */
static void test_ring(void **state)
{
    enum { MANY = 5500, HEAD = 6 }; /* 43 MiB */
    size_t n = (size_t)MANY * IN, bad[] = {0, n / 3, n - 1};
    uint16_t *data = malloc(n * sizeof *data);
    FILE *f = tmpfile();
    turbok_device *d = open_device();
    (void)state;
    assert_true(data && f);
    for (size_t i = 0; i < n; i++)
        data[i] = (uint16_t)((i * 2654435761u >> 7) & 0xbfff);
    assert_int_equal(fwrite("header", 1, HEAD, f) + fwrite(data, sizeof *data, n, f), HEAD + n);
    assert_int_equal(fflush(f), 0);
    turbok_file file = {.fd = fileno(f), .at = HEAD};
    turbok_part part = {.data = data, .rows = MANY, .finite = 1, .dtype = TURBO_BF16};
    same_bytes(d, &part, data, n * sizeof *data);
    part.file = &file;
    same_bytes(d, &part, data, n * sizeof *data);
    file.at = HEAD + 2;
    refused(d, &part, TURBO_EDATA, "read to its end");
    part.file = NULL;
    for (int i = 0; i < 3; i++) {
        uint16_t was = data[bad[i]];
        data[bad[i]] = 0xff80;
        refused(d, &part, TURBO_EDATA, "not finite");
        data[bad[i]] = was;
    }
    same_bytes(d, &part, data, n * sizeof *data);
    fclose(f);
    free(data);
    turbok_device_close(d);
    nothing_left();
}

/* Matrices that may come later: all of them are there after the wait; what cannot be used is told by its name then,
 * once, and what was freed before is never read. */
static void come_later(bool mapped)
{
    enum { MANY = 1100, MATRICES = 3, HEAD = 6 };
    size_t n = (size_t)MANY * IN;
    uint16_t *data = malloc(MATRICES * n * sizeof *data);
    turbo_linear *w[MATRICES], *gone;
    turbo_err err = {{0}};
    FILE *f = tmpfile();
    turbok_device *d = open_device();
    assert_true(data && f);
    for (size_t i = 0; i < MATRICES * n; i++)
        data[i] = (uint16_t)((i * 2654435761u >> 7) & 0xbfff);
    assert_int_equal(fwrite("header", 1, HEAD, f), HEAD);
    assert_int_equal(fwrite(data, sizeof *data, MATRICES * n, f), MATRICES * n);
    const size_t whole = HEAD + 3 * MATRICES * n * sizeof *data;
    char *map = map_of(f, whole);
    turbok_file file = {.fd = fileno(f), .mapped = mapped, .at = HEAD + 2 * MATRICES * n};
    turbok_part part = {.data = mapped ? map + file.at : (char *)data,
                        .rows = MANY,
                        .finite = 1,
                        .file = &file,
                        .dtype = TURBO_BF16,
                        .later = 1,
                        .name = "some.weight"};
    gone = made(d, &part); /* beyond the file's end, if anybody looked */
    for (size_t i = 0; i < MATRICES; i++) {
        file.at = HEAD + i * n * sizeof *data;
        part.data = mapped ? map + file.at : (char *)data;
        w[i] = made(d, &part);
    }
    turbok_linear_free(d, gone);
    memset(&file, 0xff, sizeof file); /* nobody needs it any more */
    assert_int_equal(turbok_device_wait(d, &err), TURBO_OK);
    for (size_t i = 0; i < MATRICES; i++) {
        char *got = bytes_of(d, w[i]);
        assert_memory_equal(got, data + i * n, n * sizeof *data);
        free(got);
        turbok_linear_free(d, w[i]);
    }
    assert_in_range(pages_of(map, whole), 0, 400); /* of 6601 */
    const uint16_t bad = 0xff80;
    assert_int_equal(fseek(f, (long)(HEAD + n * 2 - 2), SEEK_SET), 0);
    assert_int_equal(fwrite(&bad, sizeof bad, 1, f), 1);
    assert_int_equal(fflush(f), 0);
    for (int round = 0; round < 2; round++) {
        file = (turbok_file){.fd = fileno(f), .mapped = mapped};
        file.at = HEAD + (round ? 2 * n * (MATRICES - 1) : 0);
        for (size_t i = 0; i < 2; i++, file.at += n * sizeof *data) {
            part.data = mapped ? map + file.at : (char *)data;
            w[i] = made(d, &part);
        }
        assert_int_equal(turbok_device_wait(d, &err), TURBO_EDATA);
        assert_non_null(strstr(err.text, round ? "some.weight: the file cannot be read to its end"
                                               : "tensor some.weight holds NaN"));
        assert_int_equal(turbok_device_wait(d, &err), TURBO_OK);
        for (size_t i = 0; i < 2; i++)
            turbok_linear_free(d, w[i]);
    }
    munmap(map, whole);
    fclose(f);
    free(data);
    turbok_device_close(d);
    nothing_left();
}

static void test_later(void **state)
{
    (void)state;
    come_later(false);
    come_later(true);
}

/* Of more than half a GiB the first are read before the wait. What cannot be used of those is told at the wait. */
static void test_half_a_gib(void **state)
{
    enum { MANY = 33000 }; /* two are more than that */
    const size_t bytes = (size_t)MANY * IN * 2;
    const uint16_t marks[] = {0x3f81, 0x7f80}; /* a number, infinity */
    turbo_err err = {{0}};
    FILE *f = tmpfile();
    turbok_device *d = open_device();
    (void)state;
    assert_non_null(f);
    assert_int_equal(ftruncate(fileno(f), (off_t)bytes), 0);
    for (int bad = 0; bad < 2; bad++) {
        uint16_t got = 0;
        turbo_linear *w[3];
        turbok_file file = {.fd = fileno(f)};
        turbok_part part = {.data = &marks, /* the file counts */
                            .rows = MANY,
                            .finite = 1,
                            .file = &file,
                            .dtype = TURBO_BF16,
                            .later = 1,
                            .name = "large.weight"};
        assert_int_equal(pwrite(fileno(f), &marks[bad], 2, (off_t)bytes - 2), 2);
        w[0] = made(d, &part);
        assert_int_equal(turbok_device_copied(d).bytes, 0);
        w[1] = made(d, &part);
        assert_int_equal(turbok_device_copied(d).bytes, 2 * bytes);
        part.rows = 1;
        w[2] = made(d, &part);
        assert_int_equal(turbok_device_wait(d, &err), bad ? TURBO_EDATA : TURBO_OK);
        assert_true(!bad || strstr(err.text, "tensor large.weight holds NaN"));
        for (int i = 0; i < 3; i++) {
            d->backend->block_read(d, &got, (const char *)w[i]->data + w[i]->data_bytes - 2, 2);
            assert_true(bad || got == (i < 2 ? marks[0] : 0));
            turbok_linear_free(d, w[i]);
        }
        turbok_device_close(d);
        d = open_device();
    }
    fclose(f);
    turbok_device_close(d);
    nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sources),
        cmocka_unit_test(test_ring),
        cmocka_unit_test(test_later),
        cmocka_unit_test(test_half_a_gib),
    };
    turbod_log_level(TURBO_LOG_ERROR);
    fake = fake_driver_open();
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], NULL, NULL);
}
