/* kernels/cuda/l_moe.c: see moe.h. */
#include "cuda/moe.h"

#include "internal.h"

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

static parts layout(const turbok_cu_moe *m, int32_t T)
{
    uint64_t n = (uint64_t)T * (uint64_t)m->k, at = 0;
    parts p;
    p.experts = take(&at, n * sizeof(int32_t));
    p.weights = take(&at, n * sizeof(float));
    p.order = take(&at, n * sizeof(int32_t));
    p.place = take(&at, n * sizeof(int32_t));
    p.tiles = take(&at, most_tiles(m, n) * 3 * sizeof(int32_t));
    p.n_tiles = take(&at, sizeof(int32_t));
    p.hidden = take(&at, n * (uint64_t)m->I * 2);
    p.out = take(&at, n * (uint64_t)m->E * 2);
    p.bytes = at;
    return p;
}

uint64_t turbok_cu_moe_bytes(const turbok_cu_moe *m, int32_t max_T)
{
    return layout(m, max_T).bytes;
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

turbo_status turbok_cu_moe_layer(turbok_cu *cu, int32_t act, const turbok_cu_moe *m,
                                 const float *logits, const void *x, int32_t T, void *out,
                                 void *scratch, turbo_err *err)
{
    if (act == TURBO_F32 || m->E % 8 || m->I % 8 || m->n < 1 || m->n > TURBOK_CU_MOE_EXPERTS ||
        m->k < 1 || m->k > m->n || m->k > TURBOK_CU_MOE_CHOICES || T > INT32_MAX / m->k)
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "no kernel for %d of %d experts of width %d and %d with this type of "
                           "activations; use device = \"cpu\"",
                           m->k, m->n, m->E, m->I);
    if (T < 1)
        return TURBO_OK;
    const parts p = layout(m, T);
    char *at = scratch;
    bool half = act == TURBO_F16;
    sort_choices(cu, m, logits, T, at, &p);
    struct turbok_cu_moe_gemm_args g = {
        .x = x,
        .w = m->up,
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
    };
    uint64_t tiles = most_tiles(m, (uint64_t)T * (uint64_t)m->k);
    int gemm = half ? TURBOK_CU_moe_gemm_f16 : TURBOK_CU_moe_gemm_bf16;
    turbok_cu_launch(cu, gemm, dim(tiles, ((uint64_t)m->I + 63) / 64), dim(128, 1), 0,
                     TURBOK_CU_PDL, &g);
    g.x = g.y;
    g.w = m->down;
    g.y = at + p.out;
    g.in = m->I;
    g.out = m->E;
    g.gather = g.gated = 0;
    turbok_cu_launch(cu, gemm, dim(tiles, ((uint64_t)m->E + 63) / 64), dim(128, 1), 0,
                     TURBOK_CU_PDL, &g);
    struct turbok_cu_moe_combine_args c = {
        .y = at + p.out,
        .weights = (const float *)(const void *)(at + p.weights),
        .place = (const int32_t *)(const void *)(at + p.place),
        .out = out,
        .E = m->E,
        .T = T,
        .k = m->k,
    };
    turbok_cu_launch(cu, half ? TURBOK_CU_moe_combine_f16 : TURBOK_CU_moe_combine_bf16,
                     dim((uint64_t)T, 1), dim(256, 1), 0, TURBOK_CU_PDL, &c);
    return TURBO_OK;
}
