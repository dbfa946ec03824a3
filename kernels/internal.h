/* kernels/internal.h: the structs behind the handles of turbok.h; for kernels/ only. */
#ifndef TURBOK_INTERNAL_H
#define TURBOK_INTERNAL_H

#include "backend.h"
#include "grid.h"
#include "pool.h"
#include "prim.h"

/* Of a local array that is written before it is read: not cleared first, as hardened builds do with locals. */
#if defined(__has_attribute)
#if __has_attribute(uninitialized)
#define TURBOK_RAW __attribute__((uninitialized))
#endif
#endif
#ifndef TURBOK_RAW
#define TURBOK_RAW
#endif

/* Scratch of one thread: what attention needs for one work item. */
typedef struct turbok_scratch {
    float *k; /* [D, 64] a chunk of keys in fp32, when the cache cannot be used in place */
    float *v; /* [64, Dp] a chunk of values, Dp = D rounded up to 64 */
    float *q; /* [TURBOK_QROWS, D] */
    float *acc; /* [Dp/64, TURBOK_QROWS, 64] weighted sums of values */
    float *s; /* [TURBOK_QROWS, 64] scores */
    float *m, *l; /* [TURBOK_QROWS] running maximum and sum */
    float *z,
        *qsum; /* [TURBOK_QROWS] of a quantised cache: weighted sum of zeros, sum of the query */
    float *
        par; /* [4, 128] scales and zeros of a chunk: of keys, of values; room for 64 from any of 64 */
    float *inv; /* [D/2] rotary frequencies of one sequence */
} turbok_scratch;

#define TURBOK_QROWS 64 /* query rows (tokens x heads) of one attention work item */
#define TURBOK_CHUNK 64 /* keys between two updates of the running softmax, on absolute positions */

struct turbo_exec {
    const turbok_prim *prim;
    turbok_pool *pool;
    turbok_scratch *scratch; /* [threads] */
    char *
        acts; /* [TURBOK_ACT_BYTES] activations on their way into a grid; of all threads together */
    void *self; /* of a backend */
};

struct turbok_device {
    struct turbo_exec exec; /* first: ops of a backend find the device by it */
    const turbok_backend *backend; /* NULL: the CPU */
    void *library; /* where it comes from */
    turbok_isa isa;
    char name[128];
    bool exact; /* grids are kept as fp32 matrices */
    int32_t scratch_dim; /* head size the scratch was made for */
    uint64_t mem[TURBOK_MEM_KINDS];
    turbok_copied copied; /* a backend counts it */
};

struct turbo_linear {
    int32_t dtype;
    int32_t reserved;
    int64_t out, in, tiles;
    void *data; /* [tiles, in, 64]; of a grid, stripes (grid.h); NULL with parts */
    float *bias; /* [tiles*64] or NULL */
    size_t data_bytes;
    turbok_tiles *grid; /* a quantised matrix, or NULL */
    turbo_linear **parts; /* [n_parts] matrices of several kinds, one below the other, or NULL */
    int32_t n_parts;
    bool mapped; /* data, bias and grid->perm lie in an image (image.c), which is somebody else's */
};

struct turbo_experts {
    turbo_moe m;
    const turbo_linear **w; /* [3n] gate, up and down of each expert; somebody else's */
    void *table; /* of a backend: what its kernels find the matrices by; or NULL */
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
    turbok_entry *entries; /* [n_blocks]; owns the memory of the arrays below too */
    int32_t *tokens; /* [n_blocks, block_tokens] */
    int32_t *by_key, *by_parent; /* [mask + 1] */
    size_t mask;
    int32_t oldest, newest, n_cached;
    turbok_kv_key secret;
} turbok_prefix;

struct turbok_kv_pool {
    turbok_device *device; /* where its memory is counted */
    turbok_kv_dims dims;
    int32_t n_blocks, n_free;
    size_t block_bytes, map_bytes;
    char *map;
    int32_t *refs; /* [n_blocks]; owns the memory of free_list too */
    int32_t *free_list; /* [n_blocks], the first n_free are free */
    turbok_prefix *prefix; /* NULL: no prefix cache */
    char *swap; /* pinned host memory [n_slots] of blocks, or NULL */
    int32_t *slots; /* [n_slots], the first n_free_slots are free */
    int32_t n_slots, n_free_slots;
};

/* 64-byte aligned memory, on huge pages when it is large; counted in the device. size: what is taken. */
size_t turbok_alloc_size(size_t bytes);
void *turbok_alloc(turbok_device *d, turbok_mem kind, size_t bytes);
void turbok_release(turbok_device *d, turbok_mem kind, void *p, size_t bytes);
#define TURBOK_BUILD                                                                               \
    __VERSION__ " turbok 10" /* to be raised when a struct here or in turbok.h changes */
/* Of matrices as they lie in memory: to be raised when tiles, stripes or turbok_tiles change, also for one instruction
 * set. Files of the old layout are not used any more. */
