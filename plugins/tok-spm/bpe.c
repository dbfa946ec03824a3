/* plugins/tok-spm/bpe.c: BPE as SentencePiece does it: merge the adjacent pair whose concatenation
 * is the piece with the highest score, leftmost first, from a heap: O(n log n). User-defined pieces
 * are frozen symbols. A merged piece of type UNUSED is split back into the pair that formed it. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

/* One word on its way, and what it became so far. */
typedef struct merger {
    const spm *s;
    spm_scratch *c;
    spm_symbol *sym; /* of c */
    int32_t n;
    spm_ids *out;
    int32_t kept[SPM_WORD_IDS];
    size_t n_kept; /* counts on */
    bool unknown, prev_unk; /* it has an unknown stretch; the last thing given out was an unk */
    bool no_memory;
} merger;

static bool before(const spm_candidate *a, const spm_candidate *b)
{
    if (a->score > b->score || a->score < b->score)
        return a->score > b->score;
    return a->left < b->left;
}

static void push(merger *m, spm_candidate c)
{
    if (m->c->heap_n == m->c->heap_cap) {
        size_t cap = m->c->heap_cap ? m->c->heap_cap * 2 : 256;
        spm_candidate *h = realloc(m->c->heap, cap * sizeof *h);
        if (!h) {
            m->no_memory = true;
            return;
        }
        m->c->heap = h;
        m->c->heap_cap = cap;
    }
    size_t i = m->c->heap_n++;
    while (i && before(&c, &m->c->heap[(i - 1) / 2])) {
        m->c->heap[i] = m->c->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->c->heap[i] = c;
}

static spm_candidate pop(merger *m)
{
    spm_candidate top = m->c->heap[0], last = m->c->heap[--m->c->heap_n];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= m->c->heap_n)
            break;
        if (k + 1 < m->c->heap_n && before(&m->c->heap[k + 1], &m->c->heap[k]))
            k++;
        if (!before(&m->c->heap[k], &last))
            break;
        m->c->heap[i] = m->c->heap[k];
        i = k;
    }
    m->c->heap[i] = last;
    return top;
}

static void remember_half(merger *m, int32_t id, uint32_t left)
{
    if (!m->c->left_of)
        m->c->left_of = calloc((size_t)m->s->n, sizeof *m->c->left_of);
    if (m->c->left_of)
        m->c->left_of[id] = (uint16_t)left; /* less than SPM_MAX_PIECE */
    else
        m->no_memory = true;
}

static void consider(merger *m, int32_t left, int32_t right)
{
    if (left < 0 || right < 0 || m->sym[left].frozen || m->sym[right].frozen)
        return;
    uint32_t len = m->sym[left].len + m->sym[right].len;
    int32_t id = spm_map_find(&m->s->lookup, m->sym[left].text, len);
    if (id < 0)
        return;
    push(m, (spm_candidate){m->s->pieces[id].score, left, right, len, id});
    if (m->s->pieces[id].type == SPM_UNUSED)
        remember_half(m, id, m->sym[left].len);
}

static turbo_status split_symbols(merger *m, const char *text, size_t len, turbo_err *err)
{
    size_t bytes;
    m->n = 0;
    if (len > INT32_MAX / 2 || __builtin_mul_overflow(len + 1, sizeof *m->sym, &bytes))
        return spm_fail(err, TURBO_ELIMIT, "a text of %zu bytes is too long to tokenise", len);
    if (m->c->sym_cap < len) {
        spm_symbol *p = realloc(m->c->sym, bytes);
        if (!p)
            return spm_fail(err, TURBO_ENOMEM, "no memory to tokenise %zu bytes", len);
        m->c->sym = p;
        m->c->sym_cap = len;
    }
    m->sym = m->c->sym;
    while (len) {
        int32_t id = -1;
        size_t n = spm_trie_longest(&m->s->user, text, len, &id);
        bool frozen = n > 0;
        if (!frozen) {
            n = spm_char_len((unsigned char)*text);
            n = n < len ? n : len;
            id = spm_map_find(&m->s->lookup, text, n);
        }
        m->sym[m->n] = (spm_symbol){
            .text = text,
            .len = (uint32_t)n,
            .prev = m->n - 1,
            .next = len > n ? m->n + 1 : -1,
            .id = id,
            .frozen = frozen,
        };
        m->n++;
        text += n;
        len -= n;
    }
    return TURBO_OK;
}

