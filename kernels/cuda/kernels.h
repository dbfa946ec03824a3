/* kernels/cuda/kernels.h: what host and kernels agree on: the argument of each kernel, one struct
 * turbok_cu_<name>_args, passed by value. Read by nvcc, by g++ (hostrun) and by the C compiler.
 * Pointers are addresses of device memory. Indices that multiply T, rows, V or blocks are 64 bits wide. */
#ifndef TURBOK_CUDA_KERNELS_H
#define TURBOK_CUDA_KERNELS_H

#include <stdint.h>

#include "cuda/args_q.h"

/* Inputs of a step, in fixed device buffers that are filled once a step, so that a captured graph can be
 * replayed. A graph runs for a bucket of T tokens, S sequences and R rows of which the last ones may be
 * padding: then seq_of[t] is -1 (nothing is stored for the token, its rows are zero or anything finite),
 * kv_lens[s] is 0 (attention gives zeros), row_index[r] is 0, tokens and positions are 0. */
typedef struct turbok_cu_batch {
    const int32_t *tokens; /* [T]; ~r: what row r of the step before drew */
    const int32_t
        *drawn; /* [rows of the step before] or -1, after an error; NULL without such tokens */
    const int32_t *positions; /* [T] */
    const int32_t *cu_seqlens; /* [S+1]; of padding: as the one before */
    const int32_t *seq_of; /* [T] sequence of each token, -1: padding */
    const int32_t *kv_lens; /* [S] */
    const int32_t *rope_lens; /* [S] */
    const int32_t *row_index; /* [R] */
    const int32_t *embed_index; /* [T] row of embed_rows or -1; NULL: no such rows */
    const void *embed_rows; /* [*,E] act */
    const int32_t *tables; /* [S][table_stride] blocks of each sequence */
    int64_t table_stride;
    int32_t T, S, R;
    int32_t max_new; /* longest cu_seqlens[s+1] - cu_seqlens[s]; 1: a step that only decodes */
    int32_t max_kv; /* no kv_lens[s] is larger; of a graph: the longest a sequence can be */
    int32_t reserved;
} turbok_cu_batch;

/* KV blocks. The plane of block b, layer l, K (0) or V (1), head h begins at
 * base + b * block_bytes + ((l * 2 + v) * n_kv + h) * plane_bytes; layout in a plane: doc/kernels.md. */
typedef struct turbok_cu_kv {
    char *base;
    uint64_t block_bytes, plane_bytes;
    int32_t block_tokens, n_kv, head_dim;
    int32_t dtype; /* TURBO_F32, _F16, _BF16, TURBOK_KV_INT8 (0x108), TURBOK_KV_INT4 (0x104) */
} turbok_cu_kv;

/* One attention layer, as turbo_attn; rotary fields as turbo_rope_spec. */
typedef struct turbok_cu_attn {
    turbok_cu_kv kv;
    int32_t layer, n_heads, layout, window; /* TURBO_QKV_*; window 0: none */
    float scale;
    int32_t rope_dim; /* 0: no rotation */
    int32_t rope_style; /* TURBO_ROPE_HALF, _INTERLEAVED */
    int32_t rope_table; /* positions 0 .. rope_table-1 are in the table */
    const float *cosine, *sine; /* [rope_table][rope_dim/2], rope_scale included */
    const float *inv; /* [rope_dim/2] frequencies for other positions */
    float rope_scale; /* of cos and sin */
    float rope_factor; /* of a base that depends on the length (dynamic): 0: it does not */
    double rope_base;
    int32_t rope_max; /* dynamic: sequences with rope_len above it get base *
                         (factor*rope_len/rope_max - (factor-1))^(dim/(dim-2)) and no table */
    int32_t reserved;
} turbok_cu_attn;

/* Reads n * 16 bytes and writes almost nothing: what the memory gives. */
struct turbok_cu_read_memory_args {
    const void *in; /* [n] of 16 bytes */
    uint32_t *out; /* written when the sum of all words is 1 */
    int64_t n;
};

