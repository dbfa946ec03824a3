/* kernels/grid.c: quantised matrices: checks, packing into stripes (grid.h), and reading back. Caller's
 * thread and the pool. Knows no file format: readers of formats make turbok_grid. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/number.h"
#include "internal.h"

/* ---- layout ------------------------------------------------------------------------------------------- */

static bool layout(const turbok_grid *g, int64_t out, int64_t in, turbok_tiles *w)
{
    bool whole = g->group == in;
    if (out < 1 || out > INT32_MAX || in < 1 || in > TURBOK_GRID_IN ||
        (g->bits != 8 && g->bits != 4) || g->group < 1 ||
        (!whole && (g->group % 16 || in % g->group)) || (g->bits == 4 && in % 2) ||
        (g->scale_dtype != TURBO_F32 && g->scale_dtype != TURBO_F16 &&
         g->scale_dtype != TURBO_BF16) ||
        g->offset < 0 || g->offset > 255 || (g->zero && g->min) ||
        (g->table && (g->zero || g->min)))
        return false;
    *w = (turbok_tiles){
        .bits = g->bits,
        .group = g->group,
        .block = whole || g->group % 32 == 0 ? 32 : 16,
        .scale_dtype = g->scale_dtype,
        .offset = g->offset,
        .zero = g->zero,
        .min = g->min,
        .outlier = g->outlier,
        .in = in,
        .unit = 1,
    };
    w->depth = (in + w->block - 1) / w->block * w->block;
    w->group = whole ? (int32_t)w->depth : w->group;
    w->groups = w->depth / w->group;
    w->blocks = w->depth / w->block;
    w->stripes = (out + TURBOK_STRIPE - 1) / TURBOK_STRIPE;
    w->code_bytes = (size_t)w->group * TURBOK_STRIPE * (size_t)g->bits / 8;
    w->at_zero = w->code_bytes + TURBOK_STRIPE * turbok_dtype_size(g->scale_dtype);
    w->group_bytes = w->at_zero + TURBOK_STRIPE * (g->zero ? 1u : g->min ? 4u : 0u);
    w->stripe_bytes = w->group_bytes * (size_t)w->groups;
    return true;
}

static bool same_kind(const turbok_part *a, const turbok_part *b)
{
    const turbok_grid *g = a->grid, *h = b->grid;
    if (!g || !h)
        return !g && !h;
    return !g->perm && !h->perm && g->bits == h->bits && g->group == h->group &&
           g->scale_dtype == h->scale_dtype && g->offset == h->offset && !g->zero == !h->zero &&
           !g->min == !h->min && !g->table == !h->table && g->outlier == h->outlier;
}

/* Parts from i on that make one matrix; *rows: how many rows they have together, -1 on nonsense. */
static int32_t run_of(const turbok_part *parts, int32_t i, int32_t n, int64_t *rows)
{
    int32_t j = i;
    *rows = 0;
    for (; j < n && (j == i || same_kind(&parts[i], &parts[j])); j++)
        if (parts[j].rows < 1 || *rows < 0 || __builtin_add_overflow(*rows, parts[j].rows, rows))
            *rows = -1;
    return j - i;
}

bool turbok_rows_gridded(const turbok_part *parts, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (parts[i].grid)
            return true;
    return false;
}

static uint64_t run_bytes(const turbok_device *d, int32_t dtype, const turbok_part *parts,
                          int32_t n, int64_t rows, int64_t in, uint32_t flags)
{
    bool bias = false;
    for (int32_t i = 0; i < n; i++)
        bias = bias || parts[i].bias;
    if (!parts->grid)
        return turbok_linear_bytes(d, dtype, rows, in, bias, flags);
    turbok_tiles w;
    if (!layout(parts->grid, rows, in, &w))
        return 0;
    if (d && d->exact)
        return turbok_linear_bytes(d, TURBO_F32, rows, in, bias, flags);
    size_t bytes, tiles = ((size_t)rows + TURBOK_TILE - 1) / TURBOK_TILE;
    if (__builtin_mul_overflow(w.stripe_bytes, (size_t)w.stripes, &bytes))
        return 0;
    return turbok_alloc_size(bytes) + (bias ? tiles * TURBOK_TILE * sizeof(float) : 0) +
           (parts->grid->perm ? turbok_alloc_size((size_t)in * sizeof(int32_t)) : 0);
}

