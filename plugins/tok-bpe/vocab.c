/* plugins/tok-bpe/vocab.c: tokens and merges as they are read, with every check that a file needs
 * to be trusted: ids dense and unique, names unique and short, merges between known tokens. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

turbo_status bpe_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
{
    va_list ap;
    if (!err)
        return s;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    size_t n = strlen(err->text), i = n;
    while (i && ((unsigned char)err->text[i - 1] & 0xC0) == 0x80)
        i--;
    if (i && n - i + 1 < bpe_char_len((unsigned char)err->text[i - 1]))
        err->text[i - 1] = '\0'; /* a character that was cut */
    for (char *p = err->text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            *p = '?';
    if (!bpe_utf8_valid(err->text, strlen(err->text))) /* a name was cut inside a character */
        for (char *p = err->text; *p; p++)
            if ((unsigned char)*p >= 0x80)
                *p = '?';
    return s;
}

turbo_status bpe_no_memory(turbo_err *err)
{
    return bpe_fail(err, TURBO_ENOMEM, "no memory for the tokenizer");
}

/* ---- maps ---------------------------------------------------------------------------------- */

uint64_t bpe_hash(const char *p, size_t n)
{
    uint64_t h = n * 0x9E3779B97F4A7C15u, w;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&w, p, 8);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    w = 0;
    if (n)
        memcpy(&w, p, n);
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 29;
}

turbo_status bpe_map_init(bpe_map *m, size_t keys, bool by_text, turbo_err *err)
{
    size_t cap = 16;
    while (cap < keys * 2)
        cap *= 2;
    *m = (bpe_map){.mask = cap - 1, .by_text = by_text};
    m->ids = calloc(cap, sizeof *m->ids);
    m->hashes = calloc(cap, sizeof *m->hashes);
    if (!m->ids || !m->hashes)
        return bpe_no_memory(err);
    memset(m->ids, 0xFF, cap * sizeof *m->ids);
    return TURBO_OK;
}

void bpe_map_free(bpe_map *m)
{
    free(m->ids);
    free(m->hashes);
    *m = (bpe_map){0};
}

static size_t slot(const bpe *b, const bpe_map *m, const char *p, size_t n)
{
    uint64_t h = bpe_hash(p, n);
    size_t i = (size_t)(h >> 32) & m->mask;
    for (; m->ids[i] >= 0; i = (i + 1) & m->mask) {
        const bpe_token *t = &b->tokens[m->ids[i]];
        uint32_t at = m->by_text ? t->text : t->name, len = m->by_text ? t->text_len : t->name_len;
        if (m->hashes[i] == (uint32_t)h && len == n && !memcmp(b->arena + at, p, n))
            break;
    }
    return i;
}

int32_t bpe_map_find(const bpe *b, const bpe_map *m, const char *p, size_t n)
{
    return n && n <= BPE_MAX_PIECE && m->ids ? m->ids[slot(b, m, p, n)] : -1;
}

bool bpe_map_add(bpe *b, bpe_map *m, int32_t id)
{
    const bpe_token *t = &b->tokens[id];
    const char *p = b->arena + (m->by_text ? t->text : t->name);
    size_t n = m->by_text ? t->text_len : t->name_len, i = slot(b, m, p, n);
    if (m->ids[i] >= 0)
        return false;
    m->ids[i] = id;
    m->hashes[i] = (uint32_t)bpe_hash(p, n);
    return true;
}

/* ---- tokens -------------------------------------------------------------------------------- */

uint32_t bpe_keep(bpe *b, const char *p, size_t n)
{
    if (n > UINT32_MAX - 1 - b->arena_len)
        return UINT32_MAX;
    if (n > b->arena_cap - b->arena_len) {
        size_t cap = b->arena_cap ? b->arena_cap : 65536;
        while (cap - b->arena_len < n)
            cap *= 2;
        char *q = realloc(b->arena, cap);
        if (!q)
            return UINT32_MAX;
        b->arena = q;
        b->arena_cap = cap;
    }
    if (n)
        memcpy(b->arena + b->arena_len, p, n);
    b->arena_len += n;
    return (uint32_t)(b->arena_len - n);
}

static turbo_status reserve(bpe *b, uint32_t id, turbo_err *err)
{
    if ((int32_t)id >= b->cap) {
        int32_t cap = b->cap ? b->cap : 1024;
        while (cap <= (int32_t)id)
            cap *= 2;
        bpe_token *t = realloc(b->tokens, (size_t)cap * sizeof *t);
        if (!t)
            return bpe_no_memory(err);
        b->tokens = t;
        b->cap = cap;
    }
    for (; b->n <= (int32_t)id; b->n++)
        b->tokens[b->n] = (bpe_token){0};
    return TURBO_OK;
}

turbo_status bpe_add_token(bpe *b, const char *file, uint32_t id, const char *name, size_t len,
                           uint32_t flags, turbo_err *err)
{
    if (!len || len > BPE_MAX_PIECE)
        return bpe_fail(err, TURBO_EDATA,
                        "%s: token %u has a name of %zu bytes; 1 to %d are possible", file, id, len,
                        BPE_MAX_PIECE);
    if (id >= BPE_MAX_ID)
        return bpe_fail(err, TURBO_EDATA, "%s: token \"%.*s\" has the id %u; ids end at %u", file,
                        (int)(len < 40 ? len : 40), name, id, BPE_MAX_ID - 1);
    turbo_status st = reserve(b, id, err);
    if (st)
        return st;
    bpe_token *t = &b->tokens[id];
    if (t->name_len)
        return bpe_fail(err, TURBO_EDATA, "%s: the tokens \"%.*s\" and \"%.*s\" have one id, %u",
                        file, (int)(t->name_len < 40 ? t->name_len : 40), b->arena + t->name,
                        (int)(len < 40 ? len : 40), name, id);
    uint32_t at = bpe_keep(b, name, len);
    if (at == UINT32_MAX)
        return bpe_no_memory(err);
    *t = (bpe_token){.name = at, .name_len = (uint32_t)len, .flags = flags};
    return TURBO_OK;
}

