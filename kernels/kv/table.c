/* kernels/kv/table.c: block tables: which block holds which tokens of a sequence. */
#include <stdlib.h>

#include "internal.h"

static int32_t blocks_for(const turbok_kv_pool *p, int32_t tokens)
{
    return (int32_t)(((int64_t)tokens + p->dims.block_tokens - 1) / p->dims.block_tokens);
}

turbo_status turbok_kv_table_init(turbok_kv_table *t, const turbok_kv_pool *p, int32_t max_tokens,
                                  turbo_err *err)
{
    *t = (turbok_kv_table){0};
    if (max_tokens < 1)
        return turbok_fail(err, TURBO_EINVAL, "a block table needs room for a token");
    t->cap = blocks_for(p, max_tokens);
    t->blocks = calloc((size_t)t->cap, sizeof *t->blocks);
    if (!t->blocks)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a block table");
    return TURBO_OK;
}

void turbok_kv_table_free(turbok_kv_table *t, turbok_kv_pool *p)
{
    turbok_kv_table_truncate(t, p, 0);
    free(t->blocks);
    *t = (turbok_kv_table){0};
}

bool turbok_kv_table_reserve(turbok_kv_table *t, turbok_kv_pool *p, int32_t n_tokens)
{
    int32_t need = blocks_for(p, n_tokens);
    if (need > t->cap || need - t->n > p->n_free)
        return need <= t->n;
    while (t->n < need)
        t->blocks[t->n++] = turbok_kv_block_get(p);
    return true;
}

void turbok_kv_table_truncate(turbok_kv_table *t, turbok_kv_pool *p, int32_t n_tokens)
{
    int32_t keep = blocks_for(p, n_tokens);
    while (t->n > keep)
        turbok_kv_block_put(p, t->blocks[--t->n]);
    if (t->len > n_tokens)
        t->len = n_tokens;
}
