/* kernels/cuda/l_linear.c: launches of matrix products, see ops.h. */
#include "cuda/ops.h"

static void multiply_any(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype,
                         const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                         int32_t out_dtype, void *y, bool few)
{
    struct turbok_cu_multiply_any_args a = {.w = w,
                                            .bias = bias,
                                            .x = x,
                                            .y = y,
                                            .out = out,
                                            .in = in,
                                            .T = T,
                                            .w_dtype = w_dtype,
                                            .out_dtype = out_dtype};
    if (few)
        turbok_cu_launch(cu, TURBOK_CU_gemv_any_f32 + act, TURBOK_CU_DIM(((unsigned)out + 7) / 8),
                         TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
    else
        turbok_cu_launch(cu, TURBOK_CU_gemm_any_f32 + act,
                         TURBOK_CU_DIM(((unsigned)out + 63) / 64, ((unsigned)T + 63) / 64),
                         TURBOK_CU_DIM(256), 0, TURBOK_CU_PDL, &a);
}

static bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* The tensor-core kernels take rows of whole 16 bytes of one 16-bit type. */
static bool tensor(int32_t act, int32_t w_dtype, int32_t in, const void *w, const void *x)
{
    return act != TURBO_F32 && w_dtype == act && in % 8 == 0 && in < 1 << 30 && aligned(w) &&
           aligned(x);
}

/* Shared memory that the kernels want with so much for their queues: sums of 8 or 16 rows, and rows of x where they
 * come after a norm. */
static size_t shared_with(const struct turbok_cu_multiply_args *a, size_t queues)
{
    enum { SUMS = 16 << 10, NORM = 256 };
    return queues + (size_t)SUMS * (a->T > TURBOK_CU_GEMV_ROWS ? 2 : 1) +
           (a->norm ? NORM + (size_t)a->T * (size_t)a->in * 2 : 0);
}

/* Is there no room for the larger queues? */
static bool is_small(const turbok_cu *cu, const struct turbok_cu_multiply_args *a)
{
    return (size_t)cu->shared_optin < shared_with(a, TURBOK_CU_GEMV_SHARED);
}

/* One block a multiprocessor; rows: of a tile. kernel: the first of its four (kernels.def). */
static void stream(turbok_cu *cu, int kernel, int32_t act, const struct turbok_cu_multiply_args *a,
                   int rows)
{
    unsigned tiles = ((unsigned)a->out + (unsigned)rows - 1) / (unsigned)rows,
             most = (unsigned)cu->sm_count;
    size_t x = a->norm ? (size_t)a->T * (size_t)a->in * 2 : 0;
    bool small = is_small(cu, a);
    turbok_cu_launch(cu, kernel + (act == TURBO_BF16) + 2 * small,
                     TURBOK_CU_DIM(tiles < most ? tiles : most), TURBOK_CU_DIM(512),
                     (small ? TURBOK_CU_GEMV_SHARED_SMALL : TURBOK_CU_GEMV_SHARED) + x,
                     TURBOK_CU_PDL, a);
}

void turbok_cu_gemv(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype, const float *bias,
                    int32_t out, int32_t in, const void *x, int32_t T, int32_t out_dtype, void *y)
{
    struct turbok_cu_multiply_args a = {
        .w = w, .bias = bias, .x = x, .y = y, .out = out, .in = in, .T = T, .out_dtype = out_dtype};
    if (tensor(act, w_dtype, in, w, x))
        stream(cu, TURBOK_CU_gemv8_f16, act, &a, 16);
    else
        multiply_any(cu, act, w, w_dtype, bias, out, in, x, T, out_dtype, y, true);
}

/* Does a product take what is beside it? With a norm it must be what it is without, for the same bits. */
static bool takes(const turbok_cu *cu, const struct turbok_cu_multiply_args *a)
{
    struct turbok_cu_multiply_args bare = *a;
    bare.norm = NULL;
    return !cu->deterministic && a->T <= TURBOK_CU_BESIDE_ROWS &&
           (!a->norm ||
            (a->in <= TURBOK_CU_BESIDE_INPUTS && is_small(cu, a) == is_small(cu, &bare) &&
             (size_t)cu->shared_optin >= shared_with(a, TURBOK_CU_GEMV_SHARED_SMALL)));
}

bool turbok_cu_gemv_beside(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype,
                           const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                           int32_t out_dtype, void *y, const turbok_cu_beside *b)
{
    struct turbok_cu_multiply_args a = {.w = w,
                                        .bias = bias,
                                        .x = x,
                                        .y = y,
                                        .h = b->h,
                                        .norm = b->norm,
                                        .eps = b->eps,
                                        .out = out,
                                        .in = in,
                                        .T = T,
                                        .out_dtype = out_dtype};
    if (!tensor(act, w_dtype, in, w, x) || !takes(cu, &a))
        return false;
    stream(cu, TURBOK_CU_gemv8_beside_f16, act, &a, 16);
    return true;
}

bool turbok_cu_gemv_gated(turbok_cu *cu, int32_t act, const void *gate, const void *up,
                          int32_t dtype, int32_t fn, int32_t out, int32_t in, const void *x,
                          int32_t T, void *y, const turbok_cu_beside *b)
{
    struct turbok_cu_multiply_args a = {.w = gate,
                                        .up = up,
                                        .x = x,
                                        .y = y,
                                        .out = out,
                                        .in = in,
                                        .T = T,
                                        .out_dtype = act,
                                        .fn = fn};
    if (b)
        a.norm = b->norm, a.eps = b->eps;
    if (T > TURBOK_CU_GEMV_ROWS || !aligned(up) || !tensor(act, dtype, in, gate, x) ||
        (b && !takes(cu, &a)))
        return false;
    stream(cu, b ? TURBOK_CU_gemv_gated_beside_f16 : TURBOK_CU_gemv_gated_f16, act, &a, 8);
    return true;
}

void turbok_cu_gemm(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype, const float *bias,
                    int32_t out, int32_t in, const void *x, int32_t T, int32_t out_dtype, void *y)
{
    struct turbok_cu_multiply_args a = {
        .w = w, .bias = bias, .x = x, .y = y, .out = out, .in = in, .T = T, .out_dtype = out_dtype};
    if (T <= 16 && !cu->deterministic && tensor(act, w_dtype, in, w, x))
        stream(cu, TURBOK_CU_gemv16_f16, act, &a, 16);
    else if (!turbok_cu_gemm_wide(cu, act, w, NULL, w_dtype, bias, out, in, x, T, out_dtype, y,
                                  NULL))
        multiply_any(cu, act, w, w_dtype, bias, out, in, x, T, out_dtype, y, false);
}

void turbok_cu_read(turbok_cu *cu, const void *in, int64_t n, void *out)
{
    struct turbok_cu_read_memory_args a = {.in = in, .out = out, .n = n};
    turbok_cu_launch(cu, TURBOK_CU_read_memory, TURBOK_CU_DIM((unsigned)cu->sm_count * 4),
                     TURBOK_CU_DIM(512), 0, 0, &a);
}

void turbok_cu_random(turbok_cu *cu, int32_t dtype, void *out, int64_t n, float scale,
                      uint32_t seed)
{
    struct turbok_cu_random_numbers_args a = {
        .out = out, .n = n, .scale = scale, .dtype = dtype, .seed = seed};
    turbok_cu_launch(cu, TURBOK_CU_random_numbers, TURBOK_CU_DIM((unsigned)cu->sm_count * 8),
                     TURBOK_CU_DIM(256), 0, 0, &a);
}
