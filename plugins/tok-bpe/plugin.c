/* plugins/tok-bpe/plugin.c: the tokenizer "tok-bpe": tokenizer.json of the Hugging Face library with a
 * BPE model, or vocab.json with merges.txt. This file is the border; see bpe.h for the parts.
 *
 * A folder may hold files of several kinds. A SentencePiece tokenizer.model comes first (tok-spm says
 * 50): tokenizer.json is made from it. tokenizer.json says 40, vocab.json with merges.txt 30. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"
#include "turbo/ext/gguf.h"

static bool there(const turbo_host *h, const char *folder, const char *name)
{
    uint8_t *bytes = NULL;
    uint64_t len;
    turbo_err err;
    /* A limit of 0 bytes: what is there is too large, what is not there is ENOENT. */
    turbo_status st = h->file_read(folder, name, 0, &bytes, &len, &err);
    h->file_free(bytes);
    return st != TURBO_ENOENT;
}

static int32_t probe(const turbo_host *h, const char *folder)
{
    if (there(h, folder, "tokenizer.json"))
        return 40;
    if (there(h, folder, TURBO_GGUF_HEADER))
        return bpe_gguf_probe(h, folder);
    return there(h, folder, "vocab.json") && there(h, folder, "merges.txt") ? 30 : 0;
}

static void close_bpe(void *p)
{
    bpe *b = p;
    if (!b)
        return;
    for (int t = 0; t < 2; t++)
        for (int n = 0; n < 2; n++)
            free(b->added[t][n].nodes);
    bpe_pool_free(b->pool);
    bpe_rules_free(&b->normal);
    bpe_rules_free(&b->pre);
    bpe_map_free(&b->names);
    bpe_map_free(&b->texts);
    free(b->merges);
    free(b->joined);
    free(b->chars);
    free(b->prefix);
    free(b->suffix);
    free(b->tokens);
    free(b->arena);
    free(b);
}

static turbo_status open_bpe(const turbo_host *h, const char *folder, void **out, turbo_err *err)
{
    bpe *b = calloc(1, sizeof *b);
    if (!b)
        return bpe_no_memory(err);
    b->bos = b->eos = b->unk = -1;
    turbo_status st = there(h, folder, "tokenizer.json")    ? bpe_load_json(b, h, folder, err)
                      : there(h, folder, TURBO_GGUF_HEADER) ? bpe_load_gguf(b, h, folder, err)
                                                            : bpe_load_files(b, h, folder, err);
    if (!st)
        st = bpe_index(b, err);
    if (st) {
        close_bpe(b);
        return st;
    }
    *out = b;
    return TURBO_OK;
}

static void info(const void *p, turbo_tokenizer_info *out)
{
    const bpe *b = p;
    out->n_vocab = b->n;
    out->bos = b->bos;
    out->eos = b->eos;
    out->unk = b->unk;
    out->add_bos = b->add_bos;
}

static turbo_status encode(const void *p, const char *text, uint64_t len, uint32_t flags,
                           int32_t *ids, uint64_t cap, uint64_t *n, turbo_err *err)
{
    const bpe *b = p;
    bpe_ids out = {.ids = ids, .cap = cap};
    *n = 0;
    if (len > BPE_MAX_TEXT)
        return bpe_fail(err, TURBO_ELIMIT, "a text of %llu bytes is too long to tokenise",
                        (unsigned long long)len);
    if (!bpe_utf8_valid(text, len)) /* the regular expressions rely on it */
        return bpe_fail(err, TURBO_EINVAL, "the text is not valid UTF-8");
    bpe_scratch *s = bpe_pool_take(b->pool);
    if (!s)
        return bpe_no_memory(err);
    turbo_status st = bpe_encode(b, s, text, len, flags, &out, err);
    bpe_pool_give(b->pool, s);
    *n = out.n;
    if (!st && ids && out.n > cap)
        st = bpe_fail(err, TURBO_ELIMIT, "the text has %llu tokens, room was for %llu",
                      (unsigned long long)out.n, (unsigned long long)cap);
    return st;
}

static turbo_status piece(const void *tok, int32_t id, uint32_t flags, const char **bytes,
                          uint32_t *len)
{
    const bpe *b = tok;
    *bytes = "";
    *len = 0;
    if (id < 0 || id >= b->n)
        return TURBO_EINVAL;
    const bpe_token *t = &b->tokens[id];
    bool first = flags & TURBO_TOK_FIRST;
    *bytes = b->arena + (first ? t->first : t->out);
    *len = first ? t->first_len : t->out_len;
    return TURBO_OK;
}

static uint32_t attr(const void *tok, int32_t id)
{
    const bpe *b = tok;
    if (id < 0 || id >= b->n)
        return TURBO_TOKEN_UNUSED;
    uint32_t f = b->tokens[id].flags;
    return (f & BPE_TOK_SPECIAL ? (uint32_t)TURBO_TOKEN_SPECIAL : 0) |
           (f & BPE_TOK_BYTE ? (uint32_t)TURBO_TOKEN_BYTE : 0) |
           (id == b->unk ? (uint32_t)TURBO_TOKEN_UNKNOWN : 0);
}

static turbo_status name(const void *tok, int32_t id, const char **out, uint32_t *len)
{
    const bpe *b = tok;
    if (id < 0 || id >= b->n)
        return TURBO_EINVAL;
    *out = b->arena + b->tokens[id].name;
    *len = b->tokens[id].name_len;
    return TURBO_OK;
}

static int32_t find(const void *tok, const char *text, uint32_t len)
{
    const bpe *b = tok;
    return bpe_map_find(b, &b->names, text, len);
}

static const turbo_tokenizer_vtbl vtbl = {
    .size = sizeof vtbl,
    .id = "tok-bpe",
    .probe = probe,
    .open = open_bpe,
    .close = close_bpe,
    .info = info,
    .encode = encode,
    .piece = piece,
    .attr = attr,
    .name = name,
    .find = find,
};

static const turbo_tokenizer_vtbl *const tokenizers[] = {&vtbl, NULL};

static const turbo_plugin plugin = {
    .magic = TURBO_PLUGIN_MAGIC,
    .abi_major = TURBO_ABI_MAJOR,
    .abi_minor = TURBO_ABI_MINOR,
    .size = sizeof plugin,
    .id = "tok-bpe",
    .version = "1.0",
    .license = "Apache-2.0",
    .build = "gcc " __VERSION__,
    .tokenizers = tokenizers,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin;
}
