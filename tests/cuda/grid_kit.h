/* tests/cuda/grid_kit.h: quantised matrices of test_w4: grids of every kind with random codes, and their images on the
 * device. */
#ifndef TURBO_TEST_GRID_KIT_H
#define TURBO_TEST_GRID_KIT_H

#include "cuda/wq.h"
#include "internal.h"
#include "q_kit.h"

typedef struct grid {
    turbok_grid g;
    int64_t out, in;
    uint8_t *codes, *zero;
    void *scale;
    float *min, *table;
    int32_t *perm;
    float *bias;
} grid;

enum { PLAIN, ZERO, MIN, FAR, TABLE, KINDS }; /* FAR: an offset that bf16 cannot hold */

static inline double e4m3(unsigned c)
{
    int e = (int)(c >> 3 & 15), m = (int)(c & 7);
    double v = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return c & 128 ? -v : v;
}

static inline void *filled(size_t n, size_t size)
{
    uint8_t *p = malloc(n * size);
    assert_non_null(p);
    for (size_t i = 0; i < n * size; i++)
        p[i] = (uint8_t)rnd();
    return p;
}

static inline grid make_grid(int bits, int kind, int64_t out, int64_t in, int group, int scale,
                             bool perm)
{
    grid t = {.out = out, .in = in};
    size_t n = (size_t)(out * (in / group));
    t.codes = filled((size_t)(out * in * bits / 8), 1);
    t.scale = malloc(n * 4);
    t.zero = malloc(n);
    t.min = malloc(n * sizeof *t.min);
    t.table = malloc(256 * sizeof *t.table);
    t.perm = malloc((size_t)in * sizeof *t.perm);
    t.bias = malloc((size_t)out * sizeof *t.bias);
    for (size_t i = 0; i < n; i++) {
        act_put(scale, t.scale, (int64_t)i, uniform(0.002f, 0.05f) * (rnd() % 8 ? 1 : -1));
        t.zero[i] = (uint8_t)(bits == 8 ? rnd() : rnd() % 17);
        t.min[i] = uniform(-0.3f, 0.3f);
    }
    for (int c = 0; c < 256; c++)
        t.table[c] = uniform(-1, 1);
    for (int64_t k = 0; k < in; k++) {
        int64_t to = (int64_t)(rnd() % (uint32_t)(k + 1));
        t.perm[k] = t.perm[to];
        t.perm[to] = (int32_t)k;
    }
    for (int64_t o = 0; o < out; o++)
        t.bias[o] = uniform(-1, 1);
    t.g = (turbok_grid){
        .bits = bits,
        .group = group,
        .scale_dtype = scale,
        .offset = kind == FAR ? 200
                  : bits == 8 ? 128
                              : 8,
        .codes = t.codes,
        .scale = t.scale,
        .zero = kind == ZERO ? t.zero : NULL,
        .min = kind == MIN || kind == FAR ? t.min : NULL,
        .table = kind == TABLE ? t.table : NULL,
        .perm = perm ? t.perm : NULL,
    };
    return t;
}

static inline void make_e4m3(grid *t)
{
    for (unsigned c = 0; c < 256; c++)
        t->table[c] = (c & 127) == 127 ? NAN : (float)e4m3(c);
    for (int64_t i = 0; i < t->out * t->in; i++)
        if ((t->codes[i] & 127) == 127)
            t->codes[i] ^= 1;
}

static inline void drop_grid(grid *t)
{
    free(t->codes);
    free(t->scale);
    free(t->zero);
    free(t->min);
    free(t->table);
    free(t->perm);
    free(t->bias);
}

static inline turbok_cu_wq put_grid(const grid *t, bool bias)
{
    turbok_cu_wq w;
    turbo_err err = {{0}};
    must(turbok_cu_wq_plan(&t->g, t->out, t->in, bias, &w, &err), &err);
    bool e4m3_codes;
    must(turbok_cu_wq_check(&t->g, t->out, t->in, &e4m3_codes, &err), &err);
    if (e4m3_codes)
        w.kind = TURBOK_CU_Q_E4M3;
    char *image = malloc(w.bytes);
    assert_non_null(image);
    memset(image, 0xff, w.bytes);
    const float *b = bias ? t->bias : NULL;
    if (w.tiles > 2 && !t->g.table) { /* the rows as two grids, one below the other */
        int64_t cut = w.tiles / 2 * 16, n = w.groups * cut;
        turbok_grid low = t->g;
        low.codes += cut * t->in * t->g.bits / 8;
        low.scale = (const char *)low.scale + (size_t)n * act_size(t->g.scale_dtype);
        low.zero = low.zero ? low.zero + n : NULL;
        low.min = low.min ? low.min + n : NULL;
        turbok_cu_wq_pack(&w, &low, cut, t->out - cut, b ? b + cut : NULL, TURBO_F32, cut / 16,
                          w.tiles, image);
        turbok_cu_wq_pack(&w, &t->g, 0, cut, b, TURBO_F32, 0, cut / 16, image);
    } else { /* as two threads would */
        int64_t half = w.tiles / 2;
        turbok_cu_wq_pack(&w, &t->g, 0, t->out, b, TURBO_F32, half, w.tiles, image);
        if (half)
            turbok_cu_wq_pack(&w, &t->g, 0, t->out, b, TURBO_F32, 0, half, image);
    }
    turbok_cu_wq_place(&w, turbok_cu_at(device_put(image, w.bytes)));
    free(image);
    return w;
}

#endif
