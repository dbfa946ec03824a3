/* plugins/tok-bpe/load.c: tokenizer.json. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

#define FILE_NAME "tokenizer.json"

turbo_status bpe_read_vocab(bpe *b, const bpe_json *j, const bpe_node *vocab, turbo_err *err)
{
    if (!vocab || vocab->type != BPE_OBJECT)
        return bpe_fail(err, TURBO_EDATA, "%s: the vocabulary must be an object of names and ids",
                        j->file);
    turbo_status st = TURBO_OK;
    for (const bpe_node *v = bpe_json_child(j, vocab); v && !st; v = bpe_json_next(j, v)) {
        uint32_t id;
        const char *name = j->text + v->key;
        if (!bpe_json_uint(j, v, UINT32_MAX, &id))
            return bpe_fail(err, TURBO_EDATA,
                            "%s: the token \"%.*s\" has no whole number as its id", j->file,
                            (int)(v->key_len < 40 ? v->key_len : 40), name);
        st = bpe_add_token(b, j->file, id, name, v->key_len, BPE_TOK_MODEL, err);
    }
    return st;
}

turbo_status bpe_added_flags(const bpe_json *j, const bpe_node *v, bool special, uint32_t *flags,
                             turbo_err *err)
{
    bool sp, single, l, r, norm;
    if (!bpe_json_bool(j, v, "special", special, &sp) ||
        !bpe_json_bool(j, v, "single_word", false, &single) ||
        !bpe_json_bool(j, v, "lstrip", false, &l) || !bpe_json_bool(j, v, "rstrip", false, &r) ||
        !bpe_json_bool(j, v, "normalized", !sp, &norm))
        return bpe_fail(err, TURBO_EDATA, "%s: a flag of an added token is neither true nor false",
                        j->file);
    *flags = (sp ? (uint32_t)BPE_TOK_SPECIAL : 0) | (single ? (uint32_t)BPE_TOK_SINGLE : 0) |
             (l ? (uint32_t)BPE_TOK_LSTRIP : 0) | (r ? (uint32_t)BPE_TOK_RSTRIP : 0) |
             (norm ? (uint32_t)BPE_TOK_NORMALIZED : 0);
    return TURBO_OK;
}

static turbo_status read_added(bpe *b, const bpe_json *j, turbo_err *err)
{
    const bpe_node *list = bpe_json_get(j, j->nodes, "added_tokens");
    turbo_status st = TURBO_OK;
    if (list && (list->type != BPE_ARRAY || list->n > BPE_MAX_ADDED))
        return bpe_fail(err, TURBO_EDATA, FILE_NAME ": added_tokens must be a list of at most %d",
                        BPE_MAX_ADDED);
    for (const bpe_node *v = bpe_json_child(j, list); v && !st; v = bpe_json_next(j, v)) {
        const bpe_node *name = bpe_json_get(j, v, "content");
        uint32_t id, flags;
        if (!name || name->type != BPE_STRING ||
            !bpe_json_uint(j, bpe_json_get(j, v, "id"), UINT32_MAX, &id))
            return bpe_fail(err, TURBO_EDATA, FILE_NAME ": an added token without content or id");
        if ((int32_t)id < b->n && id < BPE_MAX_ID && (b->tokens[id].flags & BPE_TOK_ADDED))
            return bpe_fail(err, TURBO_EDATA, FILE_NAME ": two added tokens have the id %u", id);
        st = bpe_added_flags(j, v, false, &flags, err);
        if (!st)
            st = bpe_add_added(b, FILE_NAME, id, bpe_json_text(j, name), name->len, flags, err);
    }
    return st;
}

/* "a b", or ["a", "b"] where tokens may hold blanks. */
static turbo_status read_merge(bpe *b, const bpe_json *j, const bpe_node *v, uint32_t rank,
                               turbo_err *err)
{
    if (v->type == BPE_ARRAY && v->n == 2) {
        const bpe_node *l = bpe_json_child(j, v), *r = bpe_json_next(j, l);
        if (l->type == BPE_STRING && r->type == BPE_STRING)
            return bpe_add_merge(b, FILE_NAME, rank, bpe_json_text(j, l), l->len,
                                 bpe_json_text(j, r), r->len, err);
    } else if (v->type == BPE_STRING) {
        const char *p = bpe_json_text(j, v), *blank = memchr(p, ' ', v->len);
        size_t n = blank ? (size_t)(blank - p) : 0;
        if (blank && !memchr(blank + 1, ' ', v->len - n - 1))
            return bpe_add_merge(b, FILE_NAME, rank, p, n, blank + 1, v->len - n - 1, err);
    }
    return bpe_fail(err, TURBO_EDATA, FILE_NAME ": merge %u is neither \"a b\" nor [\"a\", \"b\"]",
                    rank);
}

static turbo_status read_merges(bpe *b, const bpe_json *j, const bpe_node *list, turbo_err *err)
{
    if (!list || list->type != BPE_ARRAY)
        return bpe_fail(err, TURBO_EDATA, FILE_NAME ": model.merges must be a list");
    turbo_status st = bpe_merges_init(b, list->n, err);
    uint32_t rank = 0;
    for (const bpe_node *v = bpe_json_child(j, list); v && !st; v = bpe_json_next(j, v))
        st = read_merge(b, j, v, rank++, err);
    return st;
}

