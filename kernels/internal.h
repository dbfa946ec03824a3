/* kernels/internal.h: the structs behind the handles of turbok.h; for kernels/ only. */
#ifndef TURBOK_INTERNAL_H
#define TURBOK_INTERNAL_H

#include "pool.h"
#include "prim.h"

/* Scratch of one thread: what attention needs for one work item. */
typedef struct turbok_scratch {
    float *k; /* [D, 64] a chunk of keys in fp32, when the cache cannot be used in place */
    float *v; /* [64, Dp] a chunk of values, Dp = D rounded up to 64 */
    float *q; /* [TURBOK_QROWS, D] */
    float *acc; /* [Dp/64, TURBOK_QROWS, 64] weighted sums of values */
    float *s; /* [TURBOK_QROWS, 64] scores */
    float *m, *l; /* [TURBOK_QROWS] running maximum and sum */
    float *inv; /* [D/2] rotary frequencies of one sequence */
} turbok_scratch;

#define TURBOK_QROWS 64 /* query rows (tokens x heads) of one attention work item */
#define TURBOK_CHUNK 64 /* keys between two updates of the running softmax, on absolute positions */

struct turbo_exec {
    const turbok_prim *prim;
    turbok_pool *pool;
    turbok_scratch *scratch; /* [threads] */
};

struct turbok_device {
    struct turbo_exec exec;
    turbo_ops ops;
    turbok_isa isa;
    char name[64];
    int32_t scratch_dim; /* head size the scratch was made for */
    uint64_t alloc_bytes;
};

struct turbo_linear {
    int32_t dtype;
    int32_t reserved;
    int64_t out, in, tiles;
    void *data; /* [tiles, in, 64] */
    float *bias; /* [tiles*64] or NULL */
    size_t data_bytes;
};

struct turbo_vector {
    int64_t n;
    float *data; /* [n] f32 */
};

struct turbo_rope {
    turbo_rope_spec spec; /* fields of a later ABI than the plugin's are 0 */
    int32_t table_len;
    float scale; /* of cos and sin; 1 except with YARN */
    float *inv; /* [dim/2] of the unscaled-by-length base */
    float *cosine; /* [table_len, dim/2] */
    float *sine;
};

/* What a block holds, by block number; n 0: nothing that anybody may find. */
typedef struct turbok_entry {
    turbok_kv_key parent, key;
    int32_t n; /* tokens */
    int32_t key_next; /* bucket of by_key */
    int32_t left, right; /* bucket of by_parent, latest first */
    int32_t older, newer; /* order of use, while the block has no reference */
    bool full, extra, ready;
} turbok_entry;

typedef struct turbok_prefix {
    turbok_entry *entries; /* [n_blocks] */
    int32_t *tokens; /* [n_blocks, block_tokens] */
    int32_t *by_key, *by_parent; /* [mask + 1] */
    size_t mask;
    int32_t oldest, newest, n_cached;
    turbok_kv_key secret;
} turbok_prefix;

struct turbok_kv_pool {
    turbok_kv_dims dims;
    int32_t n_blocks, n_free;
    size_t block_bytes, map_bytes;
    char *map;
    int32_t *refs; /* [n_blocks] */
    int32_t *free_list; /* [n_blocks], the first n_free are free */
    turbok_prefix *prefix; /* NULL: no prefix cache */
};

/* 64-byte aligned memory, on huge pages when it is large; counted in the device. */
void *turbok_alloc(turbok_device *d, size_t bytes);
void turbok_release(turbok_device *d, void *p, size_t bytes);
/* Makes the scratch fit heads of size dim. Not while ops run. */
turbo_status turbok_scratch_fit(turbok_device *d, int32_t dim, turbo_err *err);
turbo_status turbok_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* kv/pool.c: where the block of token pos keeps K [D, block_tokens] or V [block_tokens, D] of a layer
 * and head. */
char *turbok_kv_plane(const turbok_kv_pool *p, const turbok_kv_table *t, int32_t layer, bool value,
                      int32_t head, int32_t pos);
/* Writes K or V of one token and head; in [D] f32, tmp [D] floats. */
void turbok_kv_write(const turbok_prim *prim, const turbok_kv_pool *p, const turbok_kv_table *t,
                     int32_t layer, bool value, int32_t head, int32_t pos, const float *in,
                     float *tmp);
/* kv/prefix.c: keep takes a block that lost its last reference, if it is worth caching; evict gives the
 * one that was used longest ago, or -1; shared: may slot not be written in place? */
bool turbok_prefix_keep(turbok_kv_pool *p, int32_t block);
int32_t turbok_prefix_evict(turbok_kv_pool *p);
bool turbok_prefix_shared(const turbok_kv_pool *p, int32_t block, int32_t slot);
void turbok_prefix_free(turbok_kv_pool *p);
/* nn/rope.c: frequencies of a sequence whose RoPE length is rope_len, into inv [dim/2]. */
void turbok_rope_inv(const turbo_rope *r, int32_t rope_len, float *inv);

/* The ops, one file each in nn/. */
#define OP(name, ret, args) ret turbok_op_##name args;
#include "ops.def"
#undef OP

#endif
