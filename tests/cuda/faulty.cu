/* tests/cuda/faulty.cu: small kernels for test_hostrun, one right and each of the others wrong in one way
 * that hostrun must notice. Compiled for the host only. */
#include "cuda/prims_bulk.cuh"
#include "cuda/prims_cluster.cuh"
#include "cuda/prims_wgmma.cuh"
#include "faulty.h"

TURBOK_KERNEL(fine, faulty, 128, 1)
{
    TURBOK_SHARED(int, s, 128);
    int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    s[t] = t;
    __syncthreads();
    int other = s[n - 1 - t], sum = t;
    for (int i = 16; i; i /= 2)
        sum += __shfl_xor_sync(FULL, sum, i);
    barrier_sync(1, n);
    a.out[blockIdx.x * blockDim.x + threadIdx.x] =
        other + 1000 * sum + (__ballot_sync(FULL, t & 1) & 2);
}
TURBOK_KERNEL(leaves_barrier, faulty, 128, 1)
{
    if (threadIdx.x == 5)
        return;
    __syncthreads();
    a.out[threadIdx.x] = 1;
}
TURBOK_KERNEL(two_barriers, faulty, 128, 1)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    a.out[threadIdx.x] = 1;
}
TURBOK_KERNEL(short_barrier, faulty, 128, 1)
{
    if (threadIdx.x < 64)
        barrier_sync(2, 96);
    a.out[threadIdx.x] = 1;
}
TURBOK_KERNEL(missing_lane, faulty, 128, 1)
{
    int v = 7;
    if (threadIdx.x % 32 != 3)
        v = __shfl_xor_sync(FULL, v, 1);
    a.out[threadIdx.x] = v;
}
TURBOK_KERNEL(mixed_operations, faulty, 128, 1)
{
    int v = 7;
    if (threadIdx.x % 2)
        v = __shfl_xor_sync(FULL, v, 1);
    else
        v = static_cast<int>(__ballot_sync(FULL, 1));
    a.out[threadIdx.x] = v;
}
TURBOK_KERNEL(foreign_lane, faulty, 128, 1)
{
    int v = 7;
    if (threadIdx.x % 32 < 8)
        v = __shfl_sync(0xffu, v, 9);
    a.out[threadIdx.x] = v;
}
TURBOK_KERNEL(misaligned, faulty, 128, 1)
{
    a.out[threadIdx.x] = static_cast<int>(load16(reinterpret_cast<const char *>(a.in) + 4).x);
}
/* Not caught by a text: what is read is poison. */
TURBOK_KERNEL(unwritten_shared, faulty, 128, 1)
{
    TURBOK_SHARED(float, s, 128);
    if (threadIdx.x != 9)
        s[threadIdx.x] = 1.0f;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < 128; i++)
        sum += s[i];
    a.out[threadIdx.x] = __float_as_int(sum);
}
TURBOK_KERNEL(no_barrier, faulty, 128, 1)
{
    float *s = reinterpret_cast<float *>(shared_dynamic());
    s[threadIdx.x] = 1.0f;
    a.out[threadIdx.x] = __float_as_int(s[127 - threadIdx.x]);
}
TURBOK_KERNEL(copy_not_awaited, faulty, 128, 1)
{
    char *s = shared_dynamic();
    copy16_async(s + 16 * threadIdx.x, reinterpret_cast<const char *>(a.in) + 16 * threadIdx.x);
    copy_commit();
    copy16_async(s + 16 * (128 + threadIdx.x), a.in);
    copy_commit();
    copy_wait<1>(); /* the second group is still on its way */
    a.out[threadIdx.x] =
        static_cast<int>(load4(s + 16 * (128 * static_cast<unsigned>(a.n) + threadIdx.x)));
    copy_wait<0>();
}
/* n 0: right, column 9 + 2 (t mod 4) of a product is its own number; 1: without the fence; 2: what was copied is not shown to the
 * product; 3: a sum is read before it is there. */
