/* core/engine/tools.c: a forward pass without sampling, for tools.
 * Caller's thread, with the engine thread kept out by step_mu. */
#include <stdlib.h>
#include <string.h>

#include "engine/state.h"
#include "util/err.h"

/* One chunk of ids at position `done`; wants the logits of the last `rows` tokens of it. */
static turbo_status run_chunk(turbod_engine *e, turbok_kv_table *table, const int32_t *ids,
                              int32_t done, int32_t n, int32_t total, int32_t rows, float *logits,
                              turbo_err *err)
{
    turbod_batch *b = &e->batch;
    if (!turbok_kv_table_reserve(table, e->pool, done + n))
        return turbod_err(err, TURBO_EBUSY, "no KV blocks are free; try again when idle");
    for (int32_t i = 0; i < n; i++) {
        b->tokens[i] = ids[done + i];
        b->positions[i] = done + i;
    }
    for (int32_t i = 0; i < rows; i++)
        b->row_index[i] = n - rows + i;
    b->cu_seqlens[0] = 0;
    b->cu_seqlens[1] = n;
    b->kv_lens[0] = done + n;
    b->rope_lens[0] = total;
    b->tables[0] = table;
    b->b.n_tokens = n;
    b->b.n_seqs = 1;
    b->b.n_rows = rows;
    turbo_status st = turbod_engine_forward(e, &b->b, NULL, logits, err);
    if (!st)
        st = turbok_step_wait(e->device, NULL, rows, err);
    table->len = done + n;
    return st;
}

turbo_status turbod_engine_logits(turbod_engine *e, const int32_t *ids, int32_t n, bool all,
                                  float *logits, turbo_err *err)
{
    if (n < 1 || n > e->facts.session_len)
        return turbod_err(err, TURBO_ELIMIT, "%d tokens given; 1 to session_len %d are possible", n,
                          e->facts.session_len);
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= e->facts.model.vocab)
            return turbod_err(err, TURBO_EINVAL, "token id %d is not in 0..%d", ids[i],
                              e->facts.model.vocab - 1);
    turbok_kv_table table = {0};
    turbo_status st = turbok_kv_table_init(&table, e->pool, n, err);
    if (st)
        return st;
    turbod_visit(e);
    if (atomic_load(&e->failed))
        st = turbod_err(err, TURBO_EBUSY, "the engine has failed; the server needs a restart");
    else if (!turbod_engine_idle(e))
        st = turbod_err(err, TURBO_EBUSY, "requests are running; try again when idle");
    int32_t most = all ? e->max_batch : e->max_step_tokens;
    for (int32_t done = 0; !st && done < n;) {
        int32_t chunk = n - done < most ? n - done : most;
        bool last = done + chunk == n;
        int32_t rows = all ? chunk : last ? 1 : 0;
        float *to = all ? logits + (size_t)done * (size_t)e->facts.model.vocab : logits;
        st = run_chunk(e, &table, ids, done, chunk, n, rows, to, err);
        done += chunk;
    }
    turbok_kv_table_free(&table, e->pool);
    turbod_leave(e);
    return st;
}
