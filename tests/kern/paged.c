/* tests/kern/paged.c: see paged.h. */
#include "paged.h"

void paged_random(kit_rng *r, paged_shape *s)
{
    static const int32_t heads[] = {1, 2, 3}, groups[] = {1, 2, 3, 5, 8, 70};
    static const int32_t dims[] = {2, 4, 16, 24, 64, 72, 80, 128, 192};
    static const int32_t blocks[] = {8, 16, 24, 40, 64, 128}, windows[] = {0, 0, 1, 7, 64, 65, 100};
    static const int32_t types[] = {TURBO_F32, TURBO_F16, TURBO_BF16, TURBOK_KV_INT8,
                                    TURBOK_KV_INT4};
    *s = (paged_shape){.S = kit_range(r, 1, PAGED_SEQS), .layers = 2};
    s->K = kit_pick(r, heads);
    s->H = s->K * kit_pick(r, groups);
    s->D = kit_pick(r, dims);
    s->layer = kit_range(r, 0, 1);
    s->block_tokens = kit_pick(r, blocks);
    s->dtype = kit_pick(r, types);
    s->layout = kit_range(r, 0, 1);
    s->window = kit_pick(r, windows);
    s->rotate = kit_range(r, 0, 7) != 0;
    s->scale = 1.0f / (float)kit_range(r, 1, 8);
    s->rope = (turbo_rope_spec){.size = sizeof s->rope, .style = kit_range(r, 0, 1),
                                .scaling = kit_range(r, 0, 2), .max_position = 64, .factor = 1,
                                .base = kit_range(r, 0, 1) ? 10000.0 : 1e6};
    s->rope.dim = 2 * kit_range(r, 1, s->D / 2);
    if (s->rope.scaling != TURBO_ROPE_PLAIN)
        s->rope.factor = (float)kit_range(r, 1, 4);
    for (int32_t i = 0; i < s->S; i++) {
        s->history[i] = kit_range(r, 0, 2) ? kit_range(r, 0, 180) : 0;
        s->fresh[i] = kit_range(r, 0, 2) ? kit_range(r, 1, 40) : 1;
        s->rope_len[i] = s->history[i] + s->fresh[i];
    }
}

int32_t paged_row(const paged_shape *s)
{
    return (s->H + 2 * s->K) * s->D;
}

int32_t paged_total(const paged_shape *s)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->S; i++)
        n += s->fresh[i];
    return n;
}

void paged_fill(kit_rng *r, const paged_shape *s, paged_data *data)
{
    for (int32_t i = 0; i < s->S; i++) {
        size_t n = (size_t)(s->history[i] + s->fresh[i]) * (size_t)paged_row(s);
        data->qkv[i] = malloc(n * sizeof(float));
        assert_non_null(data->qkv[i]);
        kit_floats(r, data->qkv[i], n);
    }
    for (int32_t i = s->S; i < PAGED_SEQS; i++)
        data->qkv[i] = NULL;
}

void paged_free(paged_data *data)
{
    for (int i = 0; i < PAGED_SEQS; i++)
        free(data->qkv[i]);
}

/* Takes all free blocks and puts them back in a random order. */
static void shuffle(turbok_kv_pool *p, kit_rng *r)
{
    int32_t n = turbok_kv_pool_free_count(p), *b = malloc((size_t)n * sizeof *b);
    assert_non_null(b);
    for (int32_t i = 0; i < n; i++)
        b[i] = turbok_kv_block_get(p);
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t k = kit_range(r, 0, i), t = b[i];
        b[i] = b[k];
        b[k] = t;
    }
    for (int32_t i = 0; i < n; i++)
        turbok_kv_block_put(p, b[i]);
    free(b);
}

