/* kernels/cuda/prims.cuh: what the kernels are written with: number types, wide loads, warp sums, and the
 * instructions that C++ has no word for (tensor cores, ldmatrix, asynchronous copies, named barriers,
 * dependent launch), each as one small function. Compiled by nvcc these are PTX; without it the same names
 * run on the host (hostrun/device.h). Must not know any kernel.
 *
 * Every kernel begins with TURBOK_KERNEL(name, args, threads, blocks) { ... }: `threads` at most in a block,
 * `blocks` of them meant to share an SM; its parameter is `a`, a struct turbok_cu_<args>_args. It calls
 * grid_wait() before it touches anything that an earlier kernel writes or reads, in every thread, and
 * so may be launched before that one ended. Shared memory: shared_dynamic(), or TURBOK_SHARED. */
#ifndef TURBOK_CUDA_PRIMS_CUH
#define TURBOK_CUDA_PRIMS_CUH

#include <stdint.h>

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define DEVICE_CALLED static __device__ __noinline__ /* keeps its registers from the caller */
#define DEVICE_OF __device__ __forceinline__ /* of a specialisation */
#define DEVICE_METHOD __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(n) TURBOK_PRAGMA(unroll n)
#define TURBOK_PRAGMA(text) _Pragma(#text)
#define TURBOK_KERNEL(name, args, threads, blocks)                                                 \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        name(const __grid_constant__ struct turbok_cu_##args##_args a)
#define TURBOK_SHARED(type, name, n) __shared__ __align__(16) type name[n]
DEVICE char *shared_dynamic()
{
    extern __shared__ __align__(128) char turbok_dynamic[];
    return turbok_dynamic;
}
#else
#include "cuda/hostrun/device.h"
#define DEVICE static inline
#define DEVICE_CALLED static inline
#define DEVICE_OF inline
#define DEVICE_METHOD inline
#define UNROLL
#define UNROLL_BY(n)
#define TURBOK_KERNEL(name, args, threads, blocks)                                                 \
    static void name##_run(const struct turbok_cu_##args##_args &a);                               \
    static void name##_entry(const void *p)                                                        \
    {                                                                                              \
        name##_run(*static_cast<const struct turbok_cu_##args##_args *>(p));                       \
    }                                                                                              \
    static const hostrun::kernel_entry name##_kernel(#name, name##_entry,                          \
                                                     sizeof(struct turbok_cu_##args##_args),       \
                                                     threads);                                     \
    static void name##_run(const struct turbok_cu_##args##_args &a)
