/* tests/kern/kit.h: what the kernel tests share: random numbers, buffers with guard bands, devices of
 * every instruction set, and number formats read by the compiler instead of by the library. */
#ifndef KIT_H
#define KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "internal.h"

#define KIT_U 0x1p-24 /* unit roundoff of fp32 */

/* Rounds of random shapes; fewer where an emulator runs them. */
#ifndef KIT_FEWER
#define KIT_FEWER 1
#endif
#define KIT_ROUNDS(n) (((n) + KIT_FEWER - 1) / KIT_FEWER)

/* ---- random numbers (xorshift64*), the same on every run ---- */
typedef struct kit_rng {
    uint64_t s;
} kit_rng;
uint32_t kit_next(kit_rng *r);
int32_t kit_range(kit_rng *r, int32_t lo, int32_t hi); /* lo..hi, both possible */
float kit_float(kit_rng *r);                           /* -1..1, every magnitude down to 2^-24 */
void kit_floats(kit_rng *r, float *out, size_t n);
#define kit_pick(r, table) (table)[kit_range(r, 0, (int32_t)(sizeof(table) / sizeof *(table)) - 1)]

/* ---- memory: every block lies between two guard bands, at an address that is a multiple of 4 ---- */
typedef struct kit_mem {
    struct {
        char *base;
        size_t lead, bytes;
        void *copy; /* of a frozen block */
    } block[48];
    int n;
    kit_rng rng;
} kit_mem;
void *kit_new(kit_mem *m, size_t bytes); /* filled with 0xff: NaN, or an absurd index */
float *kit_new_floats(kit_mem *m, size_t n);
/* From here on the block must not change. */
void kit_freeze(kit_mem *m, const void *p);
/* Fails the test when a guard band or a frozen block changed. */
void kit_verify(const kit_mem *m);
void kit_drop(kit_mem *m);

/* ---- devices ---- */
/* The instruction sets of this kind of CPU. One CPU may lack some: their devices do not open. */
#if defined(__aarch64__)
#define KIT_ISAS 2
#else
#define KIT_ISAS 3
#endif
extern const turbok_isa kit_isas[KIT_ISAS]; /* SCALAR first */
#define KIT_MAX_DEVICES 12
typedef struct kit_devices {
    turbok_device *d[KIT_MAX_DEVICES]; /* d[0] is the scalar reference with one thread */
    int n;
} kit_devices;
/* Scalar with 1 thread, then each instruction set this CPU has with each of the thread counts. */
void kit_open(kit_devices *k, const int *threads, int n_threads);
void kit_close(kit_devices *k);

/* ---- formats ---- */
/* Rounds values in place to dtype and returns the stored form, [n], from malloc. */
void *kit_store(int32_t dtype, float *values, size_t n);
float kit_round(int32_t dtype, float f);
/* Largest error of storing f. */
double kit_half_ulp(int32_t dtype, double f);

/* Fails with a message unless |got - want| <= tol. */
void kit_near(const char *what, size_t at, double got, double want, double tol);
void kit_equal(const char *what, const void *a, const void *b, size_t bytes);

#endif
