/* core/weights/gguf_blocks.c: see gguf_blocks.h. The layouts are those that ggml publishes; every product
 * and difference is rounded where turbok_grid rounds it, so that the numbers are the published ones to the
 * bit. Pure functions. Must not know files. */
#include "weights/gguf_blocks.h"

#include <string.h>

enum {
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
};
#define BLOCK 256 /* numbers in the largest block */

static const turbod_gguf_type types[] = {
    {.name = "F32", .id = 0, .block = 1, .bytes = 4, .dtype = TURBO_F32},
    {.name = "F16", .id = 1, .block = 1, .bytes = 2, .dtype = TURBO_F16},
    {.name = "BF16", .id = 30, .block = 1, .bytes = 2, .dtype = TURBO_BF16},
    {.name = "I8", .id = 24, .block = 1, .bytes = 1, .dtype = TURBO_I8},
    {.name = "I16", .id = 25, .block = 1, .bytes = 2, .dtype = -1},
    {.name = "I32", .id = 26, .block = 1, .bytes = 4, .dtype = TURBO_I32},
    {.name = "I64", .id = 27, .block = 1, .bytes = 8, .dtype = TURBO_I64},
    {.name = "F64", .id = 28, .block = 1, .bytes = 8, .dtype = -1},
#define QUANT(n, b, size, bit, grp)                                                                \
    .name = #n, .id = n, .block = b, .bytes = size, .dtype = -1, .bits = bit, .group = grp
    {QUANT(Q4_0, 32, 18, 4, 32), .offset = 8},
    {QUANT(Q4_1, 32, 20, 4, 32), .min = true},
    {QUANT(Q5_0, 32, 22, 8, 32), .offset = 16},
    {QUANT(Q5_1, 32, 24, 8, 32), .min = true},
    {QUANT(Q8_0, 32, 34, 8, 32), .offset = 128},
    {QUANT(Q2_K, 256, 84, 4, 16), .wide = true, .min = true},
    {QUANT(Q3_K, 256, 110, 4, 16), .wide = true, .offset = 4},
    {QUANT(Q4_K, 256, 144, 4, 32), .wide = true, .min = true},
    {QUANT(Q5_K, 256, 176, 8, 32), .wide = true, .min = true},
    {QUANT(Q6_K, 256, 210, 8, 16), .wide = true, .offset = 32},
    {QUANT(IQ4_NL, 32, 18, 4, 32), .table = true},
#undef QUANT
    {.name = "Q8_1", .id = 9},
    {.name = "Q8_K", .id = 15},
    {.name = "IQ2_XXS", .id = 16},
    {.name = "IQ2_XS", .id = 17},
    {.name = "IQ3_XXS", .id = 18},
    {.name = "IQ1_S", .id = 19},
    {.name = "IQ3_S", .id = 21},
    {.name = "IQ2_S", .id = 22},
    {.name = "IQ4_XS", .id = 23},
    {.name = "IQ1_M", .id = 29},
    {.name = "TQ1_0", .id = 34},
    {.name = "TQ2_0", .id = 35},
    {.name = "MXFP4", .id = 39},
};

static const float iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};

const turbod_gguf_type *turbod_gguf_type_of(uint32_t id)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].id == id)
            return &types[i];
    return NULL;
}

/* ---- forms ---------------------------------------------------------------------------------------- */

/* Codes of t end below this when they count from o. */
static int32_t top(const turbod_gguf_type *t, int32_t o)
{
    if (t->table)
        return 114 + o;
    int32_t n = t->id == Q8_0                   ? 256
                : t->bits == 4 && t->id == Q2_K ? 4
                : t->id == Q3_K                 ? 8
                : t->bits == 4                  ? 16
                : t->id == Q6_K                 ? 64
                                                : 32;
    return n + o - t->offset;
}

