/* core/weights/gguf.h: one GGUF file (version 3), mapped and checked.
 *
 * Format: magic, version, counts, metadata, tensor descriptions, and the data behind them, aligned. The reader
 * trusts nothing: every length, count, type, product and range is checked before the first value can be looked
 * up, and before memory is taken that depends on it. Main thread opens; look-ups from any thread. Must not
 * know: architectures, devices, what a key means. */
#ifndef TURBOD_GGUF_H
#define TURBOD_GGUF_H

#include "turbo/ext/gguf_read.h"
#include "weights/safetensors.h"

typedef struct turbod_gguf turbod_gguf;

typedef struct turbod_gguf_value {
    const char *key; /* key_len bytes of the file, no NUL behind them */
    uint64_t key_len;
    uint32_t type, elem; /* TURBO_GGUF_U8 and so on; elem of an array is one of them */
    uint64_t n; /* bytes of a string, elements of an array */
    const uint8_t *at; /* the number, the string's bytes, the first element */
} turbod_gguf_value;

/* A path that is a regular file: where a model folder is expected, it is taken for a GGUF file. */
bool turbod_gguf_is(const char *path);
turbo_status turbod_gguf_open(const char *path, turbod_gguf **out, turbo_err *err);
turbo_status turbod_gguf_unchanged(const turbod_gguf *g,
                                   turbo_err *err); /* as turbod_st_unchanged */
void turbod_gguf_close(turbod_gguf *g); /* NULL allowed */
const char *turbod_gguf_name(const turbod_gguf *g); /* of the file, without its folder */

/* NULL when there is none. */
const turbod_gguf_value *turbod_gguf_find(const turbod_gguf *g, const char *key);
bool turbod_gguf_is_string(const turbod_gguf_value *v, const char *text);
/* A number or a truth value, as double; element i of an array of them. False for anything else. */
bool turbod_gguf_number(const turbod_gguf_value *v, uint64_t i, double *out);

/* By name. Shapes are row-major as everywhere here: the file's own order is the other way round. */
size_t turbod_gguf_count(const turbod_gguf *g);
const turbod_st_tensor *turbod_gguf_at(const turbod_gguf *g, size_t i);
const turbod_st_tensor *turbod_gguf_tensor(const turbod_gguf *g, const char *name); /* NULL: none */

/* The file up to its tensor data; free(). TURBO_ELIMIT above max_bytes. */
turbo_status turbod_gguf_header(const char *path, uint64_t max_bytes, uint8_t **bytes,
                                uint64_t *len, turbo_err *err);
/* The string of a key, as a copy; free(). TURBO_ENOENT when there is no such string. */
turbo_status turbod_gguf_text(const char *path, const char *key, char **text, uint64_t *len,
                              turbo_err *err);

#endif