TURBOK_KERNEL(group_product, faulty, 128, 1)
{
    bf16 *tile = reinterpret_cast<bf16 *>(shared_tiles());
    for (int i = static_cast<int>(threadIdx.x); i < 64 * 16; i += 128) {
        int n = i / 16, k = i % 16;
        tile[n * 64 + (k / 8 ^ (n & 7)) * 8 + k % 8] = from_f<bf16>(k ? 0.0f : static_cast<float>(n));
    }
    copy16_async(tile + 64 * 64 + 8 * threadIdx.x, a.in);
    copy_commit();
    copy_wait<0>();
    if (a.n != 2)
        proxy_fence();
    __syncthreads();
    const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    float sums[32];
    for (int i = 0; i < 32; i++)
        sums[i] = -1.0f;
    if (a.n != 1)
        wgmma_fence();
    wgmma<0>(sums, ones, wgmma_tile(tile, 1024, 0), 0, bf16());
    wgmma_commit();
    const float early = sums[5];
    wgmma_wait<0>(sums);
    a.out[threadIdx.x] = static_cast<int>(a.n == 3 ? early : sums[5]);
}
/* n 0: right; 1: with a barrier that nobody began; 2: an arrival is missing; 3: bytes are; 4: nobody waits; 5: the copy is read
 * before it is there. */
TURBOK_KERNEL(bulk, faulty, 128, 1)
{
    TURBOK_SHARED(bulk_barrier, b, 1);
    const char *mine = shared_tiles() + 4 * threadIdx.x;
    if (threadIdx.x == 0 && a.n != 1)
        bulk_begin(b, a.n == 2 ? 2 : 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        bulk_expect(b, a.n == 3 ? 528 : 512);
        bulk_copy(shared_tiles(), a.in, 512, b);
    }
    const uint32_t early = load4(mine);
    if (a.n != 4)
        bulk_wait(b, 0);
    a.out[threadIdx.x] = static_cast<int>(a.n == 5 ? early : load4(mine));
}
/* A tile of 16 rows, whose map is `in`. n 0: right; 1: a.in is no map. */
TURBOK_KERNEL(tile, faulty, 128, 1)
{
    TURBOK_SHARED(bulk_barrier, b, 1);
    const int t = static_cast<int>(threadIdx.x), row = t / 8;
    if (t == 0) {
        bulk_begin(b, 1);
        bulk_expect(b, 2048);
        bulk_copy_tile(shared_tiles(), a.in, 8, 1, b);
    }
    __syncthreads();
    bulk_wait(b, 0);
    a.out[t] = static_cast<int>(load4(shared_tiles() + row * 128 + (t % 8 ^ row % 8) * 16));
}
/* Caught by the address sanitizer and by guard bands. */
TURBOK_KERNEL(beyond_shared, faulty, 128, 1)
{
    int *s = reinterpret_cast<int *>(shared_dynamic());
    s[threadIdx.x] = 3;
    __syncthreads();
    a.out[threadIdx.x] = s[threadIdx.x + static_cast<unsigned>(a.n)];
}
TURBOK_KERNEL(beyond_global, faulty, 128, 1)
{
    a.out[threadIdx.x + static_cast<unsigned>(a.n)] = 3;
}
/* Each block hands its number to the next one of its cluster. n: 1 before it met the others, 2 one thread does not
 * arrive, 3 to a block that may have ended. */
TURBOK_KERNEL(cluster, faulty, 128, 1)
{
    TURBOK_SHARED(float, from, 1);
    const int n = cluster_size(), rank = cluster_rank();
    if (a.n != 1) {
        if (a.n != 2 || threadIdx.x)
            cluster_arrive();
        if (a.n == 2 && threadIdx.x == 0)
            return;
        cluster_wait();
    }
    if (a.n == 3) {
        if (rank == 0)
            return;
        for (int i = 0; i < 3; i++)
            __syncthreads();
    }
    if (threadIdx.x == 0)
        cluster_put(from, (rank + 1) % n, static_cast<float>(blockIdx.x));
    cluster_arrive();
    cluster_wait();
    a.out[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<int>(from[0]);
}
