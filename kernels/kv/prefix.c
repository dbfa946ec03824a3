/* kernels/kv/prefix.c: blocks found again by what they hold.
 *
 * An entry says: this block holds the first n tokens after the text named by `parent`. A full block is
 * found by its own key, the hash of (parent's key, tokens, digests of other inputs), in one probe; the
 * tail of a match, where two texts part inside a block, by looking through the latest entries behind the
 * same parent. Tokens are compared on every hit, so that a collision of hashes costs a miss and never a
 * wrong answer. An entry may be announced before its keys and values are computed: a second request
 * with the same text then waits for the first instead of computing the same.
 *
 * A block without references that has an entry is cached: it keeps its content until a new block is
 * wanted and nothing is free, and then the one that was used longest ago goes. A sequence puts its
 * blocks back from the last to the first, so what a text begins with outlives what follows it. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "internal.h"

#define NONE (-1)
#define MAX_LOOK 16 /* entries behind one parent that a tail is compared with */

/* Buckets of each of the two tables. */
static size_t buckets_for(int32_t n_blocks)
{
    size_t buckets = 16;
    while (buckets < 2 * (size_t)n_blocks)
        buckets *= 2;
    return buckets;
}

/* Entries, tokens and the two tables lie in one piece of memory, in this order. */
uint64_t turbok_prefix_bytes(int32_t n_blocks, int32_t block_tokens)
{
    uint64_t n = (uint64_t)n_blocks;
    return n * sizeof(turbok_entry) +
           (n * (uint64_t)block_tokens + 2 * buckets_for(n_blocks)) * sizeof(int32_t);
}

turbo_status turbok_kv_prefix_enable(turbok_kv_pool *p, turbo_err *err)
{
    size_t n = (size_t)p->n_blocks, buckets = buckets_for(p->n_blocks);
    uint64_t bytes = turbok_prefix_bytes(p->n_blocks, p->dims.block_tokens);
    turbok_prefix *x = calloc(1, sizeof *x);
    if (x)
        x->entries = calloc(1, bytes);
    p->prefix = x;
    if (!x || !x->entries) {
        turbok_prefix_free(p);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for the prefix cache of %d blocks",
                           p->n_blocks);
    }
    p->device->mem[TURBOK_MEM_KV_INDEX] += bytes;
    x->tokens = (int32_t *)(void *)(x->entries + n);
    x->by_key = x->tokens + n * (size_t)p->dims.block_tokens;
    x->by_parent = x->by_key + buckets;
    memset(x->by_key, 0xff, buckets * sizeof *x->by_key);
    memset(x->by_parent, 0xff, buckets * sizeof *x->by_parent);
    x->mask = buckets - 1;
    x->oldest = x->newest = NONE;
    if (getrandom(&x->secret, sizeof x->secret, 0) != (ssize_t)sizeof x->secret) {
        turbok_prefix_free(p);
        return turbok_fail(err, TURBO_EIO, "the system gives no random numbers");
    }
    return TURBO_OK;
}

void turbok_prefix_free(turbok_kv_pool *p)
{
    turbok_prefix *x = p->prefix;
    if (!x)
        return;
    if (x->entries)
        p->device->mem[TURBOK_MEM_KV_INDEX] -=
            turbok_prefix_bytes(p->n_blocks, p->dims.block_tokens);
    free(x->entries);
    free(x);
    p->prefix = NULL;
}

/* ---- keys ------------------------------------------------------------------------------------------- */

turbok_kv_key turbok_kv_root(const turbok_kv_pool *p, const void *salt, size_t n)
{
    turbok_hash h;
    if (!p->prefix)
        return (turbok_kv_key){0};
    turbok_hash_init(&h, p->prefix->secret);
    turbok_hash_add(&h, salt, n);
    return turbok_hash_end(&h);
}

turbok_kv_key turbok_kv_chain(const turbok_kv_pool *p, turbok_kv_key parent, const int32_t *tokens,
                              const void *extra, size_t n_extra)
{
    turbok_hash h;
    if (!p->prefix)
        return (turbok_kv_key){0};
    turbok_hash_init(&h, p->prefix->secret);
    turbok_hash_add(&h, &parent, sizeof parent);
    turbok_hash_add(&h, tokens, (size_t)p->dims.block_tokens * sizeof *tokens);
    turbok_hash_add(&h, extra, n_extra);
    return turbok_hash_end(&h);
}

