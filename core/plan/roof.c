/* core/plan/roof.c: see roof.h. */
#include "plan/roof.h"

#include <math.h>
#include <string.h>

#define GB 1e9
#define TFLOP 1e12

/* Memory that nobody has measured is the datasheet's GB as 10^9, somewhat less than a driver shows; what is taken by
 * opening a card is that of an H200 (bench-gpu memory), whose kernels and library are the largest. */
#define SHEET H200_CONTEXT, "memory as its datasheet has it, context as measured on an H200"
#define H200_CONTEXT 571277312

/* Dense figures, no sparsity. Memory bandwidth and 16-bit matrix peak with fp32 accumulation. Multiprocessors and
 * capability: the same papers, and NVIDIA's list of capabilities. */
const turbod_gpu turbod_gpus[] = {
    {"rtx3090", "NVIDIA RTX 3090", 24 * GB, SHEET, 936.2 * GB, 71 * TFLOP,
     "NVIDIA GA102 whitepaper: tensor cores, fp32 sums", 82, 86},
    {"rtx4090", "NVIDIA RTX 4090", 24 * GB, SHEET, 1008 * GB, 82.58 * TFLOP,
     "NVIDIA Ada whitepaper: fp16 outside the tensor cores, the lesson's figure", 128, 89},
    {"rtx4090-tensor", "NVIDIA RTX 4090", 24 * GB, SHEET, 1008 * GB, 165.2 * TFLOP,
     "NVIDIA Ada whitepaper: tensor cores, fp32 sums", 128, 89},
    {"a10", "NVIDIA A10", 24 * GB, SHEET, 600 * GB, 125 * TFLOP, "NVIDIA A10 datasheet", 72, 86},
    {"l4", "NVIDIA L4", 24 * GB, SHEET, 300 * GB, 121 * TFLOP,
     "NVIDIA L4 datasheet, half of the figure with sparsity", 58, 89},
    {"l40s", "NVIDIA L40S", 48 * GB, SHEET, 864 * GB, 362.05 * TFLOP, "NVIDIA L40S datasheet", 142,
     89},
    {"a100-40g", "NVIDIA A100 40 GB", 40 * GB, SHEET, 1555 * GB, 312 * TFLOP,
     "NVIDIA A100 datasheet", 108, 80},
    {"a100-80g", "NVIDIA A100 80 GB SXM", 80 * GB, SHEET, 2039 * GB, 312 * TFLOP,
     "NVIDIA A100 datasheet", 108, 80},
    {"h100", "NVIDIA H100 SXM", 80 * GB, SHEET, 3350 * GB, 989.4 * TFLOP,
     "NVIDIA H100 datasheet, half of the figure with sparsity", 132, 90},
    {"h200", "NVIDIA H200 SXM", 150109880320, H200_CONTEXT, "memory and context as measured on one",
     4800 * GB, 989.4 * TFLOP, "NVIDIA H200 datasheet, half of the figure with sparsity", 132, 90},
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

double turbod_roof_read(const turbod_roof *r, double batch)
{
    return r->weights - r->idle * pow(r->miss, batch - 1);
}

turbod_step turbod_roof_step(const turbod_roof *r, double batch, double n)
{
    double linear_c = 2 * r->params * batch / r->flops;
    double linear_m = turbod_roof_read(r, batch) / r->bandwidth;
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
