/* kernels/cuda/blas.c: see blas.h. The types and numbers are those of cublasLt.h, which need not be there.
 *
 * The library thinks in columns: Y^T [out,T] = W [out,in] X^T [in,T], where W as it lies is its transpose and
 * X^T is X as it lies. */
#include "cuda/blas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum {
    COMPUTE_32F = 68,
    R_32F = 0,
    R_16F = 2,
    R_16BF = 14,
    DESC_TRANSA = 3,
    LAYOUT_COLS = 3,
    PREF_WORKSPACE = 1,
    OP_T = 1,
};

typedef struct blas_algo {
    uint64_t data[8];
} blas_algo;

typedef struct blas_choice {
    blas_algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} blas_choice;

#define SHAPES 1024

/* The choice of an algorithm costs more than the call that uses it, and steps with prompts in them have any number
 * of rows: it is made for multiples of ROUND. */
#define ROUND 64

typedef struct shape {
    int32_t act, out, in, T, out_dtype;
    int32_t now; /* rows that the layouts are set to, at most T */
    void *w, *x, *y; /* layouts; NULL: an empty place */
    blas_choice choice;
} shape;

struct turbok_blas {
    turbok_cu *cu;
    void *library, *handle, *desc, *pref;
#define F(name, text, args) int(*name) args;
#include "cuda/blas.def"
#undef F
    void *space;
    size_t space_bytes;
    shape shapes[SHAPES];
};

static turbo_status find_all(turbok_blas *b, turbo_err *err)
{
    static const struct {
        const char *name;
        size_t offset;
    } functions[] = {
#define F(name, text, args) {text, offsetof(turbok_blas, name)},
#include "cuda/blas.def"
#undef F
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *p = dlsym(b->library, functions[i].name);
        if (!p)
            return turbok_fail(err, TURBO_EUNSUPPORTED,
                               "cuBLASLt has no %s; install that of CUDA 12 or 13, or set "
                               "TURBO_CUDA_BLAS=none",
                               functions[i].name);
        memcpy((char *)b + functions[i].offset, &p, sizeof p);
    }
    return TURBO_OK;
}