#define TURBOK_SHARED(type, name, n)                                                               \
    static const char name##_key = 0;                                                              \
    type *const name = static_cast<type *>(hostrun::shared(&name##_key, sizeof(type) * (n)))
DEVICE char *shared_dynamic()
{
    return static_cast<char *>(hostrun::shared(nullptr, 0));
}
#endif

/* name_f32, name_f16 and name_bf16: the instances of a template name_body<T>(a) for one type of activations. */
#define TURBOK_KERNEL_ACT(name, threads, blocks)                                                   \
    TURBOK_KERNEL(name##_f32, name, threads, blocks)                                               \
    {                                                                                              \
        name##_body<float>(a);                                                                     \
    }                                                                                              \
    TURBOK_KERNEL(name##_f16, name, threads, blocks)                                               \
    {                                                                                              \
        name##_body<f16>(a);                                                                       \
    }                                                                                              \
    TURBOK_KERNEL(name##_bf16, name, threads, blocks)                                              \
    {                                                                                              \
        name##_body<bf16>(a);                                                                      \
    }

#define FULL 0xffffffffu

/* ---- numbers ------------------------------------------------------------------------------------ */

struct bf16 {
    uint16_t x;
};
struct f16 {
    uint16_t x;
};

DEVICE float to_f(float v)
{
    return v;
}
DEVICE float to_f(bf16 v)
{
    return __uint_as_float(static_cast<uint32_t>(v.x) << 16);
}
DEVICE float to_f(f16 v)
{
#ifdef __CUDACC__
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.x));
    return f;
#else
    _Float16 h;
    memcpy(&h, &v.x, 2);
    return static_cast<float>(h);
#endif
}
/* Rounds to nearest, ties to even. pack2: a in the low half. */
template <class T> DEVICE T from_f(float f);
template <> DEVICE_OF float from_f<float>(float f)
{
    return f;
}
template <> DEVICE_OF bf16 from_f<bf16>(float f)
{
    bf16 r;
#ifdef __CUDACC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.x) : "f"(f));
#else
    uint32_t u = __float_as_uint(f);
    r.x = static_cast<uint16_t>(
        (u & 0x7fffffffu) > 0x7f800000u ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1)) >> 16);
#endif
    return r;
}
template <> DEVICE_OF f16 from_f<f16>(float f)
{
    f16 r;
#ifdef __CUDACC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.x) : "f"(f));
#else
    _Float16 h = static_cast<_Float16>(f);
    memcpy(&r.x, &h, 2);
#endif
    return r;
}
template <class T> DEVICE uint32_t pack2(float a, float b)
{
    return static_cast<uint32_t>(from_f<T>(a).x) | static_cast<uint32_t>(from_f<T>(b).x) << 16;
}
#ifdef __CUDACC__
template <> DEVICE_OF uint32_t pack2<bf16>(float a, float b)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
template <> DEVICE_OF uint32_t pack2<f16>(float a, float b)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
    return r;
}
#endif
template <class T> DEVICE float2 unpack2(uint32_t v);
template <> DEVICE_OF float2 unpack2<bf16>(uint32_t v)
{
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
template <> DEVICE_OF float2 unpack2<f16>(uint32_t v)
{
    f16 lo, hi;
    lo.x = static_cast<uint16_t>(v);
    hi.x = static_cast<uint16_t>(v >> 16);
    return make_float2(to_f(lo), to_f(hi));
}

/* a * b + c of both halves, rounded once. */
#ifdef __CUDACC__
DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, bf16)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, f16)
{
    uint32_t r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
#else
template <class T> static inline uint32_t fma2(uint32_t a, uint32_t b, uint32_t c, T)
{
    float2 x = unpack2<T>(a), y = unpack2<T>(b), z = unpack2<T>(c);
    return pack2<T>(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
}
#endif

DEVICE float exp2_fast(float x)
{
#ifdef __CUDACC__
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return exp2f(x);
#endif
}

DEVICE float reciprocal_fast(float x)
{
#ifdef __CUDACC__
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return 1.0f / x;
#endif
}

/* fn: TURBO_ACT_*. */
DEVICE float activation(int fn, float x)
{
    switch (fn) {
    case 1: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case 2: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case 3: return x / (1.0f + expf(-1.702f * x));
    default: return x / (1.0f + expf(-x));
    }
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* 16 bytes at an address that is a multiple of 16. stream: read once, kept out of the first cache. */
DEVICE uint4 load16(const void *p)
{
#ifndef __CUDACC__
    hostrun::aligned(p, 16, "a load");
#endif
    return *static_cast<const uint4 *>(p);
}
DEVICE uint4 load16_stream(const void *p)
{
#ifdef __CUDACC__
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#else
    return load16(p);
#endif
}
DEVICE uint32_t load4(const void *p)
{
#ifndef __CUDACC__
    hostrun::aligned(p, 4, "a load");
#endif
    return *static_cast<const uint32_t *>(p);
}
DEVICE uint2 load8(const void *p)
{
#ifndef __CUDACC__
    hostrun::aligned(p, 8, "a load");
#endif
    return *static_cast<const uint2 *>(p);
}
DEVICE void store16(void *p, uint4 v)
{
#ifndef __CUDACC__
    hostrun::aligned(p, 16, "a store");
#endif
    *static_cast<uint4 *>(p) = v;
}
DEVICE void store8(void *p, uint2 v)
{
#ifndef __CUDACC__
    hostrun::aligned(p, 8, "a store");
#endif
    *static_cast<uint2 *>(p) = v;
}
DEVICE void store4(void *p, uint32_t v)
{
#ifndef __CUDACC__
    hostrun::aligned(p, 4, "a store");
#endif
    *static_cast<uint32_t *>(p) = v;
}

/* Eight numbers in a row, at an address that is a multiple of their size. */
template <class T> DEVICE void load8f(const T *p, float v[8])
{
    uint4 u = load16(p);
    float2 f;
    f = unpack2<T>(u.x), v[0] = f.x, v[1] = f.y;
    f = unpack2<T>(u.y), v[2] = f.x, v[3] = f.y;
    f = unpack2<T>(u.z), v[4] = f.x, v[5] = f.y;
    f = unpack2<T>(u.w), v[6] = f.x, v[7] = f.y;
}
template <> DEVICE_OF void load8f<float>(const float *p, float v[8])
{
    UNROLL
    for (int i = 0; i < 2; i++) {
        uint4 u = load16(p + 4 * i);
        v[4 * i] = __uint_as_float(u.x), v[4 * i + 1] = __uint_as_float(u.y);
        v[4 * i + 2] = __uint_as_float(u.z), v[4 * i + 3] = __uint_as_float(u.w);
    }
}
template <class T> DEVICE void store8f(T *p, const float v[8])
{
    store16(p, make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]),
                          pack2<T>(v[6], v[7])));
}
template <> DEVICE_OF void store8f<float>(float *p, const float v[8])
{
    UNROLL
    for (int i = 0; i < 2; i++)
        store16(p + 4 * i,
                make_uint4(__float_as_uint(v[4 * i]), __float_as_uint(v[4 * i + 1]),
                           __float_as_uint(v[4 * i + 2]), __float_as_uint(v[4 * i + 3])));
}
/* Element i of an array of TURBO_F32 (0), _F16 (1) or _BF16 (2). */
DEVICE float element_of(int dtype, const void *p, int64_t i)
{
    return dtype == 0   ? static_cast<const float *>(p)[i]
           : dtype == 1 ? to_f(static_cast<const f16 *>(p)[i])
                        : to_f(static_cast<const bf16 *>(p)[i]);
}
DEVICE void put_element(int dtype, void *p, int64_t i, float v)
{
    if (dtype == 0)
        static_cast<float *>(p)[i] = v;
    else if (dtype == 1)
        static_cast<f16 *>(p)[i] = from_f<f16>(v);
    else
        static_cast<bf16 *>(p)[i] = from_f<bf16>(v);
}