uint64_t turbok_linear_rows_bytes(const turbok_device *d, int32_t dtype, const turbok_part *parts,
                                  int32_t n, int64_t in, uint32_t flags, turbo_err *err)
{
    uint64_t sum = 0;
    if (d && d->backend)
        return d->backend->rows_bytes(dtype, parts, n, in, flags, err);
    for (int32_t i = 0, k; i < n; i += k) {
        int64_t rows;
        k = run_of(parts, i, n, &rows);
        uint64_t bytes = run_bytes(d, dtype, parts + i, k, rows, in, flags);
        if (!bytes || __builtin_add_overflow(sum, bytes, &sum)) {
            turbok_fail(err, TURBO_EINVAL,
                        "%lld x %lld cannot be stored; f32, f16 and bf16 can, and 8 or 4 bits in "
                        "groups of a multiple of 16 that divides the inputs",
                        (long long)rows, (long long)in);
            return 0;
        }
    }
    return sum;
}

uint64_t turbok_grid_bytes(const turbok_device *d, const turbok_grid *g, int64_t out, int64_t in,
                           bool has_bias, uint32_t flags)
{
    const turbok_part whole = {.grid = g, .rows = out, .bias = has_bias ? g : NULL};
    return turbok_linear_rows_bytes(d, TURBO_F32, &whole, 1, in, flags, NULL);
}

/* ---- the definition ------------------------------------------------------------------------------------- */

void turbok_grid_row(const turbok_grid *g, int64_t o, int64_t in, float *out)
{
    size_t groups = (size_t)(in / g->group), row = (size_t)o;
    for (int64_t k = 0; k < in; k++) {
        size_t at = row * groups + (size_t)(k / g->group);
        int code = g->bits == 8
                       ? g->codes[row * (size_t)in + (size_t)k]
                       : g->codes[row * (size_t)(in / 2) + (size_t)(k / 2)] >> 4 * (k % 2) & 15;
        float s = turbok_number(g->scale_dtype, g->scale, at), v;
        if (g->table)
            v = s * g->table[code];
        else if (g->zero)
            v = s * (float)(code - g->zero[at]);
        else
            v = s * (float)(code - g->offset) - (g->min ? g->min[at] : 0.0f);
        out[g->perm ? g->perm[k] : k] = v;
    }
}

/* ---- packing ---------------------------------------------------------------------------------------------- */

typedef struct pack {
    const turbok_tiles *w;
    char *data;
    const turbok_part *parts;
    int64_t out;
    uint8_t pad; /* code of what is not there */
} pack;

static const turbok_grid *grid_of(const turbok_part *parts, int64_t *row)
{
    while (*row >= parts->rows)
        *row -= (parts++)->rows;
    return parts->grid;
}

/* Codes of inputs [k, k + w->block) of a row, one a byte, as stored. */
static void row_codes(const pack *p, const turbok_grid *g, int64_t row, int64_t k, uint8_t *code)
{
    const turbok_tiles *w = p->w;
    for (int64_t i = 0; i < w->block; i++) {
        if (!g || k + i >= w->in) {
            code[i] = p->pad;
            continue;
        }
        if (w->bits == 8)
            code[i] = g->codes[(size_t)row * (size_t)w->in + (size_t)(k + i)];
        else
            code[i] = g->codes[(size_t)row * (size_t)(w->in / 2) + (size_t)((k + i) / 2)] >>
                          4 * ((k + i) % 2) &
                      15;
        if (w->kind == TURBOK_GRID_S8)
            code[i] = (uint8_t)(code[i] - w->bias);
    }
}

