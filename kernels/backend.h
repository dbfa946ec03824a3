/* kernels/backend.h: what a backend other than the CPU provides behind turbok.h. It lives in a shared object
 * of the same build and is found at run time. Every slot is required; contracts are those of the functions of
 * turbok.h that call them. Must not know: the core. */
#ifndef TURBOK_BACKEND_H
#define TURBOK_BACKEND_H

#include "turbok.h"

struct turbok_backend {
    const char *build; /* TURBOK_BUILD of its side: structs are shared, so both must be one build */
    const char *name; /* "cuda" */
    /* Opens what the device needs beside the CPU's threads, into d->self; fills d->name. */
    turbo_status (*open)(turbok_device *d, const turbok_device_opts *o, turbo_err *err);
    void (*close)(turbok_device *d);
    const turbo_ops *(*ops)(const turbok_device *d);
    uint64_t (*vacant)(turbok_device *d); /* bytes of its memory that are free; 0: unknown */
    uint64_t (*context)(const turbok_device *d); /* bytes that opening it took */
    /* Zeroed memory of the device, counted by the caller; NULL: there is no more. */
    void *(*take)(turbok_device *d, size_t bytes);
    void (*give)(turbok_device *d, void *p, size_t bytes);
    turbo_status (*expect)(turbok_device *d, uint64_t bytes, turbo_err *err);
    /* Host memory that copies of the device reach directly. */
    void *(*host_take)(turbok_device *d, size_t bytes);
    void (*host_give)(turbok_device *d, void *p, size_t bytes);

    uint64_t (*rows_bytes)(int32_t dtype, const turbok_part *parts, int32_t n, int64_t in,
                           uint32_t flags, turbo_err *err);
    turbo_status (*linear_rows_new)(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                    int32_t n, int64_t in, uint32_t flags, turbo_linear **w,
                                    turbo_err *err);
    void (*linear_free)(turbok_device *d, turbo_linear *w);
    /* Of a handle of experts: table, which is experts_bytes large. m and w are filled. */
    uint64_t (*experts_bytes)(int32_t n_experts);
    turbo_status (*experts_open)(turbok_device *d, turbo_experts *x, turbo_err *err);
    void (*experts_close)(turbok_device *d, turbo_experts *x);
    /* Host numbers of a vector or of rotary tables to memory of the device. */
    void (*upload)(turbok_device *d, void *to, const void *from, size_t bytes);

    void (*block_copy)(turbok_device *d, void *to, const void *from, size_t bytes);
    void (*block_read)(turbok_device *d, void *to, const void *from, size_t bytes);
    void (*block_write)(turbok_device *d, void *to, const void *from, size_t bytes);

    /* The same from and to memory of host_take, in the order of what was asked for: nobody waits. */
    void (*block_out)(turbok_device *d, void *to, const void *from, size_t bytes);
    void (*block_in)(turbok_device *d, void *to, const void *from, size_t bytes);

    turbo_status (*wait)(turbok_device *d, turbo_err *err);
    turbo_status (*enter)(turbok_device *d, turbo_err *err);
    uint64_t (*steps_bytes)(const turbok_device *d, const turbok_steps *s);
    uint64_t (*later_bytes)(const turbok_device *d, const turbok_steps *s);
    turbo_status (*steps_open)(turbok_device *d, const turbok_steps *s, turbo_err *err);
    turbo_status (*step_begin)(turbok_device *d, const turbo_batch *b, const turbok_row *rows,
                               turbo_batch *as, bool *replay, turbo_err *err);
    turbo_status (*step_end)(turbok_device *d, float *logits, turbok_row *rows, int32_t R,
                             float *host, turbo_err *err);
    void (*step_drop)(turbok_device *d);
    turbo_status (*step_wait)(turbok_device *d, turbok_row *rows, int32_t R, turbo_err *err);

    const char *draws_as;
    bool (*draws)(const turbok_device *d, const turbo_sample_params *p);
    turbo_status (*place_begin)(turbok_device *d, int32_t place, const turbo_sample_params *p,
                                const int32_t *tokens, int32_t n_prompt, int32_t n, turbo_err *err);
    int32_t (*gaps)(const turbok_device *d, const float **us);
};
typedef struct turbok_backend turbok_backend;

/* The only symbol of the shared object. */
#define TURBOK_BACKEND_ENTRY "turbok_backend_entry"
typedef const turbok_backend *(*turbok_backend_entry_fn)(void);

#endif
