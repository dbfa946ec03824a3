/* tests/unit/test_snapshot.c: a snapshot that is cut, flipped, of another model, format or tenant, or no file at
 * all is refused by name, and nothing is changed by it: no block is taken, nothing new is found in the cache. */
#include "engine_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/snapshot.h"

enum { VOCAB = 300, PROMPT = 40, ANSWER = 6, TEXT = PROMPT + ANSWER };

static char folder[64], slots[64];
static int32_t text[TEXT];

static int set_up(void **state)
{
    (void)state;
    tiny_model_write(&random_model, folder);
    snprintf(slots, sizeof slots, "/tmp/turbod-slots-XXXXXX");
    return mkdtemp(slots) ? 0 : 1;
}

static int tear_down(void **state)
{
    (void)state;
    rmdir(slots);
    tiny_model_remove(folder);
    return 0;
}

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", slots, name);
    return path;
}

static int32_t cached_of(turbod_engine *e)
{
    static result r;
    start_spec(e, &r, ask(text, TEXT, 2));
    finish(&r);
    return r.end.timings.cached_n;
}

/* An engine that has computed a text, which is saved as "good"; its bytes. */
static turbod_engine *engine_with_file(uint8_t **bytes, size_t *size)
{
    static result r;
    static char note[] = "a note";
    turbo_err err = {{0}};
    turbod_engine *e = open_engine(folder, small());
    make_prompt(text, PROMPT, 5, VOCAB);
    start_spec(e, &r, ask(text, PROMPT, ANSWER));
    finish(&r);
    memcpy(text + PROMPT, r.ids, ANSWER * sizeof *text);
    turbod_snapshot s = {
        .tenant = "", .ids = text, .n_ids = TEXT, .note = note, .n_note = sizeof note};
    assert_int_equal(turbod_snapshot_save(e, slots, "good", &s, &err), TURBO_OK);
    assert_int_equal(s.n_kept, TEXT - 1);
    *size = s.bytes;
    *bytes = malloc(*size);
    int fd = open(path_of("good"), O_RDONLY);
    assert_int_equal(read(fd, *bytes, *size), (ssize_t)*size);
    close(fd);
    return e;
}

static void write_file(const char *name, const uint8_t *bytes, size_t n)
{
    int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), (ssize_t)n);
    close(fd);
}

static turbo_status load(turbod_engine *e, const char *name, const char *tenant, turbo_err *err)
{
    turbod_snapshot s = {.tenant = tenant};
    turbo_status st = turbod_snapshot_load(e, slots, name, &s, err);
    if (st) {
        assert_null(s.ids);
        assert_null(s.note);
        assert_true(strlen(err->text) > 0);
        assert_null(strstr(err->text, slots));
    }
    free(s.ids);
    free(s.note);
    return st;
}

static void refused(turbod_engine *e, const char *name, const char *tenant, turbo_status want,
                    const char *why)
{
    turbo_err err = {{0}};
    assert_int_equal(load(e, name, tenant, &err), want);
    if (!strstr(err.text, why))
        fail_msg("\"%s\" does not say \"%s\"", err.text, why);
}

/* A second engine of the same model, with nothing in it. */
static turbod_engine *empty_engine(int32_t *total)
{
    turbod_engine *e = open_engine(folder, small());
    *total = (int32_t)turbod_engine_metrics(e)->kv_total;
    return e;
}

static void unchanged(turbod_engine *e, int32_t total)
{
    assert_int_equal(turbod_engine_metrics(e)->kv_free, total);
    assert_int_equal(turbod_engine_metrics(e)->kv_cached, 0);
}