#define TURBOK_LAYOUT 1
/* backend.c: finds turbok-cuda.so in path and fills backend and library. */
turbo_status turbok_backend_load(const char *path, turbok_device *d, turbo_err *err);
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
/* kv/quant.c: keys and values as codes. A plane is its codes, then bf16 scales [block_tokens], then zeros.
 * INT8: K [D,block_tokens], V [block_tokens,D], one byte each. INT4: K [D/2,block_tokens], the byte of
 * dims 2i (low) and 2i+1; V [block_tokens,D/2], each tile of w = 64 dims (the last may have fewer) in
 * w/2 bytes: byte j holds dims j (low) and j + w/2. A byte belongs to one token: tokens of a sequence are
 * written by different threads. */
static inline bool turbok_kv_coded(int32_t dtype)
{
    return dtype == TURBOK_KV_INT8 || dtype == TURBOK_KV_INT4;
}
size_t turbok_kv_plane_bytes(const turbok_kv_dims *d);
void turbok_kv_code(const turbok_prim *prim, const turbok_kv_dims *d, char *plane, bool value,
                    int32_t slot, const float *in, uint8_t *tmp); /* tmp [D] */
/* Codes as numbers: dim i of the keys of n slots; the value of one slot, [D]. */
void turbok_kv_key_codes(const turbok_kv_dims *d, const char *plane, int32_t i, int32_t slot,
                         int32_t n, float *out);
void turbok_kv_value_codes(const turbok_kv_dims *d, const char *plane, int32_t slot, float *out);
/* What a slot stands for, scale * code + zero in one rounding, [D]. */
void turbok_kv_row(const turbok_kv_dims *d, const char *plane, bool value, int32_t slot,
                   float *out);
/* Scales and zeros of n slots. */
void turbok_kv_params(const turbok_prim *prim, const turbok_kv_dims *d, const char *plane,
                      int32_t slot, int32_t n, float *scale, float *zero);
/* kv/prefix.c: keep takes a block that lost its last reference, if it is worth caching; evict gives the
 * one that was used longest ago, or -1; shared: may slot not be written in place? */
uint64_t turbok_prefix_bytes(int32_t n_blocks, int32_t block_tokens);
bool turbok_prefix_keep(turbok_kv_pool *p, int32_t block);
int32_t turbok_prefix_evict(turbok_kv_pool *p);
bool turbok_prefix_shared(const turbok_kv_pool *p, int32_t block, int32_t slot);
void turbok_prefix_free(turbok_kv_pool *p);
void turbok_kv_swap_free(turbok_kv_pool *p); /* kv/swap.c */
/* grid.c: is one of the parts a grid? Then this makes the handle, and says what it takes. */
bool turbok_rows_gridded(const turbok_part *parts, int32_t n);
turbo_status turbok_rows_grid_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                  int32_t n, int64_t in, uint32_t flags, turbo_linear **w,
                                  turbo_err *err);
/* quantize.c: rows of floats to codes and scales of g's bits and group, as turbok_grid has them, on the caller's
 * thread; scratch [turbok_quantize_scratch(in)]. False: a number is not finite. quantizable: can the data of
 * part become its grid? */
size_t turbok_quantize_scratch(int64_t in);
bool turbok_quantizable(const turbok_part *part, int64_t in);
bool turbok_quantize_rows(const turbok_prim *prim, const turbok_grid *g, int32_t dtype,
                          const void *data, int64_t rows, int64_t in, void *scratch, uint8_t *codes,
                          void *scale);
/* Is the grid of a part still to be made of its data? Then coded_new makes it first, on the CPU. */
bool turbok_rows_to_code(const turbok_part *parts, int32_t n);
turbo_status turbok_rows_coded_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                   int32_t n, int64_t in, uint32_t flags, turbo_linear **w,
                                   turbo_err *err);
/* weights.c: the bias of parts, into w. */
turbo_status turbok_fill_bias(turbok_device *d, turbo_linear *w, const turbok_part *parts,
                              int32_t n);
/* nn/grid.c: linear, and out = act(gate in) * (up in) through scratch [T,2*I], when one of the matrices is
 * quantised or in parts. ld: floats between rows of out. */
static inline bool turbok_coded(const turbo_linear *w)
{
    return w->grid || w->parts;
}
void turbok_grid_linear(turbo_exec *x, const turbo_linear *w, const float *in, int64_t T,
                        int64_t ld, float *out);
void turbok_grid_gated(turbo_exec *x, const turbo_linear *gate, const turbo_linear *up, int32_t act,
                       const float *in, int64_t T, float *scratch);
/* Row of a quantised or divided table, [in]. */
void turbok_grid_embed(const turbo_linear *w, int64_t row, float *out);
/* nn/rows.c: the same of a float table. */
void turbok_float_row(const turbo_linear *w, int64_t row, float *out);
/* nn/linear.c: y = x W^T + bias of a float matrix, rows of out ld floats apart. */
void turbok_float_linear(turbo_exec *x, const turbo_linear *w, const float *in, int64_t T,
                         int64_t ld, float *out);
/* nn/rope.c: frequencies of a sequence whose RoPE length is rope_len, into inv [dim/2]. */
void turbok_rope_inv(const turbo_rope *r, int32_t rope_len, float *inv);
/* nn/turns.c: cosines and sines of n angles, each worked out in double precision. */
void turbok_turns(const float *angle, size_t n, float *cosine, float *sine);

/* The ops, one file each in nn/. */
#define OP(name, ret, args) ret turbok_op_##name args;
#include "ops.def"
#undef OP

#endif
