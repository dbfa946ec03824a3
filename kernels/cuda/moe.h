/* kernels/cuda/moe.h: a layer of experts on the device. No op of turbo_ops calls it yet. The memory is the
 * caller's; nothing is copied to the host, whatever the routing. */
#ifndef TURBOK_CUDA_MOE_H
#define TURBOK_CUDA_MOE_H

#include "cuda/kernels.h"
#include "cuda/launch.h"

enum {
    TURBOK_CU_MOE_EXPERTS = 1024,
    TURBOK_CU_MOE_CHOICES = 128
}; /* most of a layer, most of a token */

typedef struct turbok_cu_moe {
    const void *up; /* [n][2 I][E] act: gate rows, then up rows of each expert */
    const void *down; /* [n][E][I] act */
    int32_t n, k; /* experts, and how many a token has */
    int32_t E, I; /* multiples of 8 */
    int32_t fn; /* TURBO_ACT_* */
    bool normalise; /* the weights of a token's experts add up to 1 */
} turbok_cu_moe;

/* Scratch of a layer for at most max_T tokens. Pure. */
uint64_t turbok_cu_moe_bytes(const turbok_cu_moe *m, int32_t max_T);
/* out[t] = sum of weight * down(fn(gate(x)) * up(x)) over the k best experts of t. act: TURBO_F16, _BF16.
 * logits [T,n] f32 of the router; x, out [T,E] act. EUNSUPPORTED: fp32, or numbers above that it does not
 * cover; then nothing is launched. */
turbo_status turbok_cu_moe_layer(turbok_cu *cu, int32_t act, const turbok_cu_moe *m,
                                 const float *logits, const void *x, int32_t T, void *out,
                                 void *scratch, turbo_err *err);

#endif
