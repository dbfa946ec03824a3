/* kernels/cuda/w8a8.h: products of rows that become codes of 8 bits with matrices of 8 bits (w8a8.cu), for l_wq.c and
 * tests. The memory is the caller's. The device's thread. */
#ifndef TURBOK_CUDA_W8A8_H
#define TURBOK_CUDA_W8A8_H

#include "cuda/wq.h"

/* Codes and scales of rows, in device memory. */
typedef struct turbok_cu_coded_rows {
    void *codes;
    float *scale;
    int32_t rows, ld, groups;
    int32_t tile; /* rows of a block of w8a8_wide.cuh; 0: in the order of w8a8.cu (args_q.h) */
} turbok_cu_coded_rows;

/* Are T rows multiplied as codes? Only with matrices whose inputs the folder says are quantised, from 17 rows on, or with
 * cu->deterministic always; e4m3 only where the card has products of it. */
bool turbok_cu_w8a8_covers(const turbok_cu *cu, const turbok_cu_wq *w, int32_t act, int32_t T);
/* Bytes of rows as codes; a multiple of 256. Pure. */
uint64_t turbok_cu_w8a8_bytes(int64_t in, int32_t rows);
/* x [T,in] act into room [turbok_cu_w8a8_bytes]. */
turbok_cu_coded_rows turbok_cu_w8a8_code(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                                         const void *x, int32_t T, void *room);
/* y = x W^T + bias, y [T,out] of out_dtype (TURBO_F32, _F16, _BF16), rows ldy apart. counters
 * [TURBOK_CU_WQ_COUNTERS] 0 before and after; partial [bytes]: sums of splits, 128 KiB for each multiprocessor. With
 * cu->deterministic a row's bits do not depend on T. */
void turbok_cu_w8a8_linear(turbok_cu *cu, const turbok_cu_wq *w, const turbok_cu_coded_rows *x,
                           int32_t out_dtype, void *y, int64_t ldy, void *counters, void *partial,
                           uint64_t bytes);

#endif
