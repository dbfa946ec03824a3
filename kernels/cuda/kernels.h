/* kernels/cuda/kernels.h: what host and kernels agree on: the argument of each kernel, one struct
 * turbok_cu_<name>_args, passed by value. Read by nvcc, by g++ (hostrun) and by the C compiler.
 * Pointers are addresses of device memory. Indices that multiply T, rows, V or blocks are 64 bits wide. */
#ifndef TURBOK_CUDA_KERNELS_H
#define TURBOK_CUDA_KERNELS_H

#include <stdint.h>

/* Inputs of a step, in fixed device buffers that are filled once a step, so that a captured graph can be
 * replayed. A graph runs for a bucket of T tokens, S sequences and R rows of which the last ones may be
 * padding: then seq_of[t] is -1 (nothing is stored for the token, its rows are zero or anything finite),
 * kv_lens[s] is 0 (attention gives zeros), row_index[r] is 0, tokens and positions are 0. */
typedef struct turbok_cu_batch {
    const int32_t *tokens; /* [T] */
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

#endif
