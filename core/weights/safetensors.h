/* core/weights/safetensors.h: one safetensors file, mapped and checked.
 *
 * Format: u64 little-endian header length N, N bytes of JSON, data. The reader trusts nothing:
 * every offset, product and range is checked before the first tensor can be looked up. Main thread
 * opens; look-ups from any thread. Must not know: architectures, devices. */
#ifndef TURBOD_SAFETENSORS_H
#define TURBOD_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

typedef struct turbod_st_tensor {
    const char *name;
    const uint8_t *data; /* any alignment; valid while the file is mapped */
    uint64_t bytes;
    int fd; /* of the file, which has the same bytes from `at` on; at 0: there is none to read */
    bool in_memory; /* the file, by its kind: data is the quicker way to its bytes */
    uint64_t at;
    uint64_t dims[8];
    uint32_t ndim;
    int32_t dtype; /* TURBO_*, or -1 for a type this version computes nothing with */
    char dtype_name[12];
    /* Of a GGUF file. NULL, NULL: data is all there is to it. */
    const struct turbod_gguf_type *block; /* quantised: what its blocks are; dtype is -1 */
    const struct turbod_gguf_rows
        *rows; /* where its rows lie, when not one behind the other in data */
} turbod_st_tensor;

typedef struct turbod_st turbod_st;

turbo_status turbod_st_open(const char *folder, const char *name, turbod_st **out, turbo_err *err);
/* Was the file changed since it was opened? TURBO_EDATA when it was. */
turbo_status turbod_st_unchanged(const turbod_st *f, turbo_err *err);
void turbod_st_close(turbod_st *f); /* NULL allowed */

size_t turbod_st_count(const turbod_st *f);
const turbod_st_tensor *turbod_st_at(const turbod_st *f, size_t i); /* in order of their data */
const char *turbod_st_name(const turbod_st *f);
/* Tells the kernel that the bytes were used and need not stay in memory. */
void turbod_st_release(const turbod_st_tensor *t);

#endif
