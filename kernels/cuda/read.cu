/* kernels/cuda/read.cu: for measuring: reads memory as fast as it can, which everything that streams is held
 * against, and fills it with random numbers. */
#include "cuda/kernels.h"
#include "cuda/prims.cuh"

TURBOK_KERNEL(read_memory, read_memory, 512, 2)
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

TURBOK_KERNEL(random_numbers, random_numbers, 256, 4)
{
    grid_wait();
    int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i < a.n; i += step) {
        uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u + a.seed;
        float sum = 0;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        UNROLL
        for (int k = 0; k < 4; k++) /* of variance 1/3: the sum of four numbers from -0.5 to 0.5 */
            sum += static_cast<float>(x >> 16 * k & 0xffff) / 65536.0f - 0.5f;
        put_element(a.dtype, a.out, i, sum * 1.7320508f * a.scale);
    }
}
