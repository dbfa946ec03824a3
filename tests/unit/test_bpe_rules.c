/* tests/unit/test_bpe_rules.c: what tok-bpe promises beyond equality: special tokens come from trusted text
 * only, broken files are refused by name, a long text takes no more than its share, and the tokenizer of
 * a folder is chosen as documented. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bpe_kit.h"
#include "plugin/host.h"

static bpe_kit kit;

/* A character-level model: a b c, ab, abc, <s> reachable by merges, <x> special. */
#define MODEL(vocab, merges)                                                                       \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[" merges "]}"
#define VOCAB                                                                                      \
    "\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"<\":5,\"s\":6,\">\":7,\"<s\":8,\"<s>\":9,\" "    \
    "\":10"
#define MERGES "\"a b\",\"ab c\",\"< s\",\"<s >\""
#define SPECIAL                                                                                    \
    "\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true},"                           \
    "{\"id\":11,\"content\":\"<x>\",\"special\":true},{\"id\":12,\"content\":\"cc\"}],"
#define GOOD "{" SPECIAL MODEL(VOCAB, MERGES) "}"

static turbo_status open_text(const char *json, void **tok, turbo_err *err)
{
    bpe_kit_put(&kit, "tokenizer.json", json, strlen(json));
    *tok = NULL;
    return kit.v->open(turbod_host_table(), kit.folder, tok, err);
}

static void ids_are(const void *tok, const char *text, uint32_t flags, const int32_t *want,
                    size_t n)
{
    int32_t ids[64];
    uint64_t k = 0;
    turbo_err err;
    assert_int_equal(kit.v->encode(tok, text, strlen(text), flags, ids, 64, &k, &err), TURBO_OK);
    if (k != n || memcmp(ids, want, n * sizeof *ids))
        fail_msg("\"%s\": %d ids, the first is %d", text, (int)k, ids[0]);
}

