/* kernels/cuda/hostrun/device.h: the words of CUDA C++ that the kernels use, for a plain C++17 compiler:
 * indices, qualifiers, vector types, warp and block intrinsics, atomics. Included by prims.cuh instead of
 * the CUDA headers. Warp operations go through hostrun::warp_op: the last lane that comes computes for
 * all. Device functions run on fibers of one host thread, so atomics are plain. */
#ifndef HOSTRUN_DEVICE_H
#define HOSTRUN_DEVICE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

#include "hostrun.h"

struct uint3 {
    unsigned x, y, z;
};
template <class T, int A> struct alignas(A) hostrun_vec2 {
    T x, y;
};
template <class T, int A> struct alignas(A) hostrun_vec4 {
    T x, y, z, w;
};
typedef hostrun_vec2<float, 8> float2;
typedef hostrun_vec4<float, 16> float4;
typedef hostrun_vec2<int, 8> int2;
typedef hostrun_vec4<int, 16> int4;
typedef hostrun_vec2<unsigned, 8> uint2;
typedef hostrun_vec4<unsigned, 16> uint4;
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline int4 make_int4(int x, int y, int z, int w)
{
    return {x, y, z, w};
}

namespace hostrun
{
typedef uint3 dims;
struct product { /* of a warp group, begun and not yet carried out: see wgmma.h */
    void (*multiply)(const product *const *lanes);
    float *c;
    const uint32_t *a; /* NULL: A is where `rows` points to, and lies there as B does */
    const char *rows, *b;
    int next, wide, columns;
    bool transposed, add;
};
struct thread {
    uint3 idx = {0, 0, 0};
    int index = 0; /* in the block */
    std::vector<std::vector<product>> products; /* by groups, the last one open */
    int products_pending = 0;
    bool products_fenced = false;
    bool copies_landed = false; /* asynchronous ones, since the last proxy_fence() */
};
enum { BULK_BEGUN = 0x62756c6b };
struct bulk_barrier { /* of prims_bulk.cuh, in shared memory */
    int begun, arrivals, left; /* left: arrivals that this phase still waits for */
    int64_t bytes; /* that it waits for */
    int64_t phase;
};
typedef void (*warp_fn)(void *const *lanes, unsigned mask);

extern thread *self;
extern dims block_dim, grid_dim, block_idx;
[[noreturn]] inline void gone()
{
    for (;;) {
    }
}
/* Ends the launch with a text; does not come back. */
void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Waits until all lanes of mask are here; fn then sees the args of all. */
void warp_op(unsigned mask, const char *what, warp_fn fn, void *arg);
void barrier_op(int id, int count, bool wait, int line); /* count 0: the whole block */
void copy_async(void *to, const void *from, size_t n, size_t bytes);
void copy_commit();
void copy_wait(int pending);
void arrive_bulk(bulk_barrier *b, int64_t bytes); /* and waits for so many more */
void copy_bulk(void *to, const void *from, int bytes, bulk_barrier *b);
void copy_tile(void *to, const hostrun_map *map, int column, int row, bulk_barrier *b);
void wait_bulk(bulk_barrier *b, int parity); /* for a phase of that parity to end */
/* Of the block's cluster, which is one block where the launch asks for none: see prims_cluster.cuh. */
unsigned cluster_size();
unsigned cluster_rank();
void cluster_arrive();
void cluster_wait();
void *cluster_place(const void *p, unsigned rank); /* the same place in another block's memory */
/* Memory of the block, one piece for each key; NULL: the dynamic one. */
void *shared(const void *key, size_t bytes);
struct kernel_entry {
    hostrun_kernel k;
    kernel_entry(const char *name, void (*run)(const void *), size_t bytes, int threads);
};
inline void aligned(const void *p, size_t n, const char *what)
{
    if (reinterpret_cast<uintptr_t>(p) % n)
        fail("%s of %zu bytes at %p, which is not a multiple", what, n, p);
}
inline int lane()
{
    return self->index % 32;
}
/* Pieces of 16 bytes change places as the address says, as on a device. */
inline void land_tile(void *to, const hostrun_map &map, int column, int row)
{
    for (int r = 0; r < map.box_rows; r++)
        for (int k = 0; k < map.box_columns; k++) {
            const int64_t y = row + static_cast<int64_t>(r), x = column + static_cast<int64_t>(k);
            uint16_t v = 0;
            if (y >= 0 && y < map.rows && x >= 0 && x < map.columns)
                memcpy(&v, map.base + y * map.pitch + x * 2, 2);
            const uintptr_t at = reinterpret_cast<uintptr_t>(to) + static_cast<uintptr_t>(r) * 128 +
                                 static_cast<uintptr_t>(k) * 2;
            memcpy(reinterpret_cast<void *>(at ^ (at >> 7 & 7) << 4), &v, 2);
        }
}
template <class T> struct shuffle_arg {
    T in, out;
    int from;
};
template <class T> void shuffle_all(void *const *lanes, unsigned mask)
{
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1))
            continue;
        auto *a = static_cast<shuffle_arg<T> *>(lanes[l]);
        if (!(mask >> a->from & 1))
            return fail("a shuffle reads lane %d, which mask %08x does not name", a->from, mask);
        a->out = static_cast<shuffle_arg<T> *>(lanes[a->from])->in;
    }
}
template <class T> T shuffle(unsigned mask, T v, int from)
{
    shuffle_arg<T> a = {v, v, from & 31};
    warp_op(mask, "a shuffle", shuffle_all<T>, &a);
    return a.out;
}
/* Combines a 32-bit number of each lane with how; all lanes get the result. */
struct vote_arg {
    unsigned in, out;
};
template <unsigned (*how)(unsigned sum, unsigned in, int lane, bool first)>
void vote_all(void *const *lanes, unsigned mask)
{
    unsigned sum = 0;
    bool first = true;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) {
            sum = how(sum, static_cast<vote_arg *>(lanes[l])->in, l, first);
            first = false;
        }
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1)
            static_cast<vote_arg *>(lanes[l])->out = sum;
}
template <unsigned (*how)(unsigned, unsigned, int, bool)> unsigned vote(unsigned mask, unsigned in)
{
    vote_arg a = {in, 0};
    warp_op(mask, "a vote or reduction", vote_all<how>, &a);
    return a.out;
}
inline unsigned vote_bit(unsigned s, unsigned in, int l, bool)
{
    return s | (in ? 1u << l : 0u);
}
inline unsigned vote_sum(unsigned s, unsigned in, int, bool)
{
    return s + in;
}
inline unsigned vote_max(unsigned s, unsigned in, int, bool first)
{
    return first || in > s ? in : s;
}
inline unsigned vote_min(unsigned s, unsigned in, int, bool first)
{
    return first || in < s ? in : s;
}
inline void nothing(void *const *, unsigned)
{
}
inline void match(void *const *lanes, unsigned mask)
{
    for (int l = 0; l < 32; l++)
        for (int k = 0; k < 32; k++)
            if (mask >> l & mask >> k & 1) {
                auto *a = static_cast<vote_arg *>(lanes[l]);
                a->out |= a->in == static_cast<vote_arg *>(lanes[k])->in ? 1u << k : 0u;
            }
}
} // namespace hostrun

