/* kernels/cuda/l_wide.c: launches of the products of quantised matrices by warp groups. See wide.h. */
#include "cuda/wide.h"

#include "prim.h"

enum {
    THREADS = 256,
    WIDE_THREADS = 384,
    SPAN = TURBOK_CU_WQ_WIDE_SPAN,
    MOST_SPLIT = 16,
    BLOCKS = TURBOK_CU_WQ_COUNTERS / 4, /* that split sums */
    SUMS = 128 * 128 * 4, /* bytes of a block's, at most */
    /* What begin and end of a block take, and what it takes that blocks meet; in 10 ns. */
    EDGE = 200,
    MEET = 100,
    SLAB = 128 /* rows at a time where a row's bits must not depend on T */
};

/* A block's outputs, in 128, and rows; the inputs whose sums are scaled; does it know more than whole numbers? In the order of
 * kernels.def. */
typedef struct block_kind {
    int32_t mt, rows, per;
    bool general;
} block_kind;
enum {
    SUMS_SCALED = 0,
    ROWS_SCALED = 4,
    NUMBERS_SCALED = 8,
    GENERAL32 = 11,
    GENERAL16 = 13,
    TALLEST = 3
};
static const block_kind kinds[] = {
    {1, 32, 128, false}, {1, 64, 128, false}, {1, 128, 128, false}, {2, 128, 128, false},
    {1, 32, 128, false}, {1, 64, 128, false}, {1, 128, 128, false}, {2, 128, 128, false},
    {1, 32, 32, false},  {1, 64, 32, false},  {1, 128, 32, false},  {1, 64, 32, true},
    {1, 128, 32, true},  {1, 64, 16, true},   {1, 128, 16, true},
};

static int64_t over(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}

bool turbok_cu_wide_covers(const turbok_cu *cu, const turbok_cu_wq *w, int32_t act)
{
    const int32_t g = w->group;
    return cu->warp_groups && act != TURBO_F32 && w->in % SPAN == 0 &&
           (g == 16 || g == 32 || g == 64 || g % SPAN == 0);
}

static uint64_t row_bytes(int64_t in, int32_t rows)
{
    return (uint64_t)over(rows, 8) * 8 * (uint64_t)in * 2;
}

uint64_t turbok_cu_wide_bytes(const turbok_cu_wq *w, int32_t rows)
{
    /* Sums of 16 inputs at least. */
    const uint64_t sums = w->min ? (uint64_t)over(rows, 8) * 8 * (uint64_t)w->in / 16 * 4 : 0;
    return row_bytes(w->in, rows) + sums;
}

/* As many splits as make `blocks` blocks end first, by what was measured on an H200, in 10 ns. The rows of a block must not
 * decide it where a row's bits must not depend on T. */
static int32_t splits_for(const turbok_cu *cu, const turbok_cu_wq *w, int64_t blocks, int32_t rows,
                          uint64_t bytes)
{
    rows = cu->deterministic ? SLAB : rows;
    const int each = TURBOK_CU_WQ_WIDE_BLOCKS(rows);
    const int64_t room = (int64_t)(bytes / SUMS) / blocks, spans = w->in / SPAN;
    const int64_t span = 55 * each, gather = rows / 2 + 4; /* of a split */
    int64_t best = INT64_MAX;
    int32_t split = 1;
    for (int32_t n = 1; n <= MOST_SPLIT && n <= spans && blocks <= BLOCKS; n++) {
        if (n > 1 && n > room)
            break;
        const int64_t time =
            over(blocks * n, (int64_t)cu->sm_count * each) * (over(spans, n) * span + EDGE) +
            (n > 1 ? n * gather + MEET : 0);
        if (time < best)
            best = time, split = n;
    }
    return split;
}

