/* kernels/cuda/graph.h: steps that only decode, recorded for some sizes of the batch and replayed. Engine
 * thread. */
#ifndef TURBOK_CUDA_GRAPH_H
#define TURBOK_CUDA_GRAPH_H

#include "cuda/state.h"

/* The bucket of a batch, or -1: it is computed op by op. */
int turbok_cuda_bucket(const turbok_cuda *s, const turbo_batch *b);
/* Its sequences, at most as many as a step may have. */
int32_t turbok_cuda_bucket_size(const turbok_cuda *s, int bucket);
/* Keys of each of them, at most. */
int32_t turbok_cuda_bucket_keys(const turbok_cuda *s, int bucket);
/* b with n tokens, sequences and rows, the added ones of no consequence; its arrays are s's. */
void turbok_cuda_pad(turbok_cuda *s, const turbo_batch *b, int32_t n, turbo_batch *as);
/* Starts the recorded step (*replay), or a recording. */
turbo_status turbok_cuda_graph_begin(turbok_cuda *s, int bucket, bool *replay, turbo_err *err);
/* Ends the recording and starts what was recorded. */
turbo_status turbok_cuda_graph_end(turbok_cuda *s, turbo_err *err);
void turbok_cuda_graph_drop(turbok_cuda *s); /* the recording, where there is one */
void turbok_cuda_graphs_free(turbok_cuda *s);
/* Whether the time between recorded steps is measured (turbok_device_gaps); false: no memory for it. */
bool turbok_cuda_gaps_open(turbok_cuda *s);
void turbok_cuda_gaps_close(turbok_cuda *s);

/* What the driver takes for all recordings there can be, at most. */
uint64_t turbok_cuda_graphs_bytes(const turbok_steps *s);

#endif