static void put_codes(const turbok_tiles *w, char *block, int lane, const uint8_t *code)
{
    int words = w->block / 4;
    for (int j = 0; j < words; j++) {
        if (w->bits == 8) {
            memcpy(block + (j * TURBOK_STRIPE + lane) * 4, code + 4 * j, 4);
            continue;
        }
        char *to = block + (j % (words / 2) * TURBOK_STRIPE + lane) * 4;
        for (int i = 0; i < 4; i++) {
            uint8_t b = j < words / 2 ? 0 : (uint8_t)to[i];
            to[i] = (char)(j < words / 2 ? code[4 * j + i] : b | code[4 * j + i] << 4);
        }
    }
}

static void put_params(const turbok_tiles *w, char *group, int lane, const turbok_grid *g,
                       int64_t row, int64_t number_of)
{
    size_t es = turbok_dtype_size(w->scale_dtype);
    char *scale = group + w->code_bytes + (size_t)lane * es, *zero = group + w->at_zero;
    size_t at = (size_t)row * (size_t)w->groups + (size_t)number_of;
    if (g)
        memcpy(scale, (const char *)g->scale + at * es, es);
    else
        memset(scale, 0, es);
    if (w->zero)
        zero[lane] = (char)(g ? g->zero[at] : 0);
    if (w->min) {
        float m = g ? g->min[at] : 0;
        memcpy(zero + 4 * lane, &m, 4);
    }
}

static void pack_stripes(void *ctx, int64_t from, int64_t to, int thread)
{
    const pack *p = ctx;
    const turbok_tiles *w = p->w;
    size_t block_bytes = w->code_bytes / (size_t)(w->group / w->block);
    (void)thread;
    for (int64_t s = from; s < to; s++)
        for (int lane = 0; lane < TURBOK_STRIPE; lane++) {
            int64_t row = s * TURBOK_STRIPE + lane;
            const turbok_grid *g = row < p->out ? grid_of(p->parts, &row) : NULL;
            char *group = p->data + (size_t)s * w->stripe_bytes;
            for (int64_t i = 0; i < w->groups; i++, group += w->group_bytes) {
                for (int64_t b = 0; b < w->group / w->block; b++) {
                    uint8_t code[32];
                    row_codes(p, g, row, i * w->group + b * w->block, code);
                    put_codes(w, group + (size_t)b * block_bytes, lane, code);
                }
                put_params(w, group, lane, g, row, i);
            }
        }
}

/* ---- making ------------------------------------------------------------------------------------------------ */

/* A table whose entries are one power of two times integers of 8 bits. */
static bool small_integers(turbok_tiles *w)
{
    for (int e = 8; e >= -8; e--) {
        float unit = ldexpf(1, e);
        int i = 0;
        for (; i < 16; i++) {
            float v = w->table[i] / unit;
            if (!(fabsf(v) <= 127) || v != rintf(v))
                break;
            w->itable[i] = (int8_t)v;
        }
        if (i == 16) {
            w->unit = unit;
            return true;
        }
    }
    return false;
}

static float float_of(const turbok_tiles *w, uint32_t code)
{
    uint32_t top = code << 24;
    return w->float_unit *
           turbok_from_bits((top & 0x80000000u) | (top >> w->float_bits & (uint32_t)w->float_mask));
}

/* A table of the small floats of 8 bits: then no table is needed. used: codes that occur. What is no
 * number there may have become one here. */
static void small_floats(turbok_tiles *w, const bool used[256])
{
    for (int exponent = 4; exponent <= 5; exponent++) {
        w->float_bits = 8 - exponent;
        w->float_mask = 0x7f << (24 - w->float_bits);
        w->float_unit = exponent == 4 ? 0x1p120f : 0x1p112f;
        uint32_t c = 0;
        while (c < 256 && (w->table[c] == float_of(w, c) || !used[c]))
            c++;
        if (c == 256)
            return;
    }
    w->float_bits = 0;
}

static turbo_status bad(turbo_err *err, const char *what, int64_t row)
{
    return turbok_fail(err, TURBO_EDATA, "row %lld of a quantised matrix has %s", (long long)row,
                       what);
}