#include "cuda/prims_copy.cuh"

/* ---- barriers and launches ---------------------------------------------------------------------- */

/* Barrier id 1..15 for n threads, whole warps. */
#ifdef __CUDACC__
DEVICE void barrier_sync(int id, int n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
DEVICE void barrier_arrive(int id, int n)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}
#else
static inline void barrier_sync(int id, int n, int line = __builtin_LINE())
{
    hostrun::barrier_op(id, n, true, line);
}
static inline void barrier_arrive(int id, int n, int line = __builtin_LINE())
{
    hostrun::barrier_op(id, n, false, line);
}
#endif
/* Waits until the kernels before this one are complete; lets the next one be put on the device. */
DEVICE void grid_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void grid_release()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* ---- warps -------------------------------------------------------------------------------------- */

DEVICE int lane_id()
{
    return static_cast<int>(threadIdx.x % 32);
}
DEVICE int warp_id()
{
    return static_cast<int>(threadIdx.x / 32);
}
DEVICE float warp_sum(float v)
{
    UNROLL
    for (int i = 16; i; i /= 2)
        v += __shfl_xor_sync(FULL, v, i);
    return v;
}
DEVICE float warp_max(float v)
{
    UNROLL
    for (int i = 16; i; i /= 2)
        v = fmaxf(v, __shfl_xor_sync(FULL, v, i));
    return v;
}
/* Sum over a block of up to 1024 threads, the same bits in each; room [33]. */
DEVICE float block_sum(float v, float *room)
{
    int warps = static_cast<int>(blockDim.x / 32);
    v = warp_sum(v);
    if (lane_id() == 0)
        room[warp_id()] = v;
    __syncthreads();
    v = lane_id() < warps ? room[lane_id()] : 0.0f;
    v = warp_sum(v);
    __syncthreads();
    return v;
}

/* ---- tensor cores ------------------------------------------------------------------------------- */

/* Lane l holds, with g = l / 4 and j = l % 4, of A [16,16]: a[0] row g, columns 2j and 2j+1; a[1] row g+8;
 * a[2], a[3] the same 8 columns on; of B [16,8]: b[0] rows 2j and 2j+1 of column g, b[1] 8 rows on; of
 * C [16,8]: c[0], c[1] row g, columns 2j and 2j+1, c[2], c[3] row g+8. C += A B. */
