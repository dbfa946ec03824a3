/* kernels/cuda/bench/bench-gpu.h: what the parts of bench-gpu share. One thread. */
#ifndef BENCH_GPU_H
#define BENCH_GPU_H

#include <stdio.h>
#include <stdlib.h>

#include "cuda/blas.h"
#include "cuda/ops.h"
#include "cuda/sample.h"
#include "internal.h"

extern turbok_cu *cu;
extern bool quick;
extern int32_t only_batch; /* of parts; 0: all */
extern double read_rate; /* bytes a second of the read kernel, in this run */

void *room(size_t bytes); /* on the device; ends the program when there is none */
void give(void *p);
void *numbers(int64_t n, float scale); /* bf16 */
void *upload(const void *host, size_t bytes);
/* Median time of a replay of the graph of what work launches. */
double seconds(void (*work)(void *), void *ctx, int rounds);
/* One row; bytes or flops is 0. limit: of the rate; 0: none. */
void report(const char *what, const char *of, double s, double bytes, double flops, double limit);

typedef struct shape {
    const char *name;
    int32_t L, E, I, H, K, D, V;
} shape;
extern const shape shapes[];
enum { SHAPES = 3 };

void bench_gemv(void);
void bench_decode(void);
void bench_step(void);
void bench_parts(void); /* of a step, each alone */
void bench_prefill(void);
void bench_quant(void); /* quant.c */
void bench_load(void); /* load.c */

#endif
