/* kernels/cuda/read.cu: reads memory as fast as it can: the measure for everything that streams. */
#include "cuda/kernels.h"
#include "cuda/prims.cuh"

TURBOK_KERNEL(read, read, 512, 2)
{
    uint32_t sum = 0;
    int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const char *p = static_cast<const char *>(a.in);
    grid_wait();
    for (; i + 7 * step < a.n; i += 8 * step) {
        uint4 u[8];
        UNROLL
        for (int k = 0; k < 8; k++)
            u[k] = load16_stream(p + 16 * (i + k * step));
        UNROLL
        for (int k = 0; k < 8; k++)
            sum += (u[k].x ^ u[k].y) + (u[k].z ^ u[k].w);
    }
    for (; i < a.n; i += step) {
        uint4 u = load16_stream(p + 16 * i);
        sum += (u.x ^ u.y) + (u.z ^ u.w);
    }
    if (sum == 1u)
        *a.out = sum;
}
