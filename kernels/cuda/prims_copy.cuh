/* kernels/cuda/prims_copy.cuh: asynchronous copies to shared memory; a part of prims.cuh. */
#ifndef TURBOK_CUDA_PRIMS_COPY_CUH
#define TURBOK_CUDA_PRIMS_COPY_CUH

/* Asynchronous copies to shared memory: 16 bytes, of which those from n (0..16) on become zero; a group is
 * what was begun since the last commit; wait until at most `pending` groups are on their way. */
DEVICE void copy16_async(void *to, const void *from, int n = 16)
{
#ifdef __CUDACC__
    uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(s), "l"(from),
                 "r"(n));
#else
    hostrun::aligned(to, 16, "an asynchronous copy");
    hostrun::aligned(from, 16, "an asynchronous copy");
    hostrun::copy_async(to, from, static_cast<size_t>(n), 16);
#endif
}
/* The same for what is read once: it makes way first in the second cache, where the code of kernels and what
 * they hand each other stay. policy: of once_policy(). */
DEVICE uint64_t once_policy()
{
    uint64_t p = 0;
#ifdef __CUDACC__
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
#endif
    return p;
}
DEVICE void copy16_async_once(void *to, const void *from, int n, uint64_t policy)
{
#ifdef __CUDACC__
    uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(s),
        "l"(from), "r"(n), "l"(policy));
#else
    (void)policy;
    copy16_async(to, from, n);
#endif
}
/* Where a lane's copies go: pieces of `step` bytes. Address and step come from shuffles, so that ptxas does not see
 * that all lanes share a part of a sum: of a policy and an address of two registers, one of them shared
 * (LDGSTS [R+UR]), ptxas 13.0 makes an instruction that devices refuse. */
typedef struct copy_room {
    char *p;
    uint32_t address;
    int step;
} copy_room;
DEVICE copy_room copy_room_of(char *p, int step)
{
    copy_room r = {p, 0, step};
#ifdef __CUDACC__
    const int lane = static_cast<int>(threadIdx.x % 32);
    r.address = __shfl_sync(0xffffffffu, static_cast<uint32_t>(__cvta_generic_to_shared(p)), lane);
    r.step = __shfl_sync(0xffffffffu, step + lane, lane) - lane;
#endif
    return r;
}
/* copy16_async_once to byte `at`, a constant, of a piece. */
DEVICE void copy16_async_once(const copy_room &r, int piece, int at, const void *from, int n,
                              uint64_t policy)
{
#ifdef __CUDACC__
    const uint32_t s = r.address + static_cast<uint32_t>(piece * r.step);
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(
            s + static_cast<uint32_t>(at)),
        "l"(from), "r"(n), "l"(policy));
#else
    copy16_async_once(r.p + piece * r.step + at, from, n, policy);
#endif
}
DEVICE void copy_commit()
{
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    hostrun::copy_commit();
#endif
}
template <int pending> DEVICE void copy_wait()
{
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
    hostrun::copy_wait(pending);
#endif
}

/* What this thread has copied so is not read by wgmma(): no proxy_fence() is called for. */
DEVICE void copies_not_multiplied()
{
#ifndef __CUDACC__
    hostrun::self->copies_landed = false;
#endif
}

#endif
