/* kernels/cuda/l_sample.c: see sample.h. */
#include "cuda/sample.h"

enum { THREADS = 512, PART = 512 /* logits */ };

void turbok_cu_sample(turbok_cu *cu, const turbok_cu_sample_row *rows, int32_t n, int32_t V,
                      float *logits, void *scratch, int32_t *tokens, int32_t *status)
{
    struct turbok_cu_sample_args a = {
        .rows = rows,
        .logits = logits,
        .sums = scratch,
        .tokens = tokens,
        .status = status,
        .V = V,
        .data_error = TURBO_EDATA,
    };
    if (n < 1)
        return;
    /* Few rows do not fill the device. A part has its place among the sums of its row, of which
     * there are two for each 64 logits. */
    int32_t most = cu->sm_count / n, parts = V / PART < most ? V / PART : most;
    if (parts > 1) {
        a.parts = parts < THREADS ? parts : THREADS;
        turbok_cu_launch(cu, TURBOK_CU_sample_best,
                         TURBOK_CU_DIM((unsigned)a.parts, (unsigned)n, 1),
                         TURBOK_CU_DIM(THREADS, 1, 1), 0, TURBOK_CU_PDL, &a);
    }
    turbok_cu_launch(cu, TURBOK_CU_sample, TURBOK_CU_DIM((unsigned)n, 1, 1),
                     TURBOK_CU_DIM(THREADS, 1, 1), 0, TURBOK_CU_PDL, &a);
}

void turbok_cu_sample_tokens(turbok_cu *cu, turbok_cu_sample_state *state, uint32_t *counts,
                             const int32_t *tokens, int32_t n, int32_t V, bool begin)
{
    struct turbok_cu_sample_tokens_args a = {
        .state = state,
        .counts = counts,
        .tokens = tokens,
        .V = V,
        .n = n,
        .begin = begin,
    };
    turbok_cu_launch(cu, TURBOK_CU_sample_tokens, TURBOK_CU_DIM(1, 1, 1),
                     TURBOK_CU_DIM(THREADS, 1, 1), 0, TURBOK_CU_PDL, &a);
}
