/* kernels/cuda/wq_pack.c: from turbok_grid to the device's order. See wq.h; wq.cuh has the order. */
#include "cuda/wq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/number.h"
#include "internal.h"

enum { ALIGN = 256, MOST_ZERO = 127 /* of 4 bits: 128 + zero must be exact in bf16 */ };

static uint64_t place_of(uint64_t *at, uint64_t bytes)
{
    uint64_t here = *at;
    *at += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return here;
}

/* What w8a8.cu multiplies; of tables those of e4m3, which is seen later. Sums of integers must fit into 32 bits. */
static bool codes_meet_codes(const turbok_grid *g, int64_t in)
{
    return g->bits == 8 && !g->perm && !g->zero && !g->min && (g->table || g->offset == 128) &&
           in % 32 == 0 && (g->group == in ? in <= 1 << 17 : g->group == TURBOK_CU_W8A8_GROUP);
}

turbo_status turbok_cu_wq_plan(const turbok_grid *g, int64_t out, int64_t in, bool has_bias,
                               turbok_cu_wq *w, turbo_err *err)
{
    if ((g->bits != 4 && g->bits != 8) || out < 1 || in < 1 || out > INT32_MAX || in > 1 << 24 ||
        g->offset < 0 || g->offset > 255 || g->scale_dtype < TURBO_F32 ||
        g->scale_dtype > TURBO_BF16)
        return turbok_fail(err, TURBO_EINVAL,
                           "a quantised matrix [%lld,%lld] of %d bits is out of range",
                           (long long)out, (long long)in, g->bits);
    if (g->group < 16 || g->group % 16 || in % g->group)
        return turbok_fail(err, TURBO_EINVAL,
                           "groups of %d do not divide %lld inputs into multiples of 16", g->group,
                           (long long)in);
    *w = (turbok_cu_wq){
        .out = out,
        .in = in,
        .tiles = (out + 15) / 16,
        .groups = in / g->group,
        .chunks = (in + (g->bits == 4 ? 63 : 31)) / (g->bits == 4 ? 64 : 32),
        .bits = g->bits,
        .group = g->group,
        .kind = g->table ? TURBOK_CU_Q_TABLE : TURBOK_CU_Q_INT,
        .scale_dtype = g->scale_dtype,
        .offset = g->offset,
        .steps = g->group % 64 == 0   ? 4
                 : g->group % 32 == 0 ? 2
                                      : 1,
        .zero = g->zero != NULL,
        .min = !g->zero && (g->min || (!g->table && g->bits == 4 && g->offset > MOST_ZERO)),
        .bias = has_bias,
        .permuted = g->perm != NULL,
        .coded_inputs = g->coded_inputs && codes_meet_codes(g, in),
    };
    /* An offset that bf16 cannot hold becomes part of the minimum. */
    if (w->min && w->bits == 4 && w->offset > MOST_ZERO)
        w->offset = 0;
    uint64_t at = 0, each = (uint64_t)w->tiles * (uint64_t)w->groups * 16;
    place_of(&at, (uint64_t)w->tiles * (uint64_t)w->chunks * 512);
    w->scale_at = place_of(&at, each * turbok_dtype_size(w->scale_dtype));
    w->zero_at = place_of(&at, w->zero ? each : 0);
    w->min_at = place_of(&at, w->min ? each * sizeof(float) : 0);
    w->table_at = place_of(&at, g->table ? 256 * sizeof(float) : 0);
    w->bias_at = place_of(&at, has_bias ? (uint64_t)out * sizeof(float) : 0);
    w->perm_at = place_of(&at, g->perm ? (uint64_t)in * sizeof(int32_t) : 0);
    w->bytes = at;
    return TURBO_OK;
}

static float e4m3(unsigned code)
{
    int e = (int)(code >> 3 & 15), m = (int)(code & 7);
    float v = e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
    return code & 128 ? -v : v;
}

