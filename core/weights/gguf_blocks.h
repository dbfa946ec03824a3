/* core/weights/gguf_blocks.h: the number types of GGUF files and how their blocks become a turbok_grid.
 * Pure functions, any thread. */
#ifndef TURBOD_GGUF_BLOCKS_H
#define TURBOD_GGUF_BLOCKS_H

#include "turbok.h"

/* A type of numbers. Quantised ones have bits; then form says which grid their blocks are. */
typedef struct turbod_gguf_type {
    const char *name;
    uint32_t id;
    uint32_t block, bytes; /* numbers in a block, bytes of it; 0: known by name only, not read */
    int32_t dtype; /* TURBO_*, or -1 */
    int32_t bits, group, offset; /* of the grid; 0 bits: numbers, no blocks */
    bool wide; /* scales are products, fp32; else the fp16 of the block */
    bool min, table;
} turbod_gguf_type;

const turbod_gguf_type *turbod_gguf_type_of(uint32_t id); /* NULL: unknown */

/* The grid that holds rows of these types exactly: that of the type when they are all the same, else one
 * that each fits into. g has no pointers but table; those of min say whether there is one. */
typedef struct turbod_gguf_form {
    turbok_grid g;
    bool min;
} turbod_gguf_form;
turbod_gguf_form turbod_gguf_form_of(const turbod_gguf_type *const *types, int32_t n);

/* One row of `in` numbers into row r of a grid of that form, whose arrays have room for it. False: a scale
 * is not finite. */
bool turbod_gguf_unpack(const turbod_gguf_type *t, const uint8_t *row, int64_t in,
                        const turbod_gguf_form *f, uint8_t *codes, void *scale, float *min);

/* The same question of a row whose codes are not wanted. */
bool turbod_gguf_finite(const turbod_gguf_type *t, const uint8_t *row, int64_t in);

#endif
