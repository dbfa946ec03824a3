/* tests/cuda/dev.h: what the kernel tests share: an open device (the fake driver in `make check`, a card in
 * `make check-gpu`), buffers on it between guard bands and filled with poison, random numbers, 16-bit
 * numbers. Programs without a test library: they also run on machines that have nothing but a driver.
 * One thread. A failed check prints a line and counts; dev_end returns the exit status. */
#ifndef DEV_H
#define DEV_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/ops.h"
#include "internal.h"

extern turbok_cu *dev;
extern bool dev_real; /* a card */
extern bool
    dev_fast; /* a card with nothing that looks over its shoulder: larger shapes can be afforded */

/* Opens the device; ends the program with 77 where there is none. */
void dev_begin(const char *name);
int dev_end(void);

/* ---- random numbers, the same on every run ---- */
uint32_t dev_next(void);
int32_t dev_range(int32_t lo, int32_t hi); /* both possible */
float dev_float(void); /* about normal, standard deviation 1 */

/* ---- buffers ---- */
void *dev_new(size_t bytes, const void *host); /* host NULL: poison, 0xff */
/* n random numbers times scale, of dtype on the device, and as they were rounded in values [n]. */
void *dev_numbers(int32_t dtype, size_t n, float scale, float *values);
void dev_get(const void *p, void *out, size_t bytes); /* after waiting for the stream */
/* n numbers of dtype, widened. */
void dev_get_numbers(int32_t dtype, const void *p, size_t n, float *out);
/* Guard bands of all buffers, then frees them. */
void dev_drop(void);

float dev_round(int32_t dtype, float f);
double dev_ulp(int32_t dtype, double f); /* largest error of storing f */
int32_t dev_act(int i); /* TURBO_F32, _F16, _BF16 in turns */
const char *dev_type(int32_t dtype);

/* ---- checks ---- */
void dev_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* |got - want| <= tol, and a number. Counts; prints the first few. */
void dev_near(const char *what, size_t at, double got, double want, double tol);

#endif
