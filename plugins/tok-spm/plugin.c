/* plugins/tok-spm/plugin.c: the tokenizer "tok-spm": SentencePiece models (BPE and Unigram) with
 * the special tokens of the JSON files beside them. This file is the border; see spm.h for the
 * parts.
 *
 * A dummy prefix, where the model has one, is put in front of a document (TURBO_TOK_FIRST) that
 * begins with ordinary text, not behind special tokens; "legacy": true in tokenizer_config.json
 * puts it in front of each stretch of ordinary text of a document. Both as Transformers do. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

#define MAX_MODEL_BYTES (256u << 20)

static int32_t probe(const turbo_host *h, const char *folder)
{
    uint8_t *bytes = NULL;
    uint64_t len;
    turbo_err err;
    turbo_status st = h->file_read(folder, "tokenizer.model", MAX_MODEL_BYTES, &bytes, &len, &err);
    /* A model begins with field 1. Other formats bear this name too; a plugin that reads another file
     * of the folder comes first then. */
    bool model = !st && len && bytes[0] == 0x0A;
    h->file_free(bytes);
    return st == TURBO_ENOENT ? spm_gguf_probe(h, folder) : model ? 50 : 10;
}

static void close_spm(void *p)
{
    spm *s = p;
    if (!s)
        return;
    spm_map_free(&s->lookup);
    spm_map_free(&s->names);
    spm_trie_free(&s->words);
    spm_trie_free(&s->user);
    spm_trie_free(&s->specials);
    spm_words_free(s);
    free(s->pieces);
    free(s->forms);
    free(s->arena);
    free(s->file);
    free(s);
}

static turbo_status open_model(spm *s, const turbo_host *h, const char *folder, turbo_err *err)
{
    uint64_t len = 0;
    uint8_t *bytes = NULL;
    turbo_status st = h->file_read(folder, "tokenizer.model", MAX_MODEL_BYTES, &bytes, &len, err);
    if (st)
        return st;
    s->list = "tokenizer.model";
    /* an own copy: the host's memory is released by the host's function only */
    s->file = malloc(len + 1);
    if (s->file)
        memcpy(s->file, bytes, len);
    else
        st = spm_fail(err, TURBO_ENOMEM, "no memory for tokenizer.model");
    h->file_free(bytes);
    if (!st)
        st = spm_parse(s, s->file, len, err);
    return st ? st : spm_configure(s, h, folder, err);
}

static turbo_status open_spm(const turbo_host *h, const char *folder, void **out, turbo_err *err)
{
    turbo_err none;
    spm *s = calloc(1, sizeof *s);
    if (!s)
        return spm_fail(err, TURBO_ENOMEM, "no memory for a tokenizer");
    turbo_status st = spm_gguf(s, h, folder, &none);
    if (st == TURBO_ENOENT)
        st = open_model(s, h, folder, err);
    else if (st)
        *err = none;
    if (!st)
        st = spm_index(s, err);
    if (st) {
        close_spm(s);
        return st;
    }
    *out = s;
    return TURBO_OK;
}

static void info(const void *p, turbo_tokenizer_info *out)
{
    const spm *s = p;
    out->n_vocab = s->n;
    out->bos = s->bos;
    out->eos = s->eos;
    out->unk = s->unk;
    out->add_bos = s->add_bos;
}

static turbo_status encode(const void *p, const char *text, uint64_t len, uint32_t flags,
                           int32_t *ids, uint64_t cap, uint64_t *n, turbo_err *err)
{
    const spm *s = p;
    spm_ids out = {.ids = ids, .cap = cap};
    bool first = flags & TURBO_TOK_FIRST;
    turbo_status st = flags & TURBO_TOK_TRUSTED ? spm_trusted(s, text, len, first, &out, err)
                                                : spm_plain(s, text, len, first, &out, err);
    *n = out.n;
    if (!st && ids && out.n > cap)
        st = spm_fail(err, TURBO_ELIMIT, "the text has %llu tokens, room was for %llu",
                      (unsigned long long)out.n, (unsigned long long)cap);
    return st;
}

static turbo_status piece(const void *tok, int32_t id, uint32_t flags, const char **bytes,
                          uint32_t *len)
{
    const spm *s = tok;
    *bytes = "";
    *len = 0;
    if (id < 0 || id >= s->n)
        return TURBO_EINVAL;
    const spm_piece *p = &s->pieces[id];
    if (p->type == SPM_CONTROL)
        return TURBO_OK;
    if (p->type == SPM_BYTE) {
        *bytes = (const char *)&p->byte;
        *len = 1;
        return TURBO_OK;
    }
    if (p->type == SPM_UNKNOWN) {
        *bytes = s->surface;
        *len = s->surface_len;
        return TURBO_OK;
    }
    /* A dummy prefix goes from the first piece; squeezed blanks from every piece of an empty text.
     */
    bool strip = p->blank_first && ((s->dummy_prefix && (flags & TURBO_TOK_FIRST)) ||
                                    (s->squeeze && (flags & TURBO_TOK_EMPTY)));
    *bytes = p->out + strip;
    *len = p->out_len - strip;
    return TURBO_OK;
}

static uint32_t attr(const void *tok, int32_t id)
{
    const spm *s = tok;
    if (id < 0 || id >= s->n)
        return TURBO_TOKEN_UNUSED;
    const spm_piece *p = &s->pieces[id];
    uint32_t a = p->special ? (uint32_t)TURBO_TOKEN_SPECIAL : 0;
    switch (p->type) {
    case SPM_CONTROL: return a | TURBO_TOKEN_CONTROL;
    case SPM_UNKNOWN: return TURBO_TOKEN_UNKNOWN; /* shown as its surface, although "special" */
    case SPM_BYTE: return a | TURBO_TOKEN_BYTE;
    case SPM_UNUSED: return a | TURBO_TOKEN_UNUSED;
    default: return a;
    }
}

static turbo_status name(const void *tok, int32_t id, const char **out, uint32_t *len)
{
    const spm *s = tok;
    if (id < 0 || id >= s->n)
        return TURBO_EINVAL;
    *out = s->pieces[id].name;
    *len = s->pieces[id].name_len;
    return TURBO_OK;
}

static int32_t find(const void *tok, const char *text, uint32_t len)
{
    const spm *s = tok;
    return spm_map_find(&s->names, text, len);
}

static const turbo_tokenizer_vtbl vtbl = {
    .size = sizeof vtbl,
    .id = "tok-spm",
    .probe = probe,
    .open = open_spm,
    .close = close_spm,
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
    .id = "tok-spm",
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
