/* kernels/grid.h: quantised matrices in the device's own layout; for kernels/ only.
 *
 * Owns the layout and what a row of activations becomes before it meets such a matrix. Made by grid.c,
 * multiplied by nn/grid.c with the kernels of an instruction set (cpu/grid.c is the reference). */
#ifndef TURBOK_GRID_INTERNAL_H
#define TURBOK_GRID_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A stripe is 32 outputs, and a contiguous piece of memory: group after group, each with its codes, then
 * its scales [32], then zeros [32] u8 or minima [32] f32. Codes go block by block (32 inputs, or 16 where
 * groups are no multiples of 32), and in a block in words of 4 inputs of one output:
 *   8 bits: [block/4][32][4]
 *   4 bits: [block/8][32][4]; words j (low halves) and j + block/8 (high halves) share bytes.
 * So one activation word meets 32 outputs, and no sum runs over lanes. */
#define TURBOK_STRIPE 32
#define TURBOK_ACT_ROWS 256 /* activation rows that are prepared together at most */
#define TURBOK_ACT_BYTES ((size_t)4 << 20) /* for them, in each device */
#define TURBOK_ACT_LEAST 1e-35f /* a block of smaller activations is 0: 127 / x must be a number */
#define TURBOK_GRID_IN 262144 /* inputs that a grid has at most: one row must fit there */

typedef enum {
    TURBOK_GRID_S8, /* stored: code - bias, signed */
    TURBOK_GRID_U4, /* stored: code; multiplied as code - 8 */
    TURBOK_GRID_T4, /* stored: code; table[code] = unit * itable[code] */
    TURBOK_GRID_F /* stored: code, 8 or 4 bits; table in fp32, activations in fp32 */
} turbok_grid_kind;

typedef struct turbok_tiles {
    turbok_grid_kind kind;
    int32_t bits, group, block, scale_dtype;
    int32_t offset, bias;
    bool zero, min;
    float outlier;
    int64_t in, depth; /* depth: in, rounded up to whole blocks */
    int64_t stripes, groups, blocks; /* blocks of a row */
    size_t code_bytes, at_zero, group_bytes, stripe_bytes; /* codes of a group; where zeros begin */
    int32_t *perm; /* [in] or NULL */
    float unit;
    int8_t itable[16];
    float table[256];
    /* F of 8 bits whose codes are floats, sign first: table[c] = float_unit times the fp32 number with the
     * sign of c and its other bits float_bits below the top, under float_mask. 0: gathered. */
    int32_t float_bits, float_mask;
    float float_unit;
} turbok_tiles;

/* Activations of R rows as a grid takes them. Row r of a member lies at r times what one row takes. */
typedef struct turbok_acts {
    int8_t *q; /* [R,depth] x = scale * q, |q| <= 127 */
    float *scale; /* [R,blocks] */
    int32_t *
        start; /* [R,blocks] what sums of a block begin with: -8 sum(q) for U4, in a form of the kernel's own */
    float *sum; /* [R,groups] scale * q added up, where zeros, minima or an odd offset need it */
    float *x; /* [R,depth] fp32: of F, and while outliers are looked for */
    int32_t *far; /* [R,in] inputs that are outliers, ascending */
    float *far_x; /* [R,in] */
    int32_t *n_far; /* [R] */
} turbok_acts;

typedef struct turbok_grid_prim {
    /* q [depth], scale [blocks], start [blocks], sum [groups] or NULL from x [depth]. A block with a number
     * that is not finite gets NaN for its scale. */
    void (*quantize)(const turbok_tiles *w, const float *x, int8_t *q, float *scale, int32_t *start,
                     float *sum);
    /* acc [rows][32] = rows first.. of a times one stripe, rows 1..TURBOK_ACT_ROWS. For each output:
     *   part = 0; for each block of the group: part = fma(sum of codes * q, scale of the block, part)
     *   acc = fma(part, scale of the group, acc); acc = fma(-shift, sum of the group, acc)
     * all in ascending order; sums of codes * q are exact. F: part = fma(x, table[code], part). */
    void (*stripe)(const turbok_tiles *w, const char *stripe, const turbok_acts *a, int64_t first,
                   int64_t rows, float *acc);
} turbok_grid_prim;

extern const turbok_grid_prim turbok_grid_scalar;
#if defined(__x86_64__)
extern const turbok_grid_prim turbok_grid_avx2, turbok_grid_avx512, turbok_grid_avx512_vnni;
#elif defined(__aarch64__)
extern const turbok_grid_prim turbok_grid_neon, turbok_grid_neon_dot;
#endif

/* Does the grid need the sums of activations? */
static inline bool turbok_tiles_shifted(const turbok_tiles *w)
{
    if (w->kind == TURBOK_GRID_T4 || w->kind == TURBOK_GRID_F)
        return false;
    return w->zero || w->min || w->offset != w->bias;
}

/* Codes of input k (in the order of the stripe) for the 32 outputs, as stored. */
void turbok_tiles_codes(const turbok_tiles *w, const char *stripe, int64_t k,
                        uint8_t code[TURBOK_STRIPE]);
/* Scales of a group, and what (code - bias) is off by, times the scale: W = s (code - bias) - shift. */
void turbok_tiles_scales(const turbok_tiles *w, const char *group, float s[TURBOK_STRIPE]);
void turbok_tiles_shift(const turbok_tiles *w, const char *group, const float *s,
                        float shift[TURBOK_STRIPE]);
/* Column k of W for the 32 outputs, as turbok_grid defines it. */
void turbok_tiles_column(const turbok_tiles *w, const char *stripe, int64_t k,
                         float out[TURBOK_STRIPE]);

#endif
