/* kernels/cuda/linear.c: matrices on the device and the choice of who multiplies: a matrix stays row-major in
 * the type of its file. Few rows go to the streaming kernel, more to cuBLAS where it is there and the types
 * are its own, else to the tensor-core kernel. */
#include <stdlib.h>
#include <string.h>

#include "cuda/state.h"

static bool sizes(int32_t dtype, int64_t out, int64_t in, size_t *bytes)
{
    size_t n;
    return (dtype == TURBO_F32 || dtype == TURBO_F16 || dtype == TURBO_BF16) && out >= 1 &&
           in >= 1 && out <= INT32_MAX && in <= INT32_MAX &&
           !__builtin_mul_overflow((size_t)out, (size_t)in, &n) &&
           !__builtin_mul_overflow(n, turbok_dtype_size(dtype), bytes);
}

static bool gridded(const turbok_part *parts, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (parts[i].grid)
            return true;
    return false;
}

/* Rows of all parts; false: not a matrix this device stores. */
static bool shape_of(int32_t dtype, const turbok_part *parts, int32_t n, int64_t in, int64_t *out,
                     bool *has_bias, size_t *bytes)
{
    *out = 0;
    *has_bias = false;
    for (int32_t i = 0; i < n; i++) {
        if (parts[i].rows < 1 || __builtin_add_overflow(*out, parts[i].rows, out))
            return false;
        *has_bias = *has_bias || parts[i].bias;
    }
    return sizes(dtype, *out, in, bytes);
}

static turbo_status no_such_matrix(int64_t in, turbo_err *err)
{
    return turbok_fail(
        err, TURBO_EUNSUPPORTED,
        "a matrix of %lld inputs of this kind cannot be stored on CUDA; use f32, f16 "
        "or bf16, or device = \"cpu\"",
        (long long)in);
}

turbo_status turbok_cuda_full(int64_t out, int64_t in, size_t bytes, turbo_err *err)
{
    return turbok_fail(err, TURBO_ENOMEM,
                       "the device is full: no memory for a matrix of %lld x %lld (%zu MiB); use a "
                       "smaller or quantised model, or end what else uses the device",
                       (long long)out, (long long)in, bytes >> 20);
}

uint64_t turbok_cuda_rows_bytes(int32_t dtype, const turbok_part *parts, int32_t n, int64_t in,
                                uint32_t flags, turbo_err *err)
{
    size_t bytes;
    int64_t out;
    bool has_bias;
    for (int32_t i = 0; flags & TURBOK_LINEAR_EXPERT && i < n; i++)
        if (parts[i].grid && parts[i].grid->perm) {
            turbok_fail(err, TURBO_EUNSUPPORTED,
                        "experts whose inputs are permuted (desc_act) are not multiplied on CUDA; "
                        "use a folder without desc_act, or device = \"cpu\"");
            return 0;
        }
    if (gridded(parts, n))
        return turbok_cuda_grids_bytes(parts, n, in, flags, err);
    if (!shape_of(dtype, parts, n, in, &out, &has_bias, &bytes)) {
        no_such_matrix(in, err);
        return 0;
    }
    return turbok_alloc_size(bytes) +
           (has_bias ? turbok_alloc_size((size_t)out * sizeof(float)) : 0);
}

static turbo_status put_bias(turbok_device *d, turbo_linear *w, const turbok_part *parts, int32_t n)
{
    size_t bytes = (size_t)w->out * sizeof(float);
    float *wide = calloc((size_t)w->out, sizeof *wide);
    int64_t at = 0;
    w->bias = turbok_alloc(d, TURBOK_MEM_LINEAR, bytes);
    if (!wide || !w->bias) {
        free(wide);
        return TURBO_ENOMEM;
    }
    for (int32_t i = 0; i < n; at += parts[i++].rows)
        if (parts[i].bias)
            turbok_prim_scalar.widen(parts[i].bias_dtype, parts[i].bias, parts[i].rows, wide + at);
    turbok_cuda_upload(d, w->bias, wide, bytes);
    free(wide);
    return TURBO_OK;
}

