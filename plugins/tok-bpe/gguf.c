/* plugins/tok-bpe/gguf.c: the tokenizer of a GGUF file whose tokenizer.ggml.model is "gpt2": a byte-level BPE
 * model. The file does not say how text is cut into words but by a name, tokenizer.ggml.pre; the table here
 * knows what the tokenizers of these names do. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"
#include "gguf_keys.h"

#define FILE_NAME "the GGUF file's tokenizer"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define CASED(digits)                                                                              \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define TEKKEN                                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER            \
    "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

typedef struct pre_row {
    const char *names[6];
    const char *patterns[4]; /* one after the other */
    bool nfc;
    bool whole; /* a word that is a token is taken whole: ignore_merges */
    bool bos; /* unless add_bos_token says otherwise */
} pre_row;

static const pre_row rows[] = {
    {.names = {"gpt-2", "phi-2", "olmo", "mpt", "jais"}, .patterns = {GPT2}},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"},
     .patterns = {CASED("\\p{N}{1,3}")},
     .whole = true,
     .bos = true},
    {.names = {"smaug-bpe", "dbrx"}, .patterns = {CASED("\\p{N}{1,3}")}},
    {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {CASED("\\p{N}")}, .nfc = true},
    {.names = {"tekken"}, .patterns = {TEKKEN}, .whole = true, .bos = true},
    {.names = {"starcoder", "refact", "smollm", "codeshell"}, .patterns = {"\\p{N}", GPT2}},
    {.names = {"default"},
     .patterns = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

/* Files of before the key was invented are cut as "default" says. */
static const pre_row *find_row(const gguf_header *g, turbo_err *err)
{
    const gguf_value *pre = gguf_find(g, "ggml.pre");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int k = 0; k < 6 && rows[i].names[k]; k++)
            if (pre ? gguf_is(pre, rows[i].names[k]) : !strcmp(rows[i].names[k], "default"))
                return &rows[i];
    bool text = pre->type == TURBO_GGUF_STRING;
    bpe_fail(err, TURBO_EUNSUPPORTED,
             FILE_NAME ": how ggml.pre \"%.*s\" cuts text is not known; gpt-2, llama-bpe, qwen2, "
                       "tekken, starcoder, smollm, default and their kin are",
             text ? (int)(pre->n < 40 ? pre->n : 40) : 0, (const char *)pre->at);
    return NULL;
}

int32_t bpe_gguf_probe(const turbo_host *h, const char *folder)
{
    gguf_header g;
    turbo_err err;
    turbo_status st = gguf_header_open(h, folder, &g, &err);
    int32_t score = !st && gguf_is(gguf_find(&g, "ggml.model"), "gpt2") ? 40 : 0;
    free(g.bytes);
    return score;
}

static turbo_status read_tokens(bpe *b, const gguf_header *g, turbo_err *err)
{
    const gguf_value *tokens = gguf_list(g, "ggml.tokens", TURBO_GGUF_STRING),
                     *types = gguf_list(g, "ggml.token_type", TURBO_GGUF_U32);
    turbo_status st = TURBO_OK;
    if (!tokens || !tokens->n || tokens->n > BPE_MAX_ID || (types && types->n != tokens->n))
        return bpe_fail(err, TURBO_EDATA,
                        FILE_NAME ": a list ggml.tokens of 1 to %u texts is needed, and "
                                  "ggml.token_type as long",
                        BPE_MAX_ID);
    const uint8_t *at = tokens->at;
    for (uint32_t i = 0; i < tokens->n && !st; i++) {
        enum { NORMAL = 1, CONTROL = 3, USER = 4, UNUSED = 5 };
        uint32_t type = types ? gguf_bits(types, i) : NORMAL, flags = BPE_TOK_MODEL;
        const char *name;
        uint64_t len;
        if (!gguf_next(tokens, &at, &name, &len))
            return bpe_fail(err, TURBO_EDATA, FILE_NAME ": token %u is damaged", i);
        if (type == CONTROL)
            flags = BPE_TOK_ADDED | BPE_TOK_SPECIAL;
        else if (type == USER)
            flags = BPE_TOK_ADDED;
        else if (type == UNUSED)
            flags = 0;
        st = bpe_add_token(b, FILE_NAME, i, name, len, flags, err);
    }
    return st;
}