struct turbok_cu_random_numbers_args { /* about normal numbers, the same for the same seed */
    void *out; /* [n] of dtype */
    int64_t n;
    float scale;
    int32_t dtype;
    uint32_t seed, reserved;
};

/* What launchers in ops.h pass on; see there for shapes and meaning. */
struct turbok_cu_embed_args {
    const void *table; /* [V,E] of dtype */
    turbok_cu_batch b;
    void *out; /* [T,E] act */
    int64_t E;
    int32_t dtype, reserved;
};
struct turbok_cu_resolve_args {
    turbok_cu_batch b;
    int32_t *tokens; /* [T] those of b, which become ids */
};
struct turbok_cu_rmsnorm_args { /* one block a row; bias: LayerNorm */
    void *h; /* [T,E] act */
    const void *delta; /* [T,E] act or NULL */
    const float *w, *bias; /* [E]; bias NULL: RMSNorm */
    void *out; /* [T,E] act */
    int64_t E;
    float eps;
    int32_t reserved;
};
enum { TURBOK_CU_NORM_ROWS = 768 }; /* threads of rmsnorm_rows at most, 8 numbers each */
struct turbok_cu_gather_args { /* one block a row */
    const void *in; /* [*,E] act */
    const int32_t *index; /* [R] */
    void *out; /* [R,E] act */
    int64_t E;
};
struct turbok_cu_activate_args {
    const void *gate, *up; /* [n] act; up NULL: no product */
    void *out;
    const float *bias; /* [width] of gate, or NULL; not with up */
    int64_t n, width;
    int32_t fn, reserved; /* TURBO_ACT_* */
};
struct turbok_cu_add_args {
    void *h; /* [n] act */
    const void *delta;
    int64_t n;
};
struct turbok_cu_add_bias_args {
    void *y; /* [n / out, out] act */
    const float *bias; /* [out] */
    int64_t n, out;
};
struct turbok_cu_add_gated_args { /* one block a row: h += sigmoid(in . w) * delta */
    void *h; /* [T,E] act */
    const void *delta, *in; /* [T,E] act */
    const float *w; /* [E] */
    int64_t E;
};
struct turbok_cu_head_norm_args { /* one warp a head */
    void *qkv; /* [T,(H+2K)*D] act */
    const float *q, *k; /* [D] */
    int64_t heads; /* T * (H + K) */
    int32_t H, K, D;
    int32_t groups; /* of H/groups queries, K/groups keys and as many values */
    float eps;
    int32_t reserved;
};
struct turbok_cu_patches_args {
    const uint8_t *pixels; /* [N,height,width,3] */
    const float *value; /* [3,256] */
    void *out; /* [N,rows * cols,3*size*size] act */
    int64_t n; /* elements of out */
    int32_t height, width, size, rows, cols, reserved;
};
struct turbok_cu_position_rows_args {
    const void *in; /* [N,P,E] act */
    const float *first, *position; /* [E], [1+P,E] */
    void *out; /* [N,1+P,E] act */
    int64_t n, P, E; /* n elements of out */
};
struct turbok_cu_rope_store_args {
    turbok_cu_attn at;
    turbok_cu_batch b;
    const void *qkv; /* [T,(H+2K)*D] act */
    void *q; /* [T,H,D] act */
    int32_t per_block; /* heads of one block */
    int32_t reserved;
};
struct turbok_cu_attend_args { /* any type and head size: one block a token and head */
    turbok_cu_attn at;
    turbok_cu_batch b;
    const void *q; /* [T,H,D] act */
    void *out; /* [T,H,D] act */
};
/* A partial result of a head: [D] numbers, the largest score, the sum of weights, and room to a multiple of 16 bytes. */
enum { TURBOK_CU_PARTIAL_TAIL = 4 };
enum {
    TURBOK_CU_DECODE_BLOCKS = 2, /* of a multiprocessor */
    TURBOK_CU_DECODE_CREW = 8 /* of a cluster */
};
struct turbok_cu_decode_args { /* one new token a sequence; sequences with more are left alone */
    turbok_cu_attn at;
    turbok_cu_batch b;
    const void *q; /* [T,H,D] act */
    void *out; /* [T,H,D] act */
    /* [slots][8][D + TURBOK_CU_PARTIAL_TAIL]: of each block the piece that goes on from another one, then of each
     * the piece that goes on in another one */
    float *partial;
    uint32_t *arrived; /* [S * K * tiles of 8 heads], 0 before and after */
    int32_t slots; /* 0: every sequence and KV head in one piece */
    int32_t block_shift; /* log2 of block_tokens; -1: no power of two */
};
/* The same from the product of queries, keys and values on, with RoPE and the KV write: decode_turned.cuh. */
enum {
    TURBOK_CU_TURNED_WARPS = 8,
    TURBOK_CU_TURNED_KEYS = 16, /* of a warp */
    TURBOK_CU_TURNED_HEADS = 8, /* query heads of a cluster */
    TURBOK_CU_TURNED_MOST = TURBOK_CU_TURNED_WARPS * TURBOK_CU_TURNED_KEYS * TURBOK_CU_DECODE_CREW,
    /* A bound of threads that leaves it 112 registers: beside a product with TURBOK_CU_ROOMY there is room for a block. */
    TURBOK_CU_TURNED_ROOMY = 576
};
/* Bytes between rows of keys, and of values, in shared memory. */
#define TURBOK_CU_TURNED_KEY_ROW(D) ((D)*2 + 64)
#define TURBOK_CU_TURNED_VALUE_ROW(D) ((D)*2 + 16)
struct turbok_cu_turned_args {
    turbok_cu_attn at;
    turbok_cu_batch b;
    const void *qkv; /* [T,(H+2K)*D] act */
    void *q; /* [T,H,D] act: turned */
    void *out; /* [T,H,D] act */
};
/* What the copy unit knows of a matrix; made by the driver. */
typedef struct turbok_cu_map {
    uint64_t opaque[16];
} __attribute__((aligned(64))) turbok_cu_map;
struct turbok_cu_prefill_args { /* sequences with more than `shortest` new tokens */
    turbok_cu_attn at;
    turbok_cu_batch b;
    const void *q; /* [T,H,D] act */
    void *out; /* [T,H,D] act */
    int32_t shortest;
    int32_t block_shift; /* log2 of block_tokens; -1: no power of two */
    /* prefill_wide: all blocks as rows [head_dim], in boxes of so many (0: there is no map); rows of a block, of a plane. */
    turbok_cu_map map;
    int32_t map_rows, map_block, map_plane, reserved;
};
/* Of prefill_wide: threads, keys of a tile, tiles of keys and of values in shared memory; of many keys. */
enum { TURBOK_CU_WIDE_THREADS = 384, TURBOK_CU_WIDE_KEYS = 64, TURBOK_CU_WIDE_STAGES = 4 };
enum { TURBOK_CU_LONG_KEYS = 128, TURBOK_CU_LONG_STAGES = 3 };
enum { TURBOK_CU_TOWER_WARPS = 4 }; /* of a block of tower.cu, 16 rows each */
struct turbok_cu_attend_full_args {
    const void *qkv; /* [N,T,3,H,D] act */
    void *out; /* [N,T,H,D] act */
    int32_t T, H, D;
    float scale;
};
struct turbok_cu_multiply_any_args { /* y = x W^T + bias for any sizes and types */
    const void *w; /* [out,in] of w_dtype */
    const float *bias; /* [out] or NULL */
    const void *x; /* [T,in] act */
    void *y; /* [T,out] of out_dtype */
    int64_t out, in;
    int32_t T, w_dtype, out_dtype, reserved;
};
struct turbok_cu_multiply_args { /* types of weights and x are the kernel's; in % 8 == 0, < 2^30 */
    const void *w, *up; /* [out,in]; up: y = fn(w x) * (up x) */
    const float *bias; /* [out] or NULL; not with up */
    const void *x; /* [T,in] */
    void *y; /* [T,out] of out_dtype */
    void *
        h; /* [T,out] act, to which the product is added as well; or NULL. Of the kernels *_beside */
    const float *norm; /* [in]: x is multiplied after RMSNorm with these; or NULL. The same */
    float eps;
    int32_t out, in, T, out_dtype, fn;
};
/* What a product of few rows does besides, with the bits that rmsnorm would give. */
typedef struct turbok_cu_beside {
    void *h; /* [T,out] act: the product is added to it; or NULL */
    const float *norm; /* [in]: x is rows that RMSNorm with these weights comes before; or NULL */
    float eps;
} turbok_cu_beside;
enum { TURBOK_CU_BESIDE_INPUTS = 8192, TURBOK_CU_BESIDE_ROWS = 2 }; /* of such a product, at most */
/* A bound of threads that leaves products of few rows with 4-bit codes 72 registers: with 512 threads a block of attention
 * (decode.cuh, up to 224) has room beside one, and the product behind attention fills its queue meanwhile.
 * On older devices no kernel begins before the one before it has ended: there the bound is the threads of a block. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
enum { TURBOK_CU_ROOMY = 512 };
#else
enum { TURBOK_CU_ROOMY = 896 };
#endif
/* Shared memory of the queues of gemv.cu, of its kernels and of the small ones. */
enum { TURBOK_CU_GEMV_SHARED = 128 << 10, TURBOK_CU_GEMV_SHARED_SMALL = 64 << 10 };
/* Of gemm_wide: rows of a piece, outputs of one whose inputs two blocks share (at most), pieces of a band, bytes of tiles in shared
 * memory and of all that is there. */