turbo_status turbok_cuda_linear_rows_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                         int32_t n, int64_t in, uint32_t flags, turbo_linear **res,
                                         turbo_err *err)
{
    bool has_bias;
    int64_t out;
    size_t bytes, at = 0;
    if (gridded(parts, n))
        return turbok_cuda_grids_new(d, parts, n, in, flags, res, err);
    if (!shape_of(dtype, parts, n, in, &out, &has_bias, &bytes))
        return no_such_matrix(in, err);
    turbok_cuda_matrix *m = calloc(1, sizeof *m);
    if (!m)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
    turbo_linear *w = &m->l;
    *w = (turbo_linear){.dtype = dtype, .out = out, .in = in, .data_bytes = bytes};
    w->data = turbok_alloc(d, TURBOK_MEM_LINEAR, bytes);
    if (!w->data || (has_bias && put_bias(d, w, parts, n))) {
        turbok_cuda_linear_free(d, w);
        return turbok_cuda_full(out, in, bytes, err);
    }
    const turbok_cuda *s = d->exec.self;
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < n && !st; i++) {
        size_t size = (size_t)parts[i].rows * (size_t)in * turbok_dtype_size(dtype);
        const turbok_cuda_source from = {parts[i].data, parts[i].file, dtype, parts[i].finite};
        if (parts[i].later && parts[i].file)
            st = turbok_cuda_send_later(d, (char *)w->data + at, &parts[i], dtype, size, err);
        else
            st = turbok_cuda_send(d, (char *)w->data + at, &from, size, err);
        at += size;
    }
    st = st ? st : turbok_cu_status(s->cu, err);
    if (st)
        turbok_cuda_linear_free(d, w);
    else
        *res = w;
    return st;
}

void turbok_cuda_linear_free(turbok_device *d, turbo_linear *w)
{
    if (!w)
        return;
    for (int32_t i = 0; i < w->n_parts; i++)
        turbok_cuda_linear_free(d, w->parts[i]);
    free(w->parts);
    turbok_cuda_forget(d->exec.self, w->data, w->data_bytes);
    turbok_release(d, TURBOK_MEM_LINEAR, w->data, w->data_bytes);
    turbok_release(d, TURBOK_MEM_LINEAR, w->bias, (size_t)w->out * sizeof(float));
    free(w);
}

static bool by_library(const turbok_cuda *s, const turbo_linear *w, int32_t T)
{
    return s->blas && w->dtype == s->act && s->act != TURBO_F32 && !s->cu->deterministic &&
           T > TURBOK_CU_GEMV_ROWS && !w->parts && !turbok_cuda_coded(w);
}

const float *turbok_cuda_multiply_bare(turbok_cuda *s, const turbo_linear *w, const void *x,
                                       int32_t T, void *y)
{
    if (by_library(s, w, T)) {
        turbok_blas_gemm(s->blas, s->act, w->data, (int32_t)w->out, (int32_t)w->in, x, T, s->act,
                         y);
        return w->bias;
    }
    turbok_cuda_multiply(s, w, x, T, s->act, y);
    return NULL;
}

void turbok_cuda_multiply(turbok_cuda *s, const turbo_linear *w, const void *x, int32_t T,
                          int32_t out_dtype, void *y)
{
    int32_t out = (int32_t)w->out, in = (int32_t)w->in;
    if (w->parts || turbok_cuda_coded(w)) {
        turbok_cuda_coded_multiply(s, w, x, T, out_dtype, y);
    } else if (T <= TURBOK_CU_GEMV_ROWS && !s->cu->deterministic) {
        turbok_cu_gemv(s->cu, s->act, w->data, w->dtype, w->bias, out, in, x, T, out_dtype, y);
    } else if (by_library(s, w, T)) {
        if (turbok_cu_gemm_suits(s->cu, T, out, in) &&
            turbok_cu_gemm_wide(s->cu, s->act, w->data, NULL, w->dtype, w->bias, out, in, x, T,
                                out_dtype, y, NULL))
            return;
        turbok_blas_gemm(s->blas, s->act, w->data, out, in, x, T, out_dtype, y);
        if (w->bias)
            turbok_cu_add_bias(s->cu, out_dtype, y, w->bias, T, out);
    } else {
        turbok_cu_gemm(s->cu, s->act, w->data, w->dtype, w->bias, out, in, x, T, out_dtype, y);
    }
}
