/* kernels/nn/grid.c: y = x W^T + bias for quantised matrices, and for handles of several matrices.
 *
 * Rows of activations are prepared once for all outputs: put in the order of the codes, outliers taken
 * out, the rest as int8. Then threads take stripes of 32 outputs. A row's bits do not depend on how many
 * rows are prepared together. */
#include <math.h>
#include <string.h>

#include "internal.h"

typedef struct grid_job {
    turbo_exec *x;
    const turbo_linear *w[2]; /* one matrix, or gate and up of one layout */
    turbok_acts acts;
    const float *in; /* [rows,in] */
    float *out; /* [rows,ld] */
    int64_t rows, ld;
    int32_t act;
} grid_job;

static size_t up64(size_t n)
{
    return (n + 63) / 64 * 64;
}

static bool outliers(const turbok_tiles *w)
{
    return w->kind != TURBOK_GRID_F && w->outlier > 0;
}

/* Are the numbers themselves moved or changed? Otherwise they are read where they are. */
static bool own_rows(const turbok_tiles *w)
{
    return w->perm || outliers(w) || w->depth != w->in;
}

/* Bytes of one row of activations; with a base, where the arrays of n rows lie. */
static size_t arrange(const turbok_tiles *w, char *base, size_t n, turbok_acts *a)
{
    bool coded = w->kind != TURBOK_GRID_F, far = outliers(w);
    size_t depth = (size_t)w->depth, blocks = (size_t)w->blocks;
    const size_t need[] = {
        coded ? depth : 0,           coded ? 4 * blocks : 0,
        coded ? 4 * blocks : 0,      turbok_tiles_shifted(w) ? 4 * (size_t)w->groups : 0,
        own_rows(w) ? 4 * depth : 0, far ? 4 * depth : 0,
        far ? 4 * depth : 0,         far ? 4 : 0};
    char *at[8] = {0};
    size_t used = 0, row = 0;
    for (int i = 0; i < 8; i++) {
        at[i] = base && need[i] ? base + used : NULL;
        used += up64(need[i] * n);
        row += need[i];
    }
    if (a)
        *a =
            (turbok_acts){(int8_t *)at[0],        (float *)(void *)at[1],  (int32_t *)(void *)at[2],
                          (float *)(void *)at[3], (float *)(void *)at[4],  (int32_t *)(void *)at[5],
                          (float *)(void *)at[6], (int32_t *)(void *)at[7]};
    return row;
}

static void copy_row(const turbok_tiles *w, const float *in, float *x)
{
    if (w->perm)
        for (int64_t k = 0; k < w->in; k++)
            x[k] = in[w->perm[k]];
    else
        memcpy(x, in, (size_t)w->in * sizeof *x);
    for (int64_t k = w->in; k < w->depth; k++)
        x[k] = 0;
}

/* Rows of the chunk: into the order of the codes, outliers aside, the rest quantised. */
static void prepare_rows(void *ctx, int64_t from, int64_t to, int thread)
{
    const grid_job *j = ctx;
    const turbok_tiles *w = j->w[0]->grid;
    const turbok_acts *a = &j->acts;
    (void)thread;
    for (int64_t r = from; r < to; r++) {
        float *x = a->x + r * w->depth;
        if (own_rows(w))
            copy_row(w, j->in + r * w->in, x);
        if (w->kind == TURBOK_GRID_F)
            continue;
        int32_t n = 0;
        for (int64_t k = 0; a->far && k < w->in; k++)
            if (fabsf(x[k]) >= w->outlier) {
                a->far[r * w->depth + n] = (int32_t)k;
                a->far_x[r * w->depth + n++] = x[k];
                x[k] = 0;
            }
        if (a->far)
            a->n_far[r] = n;
        j->x->prim->grid->quantize(w, x, a->q + r * w->depth, a->scale + r * w->blocks,
                                   a->start + r * w->blocks,
                                   a->sum ? a->sum + r * w->groups : NULL);
    }
}

/* acc [rows][32] of stripe s of w. */
static void stripe_times(const grid_job *j, const turbo_linear *w, int64_t s, float *acc)
{
    const turbok_tiles *t = w->grid;
    const char *stripe = (const char *)w->data + (size_t)s * t->stripe_bytes;
    j->x->prim->grid->stripe(t, stripe, &j->acts, 0, j->rows, acc);
    for (int64_t r = 0; r < j->rows; r++) {
        float *to = acc + r * TURBOK_STRIPE;
        if (t->kind == TURBOK_GRID_T4)
            for (int l = 0; l < TURBOK_STRIPE; l++)
                to[l] *= t->unit;
        for (int32_t i = 0; j->acts.far && i < j->acts.n_far[r]; i++) {
            float column[TURBOK_STRIPE], x = j->acts.far_x[r * t->depth + i];
            turbok_tiles_column(t, stripe, j->acts.far[r * t->depth + i], column);
            for (int l = 0; l < TURBOK_STRIPE; l++)
                to[l] = fmaf(x, column[l], to[l]);
        }
        if (w->bias)
            for (int l = 0; l < TURBOK_STRIPE; l++)
                to[l] += w->bias[s * TURBOK_STRIPE + l];
    }
}

