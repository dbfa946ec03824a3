/* tok-spm's own rules, on models written here: the JSON files beside tokenizer.model, trust,
 * limits, long texts and damaged files. Needs nothing outside the repository. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "plugin/host.h"
#include "turbo/plugin.h"

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };
#define TRUSTED TURBO_TOK_TRUSTED
#define FIRST TURBO_TOK_FIRST

static const turbo_tokenizer_vtbl *vtbl;
static char folder[] = "/tmp/turbo-rules-XXXXXX";
static uint32_t seed = 1;

static uint32_t rnd(void)
{
    return (seed = seed * 1664525u + 1013904223u) >> 8;
}

/* ---- writing a model ---- */

typedef struct model {
    uint8_t b[16384];
    size_t n;
    int32_t pieces;
} model;

static void put(model *m, const void *p, size_t n)
{
    assert_true(m->n + n <= sizeof m->b);
    memcpy(m->b + m->n, p, n);
    m->n += n;
}

static void varint(model *m, uint64_t v)
{
    for (; v > 127; v >>= 7)
        put(m, &(uint8_t){(uint8_t)(v | 128)}, 1);
    put(m, &(uint8_t){(uint8_t)v}, 1);
}

static void number(model *m, unsigned field, unsigned value)
{
    varint(m, field << 3);
    varint(m, value);
}

static void message(model *m, unsigned field, const model *inner)
{
    varint(m, field << 3 | 2);
    varint(m, inner->n);
    put(m, inner->b, inner->n);
}

static int32_t piece(model *m, const char *text, float score, unsigned type)
{
    model in = {.n = 0};
    varint(&in, 1 << 3 | 2);
    varint(&in, strlen(text));
    put(&in, text, strlen(text));
    varint(&in, 2 << 3 | 5);
    put(&in, &score, 4);
    number(&in, 3, type);
    message(m, 1, &in);
    return m->pieces++;
}

static void settings(model *m, unsigned type, bool fallback, bool dummy)
{
    model trainer = {.n = 0}, normalizer = {.n = 0};
    number(&trainer, 3, type);
    number(&trainer, 35, fallback);
    number(&trainer, 40, 0);
    number(&trainer, 41, 1);
    number(&trainer, 42, 2);
    message(m, 2, &trainer);
    number(&normalizer, 3, dummy);
    number(&normalizer, 4, 0);
    message(m, 3, &normalizer);
}

static void write_file(const char *name, const void *p, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
}

