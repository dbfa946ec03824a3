/* kernels/cuda/prims_bulk.cuh: copies to shared memory that the device's copy unit makes, and the barriers in shared
 * memory that count their bytes, on capability 9.0 and later; on older ones these functions do nothing.
 *
 * A phase of a barrier ends when so many arrivals came as bulk_begin says, and all bytes that bulk_expect announced.
 * bulk_wait(b, n % 2) waits for the end of phase n (0, 1, ...); it may not be more than one phase late. What was copied is there
 * for whoever waited, for wgmma() too. On the host a copy is made when it is waited for. */
#ifndef TURBOK_CUDA_PRIMS_BULK_CUH
#define TURBOK_CUDA_PRIMS_BULK_CUH

#include "cuda/prims.cuh"

#ifdef __CUDACC__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define BULK_HERE 1
#else
#define BULK_HERE 0
#endif
typedef uint64_t bulk_barrier;

DEVICE uint32_t bulk_address(const void *p)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
/* By one thread, before a barrier of the block and anything else with b. */
DEVICE void bulk_begin(bulk_barrier *b, int arrivals)
{
#if BULK_HERE
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
                 "fence.mbarrier_init.release.cluster;\n"
                 "fence.proxy.async.shared::cta;" ::"r"(bulk_address(b)),
                 "r"(arrivals)
                 : "memory");
#endif
}
/* The same of many: each with bulk_init, and bulk_ready after the last. */
DEVICE void bulk_init(bulk_barrier *b, int arrivals)
{
#if BULK_HERE
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bulk_address(b)), "r"(arrivals)
                 : "memory");
#endif
}
DEVICE void bulk_ready()
{
#if BULK_HERE
    asm volatile("fence.mbarrier_init.release.cluster;\n"
                 "fence.proxy.async.shared::cta;" ::
                     : "memory");
#endif
}
/* Announces bytes and arrives. */
DEVICE void bulk_expect(bulk_barrier *b, int bytes)
{
#if BULK_HERE
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bulk_address(b)),
                 "r"(bytes)
                 : "memory");
#endif
}
DEVICE void bulk_arrive(bulk_barrier *b)
{
#if BULK_HERE
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bulk_address(b)) : "memory");
#endif
}
DEVICE void bulk_wait(bulk_barrier *b, int parity)
{
#if BULK_HERE
    asm volatile("{\n.reg .pred p;\nAGAIN:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(bulk_address(b)),
                 "r"(parity)
                 : "memory");
#endif
}
/* bytes: a multiple of 16, as both addresses are. */
DEVICE void bulk_copy(void *to, const void *from, int bytes, bulk_barrier *b)
{
#if BULK_HERE
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(bulk_address(to)),
                 "l"(from), "r"(bytes), "r"(bulk_address(b))
                 : "memory");
#endif
}
/* The box of `map` (ops.h: turbok_cu_map_rows) whose first number is in `column` of `row`, in rows of 128 bytes, pieces of 16
 * bytes in the order that wgmma() looks for. What lies beyond the matrix becomes zero, and counts. */
DEVICE void bulk_copy_tile(void *to, const void *map, int column, int row, bulk_barrier *b)
{
#if BULK_HERE
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(bulk_address(to)),
                 "l"(map), "r"(column), "r"(row), "r"(bulk_address(b))
                 : "memory");
#endif
}
/* The same; once: in lines that are the first to leave the second cache. */
DEVICE void bulk_copy_tile(void *to, const void *map, int column, int row, bulk_barrier *b,
                           bool once)
{
#if BULK_HERE
    /* as createpolicy makes them, whose result would keep two registers */
    const uint64_t policy = once ? 0x12f0000000000000u : 0x1000000000000000u;
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(bulk_address(to)),
                 "l"(map), "r"(column), "r"(row), "r"(bulk_address(b)), "l"(policy)
                 : "memory");
#endif
}
/* A map that is about to be used. */
DEVICE void bulk_expect_map(const void *map)
{
#if BULK_HERE
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}
#else
#include "cuda/hostrun/bulk.h"
#endif

#endif
