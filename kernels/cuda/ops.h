/* kernels/cuda/ops.h: the functions that launch kernels: each chooses grid, block and split for a shape and
 * puts its kernels on cu's stream. None allocates, copies or waits; errors are kept in cu (launch.h).
 * act: TURBO_F32, _F16 or _BF16, the type of activations. Row-major, shapes as in turbo/plugin.h. */
#ifndef TURBOK_CUDA_OPS_H
#define TURBOK_CUDA_OPS_H

#include "cuda/kernels.h"
#include "cuda/launch.h"

/* table [V,E] of dtype. */
void turbok_cu_embed(turbok_cu *cu, int32_t act, const void *table, int32_t dtype, int32_t E,
                     const turbok_cu_batch *b, void *out);
/* Tokens of b that stand for rows of the step before become what those drew. embed does that by itself. */
void turbok_cu_resolve(turbok_cu *cu, const turbok_cu_batch *b);
void turbok_cu_rmsnorm(turbok_cu *cu, int32_t act, void *h, const void *delta, const float *w,
                       float eps, int32_t T, int32_t E, void *out);
void turbok_cu_layernorm(turbok_cu *cu, int32_t act, void *h, const void *delta, const float *w,
                         const float *bias, float eps, int32_t T, int32_t E, void *out);
void turbok_cu_rope_store(turbok_cu *cu, int32_t act, const turbok_cu_attn *a,
                          const turbok_cu_batch *b, const void *qkv, void *q);
/* Scratch of attention over steps of at most max_T tokens in max_B sequences: partial results of a split.
 * The caller fills it with zeros once; launches leave its counters at 0. Pure. */
uint64_t turbok_cu_attention_bytes(int32_t max_T, int32_t max_B, int32_t n_heads, int32_t head_dim,
                                   int32_t max_kv);
/* Up to so many keys of a sequence few of them are attended to by clusters of blocks; 0: never. b->max_kv decides. Pure. */
int32_t turbok_cu_attention_brief(const turbok_cu *cu);
void turbok_cu_attention(turbok_cu *cu, int32_t act, const turbok_cu_attn *a,
                         const turbok_cu_batch *b, const void *q, void *out, void *scratch,
                         uint64_t scratch_bytes);
/* turbok_cu_rope_store and turbok_cu_attention as one launch, where one covers them (else false, and nothing is done): steps of few
 * sequences with few keys. qkv, q and out lie apart. */
bool turbok_cu_attention_turned(turbok_cu *cu, int32_t act, const turbok_cu_attn *a,
                                const turbok_cu_batch *b, const void *qkv, void *q, void *out);
void turbok_cu_attention_full(turbok_cu *cu, int32_t act, const void *qkv, int32_t N, int32_t T,
                              int32_t H, int32_t D, float scale, void *out);
/* out = fn(gate) * up; up NULL: fn(gate). n elements; out may be gate. */
void turbok_cu_activate(turbok_cu *cu, int32_t act, int32_t fn, const void *gate, const void *up,
                        int64_t n, void *out);
/* y[t,o] = fn(y[t,o] + bias[o]); y [T,out] act. bias NULL: none. */
void turbok_cu_bias_activate(turbok_cu *cu, int32_t act, int32_t fn, void *y, const float *bias,
                             int32_t T, int32_t out);
void turbok_cu_gather(turbok_cu *cu, int32_t act, const void *in, const int32_t *index, int32_t R,
                      int32_t E, void *out);
void turbok_cu_add(turbok_cu *cu, int32_t act, void *h, const void *delta, int64_t n);
/* h[t] += sigmoid(in[t] . w) * delta[t]; all [T,E] act, w [E]. */
void turbok_cu_add_gated(turbok_cu *cu, int32_t act, void *h, const void *delta, const float *w,
                         const void *in, int32_t T, int32_t E);
/* qkv [T,(H+2K)*D] act: RMSNorm of queries by q and of keys by k, [D]; layout: TURBO_QKV_*. */
void turbok_cu_head_norm(turbok_cu *cu, int32_t act, const turbo_attn *a, const float *q,
                         const float *k, float eps, int32_t T, void *qkv);
/* y[t,o] += bias[o]; y [T,out] of out_dtype. */
void turbok_cu_add_bias(turbok_cu *cu, int32_t out_dtype, void *y, const float *bias, int32_t T,
                        int32_t out);
/* pixels [N,height,width,3] and value [3,256] in device memory. */
void turbok_cu_patches(turbok_cu *cu, int32_t act, const uint8_t *pixels, int32_t N, int32_t height,
                       int32_t width, int32_t size, const float *value, void *out);
