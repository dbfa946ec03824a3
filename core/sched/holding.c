/* core/sched/holding.c: see holding.h. */
#include "sched/holding.h"

#include "engine/media.h"

static int32_t block_tokens(const turbok_kv_pool *p)
{
    return turbok_kv_pool_block_tokens(p);
}

/* Does a picture reach into tokens [from, to)? */
static bool pictured(const turbod_request *r, int32_t from, int32_t to)
{
    for (int32_t i = 0; i < r->n_seen; i++)
        if (r->seen[i].at < to && r->seen[i].at + r->seen[i].n_rows > from)
            return true;
    return false;
}

/* Where the text has no more pictures. */
static int32_t plain_from(const turbod_request *r)
{
    return r->n_seen ? r->seen[r->n_seen - 1].at + r->seen[r->n_seen - 1].n_rows : 0;
}

/* What block i depends on beside its tokens: which pictures reach into it, and where. parent makes it
 * a keyed hash. */
static turbok_kv_key pictures_of(const turbod_request *r, int32_t from, int32_t to,
                                 turbok_kv_key parent)
{
    turbok_hash h;
    turbok_hash_init(&h, parent);
    for (int32_t i = 0; i < r->n_seen; i++) {
        const turbod_seen *s = &r->seen[i];
        if (s->at >= to || s->at + s->n_rows <= from)
            continue;
        int32_t place = s->at - from;
        turbok_hash_add(&h, &place, sizeof place);
        turbok_hash_add(&h, turbod_media_digest(s->features), 32);
    }
    return turbok_hash_end(&h);
}

/* Names blocks as far as n tokens fill them. */
static void name_to(turbod_request *r, const turbok_kv_pool *p, int32_t n)
{
    int32_t bt = block_tokens(p);
    for (; r->n_keys <= n / bt; r->n_keys++) {
        int32_t from = (r->n_keys - 1) * bt;
        turbok_kv_key parent = r->keys[r->n_keys - 1], extra;
        bool has = pictured(r, from, from + bt);
        if (has)
            extra = pictures_of(r, from, from + bt, parent);
        r->keys[r->n_keys] = turbok_kv_chain(p, parent, r->tokens + (size_t)from,
                                             has ? &extra : NULL, has ? sizeof extra : 0);
    }
}

void turbod_holding_name(turbod_request *r, const turbok_kv_pool *p)
{
    r->n_keys = 1;
    name_to(r, p, r->n_prompt);
}

int32_t turbod_holding_find(turbod_request *r, turbok_kv_pool *p)
{
    int32_t soon;
    name_to(r, p, r->n_tokens - 1);
    r->computed =
        turbok_kv_match(p, &r->table, r->keys, r->tokens, r->n_tokens - 1, plain_from(r), &soon);
    if (r->kept > r->computed) { /* whole blocks come from there, none is shared in part */
        r->computed = r->computed / block_tokens(p) * block_tokens(p);
        turbok_kv_table_truncate(&r->table, p, r->computed);
    }
    r->published = r->computed / block_tokens(p);
    int32_t have = r->kept > r->computed ? r->kept : r->computed;
    return soon > have ? soon - have : 0;
}

static void publish_full(turbod_request *r, turbok_kv_pool *p, int32_t i, bool ready)
{
    int32_t bt = block_tokens(p);
    turbok_kv_publish(p, r->table.blocks[i], r->keys[i], &r->keys[i + 1],
                      r->tokens + (size_t)i * (size_t)bt, bt, pictured(r, i * bt, (i + 1) * bt),
                      ready);
}

static void publish_tail(turbod_request *r, turbok_kv_pool *p, int32_t n, bool ready)
{
    int32_t bt = block_tokens(p), i = n / bt;
    if (n % bt &&
        !pictured(r, i * bt, n)) /* what begins with a picture is found by whole blocks only */
        turbok_kv_publish(p, r->table.blocks[i], r->keys[i], NULL,
                          r->tokens + (size_t)i * (size_t)bt, n % bt, false, ready);
}

void turbod_holding_announce(turbod_request *r, turbok_kv_pool *p)
{
    int32_t full = r->n_tokens / block_tokens(p);
    name_to(r, p, r->n_tokens);
    for (int32_t i = r->published; i < full; i++)
        publish_full(r, p, i, false);
    publish_tail(r, p, r->n_tokens, false);
    r->announced = r->n_tokens;
}

void turbod_holding_advance(turbod_request *r, turbok_kv_pool *p, int32_t n)
{
    int32_t bt = block_tokens(p);
    if (n / bt > r->published) {
        name_to(r, p, n);
        for (; r->published < n / bt; r->published++)
            publish_full(r, p, r->published, true);
    }
    /* The end of the prompt is where a second answer to it, or a dialogue's next turn, begins. */
    if (n == r->announced)
        publish_tail(r, p, n, true);
}

bool turbod_holding_keep(turbod_request *r, turbok_kv_pool *p)
{
    int32_t bt = block_tokens(p), n = (r->computed + bt - 1) / bt;
    if (turbok_kv_swap_vacant(p) < n)
        return false;
    for (; r->n_slots < n; r->n_slots++)
        r->slots[r->n_slots] = turbok_kv_swap_out(p, r->table.blocks[r->n_slots]);
    r->kept = r->computed;
    return true;
}

int32_t turbod_holding_fetch(turbod_request *r, turbok_kv_pool *p)
{
    int32_t n = 0;
    if (r->kept > r->computed) {
        for (int32_t i = r->computed / block_tokens(p); i < r->n_slots; i++, n++)
            turbok_kv_swap_in(p, r->slots[i], r->table.blocks[i]);
        r->computed = r->table.len = r->kept; /* found by others when the next step has landed */
    }
    turbod_holding_forget(r, p);
    return n;
}

void turbod_holding_forget(turbod_request *r, turbok_kv_pool *p)
{
    while (r->n_slots)
        turbok_kv_swap_put(p, r->slots[--r->n_slots]);
    r->kept = 0;
}

void turbod_holding_release(turbod_request *r, turbok_kv_pool *p)
{
    if (r->table.n && r->table.len == r->computed)
        publish_tail(r, p, r->computed, true);
    turbok_kv_table_truncate(&r->table, p, 0);
    r->computed = r->published = 0;
}

void turbod_holding_taint(turbod_request *r, turbok_kv_pool *p)
{
    for (int32_t i = 0; i < r->table.n; i++)
        turbok_kv_withdraw(p, r->table.blocks[i]);
    turbok_kv_table_truncate(&r->table, p, 0);
    r->computed = r->published = 0;
}
