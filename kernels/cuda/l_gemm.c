/* kernels/cuda/l_gemm.c: launches of gemm_wide.cuh, see ops.h. */
#include "cuda/ops.h"

enum {
    ROWS = TURBOK_CU_GEMM_WIDE_ROWS,
    HEAD = TURBOK_CU_GEMM_WIDE_HEAD,
    SPAN = 64,
    THREADS = 384,
    MOST = 1 << 30
};

static int64_t over(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}

void turbok_cu_map_rows(turbok_cu *cu, turbok_cu_map *m, const void *p, int32_t rows, int32_t in,
                        int32_t box_rows)
{
    const uint64_t size[] = {(uint64_t)in, (uint64_t)rows}, pitch[] = {(uint64_t)in * 2};
    const uint32_t box[] = {SPAN, (uint32_t)box_rows}, step[] = {1, 1};
    if (!turbok_cu_bad(cu))
        turbok_cu_note(cu,
                       cu->drv.tensor_map(m, TURBOK_CU_MAP_16_BITS, 2, (void *)(uintptr_t)p, size,
                                          pitch, box, step, 0, TURBOK_CU_MAP_SWIZZLE_128,
                                          TURBOK_CU_MAP_L2_256, 0),
                       "the driver makes no map of a matrix; update the NVIDIA driver");
}

/* What pieces of so many outputs take, those of 256 taking 100. */
static const struct {
    int32_t outs, time;
} widths[] = {{256, 100}, {192, 76}, {128, 52}, {64, 41}};
enum { WIDTHS = sizeof widths / sizeof widths[0] };

/* What it takes that two blocks give each other their sums, as a span of 256 outputs takes 100. */
enum { MEETING = 200 };

/* step: of outputs, what a width is a multiple of. *took: what a span of all pieces takes. */
static turbok_cu_gemm_plan choose(const turbok_cu *cu, int32_t T, int32_t out, int32_t in,
                                  bool gated, int32_t step, int64_t *took)
{
    const int64_t rows = over(T, ROWS), units = cu->sm_count;
    turbok_cu_gemm_plan best = {{0}, {0}, 1};
    int64_t least = INT64_MAX;
    for (int i = 0; i < WIDTHS; i++) {
        const int32_t each = widths[i].outs >> gated;
        if (widths[i].outs % step)
            continue;
        const int64_t columns = over(out, each), waves = over(rows * columns, units);
        if (waves * widths[i].time < least) {
            least = waves * widths[i].time;
            best.outs[0] = best.outs[1] = widths[i].outs;
            best.columns[0] = (int32_t)columns;
            best.columns[1] = 0;
        }
        /* All waves that are full, and the rest in smaller pieces. */
        const int64_t full = rows * columns / units, some = full * units / rows;
        if (!full || some >= columns)
            continue;
        for (int k = i + 1; k < WIDTHS; k++) {
            const int64_t others = over(out - some * each, widths[k].outs >> gated),
                          time =
                              full * widths[i].time + over(rows * others, units) * widths[k].time;
            if (time >= least || widths[k].outs % step)
                continue;
            least = time;
            best.outs[0] = widths[i].outs;
            best.outs[1] = widths[k].outs;
            best.columns[0] = (int32_t)some;
            best.columns[1] = (int32_t)others;
        }
    }
    *took = least;
    /* Halves of the inputs, where the card has blocks for them. */
    const int64_t spans = over(in, SPAN);
    least *= spans;
    for (int i = 0;
         i < WIDTHS && !gated && step == SPAN && !cu->deterministic && cu->code_90 && spans > 1;
         i++) {
        const int64_t columns = over(out, widths[i].outs),
                      time = over(spans, 2) * widths[i].time + MEETING;
        if (widths[i].outs > TURBOK_CU_GEMM_WIDE_SHARED_OUTS || 2 * rows * columns > units ||
            time >= least)
            continue;
        least = time;
        best = (turbok_cu_gemm_plan){{widths[i].outs, widths[i].outs},
                                     {(int32_t)columns, 0},
                                     .shares = 2};
    }
    return best;
}

turbok_cu_gemm_plan turbok_cu_gemm_choose(const turbok_cu *cu, int32_t T, int32_t out, int32_t in,
                                          bool gated)
{
    int64_t took;
    return choose(cu, T, out, in, gated, SPAN, &took);
}

/* Measured on an H200: with cuBLASLt, gate and up take 0.82 to 0.93 of what two products and the activation take, and with 64
 * rows as long; without it 16 rows and fewer are streamed. */
bool turbok_cu_gemm_joins(const turbok_cu *cu, int32_t T, bool library)
{
    return cu->deterministic || T >= (library ? 96 : 17);
}

static bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

static bool takes(const turbok_cu *cu, int32_t act, const void *w, const void *up, int32_t w_dtype,
                  int32_t out, int32_t in, const void *x, int32_t T)
{
    return cu->warp_groups && cu->drv.tensor_map && act != TURBO_F32 && w_dtype == act &&
           in % 8 == 0 && in < MOST && out < MOST && T < MOST && aligned(w) && aligned(up) &&
           aligned(x);
}

