/* kernels/cuda/w4.cu: kernels for matrices of 4 bits; wq.cuh. */
#include "cuda/wq_digits.cuh"
#include "cuda/wq_gemm.cuh"
#include "cuda/wq_plain.cuh"

#define FOR(T) \
    TURBOK_KERNEL(w4_gemv_##T, wq, 256, 3) { wq::gemv<T, 4, 1, false>(a); } \
    TURBOK_KERNEL(w4_gemv2_##T, wq, 256, 2) { wq::gemv<T, 4, 2, false>(a); } \
    TURBOK_KERNEL(w4_gated_##T, wq, 256, 2) { wq::gemv<T, 4, 2, true>(a); } \
    TURBOK_KERNEL(w4_gemm16_##T, wq, 256, 1) { wq::gemm<T, 4, 2, true>(a); } \
    TURBOK_KERNEL(w4_gemm64_##T, wq, 256, 1) { wq::gemm<T, 4, 8, false>(a); } \
    TURBOK_KERNEL(w4_rows_##T, wq_rows, 256, 4) { wq::rows<T, 4>(a); }

FOR(bf16)
FOR(f16)

#define STREAM(name, T, parts, form) \
    TURBOK_KERNEL(w4_stream_##name##_##T, wq, 512, 1) { wq::stream<T, 4, 1, parts, wq::form>(a); } \
    TURBOK_KERNEL(w4_stream2_##name##_##T, wq, 512, 1) { wq::stream<T, 4, 2, parts, wq::form>(a); }
#define DIGITS(name, T, parts, form) \
    STREAM(name, T, parts, form) \
    TURBOK_KERNEL(w4_digits_##name##_##T, wq, TURBOK_CU_ROOMY, 1) { wq::digits<T, 1, parts, wq::form>(a); } \
    TURBOK_KERNEL(w4_digits2_##name##_##T, wq, 512, 1) { wq::digits<T, 2, parts, wq::form>(a); }
#define FORMS(T) \
    DIGITS(f1, T, 1, FIXED) \
    DIGITS(f2, T, 2, FIXED) \
    DIGITS(f4, T, 4, FIXED) \
    DIGITS(z1, T, 1, ZEROS) \
    DIGITS(z2, T, 2, ZEROS) \
    DIGITS(z4, T, 4, ZEROS) \
    DIGITS(m1, T, 1, MINIMA) \
    DIGITS(m2, T, 2, MINIMA) \
    DIGITS(m4, T, 4, MINIMA) \
    STREAM(t1, T, 1, TABLED) \
    STREAM(t2, T, 2, TABLED) \
    STREAM(t4, T, 4, TABLED)

/* What decodes most often: nothing is asked that is known before. S: type of scales. */
#define SINGLE(name, T, S, groups, form) \
    TURBOK_KERNEL(w4_single_##name##_##S##_##T, wq, TURBOK_CU_ROOMY, 1) { wq::single<T, S, 1, groups, wq::form>(a); } \
    TURBOK_KERNEL(w4_single2_##name##_##S##_##T, wq, 512, 1) { wq::single<T, S, 2, groups, wq::form>(a); }
#define SINGLES_OF(T, S) \
    SINGLE(f1, T, S, 1, FIXED) \
    SINGLE(z1, T, S, 1, ZEROS) \
    SINGLE(f4, T, S, 4, FIXED)

SINGLES_OF(bf16, bf16)
SINGLES_OF(bf16, f16)
SINGLES_OF(f16, bf16)
SINGLES_OF(f16, f16)
FORMS(bf16)
FORMS(f16)
TURBOK_KERNEL(w4_plain, wq, 256, 2) { wq::plain<4>(a); }
TURBOK_KERNEL(w4_rows_f32, wq_rows, 256, 4) { wq::rows<float, 4>(a); }

TURBOK_KERNEL(wq_permute, wq_permute, 256, 4)
{
    const int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = (int64_t)blockIdx.y * a.in;
    grid_wait();
    if (k >= a.in)
        return;
    if (a.wide)
        ((float *)a.out)[row + k] = ((const float *)a.x)[row + a.perm[k]];
    else
        ((uint16_t *)a.out)[row + k] = ((const uint16_t *)a.x)[row + a.perm[k]];
}