#define IDS(tok, text, flags, ...)                                                                 \
    ids_are(tok, text, flags, (const int32_t[]){__VA_ARGS__},                                      \
            sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_trust(void **state)
{
    (void)state;
    void *tok;
    turbo_err err = {{0}};
    if (open_text(GOOD, &tok, &err))
        fail_msg("%s", err.text);
    IDS(tok, "abc<s>", TURBO_TOK_TRUSTED, 4, 9);
    IDS(tok, "abc<s>", 0, 4, 8, 7); /* the merge that leads to it never happens */
    IDS(tok, "a<x>", TURBO_TOK_TRUSTED, 0, 11);
    IDS(tok, "a<x>", 0, 0, 5, 7); /* no x in the vocabulary, no unknown token: left out */
    IDS(tok, "acc", 0, 0, 12); /* an added token that is not special */
    assert_int_equal(kit.v->attr(tok, 9), TURBO_TOKEN_SPECIAL);
    assert_int_equal(kit.v->attr(tok, 12), 0);
    assert_int_equal(kit.v->attr(tok, 13), TURBO_TOKEN_UNUSED);
    assert_int_equal(kit.v->find(tok, "<x>", 3), 11);
    assert_int_equal(kit.v->find(tok, "nope", 4), -1);
    /* Counting, too little room, text that is not UTF-8. */
    int32_t one;
    uint64_t n = 0;
    assert_int_equal(kit.v->encode(tok, "ab ab", 5, 0, NULL, 0, &n, &err), TURBO_OK);
    assert_int_equal(n, 3);
    assert_int_equal(kit.v->encode(tok, "ab ab", 5, 0, &one, 1, &n, &err), TURBO_ELIMIT);
    assert_int_equal(n, 3);
    assert_int_equal(one, 3);
    assert_int_equal(kit.v->encode(tok, "a\xC3", 2, 0, &one, 1, &n, &err), TURBO_EINVAL);
    kit.v->close(tok);
    /* bos by tokenizer_config.json is special without a word in tokenizer.json. */
    static const char config[] = "{\"bos_token\": \"abc\", \"add_bos_token\": true, \"eos_token\": "
                                 "{\"content\": \"<x>\"}}";
    bpe_kit_put(&kit, "tokenizer_config.json", config, sizeof config - 1);
    if (open_text(GOOD, &tok, &err))
        fail_msg("%s", err.text);
    turbo_tokenizer_info info = {.size = sizeof info};
    kit.v->info(tok, &info);
    assert_int_equal(info.bos, 4);
    assert_int_equal(info.eos, 11);
    assert_int_equal(info.add_bos, 1);
    assert_int_equal(info.n_vocab, 13);
    IDS(tok, "abc", 0, 3, 2);
    IDS(tok, "abc", TURBO_TOK_TRUSTED, 4);
    kit.v->close(tok);
    bpe_kit_drop(&kit, "tokenizer_config.json");
}

static void test_refused(void **state)
{
    static const char *const rows[][2] = {
        {"", "tokenizer.json: byte 0"},
        {"{\"model\":", "the file is cut off"},
        {"{} x", "behind the end"},
        {"[1]", "no JSON object"},
        {"{\"model\":null}", "it has no model"},
        {"{\"a\":1,\"a\":2}", "a key stands twice"},
        {"{\"model\":{\"type\":\"Unigram\"}}", "\"Unigram\"; BPE is read"},
        {"{" MODEL("\"a\":0,\"b\":2", "") "}", "no token has the id 1"},
        {"{" MODEL("\"a\":0,\"b\":0", "") "}", "\"a\" and \"b\" have one id, 0"},
        {"{" MODEL("\"a\":0,\"a\":1", "") "}", "a key stands twice"},
        {"{" MODEL("\"a\":2147483648", "") "}", "ids end at"},
        {"{" MODEL("\"a\":-1", "") "}", "no whole number"},
        {"{" MODEL("\"a\":1.5", "") "}", "no whole number"},
        {"{" MODEL("\"\":0", "") "}", "a name of 0 bytes"},
        {"{" MODEL("", "") "}", "a key stands"},
        {"{" MODEL("\"a\":0,\"b\":1,\"ab\":2", "\"a b\",\"a b\"") "}", "stands there twice"},
        {"{" MODEL("\"a\":0,\"b\":1", "\"a b\"") "}", "merge 0: \"ab\" is no token"},
        {"{" MODEL("\"a\":0,\"b\":1", "\"a z\"") "}", "merge 0: \"z\" is no token"},
        {"{" MODEL("\"a\":0,\"b\":1", "\"ab\"") "}", "merge 0 is neither"},
        {"{" MODEL("\"a\":0,\"b\":1", "[\"a\"]") "}", "merge 0 is neither"},
        {"{\"added_tokens\":[{\"id\":0,\"content\":\"b\"}]," MODEL("\"a\":0", "") "}",
         "has the id 0 of"},
        {"{\"added_tokens\":[{\"id\":5,\"content\":\"b\"}]," MODEL("\"a\":0", "") "}",
         "no token has the id"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"a\"}]," MODEL("\"a\":0", "") "}",
         "stands there twice"},
        {"{\"normalizer\":{\"type\":\"Nmt\"}," MODEL("\"a\":0", "") "}",
         "normalizer: \"Nmt\" is not known"},
        {"{\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}," MODEL("\"a\":0", "") "}",
         "\"UnicodeScripts\""},
        {"{\"decoder\":{\"type\":\"WordPiece\"}," MODEL("\"a\":0", "") "}",
         "decoder: \"WordPiece\""},
        {"{\"post_processor\":{\"type\":\"X\"}," MODEL("\"a\":0", "") "}", "post_processor: \"X\""},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?<n>a)\\\\k<n>\"},"
         "\"behavior\":"
         "\"Isolated\"}," MODEL("\"a\":0", "") "}",
         "the pattern has \"(?<n>a)"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":"
         "\"Isolated\"}," MODEL("\"a\":0", "") "}",
         "the pattern is not understood"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        void *tok;
        turbo_err err = {{0}};
        bool empty = !strcmp(rows[i][1], "a key stands");
        turbo_status st = open_text(rows[i][0], &tok, &err);
        if (!st || (!empty && !strstr(err.text, rows[i][1])))
            fail_msg("%s: \"%s\" lacks \"%s\"", rows[i][0], err.text, rows[i][1]);
    }
    /* Nesting deeper than the limit, and a great many values. */
    enum { DEEP = 100000, MANY = 9000000 };
    char *big = malloc(MANY);
    assert_non_null(big);
    memset(big, '[', DEEP);
    void *tok = NULL;
    turbo_err err = {{0}};
    bpe_kit_put(&kit, "tokenizer.json", big, DEEP);
    assert_int_equal(kit.v->open(turbod_host_table(), kit.folder, &tok, &err), TURBO_EDATA);
    assert_non_null(strstr(err.text, "nesting"));
    for (size_t i = 0; i < MANY; i += 2)
        memcpy(big + i, "0,", 2);
    big[0] = '[';
    bpe_kit_put(&kit, "tokenizer.json", big, MANY);
    assert_int_equal(kit.v->open(turbod_host_table(), kit.folder, &tok, &err), TURBO_EDATA);
    free(big);
}