enum {
    TURBOK_CU_GEMM_WIDE_ROWS = 128,
    TURBOK_CU_GEMM_WIDE_SHARED_OUTS = 128,
    TURBOK_CU_GEMM_WIDE_HEAD = 128, /* dims of the heads that are turned */
    TURBOK_CU_GEMM_WIDE_TILES = 192 << 10,
    TURBOK_CU_GEMM_WIDE_BAND = 16,
    TURBOK_CU_GEMM_WIDE_SHARED = TURBOK_CU_GEMM_WIDE_TILES + 8 * 16 * 144
};
struct turbok_cu_gemm_wide_args { /* types of weights and x are the kernel's; in % 8 == 0 */
    turbok_cu_map x; /* boxes of 128 rows */
    turbok_cu_map w[2][2]; /* of outs[0] / 2 and outs[1] / 2 rows: W twice, or gate and up */
    const float *bias; /* [out] or NULL; not with gate and up */
    void *y; /* [T,out] of the type of x, or f32 */
    int32_t out, in, T;
    int32_t gated, floats, whole; /* 0 or 1; whole: rows of y are whole pieces of 16 bytes */
    /* columns[0] columns of pieces of outs[0] outputs (gate and up counted), then columns[1] of outs[1] */
    int32_t outs[2], columns[2];
    /* shares 2: of neighbouring blocks, a cluster, each has half of the inputs, and no more than one piece. early: so many stages of
     * weights, at most, are asked for before the kernel before this one has ended. turns 1: the product is queries, keys and
     * values of b, which go, turned, to q and the cache; y is not written. once 1: W is not read again. */
    int32_t shares, early, turns, once;
    turbok_cu_attn at;
    turbok_cu_batch b;
    void *q; /* [T,H,HEAD] of the type of x */
};
#define turbok_cu_gemv_any_args turbok_cu_multiply_any_args
#define turbok_cu_gemm_any_args turbok_cu_multiply_any_args

#endif