bool spm_unknown(const spm *s, const char *text, size_t len, bool prev_unk, spm_ids *out)
{
    if (s->byte_fallback) {
        for (size_t i = 0; i < len; i++)
            spm_emit(out, s->bytes[(uint8_t)text[i]]);
        return false;
    }
    if (!prev_unk)
        spm_emit(out, s->unk);
    return true;
}

/* Emits a piece, splitting an UNUSED one back into the pair seen last. Each half is shorter than
 * the whole, so the depth is less than SPM_MAX_PIECE. */
static void emit(merger *m, const char *text, uint32_t len, int32_t id)
{
    while (id >= 0 && m->s->pieces[id].type == SPM_UNUSED && m->c->left_of && m->c->left_of[id]) {
        uint32_t left = m->c->left_of[id];
        emit(m, text, left, spm_map_find(&m->s->lookup, text, left));
        text += left;
        len -= left;
        id = spm_map_find(&m->s->lookup, text, len);
    }
    if (id < 0) {
        m->unknown = true;
        m->prev_unk = spm_unknown(m->s, text, len, m->prev_unk, m->out);
        return;
    }
    m->prev_unk = false;
    spm_emit(m->out, id);
    if (m->n_kept < SPM_WORD_IDS)
        m->kept[m->n_kept] = id;
    m->n_kept++;
}

static turbo_status merge(merger *m, const char *text, size_t len, turbo_err *err)
{
    turbo_status st = split_symbols(m, text, len, err);
    m->c->heap_n = 0;
    m->n_kept = 0;
    m->unknown = false;
    for (int32_t i = 1; i < m->n && !st; i++)
        consider(m, i - 1, i);
    while (m->c->heap_n && !st && !m->no_memory) {
        spm_candidate c = pop(m);
        spm_symbol *l = &m->sym[c.left], *r = &m->sym[c.right];
        if (!l->len || !r->len || l->len + r->len != c.len)
            continue; /* one of them was merged with something else */
        l->len = c.len;
        l->id = c.id;
        l->next = r->next;
        if (r->next >= 0)
            m->sym[r->next].prev = c.left;
        r->len = 0;
        consider(m, l->prev, c.left);
        consider(m, c.left, l->next);
    }
    if (m->no_memory)
        st = spm_fail(err, TURBO_ENOMEM, "no memory to tokenise %zu bytes", len);
    for (int32_t i = m->n ? 0 : -1; i >= 0 && !st; i = m->sym[i].next)
        emit(m, m->sym[i].text, m->sym[i].len, m->sym[i].id);
    return st;
}

/* A word from memory, when it is short and was there before. */
static turbo_status word(merger *m, const char *text, size_t len, turbo_err *err)
{
    if (len > SPM_WORD_TEXT)
        return merge(m, text, len, err);
    uint64_t h = spm_hash(text, len) | (uint64_t)1 << 63;
    spm_cached *w = &m->c->words[(h >> 16 ^ h) % SPM_WORDS];
    if (w->hash == h && w->len == len && !memcmp(w->text, text, len)) {
        for (uint8_t i = 0; i < w->n_ids; i++)
            spm_emit(m->out, w->ids[i]);
        m->prev_unk = false;
        return TURBO_OK;
    }
    turbo_status st = merge(m, text, len, err);
    if (st || m->unknown || m->n_kept > SPM_WORD_IDS)
        return st;
    w->hash = h;
    w->len = (uint8_t)len;
    w->n_ids = (uint8_t)m->n_kept;
    memcpy(w->text, text, len);
    memcpy(w->ids, m->kept, m->n_kept * sizeof *m->kept);
    return TURBO_OK;
}

turbo_status spm_bpe(const spm *s, const char *text, size_t len, spm_ids *out, turbo_err *err)
{
    merger m = {.s = s, .c = spm_take(s), .out = out};
    turbo_status st = TURBO_OK;
    if (!m.c)
        return spm_fail(err, TURBO_ENOMEM, "no memory to tokenise %zu bytes", len);
    while (len && !st) {
        size_t n = spm_word(s, text, len);
        st = s->cuts ? word(&m, text, n, err) : merge(&m, text, n, err);
        text += n;
        len -= n;
    }
    spm_give(s, m.c);
    return st;
}
