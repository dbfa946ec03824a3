/* core/weights/state.h: what stands behind a turbo_weights, and the steps that matrices and vectors share; for
 * this folder only. Main thread. */
#ifndef TURBOD_WEIGHTS_STATE_H
#define TURBOD_WEIGHTS_STATE_H

#include "weights/cache.h"
#include "weights/index.h"
#include "weights/quant/quant.h"
#include "weights/weights.h"

#define MAX_RENAMES 16

typedef enum { HANDLE_LINEAR, HANDLE_VECTOR, HANDLE_ROPE, HANDLE_EXPERTS } handle_kind;

typedef struct handle {
    handle_kind kind;
    void *ptr;
    struct handle *next;
} handle;

/* Names of a view that begin with from begin with to in the folder. */
typedef struct rename_rule {
    char *from, *to;
} rename_rule;

/* A folder, or a view of one under other names: then base is the folder, and everything but the rules
 * belongs to it. */
struct turbo_weights {
    struct turbo_weights *base, *next; /* next: views and further folders of a folder */
    struct turbo_weights *owned;
    rename_rule rules[MAX_RENAMES];
    int32_t n_rules;
    char *folder;
    turbod_weights_opts opts;
    turbod_index *index; /* NULL after unmap */
    turbod_quant *quant;
    turbod_cache *cache; /* or NULL */
    bool cache_tried;
    uint64_t linear; /* bytes of matrices, once they have been counted */
    handle *handles;
    turbod_weights_sums *sums; /* while it counts: no handles are made */
    int32_t vocab; /* known once it has been counted; 0 before */
    int32_t bits; /* that unquantised matrices get, or 0 */
    uint64_t done, total; /* file bytes turned into handles, for progress */
    struct turbod_gguf_ordered *ordered; /* of the handle that is being made */
};

/* The folder a view shows. */
turbo_weights *weights_base(turbo_weights *w);
/* name as the folder has it; false when it is too long. */
bool weights_real_name(const turbo_weights *w, const char *name, char *out, size_t cap);
/* Finds the tensor name + suffix, and checks type and shape: a vector of d0 elements (ndim 1), a matrix of d0 rows
 * of d1 elements (2), or d0 elements of any shape (0). */
turbo_status weights_find(turbo_weights *view, const char *name, const char *suffix, uint32_t ndim,
                          int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err);
/* Its numbers, unless it only counts or they may be anything. On the caller's thread: for few. */
turbo_status weights_finite(const turbo_weights *w, const turbod_st_tensor *t, turbo_err *err);
/* Both. */
turbo_status weights_take(turbo_weights *view, const char *name, const char *suffix, uint32_t ndim,
                          int64_t d0, int64_t d1, const turbod_st_tensor **out, turbo_err *err);
/* Opened when it is asked for first; NULL: none. Of a folder, while its model opens. */
turbod_cache *weights_cache(turbo_weights *w);
/* That many bytes of the files have become handles. */
void weights_done(turbo_weights *w, uint64_t bytes);
/* A tensor has become part of a handle. */
void weights_used(turbo_weights *w, const turbod_st_tensor *t);
/* From here on ptr is w's to free. */
turbo_status weights_keep(turbo_weights *w, handle_kind kind, void *ptr, turbo_err *err);

/* What a handle points to while models are counted: nothing may look at it. */
extern const uint64_t weights_stand_in[8];
turbo_status weights_add(uint64_t *sum, uint64_t n, turbo_err *err);
turbo_status weights_count_stored(turbod_weights_sums *s, const turbod_st_tensor *t,
                                  turbo_err *err);

#endif
