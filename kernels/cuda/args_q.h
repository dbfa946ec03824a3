/* kernels/cuda/args_q.h: parameters of the kernels for quantised matrices, experts and sampling; part of
 * kernels.h and, as that, read by C and by CUDA alike. Pointers are device addresses. */
#ifndef TURBOK_CUDA_ARGS_Q_H
#define TURBOK_CUDA_ARGS_Q_H

#include <stdint.h>

/* How a code becomes a number; products with the scale and sums are fp32. */
enum {
    TURBOK_CU_Q_INT = 0, /* scale * (code - zero), less a minimum where there is one */
    TURBOK_CU_Q_TABLE = 1, /* scale * table[code] */
    TURBOK_CU_Q_E4M3 = 2 /* scale * the code read as e4m3; 8 bits only */
};

/* A quantised matrix [out,in] in the order in which tensor cores take it. A tile is 16 outputs; a chunk is
 * 64 inputs of 4 bits or 32 of 8, so that each of 32 lanes has 16 bytes of it. wq.cuh says which input
 * stands where. Inputs beyond `in` and outputs beyond `out` are there with any code. */
typedef struct turbok_cu_qmat {
    const void *codes; /* [tiles][chunks][32] of 16 bytes */
    const void *scale; /* [tiles][groups][16] of scale_dtype */
    const uint8_t *zero; /* [tiles][groups][16], or NULL: offset for all */
    const float *min; /* [tiles][groups][16] or NULL */
    const float *table; /* [16] or [256]; NULL without a table */
    const float *bias; /* [out] or NULL */
} turbok_cu_qmat;

enum {
    TURBOK_CU_WQ_CREW = 16, /* warps of a block of wq_stream.cuh and wq_digits.cuh */
    TURBOK_CU_WQ_DEPTH = 3, /* entries of a queue of wq_digits.cuh */
    TURBOK_CU_WQ_LEAST = 2 /* where there is no room for them, of code that is not for 9.0 */
};

/* Where things stand in the dynamic shared memory of wq_stream.cuh and wq_digits.cuh, in bytes. */
typedef struct turbok_cu_wq_stream {
    int32_t depth; /* entries of a queue: 3, 4, 6 or 8; of wq_digits.cuh 3 or 2 */
    int32_t entries; /* of a tile */
    int32_t entry_bytes; /* of one matrix: codes, scales, zeros, minima */
    int32_t groups, shift; /* of a tile; input >> shift is its group, 31: one a row */
    int32_t x_at, x_stride, sums_at /* or tables */, units_at, tile_at;
    int32_t rows_at; /* rows after a norm, [rows,in] */
    int32_t reserved;
} turbok_cu_wq_stream;

/* out[r,o] = sum over k of x[r,k] W[o,k] + bias[o]. With m[1].codes: out = act(m[0] x) * (m[1] x), the two
 * of equal shape and format. What queues are filled by stands first: parameters reach a kernel a line at a time. */
struct turbok_cu_wq_args {
    turbok_cu_wq_stream stream;
    int64_t in, out_dim;
    turbok_cu_qmat m[2];
    int32_t scale_dtype, rows, group, kind, offset;
    int32_t steps; /* 16-input steps that share a scale: 1, 2 or 4 */
    int32_t split, out_f32, act;
    float eps;
    const void *x; /* [rows,in] act */
    void *out; /* [rows,out] act, or fp32 with out_f32; rows are ld apart */
    int64_t ld;
    const float *norm; /* [in] of RMSNorm before the product, or NULL. Of wq_digits.cuh */
    void *h; /* [rows,out] act, to which the product is added as well; or NULL. The same */
    float *partial; /* split sums, see wq_gemm; NULL with split 1 */
    uint32_t *arrived; /* [blocks of x and y] 0 before and after */
};

/* Rows of the matrix as numbers: out[i,k] = W[row(i),k], row(i) = rows ? rows[i] : first + i; rows that are
 * negative or beyond out_dim become 0. Columns are in the order of the codes (before perm). */
