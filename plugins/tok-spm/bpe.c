/* plugins/tok-spm/bpe.c: BPE as SentencePiece does it: merge the adjacent pair whose concatenation
 * is the piece with the highest score, leftmost first, from a heap: O(n log n). User-defined pieces
 * are frozen symbols. A merged piece of type UNUSED is split back into the pair that formed it. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

typedef struct symbol {
    const char *text;
    uint32_t len; /* 0: merged away */
    int32_t prev, next;
    int32_t id; /* of a known piece, -1 */
    bool frozen;
} symbol;

typedef struct candidate {
    float score;
    int32_t left, right;
    uint32_t len; /* of both when it was made: a stale one no longer fits */
    int32_t id;
} candidate;

typedef struct merger {
    const spm *s;
    symbol *sym;
    int32_t n;
    candidate *heap;
    size_t heap_n, heap_cap;
    uint16_t *left_of; /* [pieces] once an UNUSED piece was formed: bytes of its latest left half */
    bool no_memory;
} merger;

static bool before(const candidate *a, const candidate *b)
{
    if (a->score > b->score || a->score < b->score)
        return a->score > b->score;
    return a->left < b->left;
}

static void push(merger *m, candidate c)
{
    if (m->heap_n == m->heap_cap) {
        size_t cap = m->heap_cap ? m->heap_cap * 2 : 256;
        candidate *h = realloc(m->heap, cap * sizeof *h);
        if (!h) {
            m->no_memory = true;
            return;
        }
        m->heap = h;
        m->heap_cap = cap;
    }
    size_t i = m->heap_n++;
    while (i && before(&c, &m->heap[(i - 1) / 2])) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
}

static candidate pop(merger *m)
{
    candidate top = m->heap[0], last = m->heap[--m->heap_n];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= m->heap_n)
            break;
        if (k + 1 < m->heap_n && before(&m->heap[k + 1], &m->heap[k]))
            k++;
        if (!before(&m->heap[k], &last))
            break;
        m->heap[i] = m->heap[k];
        i = k;
    }
    m->heap[i] = last;
    return top;
}

static void remember_half(merger *m, int32_t id, uint32_t left)
{
    if (!m->left_of)
        m->left_of = calloc((size_t)m->s->n, sizeof *m->left_of);
    if (m->left_of)
        m->left_of[id] = (uint16_t)left; /* less than SPM_MAX_PIECE */
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
    push(m, (candidate){m->s->pieces[id].score, left, right, len, id});
    if (m->s->pieces[id].type == SPM_UNUSED)
        remember_half(m, id, m->sym[left].len);
}

static turbo_status split_symbols(merger *m, const char *text, size_t len, turbo_err *err)
{
    size_t bytes;
    if (len > INT32_MAX / 2 || __builtin_mul_overflow(len + 1, sizeof(symbol), &bytes))
        return spm_fail(err, TURBO_ELIMIT, "a text of %zu bytes is too long to tokenise", len);
    m->sym = malloc(bytes);
    if (!m->sym)
        return spm_fail(err, TURBO_ENOMEM, "no memory to tokenise %zu bytes", len);
    while (len) {
        int32_t id = -1;
        size_t n = spm_trie_longest(&m->s->user, text, len, &id);
        bool frozen = n > 0;
        if (!frozen) {
            n = spm_char_len((unsigned char)*text);
            n = n < len ? n : len;
            id = spm_map_find(&m->s->lookup, text, n);
        }
        m->sym[m->n] = (symbol){
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

/* Emits a piece, splitting an UNUSED one back into the pair seen last. Each half is shorter than
 * the whole, so the depth is less than SPM_MAX_PIECE. */
static bool emit(const merger *m, const char *text, uint32_t len, int32_t id, bool prev_unk,
                 spm_ids *out)
{
    while (id >= 0 && m->s->pieces[id].type == SPM_UNUSED && m->left_of && m->left_of[id]) {
        uint32_t left = m->left_of[id];
        prev_unk = emit(m, text, left, spm_map_find(&m->s->lookup, text, left), prev_unk, out);
        text += left;
        len -= left;
        id = spm_map_find(&m->s->lookup, text, len);
    }
    if (id < 0)
        return spm_unknown(m->s, text, len, prev_unk, out);
    spm_emit(out, id);
    return false;
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

turbo_status spm_bpe(const spm *s, const char *text, size_t len, spm_ids *out, turbo_err *err)
{
    merger m = {.s = s};
    turbo_status st = split_symbols(&m, text, len, err);
    for (int32_t i = 1; i < m.n && !st; i++)
        consider(&m, i - 1, i);
    while (m.heap_n && !st && !m.no_memory) {
        candidate c = pop(&m);
        symbol *l = &m.sym[c.left], *r = &m.sym[c.right];
        if (!l->len || !r->len || l->len + r->len != c.len)
            continue; /* one of them was merged with something else */
        l->len = c.len;
        l->id = c.id;
        l->next = r->next;
        if (r->next >= 0)
            m.sym[r->next].prev = c.left;
        r->len = 0;
        consider(&m, l->prev, c.left);
        consider(&m, c.left, l->next);
    }
    if (m.no_memory)
        st = spm_fail(err, TURBO_ENOMEM, "no memory to tokenise %zu bytes", len);
    bool prev_unk = false;
    for (int32_t i = m.n ? 0 : -1; i >= 0 && !st; i = m.sym[i].next)
        prev_unk = emit(&m, m.sym[i].text, m.sym[i].len, m.sym[i].id, prev_unk, out);
    free(m.sym);
    free(m.heap);
    free(m.left_of);
    return st;
}
