/* kernels/cuda/w8_wide.cu: instances of wq_wide.cuh for 8 bits. */
#include "cuda/wq_wide.cuh"

WQ_WIDE_OF(w8, 8, f16)
WQ_WIDE_OF(w8, 8, bf16)