struct turbok_cu_wq_rows_args {
    turbok_cu_qmat m;
    const int32_t *rows; /* [n] or NULL */
    void *out; /* [n,in] act */
    const int32_t *perm; /* [in]: where a column goes, or NULL: where it stands */
    int64_t in, out_dim, first, n;
    int32_t group, kind, scale_dtype, offset, steps, reserved;
};

/* out[r,k] = x[r,perm[k]]. */
struct turbok_cu_wq_permute_args {
    const void *x; /* [rows,in] act */
    const int32_t *perm; /* [in] */
    void *out; /* [rows,in] act */
    int64_t in;
    int32_t rows, wide; /* wide: act is fp32, else 16 bits */
};

/* ---- products with many rows by warp groups: wq_wide.cuh ------------------------------------------------- */

enum { TURBOK_CU_WQ_WIDE_SPAN = 128 }; /* inputs of a stage */
/* Of a block of 128 mt outputs and n rows, whose sums of `per` inputs are scaled; general: of kernels that know more than
 * whole numbers. Blocks of a multiprocessor; bytes of a stage; stages on their way; bytes of what belongs to a tile's span
 * (scales, zeros, minima); spans of it on their way; bytes of dynamic shared memory. */
#define TURBOK_CU_WQ_WIDE_BLOCKS(n) ((n) == 32 ? 2 : 1)
#define TURBOK_CU_WQ_WIDE_STAGE(bits, mt, n) ((mt)*2048 * (bits) + (n)*256)
#define TURBOK_CU_WQ_WIDE_FIT(bytes, each) ((bytes) / (each) < 8 ? (bytes) / (each) : 8)
#define TURBOK_CU_WQ_WIDE_STAGES(bits, mt, n, general)                                             \
    TURBOK_CU_WQ_WIDE_FIT((n) == 32   ? 98304                                                      \
                          : (general) ? 147456                                                     \
                                      : 204800,                                                    \
                          TURBOK_CU_WQ_WIDE_STAGE(bits, mt, n))
#define TURBOK_CU_WQ_WIDE_BELONGS(per, general) (128 / (per) * ((general) ? 144 : 80))
#define TURBOK_CU_WQ_WIDE_RINGS(bits, mt, n, general)                                              \
    ((general) ? 4 : TURBOK_CU_WQ_WIDE_STAGES(bits, mt, n, general))
#define TURBOK_CU_WQ_WIDE_SHARED(bits, mt, n, per, general)                                        \
    (TURBOK_CU_WQ_WIDE_STAGES(bits, mt, n, general) *                                              \
         (TURBOK_CU_WQ_WIDE_STAGE(bits, mt, n) + ((general) ? 128 / (per) * (n)*4 : 0)) +          \
     TURBOK_CU_WQ_WIDE_RINGS(bits, mt, n, general) * (mt)*8 *                                      \
         TURBOK_CU_WQ_WIDE_BELONGS(per, general))

/* Rows in the order of the codes: [ceil(ld/tile)][in/64][min(tile, rows that are left of ld)][8] of 16 bytes. Piece p of a row's
 * 64 inputs is at place p ^ (row % 8), and has the inputs at(p / 2, q, 2 (p % 2)) and the next one (wq.cuh), q = 0..3.
 * sums [ceil(ld/tile)][in/per][rows as above]: of the inputs of per / 16 steps, per 16 or 32. */
struct turbok_cu_lay_rows_args {
    const void *x; /* [rows,in] act */
    const int32_t *perm; /* [in]: input k is x[perm[k]]; or NULL */
    void *out;
    float *sums; /* or NULL */
    int64_t in; /* a multiple of 128 */
    int32_t rows, ld; /* ld: rows, rounded up to a multiple of 8; what lies beyond `rows` is 0 */
    int32_t tile, lay, per, reserved;
};

