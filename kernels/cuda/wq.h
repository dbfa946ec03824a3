/* kernels/cuda/wq.h: matrices of 4 and 8 bits on the device: from turbok_grid to the order that wq.cuh
 * describes, and products with them. The memory is the caller's: plan says how much, pack fills an image
 * on the host, the caller copies it to the device and says with place where it lies.
 * Activations are quantised only where turbok_grid.coded_inputs says so (w8a8.h): with an outlier threshold
 * (turbok_grid.outlier) all inputs are multiplied as those above it are. pack runs on any thread; the rest on the
 * device's. Must not know: formats of files, models. */
#ifndef TURBOK_CUDA_WQ_H
#define TURBOK_CUDA_WQ_H

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "turbok.h"

typedef struct turbok_cu_wq {
    int64_t out, in, tiles, chunks, groups;
    int32_t bits, group, kind, scale_dtype, offset, steps;
    bool zero, min, bias, permuted;
    bool coded_inputs; /* w8a8.h may multiply it */
    uint64_t scale_at, zero_at, min_at, table_at, bias_at, perm_at; /* in the image; codes at 0 */
    uint64_t bytes; /* of the image */
    turbok_cu_qmat m; /* on the device, after place */
    const int32_t *perm; /* [in] or NULL */
} turbok_cu_wq;

/* Sizes of a grid; of its pointers only which are NULL matters. EINVAL: the group does not divide, a number
 * is out of range; EUNSUPPORTED: no kernel covers it. w->bytes is a multiple of 256. */
turbo_status turbok_cu_wq_plan(const turbok_grid *g, int64_t out, int64_t in, bool has_bias,
                               turbok_cu_wq *w, turbo_err *err);
/* Looks at what g [rows,in] points to: EDATA for scales that are not finite, zeros or a perm out of range.
 * e4m3: its table is that of e4m3 and no code is a NaN. Where that holds for all rows of a matrix its
 * kind may become TURBOK_CU_Q_E4M3, which is faster. */
turbo_status turbok_cu_wq_check(const turbok_grid *g, int64_t rows, int64_t in, bool *e4m3,
                                turbo_err *err);
/* Packs g, which is rows [first, first + rows) of the matrix, `first` a multiple of 16 and rows one too unless they
 * are the last: its tiles [from,to), of first / 16 .. , into image [w->bytes]. Parts may be packed by several
 * threads. The call with from 0 also writes table and perm. bias: [rows] of bias_dtype, or NULL: zeros where
 * the matrix has one. */
void turbok_cu_wq_pack(const turbok_cu_wq *w, const turbok_grid *g, int64_t first, int64_t rows,
                       const void *bias, int32_t bias_dtype, int64_t from, int64_t to, void *image);
void turbok_cu_wq_place(turbok_cu_wq *w, turbok_cu_ptr at); /* a multiple of 256 */

/* Scratch for products of at most max_rows rows of at most max_in inputs. Its first TURBOK_CU_WQ_COUNTERS bytes are zero
 * before the first product, and after each. Pure. */
enum { TURBOK_CU_WQ_COUNTERS = 4096 };
uint64_t turbok_cu_wq_scratch(const turbok_cu *cu, int64_t max_in, int32_t max_rows);
/* Of T rows of w, how many such scratch has room for at a time. Pure. */
int32_t turbok_cu_wq_most(const turbok_cu *cu, int32_t act, const turbok_cu_wq *w, int32_t T,
                          int64_t max_in, int32_t max_rows);

/* y = x W^T + bias. x [T,in] act; y [T,out] of out_dtype (act, or TURBO_F32), its rows ldy apart. Up to 8 rows stream the
 * weights; more go to tensor cores in blocks, as codes where w8a8.h covers them. With cu->deterministic the bits of a row do not depend on T. */
void turbok_cu_wq_linear(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const void *x,
                         int32_t T, int32_t out_dtype, void *y, int64_t ldy, void *scratch);
/* The same in one launch with what is beside it, as turbok_cu_gemv_beside (ops.h): by wq_digits.cuh alone; else false, and
 * nothing launched. */
bool turbok_cu_wq_beside(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const void *x,
                         int32_t T, int32_t out_dtype, void *y, const turbok_cu_beside *b);
/* y = fn(x gate^T) * (x up^T). scratch: as of turbok_cu_wq_linear. False, and nothing done, when two products are not
 * made as one: more than 8 rows of what wide.h does not cover (of fp32 any number is covered), the two of different
 * formats, permuted inputs, cu->deterministic, or b (a norm; or NULL) and no product by wq_digits.cuh. */
bool turbok_cu_wq_gated(turbok_cu *cu, int32_t act, const turbok_cu_wq *gate,
                        const turbok_cu_wq *up, int32_t fn, const void *x, int32_t T, void *y,
                        void *scratch, const turbok_cu_beside *b);
/* Rows as numbers of act, [n,in]: rows[i] on the device, or with NULL first + i; out of range: zeros. For
 * embeddings. */
void turbok_cu_wq_rows(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const int32_t *rows,
                       int64_t first, int64_t n, void *y);

#endif