/* One word of n letters; the work must grow with n, not with its square. */
static double seconds(const void *tok, const char *text, size_t n)
{
    struct timespec a, b;
    uint64_t k;
    turbo_err err;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    assert_int_equal(kit.v->encode(tok, text, n, 0, NULL, 0, &k, &err), TURBO_OK);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    return (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
}

static void test_linear(void **state)
{
    static const char *const files[] = {
        "{" MODEL("\"a\":0,\"aa\":1,\"aaaa\":2,\"aaaaaaaa\":3",
                  "\"a a\",\"aa aa\",\"aaaa aaaa\"") "}",
        "{\"normalizer\":{\"type\":\"NFC\"}," MODEL("\"a\":0", "") "}",
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}," MODEL("\"a\":0",
                                                                                        "") "}",
    };
    static const char *const units[] = {"a", "\xCC\x81\xCC\x96", " "};
    enum { N = 1 << 20 };
    (void)state;
    char *text = malloc(2 * N);
    assert_non_null(text);
    for (size_t i = 0; i < 3; i++) {
        void *tok;
        turbo_err err = {{0}};
        size_t u = strlen(units[i]);
        if (open_text(files[i], &tok, &err))
            fail_msg("%s", err.text);
        for (size_t k = 0; k < 2 * N; k += u)
            memcpy(text + k, units[i], u);
        double once = seconds(tok, text, N / 4), twice = seconds(tok, text, N / 2);
        double whole = seconds(tok, text, 2 * N);
        print_message("%zu: %.3f s, twice as long %.3f s, eight times %.3f s\n", i, once, twice,
                      whole);
        /* A square would take 64 times as long; the processor's caches take their part. */
        assert_true(whole < 32 * once + 0.5);
        kit.v->close(tok);
    }
    free(text);
}

/* ---- which tokenizer reads a folder ---------------------------------------------------------- */

static void test_probe(void **state)
{
    (void)state;
    bpe_kit_drop(&kit, "tokenizer.json");
    assert_int_equal(kit.v->probe(turbod_host_table(), kit.folder), 0);
    bpe_kit_put(&kit, "vocab.json", "{}", 2);
    assert_int_equal(kit.v->probe(turbod_host_table(), kit.folder), 0);
    bpe_kit_put(&kit, "merges.txt", "", 0);
    assert_int_equal(kit.v->probe(turbod_host_table(), kit.folder), 30);
    bpe_kit_put(&kit, "tokenizer.json", "", 0);
    assert_int_equal(kit.v->probe(turbod_host_table(), kit.folder), 40);
    bpe_kit_drop(&kit, "tokenizer.json");
}

/* vocab.json with merges.txt, line ends of both kinds. */
static void test_files(void **state)
{
    static const char vocab[] = "{\"a\":0,\"b\":1,\"ab\":2,\"\xC4\xA0\":3,\"\xC4\xA0"
                                "ab\":4,\"<|endoftext|>\":5}",
                      merges[] = "#version: 0.2\r\na b\r\n\xC4\xA0 ab\r\n",
                      config[] = "{\"tokenizer_class\":\"Qwen2Tokenizer\"}",
                      other[] = "{\"tokenizer_class\":\"FooTokenizer\"}";
    void *tok = NULL;
    turbo_err err = {{0}};
    (void)state;
    bpe_kit_drop(&kit, "tokenizer.json");
    bpe_kit_put(&kit, "vocab.json", vocab, sizeof vocab - 1);
    bpe_kit_put(&kit, "merges.txt", merges, sizeof merges - 1);
    for (int k = 0; k < 2; k++) {
        if (kit.v->open(turbod_host_table(), kit.folder, &tok, &err))
            fail_msg("%s", err.text);
        IDS(tok, "ab ab<|endoftext|>", TURBO_TOK_TRUSTED, 2, 4, 5);
        kit.v->close(tok);
        bpe_kit_put(&kit, "tokenizer_config.json", config, sizeof config - 1);
    }
    bpe_kit_put(&kit, "tokenizer_config.json", other, sizeof other - 1);
    assert_int_equal(kit.v->open(turbod_host_table(), kit.folder, &tok, &err), TURBO_EUNSUPPORTED);
    bpe_kit_drop(&kit, "tokenizer_config.json");
    bpe_kit_put(&kit, "merges.txt", "a b c\n", 6);
    assert_int_equal(kit.v->open(turbod_host_table(), kit.folder, &tok, &err), TURBO_EDATA);
    assert_non_null(strstr(err.text, "merges.txt: merge 0"));
    bpe_kit_drop(&kit, "vocab.json");
    bpe_kit_drop(&kit, "merges.txt");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trust), cmocka_unit_test(test_refused), cmocka_unit_test(test_linear),
        cmocka_unit_test(test_probe), cmocka_unit_test(test_files),
    };
    bpe_kit_open(&kit);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    bpe_kit_close(&kit);
    return rc;
}