/* out[r,o] = sum over k of x[r,k] W[o,k] + bias[o], or act(gate[r,o]) times that. */
struct turbok_cu_wq_wide_args {
    turbok_cu_qmat m;
    const void *x; /* rows as above */
    const float *x_sums; /* as above; NULL without minima */
    const void *gate; /* as out; may be out; or NULL */
    void *out; /* [rows,out_dim] act, or fp32 with out_f32; rows are ld apart */
    float *partial; /* [blocks][split] sums of a block; NULL with split 1 */
    uint32_t *arrived; /* [blocks] 0 before and after */
    int64_t in, out_dim, ld;
    int32_t rows, group, kind, scale_dtype, offset;
    int32_t shift; /* an input's group in its span is input >> shift; 31: all are in one */
    int32_t split, out_f32, act, reserved;
};

/* ---- products of codes with codes: w8a8.cu ----------------------------------------------------------- */

enum {
    TURBOK_CU_W8A8_ROWS = 128, /* rows and outputs of a block */
    TURBOK_CU_W8A8_OUTS = 128,
    TURBOK_CU_W8A8_GROUP = 128, /* inputs that share a scale, where not all of a row do */
    TURBOK_CU_W8A8_SHARED = 4 * (8192 + 8192) /* bytes of dynamic shared memory of a block */
};
/* Of w8a8_wide.cuh, a block of n rows: spans of inputs on their way, and bytes of dynamic shared memory. */
#define TURBOK_CU_W8A8_WIDE_STAGES(n) ((n) == 256 ? 4 : (n) == 128 ? 6 : 8)
#define TURBOK_CU_W8A8_WIDE_SHARED(n) (TURBOK_CU_W8A8_WIDE_STAGES(n) * ((n)*132 + 16384))

/* Rows as codes of 8 bits: scale * code is next to x. codes [ceil(rows/8)][ceil(in/64)][32] of 16 bytes: number
 * 4 (row % 8) + q has of 64 inputs the eight from 8 q on, then the eight from 32 + 8 q on. What lies beyond `in` or
 * `rows` is 0. What holds NaN or infinity gets NaN for its scale.
 *
 * Or, for w8a8_wide.cuh, [ceil(ld/tile)][in/128][min(tile, rows that are left of ld)][8] of 16 bytes: piece p of a row's span
 * of 128 is at place p ^ (row % 8) and has, four each, its inputs 32 (p / 2) + 8 q + 4 (p % 2) on, q = 0..3. */
struct turbok_cu_code_rows_args {
    const void *x; /* [rows,in] act */
    void *codes;
    float *scale; /* [in/128][ld], or with one scale a row [ld] */
    int64_t in; /* a multiple of 32, in groups of 128 */
    int32_t rows, ld; /* ld: rows, rounded up to a multiple of 8 */
    int32_t groups; /* 1: one scale a row; else in / 128 */
    int32_t e4m3; /* 0: whole numbers */
    int32_t tile; /* rows of a block of w8a8_wide.cuh; 0: the first order */
    int32_t reserved;
};

/* out[r,o] = sum over k of x[r,k] W[o,k] + bias[o]. */
struct turbok_cu_w8a8_args {
    turbok_cu_qmat m; /* inputs of a step in pairs: groups of a multiple of 32, see wq.cuh */
    const void *x; /* codes of the rows, as above */
    const float *x_scale; /* [groups][x_ld] */
    void *out; /* [rows,out_dim] of out_dtype, rows ld apart */
    uint32_t *partial; /* [blocks][split] sums of a block; NULL with split 1 */
    uint32_t *arrived; /* [blocks] 0 before and after */
    int64_t in, out_dim, ld;
    int32_t rows, x_ld, scale_dtype, out_dtype, split, reserved;
};

/* ---- sampling ---------------------------------------------------------------------------------------- */

enum { TURBOK_CU_RECENT = 64 /* longest bad word */ };

/* What sampling keeps of a sequence on the device. */
typedef struct turbok_cu_sample_state {
    uint32_t position; /* tokens accepted: the counter of the generator */
    uint32_t n_recent; /* tokens ever; token i stands at i % TURBOK_CU_RECENT */
    int32_t recent[TURBOK_CU_RECENT];
} turbok_cu_sample_state;

