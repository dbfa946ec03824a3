/* plugins/tok-bpe/side.c: the small files beside the vocabulary. tokenizer_config.json lists added
 * tokens by id (added_tokens_decoder) and names bos, eos and their kin, as special_tokens_map.json
 * does; added_tokens.json maps names to ids. What they name is special. */
#include <string.h>

#include "bpe.h"

#define MAX_SIDE ((uint64_t)16 << 20)

static turbo_status optional(const turbo_host *h, const char *folder, const char *name,
                             bpe_json *out, turbo_err *err)
{
    turbo_err why = {{0}};
    turbo_status st = bpe_json_open(h, folder, name, MAX_SIDE, out, &why);
    if (st == TURBO_ENOENT)
        return TURBO_OK;
    if (!st && out->nodes[0].type != BPE_OBJECT)
        return bpe_fail(err, TURBO_EDATA, "%s: it is no JSON object", name);
    if (st)
        *err = why;
    return st;
}

turbo_status bpe_side_open(const turbo_host *h, const char *folder, bpe_side *s, turbo_err *err)
{
    turbo_status st = optional(h, folder, "tokenizer_config.json", &s->config, err);
    if (!st)
        st = optional(h, folder, "special_tokens_map.json", &s->map, err);
    return st ? st : optional(h, folder, "added_tokens.json", &s->added, err);
}

void bpe_side_free(bpe_side *s)
{
    bpe_json_free(&s->config);
    bpe_json_free(&s->map);
    bpe_json_free(&s->added);
}

/* "added_tokens_decoder": {"5": {"content": "<x>", "special": true, ...}} */
static turbo_status read_decoder(bpe *b, const bpe_json *j, const bpe_node *list, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    if (list->type != BPE_OBJECT || list->n > BPE_MAX_ADDED)
        return bpe_fail(err, TURBO_EDATA,
                        "%s: added_tokens_decoder must be an object of at most %d", j->file,
                        BPE_MAX_ADDED);
    for (const bpe_node *v = bpe_json_child(j, list); v && !st; v = bpe_json_next(j, v)) {
        const bpe_node *name = bpe_json_get(j, v, "content"),
                       key = {.type = BPE_NUMBER, .at = v->key, .len = v->key_len};
        uint32_t id, flags;
        if (!name || name->type != BPE_STRING || !bpe_json_uint(j, &key, UINT32_MAX, &id))
            return bpe_fail(err, TURBO_EDATA,
                            "%s: added_tokens_decoder has an entry without content, or its key "
                            "\"%.*s\" is no id",
                            j->file, (int)(v->key_len < 20 ? v->key_len : 20), j->text + v->key);
        st = bpe_added_flags(j, v, false, &flags, err);
        if (!st)
            st = bpe_add_added(b, j->file, id, bpe_json_text(j, name), name->len, flags, err);
    }
    return st;
}

/* {"<x>": 5}: special, by the rule of the reference's slow tokenizers. */
static turbo_status read_names(bpe *b, const bpe_json *j, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    for (const bpe_node *v = bpe_json_child(j, j->nodes); v && !st; v = bpe_json_next(j, v)) {
        uint32_t id;
        if (!bpe_json_uint(j, v, UINT32_MAX, &id))
            return bpe_fail(err, TURBO_EDATA, "%s: \"%.*s\" has no whole number as its id", j->file,
                            (int)(v->key_len < 40 ? v->key_len : 40), j->text + v->key);
        st = bpe_add_added(b, j->file, id, j->text + v->key, v->key_len, BPE_TOK_SPECIAL, err);
    }
    return st;
}

turbo_status bpe_side_added(bpe *b, const bpe_side *s, bool slow, turbo_err *err)
{
    const bpe_node *list =
        s->config.nodes ? bpe_json_get(&s->config, s->config.nodes, "added_tokens_decoder") : NULL;
    if (list)
        return read_decoder(b, &s->config, list, err);
    return slow && s->added.nodes ? read_names(b, &s->added, err) : TURBO_OK;
}

/* A token by its name or by an object with "content". *id is -1 when the key is absent. */
static turbo_status named(bpe *b, const bpe_json *j, const bpe_node *v, bool must, int32_t *id,
                          turbo_err *err)
{
    const bpe_node *content = bpe_json_get(j, v, "content");
    *id = -1;
    if (!v)
        return TURBO_OK;
    v = content ? content : v;
    if (v->type == BPE_STRING)
        *id = bpe_map_find(b, &b->names, bpe_json_text(j, v), v->len);
    if (*id >= 0) {
        b->tokens[*id].flags |= BPE_TOK_SPECIAL | BPE_TOK_ADDED;
        return TURBO_OK;
    }
    return must ? bpe_fail(err, TURBO_EDATA,
                           "%s: bos_token or eos_token is no token of the vocabulary", j->file)
                : TURBO_OK;
}

static turbo_status read_roles(bpe *b, const bpe_json *j, turbo_err *err)
{
    static const char *const keys[] = {"bos_token", "eos_token",  "unk_token", "pad_token",
                                       "cls_token", "mask_token", "sep_token"};
    turbo_status st = TURBO_OK;
    int32_t id;
    if (!j->nodes)
        return TURBO_OK;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0] && !st; i++) {
        st = named(b, j, bpe_json_get(j, j->nodes, keys[i]), i < 2, &id, err);
        if (st || id < 0)
            continue;
        if (i == 0)
            b->bos = id;
        if (i == 1)
            b->eos = id;
    }
    const bpe_node *more = bpe_json_get(j, j->nodes, "additional_special_tokens");
    for (const bpe_node *v = bpe_json_child(j, more); v && !st; v = bpe_json_next(j, v))
        st = named(b, j, v, false, &id, err);
    return st;
}

turbo_status bpe_side_roles(bpe *b, const bpe_side *s, turbo_err *err)
{
    int32_t front = b->add_bos ? b->bos : -1;
    turbo_status st = read_roles(b, &s->map, err);
    if (!st)
        st = read_roles(b, &s->config, err);
    if (!st && s->config.nodes &&
        !bpe_json_bool(&s->config, s->config.nodes, "add_bos_token", b->add_bos, &b->add_bos))
        st = bpe_fail(err, TURBO_EDATA, "%s: add_bos_token is neither true nor false",
                      s->config.file);
    if (front >= 0) /* what the post-processor writes, whatever a file calls bos */
        b->bos = front;
    b->add_bos = b->add_bos && b->bos >= 0;
    return st;
}
