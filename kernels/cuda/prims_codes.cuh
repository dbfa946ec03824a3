/* kernels/cuda/prims_codes.cuh: products of integers of 8 bits of which one or both have no
 * sign, in the layout of mma_s8 (prims.cuh): D = C + A B. C apart from D: a constant that many
 * begin with stays where it is. */
#ifndef TURBOK_CUDA_PRIMS_CODES_CUH
#define TURBOK_CUDA_PRIMS_CODES_CUH

#include "cuda/prims.cuh"

#ifndef __CUDACC__
namespace hostrun
{
template <class B> double byte_of(const uint32_t *r, int i)
{
    return static_cast<double>(static_cast<B>(r[i / 4] >> 8 * (i % 4)));
}
template <class A, class B> void mma_bytes(void *const *lanes, unsigned)
{
    mma_lanes<int, 4>(lanes, byte_of<A>, byte_of<B>);
}
} // namespace hostrun
#endif

/* A [16,32] with signs, B [32,8] without. */
DEVICE void mma_s8u8(int d[4], const int c[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]),
                   "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
    int sum[4] = {c[0], c[1], c[2], c[3]};
    hostrun::mma_arg x = {sum, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_bytes<int8_t, uint8_t>, &x);
    memcpy(d, sum, sizeof sum);
#endif
}
/* Neither has signs. */
DEVICE void mma_u8(int d[4], const int c[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]),
                   "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
    int sum[4] = {c[0], c[1], c[2], c[3]};
    hostrun::mma_arg x = {sum, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_bytes<uint8_t, uint8_t>, &x);
    memcpy(d, sum, sizeof sum);
#endif
}

/* A without signs, B with. C += A B. */
DEVICE void mma_u8s8(int c[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    hostrun::mma_arg x = {c, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_bytes<uint8_t, int8_t>, &x);
#endif
}

#endif
