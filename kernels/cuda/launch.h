/* kernels/cuda/launch.h: a CUDA device that is open: context, stream, kernels, and how one is launched.
 *
 * Everything runs in order on one stream. An error of a launch or a copy is kept (the first one) and makes
 * all later calls do nothing, so that a chain of ops need not look at each: who waits for results asks
 * turbok_cu_status. One thread at a time; a second thread must call turbok_cu_enter first.
 * Must not know: models, batches, weights. */
#ifndef TURBOK_CUDA_LAUNCH_H
#define TURBOK_CUDA_LAUNCH_H

#include <stdbool.h>

#include "cuda/driver.h"

/* TURBOK_CU_<name> for each kernel of kernels.def. Of a kernel for several types, name_f32 + dtype with
 * TURBO_F32, _F16, _BF16 is the instance. */
typedef enum {
#define KERNEL(name, file) TURBOK_CU_##name,
#define KERNEL_ACT(name, file)                                                                     \
    TURBOK_CU_##name##_f32, TURBOK_CU_##name##_f16, TURBOK_CU_##name##_bf16,
#include "cuda/kernels.def"
#undef KERNEL
#undef KERNEL_ACT
    TURBOK_CU_KERNELS
} turbok_cu_kernel;

typedef struct turbok_cu_dim {
    unsigned x, y, z;
} turbok_cu_dim;
/* TURBOK_CU_DIM(x), (x, y) or (x, y, z): missing ones are 0, which counts as 1. */
static inline turbok_cu_dim turbok_cu_dims(const unsigned n[3])
{
    return (turbok_cu_dim){n[0], n[1], n[2]};
}
#define TURBOK_CU_DIM(...) turbok_cu_dims((const unsigned[3]){__VA_ARGS__})

/* The kernel calls prims.cuh's dependency wait before it reads what earlier kernels wrote: it may be put
 * on the device while they still run. */
enum { TURBOK_CU_PDL = 1u };
/* In clusters of n blocks along x, a divisor of their number (prims_cluster.cuh); each alone where card or driver have no
 * clusters. */
#define TURBOK_CU_CLUSTER(n) ((unsigned)(n) << 8)

typedef struct turbok_cu {
    turbok_cu_driver drv;
    int device; /* the driver's handle */
    int ordinal;
    turbok_cu_context ctx;
    turbok_cu_stream stream;
    int sm_count, major, minor, shared_optin, l2_bytes;
    /* Code for capability 9.0 runs: kernels wait for those before them (TURBOK_CU_PDL) and there are clusters. */
    bool code_90;
    bool warp_groups; /* and wgmma */
    bool arch_900; /* kernels were compiled with __CUDA_ARCH__ 900: that code, or PTX */
    uint64_t total_bytes; /* of the card */
    uint64_t
        context_bytes; /* gone of the card by opening it: context, kernels; of the first device of this process on it
                               also what other processes hold */
    uint64_t held_before; /* not free when it was opened, by what this process had there already */
    char name[96];
    bool no_pdl; /* TURBO_CUDA_PDL=0: for finding out what a race is made of */
    int together; /* times 64 keys that a block of decode_brief.cuh gets; TURBO_CUDA_TOGETHER */
    int long_keys; /* tokens of a sequence from which on prompts take tiles of 128 keys (l_attention.c) */
    int shared_keys; /* blocks of 128 rows up to which prompts have twice as many (l_attention.c) */
    int fused_width; /* of the narrowest rows whose norms become parts of products; TURBO_CUDA_FUSE */
    bool deterministic; /* a row's bits must not depend on the size of its batch */
    int result; /* the first error; 0 */
    turbo_err err; /* and its text */
    turbok_cu_module *modules;
    turbok_cu_function functions[TURBOK_CU_KERNELS + 1];
    int shared_set[TURBOK_CU_KERNELS + 1]; /* dynamic shared memory that was asked for */
} turbok_cu;

/* Opens card `ordinal`. EUNSUPPORTED: no driver, card or kernel for it; EINVAL: no such ordinal; texts name
 * the fix. */
turbo_status turbok_cu_open(int ordinal, turbok_cu **out, turbo_err *err);
void turbok_cu_close(turbok_cu *cu); /* NULL allowed; waits for the stream */
/* Fills context_bytes with what is not free now and was before. */
turbo_status turbok_cu_measure(turbok_cu *cu, turbo_err *err);
/* Makes the context current on the calling thread. */
turbo_status turbok_cu_enter(turbok_cu *cu, turbo_err *err);

/* Puts a kernel on the stream. params: its argument struct (struct turbok_cu_<name>_args), copied.
 * shared: bytes of dynamic shared memory. flags: TURBOK_CU_PDL, TURBOK_CU_CLUSTER(n). */
void turbok_cu_launch(turbok_cu *cu, int kernel, turbok_cu_dim grid, turbok_cu_dim block,
                      size_t shared, unsigned flags, const void *params);

/* Keeps an error unless one is kept already; what says what was tried. */
void turbok_cu_note(turbok_cu *cu, int result, const char *what);
static inline bool turbok_cu_bad(const turbok_cu *cu)
{
    return cu->result != 0;
}
/* The kept error, or OK. */
turbo_status turbok_cu_status(const turbok_cu *cu, turbo_err *err);
/* Waits for everything on the stream, then as turbok_cu_status. */
turbo_status turbok_cu_wait(turbok_cu *cu, turbo_err *err);

/* Copies in stream order. Host memory must be pinned (host_alloc) to overlap with anything. */
void turbok_cu_to_device(turbok_cu *cu, turbok_cu_ptr dst, const void *src, size_t bytes);
void turbok_cu_to_host(turbok_cu *cu, void *dst, turbok_cu_ptr src, size_t bytes);
void turbok_cu_fill(turbok_cu *cu, turbok_cu_ptr dst, int value, size_t bytes);
/* The device address of a pointer: all addresses of device memory are 64 bits on both sides. */
static inline turbok_cu_ptr turbok_cu_at(const void *p)
{
    return (turbok_cu_ptr)(uintptr_t)p;
}

#endif
