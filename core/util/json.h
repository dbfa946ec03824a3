/* core/util/json.h: strict JSON in front of cJSON. Any thread.
 *
 * cJSON is lax (raw control bytes, leading zeros, broken escapes, the first of two equal keys), so
 * every text is scanned against RFC 8259 first: UTF-8, no NUL, no lone surrogate, bounded depth,
 * count, key and number lengths; duplicate keys are refused. Look-ups are case-sensitive. */
#ifndef TURBOD_JSON_H
#define TURBOD_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

typedef struct turbod_json_limits {
    unsigned max_depth; /* at most 64 */
    size_t max_values; /* keys count too */
    size_t max_key; /* bytes */
} turbod_json_limits;

extern const turbod_json_limits turbod_json_request; /* bodies of clients */
extern const turbod_json_limits turbod_json_file; /* files of a model folder */

/* The scan alone. Fills err with what is wrong and the byte offset. */
turbo_status turbod_json_scan(const char *text, size_t n, const turbod_json_limits *lim,
                              turbo_err *err);
/* Scan, parse, duplicate check. *out is the caller's: cJSON_Delete. */
turbo_status turbod_json_parse(const char *text, size_t n, const turbod_json_limits *lim,
                               cJSON **out, turbo_err *err);

/* Does the text hold the word (ASCII letters, digits, '_'), each byte of it written as itself or as \u00XX?
 * Where it stands, in a key or inside other text, is not looked at. */
bool turbod_json_spells(const char *text, size_t n, const char *word);
/* Member of an object; NULL when absent, when JSON null, or when obj is no object. */
const cJSON *turbod_json_get(const cJSON *obj, const char *key);
/* An exact integer inside lo..hi; false for any other type or value. */
bool turbod_json_int(const cJSON *v, int64_t lo, int64_t hi, int64_t *out);
bool turbod_json_num(const cJSON *v, double lo, double hi, double *out);
/* What a value is, for messages: "a string", "the number 3". */
const char *turbod_json_kind(const cJSON *v);
/* The same with the value of a number, written into buf: "3.5", "a string". */
const char *turbod_json_show(const cJSON *v, char buf[32]);

#endif
