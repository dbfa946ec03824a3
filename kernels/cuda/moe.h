/* kernels/cuda/moe.h: a layer of experts on the device. The memory is the caller's; nothing is copied to the
 * host, whatever the routing. */
#ifndef TURBOK_CUDA_MOE_H
#define TURBOK_CUDA_MOE_H

#include "cuda/kernels.h"
#include "cuda/launch.h"

typedef struct turbok_cu_moe {
    const turbok_cu_qmat *w; /* device: [n][3] gate [I,E], up [I,E] and down [E,I] of each expert */
    turbok_cu_moe_format up, down; /* of gate and up, and of down */
    int32_t n, k; /* experts, and how many a token has: up to TURBO_MOE_EXPERTS, _CHOSEN */
    int32_t E, I;
    int32_t fn; /* TURBO_ACT_* */
    bool normalise; /* the weights of a token's experts add up to 1 */
} turbok_cu_moe;

/* Scratch of a layer for at most max_T tokens. Pure. */
uint64_t turbok_cu_moe_bytes(const turbok_cu_moe *m, int32_t act, int32_t max_T);
/* out[t] = sum of weight * down(fn(gate(x)) * up(x)) over the k best experts of t. logits [T,n] f32 of the
 * router; x, out [T,E] act. Tensor cores multiply 16-bit activations with numbers of their own type, E and I
 * being multiples of 8, and with codes; anything else is multiplied one number after the other. */
void turbok_cu_moe_layer(turbok_cu *cu, int32_t act, const turbok_cu_moe *m, const float *logits,
                         const void *x, int32_t T, void *out, void *scratch);

#endif
