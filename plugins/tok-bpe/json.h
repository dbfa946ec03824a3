/* plugins/tok-bpe/json.h: a strict JSON reader for files with millions of values. One thread.
 *
 * A document owns a copy of the file; strings are unescaped in place, values are 32-byte nodes in
 * one array that refer to each other by index, so a vocabulary of 150,000 tokens is two
 * allocations. Node 0 is the root. */
#ifndef TOK_BPE_JSON_H
#define TOK_BPE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

#define BPE_JSON_DEPTH 64
#define BPE_JSON_VALUES (1u << 22)

enum { BPE_NULL = 1, BPE_FALSE, BPE_TRUE, BPE_NUMBER, BPE_STRING, BPE_ARRAY, BPE_OBJECT };

typedef struct bpe_node {
    uint32_t type; /* BPE_* */
    uint32_t next; /* the next member or element, 0: none */
    uint32_t child; /* the first, 0: none */
    uint32_t n; /* members, elements */
    uint32_t key, key_len; /* of a member: offset into text */
    uint32_t at, len; /* of a string or number: offset into text */
} bpe_node;

typedef struct bpe_json {
    const char *file; /* name, for messages */
    char *text;
    bpe_node *nodes;
    uint32_t n, cap;
} bpe_json;

/* Reads FOLDER/NAME. ENOENT: it is not there. EDATA: it is no JSON; err names file, place and
 * reason. *out is the caller's, also after an error: bpe_json_free. */
turbo_status bpe_json_open(const turbo_host *h, const char *folder, const char *name,
                           uint64_t max_bytes, bpe_json *out, turbo_err *err);
void bpe_json_free(bpe_json *j);

/* Member of an object, NULL when absent or null, or when obj is NULL or no object. */
const bpe_node *bpe_json_get(const bpe_json *j, const bpe_node *obj, const char *key);
/* The first and the next member or element; NULL behind the last. */
const bpe_node *bpe_json_child(const bpe_json *j, const bpe_node *v);
const bpe_node *bpe_json_next(const bpe_json *j, const bpe_node *v);

static inline const char *bpe_json_text(const bpe_json *j, const bpe_node *v)
{
    return j->text + v->at;
}
bool bpe_json_is(const bpe_json *j, const bpe_node *v, const char *text); /* a string, equal */
/* A whole number inside 0..hi. */
bool bpe_json_uint(const bpe_json *j, const bpe_node *v, uint32_t hi, uint32_t *out);
/* Absent or null: dflt. False for any other type. */
bool bpe_json_bool(const bpe_json *j, const bpe_node *obj, const char *key, bool dflt, bool *out);

#endif