static bool same(turbok_kv_key a, turbok_kv_key b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

/* ---- entries ------------------------------------------------------------------------------------------ */

static int32_t *tokens_of(const turbok_kv_pool *p, int32_t block)
{
    return p->prefix->tokens + (size_t)block * (size_t)p->dims.block_tokens;
}

/* The entry of a full block, ready or not; NONE. */
static int32_t find_full(const turbok_kv_pool *p, turbok_kv_key parent, turbok_kv_key key,
                         const int32_t *tokens)
{
    const turbok_prefix *x = p->prefix;
    int32_t b = x->by_key[key.lo & x->mask];
    for (; b != NONE; b = x->entries[b].key_next) {
        const turbok_entry *e = &x->entries[b];
        if (same(e->key, key) && same(e->parent, parent) &&
            !memcmp(tokens_of(p, b), tokens, (size_t)e->n * sizeof *tokens))
            return b;
    }
    return NONE;
}

static void unlink_key(turbok_prefix *x, int32_t block)
{
    int32_t *at = &x->by_key[x->entries[block].key.lo & x->mask];
    while (*at != block)
        at = &x->entries[*at].key_next;
    *at = x->entries[block].key_next;
    x->entries[block].full = false;
}

void turbok_kv_withdraw(turbok_kv_pool *p, int32_t block)
{
    turbok_prefix *x = p->prefix;
    if (!x || !x->entries[block].n)
        return;
    turbok_entry *e = &x->entries[block];
    if (e->full)
        unlink_key(x, block);
    if (e->left != NONE)
        x->entries[e->left].right = e->right;
    else
        x->by_parent[e->parent.lo & x->mask] = e->right;
    if (e->right != NONE)
        x->entries[e->right].left = e->left;
    e->n = 0;
    e->ready = false;
}

static int32_t common(const int32_t *a, const int32_t *b, int32_t n)
{
    int32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* Is there another block with the same beginning, at least as long? */
static bool known(const turbok_kv_pool *p, int32_t block, turbok_kv_key parent,
                  const int32_t *tokens, int32_t n)
{
    const turbok_prefix *x = p->prefix;
    int32_t b = x->by_parent[parent.lo & x->mask];
    for (int look = 0; b != NONE && look < MAX_LOOK; b = x->entries[b].right, look++) {
        const turbok_entry *e = &x->entries[b];
        if (b != block && e->ready && !e->extra && e->n >= n && same(e->parent, parent) &&
            common(tokens_of(p, b), tokens, n) == n)
            return true;
    }
    return false;
}

void turbok_kv_publish(turbok_kv_pool *p, int32_t block, turbok_kv_key parent,
                       const turbok_kv_key *key, const int32_t *tokens, int32_t n, bool extra,
                       bool ready)
{
    turbok_prefix *x = p->prefix;
    if (!x || n < 1 || (extra && !key))
        return;
    turbok_entry *e = &x->entries[block];
    int32_t twin = key ? find_full(p, parent, *key, tokens) : NONE;
    if (twin != NONE && twin != block && (x->entries[twin].ready || !ready)) {
        turbok_kv_withdraw(p, block); /* the other one serves; this stays private */
        return;
    }
    if (!key && known(p, block, parent, tokens, n)) {
        if (!e->ready)
            turbok_kv_withdraw(p, block);
        return;
    }
    if (twin != NONE && twin != block)
        turbok_kv_withdraw(p, twin); /* announced by a sequence that is not there yet */
    if (e->n && !same(e->parent, parent))
        turbok_kv_withdraw(p, block);
    if (!e->n) {
        int32_t *head = &x->by_parent[parent.lo & x->mask];
        *e = (turbok_entry){.parent = parent, .left = NONE, .right = *head, .older = NONE,
                            .newer = NONE};
        if (*head != NONE)
            x->entries[*head].left = block;
        *head = block;
    } else if (e->full) {
        unlink_key(x, block);
    }
    memcpy(tokens_of(p, block), tokens, (size_t)n * sizeof *tokens);
    e->n = n;
    e->extra = extra;
    e->ready = ready;
    e->full = key != NULL;
    if (key) {
        e->key = *key;
        e->key_next = x->by_key[key->lo & x->mask];
        x->by_key[key->lo & x->mask] = block;
    }
}

/* ---- the order of use ----------------------------------------------------------------------------------- */

static void lru_remove(turbok_prefix *x, int32_t block)
{
    turbok_entry *e = &x->entries[block];
    if (e->older != NONE)
        x->entries[e->older].newer = e->newer;
    else
        x->oldest = e->newer;
    if (e->newer != NONE)
        x->entries[e->newer].older = e->older;
    else
        x->newest = e->older;
    x->n_cached--;
}

bool turbok_prefix_keep(turbok_kv_pool *p, int32_t block)
{
    turbok_prefix *x = p->prefix;
    if (!x)
        return false;
    turbok_entry *e = &x->entries[block];
    if (!e->n || !e->ready) {
        turbok_kv_withdraw(p, block);
        return false;
    }
    e->older = x->newest;
    e->newer = NONE;
    if (x->newest != NONE)
        x->entries[x->newest].newer = block;
    else
        x->oldest = block;
    x->newest = block;
    x->n_cached++;
    return true;
}

int32_t turbok_prefix_evict(turbok_kv_pool *p)
{
    turbok_prefix *x = p->prefix;
    int32_t b = x ? x->oldest : NONE;
    if (b != NONE) {
        lru_remove(x, b);
        turbok_kv_withdraw(p, b);
    }
    return b;
}

int32_t turbok_kv_pool_cached_count(const turbok_kv_pool *p)
{
    return p->prefix ? p->prefix->n_cached : 0;
}

static void take(turbok_kv_pool *p, turbok_kv_table *t, int32_t block)
{
    if (!p->refs[block]++)
        lru_remove(p->prefix, block);
    t->blocks[t->n++] = block;
}

bool turbok_prefix_shared(const turbok_kv_pool *p, int32_t block, int32_t slot)
{
    if (p->refs[block] > 1)
        return true;
    const turbok_entry *e = p->prefix ? &p->prefix->entries[block] : NULL;
    return e && e->ready && e->n > slot;
}

/* The longest beginning of tokens [n] behind parent; ready entries in *block, *have, and in *soon what
 * an announced one will have. */
static void match_tail(const turbok_kv_pool *p, turbok_kv_key parent, const int32_t *tokens,
                       int32_t n, int32_t *block, int32_t *have, int32_t *soon)
{
    const turbok_prefix *x = p->prefix;
    int32_t b = x->by_parent[parent.lo & x->mask];
    *have = *soon = 0;
    for (int look = 0; b != NONE && look < MAX_LOOK; b = x->entries[b].right, look++) {
        const turbok_entry *e = &x->entries[b];
        if (e->extra || !same(e->parent, parent))
            continue;
        int32_t same_n = common(tokens_of(p, b), tokens, e->n < n ? e->n : n);
        if (same_n > *soon && !e->ready)
            *soon = same_n;
        if (same_n > *have && e->ready) {
            *have = same_n;
            *block = b;
        }
    }
}

int32_t turbok_kv_match(turbok_kv_pool *p, turbok_kv_table *t, const turbok_kv_key *keys,
                        const int32_t *tokens, int32_t n, int32_t plain_from, int32_t *soon)
{
    const turbok_prefix *x = p->prefix;
    int32_t bt = p->dims.block_tokens, i = 0, block = NONE, have = 0;
    *soon = 0;
    if (!x)
        return 0;
    for (; (i + 1) * (int64_t)bt <= n && i < t->cap; i++) {
        int32_t b = find_full(p, keys[i], keys[i + 1], tokens + (size_t)i * (size_t)bt);
        if (b == NONE)
            break;
        if (!x->entries[b].ready) {
            *soon = (i + 1) * bt;
            break;
        }
        take(p, t, b);
    }
    t->len = i * bt;
    if (t->len >= plain_from && !*soon && i < t->cap && t->len < n) {
        int32_t rest = n - t->len < bt ? n - t->len : bt, later;
        match_tail(p, keys[i], tokens + t->len, rest, &block, &have, &later);
        if (have)
            take(p, t, block);
        if (later > have)
            *soon = t->len + later;
        t->len += have;
    }
    if (*soon < t->len)
        *soon = t->len;
    return t->len;
}
