/* core/plan/roof.c: see roof.h. */
#include "plan/roof.h"

#include <math.h>
#include <string.h>

#define GB 1e9
#define TFLOP 1e12

/* Dense figures, no sparsity. Memory bandwidth and 16-bit matrix peak with fp32 accumulation. */
const turbod_gpu turbod_gpus[] = {
    {"rtx3090", "NVIDIA RTX 3090", 24 * GB, 936.2 * GB, 71 * TFLOP,
     "NVIDIA GA102 whitepaper: tensor cores, fp32 sums"},
    {"rtx4090", "NVIDIA RTX 4090", 24 * GB, 1008 * GB, 82.58 * TFLOP,
     "NVIDIA Ada whitepaper: fp16 outside the tensor cores, the lesson's figure"},
    {"rtx4090-tensor", "NVIDIA RTX 4090", 24 * GB, 1008 * GB, 165.2 * TFLOP,
     "NVIDIA Ada whitepaper: tensor cores, fp32 sums"},
    {"a10", "NVIDIA A10", 24 * GB, 600 * GB, 125 * TFLOP, "NVIDIA A10 datasheet"},
    {"l4", "NVIDIA L4", 24 * GB, 300 * GB, 121 * TFLOP,
     "NVIDIA L4 datasheet, half of the figure with sparsity"},
    {"l40s", "NVIDIA L40S", 48 * GB, 864 * GB, 362.05 * TFLOP, "NVIDIA L40S datasheet"},
    {"a100-40g", "NVIDIA A100 40 GB", 40 * GB, 1555 * GB, 312 * TFLOP, "NVIDIA A100 datasheet"},
    {"a100-80g", "NVIDIA A100 80 GB SXM", 80 * GB, 2039 * GB, 312 * TFLOP, "NVIDIA A100 datasheet"},
    {"h100", "NVIDIA H100 SXM", 80 * GB, 3350 * GB, 989.4 * TFLOP,
     "NVIDIA H100 datasheet, half of the figure with sparsity"},
    {"h200", "NVIDIA H200 SXM", 141 * GB, 4800 * GB, 989.4 * TFLOP,
     "NVIDIA H200 datasheet, half of the figure with sparsity"},
};
const size_t turbod_n_gpus = sizeof turbod_gpus / sizeof turbod_gpus[0];

const turbod_gpu *turbod_gpu_find(const char *id)
{
    for (size_t i = 0; i < turbod_n_gpus; i++)
        if (!strcmp(turbod_gpus[i].id, id))
            return &turbod_gpus[i];
    return NULL;
}

double turbod_roof_flop(const turbod_roof *r, double n)
{
    return 2 * r->params + 4 * r->heads * n;
}

double turbod_roof_flop_lesson(const turbod_roof *r, double n)
{
    return 2 * r->params + 2 * r->heads * n;
}

turbod_step turbod_roof_step(const turbod_roof *r, double batch, double n)
{
    double linear_c = 2 * r->params * batch / r->flops, linear_m = r->weights / r->bandwidth;
    double attn_c = 4 * r->heads * n * batch / r->flops;
    double attn_m = r->kv_token * n * batch / r->bandwidth;
    return (turbod_step){
        .compute = linear_c + attn_c,
        .memory = linear_m + attn_m,
        .seconds = fmax(linear_c, linear_m) + fmax(attn_c, attn_m),
    };
}

double turbod_roof_ridge(const turbod_roof *r)
{
    return r->weights / r->bandwidth * r->flops / (2 * r->params);
}

double turbod_roof_ridge_at(const turbod_roof *r, double n)
{
    double each = turbod_roof_flop(r, n) / r->flops - r->kv_token * n / r->bandwidth;
    return each > 0 ? r->weights / r->bandwidth / each : INFINITY;
}
