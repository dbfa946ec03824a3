/* Pictures: decoded and resized to the same bits as Pillow does it, hostile ones refused in time and
 * without a trace. The goldens are tests/golden/images/images.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "media/image.h"
#include "shared.h"
#include "util/file.h"
#include "util/json.h"
#include "util/sha256.h"

#define EDGE 336

static cJSON *golden;
static uint8_t pixels[EDGE * EDGE * 3];

static const turbod_image_fit crop = {.fit = TURBOD_FIT_CROP,
                                      .edge = EDGE,
                                      .width = EDGE,
                                      .height = EDGE};
static const turbod_image_fit pad = {
    .fit = TURBOD_FIT_PAD, .edge = EDGE, .width = EDGE, .height = EDGE, .pad = {122, 116, 104, 0}};

static bool hash_is(const char *want)
{
    uint8_t digest[32];
    char hex[33];
    turbod_sha256(pixels, sizeof pixels, digest);
    for (int i = 0; i < 16; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return !strcmp(hex, want);
}

/* 0 equal; 1 not, after a line that says why. */
static int compare(const char *name, const void *bytes, size_t n, const cJSON *want)
{
    const char *modes[] = {"crop", "pad"};
    const turbod_image_fit *fits[] = {&crop, &pad};
    int32_t w = 0, h = 0;
    for (int i = 0; i < 2; i++) {
        turbo_err err = {{0}};
        memset(pixels, 0, sizeof pixels);
        if (turbod_image_prepare(bytes, n, fits[i], pixels, &w, &h, &err)) {
            print_message("%s: %s\n", name, err.text);
            return 1;
        }
        if (w != turbod_json_get(want, "width")->valueint ||
            h != turbod_json_get(want, "height")->valueint ||
            !hash_is(turbod_json_get(want, modes[i])->valuestring)) {
            print_message("%s: other pixels (%s)\n", name, modes[i]);
            return 1;
        }
    }
    return 0;
}

static uint8_t *unbase64(const char *s, size_t *n)
{
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t *out = malloc(strlen(s) + 4);
    uint32_t acc = 0;
    int bits = 0;
    *n = 0;
    for (; *s && *s != '='; s++) {
        acc = acc << 6 | (uint32_t)(strchr(set, *s) - set);
        bits += 6;
        if (bits >= 8)
            out[(*n)++] = (uint8_t)(acc >> (bits -= 8));
    }
    return out;
}

static uint8_t *small(const char *name, size_t *n)
{
    const cJSON *v = turbod_json_get(turbod_json_get(golden, "small"), name);
    assert_non_null(v);
    return unbase64(turbod_json_get(v, "base64")->valuestring, n);
}

static void test_small(void **state)
{
    (void)state;
    int wrong = 0, seen = 0;
    for (const cJSON *v = turbod_json_get(golden, "small")->child; v; v = v->next, seen++) {
        size_t n;
        uint8_t *bytes = small(v->string, &n);
        wrong += compare(v->string, bytes, n, v);
        free(bytes);
    }
    assert_int_equal(wrong, 0);
    assert_true(seen > 20);
}

/* The file at folder/path, or NULL. */
static uint8_t *slurp(const char *folder, const char *path, size_t *n)
{
    char full[4096];
    snprintf(full, sizeof full, "%s/data/images/%s", folder, path);
    FILE *f = fopen(full, "rbe");
    if (!f)
        return NULL;
    uint8_t *bytes = malloc(4u << 20);
    *n = fread(bytes, 1, 4u << 20, f);
    fclose(f);
    return bytes;
}

/* Damaged files that Pillow decodes all the same; turbod refuses data that fails its checksum. */
static bool stricter(const char *name)
{
    static const char *const names[] = {"bad/pngsuite-corrupt/xcsn0g01.png",
                                        "bad/image-png/x_interlaced_chck.png"};
    return !strcmp(name, names[0]) || !strcmp(name, names[1]);
}

static void test_shared(void **state)
{
    (void)state;
    const char *folder = shared_dir();
    if (!folder)
        skip();
    int wrong = 0, seen = 0;
    for (const cJSON *v = turbod_json_get(golden, "shared")->child; v; v = v->next) {
        size_t n = 0;
        uint8_t *bytes = slurp(folder, v->string, &n);
        turbo_err err = {{0}};
        if (!bytes)
            continue;
        seen++;
        if (stricter(v->string))
            wrong += turbod_image_prepare(bytes, n, &crop, pixels, NULL, NULL, &err) != TURBO_EDATA;
        else
            wrong += compare(v->string, bytes, n, v);
        free(bytes);
    }
    print_message("%d pictures of the shared folder\n", seen);
    assert_int_equal(wrong, 0);
}