static turbo_status read_merges(bpe *b, const gguf_header *g, turbo_err *err)
{
    const gguf_value *list = gguf_list(g, "ggml.merges", TURBO_GGUF_STRING);
    if (!list || list->n > BPE_JSON_VALUES)
        return bpe_fail(err, TURBO_EDATA,
                        FILE_NAME ": it has no list ggml.merges, or too long a one");
    turbo_status st = bpe_merges_init(b, list->n, err);
    const uint8_t *at = list->at;
    for (uint32_t i = 0; i < list->n && !st; i++) {
        const char *p;
        uint64_t len;
        if (!gguf_next(list, &at, &p, &len))
            return bpe_fail(err, TURBO_EDATA, FILE_NAME ": merge %u is damaged", i);
        const char *blank = len ? memchr(p, ' ', len) : NULL;
        size_t n = blank ? (size_t)(blank - p) : 0;
        if (!blank || memchr(blank + 1, ' ', len - n - 1))
            return bpe_fail(err, TURBO_EDATA,
                            FILE_NAME ": merge %u: two tokens with a blank between them are needed",
                            i);
        st = bpe_add_merge(b, FILE_NAME, i, p, n, blank + 1, len - n - 1, err);
    }
    return st;
}

/* Tokens that keys give a role are special, whatever their type. */
static turbo_status read_roles(bpe *b, const gguf_header *g, const pre_row *row, turbo_err *err)
{
    static const char *const keys[] = {"ggml.bos_token_id",       "ggml.eos_token_id",
                                       "ggml.padding_token_id",   "ggml.eot_token_id",
                                       "ggml.eom_token_id",       "ggml.unknown_token_id",
                                       "ggml.seperator_token_id", "ggml.mask_token_id"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        uint32_t id;
        if (!gguf_find(g, keys[i]))
            continue;
        if (!gguf_uint(g, keys[i], (uint32_t)b->n - 1, &id))
            return bpe_fail(err, TURBO_EDATA, FILE_NAME ": %s is no token of it", keys[i]);
        b->tokens[id].flags |= BPE_TOK_SPECIAL | BPE_TOK_ADDED;
        b->bos = i == 0 ? (int32_t)id : b->bos;
        b->eos = i == 1 ? (int32_t)id : b->eos;
    }
    b->add_bos = b->bos >= 0 && gguf_bool(g, "ggml.add_bos_token", row->bos);
    return TURBO_OK;
}

static turbo_status set_rules(bpe *b, const gguf_header *g, const pre_row *row, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    if (row->nfc && !bpe_new_rule(&b->normal, BPE_N_NFC, err))
        return TURBO_ELIMIT;
    b->ignore_merges = row->whole;
    for (int i = 0; i < 4 && row->patterns[i] && !st; i++)
        st = bpe_add_split(b, row->patterns[i], BPE_ISOLATED, false, err);
    return st ? st : bpe_byte_level(b, gguf_bool(g, "ggml.add_space_prefix", false), false, err);
}

static turbo_status load(bpe *b, const gguf_header *g, turbo_err *err)
{
    const pre_row *row = find_row(g, err);
    if (!row)
        return TURBO_EUNSUPPORTED;
    turbo_status st = read_tokens(b, g, err);
    if (!st)
        st = bpe_close_vocab(b, FILE_NAME, err);
    if (!st)
        st = read_merges(b, g, err);
    if (!st)
        st = read_roles(b, g, row, err);
    if (!st)
        st = set_rules(b, g, row, err);
    return st ? st : bpe_decode_bytes(b, err);
}

turbo_status bpe_load_gguf(bpe *b, const turbo_host *h, const char *folder, turbo_err *err)
{
    gguf_header g;
    turbo_status st = gguf_header_open(h, folder, &g, err);
    if (!st)
        st = load(b, &g, err);
    free(g.bytes);
    return st;
}