void paged_open(paged *p, const paged_shape *s, const paged_data *data, turbok_device *d, kit_rng *r)
{
    turbo_err err = {{0}};
    *p = (paged){.shape = s, .d = d};
    const turbok_kv_dims dims = {s->layers, s->K, s->D, s->block_tokens, s->dtype};
    int32_t blocks = 3; /* that stay unused */
    for (int32_t i = 0; i < s->S; i++)
        blocks += (s->history[i] + s->fresh[i]) / s->block_tokens + 1;
    assert_int_equal(turbok_kv_pool_new(d, &dims, blocks, &p->pool, &err), 0);
    memset(p->pool->map, 0xff, p->pool->map_bytes);
    shuffle(p->pool, r);
    for (int32_t i = 0; i < s->S; i++) {
        int32_t n = s->history[i] + s->fresh[i];
        assert_int_equal(turbok_kv_table_init(&p->table[i], p->pool, n, &err), 0);
        assert_true(turbok_kv_table_reserve(&p->table[i], p->pool, n));
        p->tables[i] = &p->table[i];
    }
    if (s->rotate)
        assert_int_equal(turbok_rope_new(d, &s->rope, &p->rope, &err), 0);
    p->kv = (struct turbo_kv){p->pool, p->tables};
    p->attn = (turbo_attn){.size = sizeof p->attn, .layer = s->layer, .n_heads = s->H, .n_kv = s->K,
                           .head_dim = s->D, .layout = s->layout, .window = s->window,
                           .scale = s->scale, .rope = p->rope};
    /* History in pieces of up to 40 tokens of each sequence. */
    int32_t from[PAGED_SEQS] = {0}, to[PAGED_SEQS], most = 0;
    for (int32_t i = 0; i < s->S; i++)
        most = s->history[i] > most ? s->history[i] : most;
    size_t room = 40 * (size_t)s->S;
    float *qkv = malloc(room * (size_t)paged_row(s) * sizeof *qkv);
    float *q = malloc(room * (size_t)s->H * (size_t)s->D * sizeof *q);
    assert_true(qkv && q);
    for (int32_t done = 0; done < most; done += 40) {
        int32_t T = 0;
        for (int32_t i = 0; i < s->S; i++) {
            int32_t end = done + 40 < s->history[i] ? done + 40 : s->history[i];
            from[i] = done < s->history[i] ? done : s->history[i];
            to[i] = end > from[i] ? end : from[i];
            T += to[i] - from[i];
        }
        if (!T)
            break;
        paged_batch(p, data, from, to, qkv);
        turbok_device_ops(d)->qkv_rope_store(turbok_device_exec(d), &p->attn, &p->batch, qkv, q);
    }
    free(qkv);
    free(q);
}

void paged_batch(paged *p, const paged_data *data, const int32_t *from, const int32_t *to,
                 float *qkv)
{
    const paged_shape *s = p->shape;
    size_t row = (size_t)paged_row(s);
    int32_t T = 0, S = 0;
    /* Sequences with nothing new are left out, as the engine leaves them out. */
    for (int32_t i = 0; i < s->S; i++) {
        if (from[i] == to[i])
            continue;
        p->tables[S] = &p->table[i];
        p->cu[S] = T;
        p->kv_lens[S] = to[i];
        p->rope_lens[S] = s->rope_len[i];
        for (int32_t t = from[i]; t < to[i]; t++, T++) {
            assert_in_range(T, 0, PAGED_TOKENS - 1);
            p->positions[T] = t;
            memcpy(qkv + (size_t)T * row, data->qkv[i] + (size_t)t * row, row * sizeof *qkv);
        }
        S++;
    }
    p->cu[S] = T;
    p->batch = (turbo_batch){.size = sizeof p->batch, .n_tokens = T, .n_seqs = S,
                             .positions = p->positions, .cu_seqlens = p->cu,
                             .kv_lens = p->kv_lens, .rope_lens = p->rope_lens, .kv = &p->kv};
}

void paged_verify(const paged *p)
{
    const turbok_kv_pool *pool = p->pool;
    for (int32_t b = 0; b < pool->n_blocks; b++) {
        if (pool->refs[b])
            continue;
        const unsigned char *m = (const unsigned char *)pool->map + (size_t)b * pool->block_bytes;
        for (size_t i = 0; i < pool->block_bytes; i++)
            if (m[i] != 0xff)
                fail_msg("byte %zu of free block %d was written", i, b);
    }
}

void paged_close(paged *p)
{
    for (int32_t i = 0; i < p->shape->S; i++)
        turbok_kv_table_free(&p->table[i], p->pool);
    assert_int_equal(turbok_kv_pool_free_count(p->pool), turbok_kv_pool_total(p->pool));
    turbok_rope_free(p->d, p->rope);
    turbok_kv_pool_free(p->pool);
}
