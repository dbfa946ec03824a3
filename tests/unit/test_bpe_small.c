/* tests/unit/test_bpe_small.c: tok-bpe on small trained models that mix every rule it knows, against
 * the tokenizers package (tests/golden/tok-bpe/small.json); then the same files damaged: they open or are
 * refused, and never crash. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bpe_kit.h"
#include "engine/engine.h"
#include "plugin/host.h"
#include "util/file.h"
#include "util/json.h"

static bpe_kit kit;
static cJSON *golden;

static void decode(const void *tok, const int32_t *ids, uint64_t n, char *out, size_t cap)
{
    turbod_detok *d = turbod_detok_new(kit.v, tok, false);
    const char *text;
    size_t len, at = 0;
    for (uint64_t i = 0; i <= n; i++) {
        if (i < n)
            turbod_detok_push(d, ids[i], &text, &len);
        else
            turbod_detok_flush(d, &text, &len);
        assert_true(at + len < cap);
        memcpy(out + at, text, len);
        at += len;
    }
    out[at] = '\0';
    turbod_detok_free(d);
}

/* line: text, trusted, ids, decoded. */
static void compare(const void *tok, int model, const cJSON *line)
{
    const cJSON *text = line->child, *trusted = text->next, *want = trusted->next, *x;
    int32_t ids[1024];
    static char out[1 << 16];
    uint64_t n = 0, i = 0;
    turbo_err err = {{0}};
    uint32_t flags = TURBO_TOK_FIRST | (trusted->valueint ? (uint32_t)TURBO_TOK_TRUSTED : 0);
    if (kit.v->encode(tok, text->valuestring, strlen(text->valuestring), flags, ids, 1024, &n,
                      &err))
        fail_msg("model %d: %s", model, err.text);
    char *shown = cJSON_PrintUnformatted(line);
    if (n != (uint64_t)cJSON_GetArraySize(want))
        fail_msg("model %d: %s: %d ids", model, shown, (int)n);
    cJSON_ArrayForEach(x, want) if (ids[i++] != x->valueint)
        fail_msg("model %d: %s: id %d is %d", model, shown, (int)i - 1, ids[i - 1]);
    decode(tok, ids, n, out, sizeof out);
    if (strcmp(out, want->next->valuestring))
        fail_msg("model %d: %s: decodes to \"%s\"", model, shown, out);
    free(shown);
}

static void test_models(void **state)
{
    (void)state;
    int k = 0;
    const cJSON *m, *line;
    cJSON_ArrayForEach(m, turbod_json_get(golden, "models"))
    {
        turbo_err err = {{0}};
        void *tok = NULL;
        bpe_kit_put(&kit, "tokenizer.json", m->child->valuestring, strlen(m->child->valuestring));
        if (kit.v->open(turbod_host_table(), kit.folder, &tok, &err))
            fail_msg("model %d: %s", k, err.text);
        cJSON_ArrayForEach(line, m->child->next) compare(tok, k, line);
        kit.v->close(tok);
        k++;
    }
    assert_true(k >= 60);
}

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* A file that was damaged: opens, and then encodes and decodes, or is refused with a text. */
static void attempt(const char *file, size_t n, int *opened)
{
    static const char text[] = "the ab \xE6\xBC\xA2 <s>zz <x>'s 12\n \xF0\x9F\x98\x80";
    turbo_err err = {{0}};
    void *tok = NULL;
    bpe_kit_put(&kit, "tokenizer.json", file, n);
    turbo_status st = kit.v->open(turbod_host_table(), kit.folder, &tok, &err);
    if (st) {
        assert_true(strlen(err.text) > 0);
        return;
    }
    int32_t ids[512];
    uint64_t got = 0;
    static char out[1 << 16];
    for (uint32_t flags = 0; flags < 4; flags++)
        if (!kit.v->encode(tok, text, sizeof text - 1, flags, ids, 512, &got, &err))
            decode(tok, ids, got, out, sizeof out);
    kit.v->close(tok);
    (*opened)++;
}

static void test_damaged(void **state)
{
    (void)state;
    int k = 0, opened = 0;
    uint32_t seed = 1;
    const cJSON *m;
    cJSON_ArrayForEach(m, turbod_json_get(golden, "models"))
    {
        size_t n = strlen(m->child->valuestring);
        char *copy = malloc(n);
        assert_non_null(copy);
        if (k++ % 6)
            goto done;
        for (int i = 0; i < 40; i++)
            attempt(m->child->valuestring, next(&seed) % n, &opened);
        assert_int_equal(opened, 0);
        for (int i = 0; i < 150; i++) {
            memcpy(copy, m->child->valuestring, n);
            for (uint32_t f = 0; f <= next(&seed) % 3; f++)
                copy[next(&seed) % n] ^= (char)(1u << next(&seed) % 7);
            int any = 0;
            attempt(copy, n, &any);
        }
    done:
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_models),
                                       cmocka_unit_test(test_damaged)};
    const char *src = getenv("srcdir");
    char folder[4096];
    uint8_t *text;
    uint64_t len;
    turbo_err err;
    snprintf(folder, sizeof folder, "%s/tests/golden/tok-bpe", src ? src : ".");
    if (turbod_file_read(folder, "small.json", 1 << 22, &text, &len, &err) ||
        turbod_json_parse((const char *)text, len, &turbod_json_file, &golden, &err)) {
        printf("%s\n", err.text);
        return 1;
    }
    bpe_kit_open(&kit);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    bpe_kit_close(&kit);
    free(text);
    cJSON_Delete(golden);
    return rc;
}
