/* kernels/cuda/wide.h: products of quantised matrices with many rows by warp groups (wq_wide.cuh), for l_wq.c and
 * tests. The memory is the caller's. The device's thread. */
#ifndef TURBOK_CUDA_WIDE_H
#define TURBOK_CUDA_WIDE_H

#include "cuda/wq.h"

/* Rows in the order of a matrix's codes, in device memory. */
typedef struct turbok_cu_laid_rows {
    void *rows;
    float *sums; /* NULL: the matrix has no minima */
    int32_t T, kernel; /* kernel: of those for one width and type, whose block they are laid for */
} turbok_cu_laid_rows;

/* Does it multiply by w? Only where the card and the build have such products: groups of 16, 32, 64 or a multiple of 128,
 * inputs a multiple of 128, activations of 16 bits. */
bool turbok_cu_wide_covers(const turbok_cu *cu, const turbok_cu_wq *w, int32_t act);
/* Bytes of rows in the order of w's codes; a multiple of 256. Pure. */
uint64_t turbok_cu_wide_bytes(const turbok_cu_wq *w, int32_t rows);
/* x [T,in] act into room [turbok_cu_wide_bytes], also for other matrices of the same shape and kind. */
turbok_cu_laid_rows turbok_cu_wide_lay(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                                       const void *x, int32_t T, void *room);
/* Where sums of splits go: counters [TURBOK_CU_WQ_COUNTERS] 0 before and after; sums [bytes], 128 KiB for each
 * multiprocessor. */
typedef struct turbok_cu_split_room {
    void *counters, *sums;
    uint64_t bytes;
} turbok_cu_split_room;
/* y = x W^T + bias, y [T,out] of out_dtype (act, or TURBO_F32), rows ldy apart. gate [T,out] act, rows ldy apart, or NULL: y
 * = fn(gate) * that, of act; y may be gate. With cu->deterministic a row's bits do not depend on T. */
void turbok_cu_wide_linear(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                           const turbok_cu_laid_rows *x, int32_t out_dtype, void *y, int64_t ldy,
                           const void *gate, int32_t fn, const turbok_cu_split_room *room);

#endif