#ifndef __CUDACC__
namespace hostrun
{
struct mma_arg {
    void *c;
    const uint32_t *a, *b;
};
template <class T> float element(const uint32_t *r, int i) /* number i of a register file */
{
    T t;
    memcpy(&t, reinterpret_cast<const char *>(r) + i * static_cast<int>(sizeof t), sizeof t);
    return to_f(t);
}
DEVICE float to_f8(int8_t v)
{
    return static_cast<float>(v);
}
/* W numbers in a register: 2 of 16 bits or 4 of 8. Sums are made in the order of k, for eight columns together. */
template <class C, int W, class A, class B> void mma_lanes(void *const *lanes, A get_a, B get_b)
{
    double x[16][8 * W], y[8 * W][8];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4 * W; i++) {
            auto *z = static_cast<mma_arg *>(lanes[l]);
            const int k = i / W / 2 * 4 * W + l % 4 * W + i % W;
            x[l / 4 + i / W % 2 * 8][k] = get_a(z->a, i);
            if (i < 2 * W)
                y[i / W * 4 * W + l % 4 * W + i % W][l / 4] = get_b(z->b, i);
        }
    for (int row = 0; row < 16; row++) {
        double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int k = 0; k < 8 * W; k++)
            for (int col = 0; col < 8; col++)
                sum[col] += x[row][k] * y[k][col];
        for (int col = 0; col < 8; col++) {
            auto *z = static_cast<mma_arg *>(lanes[row % 8 * 4 + col / 2]);
            C *c = static_cast<C *>(z->c) + row / 8 * 2 + col % 2;
            *c = static_cast<C>(static_cast<double>(*c) + sum[col]);
        }
    }
}
template <class C, int W, class Get> void mma_lanes(void *const *lanes, Get get)
{
    mma_lanes<C, W>(lanes, get, get);
}
template <class T> void mma_float(void *const *lanes, unsigned)
{
    mma_lanes<float, 2>(lanes, [](const uint32_t *r, int i) {
        return static_cast<double>(element<T>(r, i));
    });
}
inline void mma_int8(void *const *lanes, unsigned)
{
    mma_lanes<int, 4>(lanes, [](const uint32_t *r, int i) {
        return static_cast<double>(static_cast<int8_t>(r[i / 4] >> 8 * (i % 4)));
    });
}
inline double e4m3(uint32_t v)
{
    int e = static_cast<int>(v >> 3 & 15), m = static_cast<int>(v & 7);
    double d = e == 15 && m == 7 ? static_cast<double>(NAN)
               : e               ? ldexp(8 + m, e - 10)
                                 : ldexp(m, -9);
    return v & 128 ? -d : d;
}
struct e4m3_numbers {
    double of[256];
    e4m3_numbers()
    {
        for (uint32_t c = 0; c < 256; c++)
            of[c] = e4m3(c);
    }
};
inline void mma_fp8(void *const *lanes, unsigned)
{
    static const e4m3_numbers numbers;
    mma_lanes<float, 4>(lanes, [](const uint32_t *r, int i) {
        return numbers.of[r[i / 4] >> 8 * (i % 4) & 255];
    });
}
struct matrix_arg {
    uint32_t *r;
    const void *row;
};
template <int N, bool trans> void matrices(void *const *lanes, unsigned)
{
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < N; i++) {
            uint16_t h[2];
            for (int e = 0; e < 2; e++) {
                int row = trans ? l % 4 * 2 + e : l / 4, col = trans ? l / 4 : l % 4 * 2 + e;
                auto *from = static_cast<matrix_arg *>(lanes[i * 8 + row]);
                memcpy(&h[e], static_cast<const char *>(from->row) + 2 * col, 2);
            }
            static_cast<matrix_arg *>(lanes[l])->r[i] = h[0] | static_cast<uint32_t>(h[1]) << 16;
        }
}
} // namespace hostrun
#endif

DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2], bf16)
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    hostrun::mma_arg x = {c, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_float<bf16>, &x);
#endif
}
DEVICE void mma(float c[4], const uint32_t a[4], const uint32_t b[2], f16)
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    hostrun::mma_arg x = {c, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_float<f16>, &x);
#endif
}
/* The same with 4 numbers of 8 bits in a register, A [16,32] and B [32,8]: signed integers, and e4m3
 * (capability 8.9 and later; on older ones a trap). */
DEVICE void mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    hostrun::mma_arg x = {c, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_int8, &x);
#endif
}
DEVICE void mma_e4m3(float c[4], const uint32_t a[4], const uint32_t b[2])
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDACC__)
    (void)c;
    (void)a;
    (void)b;
    __trap();
#else
    hostrun::mma_arg x = {c, a, b};
    hostrun::warp_op(FULL, "mma", hostrun::mma_fp8, &x);
#endif
}
/* Matrices of 8 x 8 numbers of 16 bits in shared memory: lane 8i + r gives the address of row r (16 bytes)
 * of matrix i; lane l gets in r[i] numbers 2j and 2j+1 of row g, transposed of column g. */
DEVICE void load_matrices4(uint32_t r[4], const void *row)
{
#ifdef __CUDACC__
    uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
#else
    hostrun::aligned(row, 16, "ldmatrix");
    hostrun::matrix_arg x = {r, row};
    hostrun::warp_op(FULL, "ldmatrix", hostrun::matrices<4, false>, &x);
#endif
}
DEVICE void load_matrices4_trans(uint32_t r[4], const void *row)
{
#ifdef __CUDACC__
    uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
#else
    hostrun::aligned(row, 16, "ldmatrix");
    hostrun::matrix_arg x = {r, row};
    hostrun::warp_op(FULL, "ldmatrix", hostrun::matrices<4, true>, &x);
#endif
}

#endif