static void test_every_truncation(void **state)
{
    (void)state;
    uint8_t *bytes;
    size_t size;
    int32_t total;
    turbo_err err = {{0}};
    turbod_engine *from = engine_with_file(&bytes, &size), *e = empty_engine(&total);
    write_file("cut", bytes, size);
    for (size_t n = size; n-- > 0;) {
        assert_int_equal(truncate(path_of("cut"), (off_t)n), 0);
        assert_int_equal(load(e, "cut", "", &err), TURBO_EDATA);
        assert_true(strstr(err.text, "damaged") || strstr(err.text, "no snapshot"));
    }
    unchanged(e, total);
    write_file("cut", bytes, size);
    int fd = open(path_of("cut"), O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
    refused(e, "cut", "", TURBO_EDATA, "damaged");
    unchanged(e, total);
    assert_int_equal(cached_of(e), 0);
    assert_int_equal(load(e, "good", "", &err), TURBO_OK);
    print_message("%zu truncations\n", size);
    unlink(path_of("cut"));
    unlink(path_of("good"));
    free(bytes);
    turbod_engine_close(e);
    turbod_engine_close(from);
}

/* Every bit of the header, the note and the ids, one of each 97th byte behind them. */
static void test_bit_flips(void **state)
{
    enum { FRONT = 160 + 7 + TEXT * 4 };
    (void)state;
    uint8_t *bytes;
    size_t size, n = 0;
    int32_t total;
    turbo_err err = {{0}};
    turbod_engine *from = engine_with_file(&bytes, &size), *e = empty_engine(&total);
    write_file("bad", bytes, size);
    int fd = open(path_of("bad"), O_WRONLY);
    for (size_t at = 0; at < size; at += at < FRONT || at + 16 > size ? 1 : 97)
        for (int bit = 0; bit < 8; bit++, n++) {
            uint8_t flipped = (uint8_t)(bytes[at] ^ 1u << bit);
            if (at >= FRONT && at + 16 <= size && bit != (int)(at % 8))
                continue;
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
            turbo_status st = load(e, "bad", "", &err);
            if (st != TURBO_EDATA && st != TURBO_ENOENT) /* the tenant's digest: not found */
                fail_msg("byte %zu bit %d: status %d", at, bit, st);
            assert_int_equal(pwrite(fd, &bytes[at], 1, (off_t)at), 1);
        }
    close(fd);
    unchanged(e, total);
    assert_int_equal(cached_of(e), 0);
    assert_int_equal(load(e, "bad", "", &err), TURBO_OK); /* all bits are back */
    assert_true(cached_of(e) >= TEXT - 1 - 16);
    unlink(path_of("bad"));
    unlink(path_of("good"));
    free(bytes);
    turbod_engine_close(e);
    turbod_engine_close(from);
}

static void test_others(void **state)
{
    (void)state;
    uint8_t *bytes;
    size_t size;
    char other[64];
    turbod_engine *e = engine_with_file(&bytes, &size);
    refused(e, "good", "somebody", TURBO_ENOENT, "no such snapshot");
    refused(e, "nothing", "", TURBO_ENOENT, "no such snapshot");
    refused(e, "../good", "", TURBO_EINVAL, "file name");
    refused(e, ".good", "", TURBO_EINVAL, "file name");
    turbod_engine_close(e);

    tiny_model m = random_model;
    m.random = 12; /* the same shape, other weights */
    tiny_model_write(&m, other);
    e = open_engine(other, small());
    refused(e, "good", "", TURBO_EDATA, "another model");
    turbod_engine_close(e);
    tiny_model_remove(other);

    turbod_engine_opts o = small();
    o.block_tokens = 32;
    e = open_engine(folder, o);
    refused(e, "good", "", TURBO_EDATA, "cache_block_seq_len");
    turbod_engine_close(e);
    o = small();
    o.kv_dtype = TURBO_BF16;
    e = open_engine(folder, o);
    refused(e, "good", "", TURBO_EDATA, "kv_dtype");
    turbod_engine_close(e);
    o = small();
    o.session_len = 20; /* shorter than the text */
    e = open_engine(folder, o);
    refused(e, "good", "", TURBO_EDATA, "session_len here is 20");
    turbod_engine_close(e);
    o = small();
    o.prefix_caching = false;
    e = open_engine(folder, o);
    refused(e, "good", "", TURBO_EUNSUPPORTED, "enable_prefix_caching");
    turbod_engine_close(e);
    unlink(path_of("good"));
    free(bytes);
}

static void test_no_regular_file(void **state)
{
    (void)state;
    uint8_t *bytes;
    size_t size;
    turbo_err err = {{0}};
    turbod_engine *e = engine_with_file(&bytes, &size);
    assert_int_equal(symlink("good", path_of("link")), 0);
    refused(e, "link", "", TURBO_EDATA, "a link");
    assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
    refused(e, "fifo", "", TURBO_EDATA, "no regular file");
    assert_int_equal(mkdir(path_of("folder"), 0700), 0);
    refused(e, "folder", "", TURBO_EDATA, "no regular file");
    /* Saving over them: a link and a fifo are replaced, never written through; a folder stays. */
    turbod_snapshot s = {.tenant = "", .ids = text, .n_ids = TEXT};
    assert_int_equal(symlink("/nowhere/at/all", path_of("away")), 0);
    assert_int_equal(turbod_snapshot_save(e, slots, "away", &s, &err), TURBO_OK);
    assert_int_equal(turbod_snapshot_save(e, slots, "fifo", &s, &err), TURBO_OK);
    assert_int_equal(load(e, "fifo", "", &err), TURBO_OK);
    assert_int_equal(turbod_snapshot_save(e, slots, "folder", &s, &err), TURBO_EIO);
    assert_int_equal(turbod_snapshot_save(e, "/nowhere", "x", &s, &err), TURBO_EIO);
    static const char *const made[] = {"link", "fifo", "away", "good"};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        unlink(path_of(made[i]));
    rmdir(path_of("folder"));
    all_blocks_back(e);
    turbod_engine_close(e);
    free(bytes);
}

/* A disk that is full after any number of bytes: the old file stays, no other is left. */
static void test_full_disk(void **state)
{
    (void)state;
    uint8_t *bytes, *now;
    size_t size;
    turbo_err err = {{0}};
    struct rlimit old, full;
    turbod_engine *e = engine_with_file(&bytes, &size);
    turbod_snapshot s = {.tenant = "", .ids = text, .n_ids = TEXT};
    now = malloc(size);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    full = old;
    for (size_t n = 0; n < size - 7; n += 1 + size / 60) {
        full.rlim_cur = n;
        setrlimit(RLIMIT_FSIZE, &full);
        turbo_status st = turbod_snapshot_save(e, slots, "good", &s, &err);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(st, TURBO_EIO);
        assert_non_null(strstr(err.text, "could not be written"));
    }
    int fd = open(path_of("good"), O_RDONLY);
    assert_int_equal(read(fd, now, size), (ssize_t)size);
    assert_memory_equal(now, bytes, size);
    close(fd);
    unlink(path_of("good"));
    assert_int_equal(rmdir(slots), 0); /* it is empty */
    assert_int_equal(mkdir(slots, 0700), 0);
    all_blocks_back(e);
    turbod_engine_close(e);
    free(bytes);
    free(now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_truncation), cmocka_unit_test(test_bit_flips),
        cmocka_unit_test(test_others),           cmocka_unit_test(test_no_regular_file),
        cmocka_unit_test(test_full_disk),
    };
    return engine_kit_main(tests, sizeof tests / sizeof tests[0], set_up, tear_down);
}
