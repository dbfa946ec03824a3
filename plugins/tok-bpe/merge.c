/* plugins/tok-bpe/merge.c: the model: a word to ids. The pair of neighbours with the lowest rank is
 * merged, the leftmost first (arXiv 1508.07909, section 3.2, as the reference's merge_word and
 * merge_all do it).
 *
 * Where no merge ends with one character and goes on with the next, no token can span the two: a
 * word is cut there without changing the result. Short pieces are remembered and merged by looking
 * through all pairs, long ones with a heap: O(n log n). */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

enum { SHORT = 24 }; /* symbols up to which looking through all pairs is faster than a heap */

/* ---- words of a few symbols ---------------------------------------------------------------- */

static size_t merge_short(const bpe *b, int32_t *id, size_t n)
{
    const bpe_merge *pair[SHORT];
    for (size_t i = 0; i + 1 < n; i++)
        pair[i] = bpe_merge_find(b, id[i], id[i + 1]);
    while (n > 1) {
        size_t best = n;
        uint32_t rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < n; i++)
            if (pair[i] && pair[i]->rank < rank) {
                rank = pair[i]->rank;
                best = i;
            }
        if (best == n)
            break;
        id[best] = pair[best]->id;
        memmove(id + best + 1, id + best + 2, (n - best - 2) * sizeof *id);
        memmove(pair + best, pair + best + 1, (n - best - 2) * sizeof *pair);
        n--;
        if (best + 1 < n)
            pair[best] = bpe_merge_find(b, id[best], id[best + 1]);
        if (best)
            pair[best - 1] = bpe_merge_find(b, id[best - 1], id[best]);
    }
    return n;
}

/* ---- words of many ------------------------------------------------------------------------- */