static turbo_status read_affix(const bpe_json *j, const bpe_node *model, const char *key,
                               char **out, size_t *len, turbo_err *err)
{
    const bpe_node *v = bpe_json_get(j, model, key);
    if (!v)
        return TURBO_OK;
    if (v->type != BPE_STRING || v->len > 64)
        return bpe_fail(err, TURBO_EDATA, FILE_NAME ": model.%s must be a short text", key);
    *out = malloc((size_t)v->len + 1);
    if (!*out)
        return bpe_no_memory(err);
    memcpy(*out, bpe_json_text(j, v), v->len);
    (*out)[v->len] = '\0';
    *len = v->len;
    return TURBO_OK;
}

static turbo_status check_model(const bpe_json *j, const bpe_node *model, turbo_err *err)
{
    const bpe_node *type = bpe_json_get(j, model, "type"),
                   *drop = bpe_json_get(j, model, "dropout");
    if (!model || model->type != BPE_OBJECT)
        return bpe_fail(err, TURBO_EDATA, FILE_NAME ": it has no model");
    if (type && !bpe_json_is(j, type, "BPE"))
        return bpe_fail(err, TURBO_EUNSUPPORTED,
                        FILE_NAME ": the model is of type \"%.*s\"; BPE is read",
                        type->type == BPE_STRING ? (int)(type->len < 40 ? type->len : 40) : 0,
                        bpe_json_text(j, type));
    for (uint32_t i = 0; drop && i < drop->len; i++)
        if (drop->type != BPE_NUMBER || !strchr("0.", bpe_json_text(j, drop)[i]))
            return bpe_fail(err, TURBO_EUNSUPPORTED,
                            FILE_NAME ": model.dropout is for training; set it to null");
    return TURBO_OK;
}

static turbo_status read_model(bpe *b, const bpe_json *j, const bpe_node *model, turbo_err *err)
{
    turbo_status st = check_model(j, model, err);
    if (!st && (!bpe_json_bool(j, model, "byte_fallback", false, &b->byte_fallback) ||
                !bpe_json_bool(j, model, "fuse_unk", false, &b->fuse_unk) ||
                !bpe_json_bool(j, model, "ignore_merges", false, &b->ignore_merges)))
        st =
            bpe_fail(err, TURBO_EDATA, FILE_NAME ": a flag of the model is neither true nor false");
    if (!st)
        st = read_affix(j, model, "continuing_subword_prefix", &b->prefix, &b->prefix_len, err);
    if (!st)
        st = read_affix(j, model, "end_of_word_suffix", &b->suffix, &b->suffix_len, err);
    return st ? st : bpe_read_vocab(b, j, bpe_json_get(j, model, "vocab"), err);
}

static turbo_status read_unk(bpe *b, const bpe_json *j, const bpe_node *model, turbo_err *err)
{
    const bpe_node *unk = bpe_json_get(j, model, "unk_token");
    if (!unk)
        return TURBO_OK;
    b->unk =
        unk->type == BPE_STRING ? bpe_map_find(b, &b->names, bpe_json_text(j, unk), unk->len) : -1;
    return b->unk >= 0 ? TURBO_OK
                       : bpe_fail(err, TURBO_EDATA,
                                  FILE_NAME ": model.unk_token is no token of the vocabulary");
}

static turbo_status load(bpe *b, const bpe_json *j, const bpe_side *side, turbo_err *err)
{
    const bpe_node *root = j->nodes, *model = bpe_json_get(j, root, "model");
    turbo_status st = read_model(b, j, model, err);
    if (!st)
        st = read_added(b, j, err);
    if (!st)
        st = bpe_side_added(b, side, false, err);
    if (!st)
        st = bpe_close_vocab(b, FILE_NAME, err);
    if (!st)
        st = read_unk(b, j, model, err);
    if (!st)
        st = read_merges(b, j, bpe_json_get(j, model, "merges"), err);
    if (!st)
        st = bpe_read_normalizer(b, j, bpe_json_get(j, root, "normalizer"), err);
    if (!st)
        st = bpe_read_pre(b, j, bpe_json_get(j, root, "pre_tokenizer"), err);
    if (!st)
        st = bpe_read_post(b, j, bpe_json_get(j, root, "post_processor"), err);
    if (!st)
        st = bpe_read_decoder(b, j, bpe_json_get(j, root, "decoder"), err);
    return st ? st : bpe_side_roles(b, side, err);
}

turbo_status bpe_load_json(bpe *b, const turbo_host *h, const char *folder, turbo_err *err)
{
    bpe_json j = {0};
    bpe_side side = {0};
    turbo_status st = bpe_json_open(h, folder, FILE_NAME, BPE_MAX_FILE, &j, err);
    if (!st && j.nodes[0].type != BPE_OBJECT)
        st = bpe_fail(err, TURBO_EDATA, FILE_NAME ": it is no JSON object");
    if (!st)
        st = bpe_side_open(h, folder, &side, err);
    if (!st)
        st = load(b, &j, &side, err);
    bpe_side_free(&side);
    bpe_json_free(&j);
    return st;
}
