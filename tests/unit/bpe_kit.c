/* tests/unit/bpe_kit.c: see bpe_kit.h. */
#include "bpe_kit.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "util/buf.h"
#include "util/file.h"

static const char *const known[] = {
    "tokenizer.json",          "vocab.json",        "merges.txt",     "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model"};

void bpe_kit_open(bpe_kit *k)
{
    snprintf(k->folder, sizeof k->folder, "/tmp/turbo-bpe-XXXXXX");
    assert_non_null(mkdtemp(k->folder));
    k->v = turbo_plugin_entry(TURBO_HOST_ABI)->tokenizers[0];
}

void bpe_kit_close(bpe_kit *k)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        bpe_kit_drop(k, known[i]);
    rmdir(k->folder);
}

void bpe_kit_put(const bpe_kit *k, const char *name, const void *bytes, size_t n)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", k->folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

void bpe_kit_drop(const bpe_kit *k, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", k->folder, name);
    unlink(path);
}

uint8_t *bpe_kit_slurp(const char *shared, const char *name, uint64_t *len)
{
    char folder[4096];
    uint8_t *bytes = NULL;
    turbo_err err = {{0}};
    snprintf(folder, sizeof folder, "%s/%s", shared, name);
    char *slash = strrchr(folder, '/');
    *slash = '\0';
    if (turbod_file_read(folder, slash + 1, 1 << 28, &bytes, len, &err))
        fail_msg("%s", err.text);
    return bytes;
}

static uint64_t fnv(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

void bpe_kit_hash(const turbo_tokenizer_vtbl *v, const void *tok, const char *p, size_t n,
                  uint64_t *a, uint64_t *b)
{
    static int32_t ids[65536];
    uint64_t k = 0;
    turbo_err err;
    const int32_t mark = -1;
    const char *text;
    size_t len;
    assert_int_equal(v->encode(tok, p, n, TURBO_TOK_FIRST, ids, 65536, &k, &err), TURBO_OK);
    *a = fnv(fnv(*a, ids, k * sizeof *ids), &mark, sizeof mark);
    turbod_detok *d = turbod_detok_new(v, tok, false);
    for (uint64_t i = 0; i < k; i++) {
        turbod_detok_push(d, ids[i], &text, &len);
        *b = fnv(*b, text, len);
    }
    turbod_detok_flush(d, &text, &len);
    *b = fnv(fnv(*b, text, len), "\xff", 1);
    turbod_detok_free(d);
}

/* ---- tiktoken ------------------------------------------------------------------------------ */

typedef struct rank {
    uint8_t text[256];
    uint32_t len, id;
} rank;

static int by_text(const void *a, const void *b)
{
    const rank *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static int by_id(const void *a, const void *b)
{
    const rank *const *x = a, *const *y = b;
    return ((*x)->id > (*y)->id) - ((*x)->id < (*y)->id);
}

static const rank *find(const rank *all, size_t n, const uint8_t *text, uint32_t len)
{
    rank key = {.len = len};
    memcpy(key.text, text, len);
    return bsearch(&key, all, n, sizeof key, by_text);
}

static uint32_t decode64(const char *p, const char *end, uint8_t *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0, have = 0, n = 0;
    for (; p < end && *p != '='; p++) {
        const char *d = strchr(digits, *p);
        assert_non_null(d);
        bits = bits << 6 | (uint32_t)(d - digits);
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[n++] = (uint8_t)(bits >> have);
        }
    }
    return n;
}

static void spell(turbod_buf *out, const uint8_t *p, uint32_t n)
{
    char text[1024];
    size_t k = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = p[i];
        if (c <= 0x20)
            c += 0x100;
        else if (c >= 0x7F && c <= 0xA0)
            c += 0x121 - 0x7F;
        else if (c == 0xAD)
            c = 0x143;
        if (c < 0x80) {
            text[k++] = (char)c;
        } else {
            text[k++] = (char)(0xC0 | c >> 6);
            text[k++] = (char)(0x80 | (c & 63));
        }
    }
    turbod_buf_str(out, "\"");
    turbod_buf_json(out, text, k);
    turbod_buf_str(out, "\"");
}

/* Every split of a token into two tokens is a merge; those of one token in order of the halves' ids. */
static void write_merges(turbod_buf *out, const rank *all, size_t n, const rank *t, bool *any)
{
    const rank *parts[256][2];
    size_t k = 0;
    for (uint32_t i = 1; i < t->len; i++) {
        const rank *l = find(all, n, t->text, i), *r = find(all, n, t->text + i, t->len - i);
        if (!l || !r)
            continue;
        size_t at = k++;
        for (; at && (parts[at - 1][0]->id > l->id ||
                      (parts[at - 1][0]->id == l->id && parts[at - 1][1]->id > r->id));
             at--) {
            parts[at][0] = parts[at - 1][0];
            parts[at][1] = parts[at - 1][1];
        }
        parts[at][0] = l;
        parts[at][1] = r;
    }
    for (size_t i = 0; i < k; i++) {
        turbod_buf_str(out, *any ? ",[" : "[");
        spell(out, parts[i][0]->text, parts[i][0]->len);
        turbod_buf_str(out, ",");
        spell(out, parts[i][1]->text, parts[i][1]->len);
        turbod_buf_str(out, "]");
        *any = true;
    }
}

void bpe_kit_tiktoken(const bpe_kit *k, const uint8_t *file, uint64_t len)
{
    size_t n = 0, cap = 1 << 18;
    rank *all = calloc(cap, sizeof *all);
    const rank **order = calloc(cap, sizeof *order);
    assert_true(all && order);
    for (const char *p = (const char *)file, *end = p + len; p < end && n < cap;) {
        const char *e = memchr(p, '\n', (size_t)(end - p)),
                   *blank = memchr(p, ' ', (size_t)(end - p));
        assert_non_null(blank);
        all[n].len = decode64(p, blank, all[n].text);
        all[n++].id = (uint32_t)strtoul(blank + 1, NULL, 10);
        p = e ? e + 1 : end;
    }
    qsort(all, n, sizeof *all, by_text);
    for (size_t i = 0; i < n; i++)
        order[i] = &all[i];
    qsort(order, n, sizeof *order, by_id);
    turbod_buf b;
    turbod_buf_init(&b, 1 << 28);
    turbod_buf_str(
        &b, "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
            "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
            "\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|"
            "\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":"
            "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{"
            "\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,"
            "\"vocab\":{");
    for (size_t i = 0; i < n; i++) {
        turbod_buf_str(&b, i ? "," : "");
        spell(&b, order[i]->text, order[i]->len);
        turbod_buf_printf(&b, ":%u", order[i]->id);
    }
    turbod_buf_str(&b, "},\"merges\":[");
    bool any = false;
    for (size_t i = 0; i < n; i++)
        write_merges(&b, all, n, order[i], &any);
    turbod_buf_str(&b, "]}}");
    assert_false(b.failed);
    bpe_kit_put(k, "tokenizer.json", b.ptr, b.len);
    turbod_buf_free(&b);
    free(order);
    free(all);
}
