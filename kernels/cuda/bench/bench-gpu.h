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
extern int32_t only_batch; /* of parts and step; 0: all */
extern double read_rate; /* bytes a second of the read kernel, in this run */

void *room(size_t bytes); /* on the device; ends the program when there is none */
void give(void *p);
void *numbers(int64_t n, float scale); /* bf16 */
void *upload(const void *host, size_t bytes);
/* Median time of a replay of the graph of what work launches. */
double seconds(void (*work)(void *), void *ctx, int rounds);
/* The same of several that are replayed in turns, so that a card which slows down under load does so for all of them. */
typedef struct timed {
    void (*work)(void *);
    void *ctx;
    double seconds; /* out */
} timed;
void in_turns(timed *all, int n, int rounds);
/* One row; bytes or flops is 0. limit: of the rate; 0: none. */
void report(const char *what, const char *of, double s, double bytes, double flops, double limit);
/* The same into the CSV alone. A limit that is not finite is none. */
void record(const char *what, const char *of, double s, double bytes, double flops, double limit);

typedef struct shape {
    const char *name;
    int32_t L, E, I, H, K, D, V;
} shape;
extern const shape shapes[];
enum { SHAPES = 3 };
const shape *shape_at(int i); /* of those, or where it is to be quick a tiny one */

/* The products of a decode step of at most 256 sequences with other weights than bf16. */
enum { QUANT_QKV, QUANT_WO, QUANT_GATED, QUANT_DOWN };
typedef struct products {
    /* y = the matrix of a layer times x [T,in]; QUANT_GATED: gate, up and what joins them. b: what is beside it, or NULL;
     * false, and nothing done: it does not take that. */
    bool (*layer)(void *ctx, int which, int32_t layer, const void *x, int32_t T, void *y,
                  const turbok_cu_beside *b);
    /* logits [R,V]; NULL: the table is the head as well */
    void (*head)(void *ctx, const shape *s, const void *x, int32_t R, float *logits);
    void *ctx;
    void *table; /* of embeddings, [V,E] bf16 */
    double bytes; /* of all weights of a step */
    bool beside; /* of one row, norms and sums are beside them */
} products;
/* Measures and reports a step of S sequences at context 512 (parts.c). */
void step_with(const shape *s, const products *p, int32_t S, const char *text);

/* dense.c: cuBLASLt, where it is there; NULL: own kernels multiply, as in the backend. Opened by open_blas. */
extern turbok_blas *blas;
void open_blas(void);
/* Seconds that the products of one layer take with T rows by the fastest of cuBLASLt's kernels, each alone; 0: it is not there. They
 * are measured in turns with what stands beside them. */
double dense_layer(const shape *m, int32_t T, timed *beside);
double dense_best(int32_t out, int32_t in, int32_t T); /* the same of one product */

/* A product as the backend makes it (dense.c): y [T,out] of type = x [T,in] w^T, bf16. After open_blas. */
void dense(const void *w, int32_t out, int32_t in, const void *x, int32_t T, int32_t type, void *y);
/* The same of gate and up of many rows with what joins them; false: not in one launch. */
bool dense_gated(const void *gate, const void *up, int32_t out, int32_t in, const void *x,
                 int32_t T, void *y);
/* The same of queries, keys and values with RoPE and the cache. */
bool dense_turned(const void *qkv, int32_t in, const void *x, const turbok_cu_attn *at,
                  const turbok_cu_batch *b, void *q);

void bench_single(void); /* parts.c */
void bench_gemv(void); /* gemv.c */
void bench_decode(void);
void bench_step(void); /* of more than one sequence */
void bench_parts(void); /* of a step, each alone */
void bench_prefill(void);
void bench_dense(void); /* dense.c */
/* memory.c: before and after the device is opened. */
void bench_memory(void);
void bench_memory_later(void);
/* parts.c: steps of two shapes, launched and recorded; stage is told after each. */
void graphs_in_memory(void (*stage)(const char *what));
void bench_quant(void); /* quant.c */
void quant_steps(bool single); /* of one sequence, or of more */
void bench_quant_rows(void);
void bench_w8a8(void); /* w8a8.c */
void bench_load(void); /* load.c */
void bench_tower(void); /* tower.c */

#endif
