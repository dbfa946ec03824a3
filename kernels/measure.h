/* kernels/measure.h: loops that show what the machine can do, for bench/ and turbok_measure. The caller's
 * thread and the pool. */
#ifndef TURBOK_MEASURE_H
#define TURBOK_MEASURE_H

#include "turbok.h"

/* A buffer to be read again and again. */
typedef struct turbok_reader {
    char *p;
    size_t bytes, mapped;
} turbok_reader;

turbo_status turbok_reader_new(turbok_device *d, size_t bytes, turbok_reader *out, turbo_err *err);
void turbok_reader_free(turbok_reader *r);
/* Bytes a second with which all threads read the buffer once. */
double turbok_read_bandwidth(turbok_device *d, const turbok_reader *r);
/* fp32 operations a second of all threads, a multiply-add counted as two: of the device's instruction
 * set. */
double turbok_fma_peak(turbok_device *d);

#endif
