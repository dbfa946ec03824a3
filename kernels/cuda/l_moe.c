/* kernels/cuda/l_moe.c: see moe.h. */
#include "cuda/moe.h"

#include "prim.h"

#define MOST_BLOCKS 32768 /* moe_any goes on where they end; other kernels need fewer */

/* Where the parts of the scratch lie. */
typedef struct parts {
    uint64_t experts, weights, order, place, tiles, n_tiles, hidden, out, bytes;
} parts;

static uint64_t take(uint64_t *at, uint64_t bytes)
{
    uint64_t here = *at;
    *at += (bytes + 255) / 256 * 256;
    return here;
}

static uint64_t most_tiles(const turbok_cu_moe *m, uint64_t choices)
{
    return choices / TURBOK_CU_MOE_ROWS + (uint64_t)m->n;
}

static parts layout(const turbok_cu_moe *m, int32_t act, int32_t T)
{
    uint64_t n = (uint64_t)T * (uint64_t)m->k, size = turbok_dtype_size(act), at = 0;
    parts p;
    p.experts = take(&at, n * sizeof(int32_t));
    p.weights = take(&at, n * sizeof(float));
    p.order = take(&at, n * sizeof(int32_t));
    p.place = take(&at, n * sizeof(int32_t));
    p.tiles = take(&at, most_tiles(m, n) * 3 * sizeof(int32_t));
    p.n_tiles = take(&at, sizeof(int32_t));
    p.hidden = take(&at, n * (uint64_t)m->I * size);
    p.out = take(&at, n * (uint64_t)m->E * size);
    p.bytes = at;
    return p;
}

uint64_t turbok_cu_moe_bytes(const turbok_cu_moe *m, int32_t act, int32_t max_T)
{
    return layout(m, act, max_T).bytes;
}

static turbok_cu_dim dim(uint64_t x, uint64_t y)
{
    return TURBOK_CU_DIM((unsigned)x, (unsigned)y, 1);
}

static void sort_choices(turbok_cu *cu, const turbok_cu_moe *m, const float *logits, int32_t T,
                         char *at, const parts *p)
{
    struct turbok_cu_moe_route_args r = {
        .logits = logits,
        .experts = (int32_t *)(void *)(at + p->experts),
        .weights = (float *)(void *)(at + p->weights),
        .T = T,
        .n = m->n,
        .k = m->k,
        .normalise = m->normalise,
    };
    struct turbok_cu_moe_sort_args s = {
        .experts = r.experts,
        .order = (int32_t *)(void *)(at + p->order),
        .place = (int32_t *)(void *)(at + p->place),
        .tiles = (int32_t *)(void *)(at + p->tiles),
        .n_tiles = (int32_t *)(void *)(at + p->n_tiles),
        .choices = T * m->k,
        .n = m->n,
    };
    turbok_cu_launch(cu, TURBOK_CU_moe_route, dim(((unsigned)T + 7) / 8, 1), dim(256, 1), 0,
                     TURBOK_CU_PDL, &r);
    turbok_cu_launch(cu, TURBOK_CU_moe_sort, dim(1, 1), dim(1024, 1), 0, TURBOK_CU_PDL, &s);
}

/* The kernel for act times matrices of that format, and how many outputs a block of it has. */
static int kernel_of(int32_t act, const turbok_cu_moe_format *f, int32_t in, int32_t out,
                     uint64_t *outputs)
{
    bool half = act == TURBO_F16, whole = in % 8 == 0 && out % 8 == 0;
    *outputs = 64;
    if (act != TURBO_F32 && f->bits == 4 && whole)
        return half ? TURBOK_CU_moe_gemm4_f16 : TURBOK_CU_moe_gemm4_bf16;
    if (act != TURBO_F32 && f->bits == 8 && whole)
        return half ? TURBOK_CU_moe_gemm8_f16 : TURBOK_CU_moe_gemm8_bf16;
    if (act != TURBO_F32 && !f->bits && f->dtype == act && whole)
        return half ? TURBOK_CU_moe_gemm_f16 : TURBOK_CU_moe_gemm_bf16;
    *outputs = 4;
    return TURBOK_CU_moe_any_f32 + act;
}

static void multiply(turbok_cu *cu, int32_t act, uint64_t tiles,
                     const struct turbok_cu_moe_gemm_args *g)
{
    uint64_t outputs;
    int kernel = kernel_of(act, &g->format, (int32_t)g->in, (int32_t)g->out, &outputs);
    uint64_t blocks = ((uint64_t)g->out + outputs - 1) / outputs;
    turbok_cu_launch(cu, kernel, dim(tiles, blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS),
                     dim(128, 1), 0, TURBOK_CU_PDL, g);
}

void turbok_cu_moe_layer(turbok_cu *cu, int32_t act, const turbok_cu_moe *m, const float *logits,
                         const void *x, int32_t T, void *out, void *scratch)
{
    if (T < 1)
        return;
    const parts p = layout(m, act, T);
    uint64_t tiles = most_tiles(m, (uint64_t)T * (uint64_t)m->k);
    char *at = scratch;
    sort_choices(cu, m, logits, T, at, &p);
    struct turbok_cu_moe_gemm_args g = {
        .x = x,
        .w = m->w,
        .y = at + p.hidden,
        .order = (const int32_t *)(const void *)(at + p.order),
        .tiles = (const int32_t *)(const void *)(at + p.tiles),
        .n_tiles = (const int32_t *)(const void *)(at + p.n_tiles),
        .in = m->E,
        .out = m->I,
        .k = m->k,
        .gather = 1,
        .gated = 1,
        .fn = m->fn,
        .format = m->up,
    };
    multiply(cu, act, tiles, &g);
    g.x = g.y;
    g.y = at + p.out;
    g.in = m->I;
    g.out = m->E;
    g.gather = g.gated = 0;
    g.format = m->down;
    multiply(cu, act, tiles, &g);
    struct turbok_cu_moe_combine_args c = {
        .y = at + p.out,
        .weights = (const float *)(const void *)(at + p.weights),
        .place = (const int32_t *)(const void *)(at + p.place),
        .out = out,
        .E = m->E,
        .T = T,
        .k = m->k,
    };
    turbok_cu_launch(cu, TURBOK_CU_moe_combine_f32 + act, dim((uint64_t)T, 1), dim(256, 1), 0,
                     TURBOK_CU_PDL, &c);
}
