/* kernels/cpu/quant.h: the arithmetic of KV quantisation, one row (one token and head of K or V) at a
 * time. Pure; every instruction set uses it or repeats its operations, so that codes and parameters
 * have the same bits everywhere.
 *
 * A row is stored as codes u of b bits and two numbers, x = scale * u + zero, with zero = min and
 * scale = (max - min) / (2^b - 1) (reference: quant_policy of LMDeploy). Both are rounded to bf16
 * first, zero down and scale up, and the codes are taken against the rounded pair: the range then
 * covers the row, no code has to be clipped, and an element is off by at most scale / 2 (plus what
 * fp32 rounds in the quotient, 2^-22 of the range).
 *
 * Why bf16 and not fp16: keys are not bounded. A key beyond 65504 has no fp16, rows of small values
 * would fall into its subnormals, and what the longer fraction buys is little: rounding makes the
 * scale at most 2^-7 of itself larger and the range at most 2^-7 |min| longer, so that a row around
 * zero is stored with 1.2 % more error at worst.
 *
 * A row that holds NaN or infinity, or whose range is no fp32 number, gets NaN for both parameters:
 * the whole row reads as NaN and the step ends as a numeric error, as it does without quantisation. */
#ifndef TURBOK_QUANT_H
#define TURBOK_QUANT_H

#include <stdbool.h>

#include "cpu/half.h"

#define TURBOK_ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, in the low bits */

typedef struct turbok_quant {
    uint16_t par[2]; /* scale and zero as stored, bf16 */
    float scale, zero;
} turbok_quant;

/* lo, hi: extremes of the row. finite: no element is NaN or infinite. top: 2^b - 1. */
static inline turbok_quant turbok_quant_of(float lo, float hi, bool finite, float top)
{
    turbok_quant q = {.par = {0x7fc0u, 0x7fc0u}};
    uint16_t zero = finite ? turbok_bf16_below(lo + 0.0f) : 0x7fc0u; /* + 0: no negative zero */
    float range = hi - turbok_bf16_to_f32(zero);
    if (range - range == 0.0f) { /* a number */
        q.par[0] = turbok_bf16_above(range / top);
        if (range > 0.0f && !q.par[0]) /* the quotient fell below all numbers: the smallest scale */
            q.par[0] = 1;
        q.par[1] = zero;
    }
    q.scale = turbok_bf16_to_f32(q.par[0]);
    q.zero = turbok_bf16_to_f32(q.par[1]);
    return q;
}

/* A row without extent has scale 0 and only codes 0, one without parameters too. */
static inline bool turbok_quant_flat(const turbok_quant *q)
{
    return !(q->scale > 0.0f);
}

static inline uint8_t turbok_quant_code(const turbok_quant *q, float x, float top)
{
    float u = (x - q->zero) / q->scale;
    return (uint8_t)turbok_bits((u < top ? u : top) + TURBOK_ROUNDER);
}

#endif
