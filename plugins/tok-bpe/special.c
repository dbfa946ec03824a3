/* plugins/tok-bpe/special.c: text is cut at the names of added tokens, first as it is, then, for the
 * names that say so, once it is normalised. Text that is not trusted is cut at the names that are
 * not special only: no special token can come out of it. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

/* ---- a trie of names ----------------------------------------------------------------------- */

typedef struct key {
    const char *text;
    size_t len;
    int32_t id;
} key;

static int by_text(const void *a, const void *b)
{
    const key *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

/* The keys below a node while the trie is built, level by level. */
typedef struct range {
    uint32_t lo, hi;
} range;

typedef struct builder {
    bpe_trie *t;
    range *ranges;
    size_t n, cap;
} builder;

static bool add_node(builder *u, uint8_t label, uint32_t lo, uint32_t hi)
{
    if (u->n == u->cap) {
        size_t cap = u->cap ? u->cap * 2 : 256;
        bpe_node_at *nodes = realloc(u->t->nodes, cap * sizeof *nodes);
        if (!nodes)
            return false;
        u->t->nodes = nodes;
        range *ranges = realloc(u->ranges, cap * sizeof *ranges);
        if (!ranges)
            return false;
        u->ranges = ranges;
        u->cap = cap;
    }
    u->t->nodes[u->n] = (bpe_node_at){.id = -1, .label = label};
    u->ranges[u->n++] = (range){lo, hi};
    return true;
}

static bool build(builder *u, const key *keys, size_t n)
{
    size_t depth = 0, level_end = 1;
    bool ok = add_node(u, 0, 0, (uint32_t)n);
    for (size_t i = 0; ok && i < u->n; i++) {
        if (i == level_end) {
            depth++;
            level_end = u->n;
        }
        range r = u->ranges[i];
        for (; r.lo < r.hi && keys[r.lo].len == depth; r.lo++)
            u->t->nodes[i].id = keys[r.lo].id;
        u->t->nodes[i].child = (uint32_t)u->n;
        while (ok && r.lo < r.hi) {
            uint8_t label = (uint8_t)keys[r.lo].text[depth];
            uint32_t end = r.lo + 1;
            while (end < r.hi && (uint8_t)keys[end].text[depth] == label)
                end++;
            ok = add_node(u, label, r.lo, end);
            u->t->nodes[i].n_child++;
            r.lo = end;
        }
    }
    return ok;
}

turbo_status bpe_trie_build(const bpe *b, const int32_t *ids, size_t n, const bpe_buf *names,
                            bpe_trie *t, turbo_err *err)
{
    builder u = {.t = t};
    *t = (bpe_trie){0};
    if (!n)
        return TURBO_OK;
    key *keys = calloc(n, sizeof *keys);
    if (!keys)
        return bpe_no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const bpe_token *tok = &b->tokens[ids[i]];
        keys[i] = names ? (key){names[i].p, names[i].len, ids[i]}
                        : (key){b->arena + tok->name, tok->name_len, ids[i]};
        if (keys[i].len)
            t->starts[(uint8_t)keys[i].text[0]] = 1;
    }
    qsort(keys, n, sizeof *keys, by_text);
    bool ok = build(&u, keys, n);
    free(u.ranges);
    free(keys);
    return ok ? TURBO_OK : bpe_no_memory(err);
}

uint32_t bpe_trie_longest(const bpe_trie *t, const char *p, size_t n, int32_t *id)
{
    const bpe_node_at *at = t->nodes;
    uint32_t best = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t lo = at->child, hi = lo + at->n_child;
        uint8_t label = (uint8_t)p[i];
        while (lo < hi) {
            uint32_t mid = lo + (hi - lo) / 2;
            if (t->nodes[mid].label < label)
                lo = mid + 1;
            else
                hi = mid;
        }
        if (lo == at->child + at->n_child || t->nodes[lo].label != label)
            break;
        at = &t->nodes[lo];
        if (at->id >= 0) {
            *id = at->id;
            best = (uint32_t)i + 1;
        }
    }
    return best;
}

/* ---- cutting ------------------------------------------------------------------------------- */

typedef struct cutter {
    const bpe *b;
    bpe_scratch *s;
    uint32_t flags;
    bpe_ids *out;
    turbo_err *err;
} cutter;

/* single_word: neither side may be a word character. */
static bool stands_alone(const char *text, size_t len, size_t from, size_t to)
{
    size_t n, before = from;
    if (to < len && bpe_is_word(bpe_get(text + to, &n)))
        return false;
    while (before && ((unsigned char)text[--before] & 0xC0) == 0x80)
        ;
    return !from || !bpe_is_word(bpe_get(text + before, &n));
}

static turbo_status plain(const cutter *c, const char *text, size_t len, bool start);
static turbo_status words(const cutter *c, const char *text, size_t len, bool start)
{
    return bpe_pre(c->b, c->s, 0, text, len, start, c->out, c->err);
}

static turbo_status cut(const cutter *c, bool normalised, const char *text, size_t len, bool start)
{
    const bpe_trie *t = &c->b->added[(c->flags & TURBO_TOK_TRUSTED) != 0][normalised];
    turbo_status (*rest)(const cutter *, const char *, size_t, bool) = normalised ? words : plain;
    turbo_status st = TURBO_OK;
    size_t from = 0;
    for (size_t i = 0; t->nodes && i < len && !st;) {
        int32_t id = -1;
        uint32_t n = t->starts[(uint8_t)text[i]] ? bpe_trie_longest(t, text + i, len - i, &id) : 0;
        if (!n) {
            i++;
            continue;
        }
        uint32_t f = c->b->tokens[id].flags;
        if ((f & BPE_TOK_SINGLE) && !stands_alone(text, len, i, i + n)) {
            i += n;
            continue;
        }
        size_t to = f & BPE_TOK_LSTRIP ? from + bpe_trim_space(text + from, i - from) : i;
        st = rest(c, text + from, to - from, start && from == 0);
        bpe_emit(c->out, id);
        i += n;
        if (f & BPE_TOK_RSTRIP)
            i += bpe_skip_space(text + i, len - i);
        from = i;
    }
    return st ? st : rest(c, text + from, len - from, start && from == 0);
}

static turbo_status plain(const cutter *c, const char *text, size_t len, bool start)
{
    if (!len)
        return TURBO_OK;
    turbo_status st = bpe_normalize(c->b, c->s, &text, &len, &start, c->err);
    return st ? st : cut(c, true, text, len, start);
}

turbo_status bpe_encode(const bpe *b, bpe_scratch *s, const char *text, size_t len, uint32_t flags,
                        bpe_ids *out, turbo_err *err)
{
    cutter c = {b, s, flags, out, err};
    return cut(&c, false, text, len, flags & TURBO_TOK_FIRST);
}
