/* plugins/gguf/gguf_keys.h: the tokenizer's keys of a GGUF file: those that begin with "tokenizer.". Compiled into each
 * tokenizer that reads such files; knows none of them. Read-only once open; any thread. */
#ifndef GGUF_KEYS_H
#define GGUF_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/ext/gguf.h"
#include "turbo/ext/gguf_read.h"

#define GGUF_MAX_KEYS 64

typedef struct gguf_value {
    const char *key; /* behind "tokenizer." */
    uint64_t key_len;
    uint32_t type, elem; /* elem of an array */
    uint64_t n; /* bytes of a string, elements of an array */
    const uint8_t *at, *end; /* the bytes */
} gguf_value;

typedef struct gguf_header {
    uint8_t *bytes; /* the memory that values point into; free() */
    uint64_t len;
    gguf_value values[GGUF_MAX_KEYS];
    int n;
} gguf_header;

/* TURBO_ENOENT: folder is no GGUF file. The caller frees bytes, also after an error. */
turbo_status gguf_header_open(const turbo_host *h, const char *folder, gguf_header *out,
                              turbo_err *err);
/* NULL: there is none. */
const gguf_value *gguf_find(const gguf_header *g, const char *key);
bool gguf_is(const gguf_value *v, const char *text); /* a string, equal */
/* True, and *out, when there is a whole number of 0 to hi (or a truth value). */
bool gguf_uint(const gguf_header *g, const char *key, uint32_t hi, uint32_t *out);
/* The truth value of a key, dflt where there is none. */
bool gguf_bool(const gguf_header *g, const char *key, bool dflt);
/* The array of a key; NULL unless its elements are of that type, or I32 where U32 is asked for. */
const gguf_value *gguf_list(const gguf_header *g, const char *key, uint32_t elem);
/* The next string of an array: *at begins as v->at. False behind the last. */
bool gguf_next(const gguf_value *v, const uint8_t **at, const char **text, uint64_t *len);
/* Element i of an array of 4-byte numbers, its bits. */
uint32_t gguf_bits(const gguf_value *v, uint64_t i);

#endif
