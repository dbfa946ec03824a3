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

/* The products of a decode step of one sequence with other weights than bf16. */
enum { QUANT_QKV, QUANT_WO, QUANT_GATED, QUANT_DOWN };
typedef struct products {
    /* y = the matrix of a layer times x [T,in]; QUANT_GATED: gate, up and what joins them. */
    void (*layer)(void *ctx, int which, int32_t layer, const void *x, int32_t T, void *y);
    void (*head)(void *ctx, const shape *s, const void *x, float *logits);
    void *ctx;
    void *table; /* of embeddings, [V,E] bf16 */
    double bytes; /* of all weights of a step */
} products;
/* Measures and reports a step of batch 1 at context 512 (parts.c). */
void step_with(const shape *s, const products *p, const char *text);

/* Products as the backend makes them: opens cuBLASLt, where there is one; y [T,out] of type = x [T,in] w^T, bf16. */
void open_blas(void);
void dense(const void *w, int32_t out, int32_t in, const void *x, int32_t T, int32_t type, void *y);

void bench_gemv(void);
void bench_decode(void);
void bench_step(void);
void bench_parts(void); /* of a step, each alone */
void bench_prefill(void);
void bench_quant(void); /* quant.c */
void bench_load(void); /* load.c */
void bench_tower(void); /* tower.c */

#endif