turbo_status bpe_add_added(bpe *b, const char *file, uint32_t id, const char *name, size_t len,
                           uint32_t flags, turbo_err *err)
{
    const bpe_token *t = (int32_t)id < b->n && id < BPE_MAX_ID ? &b->tokens[id] : NULL;
    flags |= BPE_TOK_ADDED;
    if (!t || !t->name_len)
        return bpe_add_token(b, file, id, name, len, flags, err);
    if (t->name_len != len || memcmp(b->arena + t->name, name, len) != 0)
        return bpe_fail(err, TURBO_EDATA, "%s: the added token \"%.*s\" has the id %u of \"%.*s\"",
                        file, (int)(len < 40 ? len : 40), name, id,
                        (int)(t->name_len < 40 ? t->name_len : 40), b->arena + t->name);
    b->tokens[id].flags = (t->flags & BPE_TOK_MODEL) | flags;
    return TURBO_OK;
}

turbo_status bpe_close_vocab(bpe *b, const char *file, turbo_err *err)
{
    if (!b->n)
        return bpe_fail(err, TURBO_EDATA, "%s: there is no token in it", file);
    turbo_status st = bpe_map_init(&b->names, (size_t)b->n, false, err);
    for (int32_t i = 0; i < b->n && !st; i++) {
        if (!b->tokens[i].name_len)
            st =
                bpe_fail(err, TURBO_EDATA,
                         "%s: no token has the id %d; the ids must have no hole up to the last, %d",
                         file, i, b->n - 1);
        else if (!bpe_map_add(b, &b->names, i))
            st = bpe_fail(err, TURBO_EDATA,
                          "%s: the token \"%.*s\" stands there twice, as %d and %d", file,
                          (int)(b->tokens[i].name_len < 40 ? b->tokens[i].name_len : 40),
                          bpe_name(b, i),
                          bpe_map_find(b, &b->names, bpe_name(b, i), b->tokens[i].name_len), i);
    }
    return st;
}

/* ---- merges -------------------------------------------------------------------------------- */

turbo_status bpe_merges_init(bpe *b, size_t n, turbo_err *err)
{
    size_t cap = 16;
    while (cap < n * 2)
        cap *= 2;
    b->merges = calloc(cap, sizeof *b->merges);
    if (!b->merges)
        return bpe_no_memory(err);
    memset(b->merges, 0xFF, cap * sizeof *b->merges);
    b->merge_mask = cap - 1;
    return TURBO_OK;
}

static size_t merge_slot(const bpe *b, uint64_t pair)
{
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    size_t i = (size_t)(h >> 32) & b->merge_mask;
    while (b->merges[i].pair != pair && b->merges[i].pair != UINT64_MAX)
        i = (i + 1) & b->merge_mask;
    return i;
}

const bpe_merge *bpe_merge_find(const bpe *b, int32_t left, int32_t right)
{
    const bpe_merge *m =
        &b->merges[merge_slot(b, (uint64_t)(uint32_t)left << 32 | (uint32_t)right)];
    return m->rank == UINT32_MAX ? NULL : m; /* empty, or a merge that was struck out */
}

static turbo_status no_token(const char *file, uint32_t rank, const char *p, size_t n,
                             turbo_err *err)
{
    return bpe_fail(err, TURBO_EDATA, "%s: merge %u: \"%.*s\" is no token of the vocabulary", file,
                    rank, (int)(n < 60 ? n : 60), p);
}

turbo_status bpe_add_merge(bpe *b, const char *file, uint32_t rank, const char *l, size_t l_len,
                           const char *r, size_t r_len, turbo_err *err)
{
    char whole[2 * BPE_MAX_PIECE];
    int32_t left = bpe_map_find(b, &b->names, l, l_len),
            right = bpe_map_find(b, &b->names, r, r_len);
    if (left < 0 || !(b->tokens[left].flags & BPE_TOK_MODEL))
        return no_token(file, rank, l, l_len, err);
    if (right < 0 || !(b->tokens[right].flags & BPE_TOK_MODEL) || r_len < b->prefix_len)
        return no_token(file, rank, r, r_len, err);
    memcpy(whole, l, l_len);
    memcpy(whole + l_len, r + b->prefix_len, r_len - b->prefix_len);
    size_t n = l_len + r_len - b->prefix_len;
    int32_t id = bpe_map_find(b, &b->names, whole, n);
    if (id < 0 || !(b->tokens[id].flags & BPE_TOK_MODEL))
        return no_token(file, rank, whole, n, err);
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    bpe_merge *m = &b->merges[merge_slot(b, pair)];
    if (m->pair == pair)
        return bpe_fail(err, TURBO_EDATA,
                        "%s: the merge of \"%.*s\" and \"%.*s\" stands there twice, "
                        "as number %u and %u",
                        file, (int)(l_len < 40 ? l_len : 40), l, (int)(r_len < 40 ? r_len : 40), r,
                        m->rank, rank);
    *m = (bpe_merge){pair, rank, id};
    return TURBO_OK;
}