static bool before(const bpe_candidate *a, const bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static bool push(bpe_scratch *s, bpe_candidate c)
{
    if (s->heap_n == s->heap_cap) {
        size_t cap = s->heap_cap ? s->heap_cap * 2 : 256;
        bpe_candidate *h = realloc(s->heap, cap * sizeof *h);
        if (!h)
            return false;
        s->heap = h;
        s->heap_cap = cap;
    }
    size_t i = s->heap_n++;
    for (; i && before(&c, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = c;
    return true;
}

static bpe_candidate pop(bpe_scratch *s)
{
    bpe_candidate top = s->heap[0], last = s->heap[--s->heap_n];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= s->heap_n)
            break;
        if (k + 1 < s->heap_n && before(&s->heap[k + 1], &s->heap[k]))
            k++;
        if (!before(&s->heap[k], &last))
            break;
        s->heap[i] = s->heap[k];
        i = k;
    }
    s->heap[i] = last;
    return top;
}

static bool consider(const bpe *b, bpe_scratch *s, int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return true;
    int32_t l = s->sym[left].id, r = s->sym[right].id;
    const bpe_merge *m = bpe_merge_find(b, l, r);
    return !m || push(s, (bpe_candidate){m->rank, left, right, l, r, m->id});
}

static turbo_status merge_long(const bpe *b, bpe_scratch *s, size_t n, bpe_ids *out, turbo_err *err)
{
    bool ok = true;
    s->heap_n = 0;
    for (size_t i = 0; i < n; i++) {
        s->sym[i].prev = (int32_t)i - 1;
        s->sym[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 1; i < n && ok; i++)
        ok = consider(b, s, (int32_t)i - 1, (int32_t)i);
    while (s->heap_n && ok) {
        bpe_candidate c = pop(s);
        bpe_symbol *l = &s->sym[c.left], *r = &s->sym[c.right];
        if (l->id != c.left_id || r->id != c.right_id || l->next != c.right)
            continue; /* one of them was merged with something else */
        l->id = c.id;
        l->next = r->next;
        if (r->next >= 0)
            s->sym[r->next].prev = c.left;
        r->id = -1;
        ok = consider(b, s, l->prev, c.left) && consider(b, s, c.left, l->next);
    }
    for (int32_t i = n ? 0 : -1; i >= 0 && ok; i = s->sym[i].next)
        bpe_emit(out, s->sym[i].id);
    return ok ? TURBO_OK : bpe_no_memory(err);
}

/* ---- symbols ------------------------------------------------------------------------------- */

/* Symbols of a word that is being spelt, and the unknown one that waits for its end. */
typedef struct speller {
    const bpe *b;
    bpe_scratch *s;
    size_t n;
    bool pending;
    bool no_memory;
} speller;

static void symbol(speller *p, int32_t id)
{
    bpe_scratch *s = p->s;
    if (p->n == s->sym_cap) {
        size_t cap = s->sym_cap ? s->sym_cap * 2 : 256;
        bpe_symbol *q = realloc(s->sym, cap * sizeof *q);
        if (!q) {
            p->no_memory = true;
            return;
        }
        s->sym = q;
        s->sym_cap = cap;
    }
    s->sym[p->n++].id = id;
}

static void unknown(speller *p, const char *text, size_t len)
{
    const bpe *b = p->b;
    bool bytes = b->byte_fallback;
    for (size_t i = 0; i < len && bytes; i++)
        bytes = b->bytes[(uint8_t)text[i]] >= 0;
    if (bytes) {
        for (size_t i = 0; i < len; i++)
            symbol(p, b->bytes[(uint8_t)text[i]]);
        return;
    }
    if (b->unk < 0)
        return;
    if (p->pending && !b->fuse_unk)
        symbol(p, b->unk);
    p->pending = true;
}

static void known(speller *p, int32_t id)
{
    if (p->pending)
        symbol(p, p->b->unk);
    p->pending = false;
    symbol(p, id);
}

/* One character, with prefix and suffix where the model wants them. */
static void spell(speller *p, const char *text, size_t len, bool first, bool last)
{
    const bpe *b = p->b;
    if ((first || !b->prefix_len) && (!last || !b->suffix_len)) {
        int32_t id = b->byte_level ? b->chars[(uint8_t)*text] : -1;
        if (!b->byte_level) {
            size_t n;
            uint32_t cp = bpe_get(text, &n);
            id = cp < 0x10000 ? b->chars[cp] : bpe_map_find(b, &b->texts, text, len);
        }
        if (id >= 0)
            known(p, id);
        else
            unknown(p, text, len);
        return;
    }
    bpe_buf *w = &p->s->word;
    w->len = 0;
    if ((!first && !bpe_buf_add(w, b->prefix, b->prefix_len)) || !bpe_buf_add(w, text, len) ||
        (last && !bpe_buf_add(w, b->suffix, b->suffix_len))) {
        p->no_memory = true;
        return;
    }
    int32_t id = bpe_map_find(b, &b->texts, w->p, w->len);
    if (id >= 0)
        known(p, id);
    else
        unknown(p, w->p, w->len);
}

static turbo_status spell_word(const bpe *b, bpe_scratch *s, const char *text, size_t len,
                               size_t *n, turbo_err *err)
{
    speller p = {.b = b, .s = s};
    for (size_t i = 0; i < len && !p.no_memory;) {
        size_t k = b->byte_level ? 1 : bpe_char_len((unsigned char)text[i]);
        spell(&p, text + i, k, i == 0, i + k == len);
        i += k;
    }
    if (p.pending)
        symbol(&p, b->unk);
    *n = p.n;
    return p.no_memory ? bpe_no_memory(err) : TURBO_OK;
}

/* ---- pieces -------------------------------------------------------------------------------- */

static turbo_status merge_piece(const bpe *b, bpe_scratch *s, const char *text, size_t len,
                                bpe_word *keep, bpe_ids *out, turbo_err *err)
{
    size_t n;
    turbo_status st = spell_word(b, s, text, len, &n, err);
    if (st)
        return st;
    if (n > SHORT)
        return merge_long(b, s, n, out, err);
    int32_t id[SHORT];
    for (size_t i = 0; i < n; i++)
        id[i] = s->sym[i].id;
    n = merge_short(b, id, n);
    for (size_t i = 0; i < n; i++)
        bpe_emit(out, id[i]);
    if (keep && n <= BPE_WORD_IDS) {
        memcpy(keep->text, text, len);
        memcpy(keep->ids, id, n * sizeof *id);
        keep->len = (uint8_t)len;
        keep->n_ids = (uint8_t)n;
    } else if (keep) {
        keep->hash = 0;
    }
    return TURBO_OK;
}

/* A piece that merges alone, from memory when it is short and was there before. whole: no cut was
 * made, so a model that ignores merges takes it as one token if it can. */
static turbo_status one(const bpe *b, bpe_scratch *s, const char *text, size_t len, bool whole,
                        bpe_ids *out, turbo_err *err)
{
    bpe_word *w = NULL;
    if (len <= BPE_WORD_TEXT) {
        uint64_t h = (bpe_hash(text, len) << 1 | whole) | (uint64_t)1 << 63;
        w = &s->words[(h >> 24) % BPE_WORDS];
        if (w->hash == h && w->len == len && !memcmp(w->text, text, len)) {
            for (uint8_t i = 0; i < w->n_ids; i++)
                bpe_emit(out, w->ids[i]);
            return TURBO_OK;
        }
        w->hash = h;
        w->len = 0; /* matches nothing until it is filled */
    }
    if (whole && b->ignore_merges) {
        int32_t id = bpe_map_find(b, &b->texts, text, len);
        if (id >= 0) {
            bpe_emit(out, id);
            if (w) {
                memcpy(w->text, text, len);
                w->len = (uint8_t)len;
                w->n_ids = 1;
                w->ids[0] = id;
            }
            return TURBO_OK;
        }
    }
    return merge_piece(b, s, text, len, w, out, err);
}

/* The code of a character as the table of joins knows it; false when the model does not know it. */
static bool character(const bpe *b, const char *text, size_t *n, uint32_t *code)
{
    if (b->byte_level) {
        *n = 1;
        *code = (uint8_t)*text;
        return b->chars[*code] >= 0;
    }
    *code = bpe_get(text, n);
    return *code < 0x10000 ? b->chars[*code] >= 0 : false;
}

turbo_status bpe_model(const bpe *b, bpe_scratch *s, const char *text, size_t len, bpe_ids *out,
                       turbo_err *err)
{
    bool known_whole =
        len > BPE_WORD_TEXT / 2 && b->ignore_merges && bpe_map_find(b, &b->texts, text, len) >= 0;
    if (!b->cuts || known_whole || len <= BPE_WORD_TEXT / 2)
        return one(b, s, text, len, true, out, err);
    turbo_status st = TURBO_OK;
    uint32_t left = 0, right;
    bool known_left = false;
    size_t from = 0;
    for (size_t i = 0, n; i < len && !st; i += n) {
        bool known_right = character(b, text + i, &n, &right);
        uint32_t bit = bpe_join_bit(left, right);
        if (known_left && known_right && !(b->joined[bit >> 6] >> (bit & 63) & 1)) {
            st = one(b, s, text + from, i - from, false, out, err);
            from = i;
        }
        left = right;
        known_left = known_right;
    }
    return st ? st : one(b, s, text + from, len - from, from == 0, out, err);
}