/* What a holds already goes with it. False: too much of it. */
static bool launch(turbok_cu *cu, int32_t act, const void *w, const void *up, const void *x,
                   const turbok_cu_gemm_plan *p, struct turbok_cu_gemm_wide_args *a)
{
    const int64_t blocks = over(a->T, ROWS) * ((int64_t)p->columns[0] + p->columns[1]) * p->shares;
    if (blocks > INT32_MAX / 2)
        return false;
    a->gated = up != NULL;
    a->shares = p->shares;
    /* Rows that are asked for behind many weights come late; few rows wait for weights. */
    a->early = a->T > ROWS ? 2 : MOST;
    a->once = a->T <= ROWS * TURBOK_CU_GEMM_WIDE_BAND;
    turbok_cu_map_rows(cu, &a->x, x, a->T, a->in, ROWS);
    for (int i = 0; i < 2; i++) {
        a->outs[i] = p->outs[i];
        a->columns[i] = p->columns[i];
        if (!p->columns[i])
            continue;
        turbok_cu_map_rows(cu, &a->w[i][0], w, a->out, a->in, p->outs[i] / 2);
        turbok_cu_map_rows(cu, &a->w[i][1], up ? up : w, a->out, a->in, p->outs[i] / 2);
    }
    /* Where blocks share inputs each has one piece. */
    const unsigned n = (unsigned)(p->shares > 1 || blocks < cu->sm_count ? blocks : cu->sm_count);
    turbok_cu_launch(cu, TURBOK_CU_gemm_wide_f16 + (act == TURBO_BF16), TURBOK_CU_DIM(n),
                     TURBOK_CU_DIM(THREADS), TURBOK_CU_GEMM_WIDE_SHARED,
                     TURBOK_CU_PDL | (p->shares > 1 ? TURBOK_CU_CLUSTER((unsigned)p->shares) : 0),
                     a);
    return true;
}

bool turbok_cu_gemm_wide(turbok_cu *cu, int32_t act, const void *w, const void *up, int32_t w_dtype,
                         const float *bias, int32_t out, int32_t in, const void *x, int32_t T,
                         int32_t out_dtype, void *y, const turbok_cu_gemm_plan *plan)
{
    if (T < 1)
        return true;
    const turbok_cu_gemm_plan p = plan ? *plan : turbok_cu_gemm_choose(cu, T, out, in, up != NULL);
    if (!takes(cu, act, w, up, w_dtype, out, in, x, T) || (up && (bias || out_dtype != act)) ||
        (p.shares > 1 && (up || in <= SPAN)))
        return false;
    struct turbok_cu_gemm_wide_args a = {
        .bias = bias,
        .y = y,
        .out = out,
        .in = in,
        .T = T,
        .floats = out_dtype == TURBO_F32,
        .whole = aligned(y) && out % 8 == 0,
    };
    return launch(cu, act, w, up, x, &p, &a);
}

/* By measurement: 512 rows and 2,048 outputs, with 2,048 and 8,192 inputs, where two blocks for each piece fill the card. */
bool turbok_cu_gemm_suits(const turbok_cu *cu, int32_t T, int64_t out, int64_t in)
{
    if (T <= 2 * ROWS || out >= MOST || in >= MOST)
        return false;
    const turbok_cu_gemm_plan p = turbok_cu_gemm_choose(cu, T, (int32_t)out, (int32_t)in, false);
    return p.shares > 1 && p.outs[0] == TURBOK_CU_GEMM_WIDE_SHARED_OUTS &&
           over(T, ROWS) * p.columns[0] * p.shares * 10 >= 9 * (int64_t)cu->sm_count;
}

/* Where its pieces leave less than a tenth of the card's time, by measurement. */
bool turbok_cu_gemm_turns(const turbok_cu *cu, int32_t T, int64_t out)
{
    const int64_t rows = over(T, ROWS);
    int64_t took;
    if (T < 256 || out >= MOST)
        return false;
    (void)choose(cu, T, (int32_t)out, SPAN, false, HEAD, &took);
    return rows * out * widths[0].time * 10 >= took * 9 * widths[0].outs * cu->sm_count;
}

bool turbok_cu_gemm_turned(turbok_cu *cu, int32_t act, const void *w, int32_t w_dtype,
                           const float *bias, int32_t in, const void *x, const turbok_cu_attn *at,
                           const turbok_cu_batch *b, void *q)
{
    const turbok_cu_kv *kv = &at->kv;
    const int32_t out = (at->n_heads + 2 * kv->n_kv) * HEAD;
    if (!takes(cu, act, w, NULL, w_dtype, out, in, x, b->T) || kv->dtype != act ||
        kv->head_dim != HEAD || at->rope_dim != HEAD || at->rope_style != TURBO_ROPE_HALF ||
        at->rope_factor > 0 || b->max_kv > at->rope_table || !aligned(q) || !aligned(kv->base) ||
        !aligned(at->cosine) || !aligned(at->sine) || kv->block_bytes % (HEAD * 2) ||
        kv->plane_bytes % 16)
        return false;
    struct turbok_cu_gemm_wide_args a = {
        .bias = bias, .out = out, .in = in, .T = b->T, .turns = 1, .at = *at, .b = *b, .q = q};
    int64_t took;
    const turbok_cu_gemm_plan p = choose(cu, b->T, out, in, false, HEAD, &took);
    return launch(cu, act, w, NULL, x, &p, &a);
}