/* One row: turbo_sample_params with its arrays on the device. */
typedef struct turbok_cu_sample_row {
    uint64_t seed;
    turbok_cu_sample_state *state;
    uint32_t *counts; /* [V] bit 31: in the prompt; rest: times put out; NULL: no penalties */
    const uint32_t *allowed; /* bit i % 32 of word i / 32: token i may be drawn; NULL: all */
    const int32_t *bias_ids; /* [n_bias] */
    const float *bias; /* [n_bias] */
    const int32_t *stop_ids; /* [n_stop] */
    const int32_t *bad_ids; /* the words one after the other */
    const int32_t *bad_len; /* [n_bad] 1..64 */
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k, min_tokens, n_bias, n_stop, n_bad;
    int32_t index; /* row of the logits; below 0: none, token and status become -1 and 0 */
} turbok_cu_sample_row;

/* Draws a token from each row and accepts it. Rows of logits are changed. */
struct turbok_cu_sample_args {
    const turbok_cu_sample_row *rows; /* [n], a block each */
    float *logits; /* [*,V] */
    double *sums; /* [n][2 * ceil(V / 64)] scratch */
    int32_t *tokens; /* [n] */
    int32_t *status; /* [n] 0, or TURBO_EDATA: no numbers */
    int32_t V, data_error; /* data_error: TURBO_EDATA */
    int32_t parts; /* of a row whose best were found by sample_best; 0: none were */
    int32_t reserved;
};

/* Begins a sequence, or adds tokens that were not drawn. */
struct turbok_cu_sample_tokens_args {
    turbok_cu_sample_state *state;
    uint32_t *counts; /* [V] or NULL */
    const int32_t *tokens; /* [n] in 0..V-1 */
    int32_t V, n;
    int32_t
        begin; /* 1: state and counts are cleared and the tokens are the prompt; 0: they are output */
    int32_t reserved;
};

/* ---- experts --------------------------------------------------------------------------------------- */

enum { TURBOK_CU_MOE_ROWS = 64 /* of a tile of the grouped product */ };

/* The k best of n experts for each token, equal ones by lower number, by softmax over all of them. */
struct turbok_cu_moe_route_args {
    const float *logits; /* [T,n] */
    int32_t *experts; /* [T,k] best first */
    float *weights; /* [T,k]; normalise: their sum is 1 */
    int32_t T, n, k, normalise;
};

/* Choices a = t * k + j in the order of experts, those of one expert in the order of a: place p has choice
 * order[p], choice a stands at place[a]. */
struct turbok_cu_moe_sort_args {
    const int32_t *experts; /* [choices] */
    int32_t *order; /* [choices] */
    int32_t *place; /* [choices] */
    int32_t *tiles; /* [choices / 64 + n][3]: expert, first place, behind the last one */
    int32_t *n_tiles; /* [1] */
    int32_t choices, n;
};

/* How all matrices of one kind (gate and up, or down) of a layer are stored. */
typedef struct turbok_cu_moe_format {
    int32_t bits; /* 0: numbers of dtype, else codes of 4 or 8 as a turbok_cu_qmat has them */
    int32_t dtype;
    int32_t group, kind, scale_dtype, offset, steps; /* of codes, as turbok_cu_wq_args */
    int32_t reserved;
} turbok_cu_moe_format;

/* y[p] = W x[row], W the matrix of p's expert, row = gather ? order[p] / k : p. gated: y = fn(gate x) * (up x).
 * A matrix is [out,in]; of numbers, its codes point to them. */
struct turbok_cu_moe_gemm_args {
    const void *x; /* [*,in] act */
    const turbok_cu_qmat *w; /* [n][3] gate, up, down */
    void *y; /* [choices,out] act */
    const int32_t *order, *tiles, *n_tiles;
    int64_t in, out;
    int32_t k, gather, gated, fn;
    turbok_cu_moe_format format;
};
#define turbok_cu_moe_any_args turbok_cu_moe_gemm_args

/* out[t] = sum over j = 0..k-1, in this order, of weights[t,j] * y[place[t * k + j]]. */
struct turbok_cu_moe_combine_args {
    const void *y; /* [T*k,E] act */
    const float *weights; /* [T,k] */
    const int32_t *place; /* [T,k] */
    void *out; /* [T,E] act */
    int64_t E;
    int32_t T, k;
};

#endif
