/* plugins/tok-spm/trie.c: all keys that a text begins with, in one walk. Built once from sorted
 * keys, level by level, so the children of a node stand side by side and are found by bisection. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

/* The keys below a node while the trie is being built. */
typedef struct range {
    uint32_t lo, hi;
} range;

typedef struct builder {
    spm_trie *t;
    range *ranges; /* [cap], beside t->nodes */
    size_t n, cap;
} builder;

static int by_text(const void *a, const void *b)
{
    const spm_key *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static bool grow(builder *b)
{
    size_t cap = b->cap ? b->cap * 2 : 256;
    spm_node *nodes = realloc(b->t->nodes, cap * sizeof *nodes);
    if (!nodes)
        return false;
    b->t->nodes = nodes;
    range *ranges = realloc(b->ranges, cap * sizeof *ranges);
    if (!ranges)
        return false;
    b->ranges = ranges;
    b->cap = cap;
    return true;
}

static bool add(builder *b, uint8_t label, uint32_t lo, uint32_t hi)
{
    if (b->n == b->cap && (b->n > UINT32_MAX / 2 || !grow(b)))
        return false;
    b->t->nodes[b->n] = (spm_node){.id = -1, .label = label};
    b->ranges[b->n] = (range){lo, hi};
    b->n++;
    return true;
}

turbo_status spm_trie_build(spm_trie *t, spm_key *keys, size_t n, turbo_err *err)
{
    builder b = {.t = t};
    *t = (spm_trie){0};
    if (!n)
        return TURBO_OK;
    qsort(keys, n, sizeof *keys, by_text);
    bool ok = add(&b, 0, 0, (uint32_t)n);
    uint32_t depth = 0;
    for (size_t i = 0, level_end = 1; ok && i < b.n; i++) {
        if (i == level_end) {
            depth++;
            level_end = b.n;
        }
        range r = b.ranges[i];
        for (; r.lo < r.hi && keys[r.lo].len == depth; r.lo++)
            if (t->nodes[i].id < 0) /* the lowest id of equal keys */
                t->nodes[i].id = keys[r.lo].id;
            else if (keys[r.lo].id < t->nodes[i].id)
                t->nodes[i].id = keys[r.lo].id;
        t->nodes[i].child = (uint32_t)b.n;
        while (ok && r.lo < r.hi) {
            uint8_t label = (uint8_t)keys[r.lo].text[depth];
            uint32_t end = r.lo + 1;
            while (end < r.hi && (uint8_t)keys[end].text[depth] == label)
                end++;
            ok = add(&b, label, r.lo, end);
            t->nodes[i].n_child++;
            r.lo = end;
        }
    }
    free(b.ranges);
    if (ok)
        return TURBO_OK;
    spm_trie_free(t);
    return spm_fail(err, TURBO_ENOMEM, "no memory for an index of %zu pieces", n);
}

void spm_trie_free(spm_trie *t)
{
    free(t->nodes);
    *t = (spm_trie){0};
}

bool spm_trie_step(const spm_trie *t, uint32_t *node, uint8_t label)
{
    if (!t->nodes)
        return false;
    const spm_node *at = &t->nodes[*node];
    uint32_t lo = at->child, hi = at->child + at->n_child;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (t->nodes[mid].label < label)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == at->child + at->n_child || t->nodes[lo].label != label)
        return false;
    *node = lo;
    return true;
}

uint32_t spm_trie_longest(const spm_trie *t, const char *text, size_t len, int32_t *id)
{
    uint32_t node = 0, best = 0;
    for (size_t i = 0; i < len && spm_trie_step(t, &node, (uint8_t)text[i]); i++)
        if (t->nodes[node].id >= 0) {
            *id = t->nodes[node].id;
            best = (uint32_t)i + 1;
        }
    return best;
}
