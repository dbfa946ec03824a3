/* core/sched/batch.c: see batch.h. */
#include "sched/batch.h"

#include <stdlib.h>
#include <string.h>

#include "util/err.h"

turbo_status turbod_batch_init(turbod_batch *b, turbok_kv_pool *pool, int32_t max_batch,
                               int32_t max_step_tokens, void *workspace, uint64_t workspace_bytes,
                               const turbod_media *media, turbo_err *err)
{
    size_t T = (size_t)max_step_tokens, B = (size_t)max_batch + 1;
    *b = (turbod_batch){.kv = {.pool = pool}, .media = media};
    if (media)
        b->embed_index = calloc(T, sizeof(int32_t));
    b->tokens = calloc(T, sizeof(int32_t));
    b->positions = calloc(T, sizeof(int32_t));
    b->cu_seqlens = calloc(B, sizeof(int32_t));
    b->kv_lens = calloc(B, sizeof(int32_t));
    b->rope_lens = calloc(B, sizeof(int32_t));
    b->row_index = calloc(B, sizeof(int32_t));
    b->tables = calloc(B, sizeof(turbok_kv_table *));
    b->rows = calloc(B, sizeof(turbod_request *));
    if (!b->tokens || !b->positions || !b->cu_seqlens || !b->kv_lens || !b->rope_lens ||
        !b->row_index || !b->tables || !b->rows || (media && !b->embed_index))
        return turbod_err(err, TURBO_ENOMEM, "no memory for a step of %d tokens", max_step_tokens);
    b->kv.tables = b->tables;
    b->b = (turbo_batch){
        .size = sizeof b->b,
        .tokens = b->tokens,
        .positions = b->positions,
        .cu_seqlens = b->cu_seqlens,
        .kv_lens = b->kv_lens,
        .rope_lens = b->rope_lens,
        .row_index = b->row_index,
        .kv = &b->kv,
        .workspace = workspace,
        .workspace_bytes = workspace_bytes,
    };
    return TURBO_OK;
}

void turbod_batch_free(turbod_batch *b)
{
    free(b->tokens);
    free(b->positions);
    free(b->cu_seqlens);
    free(b->kv_lens);
    free(b->rope_lens);
    free(b->row_index);
    free(b->tables);
    free(b->rows);
    free(b->embed_index);
    *b = (turbod_batch){0};
}

/* The rows of r's pictures among its tokens [from, from + n), which are tokens t0.. of the batch. False:
 * there are none. */
static bool put_pictures(turbod_batch *b, const turbod_request *r, int32_t from, int32_t n,
                         int32_t t0)
{
    bool some = false;
    for (int32_t i = 0; i < r->n_seen; i++) {
        const turbod_seen *s = &r->seen[i];
        int32_t lo = s->at > from ? s->at : from, hi = s->at + s->n_rows;
        hi = hi < from + n ? hi : from + n;
        for (int32_t p = lo; p < hi; p++)
            b->embed_index[t0 + p - from] =
                turbod_media_first_row(b->media, s->features) + p - s->at;
        some = some || lo < hi;
    }
    return some;
}

void turbod_batch_build(turbod_batch *b, const turbod_sched *s)
{
    int32_t t = 0, rows = 0;
    bool pictured = false;
    for (int32_t i = 0; i < s->n_items; i++) {
        turbod_request *r = s->items[i].req;
        int32_t n = s->items[i].n_new;
        b->cu_seqlens[i] = t;
        b->kv_lens[i] = r->computed + n;
        b->rope_lens[i] = r->rope_len;
        b->tables[i] = &r->table;
        for (int32_t j = 0; j < n; j++, t++) {
            b->tokens[t] = r->tokens[r->computed + j];
            b->positions[t] = r->computed + j;
            if (b->media)
                b->embed_index[t] = -1;
        }
        pictured = put_pictures(b, r, r->computed, n, t - n) || pictured;
        if (r->computed + n == r->n_tokens) { /* all known tokens computed: the next is sampled */
            b->row_index[rows] = t - 1;
            b->rows[rows++] = r;
        }
    }
    b->cu_seqlens[s->n_items] = t;
    b->b.n_tokens = t;
    b->b.n_seqs = s->n_items;
    b->b.n_rows = rows;
    b->b.embed_rows = pictured ? turbod_media_rows(b->media) : NULL;
    b->b.embed_index = pictured ? b->embed_index : NULL;
}