static void take_stripes(void *ctx, int64_t from, int64_t to, int thread)
{
    const grid_job *j = ctx;
    _Alignas(64) float acc[2][TURBOK_ACT_ROWS * TURBOK_STRIPE] TURBOK_RAW;
    (void)thread;
    for (int64_t s = from; s < to; s++) {
        int64_t cols = j->w[0]->out - s * TURBOK_STRIPE;
        cols = cols < TURBOK_STRIPE ? cols : TURBOK_STRIPE;
        for (int m = 0; m < (j->w[1] ? 2 : 1); m++)
            stripe_times(j, j->w[m], s, acc[m]);
        for (int64_t r = 0; r < j->rows; r++) {
            float *out = j->out + r * j->ld + s * TURBOK_STRIPE,
                  *from_acc = acc[0] + r * TURBOK_STRIPE;
            if (j->w[1])
                j->x->prim->gated(j->act, from_acc, acc[1] + r * TURBOK_STRIPE, cols, out);
            else
                memcpy(out, from_acc, (size_t)cols * sizeof *out);
        }
    }
}

static void run(grid_job *j, int64_t T)
{
    const turbok_tiles *w = j->w[0]->grid;
    int threads = turbok_pool_threads(j->x->pool);
    size_t row = arrange(w, NULL, 0, NULL);
    int64_t most = (int64_t)((TURBOK_ACT_BYTES - 1024) / (row ? row : 1));
    most = most < TURBOK_ACT_ROWS ? most : TURBOK_ACT_ROWS;
    for (int64_t r = 0; r < T; r += most) {
        j->rows = T - r < most ? T - r : most;
        arrange(w, j->x->acts, (size_t)j->rows, &j->acts);
        if (!own_rows(w))
            j->acts.x = (float *)(uintptr_t)j->in; /* only read */
        /* As in linear.c, what takes less than some ten microseconds stays on the caller. */
        int64_t grain = 1 + (1 << 16) / w->depth,
                work = w->stripes * w->depth * TURBOK_STRIPE * j->rows;
        turbok_pool_for(j->x->pool, j->rows, grain, prepare_rows, j);
        grain = work < 1 << 20 ? w->stripes : w->stripes / (threads * 4);
        turbok_pool_for(j->x->pool, w->stripes, grain < 1 ? 1 : grain, take_stripes, j);
        j->in += j->rows * w->in;
        j->out += j->rows * j->ld;
    }
}

void turbok_grid_linear(turbo_exec *x, const turbo_linear *w, const float *in, int64_t T,
                        int64_t ld, float *out)
{
    if (w->parts) {
        for (int32_t i = 0; i < w->n_parts; i++) {
            turbok_grid_linear(x, w->parts[i], in, T, ld, out);
            out += w->parts[i]->out;
        }
    } else if (w->grid) {
        grid_job j = {.x = x, .w = {w}, .in = in, .out = out, .ld = ld};
        run(&j, T);
    } else {
        turbok_float_linear(x, w, in, T, ld, out);
    }
}

/* Do both take the same prepared activations? */
static bool alike(const turbo_linear *a, const turbo_linear *b)
{
    const turbok_tiles *g = a->grid, *h = b->grid;
    return g && h && a->out == b->out && g->kind == h->kind && g->block == h->block &&
           g->group == h->group && g->depth == h->depth && !g->perm && !h->perm &&
           g->outlier == h->outlier && turbok_tiles_shifted(g) == turbok_tiles_shifted(h);
}

void turbok_grid_gated(turbo_exec *x, const turbo_linear *gate, const turbo_linear *up, int32_t act,
                       const float *in, int64_t T, float *scratch)
{
    int64_t n = gate->out;
    if (alike(gate, up)) {
        grid_job j = {.x = x, .w = {gate, up}, .in = in, .out = scratch, .ld = n, .act = act};
        run(&j, T);
        return;
    }
    float *second = scratch + T * n;
    turbok_grid_linear(x, gate, in, T, n, scratch);
    turbok_grid_linear(x, up, in, T, n, second);
    x->prim->gated(act, scratch, second, T * n, scratch);
}