#define threadIdx (hostrun::self->idx)
#define blockIdx (hostrun::block_idx)
#define blockDim (hostrun::block_dim)
#define gridDim (hostrun::grid_dim)
#define warpSize 32
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict

static inline void __syncthreads(int line = __builtin_LINE())
{
    hostrun::barrier_op(0, 0, true, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu)
{
    int none = 0;
    hostrun::warp_op(mask, "__syncwarp", hostrun::nothing, &none);
}
template <class T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32)
{
    int l = hostrun::lane();
    return hostrun::shuffle(mask, v, (l & ~(width - 1)) | (from & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32)
{
    int l = hostrun::lane(), from = l ^ bits;
    return hostrun::shuffle(mask, v, from / width > l / width ? l : from);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, int by, int width = 32)
{
    int l = hostrun::lane();
    return hostrun::shuffle(mask, v, l % width + by < width ? l + by : l);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, int by, int width = 32)
{
    int l = hostrun::lane();
    return hostrun::shuffle(mask, v, l % width >= by ? l - by : l);
}
static inline unsigned __ballot_sync(unsigned mask, int p)
{
    return hostrun::vote<hostrun::vote_bit>(mask, p != 0);
}
static inline int __any_sync(unsigned mask, int p)
{
    return __ballot_sync(mask, p) != 0;
}
static inline int __all_sync(unsigned mask, int p)
{
    return __ballot_sync(mask, p) == mask;
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned v)
{
    return hostrun::vote<hostrun::vote_sum>(mask, v);
}
static inline int __reduce_add_sync(unsigned mask, int v)
{
    return static_cast<int>(hostrun::vote<hostrun::vote_sum>(mask, static_cast<unsigned>(v)));
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned v)
{
    return hostrun::vote<hostrun::vote_max>(mask, v);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned v)
{
    return hostrun::vote<hostrun::vote_min>(mask, v);
}
static inline unsigned __match_any_sync(unsigned mask, unsigned v)
{
    hostrun::vote_arg a = {v, 0};
    hostrun::warp_op(mask, "__match_any_sync", hostrun::match, &a);
    return a.out;
}

static inline int __popc(unsigned v)
{
    return __builtin_popcount(v);
}
static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
static inline int __clz(int v)
{
    return v ? __builtin_clz(static_cast<unsigned>(v)) : 32;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s)
{
    uint64_t all = static_cast<uint64_t>(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned k = s >> 4 * i & 15, v = static_cast<unsigned>(all >> 8 * (k & 7)) & 255;
        out |= (k & 8 ? (v & 128 ? 255u : 0u) : v) << 8 * i;
    }
    return out;
}
static inline unsigned __vmaxu2(unsigned a, unsigned b)
{
    unsigned low = (a & 0xffff) > (b & 0xffff) ? a & 0xffff : b & 0xffff;
    return (a >> 16 > b >> 16 ? a >> 16 : b >> 16) << 16 | low;
}
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
    return c;
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
static inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline int __float_as_int(float f)
{
    return static_cast<int>(__float_as_uint(f));
}
static inline float __int_as_float(int i)
{
    return __uint_as_float(static_cast<unsigned>(i));
}
static inline int __float2int_rn(float f)
{
    return static_cast<int>(nearbyintf(f));
}
static inline float __fmul_rn(float a, float b)
{
    volatile float c = a * b;
    return c;
}
static inline float __fadd_rn(float a, float b)
{
    volatile float c = a + b;
    return c;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
/* Macros: the C library has functions of these names. */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float rsqrtf(float f)
{
    return 1.0f / sqrtf(f);
}
static inline void sincospif(float x, float *s, float *c)
{
    *s = static_cast<float>(sin(static_cast<double>(x) * M_PI));
    *c = static_cast<float>(cos(static_cast<double>(x) * M_PI));
}
template <class T> static inline T min(T a, T b)
{
    return b < a ? b : a;
}
template <class T> static inline T max(T a, T b)
{
    return a < b ? b : a;
}
template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}
static inline void __threadfence()
{
}
static inline void __threadfence_block()
{
}
static inline void __nanosleep(unsigned)
{
}
[[noreturn]] static inline void __trap()
{
    hostrun::fail("__trap()");
    hostrun::gone();
}

template <class T> static inline T atomicAdd(T *p, T v)
{
    T old = *p;
    *p = static_cast<T>(old + v);
    return old;
}
template <class T> static inline T atomicMax(T *p, T v)
{
    T old = *p;
    *p = old < v ? v : old;
    return old;
}
template <class T> static inline T atomicMin(T *p, T v)
{
    T old = *p;
    *p = v < old ? v : old;
    return old;
}
template <class T> static inline T atomicOr(T *p, T v)
{
    T old = *p;
    *p = old | v;
    return old;
}
template <class T> static inline T atomicExch(T *p, T v)
{
    T old = *p;
    *p = v;
    return old;
}
template <class T> static inline T atomicCAS(T *p, T expected, T v)
{
    T old = *p;
    if (old == expected)
        *p = v;
    return old;
}
static inline unsigned atomicInc(unsigned *p, unsigned top)
{
    unsigned old = *p;
    *p = old >= top ? 0 : old + 1;
    return old;
}

#endif