turbod_gguf_form turbod_gguf_form_of(const turbod_gguf_type *const *t, int32_t n)
{
    turbod_gguf_form f = {.g = {.bits = 4, .group = 32, .scale_dtype = TURBO_F16}};
    bool tables = true, fits = true;
    for (int32_t i = 0; i < n; i++)
        tables = tables && t[i]->table;
    for (int32_t i = 0; i < n; i++) {
        int32_t offset = t[i]->table && !tables ? 128 : t[i]->offset;
        f.g.offset = offset > f.g.offset ? offset : f.g.offset;
        f.g.group = t[i]->group < f.g.group ? t[i]->group : f.g.group;
        f.g.scale_dtype = t[i]->wide ? TURBO_F32 : f.g.scale_dtype;
        f.min = f.min || t[i]->min;
    }
    for (int32_t i = 0; i < n; i++)
        fits = fits && (tables || top(t[i], f.g.offset) <= 16);
    f.g.bits = fits ? 4 : 8;
    f.g.table = tables ? iq4_nl : NULL;
    return f;
}

/* ---- blocks --------------------------------------------------------------------------------------- */

/* One block: its codes, and scale and min of each group. */
typedef struct unpacked {
    uint8_t code[BLOCK];
    float scale[BLOCK / 16], min[BLOCK / 16];
} unpacked;

/* Exact: every fp16 is an fp32. Infinity and NaN stay what they are. */
static float half(const uint8_t *p)
{
    uint32_t h = (uint32_t)p[0] | (uint32_t)p[1] << 8, e = h >> 10 & 31, m = h & 1023, u;
    float v;
    if (e == 0) {
        v = (float)m * 0x1p-24f;
        return h >> 15 ? -v : v;
    }
    u = (h >> 15) << 31 | (e == 31 ? 255u : e + 112) << 23 | m << 13;
    memcpy(&v, &u, sizeof v);
    return v;
}

static void nibbles(const uint8_t *q, uint8_t *code)
{
    for (int j = 0; j < 16; j++) {
        code[j] = q[j] & 15;
        code[j + 16] = q[j] >> 4;
    }
}

/* The fifth bit of 32 codes. */
static void fifth(const uint8_t *h, uint8_t *code)
{
    for (int j = 0; j < 32; j++)
        code[j] |= (uint8_t)((h[j / 8] >> (j % 8) & 1) << 4);
}

/* Blocks of 32 numbers: d, then m where there is one; Q5: 4 bytes of fifth bits; codes. */
static void small_block(const turbod_gguf_type *t, const uint8_t *p, unpacked *o)
{
    const uint8_t *q = p + (t->min ? 4 : 2);
    o->scale[0] = half(p);
    o->min[0] = t->min ? -half(p + 2) : 0; /* the format adds it */
    if (t->id == Q8_0) {
        for (int j = 0; j < 32; j++)
            o->code[j] = q[j] ^ 128; /* signed, from -128 on */
    } else if (t->bits == 8) {
        nibbles(q + 4, o->code);
        fifth(q, o->code);
    } else {
        nibbles(q, o->code);
    }
}