/* Everything about the contents that can be wrong. used: codes of 8 bits that occur. */
static turbo_status check(const turbok_part *parts, int32_t n, const turbok_tiles *w,
                          bool used[256], turbo_err *err)
{
    memset(used, 0, 256 * sizeof *used);
    for (int32_t i = 0; i < n; i++) {
        const turbok_grid *g = parts[i].grid;
        size_t params = (size_t)parts[i].rows * (size_t)w->groups;
        for (size_t k = 0; k < params; k++) {
            int64_t row = (int64_t)(k / (size_t)w->groups);
            if (!isfinite(turbok_number(g->scale_dtype, g->scale, k)))
                return bad(err, "a scale that is not finite", row);
            if (g->min && !isfinite(g->min[k]))
                return bad(err, "a minimum that is not finite", row);
        }
        if (g->table && memcmp(g->table, parts->grid->table, sizeof(float) << g->bits))
            return turbok_fail(err, TURBO_EINVAL, "parts of one matrix have different tables");
        for (size_t k = 0; k < (size_t)parts[i].rows * (size_t)w->in && g->bits == 8; k++)
            used[g->codes[k]] = true;
    }
    return TURBO_OK;
}

static turbo_status take_perm(turbok_device *d, turbok_tiles *w, const int32_t *perm,
                              turbo_err *err)
{
    size_t bytes = (size_t)w->in * sizeof *perm;
    uint8_t *seen = calloc((size_t)w->in, 1);
    w->perm = seen ? turbok_alloc(d, TURBOK_MEM_LINEAR, bytes) : NULL;
    if (!w->perm) {
        free(seen);
        return turbok_fail(err, TURBO_ENOMEM, "no memory for the order of inputs");
    }
    memcpy(w->perm, perm, bytes);
    turbo_status st = TURBO_OK;
    for (int64_t k = 0; k < w->in && !st; k++) {
        if (perm[k] < 0 || perm[k] >= w->in || seen[perm[k]])
            st = turbok_fail(err, TURBO_EDATA, "the order of inputs is no permutation: entry %lld",
                             (long long)k);
        else
            seen[perm[k]] = 1;
    }
    free(seen);
    return st;
}

static void choose_kind(turbok_tiles *w, const turbok_grid *g, const bool used[256], uint8_t *pad)
{
    int top = 255;
    while (top && !used[top])
        top--;
    w->kind = w->bits == 8 ? TURBOK_GRID_S8 : TURBOK_GRID_U4;
    w->bias = w->bits == 4                                             ? 8
              : !g->zero && w->offset <= 128 && top - w->offset <= 127 ? w->offset
                                                                       : 128;
    *pad = (uint8_t)(w->kind == TURBOK_GRID_U4 ? 8 : 0);
    if (!g->table)
        return;
    memcpy(w->table, g->table, sizeof(float) << w->bits);
    w->kind = w->bits == 4 && small_integers(w) ? TURBOK_GRID_T4 : TURBOK_GRID_F;
    *pad = 0;
    while (*pad < (1 << w->bits) - 1 && !isfinite(w->table[*pad]))
        (*pad)++;
    if (w->bits == 8)
        small_floats(w, used);
}

typedef struct expand {
    const turbok_grid *g;
    int64_t in;
    float *to;
} expand;

static void expand_rows(void *ctx, int64_t from, int64_t to, int thread)
{
    const expand *e = ctx;
    (void)thread;
    for (int64_t o = from; o < to; o++)
        turbok_grid_row(e->g, o, e->in, e->to + (size_t)o * (size_t)e->in);
}

/* An exact device keeps the numbers themselves. */
static turbo_status exact_new(turbok_device *d, const turbok_part *parts, int32_t n, int64_t rows,
                              int64_t in, uint32_t flags, turbo_linear **res, turbo_err *err)
{
    turbok_part wide[16];
    float *f = n <= 16 ? calloc((size_t)rows, (size_t)in * sizeof *f) : NULL, *at = f;
    if (!f)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a matrix of %lld x %lld in fp32",
                           (long long)rows, (long long)in);
    for (int32_t i = 0; i < n; i++) {
        expand e = {parts[i].grid, in, at};
        turbok_pool_for(d->exec.pool, parts[i].rows, 16, expand_rows, &e);
        wide[i] = parts[i];
        wide[i].grid = NULL;
        wide[i].data = at;
        at += (size_t)parts[i].rows * (size_t)in;
    }
    turbo_status st = turbok_linear_rows_new(d, TURBO_F32, wide, n, in, flags, res, err);
    free(f);
    return st;
}