static int kind_for(const turbok_cu *cu, const turbok_cu_wq *w, int32_t act, int32_t T)
{
    /* Scales of other types do not fit into fp16, whose numbers the products of small groups would be. */
    const bool narrow = w->group < SPAN && act == TURBO_F16 && w->scale_dtype != TURBO_F16;
    if (w->kind != TURBOK_CU_Q_INT || w->min || w->group == 16 || narrow)
        return (w->group == 16 ? GENERAL16 : GENERAL32) + (T > 64);
    const int first = w->group < SPAN     ? NUMBERS_SCALED
                      : w->group == w->in ? ROWS_SCALED
                                          : SUMS_SCALED;
    /* The tallest do not split inputs: they are for where their blocks fill the card, and not where splits must not hang
     * on T. */
    if (T > 128 && !cu->deterministic && first != NUMBERS_SCALED &&
        over(T, kinds[first + TALLEST].rows) * over(w->out, 256) * 4 >= (int64_t)cu->sm_count * 3)
        return first + TALLEST;
    return first + (T > 32) + (T > 64);
}

turbok_cu_laid_rows turbok_cu_wide_lay(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                                       const void *x, int32_t T, void *room)
{
    const turbok_cu_laid_rows r = {
        .rows = room,
        .sums = w->min ? (float *)(void *)((char *)room + row_bytes(w->in, T)) : NULL,
        .T = T,
        .kernel = kind_for(cu, w, act, T),
    };
    struct turbok_cu_lay_rows_args a = {
        .x = x,
        .perm = w->perm,
        .out = room,
        .sums = r.sums,
        .in = w->in,
        .rows = T,
        .ld = (int32_t)over(T, 8) * 8,
        .tile = kinds[r.kernel].rows,
        .lay = w->bits == 4 || w->steps < 2 ? w->steps : 2,
        .per = kinds[r.kernel].per,
    };
    turbok_cu_launch(cu, TURBOK_CU_lay_rows_f16 + (act == TURBO_BF16),
                     TURBOK_CU_DIM((unsigned)over(w->in / 8, THREADS), (unsigned)a.ld),
                     TURBOK_CU_DIM(THREADS), 0, TURBOK_CU_PDL, &a);
    return r;
}

static int32_t group_shift(int32_t group)
{
    return group == 16 ? 4 : group == 32 ? 5 : group == 64 ? 6 : 31;
}

void turbok_cu_wide_linear(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                           const turbok_cu_laid_rows *x, int32_t out_dtype, void *y, int64_t ldy,
                           const void *gate, int32_t fn, const turbok_cu_split_room *room)
{
    static const int kernels[2][2] = {{TURBOK_CU_w4_wide32_f16, TURBOK_CU_w4_wide32_bf16},
                                      {TURBOK_CU_w8_wide32_f16, TURBOK_CU_w8_wide32_bf16}};
    const block_kind *k = &kinds[x->kernel];
    const int32_t most = cu->deterministic ? SLAB : x->T;
    for (int32_t t = 0; t < x->T; t += most) {
        const int32_t n = x->T - t < most ? x->T - t : most;
        const size_t in = (size_t)t * (size_t)w->in, out = (size_t)t * (size_t)ldy;
        struct turbok_cu_wq_wide_args a = {
            .m = w->m,
            .x = (const char *)x->rows + in * 2,
            .x_sums = x->sums ? x->sums + in / (size_t)k->per : NULL,
            .gate = gate ? (const char *)gate + out * 2 : NULL,
            .out = (char *)y + out * turbok_dtype_size(out_dtype),
            .partial = room->sums,
            .arrived = room->counters,
            .in = w->in,
            .out_dim = w->out,
            .ld = ldy,
            .rows = n,
            .group = w->group,
            .kind = w->kind,
            .scale_dtype = w->scale_dtype,
            .offset = w->offset,
            .shift = group_shift(w->group),
            .out_f32 = out_dtype != act,
            .act = fn,
        };
        turbok_cu_dim grid = {(unsigned)over(n, k->rows), (unsigned)over(w->out, 128 * k->mt), 1};
        const int64_t blocks = (int64_t)grid.x * grid.y;
        a.split = k->mt > 1 ? 1 : splits_for(cu, w, blocks, k->rows, room->bytes);
        grid.z = (unsigned)a.split;
        turbok_cu_launch(cu, kernels[w->bits == 8][act == TURBO_BF16] + x->kernel, grid,
                         TURBOK_CU_DIM(WIDE_THREADS),
                         (size_t)TURBOK_CU_WQ_WIDE_SHARED(w->bits, k->mt, k->rows, k->per,
                                                          k->general),
                         TURBOK_CU_PDL, &a);
    }
}