static void q2_k(const uint8_t *p, unpacked *o)
{
    const uint8_t *sc = p, *q = p + 16;
    float d = half(p + 80), m = half(p + 82);
    for (int g = 0; g < 16; g++) {
        o->scale[g] = d * (float)(sc[g] & 15);
        o->min[g] = m * (float)(sc[g] >> 4);
    }
    for (int i = 0; i < BLOCK; i++)
        o->code[i] = q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

/* Scales of 6 bits: the low four in bytes 0..7, the high two in bytes 8..11. */
static void q3_k(const uint8_t *p, unpacked *o)
{
    const uint8_t *mask = p, *q = p + 32, *sc = p + 96;
    float d = half(p + 108);
    for (int g = 0; g < 16; g++) {
        int low = sc[g % 8] >> (g / 8 * 4) & 15, high = sc[8 + g % 4] >> (g / 4 * 2) & 3;
        o->scale[g] = d * (float)((low | high << 4) - 32);
    }
    for (int i = 0; i < BLOCK; i++) {
        int low = q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        o->code[i] = (uint8_t)(low | (mask[i % 32] >> (i / 32) & 1) << 2);
    }
}

/* Eight scales and eight minima of 6 bits in 12 bytes. */
static void six_bits(const uint8_t *sc, int j, int *s, int *m)
{
    if (j < 4) {
        *s = sc[j] & 63;
        *m = sc[j + 4] & 63;
    } else {
        *s = (sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4;
        *m = sc[j + 4] >> 4 | (sc[j] >> 6) << 4;
    }
}

static void q45_k(const uint8_t *p, bool five, unpacked *o)
{
    const uint8_t *sc = p + 4, *high = p + 16, *q = p + (five ? 48 : 16);
    float d = half(p), dmin = half(p + 2);
    for (int g = 0; g < 8; g++) {
        int s, m;
        six_bits(sc, g, &s, &m);
        o->scale[g] = d * (float)s;
        o->min[g] = dmin * (float)m;
        for (int l = 0; l < 32; l++) {
            int c = q[g / 2 * 32 + l] >> (g % 2 * 4) & 15;
            o->code[32 * g + l] = (uint8_t)(c | (five ? (high[l] >> g & 1) << 4 : 0));
        }
    }
}

static void q6_k(const uint8_t *p, unpacked *o)
{
    const uint8_t *low = p, *high = p + 128, *sc = p + 192;
    float d = half(p + 208);
    for (int g = 0; g < 16; g++)
        o->scale[g] = d * (float)(int8_t)sc[g];
    for (int i = 0; i < BLOCK; i++) {
        int n = i / 128, k = i % 128 / 32, l = i % 32;
        int q = low[64 * n + l + k % 2 * 32] >> (k / 2 * 4) & 15;
        o->code[i] = (uint8_t)(q | (high[32 * n + l] >> (2 * k) & 3) << 4);
    }
}

static void unpack_block(const turbod_gguf_type *t, const uint8_t *p, unpacked *o)
{
    switch (t->id) {
    case Q2_K: q2_k(p, o); break;
    case Q3_K: q3_k(p, o); break;
    case Q4_K: q45_k(p, false, o); break;
    case Q5_K: q45_k(p, true, o); break;
    case Q6_K: q6_k(p, o); break;
    default: small_block(t, p, o);
    }
}

static bool finite_half(const uint8_t *p)
{
    return (p[1] & 0x7c) != 0x7c;
}

/* Where the fp16 numbers of a block are: one, or two behind each other. */
static bool finite_block(const turbod_gguf_type *t, const uint8_t *p)
{
    switch (t->id) {
    case Q2_K: return finite_half(p + 80) && finite_half(p + 82);
    case Q3_K: return finite_half(p + 108);
    case Q6_K: return finite_half(p + 208);
    case Q4_K:
    case Q5_K: return finite_half(p) && finite_half(p + 2);
    default: return finite_half(p) && (!t->min || finite_half(p + 2));
    }
}

bool turbod_gguf_finite(const turbod_gguf_type *t, const uint8_t *row, int64_t in)
{
    bool ok = true;
    for (int64_t at = 0; at < in; at += t->block, row += t->bytes)
        ok &= finite_block(t, row);
    return ok;
}

/* Codes as the form counts them. */
static void recode(const turbod_gguf_type *t, const turbod_gguf_form *f, unpacked *o)
{
    int32_t shift = f->g.offset - t->offset;
    if (f->g.table || (!t->table && !shift))
        return;
    for (uint32_t i = 0; i < t->block; i++)
        o->code[i] =
            (uint8_t)(t->table ? (int32_t)iq4_nl[o->code[i]] + f->g.offset : o->code[i] + shift);
}

bool turbod_gguf_unpack(const turbod_gguf_type *t, const uint8_t *row, int64_t in,
                        const turbod_gguf_form *f, uint8_t *codes, void *scale, float *min)
{
    unpacked o = {.scale = {0}};
    bool ok = true;
    int64_t g = 0;
    int32_t times = t->group / f->g.group;
    for (int64_t at = 0; at < in; at += t->block, row += t->bytes) {
        ok &= finite_block(t, row);
        unpack_block(t, row, &o);
        recode(t, f, &o);
        for (uint32_t i = 0; i < t->block; i++) {
            uint8_t *c = f->g.bits == 8 ? &codes[at + i] : &codes[(at + i) / 2];
            *c = f->g.bits == 8 || i % 2 == 0 ? o.code[i] : (uint8_t)(*c | o.code[i] << 4);
        }
        for (uint32_t k = 0; k < t->block / (uint32_t)f->g.group; k++, g++) {
            uint32_t from = k / (uint32_t)times;
            if (f->g.scale_dtype == TURBO_F32)
                ((float *)scale)[g] = o.scale[from];
            else
                memcpy((uint8_t *)scale + 2 * g, row, 2); /* d stands first in these */
            if (f->min)
                min[g] = t->min ? o.min[from] : 0;
        }
    }
    return ok;
}
