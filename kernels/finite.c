/* kernels/finite.c: are numbers finite? Pure; any thread. */
#include <string.h>

#include "internal.h"

/* A number is NaN or infinite exactly when its exponent bits are all set. Several numbers at a time: the
 * exponent plus its lowest bit carries into the place of the sign just then, and never further. */
typedef uint64_t pair __attribute__((vector_size(16)));

bool turbok_all_finite(int32_t dtype, const void *p, size_t bytes)
{
    const uint64_t ones = dtype == TURBO_F32 ? 0x0000000100000001u : 0x0001000100010001u;
    const uint64_t exponent = ones * (dtype == TURBO_F32   ? 0x7f800000u
                                      : dtype == TURBO_F16 ? 0x7c00u
                                                           : 0x7f80u);
    const uint64_t lowest = ones * (dtype == TURBO_F32   ? 0x00800000u
                                    : dtype == TURBO_F16 ? 0x0400u
                                                         : 0x0080u);
    const uint64_t sign = ones * (dtype == TURBO_F32 ? 0x80000000u : 0x8000u);
    const char *at = p;
    pair carry = {0}, v[4], rest[4] = {{0}};
    for (; bytes >= sizeof v; at += sizeof v, bytes -= sizeof v) {
        memcpy(v, at, sizeof v);
        for (int i = 0; i < 4; i++)
            carry |= (v[i] & exponent) + lowest;
    }
    memcpy(rest, at, bytes); /* filled up with zeros */
    for (int i = 0; i < 4; i++)
        carry |= (rest[i] & exponent) + lowest;
    return ((carry[0] | carry[1]) & sign) == 0;
}
