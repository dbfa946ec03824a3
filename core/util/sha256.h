/* core/util/sha256.h: SHA-256 (FIPS 180-4). Any thread; pure functions. */
#ifndef TURBOD_SHA256_H
#define TURBOD_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void turbod_sha256(const void *data, size_t n, uint8_t digest[32]);
/* Equality in a time that does not depend on the contents. */
bool turbod_equal32(const uint8_t a[32], const uint8_t b[32]);

#endif
