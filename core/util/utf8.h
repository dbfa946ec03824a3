/* core/util/utf8.h: UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, at most U+10FFFF.
 * Any thread; pure functions and one small state struct. */
#ifndef TURBOD_UTF8_H
#define TURBOD_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length (1..4) of the valid sequence at p, 0 when it is invalid or cut. */
size_t turbod_utf8_len(const unsigned char *p, size_t n);
bool turbod_utf8_valid(const char *s, size_t n);
/* True when p[0..n), n in 1..3, could still become a valid sequence if more bytes came. */
bool turbod_utf8_prefix(const unsigned char *p, size_t n);

/* Joins bytes that arrive in pieces. Complete characters come out at once, an incomplete tail waits,
 * each invalid byte becomes U+FFFD. */
typedef struct turbod_utf8_join {
    unsigned char tail[4];
    uint32_t n;
} turbod_utf8_join;
/* out must hold 3 * (n + 3) bytes. Returns bytes written. */
size_t turbod_utf8_push(turbod_utf8_join *j, const char *bytes, size_t n, char *out);
/* End of text: what still waits is invalid. out must hold 9 bytes. */
size_t turbod_utf8_flush(turbod_utf8_join *j, char *out);

#endif
