/* kernels/cuda/bench/tower.c: what a picture costs: a CLIP tower of the usual size (ViT-L/14, 336 pixels a side) with a
 * projector to 4,096, random weights, and its attention alone. The launches are those of a plugin's ops. */
#include "bench-gpu.h"

typedef struct tower {
    int32_t side, patch, L, E, I, H, D, width;
    int32_t P, T;
    void *w[64][4]; /* q, k and v; out; up; down of a layer */
    void *patch_w, *projector[2];
    const float *one; /* any vector of a layer, positions */
    const uint8_t *pixels;
    char *h, *n, *wide, *o, *delta, *rows;
} tower;

static void product(const tower *t, const void *w, int32_t out, int32_t in, const void *x,
                    int32_t T, void *y)
{
    dense(w, out, in, x, T, TURBO_BF16, y);
    turbok_cu_add_bias(cu, TURBO_BF16, y, t->one, T, out);
}

static void attend(void *ctx)
{
    const tower *t = ctx;
    for (int32_t l = 0; l < t->L; l++)
        turbok_cu_attention_full(cu, TURBO_BF16, t->wide, 1, t->T, t->H, t->D, 0.125f, t->o);
}

/* The products of the layers alone. */
static void multiply(void *ctx)
{
    const tower *t = ctx;
    for (int32_t l = 0; l < t->L; l++) {
        dense(t->w[l][0], 3 * t->E, t->E, t->n, t->T, TURBO_BF16, t->wide);
        dense(t->w[l][1], t->E, t->E, t->o, t->T, TURBO_BF16, t->n);
        dense(t->w[l][2], t->I, t->E, t->n, t->T, TURBO_BF16, t->wide);
        dense(t->w[l][3], t->E, t->I, t->wide, t->T, TURBO_BF16, t->delta);
    }
}

static void look(void *ctx)
{
    const tower *t = ctx;
    const int32_t act = TURBO_BF16, T = t->T, E = t->E;
    turbok_cu_patches(cu, act, t->pixels, 1, t->side, t->side, t->patch, t->one, t->wide);
    dense(t->patch_w, E, 3 * t->patch * t->patch, t->wide, t->P, act, t->n);
    turbok_cu_position_rows(cu, act, t->n, t->one, t->one, 1, t->P, E, t->o);
    turbok_cu_layernorm(cu, act, t->o, NULL, t->one, t->one, 1e-5f, T, E, t->h);
    for (int32_t l = 0; l < t->L; l++) {
        turbok_cu_layernorm(cu, act, t->h, l ? t->delta : NULL, t->one, t->one, 1e-5f, T, E, t->n);
        product(t, t->w[l][0], 3 * E, E, t->n, T, t->wide);
        turbok_cu_attention_full(cu, act, t->wide, 1, T, t->H, t->D, 0.125f, t->o);
        product(t, t->w[l][1], E, E, t->o, T, t->n);
        turbok_cu_layernorm(cu, act, t->h, t->n, t->one, t->one, 1e-5f, T, E, t->n);
        dense(t->w[l][2], t->I, E, t->n, T, act, t->wide);
        turbok_cu_bias_activate(cu, act, TURBO_ACT_QUICK_GELU, t->wide, t->one, T, t->I);
        product(t, t->w[l][3], E, t->I, t->wide, T, t->delta);
    }
    turbok_cu_add(cu, act, t->h, t->delta, (int64_t)T * E);
    char *from = t->h + (size_t)E * 2; /* the patches, without the first row */
    dense(t->projector[0], t->width, E, from, t->P, act, t->wide);
    turbok_cu_bias_activate(cu, act, TURBO_ACT_GELU_ERF, t->wide, t->one, t->P, t->width);
    product(t, t->projector[1], t->width, t->width, t->wide, t->P, t->rows);
}

void bench_tower(void)
{
    tower t = {
        .side = 336, .patch = 14, .L = 23, .E = 1024, .I = 4096, .H = 16, .D = 64, .width = 4096};
    if (quick)
        t = (tower){
            .side = 28, .patch = 14, .L = 1, .E = 64, .I = 128, .H = 1, .D = 64, .width = 64};
    t.P = t.side / t.patch * (t.side / t.patch), t.T = t.P + 1;
    const int64_t E = t.E, in = 3 * (int64_t)t.patch * t.patch;
    int64_t wide = 3 * E > t.I ? 3 * E : t.I;
    wide = t.width > wide ? t.width : wide;
    wide = in > wide ? in : wide;
    const int64_t n = t.T * E + 4096; /* the longest vector, and 3 * 256 values of pixels */
    float *ones = calloc((size_t)n, sizeof *ones);
    for (int64_t i = 0; i < n; i++)
        ones[i] = 0.01f;
    t.one = upload(ones, (size_t)n * sizeof *ones);
    free(ones);
    t.pixels = room((size_t)t.side * (size_t)t.side * 3);
    turbok_cu_fill(cu, turbok_cu_at(t.pixels), 99, (size_t)t.side * (size_t)t.side * 3);
    for (int32_t l = 0; l < t.L; l++) {
        const int64_t sizes[4] = {3 * E * E, E * E, t.I * E, E * t.I};
        for (int i = 0; i < 4; i++)
            t.w[l][i] = numbers(sizes[i], 0.02f);
    }
    t.patch_w = numbers(E * in, 0.02f);
    t.projector[0] = numbers(t.width * E, 0.02f);
    t.projector[1] = numbers((int64_t)t.width * t.width, 0.02f);
    char **const spaces[] = {&t.h, &t.n, &t.wide, &t.o, &t.delta, &t.rows};
    const int64_t widths[] = {E, E, wide, E, E, t.width};
    for (int i = 0; i < 6; i++)
        *spaces[i] = numbers(t.T * widths[i], 0.5f);
    open_blas();
    const double e = t.E, w = t.width, rows = t.T, patches = t.P;
    const double matrices = 2 * rows * e * (4 * e + 2.0 * t.I) * t.L;
    const double ends = 2 * patches * e * (double)in + 2 * patches * w * (e + w);
    const double attention = 4 * rows * rows * e * t.L;
    report("picture", quick ? "tiny tower" : "ViT-L/14 336, projector 4096", seconds(look, &t, 15),
           0, matrices + ends + attention, 0);
    report("picture, products", quick ? "tiny tower" : "of 23 layers, 577 tokens",
           seconds(multiply, &t, 15), 0, matrices, 0);
    report("picture, attention", quick ? "tiny tower" : "577 tokens, 16 heads of 64, 23 layers",
           seconds(attend, &t, 15), 0, attention, 0);
    for (int i = 0; i < 6; i++)
        give(*spaces[i]);
    for (int32_t l = 0; l < t.L; l++)
        for (int i = 0; i < 4; i++)
            give(t.w[l][i]);
    give(t.patch_w), give(t.projector[0]), give(t.projector[1]);
    cu->drv.mem_free(turbok_cu_at(t.one));
    cu->drv.mem_free(turbok_cu_at(t.pixels));
}
