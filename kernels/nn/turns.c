/* kernels/nn/turns.c: cosines and sines of many angles: two million are a usual model's tables, and the C library's,
 * one by one, took longer than a twentieth of what a card takes for all weights. Pure; any thread.
 *
 * An angle is brought to a quarter turn around 0 by subtracting a multiple of pi / 2, which is held in three pieces: the
 * first two have 33 bits, so products of them with a number below 2^20 are exact. There the series of Taylor need eight
 * terms for what a double holds. Without contraction, so that both widths compute the same bits. */
#include <math.h>
#include <string.h>

#include "internal.h"

#define LANES 8
#define FARTHEST 0x1p20 /* of angles that are brought near so; others go to the C library */

typedef double vec __attribute__((vector_size(8 * LANES)));
typedef int64_t bits __attribute__((vector_size(8 * LANES)));
typedef float fvec __attribute__((vector_size(4 * LANES)));

#define PI_2_HIGH 0x1.921fb544p+0
#define PI_2_MIDDLE 0x1.0b4611a6p-34
#define PI_2_LOW 0x1.3198a2e037073p-69
#define TURNS_A_RADIAN 0x1.45f306dc9c883p-1 /* quarter turns */
#define ROUND 0x1.8p52 /* a double near it has the nearest integer in its lowest bits */

static void one_by_one(const float *angle, size_t n, float *cosine, float *sine)
{
    for (size_t i = 0; i < n; i++) {
        cosine[i] = (float)cos((double)angle[i]);
        sine[i] = (float)sin((double)angle[i]);
    }
}

/* Of LANES angles that are near enough; false: they are not. */
#define TURN(NAME, TARGET)                                                                         \
    TARGET static bool NAME(const float *angle, float *cosine, float *sine)                        \
    {                                                                                              \
        const bits sign = (bits){0} + INT64_MIN, one = (bits){0} + 1, two = one + one;             \
        fvec given;                                                                                \
        memcpy(&given, angle, sizeof given);                                                       \
        const vec x = __builtin_convertvector(given, vec);                                         \
        const bits near = (x <= FARTHEST) & (x >= -FARTHEST);                                      \
        int64_t all = -1;                                                                          \
        for (int i = 0; i < LANES; i++)                                                            \
            all &= near[i];                                                                        \
        if (!all)                                                                                  \
            return false;                                                                          \
        const vec rounded = x * TURNS_A_RADIAN + ROUND, k = rounded - ROUND;                       \
        const bits quarter = (bits)rounded;                                                        \
        const vec r = ((x - k * PI_2_HIGH) - k * PI_2_MIDDLE) - k * PI_2_LOW, z = r * r;           \
        vec s = z * -0x1.ae7f3e733b81fp-41 + 0x1.6124613a86d09p-33; /* 1/15!, 1/13! .. 1/3! */     \
        s = s * z - 0x1.ae64567f544e4p-26;                                                         \
        s = s * z + 0x1.71de3a556c734p-19;                                                         \
        s = s * z - 0x1.a01a01a01a01ap-13;                                                         \
        s = s * z + 0x1.1111111111111p-7;                                                          \
        s = s * z - 0x1.5555555555555p-3;                                                          \
        s = r + r * z * s;                                                                         \
        vec c = z * 0x1.ae7f3e733b81fp-45 - 0x1.93974a8c07c9dp-37; /* 1/16!, 1/14! .. 1/2! */      \
        c = c * z + 0x1.1eed8eff8d898p-29;                                                         \
        c = c * z - 0x1.27e4fb7789f5cp-22;                                                         \
        c = c * z + 0x1.a01a01a01a01ap-16;                                                         \
        c = c * z - 0x1.6c16c16c16c17p-10;                                                         \
        c = c * z + 0x1.5555555555555p-5;                                                          \
        c = 1 - (0.5 * z - z * z * c);                                                             \
        const bits odd = -(quarter & one);                                                         \
        const bits of_c = ((bits)c & ~odd) | ((bits)s & odd);                                      \
        const bits of_s = ((bits)s & ~odd) | ((bits)c & odd);                                      \
        const vec cosines = (vec)(of_c ^ ((((quarter + one) & two) << 62) & sign));                \
        const vec sines = (vec)(of_s ^ (((quarter & two) << 62) & sign));                          \
        given = __builtin_convertvector(cosines, fvec);                                            \
        memcpy(cosine, &given, sizeof given);                                                      \
        given = __builtin_convertvector(sines, fvec);                                              \
        memcpy(sine, &given, sizeof given);                                                        \
        return true;                                                                               \
    }
TURN(turn, )
#if defined(__x86_64__)
TURN(turn_avx512, __attribute__((target("avx512f"))))
#endif

void turbok_turns(const float *angle, size_t n, float *cosine, float *sine)
{
    bool (*some)(const float *, float *, float *) = turn;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        some = turn_avx512;
#endif
    for (size_t i = 0; i < n; i += LANES) {
        float in[LANES] = {0}, c[LANES], s[LANES];
        size_t m = n - i < LANES ? n - i : LANES;
        if (m == LANES && some(angle + i, cosine + i, sine + i))
            continue;
        memcpy(in, angle + i, m * sizeof *in);
        if (m == LANES || !some(in, c, s))
            one_by_one(in, m, c, s);
        memcpy(cosine + i, c, m * sizeof *c);
        memcpy(sine + i, s, m * sizeof *s);
    }
}
