/* kernels/cpu/number.h: one number of an array of any float type at any address, as arrays lie in files. Pure. */
#ifndef TURBOK_NUMBER_H
#define TURBOK_NUMBER_H

#include "cpu/half.h"
#include "turbok.h"

static inline float turbok_number(int32_t dtype, const void *p, size_t i)
{
    float f;
    uint16_t h;
    if (dtype == TURBO_F32) {
        memcpy(&f, (const char *)p + 4 * i, 4);
        return f;
    }
    memcpy(&h, (const char *)p + 2 * i, 2);
    return dtype == TURBO_F16 ? turbok_f16_to_f32(h) : turbok_bf16_to_f32(h);
}

#endif