static turbo_status run_new(turbok_device *d, const turbok_part *parts, int32_t n, int64_t rows,
                            int64_t in, uint32_t flags, turbo_linear **res, turbo_err *err)
{
    const turbok_grid *g = parts->grid;
    turbo_linear *w = calloc(1, sizeof *w);
    turbok_tiles *t = calloc(1, sizeof *t);
    turbo_status st = TURBO_OK;
    bool bias = false, used[256];
    uint8_t pad = 0;
    if (!w || !t)
        st = turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
    else if (!run_bytes(d, TURBO_F32, parts, n, rows, in, flags) || !layout(g, rows, in, t))
        st = turbok_fail(err, TURBO_EINVAL,
                         "a quantised matrix of %lld x %lld with %d bits and groups of %d is not "
                         "possible: 8 or 4 bits, groups a multiple of 16 that divides the inputs",
                         (long long)rows, (long long)in, g->bits, g->group);
    if (!st)
        st = check(parts, n, t, used, err);
    if (!st && g->perm)
        st = take_perm(d, t, g->perm, err);
    if (!st && d->exact)
        st = exact_new(d, parts, n, rows, in, flags, res, err);
    if (st || d->exact)
        goto out;
    choose_kind(t, g, used, &pad);
    for (int32_t i = 0; i < n; i++)
        bias = bias || parts[i].bias;
    w->dtype = TURBO_U8;
    w->out = rows;
    w->in = in;
    w->tiles = (rows + TURBOK_TILE - 1) / TURBOK_TILE;
    w->grid = t;
    w->data_bytes = t->stripe_bytes * (size_t)t->stripes;
    w->data = turbok_alloc(d, TURBOK_MEM_LINEAR, w->data_bytes);
    if (!w->data || (bias && turbok_fill_bias(d, w, parts, n))) {
        st = turbok_fail(err, TURBO_ENOMEM, "no memory for a matrix of %lld x %lld (%zu MiB)",
                         (long long)rows, (long long)in, w->data_bytes >> 20);
        turbok_linear_free(d, w);
        return st;
    }
    pack p = {t, w->data, parts, rows, pad};
    turbok_pool_for(d->exec.pool, t->stripes, 1, pack_stripes, &p);
    *res = w;
    return TURBO_OK;
out:
    if (t && t->perm)
        turbok_release(d, TURBOK_MEM_LINEAR, t->perm, (size_t)in * sizeof *t->perm);
    free(t);
    free(w);
    return st;
}

turbo_status turbok_rows_grid_new(turbok_device *d, int32_t dtype, const turbok_part *parts,
                                  int32_t n, int64_t in, uint32_t flags, turbo_linear **res,
                                  turbo_err *err)
{
    int64_t rows;
    if (run_of(parts, 0, n, &rows) == n)
        return run_new(d, parts, n, rows, in, flags, res, err);
    turbo_linear *w = calloc(1, sizeof *w);
    turbo_status st = TURBO_OK;
    if (w)
        w->parts = calloc((size_t)n, sizeof(turbo_linear *));
    if (!w || !w->parts)
        st = turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
    for (int32_t i = 0, k; i < n && !st; i += k) {
        turbo_linear **part = &w->parts[w->n_parts];
        k = run_of(parts, i, n, &rows);
        st = parts[i].grid ? run_new(d, parts + i, k, rows, in, flags, part, err)
                           : turbok_linear_rows_new(d, dtype, parts + i, k, in, flags, part, err);
        if (!st) {
            w->out += (*part)->out;
            w->n_parts++;
        }
    }
    if (st) {
        turbok_linear_free(d, w);
        return st;
    }
    w->dtype = TURBO_U8;
    w->in = in;
    *res = w;
    return TURBO_OK;
}

