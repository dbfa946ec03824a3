/* plugins/tok-bpe/index.c: the tables of a model, once its files are read, and the scratch memory
 * that encoders share.
 *
 * What ordinary text may become is decided here: a special token is in no table that such text is
 * looked up in, and merges that lead to one or start from one are dropped. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

static bool special(const bpe *b, int32_t id)
{
    return b->tokens[id].flags & BPE_TOK_SPECIAL;
}

/* How the model sees a name: in bytes when it is byte-level. */
static turbo_status set_texts(bpe *b, turbo_err *err)
{
    char bytes[BPE_MAX_PIECE];
    size_t n;
    turbo_status st = bpe_map_init(&b->texts, (size_t)b->n, true, err);
    for (int32_t i = 0; i < b->n && !st; i++) {
        bpe_token *t = &b->tokens[i];
        if (!(t->flags & BPE_TOK_MODEL) || special(b, i))
            continue;
        if (!b->byte_level) {
            t->text = t->name;
            t->text_len = t->name_len;
        } else if (bpe_unalias(b->arena + t->name, t->name_len, bytes, &n)) {
            bool same = n == t->out_len && !memcmp(b->arena + t->out, bytes, n);
            t->text = same ? t->out : bpe_keep(b, bytes, n);
            t->text_len = (uint32_t)n;
            if (t->text == UINT32_MAX)
                return bpe_no_memory(err);
        }
        if (t->text_len && !bpe_map_add(b, &b->texts, i))
            st = bpe_fail(err, TURBO_EDATA,
                          "tokenizer: two tokens stand for the same text, one is %d", i);
    }
    return st;
}

static turbo_status set_chars(bpe *b, turbo_err *err)
{
    size_t count = b->byte_level ? 256 : 0x10000;
    b->chars = calloc(count, sizeof *b->chars);
    if (!b->chars)
        return bpe_no_memory(err);
    memset(b->chars, 0xFF, count * sizeof *b->chars);
    for (int32_t i = 0; i < b->n; i++) {
        const bpe_token *t = &b->tokens[i];
        const char *p = b->arena + t->text;
        size_t n;
        if (!t->text_len)
            continue;
        if (b->byte_level && t->text_len == 1)
            b->chars[(uint8_t)*p] = i;
        else if (!b->byte_level && bpe_char_len((unsigned char)*p) == t->text_len &&
                 t->text_len < 4)
            b->chars[bpe_get(p, &n)] = i;
    }
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        b->bytes[i] = b->byte_fallback ? bpe_map_find(b, &b->texts, name, 6) : -1;
    }
    return TURBO_OK;
}

/* First and last character of a token, as merge.c looks them up. */
static void ends(const bpe *b, int32_t id, uint32_t *first, uint32_t *last)
{
    const bpe_token *t = &b->tokens[id];
    const char *p = b->arena + t->text;
    size_t at = t->text_len - 1, n;
    if (b->byte_level) {
        *first = (uint8_t)*p;
        *last = (uint8_t)p[at];
        return;
    }
    while (at && ((unsigned char)p[at] & 0xC0) == 0x80)
        at--;
    *first = bpe_get(p, &n);
    *last = bpe_get(p + at, &n);
}

static turbo_status set_joins(bpe *b, turbo_err *err)
{
    b->joined = calloc(BPE_JOINED / 64, sizeof *b->joined);
    if (!b->joined)
        return bpe_no_memory(err);
    for (size_t i = 0; i <= b->merge_mask; i++) {
        bpe_merge *m = &b->merges[i];
        uint32_t first, last, skip;
        if (m->pair == UINT64_MAX)
            continue;
        int32_t l = (int32_t)(m->pair >> 32), r = (int32_t)(uint32_t)m->pair;
        if (special(b, m->id) || special(b, l) || special(b, r) || !b->tokens[l].text_len ||
            !b->tokens[r].text_len) {
            m->rank = UINT32_MAX; /* the place stays taken, the merge never happens */
            continue;
        }
        ends(b, l, &skip, &last);
        ends(b, r, &first, &skip);
        uint32_t bit = bpe_join_bit(last, first);
        b->joined[bit >> 6] |= (uint64_t)1 << (bit & 63);
    }
    b->cuts = !b->prefix_len && !b->suffix_len;
    return TURBO_OK;
}

/* An unknown character must not end a text: where the unknown token is bos or eos as well, the
 * model has to know every byte. */
static turbo_status check_unknown(const bpe *b, turbo_err *err)
{
    bool complete = true;
    if (b->unk < 0 || (b->unk != b->bos && b->unk != b->eos))
        return TURBO_OK;
    for (int i = 0; i < 256 && complete; i++) {
        char text[130];
        size_t n = 1 + b->suffix_len;
        text[0] = (char)i;
        if (b->suffix_len)
            memcpy(text + 1, b->suffix, b->suffix_len);
        complete = b->byte_level ? b->chars[i] >= 0 && bpe_map_find(b, &b->texts, text, n) >= 0
                                 : b->bytes[i] >= 0;
    }
    return complete && !b->prefix_len
               ? TURBO_OK
               : bpe_fail(
                     err, TURBO_EUNSUPPORTED,
                     "tokenizer: the unknown token is bos or eos too, and not every byte has a "
                     "token: a text could become a control token");
}