static void clear(void)
{
    static const char *const names[] = {"tokenizer.model", "tokenizer_config.json",
                                        "added_tokens.json", "special_tokens_map.json"};
    char path[128];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

/* Opens the folder and removes its files. */
static turbo_status open_all(const model *m, const char *config, const char *added, const char *map,
                             void **tok, turbo_err *err)
{
    memset(err, 0, sizeof *err);
    *tok = NULL;
    write_file("tokenizer.model", m->b, m->n);
    if (config)
        write_file("tokenizer_config.json", config, strlen(config));
    if (added)
        write_file("added_tokens.json", added, strlen(added));
    if (map)
        write_file("special_tokens_map.json", map, strlen(map));
    turbo_status st = vtbl->open(turbod_host_table(), folder, tok, err);
    clear();
    return st;
}

static void *open_ok(const model *m, const char *config, const char *added, const char *map)
{
    void *tok;
    turbo_err err;
    if (open_all(m, config, added, map, &tok, &err))
        fail_msg("%s", err.text);
    return tok;
}

static void refused(const model *m, const char *config, const char *added, const char *part)
{
    void *tok;
    turbo_err err;
    if (!open_all(m, config, added, NULL, &tok, &err))
        fail_msg("accepted: %s", config ? config : added ? added : part);
    if (!strstr(err.text, part))
        fail_msg("\"%s\" does not say \"%s\"", err.text, part);
}

/* Characters, and merges that would build special names, were they allowed to. */
static int32_t u1, u2;
static unsigned model_type = 2;
static model chat_model(bool dummy)
{
    static const char *const merges[] = {"<s",  "s>",   "<s>", "[U", "U1", "1]",
                                         "U1]", "[U1]", "hi",  "<|", "|>", "\xE2\x96\x81hi"};
    model m = {.n = 0};
    char name[8];
    piece(&m, "<unk>", 0, UNKNOWN);
    piece(&m, "<s>", 0, CONTROL);
    piece(&m, "</s>", 0, CONTROL);
    for (unsigned i = 0; i < 256; i++) {
        snprintf(name, sizeof name, "<0x%02X>", i);
        piece(&m, name, 0, BYTE);
    }
    for (const char *p = "abceghioprstuxUV<>[]|/12_"; *p; p++)
        piece(&m, (char[]){*p, 0}, -100, NORMAL);
    piece(&m, "\xE2\x96\x81", -100, NORMAL);
    for (size_t i = 0; i < sizeof merges / sizeof merges[0]; i++)
        if (strcmp(merges[i], "<s>") && strcmp(merges[i], "[U1]")) /* those stand there already */
            piece(&m, merges[i], -(float)i, NORMAL);
    u1 = piece(&m, "[U1]", -5, NORMAL); /* to be renamed: a normal piece that merges can build */
    u2 = piece(&m, "[U2]", 0, USER); /* and a user-defined one */
    settings(&m, model_type, true, dummy);
    return m;
}

static uint64_t encode(const void *tok, const char *text, uint32_t flags, int32_t *ids)
{
    uint64_t n = 0;
    turbo_err err;
    assert_int_equal(vtbl->encode(tok, text, strlen(text), flags, ids, 256, &n, &err), TURBO_OK);
    return n;
}

/* The names of the ids of a text, joined by blanks. */
static const char *names(const void *tok, const char *text, uint32_t flags)
{
    static char out[4096];
    int32_t ids[256];
    size_t w = 0;
    uint64_t n = encode(tok, text, flags, ids);
    for (uint64_t i = 0; i < n; i++) {
        const char *name;
        uint32_t len;
        assert_int_equal(vtbl->name(tok, ids[i], &name, &len), TURBO_OK);
        w += (size_t)snprintf(out + w, sizeof out - w, "%s%.*s", i ? " " : "", (int)len, name);
    }
    out[w] = '\0';
    return out;
}

static const char *chat_config(void)
{
    static char text[1024];
    snprintf(text, sizeof text,
             "{\"add_bos_token\": false, \"bos_token\": \"<s>\", \"eos_token\": {\"content\": "
             "\"<|x|>\"},"
             "\"added_tokens_decoder\": {"
             "\"0\": {\"content\": \"<unk>\", \"special\": true},"
             "\"1\": {\"content\": \"<s>\", \"special\": true},"
             "\"%d\": {\"content\": \"<|x|>\", \"special\": true},"
             "\"%d\": {\"content\": \"<|user|>\", \"special\": false, \"rstrip\": true},"
             "\"%d\": {\"content\": \"<img>\", \"special\": true, \"lstrip\": true},"
             "\"%d\": {\"content\": \"<img>>\", \"special\": false}}}",
             (int)u1, (int)u2, (int)u2 + 1, (int)u2 + 2);
    return text;
}

/* ---- tests ---- */

static void test_names(void **state)
{
    (void)state;
    model m = chat_model(false);
    void *tok = open_ok(&m, chat_config(), NULL, NULL);
    turbo_tokenizer_info info = {.size = sizeof info};
    const char *bytes;
    uint32_t len;
    vtbl->info(tok, &info);
    assert_int_equal(info.n_vocab, u2 + 3); /* two ids behind the file's */
    assert_int_equal(info.bos, 1);
    assert_int_equal(info.eos, u1);
    assert_int_equal(info.unk, 0);
    assert_int_equal(info.add_bos, 0);
    assert_int_equal(vtbl->find(tok, "<|x|>", 5), u1);
    assert_int_equal(vtbl->find(tok, "[U1]", 4), -1);
    assert_int_equal(vtbl->find(tok, "[U2]", 4), -1);
    assert_int_equal(vtbl->find(tok, "<img>", 5), u2 + 1);
    assert_int_equal(vtbl->find(tok, "<0x41>", 6), 3 + 0x41);
    assert_int_equal(vtbl->find(tok, "", 0), -1);
    assert_int_equal(vtbl->attr(tok, u1), TURBO_TOKEN_SPECIAL);
    assert_int_equal(vtbl->attr(tok, u2), 0);
    assert_int_equal(vtbl->attr(tok, u2 + 1), TURBO_TOKEN_SPECIAL);
    assert_true(vtbl->attr(tok, 1) & TURBO_TOKEN_CONTROL);
    assert_int_equal(vtbl->attr(tok, 3), TURBO_TOKEN_BYTE);
    assert_true(vtbl->attr(tok, -1) & TURBO_TOKEN_UNUSED);
    assert_true(vtbl->attr(tok, info.n_vocab) & TURBO_TOKEN_UNUSED);
    assert_int_equal(vtbl->piece(tok, u2, 0, &bytes, &len), TURBO_OK);
    assert_int_equal(len, 8);
    assert_memory_equal(bytes, "<|user|>", 8); /* not the piece's text */
    assert_int_equal(vtbl->piece(tok, 1, 0, &bytes, &len), TURBO_OK);
    assert_int_equal(len, 0);
    assert_true(vtbl->piece(tok, info.n_vocab, 0, &bytes, &len) < 0);
    assert_true(vtbl->name(tok, -1, &bytes, &len) < 0);
    assert_true(vtbl->probe(turbod_host_table(), folder) == 0); /* the file is gone by now */
    vtbl->close(tok);
}

static void test_trust(void **state)
{
    (void)state;
    model m = chat_model(false);
    void *tok = open_ok(&m, chat_config(), NULL, NULL);
    assert_string_equal(names(tok, "hi<|x|><s>", TRUSTED), "hi <|x|> <s>");
    assert_string_equal(names(tok, "hi<|x|><s>", 0), "hi <| x |> <s >");
    assert_string_equal(names(tok, "[U1][U2]", 0), "[U 1] [U 2 ]");
    assert_string_equal(names(tok, "[U1][U2]", TRUSTED), "[U 1] [U 2 ]"); /* old names are gone */
    assert_string_equal(names(tok, "<img>>a<img>a", TRUSTED), "<img>> a <img> a"); /* longest */
    assert_string_equal(names(tok, "a \t<img> a<|user|>\n hi", TRUSTED),
                        "a <img> \xE2\x96\x81 a <|user|> hi"); /* lstrip, rstrip */
    assert_string_equal(names(tok, "<0x41>", TRUSTED), "< <0x30> x <0x34> 1 >");
    vtbl->close(tok);
    /* Without a configuration the file alone decides, as the library does. */
    tok = open_ok(&m, NULL, NULL, NULL);
    assert_string_equal(names(tok, "[U1][U2]<s>", 0), "[U1] [U2] <s >");
    assert_string_equal(names(tok, "[U1][U2]<s>", TRUSTED), "[U1] [U2] <s>");
    vtbl->close(tok);
}

/* Whatever is typed, no special token comes of it, and it decodes to what was typed. */
static void test_typed(void **state)
{
    static const char *const parts[] = {"<|",   "x",  "|>",   "<s>",  "<",       ">",
                                        "[U1]", "[U", "1]",   "s>",   "<|x|>",   "<img>",
                                        " ",    "hi", "[U2]", "</s>", "\xC3\xA9"};
    (void)state;
    model m = chat_model(false);
    void *tok = open_ok(&m, chat_config(), NULL, NULL);
    for (int round = 0; round < 5000; round++) {
        char text[256] = "", out[256];
        int32_t ids[256];
        size_t w = 0;
        for (uint32_t i = rnd() % 16; i; i--)
            strncat(text, parts[rnd() % (sizeof parts / sizeof parts[0])], 16);
        uint64_t n = encode(tok, text, FIRST, ids);
        for (uint64_t i = 0; i < n; i++) {
            const char *b;
            uint32_t len;
            assert_true(ids[i] > 2 && ids[i] < u1);
            assert_int_equal(vtbl->piece(tok, ids[i], 0, &b, &len), TURBO_OK);
            memcpy(out + w, b, len);
            w += len;
        }
        assert_int_equal(w, strlen(text));
        assert_memory_equal(out, text, w);
    }
    vtbl->close(tok);
}

static void test_prefix(void **state)
{
    (void)state;
    model m = chat_model(true);
    void *tok = open_ok(&m, NULL, NULL, NULL);
    const char *b;
    uint32_t len;
    assert_string_equal(names(tok, "hi", FIRST), "\xE2\x96\x81hi");
    assert_string_equal(names(tok, "hi", 0), "hi");
    assert_string_equal(names(tok, "hi<s>hi", FIRST | TRUSTED), "\xE2\x96\x81hi <s> hi");
    assert_string_equal(names(tok, "<s>hi", FIRST | TRUSTED), "<s> hi");
    assert_int_equal(encode(tok, "", FIRST | TRUSTED, NULL), 0);
    void *old = open_ok(&m, "{\"legacy\": true}", NULL, NULL);
    assert_string_equal(names(old, "<s>hi<s>hi", FIRST | TRUSTED),
                        "<s> \xE2\x96\x81hi <s> \xE2\x96\x81hi");
    assert_string_equal(names(old, "<s>hi", TRUSTED), "<s> hi"); /* no document begins here */
    vtbl->close(old);
    int32_t id = vtbl->find(tok, "\xE2\x96\x81hi", 5);
    assert_int_equal(vtbl->piece(tok, id, FIRST, &b, &len), TURBO_OK);
    assert_int_equal(len, 2); /* the blank that was put in front goes */
    assert_int_equal(vtbl->piece(tok, id, 0, &b, &len), TURBO_OK);
    assert_int_equal(len, 3);
    vtbl->close(tok);
}

static void test_limits(void **state)
{
    (void)state;
    model m = chat_model(false);
    void *tok = open_ok(&m, NULL, NULL, NULL);
    int32_t ids[4] = {-7, -7, -7, -7};
    uint64_t n = 0;
    turbo_err err = {{0}};
    assert_int_equal(vtbl->encode(tok, "abcabc", 6, 0, NULL, 0, &n, &err), TURBO_OK);
    assert_int_equal(n, 6);
    assert_int_equal(vtbl->encode(tok, "abcabc", 6, 0, ids, 3, &n, &err), TURBO_ELIMIT);
    assert_int_equal(n, 6);
    assert_true(ids[0] >= 0 && ids[2] >= 0 && ids[3] == -7);
    assert_non_null(strstr(err.text, "6"));
    assert_int_equal(vtbl->encode(tok, "a\0b", 3, 0, ids, 4, &n, &err), TURBO_OK);
    assert_int_equal(n, 3);
    assert_int_equal(ids[1], 3); /* <0x00> */
    vtbl->close(tok);
}

static void test_other_files(void **state)
{
    (void)state;
    model m = chat_model(false);
    char added[128];
    snprintf(added, sizeof added, "{\"<box>\": %d, \"<quad>\": %d}", (int)u2 + 2, (int)u2 + 1);
    void *tok = open_ok(&m, NULL, added,
                        "{\"eos_token\": \"<quad>\", \"additional_special_tokens\": [\"[U2]\"]}");
    turbo_tokenizer_info info = {.size = sizeof info};
    vtbl->info(tok, &info);
    assert_int_equal(info.eos, u2 + 1);
    assert_int_equal(info.n_vocab, u2 + 3);
    assert_string_equal(names(tok, "<box>[U2]<quad>", TRUSTED), "<box> [U2] <quad>");
    assert_string_equal(names(tok, "[U2]", 0), "[U 2 ]"); /* special by its role */
    vtbl->close(tok);
    refused(&m, NULL, "{\"<a.b>\": 300}", "<a.b>");
    refused(&m, NULL, "[1]", "added");
    refused(&m, NULL, "{\"<box>\": 99999999}", "<box>");
}

static void test_refused(void **state)
{
#define ONE(key, value) "{\"added_tokens_decoder\": {\"" key "\": " value "}}"
    (void)state;
    model m = chat_model(false);
    refused(&m, ONE("x", "{\"content\": \"a\"}"), NULL, "\"x\"");
    refused(&m, ONE("-1", "{\"content\": \"a\"}"), NULL, "\"-1\"");
    refused(&m, ONE("", "{\"content\": \"a\"}"), NULL, "id is needed");
    refused(&m, ONE("99999999999999999999", "{\"content\": \"a\"}"), NULL, "id is needed");
    refused(&m, ONE("2000000", "{\"content\": \"a\"}"), NULL, "beyond");
    refused(&m, ONE("400", "{\"content\": \"a\"}"), NULL, "no gap");
    refused(&m, ONE("5", "{\"content\": \"a\"}"), NULL, "byte piece");
    refused(&m, ONE("1", "{\"content\": \"\"}"), NULL, "content");
    refused(&m, ONE("1", "{}"), NULL, "content");
    refused(&m, ONE("1", "{\"content\": 1}"), NULL, "string");
    refused(&m, ONE("1", "{\"content\": \"a\", \"special\": 1}"), NULL, "special");
    refused(&m, ONE("1", "{\"content\": \"a\", \"single_word\": true}"), NULL, "single_word");
    refused(&m, "{\"added_tokens_decoder\": [{\"content\": \"a\"}]}", NULL, "id is needed");
    refused(&m, "{\"added_tokens_decoder\": 7}", NULL, "object");
    refused(
        &m,
        "{\"added_tokens_decoder\": {\"1\": {\"content\": \"a\"}, \"01\": {\"content\": \"b\"}}}",
        NULL, "twice");
    refused(&m, "{\"eos_token\": \"<nowhere>\"}", NULL, "<nowhere>");
    refused(&m, "{\"bos_token\": []}", NULL, "bos_token");
    refused(&m, "{", NULL, "tokenizer_config.json");
    model_type = 3;
    m = chat_model(false);
    refused(&m, NULL, NULL, "word");
    model_type = 4;
    m = chat_model(false);
    refused(&m, NULL, NULL, "char");
    model_type = 2;
}

/* Time grows with the text, whatever the text and the model are made of. */
static void test_time(void **state)
{
    (void)state;
    const size_t n = 1 << 20;
    model m = {.n = 0};
    char long_name[200];
    piece(&m, "<unk>", 0, UNKNOWN);
    piece(&m, "<s>", 0, CONTROL);
    piece(&m, "</s>", 0, CONTROL);
    for (size_t i = 1; i < 120; i++) { /* every merge is unused and split back */
        memset(long_name, 'a', i);
        long_name[i] = '\0';
        piece(&m, long_name, (float)i, i < 2 ? NORMAL : UNUSED);
    }
    memset(long_name, 'b', 199);
    strcpy(long_name + 198, "c");
    piece(&m, long_name, 0, USER); /* nearly matched at each place */
    piece(&m, "b", -1, NORMAL);
    settings(&m, 2, false, false);
    void *tok = open_ok(&m, NULL, NULL, NULL);
    char *text = malloc(n);
    int32_t *ids = malloc(n * sizeof *ids);
    for (int c = 'a'; c <= 'b'; c++) {
        double seconds[2];
        memset(text, c, n);
        for (int i = 0; i < 2; i++) {
            const size_t some = i ? n : n / 16;
            uint64_t got = 0;
            turbo_err err;
            clock_t from = clock();
            assert_int_equal(vtbl->encode(tok, text, some, TRUSTED, ids, n, &got, &err), TURBO_OK);
            seconds[i] = (double)(clock() - from) / CLOCKS_PER_SEC;
            assert_int_equal(got, some);
        }
        print_message("64 KiB and 1 MiB of '%c': %.3f s, %.3f s\n", c, seconds[0], seconds[1]);
        assert_true(seconds[1] < 100 * seconds[0]); /* of the processor; a quadratic way: 256 */
    }
    free(text);
    free(ids);
    vtbl->close(tok);
}

/* Cut at every byte, or with bytes changed: an error with a text, or a tokenizer that works. */
static void try_damaged(const model *m, const char *config)
{
    void *tok;
    turbo_err err;
    int32_t ids[64];
    uint64_t n;
    if (open_all(m, config, NULL, NULL, &tok, &err)) {
        assert_true(err.text[0]);
        return;
    }
    (void)vtbl->encode(tok, "hi <s>[U1]\xC3\xA9<|x|>", 17, FIRST | TRUSTED, ids, 64, &n, &err);
    for (int32_t i = 0; i < 400; i++) {
        const char *b;
        uint32_t len;
        (void)vtbl->piece(tok, i, FIRST, &b, &len);
        (void)vtbl->name(tok, i, &b, &len);
    }
    vtbl->close(tok);
}

static void test_damage(void **state)
{
    (void)state;
    model whole = chat_model(true);
    for (size_t n = 0; n < whole.n; n++) {
        model m = whole;
        m.n = n;
        try_damaged(&m, n % 2 ? chat_config() : NULL);
    }
    for (int round = 0; round < 3000; round++) {
        model m = whole;
        for (uint32_t k = 1 + rnd() % 3; k; k--) {
            /* Half of the time in the last part, where the settings and the last pieces are. */
            size_t back = rnd() % 2 ? m.n : 120;
            m.b[m.n - 1 - rnd() % back] = (uint8_t)rnd();
        }
        try_damaged(&m, round % 2 ? chat_config() : NULL);
    }
    /* Lengths that do not fit, endless numbers. */
    static const char *const bad[] = {"\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", "\x0A\x7F",
                                      "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", "\x0B",
                                      "\x0A\x05\x0A\xFF\xFF\xFF\x7F"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        model m = whole;
        put(&m, bad[i], strlen(bad[i]));
        refused(&m, NULL, NULL, "tokenizer.model");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),   cmocka_unit_test(test_trust),
        cmocka_unit_test(test_typed),   cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_limits),  cmocka_unit_test(test_other_files),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_time),
        cmocka_unit_test(test_damage),
    };
    vtbl = turbo_plugin_entry(TURBO_HOST_ABI)->tokenizers[0];
    if (!mkdtemp(folder))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    clear();
    rmdir(folder);
    return rc;
}