turbo_status turbok_grid_new(turbok_device *d, const turbok_grid *g, int64_t out, int64_t in,
                             const void *bias, int32_t bias_dtype, uint32_t flags, turbo_linear **w,
                             turbo_err *err)
{
    const turbok_part whole = {.grid = g, .rows = out, .bias = bias, .bias_dtype = bias_dtype};
    return turbok_linear_rows_new(d, TURBO_F32, &whole, 1, in, flags, w, err);
}

/* ---- reading ------------------------------------------------------------------------------------------------ */

void turbok_tiles_codes(const turbok_tiles *w, const char *stripe, int64_t k,
                        uint8_t code[TURBOK_STRIPE])
{
    int64_t in_group = k % w->group, j = in_group % w->block / 4, half = w->block / 8;
    const char *block =
        stripe + (size_t)(k / w->group) * w->group_bytes +
        (size_t)(in_group / w->block) * (w->code_bytes / (size_t)(w->group / w->block));
    int64_t word = w->bits == 8 ? j : j % half;
    const uint8_t *at = (const uint8_t *)block + word * TURBOK_STRIPE * 4 + k % 4;
    for (int l = 0; l < TURBOK_STRIPE; l++)
        code[l] = w->bits == 8 ? at[4 * l] : (uint8_t)(at[4 * l] >> (j < half ? 0 : 4) & 15);
}

void turbok_tiles_scales(const turbok_tiles *w, const char *group, float s[TURBOK_STRIPE])
{
    turbok_prim_scalar.widen(w->scale_dtype, group + w->code_bytes, TURBOK_STRIPE, s);
}

void turbok_tiles_shift(const turbok_tiles *w, const char *group, const float *s,
                        float shift[TURBOK_STRIPE])
{
    const char *zero = group + w->at_zero;
    for (int l = 0; l < TURBOK_STRIPE; l++) {
        float m = 0;
        if (w->min)
            memcpy(&m, zero + 4 * l, 4);
        shift[l] = w->zero ? s[l] * (float)((int)(uint8_t)zero[l] - w->bias)
                           : fmaf(s[l], (float)(w->offset - w->bias), m);
    }
}

void turbok_tiles_column(const turbok_tiles *w, const char *stripe, int64_t k,
                         float out[TURBOK_STRIPE])
{
    const char *group = stripe + (size_t)(k / w->group) * w->group_bytes;
    uint8_t code[TURBOK_STRIPE];
    float s[TURBOK_STRIPE];
    turbok_tiles_codes(w, stripe, k, code);
    turbok_tiles_scales(w, group, s);
    for (int l = 0; l < TURBOK_STRIPE; l++) {
        int c = w->kind == TURBOK_GRID_S8 ? (int8_t)code[l] + w->bias : code[l];
        float m = 0;
        if (w->min)
            memcpy(&m, group + w->at_zero + 4 * l, 4);
        if (w->kind == TURBOK_GRID_F || w->kind == TURBOK_GRID_T4)
            out[l] = s[l] * w->table[c];
        else if (w->zero)
            out[l] = s[l] * (float)(c - (uint8_t)group[w->at_zero + (size_t)l]);
        else
            out[l] = s[l] * (float)(c - w->offset) - m;
    }
}

void turbok_grid_embed(const turbo_linear *w, int64_t row, float *out)
{
    for (int32_t i = 0; w->parts;) {
        const turbo_linear *part = w->parts[i++];
        if (row >= part->out)
            row -= part->out;
        else
            w = part;
    }
    const turbok_tiles *t = w->grid;
    if (!t) {
        turbok_float_row(w, row, out);
        return;
    }
    const char *stripe = (const char *)w->data + (size_t)(row / TURBOK_STRIPE) * t->stripe_bytes;
    for (int64_t k = 0; k < t->in; k++) {
        float column[TURBOK_STRIPE];
        turbok_tiles_column(t, stripe, k, column);
        out[t->perm ? t->perm[k] : k] = column[row % TURBOK_STRIPE];
    }
}
