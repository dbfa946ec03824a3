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
} turbod_weights_opts;

turbo_status turbod_weights_open(const char *folder, const turbod_weights_opts *opts,
                                 turbo_weights **out, turbo_err *err);
/* Every mismatch goes to the log (20 at most), the first one and their number into err. */
turbo_status turbod_weights_check(turbo_weights *w, const turbo_host *host,
                                  const turbo_model_vtbl *vtbl, const turbo_config *config,
                                  turbo_err *err);
/* After the model was opened: the files must be unchanged, and are closed. */
turbo_status turbod_weights_unmap(turbo_weights *w, turbo_err *err);
uint64_t turbod_weights_bytes(const turbo_weights *w); /* of all handles, on the device */
void turbod_weights_close(turbo_weights *w); /* frees the handles; NULL allowed */

/* The slots of turbo_host of the same names; see turbo/plugin.h. */
turbo_status turbod_host_linear(turbo_weights *w, const char *name, int64_t out_dim, int64_t in_dim,
                                uint32_t flags, const turbo_linear **handle, turbo_err *err);
turbo_status turbod_host_linear_rows(turbo_weights *w, const char *const *names,
                                     const int64_t *rows, int32_t n, int64_t in_dim, uint32_t flags,
                                     const turbo_linear **handle, turbo_err *err);
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
