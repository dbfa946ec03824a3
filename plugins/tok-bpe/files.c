/* plugins/tok-bpe/files.c: vocab.json with merges.txt, as tokenizers without a tokenizer.json keep
 * them. These files do not say how text is cut into words; tokenizer_class of tokenizer_config.json
 * does, and the table here knows what the classes do. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

typedef struct class_row {
    const char *name; /* without "Fast" at its end */
    const char *pattern; /* NULL: that of ByteLevel */
    const char *special; /* bos, eos and unknown token unless a file says otherwise */
    bool nfc;
    bool clip; /* white space to one blank, lower case, "</w>" */
} class_row;

static const class_row classes[] = {
    {.name = "GPT2Tokenizer", .special = "<|endoftext|>"},
    {.name = "CodeGenTokenizer", .special = "<|endoftext|>"},
    {.name = "Qwen2Tokenizer",
     .pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     .special = "<|endoftext|>",
     .nfc = true},
    {.name = "CLIPTokenizer",
     .pattern = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+",
     .special = "<|endoftext|>",
     .nfc = true,
     .clip = true},
};

static const class_row *find_class(const bpe_json *config)
{
    const bpe_node *v =
        config->nodes ? bpe_json_get(config, config->nodes, "tokenizer_class") : NULL;
    if (!v)
        return &classes[0];
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        size_t n = strlen(classes[i].name);
        const char *p = bpe_json_text(config, v);
        if (v->type == BPE_STRING && v->len >= n && !memcmp(p, classes[i].name, n) &&
            (v->len == n || (v->len == n + 4 && !memcmp(p + n, "Fast", 4))))
            return &classes[i];
    }
    return NULL;
}

static turbo_status read_merges(bpe *b, const turbo_host *h, const char *folder, turbo_err *err)
{
    uint8_t *bytes = NULL;
    uint64_t len = 0;
    turbo_status st = h->file_read(folder, "merges.txt", BPE_MAX_FILE, &bytes, &len, err);
    if (st)
        return st;
    const char *p = (const char *)bytes, *end = p + len;
    size_t lines = 1;
    uint32_t rank = 0;
    for (const char *q = p; (q = memchr(q, '\n', (size_t)(end - q))); q++)
        lines++;
    st = lines < BPE_JSON_VALUES
             ? bpe_merges_init(b, lines, err)
             : bpe_fail(err, TURBO_ELIMIT, "merges.txt: more than %u lines", BPE_JSON_VALUES);
    while (p < end && !st) {
        const char *e = memchr(p, '\n', (size_t)(end - p));
        size_t n = (size_t)((e ? e : end) - p);
        if (n && p[n - 1] == '\r')
            n--;
        const char *blank = memchr(p, ' ', n);
        size_t l = blank ? (size_t)(blank - p) : 0;
        if (!n || (n >= 8 && !memcmp(p, "#version", 8)))
            st = TURBO_OK;
        else if (!blank || memchr(blank + 1, ' ', n - l - 1))
            st = bpe_fail(err, TURBO_EDATA,
                          "merges.txt: merge %u: two tokens with a blank between them are needed",
                          rank);
        else
            st = bpe_add_merge(b, "merges.txt", rank++, p, l, blank + 1, n - l - 1, err);
        p = e ? e + 1 : end;
    }
    h->file_free(bytes);
    return st;
}

static turbo_status set_rules(bpe *b, const class_row *c, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    if (c->nfc && !bpe_new_rule(&b->normal, BPE_N_NFC, err))
        return TURBO_ELIMIT;
    if (c->clip) {
        bpe_rule *r = bpe_new_rule(&b->normal, BPE_N_REPLACE, err);
        if (!r)
            return TURBO_ELIMIT;
        r->with = strdup(" ");
        r->with_len = 1;
        if (!r->with)
            return bpe_no_memory(err);
        st = bpe_regex_new("\\s+", 3, "files.c", &r->regex, err);
        if (!st && !bpe_new_rule(&b->normal, BPE_N_LOWER, err))
            return TURBO_ELIMIT;
    }
    if (!st && c->pattern)
        st = bpe_add_split(b, c->pattern, c->clip ? BPE_REMOVED : BPE_ISOLATED, c->clip, err);
    return st ? st : bpe_byte_level(b, false, !c->pattern, err);
}

static turbo_status load(bpe *b, const turbo_host *h, const char *folder, const bpe_json *vocab,
                         const bpe_side *side, turbo_err *err)
{
    const class_row *c = find_class(&side->config);
    if (!c)
        return bpe_fail(err, TURBO_EUNSUPPORTED,
                        "tokenizer_config.json: how this tokenizer_class cuts text is not known; a "
                        "tokenizer.json would say it");
    if (c->clip) {
        b->suffix = strdup("</w>");
        b->suffix_len = 4;
        if (!b->suffix)
            return bpe_no_memory(err);
    }
    turbo_status st = bpe_read_vocab(b, vocab, vocab->nodes, err);
    if (!st)
        st = bpe_side_added(b, side, true, err);
    if (!st)
        st = bpe_close_vocab(b, "vocab.json", err);
    int32_t id = st ? -1 : bpe_map_find(b, &b->names, c->special, strlen(c->special));
    if (id >= 0) {
        b->tokens[id].flags |= BPE_TOK_SPECIAL | BPE_TOK_ADDED;
        b->bos = b->eos = id;
    }
    if (!st)
        st = read_merges(b, h, folder, err);
    if (!st)
        st = set_rules(b, c, err);
    if (!st)
        st = bpe_decode_bytes(b, err);
    return st ? st : bpe_side_roles(b, side, err);
}

turbo_status bpe_load_files(bpe *b, const turbo_host *h, const char *folder, turbo_err *err)
{
    bpe_json vocab = {0};
    bpe_side side = {0};
    turbo_status st = bpe_json_open(h, folder, "vocab.json", BPE_MAX_FILE, &vocab, err);
    if (!st)
        st = bpe_side_open(h, folder, &side, err);
    if (!st)
        st = load(b, h, folder, &vocab, &side, err);
    bpe_side_free(&side);
    bpe_json_free(&vocab);
    return st;
}
