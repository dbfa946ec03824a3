/* core/weights/quant/quant.h: matrices that a folder stores as codes and scales.
 *
 * A format finds the tensors of a matrix, checks what their headers say, and unpacks rows of them into
 * a turbok_grid. What the folder's config says about quantisation is read once, when it opens. Main
 * thread; rows() also on the device's workers. Must not know: architectures, how a device stores a grid. */
#ifndef TURBOD_QUANT_H
#define TURBOD_QUANT_H

#include "turbok.h"
#include "weights/index.h"

typedef struct turbod_quant turbod_quant;
typedef struct turbod_quant_part turbod_quant_part;

/* model_format: "" to go by config.json, else the name of a format. folder NULL: nothing is known, formats are
 * told by their tensors. */
turbo_status turbod_quant_open(const char *folder, const char *model_format, turbod_quant **out,
                               turbo_err *err);
void turbod_quant_close(turbod_quant *q); /* NULL allowed */

/* Where rows of a matrix go, in the layout of turbok_grid; NULL: the grid has no such part. */
typedef struct turbod_quant_rows {
    uint8_t *codes, *zero;
    void *scale;
    float *min;
    const int32_t *perm; /* filled before */
    _Atomic bool *bad; /* set when a code stands for no finite number */
} turbod_quant_rows;

typedef struct turbod_quant_format {
    const char *name; /* as model_format and errors have it */
    /* Looks for the tensors of base and fills t, grid and what it needs itself; part->format is set and rows
     * and in are given. Reads headers, and of data no more than a vector of [in] or a few numbers. */
    turbo_status (*find)(const turbod_quant *q, const turbod_index *ix, const char *base,
                         turbod_quant_part *p, turbo_err *err);
    void (*table)(const turbod_quant_part *p, float *table); /* [2^bits] */
    void (*perm)(const turbod_quant_part *p, int32_t *perm); /* [in] */
    /* Unpacks rows r0 to r1, multiples of 64 but for the end. to is where row 0 of the part goes. */
    void (*rows)(const turbod_quant_part *p, int64_t r0, int64_t r1, const turbod_quant_rows *to);
    /* Where scales stand between codes: the first row with one that is not finite, or -1. NULL: they are
     * tensors. */
    int64_t (*bad_row)(const turbod_quant_part *p);
} turbod_quant_format;

#define TURBOD_QUANT_TENSORS 8

/* One matrix [rows,in]. */
struct turbod_quant_part {
    const turbod_quant_format *format; /* NULL: it is stored unquantised, or not at all */
    const turbod_st_tensor
        *t[TURBOD_QUANT_TENSORS]; /* codes, scales, then the format's own; or NULL */
    int64_t rows, in;
    turbok_grid grid; /* of its pointers only which are NULL means anything */
    int64_t span, tall; /* inputs and rows that share a scale in the file */
    int32_t bits; /* of a code in the file */
    int32_t shift; /* the format's own: what is added to a code or a zero */
    double base; /* the format's own */
    bool exponents; /* scales are exponents of two, of which 255 is no number */
    bool zero_scales; /* a scale of 0 is a block of zeros, no damage */
    bool finite_codes; /* every code is a number; rows() need not look */
};

/* The quantised matrix base.weight, under whatever names its format gives it. OK with p->format NULL: it is
 * stored unquantised, or is not there. */
turbo_status turbod_quant_find(const turbod_quant *q, const turbod_index *ix, const char *base,
                               int64_t rows, int64_t in, turbod_quant_part *p, turbo_err *err);
/* Is there such a matrix, in whatever condition? */
bool turbod_quant_has(const turbod_quant *q, const turbod_index *ix, const char *base);
/* The form of a matrix that has no file yet, by the config alone; false: it will not be quantised. */
bool turbod_quant_assume(const turbod_quant *q, const char *base, int64_t in, turbok_grid *g);
/* Reads the scales: TURBO_EDATA, with the tensor, for NaN, infinity, and zero where zero makes no sense. Those
 * between codes are left to rows(), unless blocks is set. */
turbo_status turbod_quant_scan(const turbod_quant_part *p, bool blocks, turbo_err *err);
/* The grid of p with its data, unpacked by the threads of d (NULL: by this one); turbod_quant_grid_free frees
 * what it points to. */
turbo_status turbod_quant_grid(const turbod_quant_part *p, turbok_device *d, bool allow_nonfinite,
                               turbok_grid *out, turbo_err *err);
void turbod_quant_grid_free(turbok_grid *g);

#endif
