/* tests/cuda/test_far.c: rows and KV blocks behind the first 2^31 elements and 2^32 bytes are found like the first
 * ones: each kernel works on a near and on a far place with the same content and must give the same bits. The
 * driver of the build maps such memory without filling it; only the few pages that are touched exist. */
#include "dev.h"

#define E 1024
#define FAR_ROWS ((int64_t)2200000) /* times E: above 2^31 elements */

/* Memory that dev_drop would read and fill: taken and given back here. */
static char *far_new(size_t bytes)
{
    turbok_cu_ptr p = 0;
    if (dev->drv.mem_alloc(&p, bytes)) {
        dev_fail("no %zu bytes", bytes);
        exit(dev_end());
    }
    return (char *)(uintptr_t)p;
}

static void far_free(char *p)
{
    turbo_err err = {""};
    if (turbok_cu_wait(dev, &err))
        dev_fail("%s", err.text);
    dev->drv.mem_free(turbok_cu_at(p));
}

static void same(const char *what, const void *device, size_t n)
{
    unsigned char *got = malloc(2 * n);
    bool zero = true;
    dev_get(device, got, 2 * n);
    for (size_t i = 0; i < n; i++) {
        dev_near(what, i, got[n + i], got[i], 0);
        zero = zero && !got[i];
    }
    if (zero)
        dev_fail("%s: nothing but zeros", what);
    free(got);
}

static void rows(int32_t act)
{
    static float x[E];
    size_t row = E * turbok_dtype_size(act);
    const int32_t at[2] = {3, (int32_t)FAR_ROWS - 1};
    char *table = far_new((size_t)FAR_ROWS * row);
    void *content = dev_numbers(act, E, 1, x), *out = dev_new(2 * row, NULL);
    for (int i = 0; i < 2; i++)
        turbok_cu_note(dev,
                       dev->drv.copy_on_device(turbok_cu_at(table) + (uint64_t)at[i] * row,
                                               turbok_cu_at(content), row, dev->stream),
                       "copy");
    const int32_t *index = dev_new(sizeof at, at);
    turbok_cu_batch b = {.tokens = index, .T = 2, .S = 1};
    turbok_cu_embed(dev, act, table, act, E, &b, out);
    same("embed", out, row);
    void *moved = dev_new(2 * row, NULL);
    turbok_cu_gather(dev, act, table, index, 2, E, moved);
    same("gather", moved, row);
    far_free(table);
    dev_drop();
}

/* Two sequences of two tokens with the same keys and values, one in block 1, one in a far block. */
static void cache(int32_t act, int32_t type)
{
    enum { D = 64, H = 2, K = 1, BT = 16, WIDTH = (H + 2 * K) * D };
    static float x[2 * WIDTH];
    const turbok_kv_dims dims = {2, K, D, BT, type};
    uint64_t block = turbok_kv_block_bytes(&dims);
    const int32_t far_block = (int32_t)(((uint64_t)5 << 30) / block);
    const int32_t tokens[4] = {0}, positions[] = {0, 1, 0, 1}, cu[] = {0, 2, 4};
    const int32_t seq_of[] = {0, 0, 1, 1}, lens[] = {2, 2}, tables[] = {1, far_block};
    size_t es = turbok_dtype_size(act), row = WIDTH * es;
    char *base = far_new((size_t)(far_block + 1) * block);
    void *one = dev_numbers(act, 2 * WIDTH, 1, x);
    char *qkv = dev_new(4 * row, NULL);
    for (int i = 0; i < 2; i++)
        turbok_cu_note(dev,
                       dev->drv.copy_on_device(turbok_cu_at(qkv) + (size_t)i * 2 * row,
                                               turbok_cu_at(one), 2 * row, dev->stream),
                       "copy");
    turbok_cu_attn at = {.kv = {.base = base,
                                .block_bytes = block,
                                .plane_bytes = turbok_kv_plane_bytes(&dims),
                                .block_tokens = BT,
                                .n_kv = K,
                                .head_dim = D,
                                .dtype = type},
                         .layer = 1,
                         .n_heads = H,
                         .scale = 0.125f,
                         .rope_scale = 1};
    turbok_cu_batch b = {.tokens = dev_new(sizeof tokens, tokens),
                         .positions = dev_new(sizeof positions, positions),
                         .cu_seqlens = dev_new(sizeof cu, cu),
                         .seq_of = dev_new(sizeof seq_of, seq_of),
                         .kv_lens = dev_new(sizeof lens, lens),
                         .rope_lens = dev_new(sizeof lens, lens),
                         .tables = dev_new(sizeof tables, tables),
                         .table_stride = 1,
                         .T = 4,
                         .S = 2,
                         .max_new = 2,
                         .max_kv = 2};
    uint64_t bytes = turbok_cu_attention_bytes(4, 2, H, D, BT);
    void *q = dev_new(4 * H * D * es, NULL), *out = dev_new(4 * H * D * es, NULL);
    char *scratch = dev_new(bytes, NULL);
    turbok_cu_fill(dev, turbok_cu_at(scratch), 0, bytes);
    turbok_cu_rope_store(dev, act, &at, &b, qkv, q);
    for (int v = 0; v < 2; v++) { /* two slots of K, then of V */
        char *pair = dev_new(2 * at.kv.plane_bytes, NULL);
        for (int i = 0; i < 2; i++)
            turbok_cu_note(
                dev,
                dev->drv.copy_on_device(turbok_cu_at(pair) + (uint64_t)i * at.kv.plane_bytes,
                                        turbok_cu_at(base) + (uint64_t)tables[i] * block +
                                            (uint64_t)(2 + v) * at.kv.plane_bytes,
                                        at.kv.plane_bytes, dev->stream),
                "copy");
        same("stored", pair, at.kv.plane_bytes);
    }
    turbok_cu_attention(dev, act, &at, &b, q, out, scratch, bytes);
    same("attention", out, 2 * H * D * es);
    /* One token more: kernels for steps that only decode. */
    b.max_new = 1;
    b.T = 2;
    const int32_t ones[] = {0, 1, 2}, second[] = {1, 1}, each[] = {0, 1};
    b.cu_seqlens = dev_new(sizeof ones, ones);
    b.positions = dev_new(sizeof second, second);
    b.seq_of = dev_new(sizeof each, each);
    void *pair = dev_new(2 * H * D * es, NULL);
    for (int i = 0; i < 2; i++)
        turbok_cu_note(dev,
                       dev->drv.copy_on_device(turbok_cu_at(pair) + (size_t)i * H * D * es,
                                               turbok_cu_at(q), H * D * es, dev->stream),
                       "copy");
    turbok_cu_attention(dev, act, &at, &b, pair, out, scratch, bytes);
    same("attention of one", out, H * D * es);
    far_free(base);
    dev_drop();
}

int main(void)
{
    setenv("FAKECUDA_MEMORY", "68719476736", 1);
    dev_begin("far");
    for (int i = 0; i < 3; i++) {
        int32_t act = dev_act(i);
        rows(act);
        cache(act, act);
        cache(act, TURBOK_KV_INT8);
        cache(act, TURBOK_KV_INT4);
    }
    return dev_end();
}
