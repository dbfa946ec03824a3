/* tok-spm against the sentencepiece package on small random models
 * (tests/golden/tok-spm/small.json): the corners that real models seldom show. Needs nothing
 * outside the repository. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "plugin/host.h"
#include "util/file.h"
#include "util/json.h"

static const turbo_tokenizer_vtbl *vtbl;
static cJSON *golden;

static int digit(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static size_t from_hex(const char *hex, uint8_t *to, size_t cap)
{
    size_t n = strlen(hex) / 2;
    assert_true(n <= cap);
    for (size_t i = 0; i < n; i++)
        to[i] = (uint8_t)(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
    return n;
}

static void *open_bytes(const uint8_t *bytes, size_t n)
{
    char folder[] = "/tmp/turbo-small-XXXXXX", path[64];
    turbo_err err = {{0}};
    void *tok = NULL;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    turbo_status st = vtbl->open(turbod_host_table(), folder, &tok, &err);
    unlink(path);
    rmdir(folder);
    if (st)
        fail_msg("%s", err.text);
    return tok;
}

static void check_line(const void *tok, int model, int number, const cJSON *line)
{
    uint8_t text[4096], want[4096];
    int32_t ids[4096];
    char out[65536];
    uint64_t n = 0;
    turbo_err err;
    size_t len = from_hex(cJSON_GetArrayItem(line, 0)->valuestring, text, sizeof text);
    const cJSON *right = cJSON_GetArrayItem(line, 1);
    assert_int_equal(
        vtbl->encode(tok, (const char *)text, len, TURBO_TOK_FIRST, ids, 4096, &n, &err), TURBO_OK);
    const cJSON *v = right->child;
    for (uint64_t i = 0; i < n && v; i++, v = v->next)
        if (ids[i] != (int32_t)v->valuedouble)
            fail_msg("model %d line %d: id %d is %d, %g is right", model, number, (int)i, ids[i],
                     v->valuedouble);
    if (n != (uint64_t)cJSON_GetArraySize(right))
        fail_msg("model %d line %d: %d ids, %d are right", model, number, (int)n,
                 cJSON_GetArraySize(right));
    turbod_detok *d = turbod_detok_new(vtbl, tok, false);
    size_t w = 0, l;
    const char *t;
    for (uint64_t i = 0; i < n; i++) {
        turbod_detok_push(d, ids[i], &t, &l);
        memcpy(out + w, t, l);
        w += l;
    }
    turbod_detok_flush(d, &t, &l);
    memcpy(out + w, t, l);
    w += l;
    turbod_detok_free(d);
    len = from_hex(cJSON_GetArrayItem(line, 2)->valuestring, want, sizeof want);
    if (w != len || memcmp(out, want, len))
        fail_msg("model %d line %d decodes to \"%.*s\" instead of \"%.*s\"", model, number, (int)w,
                 out, (int)len, (const char *)want);
}

static void test_small(void **state)
{
    static uint8_t bytes[1 << 16];
    int model = 0;
    (void)state;
    const cJSON *models = turbod_json_get(golden, "models");
    for (const cJSON *m = models->child; m; m = m->next, model++) {
        void *tok = open_bytes(bytes, from_hex(m->child->valuestring, bytes, sizeof bytes));
        int number = 0;
        for (const cJSON *line = m->child->next->child; line; line = line->next)
            check_line(tok, model, number++, line);
        assert_true(number > 0);
        vtbl->close(tok);
    }
    assert_true(model >= 80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small)};
    const char *src = getenv("srcdir");
    char folder[4096];
    uint8_t *text;
    uint64_t len;
    turbo_err err = {{0}};
    snprintf(folder, sizeof folder, "%s/tests/golden/tok-spm", src ? src : ".");
    if (turbod_file_read(folder, "small.json", 1 << 24, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->tokenizers[0];
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(text);
    cJSON_Delete(golden);
    return rc;
}