void turbok_cu_position_rows(turbok_cu *cu, int32_t act, const void *in, const float *first,
                             const float *position, int32_t N, int32_t P, int32_t E, void *out);

/* y = x W^T + bias. x [T,in] act; w [out,in] row-major of w_dtype; bias [out] f32 or NULL; y [T,out] of
 * out_dtype (act, or TURBO_F32 for logits). Sums in fp32. The first for few rows, T <=
 * TURBOK_CU_GEMV_ROWS, which stream the weights; the second for any number. */
enum { TURBOK_CU_GEMV_ROWS = 8 };
/* turbok_cu_gemv with what is beside it; false, and nothing launched, where that does not apply. */
bool turbok_cu_gemv_beside(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype,
                           const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                           int32_t out_dtype, void *y, const turbok_cu_beside *b);
/* y = fn(x gate^T) * (x up^T) in one kernel; false, and nothing launched, where it does not apply: more than
 * TURBOK_CU_GEMV_ROWS rows, mixed types, odd sizes, or b (without h; or NULL). No biases. */
bool turbok_cu_gemv_gated(turbok_cu *cu, int32_t act, const void *gate, const void *up,
                          int32_t dtype, int32_t fn, int32_t out, int32_t in, const void *x,
                          int32_t T, void *y, const turbok_cu_beside *b);
void turbok_cu_gemv(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype, const float *bias,
                    int32_t out, int32_t in, const void *x, int32_t T, int32_t out_dtype, void *y);
void turbok_cu_gemm(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype, const float *bias,
                    int32_t out, int32_t in, const void *x, int32_t T, int32_t out_dtype, void *y);
/* Fills the map of rows [in] of 16-bit numbers at p, in boxes of 64 columns of box_rows. */
void turbok_cu_map_rows(turbok_cu *cu, turbok_cu_map *m, const void *p, int32_t rows, int32_t in,
                        int32_t box_rows);
/* How a product by warp groups is cut: columns[0] pieces of outs[0] outputs, then columns[1] of outs[1] (64, 128, 192 or
 * 256, those of gate and up counted), for each 128 rows. shares 2: two blocks have half of the inputs each; then there are at most
 * half as many pieces as multiprocessors, of 64 or 128 outputs, and columns[1] is 0. */
typedef struct turbok_cu_gemm_plan {
    int32_t outs[2], columns[2], shares;
} turbok_cu_gemm_plan;
turbok_cu_gemm_plan turbok_cu_gemm_choose(const turbok_cu *cu, int32_t T, int32_t out, int32_t in,
                                          bool gated);
/* Are gate and up of T rows one launch? library: else cuBLASLt multiplies. */
bool turbok_cu_gemm_joins(const turbok_cu *cu, int32_t T, bool library);
/* Is such a product faster than cuBLASLt's? */
bool turbok_cu_gemm_suits(const turbok_cu *cu, int32_t T, int64_t out, int64_t in);
/* y = x w^T + bias or, with up, y = silu(x w^T) * (x up^T), by warp groups, for many rows; a row's bits depend on nothing but
 * its own, and where blocks share inputs (never with cu->deterministic) on whether T leaves the card room for it. False, and nothing launched, where it does not apply. plan NULL: as turbok_cu_gemm_choose says. */
bool turbok_cu_gemm_wide(turbok_cu *cu, int32_t act, const void *w, const void *up, int32_t w_dtype,
                         const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                         int32_t out_dtype, void *y, const turbok_cu_gemm_plan *plan);
/* Is a product that makes queries, keys and values of T rows faster as one launch with RoPE and the cache? */
bool turbok_cu_gemm_turns(const turbok_cu *cu, int32_t T, int64_t out);
/* turbok_cu_rope_store of x w^T + bias, which is not written, with the bits of both apart. False, and nothing launched, where it
 * does not apply: heads of other than 128 dims or turned otherwise than as a whole, by halves and out of the table, another type of cache. */
bool turbok_cu_gemm_turned(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype,
                           const float *bias, int32_t in, const void *x, const turbok_cu_attn *at,
                           const turbok_cu_batch *b, void *q);
/* Reads n * 16 bytes, for measuring; out: 4 bytes that are all but never written. */
void turbok_cu_read(turbok_cu *cu, const void *in, int64_t n, void *out);
/* n numbers, about normal with standard deviation scale. */
void turbok_cu_random(turbok_cu *cu, int32_t dtype, void *out, int64_t n, float scale,
                      uint32_t seed);

#endif
