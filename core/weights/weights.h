/* core/weights/weights.h: from a model folder to weight handles of a device.
 *
 * open maps the files, check compares them with what the architecture expects before anything is
 * allocated, the host functions below make handles while a model opens, unmap lets the files go.
 * Main thread. Must not know: architectures. */
#ifndef TURBOD_WEIGHTS_H
#define TURBOD_WEIGHTS_H

#include <stdbool.h>

#include "turbok.h"

typedef struct turbod_weights_opts {
    turbok_device *device; /* NULL: check only, no handles can be made */
    void (*progress)(void *ctx, uint64_t done, uint64_t total); /* bytes; may be NULL */
    void *progress_ctx;
    bool allow_nonfinite;
    bool all_scales; /* check reads those inside blocks too, which is most of a file */
    const char *model_format; /* NULL or "": as config.json says; see quant/quant.h */
    const char
        *quantize; /* NULL or "": matrices are kept as stored; "int8", "int4": those that are not
                           * quantised become so, but for embeddings; with int4 the head becomes int8 */
    const char *cache_dir; /* NULL or "": none; see cache.h */
    uint64_t cache_dir_size;
    /* The device may read matrices as late as turbok_device_wait: whoever opens them waits before they are used or
     * unmapped. */
    bool later;
} turbod_weights_opts;

/* Matrices that are stored alike. */
typedef struct turbod_weights_kind {
    char name[24]; /* a number type, a format as model_format has it, or a type of GGUF blocks */
    int32_t bits; /* of the codes that they become while loading; 0: they stay as stored */
    int64_t matrices;
} turbod_weights_kind;

#define TURBOD_WEIGHTS_KINDS 16 /* the last one takes what finds no place */

/* What a model takes when it opens. Bytes as turbok.h counts them, to be compared with
 * turbok_device_mem; elements as the files hold them. */
typedef struct turbod_weights_sums {
    uint64_t linear, vector, rope; /* bytes on a CPU device */
    uint64_t stored; /* bytes of matrices and vectors in the type they are stored in */
    uint64_t params; /* elements of matrices, vectors and biases */
    uint64_t matmul, matmul_stored; /* elements and bytes of matrices that tokens pass */
    uint64_t idle, idle_stored; /* of matmul: experts that one token passes by */
    uint64_t table, table_stored; /* of matrices of which a token reads a row: embeddings */
    int32_t n_heads; /* matrices of [vocab, *] among matmul; 0: the head is the table */
    bool quantised; /* some matrix is */
    int64_t grids_stored,
        grids_made; /* matrices that the files have quantised, and that become so */
    turbod_weights_kind kinds[TURBOD_WEIGHTS_KINDS]; /* in the order they were asked for */
    int32_t n_kinds;
} turbod_weights_sums;

turbo_status turbod_weights_open(const char *folder, const turbod_weights_opts *opts,
                                 turbo_weights **out, turbo_err *err);
/* Every mismatch goes to the log (20 at most), the first one and their number into err. */
/* A folder without weight files: every tensor the architecture expects, stored as dtype, or quantised as
 * config.json says; embeddings and heads are not. Counts only. */
turbo_status turbod_weights_expected(const turbo_host *host, const turbo_model_vtbl *vtbl,
                                     const turbo_config *config, const char *folder, int32_t dtype,
                                     const turbod_weights_opts *opts, turbo_weights **out,
                                     turbo_err *err);
bool turbod_weights_absent(const turbo_weights *w); /* the folder has no weight file */
uint64_t turbod_weights_bytes(const turbo_weights *w); /* of all tensors, as the folder has them */
/* What the index in a folder without the files says: turbod_index_said. */
uint64_t turbod_weights_said(const turbo_weights *w, const char *folder, int *more);
/* Opens and closes the model on stand-ins for handles, so that what it asks for is counted with the same
 * calls that will allocate it. Reads headers, no data. vocab: rows of a head. */
turbo_status turbod_weights_count(turbo_weights *w, const turbo_host *host,
                                  const turbo_model_vtbl *vtbl, const turbo_config *config,
                                  int32_t vocab, turbod_weights_sums *sums, turbo_err *err);
/* "96 Q4_0, 1 Q6_K", "48 bf16 that become int4" */
void turbod_weights_kinds(const turbod_weights_sums *s, char *text, size_t cap);
turbo_status turbod_weights_check(turbo_weights *w, const turbo_host *host,
                                  const turbo_model_vtbl *vtbl, const turbo_config *config,
                                  turbo_err *err);
/* After the model was opened: the files must be unchanged, and are closed. */
turbo_status turbod_weights_unmap(turbo_weights *w, turbo_err *err);
void turbod_weights_close(turbo_weights *w); /* frees the handles; NULL allowed */

/* The slots of turbo_host of the same names; see turbo/plugin.h. */
turbo_status turbod_host_linear(turbo_weights *w, const char *name, int64_t out_dim, int64_t in_dim,
                                uint32_t flags, const turbo_linear **handle, turbo_err *err);
turbo_status turbod_host_linear_rows(turbo_weights *w, const char *const *names,
                                     const int64_t *rows, int32_t n, int64_t in_dim, uint32_t flags,
                                     const turbo_linear **handle, turbo_err *err);
turbo_status turbod_host_experts(turbo_weights *w, const turbo_moe *m, const char *gate,
                                 const char *up, const char *down, const turbo_experts **handle,
                                 turbo_err *err);
turbo_status turbod_host_vector(turbo_weights *w, const char *name, int64_t n,
                                const turbo_vector **handle, turbo_err *err);
turbo_status turbod_host_vector_of(turbo_weights *w, const char *tensor, int64_t n,
                                   const turbo_vector **handle, turbo_err *err);
turbo_status turbod_host_weights_view(turbo_weights *w, const char *const *from,
                                      const char *const *to, int32_t n, turbo_weights **out,
                                      turbo_err *err);
turbo_status turbod_host_weights_beside(turbo_weights *w, const char *folder, turbo_weights **out,
                                        turbo_err *err);
turbo_status turbod_host_rope(turbo_weights *w, const turbo_rope_spec *spec,
                              const turbo_rope **handle, turbo_err *err);
int32_t turbod_host_has_tensor(const turbo_weights *w, const char *name);

#endif
