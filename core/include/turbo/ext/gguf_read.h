/* turbo/ext/gguf_read.h: numbers and strings of a GGUF file (version 3), byte by byte, never past its end.
 *
 * For whoever reads TURBO_GGUF_HEADER; the host reads files with it too. Functions are inline, so that a plugin
 * needs nothing but this file. Everything is little-endian. Knows no key. Any thread. */
#ifndef TURBO_EXT_GGUF_READ_H
#define TURBO_EXT_GGUF_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How the file numbers types of values. */
enum {
    TURBO_GGUF_U8,
    TURBO_GGUF_I8,
    TURBO_GGUF_U16,
    TURBO_GGUF_I16,
    TURBO_GGUF_U32,
    TURBO_GGUF_I32,
    TURBO_GGUF_F32,
    TURBO_GGUF_BOOL,
    TURBO_GGUF_STRING,
    TURBO_GGUF_ARRAY,
    TURBO_GGUF_U64,
    TURBO_GGUF_I64,
    TURBO_GGUF_F64,
};

/* What is left of the file. Once bad, everything reads as 0. */
typedef struct turbo_gguf_cursor {
    const uint8_t *p, *end;
    bool bad;
} turbo_gguf_cursor;

/* The next n bytes; NULL, and bad, when there are fewer. */
static inline const uint8_t *turbo_gguf_bytes(turbo_gguf_cursor *c, uint64_t n)
{
    if (c->bad || n > (uint64_t)(c->end - c->p)) {
        c->bad = true;
        return NULL;
    }
    c->p += n;
    return c->p - n;
}

/* The next n bytes, 8 at most, as a number. */
static inline uint64_t turbo_gguf_uint(turbo_gguf_cursor *c, uint32_t n)
{
    const uint8_t *p = turbo_gguf_bytes(c, n);
    uint64_t v = 0;
    for (uint32_t i = 0; p && i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

/* Bytes of a number or truth value of that type; 0: it is none. */
static inline uint32_t turbo_gguf_width(uint32_t type)
{
    static const uint8_t of[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof of ? of[type] : 0;
}

#ifdef __cplusplus
}
#endif
#endif