static long resident(void)
{
    long pages = 0, skip;
    FILE *f = fopen("/proc/self/statm", "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &skip, &pages), 2);
    fclose(f);
    return pages * sysconf(_SC_PAGESIZE);
}

static int descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void test_shared_bad(void **state)
{
    (void)state;
    const char *folder = shared_dir();
    if (!folder)
        skip();
    int fds = descriptors();
    for (const cJSON *v = turbod_json_get(golden, "bad")->child; v; v = v->next) {
        size_t n = 0;
        uint8_t *bytes = slurp(folder, v->valuestring, &n);
        turbo_err err = {{0}};
        if (!bytes)
            continue;
        /* The only ways out are pixels and a sentence about the file. */
        turbo_status st = turbod_image_prepare(bytes, n, &crop, pixels, NULL, NULL, &err);
        if (st && st != TURBO_EDATA && st != TURBO_EINVAL && st != TURBO_EUNSUPPORTED &&
            st != TURBO_ELIMIT)
            fail_msg("%s: %d %s", v->valuestring, st, err.text);
        assert_true(!st || err.text[0]);
        free(bytes);
    }
    assert_int_equal(descriptors(), fds);
}

static void refused(const void *bytes, size_t n, turbo_status want, const char *part)
{
    turbo_err err = {{0}};
    turbo_status st = turbod_image_prepare(bytes, n, &crop, pixels, NULL, NULL, &err);
    if (st != want || !strstr(err.text, part))
        fail_msg("got %d \"%s\", expected %d \"%s\"", st, err.text, want, part);
}

static void test_kinds(void **state)
{
    (void)state;
    refused("GIF89a\1\0\1\0", 10, TURBO_EUNSUPPORTED, "GIF file; JPEG and PNG");
    refused("RIFF\0\0\0\0WEBPVP8 ", 16, TURBO_EUNSUPPORTED, "WebP file");
    refused("BM\0\0\0\0", 6, TURBO_EUNSUPPORTED, "BMP file");
    refused("hello", 5, TURBO_EINVAL, "no image");
    refused("", 0, TURBO_EINVAL, "no image");
    refused("\xff\xd8\xff", 3, TURBO_EDATA, "cut off");
    uint8_t *huge = calloc(1, TURBOD_IMAGE_MAX_FILE + 1);
    refused(huge, TURBOD_IMAGE_MAX_FILE + 1, TURBO_ELIMIT, "at most 20971520");
    free(huge);
}

/* Cut off anywhere: refused, or decoded when only what follows the picture is missing. */
static void test_truncated(void **state)
{
    (void)state;
    const char *names[] = {"rgb.jpg", "progressive.jpg", "rgb.png", "palette.png"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        size_t n;
        uint8_t *bytes = small(names[i], &n);
        int taken = 0;
        for (size_t part = 1; part < 20; part++) {
            turbo_err err = {{0}};
            size_t len = n * part / 20;
            uint8_t *cut = malloc(len); /* exact, so that a byte too many is seen by a sanitizer */
            memcpy(cut, bytes, len);
            turbo_status st = turbod_image_prepare(cut, len, &crop, pixels, NULL, NULL, &err);
            assert_true(!st || st == TURBO_EDATA || st == TURBO_EINVAL);
            taken += !st;
            free(cut);
        }
        assert_int_equal(taken, 0);
        free(bytes);
    }
}

static void put32(uint8_t *at, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void fix_crc(uint8_t *chunk, size_t n) /* type and data, the sum follows */
{
    uint32_t c = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        c ^= chunk[i];
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
    }
    put32(chunk + n, ~c);
}

/* rgb.png with another size in its header. */
static uint8_t *sized(uint32_t width, uint32_t height, size_t *n)
{
    uint8_t *b = small("rgb.png", n);
    put32(b + 16, width);
    put32(b + 20, height);
    fix_crc(b + 12, 17);
    return b;
}

static void test_bombs(void **state)
{
    (void)state;
    static const struct {
        uint32_t w, h;
        turbo_status want;
        const char *part;
    } rows[] = {
        {50000, 50000, TURBO_ELIMIT, "50000 x 50000 pixels; at most 16384"},
        {1, 1000000000, TURBO_ELIMIT, "at most 16384"},
        {16384, 16384, TURBO_ELIMIT, "40 million"},
        {0, 7, TURBO_EDATA, "damaged"},
        {6000, 6000, TURBO_EDATA, "damaged"}, /* allowed, and not enough data */
    };
    long before = resident();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t n;
        uint8_t *b = sized(rows[i].w, rows[i].h, &n);
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        refused(b, n, rows[i].want, rows[i].part);
        clock_gettime(CLOCK_MONOTONIC, &t1);
        assert_true(t1.tv_sec - t0.tv_sec <= 10); /* a hang, not a slow machine */
        free(b);
    }
    assert_true(resident() - before < (8 << 20));
}

static int load(void **state)
{
    (void)state;
    uint8_t *text;
    uint64_t n;
    turbo_err err;
    char dir[4096];
    const char *src = getenv("srcdir");
    snprintf(dir, sizeof dir, "%s/tests/golden/images", src ? src : ".");
    if (turbod_file_read(dir, "images.json", 4u << 20, &text, &n, &err) ||
        turbod_json_parse((char *)text, n, &turbod_json_file, &golden, &err)) {
        printf("%s\n", err.text);
        return -1;
    }
    free(text);
    return 0;
}

static int unload(void **state)
{
    (void)state;
    cJSON_Delete(golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),     cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_truncated), cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_shared),    cmocka_unit_test(test_shared_bad),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