/* The tries of added tokens: all for trusted text, those that are not special for the rest. */
static turbo_status set_added(bpe *b, bpe_scratch *s, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    int32_t *ids = calloc((size_t)b->n, sizeof *ids);
    bpe_buf *names = calloc((size_t)b->n, sizeof *names);
    if (!ids || !names)
        st = bpe_no_memory(err);
    for (int trusted = 0; trusted < 2 && !st; trusted++)
        for (int normal = 0; normal < 2 && !st; normal++) {
            size_t n = 0;
            for (int32_t i = 0; i < b->n && !st; i++) {
                const bpe_token *t = &b->tokens[i];
                bool late = t->flags & BPE_TOK_NORMALIZED;
                if (!(t->flags & BPE_TOK_ADDED) || late != (normal == 1) ||
                    (special(b, i) && !trusted))
                    continue;
                bool start = true;
                names[n].len = 0;
                const char *p = b->arena + t->name;
                size_t len = t->name_len;
                st = normal ? bpe_normalize(b, s, &p, &len, &start, err) : TURBO_OK;
                if (!st && !bpe_buf_add(&names[n], p, len))
                    st = bpe_no_memory(err);
                if (len)
                    ids[n++] = i;
            }
            st = st ? st : bpe_trie_build(b, ids, n, names, &b->added[trusted][normal], err);
        }
    for (int32_t i = 0; names && i < b->n; i++)
        free(names[i].p);
    free(names);
    free(ids);
    return st;
}

turbo_status bpe_index(bpe *b, turbo_err *err)
{
    turbo_status st = set_texts(b, err);
    if (!st)
        st = set_chars(b, err);
    if (!st)
        st = set_joins(b, err);
    if (!st)
        st = check_unknown(b, err);
    b->pool = st ? NULL : bpe_pool_new();
    bpe_scratch *s = b->pool ? bpe_pool_take(b->pool) : NULL;
    if (!st && !s)
        st = bpe_no_memory(err);
    if (!st)
        st = set_added(b, s, err);
    if (s)
        bpe_pool_give(b->pool, s);
    return st;
}

/* ---- scratch memory ------------------------------------------------------------------------ */

enum { KEEP_BYTES = 4 << 20 }; /* a buffer that grew beyond is given back after the call */

struct bpe_pool {
    pthread_mutex_t lock;
    bpe_scratch *free;
};

static void free_scratch(bpe_scratch *s)
{
    if (!s)
        return;
    bpe_matcher_free(s->matcher);
    free(s->normal[0].p);
    free(s->normal[1].p);
    for (int i = 0; i < BPE_MAX_RULES; i++)
        free(s->pre[i].p);
    free(s->word.p);
    free(s->cps);
    free(s->sym);
    free(s->heap);
    free(s->words);
    free(s);
}

bpe_pool *bpe_pool_new(void)
{
    bpe_pool *p = calloc(1, sizeof *p);
    if (p && pthread_mutex_init(&p->lock, NULL)) {
        free(p);
        return NULL;
    }
    return p;
}

void bpe_pool_free(bpe_pool *p)
{
    if (!p)
        return;
    while (p->free) {
        bpe_scratch *s = p->free;
        p->free = s->next;
        free_scratch(s);
    }
    pthread_mutex_destroy(&p->lock);
    free(p);
}

bpe_scratch *bpe_pool_take(bpe_pool *p)
{
    pthread_mutex_lock(&p->lock);
    bpe_scratch *s = p->free;
    if (s)
        p->free = s->next;
    pthread_mutex_unlock(&p->lock);
    if (s)
        return s;
    s = calloc(1, sizeof *s);
    if (s) {
        s->matcher = bpe_matcher_new();
        s->words = calloc(BPE_WORDS, sizeof *s->words);
    }
    if (s && s->matcher && s->words)
        return s;
    free_scratch(s);
    return NULL;
}

static void shrink(void *at, size_t *cap, size_t each)
{
    void **p = at;
    if (*cap * each > KEEP_BYTES) {
        free(*p);
        *p = NULL;
        *cap = 0;
    }
}

void bpe_pool_give(bpe_pool *p, bpe_scratch *s)
{
    shrink(&s->normal[0].p, &s->normal[0].cap, 1);
    shrink(&s->normal[1].p, &s->normal[1].cap, 1);
    for (int i = 0; i < BPE_MAX_RULES; i++)
        shrink(&s->pre[i].p, &s->pre[i].cap, 1);
    shrink(&s->word.p, &s->word.cap, 1);
    shrink(&s->cps, &s->cps_cap, 2 * sizeof *s->cps);
    shrink(&s->sym, &s->sym_cap, sizeof *s->sym);
    shrink(&s->heap, &s->heap_cap, sizeof *s->heap);
    s->normal[0].len = s->normal[1].len = s->word.len = 0;
    pthread_mutex_lock(&p->lock);
    s->next = p->free;
    p->free = s;
    pthread_mutex_unlock(&p->lock);
}
