/* core/util/checked.h: arithmetic on numbers that came from a file, a request or a script.
 * Any thread. Every function answers false instead of wrapping; the result must be looked at. */
#ifndef TURBOD_CHECKED_H
#define TURBOD_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TURBOD_MUST __attribute__((warn_unused_result))

static inline TURBOD_MUST bool turbod_mul(size_t a, size_t b, size_t *r)
{
    return !__builtin_mul_overflow(a, b, r);
}

static inline TURBOD_MUST bool turbod_add(size_t a, size_t b, size_t *r)
{
    return !__builtin_add_overflow(a, b, r);
}

/* Product of dims. A zero dim gives 0, but the others must still not overflow. */
static inline TURBOD_MUST bool turbod_numel(const uint64_t *d, unsigned nd, uint64_t *out)
{
    uint64_t p = 1;
    bool zero = false;
    if (nd > 8)
        return false;
    for (unsigned i = 0; i < nd; i++) {
        if (!d[i]) {
            zero = true;
            continue;
        }
        if (__builtin_mul_overflow(p, d[i], &p))
            return false;
    }
    *out = zero ? 0 : p;
    return true;
}

/* [off, off+len) lies inside [0, size). */
static inline TURBOD_MUST bool turbod_range(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

static inline TURBOD_MUST bool turbod_round_up(size_t n, size_t pow2, size_t *r)
{
    size_t t;
    if (!turbod_add(n, pow2 - 1, &t))
        return false;
    *r = t & ~(pow2 - 1);
    return true;
}

/* double to integer, the only legal way: exact, and inside lo..hi. False for NaN. */
static inline TURBOD_MUST bool turbod_d2i(double v, int64_t lo, int64_t hi, int64_t *r)
{
    if (!(v >= -9007199254740991.0 && v <= 9007199254740991.0))
        return false;
    int64_t i = (int64_t)v;
    if ((double)i < v || (double)i > v || i < lo || i > hi)
        return false;
    *r = i;
    return true;
}

/* lo <= v <= hi; false for NaN. */
static inline TURBOD_MUST bool turbod_d_in(double v, double lo, double hi)
{
    return v >= lo && v <= hi;
}

#endif
