/* kernels/cuda/prims_cluster.cuh: blocks that run together (a cluster, launch.h) and write into each other's shared memory,
 * on capability 9.0 and later; on older ones a block is alone.
 *
 * All threads of all blocks arrive at a barrier of the cluster, and each waits for it before it arrives again. The memory of
 * another block is there from the first such barrier on, until that block ends. What was put before a thread arrived
 * is there for those who waited. */
#ifndef TURBOK_CUDA_PRIMS_CLUSTER_CUH
#define TURBOK_CUDA_PRIMS_CLUSTER_CUH

#include "cuda/prims.cuh"

#ifdef __CUDACC__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CLUSTER_HERE 1
#else
#define CLUSTER_HERE 0
#endif

/* Blocks of this one's cluster, along x; 1 where the launch asked for none. */
DEVICE int cluster_size()
{
    int n = 1;
#if CLUSTER_HERE
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(n));
#endif
    return n;
}
DEVICE int cluster_rank()
{
    int n = 0;
#if CLUSTER_HERE
    asm("mov.u32 %0, %%cluster_ctaid.x;" : "=r"(n));
#endif
    return n;
}
DEVICE void cluster_arrive()
{
#if CLUSTER_HERE
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
DEVICE void cluster_wait()
{
#if CLUSTER_HERE
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
}
#if CLUSTER_HERE
/* Where p, in this block's shared memory, lies in that of block `rank`. */
DEVICE uint32_t cluster_address(const float *p, int rank)
{
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(at)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(p))), "r"(rank));
    return at;
}
#endif
/* *p = v in the shared memory of block `rank` of the cluster, which may be this one. p: where it lies in this block's. */
DEVICE void cluster_put(float *p, int rank, float v)
{
#if CLUSTER_HERE
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(cluster_address(p, rank)), "f"(v) : "memory");
#else
    *p = v;
#endif
}
/* The same with four numbers; p is a multiple of 16 bytes. */
DEVICE void cluster_put4(float *p, int rank, float4 v)
{
#if CLUSTER_HERE
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(cluster_address(p, rank)),
                 "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
#else
    *reinterpret_cast<float4 *>(p) = v;
#endif
}
#else
#define CLUSTER_HERE 1
DEVICE int cluster_size()
{
    return static_cast<int>(hostrun::cluster_size());
}
DEVICE int cluster_rank()
{
    return static_cast<int>(hostrun::cluster_rank());
}
DEVICE void cluster_arrive()
{
    hostrun::cluster_arrive();
}
DEVICE void cluster_wait()
{
    hostrun::cluster_wait();
}
DEVICE void cluster_put(float *p, int rank, float v)
{
    *static_cast<float *>(hostrun::cluster_place(p, static_cast<unsigned>(rank))) = v;
}
DEVICE void cluster_put4(float *p, int rank, float4 v)
{
    *static_cast<float4 *>(hostrun::cluster_place(p, static_cast<unsigned>(rank))) = v;
}
#endif

#endif