static void *open_library(void)
{
    static const char *const names[] = {
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "/usr/local/cuda/lib64/libcublasLt.so.13",
        "/usr/local/cuda/lib64/libcublasLt.so.12",
    };
    const char *named = getenv("TURBO_CUDA_BLAS"), *driver = getenv("TURBO_CUDA_DRIVER");
    void *library = NULL;
    if (named && *named)
        return strcmp(named, "none") ? dlopen(named, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (driver && *driver)
        return NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

turbo_status turbok_blas_open(turbok_cu *cu, turbok_blas **out, turbo_err *err)
{
    const int transposed = OP_T;
    void *library = open_library();
    *out = NULL;
    if (!library)
        return TURBO_OK;
    turbok_blas *b = calloc(1, sizeof *b);
    if (!b) {
        dlclose(library);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for cuBLASLt");
    }
    b->cu = cu;
    b->library = library;
    turbo_status st = find_all(b, err);
    if (!st && (b->create(&b->handle) || b->desc_create(&b->desc, COMPUTE_32F, R_32F) ||
                b->desc_set(b->desc, DESC_TRANSA, &transposed, sizeof transposed) ||
                b->pref_create(&b->pref)))
        st = turbok_fail(
            err, TURBO_EINTERNAL,
            "cuBLASLt does not start on this device; TURBO_CUDA_BLAS=none does without");
    if (st) {
        turbok_blas_close(b);
        return st;
    }
    *out = b;
    return TURBO_OK;
}

static void forget(turbok_blas *b, shape *s)
{
    void *const layouts[] = {s->w, s->x, s->y};
    for (size_t i = 0; i < 3; i++)
        if (layouts[i])
            (void)b->layout_destroy(layouts[i]);
    *s = (shape){0};
}

void turbok_blas_close(turbok_blas *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < SHAPES; i++)
        forget(b, &b->shapes[i]);
    if (b->pref)
        (void)b->pref_destroy(b->pref);
    if (b->desc)
        (void)b->desc_destroy(b->desc);
    if (b->handle)
        (void)b->destroy(b->handle);
    dlclose(b->library);
    free(b);
}

void turbok_blas_space(turbok_blas *b, void *space, size_t bytes)
{
    if (!b)
        return;
    b->space = space;
    b->space_bytes = space ? bytes : 0;
    (void)b->pref_set(b->pref, PREF_WORKSPACE, &b->space_bytes, sizeof b->space_bytes);
}

static int type_of(int32_t dtype)
{
    return dtype == TURBO_F32 ? R_32F : dtype == TURBO_F16 ? R_16F : R_16BF;
}

/* The entry of a shape, made when it is new. NULL: the library has no kernel for it. */
static shape *shape_of(turbok_blas *b, int32_t act, int32_t out, int32_t in, int32_t T,
                       int32_t out_dtype)
{
    uint64_t h = (uint64_t)out * 0x9e3779b97f4a7c15u ^ (uint64_t)in * 0xc2b2ae3d27d4eb4fu ^
                 (uint64_t)T * 0x165667b19e3779f9u ^ (uint64_t)out_dtype;
    shape *s = &b->shapes[(h ^ h >> 29) % SHAPES];
    int n = 0;
    if (s->y && s->act == act && s->out == out && s->in == in && s->T == T &&
        s->out_dtype == out_dtype)
        return s;
    forget(b, s);
    if (b->layout_create(&s->w, type_of(act), (uint64_t)in, (uint64_t)out, in) ||
        b->layout_create(&s->x, type_of(act), (uint64_t)in, (uint64_t)T, in) ||
        b->layout_create(&s->y, type_of(out_dtype), (uint64_t)out, (uint64_t)T, out) ||
        b->choose(b->handle, b->desc, s->w, s->x, s->y, s->y, b->pref, 1, &s->choice, &n) ||
        n < 1) {
        forget(b, s);
        return NULL;
    }
    s->act = act;
    s->out = out;
    s->in = in;
    s->T = s->now = T;
    s->out_dtype = out_dtype;
    return s;
}

/* Y = X W^T by the entry of a shape of at least T rows; false: the library refuses. */
static bool multiply(turbok_blas *b, shape *s, int32_t T, const void *w, const void *x, void *y)
{
    const float one = 1, zero = 0;
    const uint64_t cols = (uint64_t)T;
    if (s && s->now != T) {
        s->now = T;
        if (b->layout_set(s->x, LAYOUT_COLS, &cols, sizeof cols) ||
            b->layout_set(s->y, LAYOUT_COLS, &cols, sizeof cols))
            return false;
    }
    return s && !b->matmul(b->handle, b->desc, &one, w, s->w, x, s->x, &zero, y, s->y, y, s->y,
                           &s->choice.algo, b->space, b->space_bytes, b->cu->stream);
}

static int32_t rounded(int32_t T)
{
    return T <= ROUND ? T : (T + ROUND - 1) / ROUND * ROUND;
}

bool turbok_blas_choose(turbok_blas *b, int32_t act, int32_t out, int32_t in, int32_t T,
                        int32_t out_dtype, int i)
{
    enum { PROPOSALS = 16 };
    blas_choice all[PROPOSALS];
    int n = 0;
    shape *s = shape_of(b, act, out, in, rounded(T), out_dtype);
    if (!s || i < 0 || i >= PROPOSALS ||
        b->choose(b->handle, b->desc, s->w, s->x, s->y, s->y, b->pref, PROPOSALS, all, &n) ||
        i >= n)
        return false;
    s->choice = all[i];
    return true;
}

void turbok_blas_gemm(turbok_blas *b, int32_t act, const void *w, int32_t out, int32_t in,
                      const void *x, int32_t T, int32_t out_dtype, void *y)
{
    if (turbok_cu_bad(b->cu) || T < 1)
        return;
    int32_t most = rounded(T);
    if (multiply(b, shape_of(b, act, out, in, most, out_dtype), T, w, x, y))
        return;
    /* What suits a few rows more may not be possible with these. */
    if (most == T || !multiply(b, shape_of(b, act, out, in, T, out_dtype), T, w, x, y))
        turbok_cu_note(b->cu, TURBOK_CU_LAUNCH_FAILED, "cuBLASLt cannot multiply");
}