/* A table that is e4m3 without its two NaN, which the codes must not use. */
static bool is_e4m3(const turbok_grid *g, int64_t n)
{
    for (unsigned c = 0; c < 256; c++)
        if ((c & 127) != 127 && (g->table[c] < e4m3(c) || g->table[c] > e4m3(c)))
            return false;
    for (int64_t i = 0; i < n; i++)
        if ((g->codes[i] & 127) == 127)
            return false;
    return true;
}

static turbo_status check_perm(const turbok_grid *g, int64_t in, turbo_err *err)
{
    bool *seen = calloc((size_t)in, 1);
    bool good = seen != NULL;
    for (int64_t k = 0; k < in && good; k++) {
        good = g->perm[k] >= 0 && g->perm[k] < in && !seen[g->perm[k]];
        if (good)
            seen[g->perm[k]] = true;
    }
    turbo_status st = TURBO_OK;
    if (!seen)
        st = turbok_fail(err, TURBO_ENOMEM, "no memory to check an order of inputs");
    else if (!good)
        st = turbok_fail(err, TURBO_EDATA,
                         "the order of inputs of a quantised matrix is no permutation");
    free(seen);
    return st;
}

turbo_status turbok_cu_wq_check(const turbok_grid *g, int64_t rows, int64_t in, bool *e4m3_codes,
                                turbo_err *err)
{
    int64_t groups = in / g->group;
    for (int64_t i = 0; i < rows * groups; i++) {
        if (!isfinite(turbok_number(g->scale_dtype, g->scale, (size_t)i)) ||
            (g->min && !isfinite(g->min[i])))
            return turbok_fail(err, TURBO_EDATA,
                               "a quantised matrix has a scale that is not finite in row %lld",
                               (long long)(i / groups));
        if (g->zero && g->bits == 4 && g->zero[i] > MOST_ZERO)
            return turbok_fail(err, TURBO_EDATA,
                               "a zero point of 4-bit codes is %d, at most %d is known", g->zero[i],
                               MOST_ZERO);
    }
    *e4m3_codes = g->table && g->bits == 8 && is_e4m3(g, rows * in);
    return g->perm ? check_perm(g, in, err) : TURBO_OK;
}

/* wq.cuh: the first of the four inputs of step s that lane quarter q has. */
static int64_t input_at(int lay, int s, int q)
{
    return s / lay * 16 * lay + q * 4 * lay + s % lay * 4;
}

/* A grid that is rows [first, first + rows) of the matrix. */
typedef struct piece {
    const turbok_cu_wq *w;
    const turbok_grid *g;
    int64_t first, rows;
} piece;

/* Four codes, one a byte, or one a nibble. */
static inline uint32_t four_codes(const uint8_t *c, int bits)
{
    uint32_t low = (uint32_t)c[0] | (uint32_t)c[1] << 8;
    return bits == 4 ? low : low | (uint32_t)c[2] << 16 | (uint32_t)c[3] << 24;
}

/* Row by row, four inputs at a time: those of step s and quarter q go to word s (of 8 bits 2s + h) of the lane. */
static void pack_chunk(const piece *p, int64_t tile, int64_t chunk, uint32_t to[128])
{
    const turbok_cu_wq *w = p->w;
    const int bits = w->bits, steps = bits == 4 ? 4 : 2, lay = w->steps < steps ? w->steps : steps;
    const int64_t from = chunk * 16 * steps, row_bytes = w->in * bits / 8;
    const int64_t first = tile * 16 - p->first, left = p->rows - first;
    const int words = w->in - from < 16 * steps ? (int)(w->in - from) / 4 : 4 * steps;
    const bool table = p->g->table;
    int16_t place[16] = {0}; /* of a type that no store below can change */
    for (int s = 0; s < steps; s++)
        for (int q = 0; q < 4; q++)
            place[input_at(lay, s, q) / 4] = (int16_t)(4 * q + (bits == 4 ? s : 2 * s));
    memset(to, 0, 128 * sizeof *to);
    for (int r = 0; r < 16 && r < left; r++) {
        const uint8_t *row = p->g->codes + (first + r) * row_bytes + from * bits / 8;
        uint32_t *lanes = to + r % 8 * 16;
        const int h = r / 8;
        for (int j = 0; j < words && bits == 8; j++)
            lanes[place[j] + h] = four_codes(row + 4 * j, 8);
        for (int j = 0; j < words && bits == 4; j++) {
            uint32_t c = four_codes(row + 2 * j, 4);
            if (table) /* bytes h and h + 2 have two each */
                lanes[place[j]] |= (c & 255) << (8 * h) | (c >> 8) << (8 * h + 16);
            else /* nibbles h, h + 4, h + 2, h + 6 */
                lanes[place[j]] |=
                    ((c & 15) | (c >> 4 & 15) << 16 | (c >> 8 & 15) << 8 | (c >> 12 & 15) << 24)
                    << (4 * h);
        }
    }
}

