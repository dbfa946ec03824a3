/* kernels/cuda/w8.cu: kernels for matrices of 8 bits; wq.cuh. */
#include "cuda/wq_gemm.cuh"
#include "cuda/wq_plain.cuh"
#include "cuda/wq_stream.cuh"

#define FOR(T) \
    TURBOK_KERNEL(w8_gemv_##T, wq, 256, 3) { wq::gemv<T, 8, 1, false>(a); } \
    TURBOK_KERNEL(w8_gemv2_##T, wq, 256, 2) { wq::gemv<T, 8, 2, false>(a); } \
    TURBOK_KERNEL(w8_gated_##T, wq, 256, 2) { wq::gemv<T, 8, 2, true>(a); } \
    TURBOK_KERNEL(w8_gemm16_##T, wq, 256, 1) { wq::gemm<T, 8, 2, true>(a); } \
    TURBOK_KERNEL(w8_gemm64_##T, wq, 256, 1) { wq::gemm<T, 8, 8, false>(a); } \
    TURBOK_KERNEL(w8_rows_##T, wq_rows, 256, 4) { wq::rows<T, 8>(a); }

FOR(bf16)
FOR(f16)

#define STREAM(name, T, parts, form) \
    TURBOK_KERNEL(w8_stream_##name##_##T, wq, 512, 1) { wq::stream<T, 8, 1, parts, wq::form>(a); } \
    TURBOK_KERNEL(w8_stream2_##name##_##T, wq, 512, 1) { wq::stream<T, 8, 2, parts, wq::form>(a); }
#define FORMS(T) \
    STREAM(f1, T, 1, FIXED) \
    STREAM(f2, T, 2, FIXED) \
    STREAM(z1, T, 1, ZEROS) \
    STREAM(z2, T, 2, ZEROS) \
    STREAM(m1, T, 1, MINIMA) \
    STREAM(m2, T, 2, MINIMA) \
    STREAM(t1, T, 1, TABLED) \
    STREAM(t2, T, 2, TABLED) \
    STREAM(e1, T, 1, E4M3) \
    STREAM(e2, T, 2, E4M3)

FORMS(bf16)
FORMS(f16)
TURBOK_KERNEL(w8_plain, wq, 256, 2) { wq::plain<8>(a); }
TURBOK_KERNEL(w8_rows_f32, wq_rows, 256, 4) { wq::rows<float, 8>(a); }
