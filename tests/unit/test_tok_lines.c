/* tok-spm on 10,000 lines of real text against the sentencepiece package: hashes of ids and of decoded text
 * for every 500 lines (tests/golden/tok-spm). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "plugin/host.h"
#include "shared.h"
#include "util/file.h"
#include "util/json.h"

typedef struct line {
    const char *p;
    size_t n;
} line;

static const turbo_tokenizer_vtbl *vtbl;
static const char *shared;
static cJSON *golden;
static uint8_t *files[16];
static line *lines;
static size_t n_lines;

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

static uint8_t *slurp(const char *name, uint64_t *len)
{
    char folder[4096];
    uint8_t *bytes;
    turbo_err err = {{0}};
    snprintf(folder, sizeof folder, "%s/%s", shared, name);
    char *slash = strrchr(folder, '/');
    *slash = '\0';
    if (turbod_file_read(folder, slash + 1, 1 << 28, &bytes, len, &err))
        fail_msg("%s", err.text);
    return bytes;
}

/* All lines without NUL of all files, every step-th of them. */
static void read_lines(void)
{
    size_t want = (size_t)turbod_json_get(golden, "lines")->valuedouble, all = 0;
    size_t step = (size_t)turbod_json_get(golden, "step")->valuedouble;
    lines = calloc(want, sizeof *lines);
    int f = 0;
    for (const cJSON *v = turbod_json_get(golden, "files")->child; v; v = v->next) {
        uint64_t len;
        files[f] = slurp(v->valuestring, &len);
        const char *p = (const char *)files[f++], *end = p + len;
        while (p < end) {
            const char *e = memchr(p, '\n', (size_t)(end - p));
            size_t n = (size_t)((e ? e : end) - p);
            if (n && !memchr(p, 0, n) && all++ % step == 0 && n_lines < want)
                lines[n_lines++] = (line){p, n};
            p = e ? e + 1 : end;
        }
    }
    assert_int_equal(n_lines, want);
}

static void *open_tokenizer(const char *file)
{
    char folder[] = "/tmp/turbo-lines-XXXXXX", path[64];
    uint64_t len;
    uint8_t *bytes = slurp(file, &len);
    turbo_err err = {{0}};
    void *tok = NULL;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    FILE *f = fopen(path, "wb");
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    fclose(f);
    free(bytes);
    turbo_status st = vtbl->open(turbod_host_table(), folder, &tok, &err);
    unlink(path);
    rmdir(folder);
    if (st)
        fail_msg("%s: %s", file, err.text);
    return tok;
}

static void hash_line(void *tok, const line *l, uint64_t *a, uint64_t *b)
{
    static int32_t ids[65536];
    uint64_t n = 0;
    turbo_err err;
    const int32_t mark = -1;
    const char *text;
    size_t len;
    assert_int_equal(vtbl->encode(tok, l->p, l->n, TURBO_TOK_FIRST, ids, 65536, &n, &err), TURBO_OK);
    *a = fnv(fnv(*a, ids, n * sizeof *ids), &mark, sizeof mark);
    turbod_detok *d = turbod_detok_new(vtbl, tok, false);
    for (uint64_t i = 0; i < n; i++) {
        turbod_detok_push(d, ids[i], &text, &len);
        *b = fnv(*b, text, len);
    }
    turbod_detok_flush(d, &text, &len);
    *b = fnv(fnv(*b, text, len), "\xff", 1);
    turbod_detok_free(d);
}

static void test_models(void **state)
{
    (void)state;
    size_t group = (size_t)turbod_json_get(golden, "group")->valuedouble;
    for (const cJSON *m = turbod_json_get(golden, "models")->child; m; m = m->next) {
        const char *file = turbod_json_get(m, "file")->valuestring;
        const cJSON *ids = turbod_json_get(m, "ids")->child, *text = turbod_json_get(m, "text")->child;
        void *tok = open_tokenizer(file);
        for (size_t at = 0; at < n_lines; at += group, ids = ids->next, text = text->next) {
            char a[17], b[17];
            uint64_t x = 0xcbf29ce484222325u, y = x;
            for (size_t i = at; i < at + group && i < n_lines; i++)
                hash_line(tok, &lines[i], &x, &y);
            snprintf(a, sizeof a, "%016llx", (unsigned long long)x);
            snprintf(b, sizeof b, "%016llx", (unsigned long long)y);
            if (strcmp(a, ids->valuestring))
                fail_msg("%s: ids of lines %zu..%zu differ", file, at, at + group - 1);
            if (strcmp(b, text->valuestring))
                fail_msg("%s: decoded text of lines %zu..%zu differs", file, at, at + group - 1);
        }
        vtbl->close(tok);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_models)};
    const char *src = getenv("srcdir");
    char folder[4096];
    uint8_t *text;
    uint64_t len;
    turbo_err err = {{0}};
    if (!(shared = shared_dir()))
        return 77;
    snprintf(folder, sizeof folder, "%s/tests/golden/tok-spm", src ? src : ".");
    if (turbod_file_read(folder, "golden.json", 1 << 20, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->tokenizers[0];
    read_lines();
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < 16; i++)
        free(files[i]);
    free(lines);
    free(text);
    cJSON_Delete(golden);
    return rc;
}
