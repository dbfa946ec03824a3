/* kernels/finite.c: are numbers finite? Pure; any thread. */
#include <string.h>

#include "internal.h"

typedef struct masks {
    uint64_t exponent, lowest, sign; /* of each number of 8 bytes */
} masks;

/* A number is NaN or infinite exactly when its exponent bits are all set. Several numbers at a time: the
 * exponent plus its lowest bit carries into the place of the sign just then, and never further. Loading is a race
 * between this and copies, so it takes the widest vectors that there are. */
#define SEARCH(NAME, BYTES, TARGET)                                                                \
    TARGET static bool NAME(const masks *m, const char *at, size_t bytes)                          \
    {                                                                                              \
        typedef uint64_t vec __attribute__((vector_size(BYTES)));                                  \
        enum { LANES = (BYTES) / 8 };                                                              \
        const vec zero = {0}, exponent = zero + m->exponent, lowest = zero + m->lowest;            \
        vec carry = zero, v[4], rest[4] = {{0}};                                                   \
        for (; bytes >= sizeof v; at += sizeof v, bytes -= sizeof v) {                             \
            memcpy(v, at, sizeof v);                                                               \
            for (int i = 0; i < 4; i++)                                                            \
                carry |= (v[i] & exponent) + lowest;                                               \
        }                                                                                          \
        memcpy(rest, at, bytes); /* filled up with zeros */                                        \
        for (int i = 0; i < 4; i++)                                                                \
            carry |= (rest[i] & exponent) + lowest;                                                \
        uint64_t any = 0;                                                                          \
        for (int i = 0; i < LANES; i++)                                                            \
            any |= carry[i];                                                                       \
        return (any & m->sign) == 0;                                                               \
    }
SEARCH(search, 16, )
#if defined(__x86_64__)
SEARCH(search_avx2, 32, __attribute__((target("avx2"))))
SEARCH(search_avx512, 64, __attribute__((target("avx512f"))))
#endif

bool turbok_finite_by(turbok_isa isa, int32_t dtype, const void *p, size_t bytes)
{
    const uint64_t ones = dtype == TURBO_F32 ? 0x0000000100000001u : 0x0001000100010001u;
    const masks m = {
        .exponent = ones * (dtype == TURBO_F32   ? 0x7f800000u
                            : dtype == TURBO_F16 ? 0x7c00u
                                                 : 0x7f80u),
        .lowest = ones * (dtype == TURBO_F32   ? 0x00800000u
                          : dtype == TURBO_F16 ? 0x0400u
                                               : 0x0080u),
        .sign = ones * (dtype == TURBO_F32 ? 0x80000000u : 0x8000u),
    };
#if defined(__x86_64__)
    if (isa == TURBOK_ISA_AVX512)
        return search_avx512(&m, p, bytes);
    if (isa == TURBOK_ISA_AVX2)
        return search_avx2(&m, p, bytes);
#endif
    (void)isa;
    return search(&m, p, bytes);
}

bool turbok_all_finite(int32_t dtype, const void *p, size_t bytes)
{
    turbok_isa isa = TURBOK_ISA_SCALAR;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        isa = TURBOK_ISA_AVX512;
    else if (__builtin_cpu_supports("avx2"))
        isa = TURBOK_ISA_AVX2;
#endif
    return turbok_finite_by(isa, dtype, p, bytes);
}
