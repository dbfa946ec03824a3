/* kernels/cuda/sample.h: sampling on the device, the tokens of samp-std to the bit (doc/sampling.md). The
 * memory is the caller's. Not covered: logprobs and programs, which need the logits on the host. */
#ifndef TURBOK_CUDA_SAMPLE_H
#define TURBOK_CUDA_SAMPLE_H

#include "cuda/kernels.h"
#include "cuda/launch.h"

/* Scratch of a draw from n rows of V logits. Pure. */
static inline uint64_t turbok_cu_sample_bytes(int32_t n, int32_t V)
{
    return (uint64_t)n * 2 * (((uint64_t)V + 63) / 64) * sizeof(double);
}
/* rows [n], tokens [n] and status [n] in device memory; logits [*,V] are changed; scratch
 * [turbok_cu_sample_bytes]. A row with status TURBO_EDATA has a logit that is no number or none that is finite:
 * its token is -1 and its state as before. Every other token is accepted: position, recent and counts move on. */
void turbok_cu_sample(turbok_cu *cu, const turbok_cu_sample_row *rows, int32_t n, int32_t V,
                      float *logits, void *scratch, int32_t *tokens, int32_t *status);
/* Begins a sequence with a prompt (state and counts are cleared), or with begin false adds output that came
 * from elsewhere. tokens [n] in device memory, all in 0..V-1; counts NULL without penalties. */
void turbok_cu_sample_tokens(turbok_cu *cu, turbok_cu_sample_state *state, uint32_t *counts,
                             const int32_t *tokens, int32_t n, int32_t V, bool begin);

#endif