static void pack_groups(const piece *p, int64_t tile, char *image)
{
    const turbok_cu_wq *w = p->w;
    const turbok_grid *g = p->g;
    size_t size = turbok_dtype_size(w->scale_dtype);
    for (int64_t k = 0; k < w->groups; k++)
        for (int64_t r = 0; r < 16; r++) {
            int64_t row = tile * 16 + r - p->first, from = row * w->groups + k;
            int64_t to = (tile * w->groups + k) * 16 + r;
            bool there = row < p->rows;
            char *scale = image + w->scale_at + (size_t)to * size;
            if (there)
                memcpy(scale, (const char *)g->scale + (size_t)from * size, size);
            else
                memset(scale, 0, size);
            if (w->zero)
                ((uint8_t *)image)[w->zero_at + (uint64_t)to] = there ? g->zero[from] : 0;
            if (!w->min)
                continue;
            float min = there && g->min ? g->min[from] : 0;
            if (there && w->offset != g->offset)
                min += turbok_number(g->scale_dtype, g->scale, (size_t)from) * (float)g->offset;
            memcpy(image + w->min_at + (size_t)to * sizeof min, &min, sizeof min);
        }
}

void turbok_cu_wq_pack(const turbok_cu_wq *w, const turbok_grid *g, int64_t first, int64_t rows,
                       const void *bias, int32_t bias_dtype, int64_t from, int64_t to, void *image)
{
    const piece p = {w, g, first, rows};
    char *at = image;
    for (int64_t t = from; t < to; t++) {
        uint32_t words[128];
        for (int64_t c = 0; c < w->chunks; c++) {
            pack_chunk(&p, t, c, words);
            memcpy(at + (t * w->chunks + c) * 512, words, sizeof words);
        }
        pack_groups(&p, t, at);
        for (int64_t o = t * 16; w->bias && o < t * 16 + 16 && o - first < rows; o++) {
            float v = bias ? turbok_number(bias_dtype, bias, (size_t)(o - first)) : 0;
            memcpy(at + w->bias_at + (size_t)o * sizeof v, &v, sizeof v);
        }
    }
    if (from)
        return;
    if (g->table) {
        float table[256] = {0};
        memcpy(table, g->table, ((size_t)1 << w->bits) * sizeof *table);
        memcpy(at + w->table_at, table, sizeof table);
    }
    if (w->permuted)
        memcpy(at + w->perm_at, g->perm, (size_t)w->in * sizeof *g->perm);
}

void turbok_cu_wq_place(turbok_cu_wq *w, turbok_cu_ptr at)
{
    const char *p = (const char *)(uintptr_t)at;
    w->m = (turbok_cu_qmat){
        .codes = p,
        .scale = p + w->scale_at,
        .zero = w->zero ? (const uint8_t *)p + w->zero_at : NULL,
        .min = w->min ? (const float *)(uintptr_t)(at + w->min_at) : NULL,
        .table = w->kind == TURBOK_CU_Q_INT ? NULL : (const float *)(uintptr_t)(at + w->table_at),
        .bias = w->bias ? (const float *)(uintptr_t)(at + w->bias_at) : NULL,
    };
    w->perm = w->permuted ? (const int32_t *)(uintptr_t)(at + w->perm_at) : NULL;
}
