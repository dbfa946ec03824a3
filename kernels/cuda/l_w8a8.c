/* kernels/cuda/l_w8a8.c: launches of the products of codes with codes. See w8a8.h. */
#include "cuda/w8a8.h"

#include "prim.h"

enum {
    FEWEST = 17, /* rows; fewer stream the weights */
    THREADS = 256,
    ROWS = TURBOK_CU_W8A8_ROWS,
    OUTS = TURBOK_CU_W8A8_OUTS,
    SPLIT_INPUTS = 512, /* at least, of a split */
    MOST_SPLIT = 16,
    BLOCKS = TURBOK_CU_WQ_COUNTERS / 4, /* that split sums */
    WIDEST = 256, /* rows of a block of w8a8_wide.cuh */
    WIDE_THREADS = 384
};

static int64_t over(int64_t n, int64_t each)
{
    return (n + each - 1) / each;
}

/* Has the card products of e4m3? This build has code for 8.9 and 9; later ones get the code of 8.0, which has none. */
static bool has_e4m3(const turbok_cu *cu)
{
    return cu->major == 9 || (cu->major == 8 && cu->minor == 9);
}

bool turbok_cu_w8a8_covers(const turbok_cu *cu, const turbok_cu_wq *w, int32_t act, int32_t T)
{
    return w->coded_inputs && act != TURBO_F32 && (T >= FEWEST || cu->deterministic) &&
           (w->kind == TURBOK_CU_Q_INT || (w->kind == TURBOK_CU_Q_E4M3 && has_e4m3(cu)));
}

static uint64_t code_bytes(int64_t in, int32_t rows)
{
    return (uint64_t)over(rows, 8) * (uint64_t)over(in, 64) * 512;
}

uint64_t turbok_cu_w8a8_bytes(int64_t in, int32_t rows)
{
    uint64_t scales =
        (uint64_t)over(rows, 8) * (uint64_t)over(in, TURBOK_CU_W8A8_GROUP) * 8 * sizeof(float);
    return code_bytes(in, rows) + (scales + 255) / 256 * 256;
}

/* Rows of a block of w8a8_wide.cuh, or 0: not with this card or matrix. They give a row the same bits with any number of
 * rows. */
static int32_t wide_tile(const turbok_cu *cu, const turbok_cu_wq *w, int32_t T)
{
    if (!cu->warp_groups || w->in % TURBOK_CU_W8A8_GROUP)
        return 0;
    /* Inputs of the widest are not split: it is for where its blocks fill the card, and not where splits must not hang on T. */
    if (T > 128 && !cu->deterministic &&
        over(T, WIDEST) * over(w->out, OUTS) * 4 >= (int64_t)cu->sm_count * 3)
        return WIDEST;
    return T <= 32 ? 32 : T <= 64 ? 64 : 128;
}

turbok_cu_coded_rows turbok_cu_w8a8_code(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                                         const void *x, int32_t T, void *room)
{
    turbok_cu_coded_rows r = {
        .codes = room,
        .scale = (float *)(void *)((char *)room + code_bytes(w->in, T)),
        .rows = T,
        .ld = (int32_t)over(T, 8) * 8,
        .groups = (int32_t)w->groups,
        .tile = wide_tile(cu, w, T),
    };
    struct turbok_cu_code_rows_args a = {
        .x = x,
        .codes = r.codes,
        .scale = r.scale,
        .in = w->in,
        .rows = T,
        .ld = r.ld,
        .groups = r.groups,
        .e4m3 = w->kind == TURBOK_CU_Q_E4M3,
        .tile = r.tile,
    };
    turbok_cu_launch(cu, TURBOK_CU_code_rows_f16 + (act == TURBO_BF16),
                     TURBOK_CU_DIM((unsigned)r.ld), TURBOK_CU_DIM(THREADS), 0, TURBOK_CU_PDL, &a);
    return r;
}

/* As many splits as fill the card, with so many blocks a multiprocessor; sums: bytes of a block's. */
static int32_t splits_for(const turbok_cu *cu, int64_t in, int64_t blocks, int each, uint64_t sums,
                          uint64_t bytes)
{
    int64_t room = (int64_t)(bytes / sums) / blocks;
    int64_t n = each * cu->sm_count / blocks, most = in / SPLIT_INPUTS;
    n = n < most ? n : most;
    n = n < room ? n : room;
    n = n < MOST_SPLIT ? n : MOST_SPLIT;
    return blocks > BLOCKS || n < 2 ? 1 : (int32_t)n;
}

void turbok_cu_w8a8_linear(turbok_cu *cu, const turbok_cu_wq *w, const turbok_cu_coded_rows *x,
                           int32_t out_dtype, void *y, int64_t ldy, void *counters, void *partial,
                           uint64_t bytes)
{
    const bool e4m3 = w->kind == TURBOK_CU_Q_E4M3, floats = e4m3 || w->groups > 1;
    const int which = 2 * e4m3 + (w->groups > 1);
    const size_t row = (size_t)ldy * turbok_dtype_size(out_dtype);
    const int32_t tile = x->tile ? x->tile : ROWS;
    struct turbok_cu_w8a8_args a = {
        .m = w->m,
        .partial = partial,
        .arrived = counters,
        .in = w->in,
        .out_dim = w->out,
        .ld = ldy,
        .x_ld = x->ld,
        .scale_dtype = w->scale_dtype,
        .out_dtype = out_dtype,
    };
    /* How inputs are split shows in sums of floats, so the number of rows must not decide it. Those of integers are exact. */
    const bool fixed = cu->deterministic && floats;
    const int32_t most = fixed ? tile : x->rows;
    for (int32_t t = 0; t < x->rows; t += most) {
        a.rows = x->rows - t < most ? x->rows - t : most;
        a.x = (const char *)x->codes +
              (x->tile ? (uint64_t)t * (uint64_t)w->in : code_bytes(w->in, t));
        a.x_scale = x->scale + t;
        a.out = (char *)y + (size_t)t * row;
        turbok_cu_dim grid = {(unsigned)over(a.rows, tile), (unsigned)over(w->out, OUTS), 1};
        const int64_t blocks = (int64_t)grid.x * grid.y;
        if (!x->tile) {
            a.split = splits_for(cu, w->in, blocks, floats ? 1 : 2, ROWS * OUTS * 4, bytes);
            grid.z = (unsigned)a.split;
            turbok_cu_launch(cu, TURBOK_CU_w8a8_s8 + which, grid, TURBOK_CU_DIM(THREADS),
                             TURBOK_CU_W8A8_SHARED, TURBOK_CU_PDL, &a);
        } else {
            static const int kernels[] = {TURBOK_CU_w8a8_wide32_s8, TURBOK_CU_w8a8_wide64_s8,
                                          TURBOK_CU_w8a8_wide128_s8, TURBOK_CU_w8a8_wide256_s8};
            const int size = (tile > 32) + (tile > 64) + (tile > 128);
            a.split = tile == WIDEST ? 1 : splits_for(cu, w->in, blocks, 1, 128 * OUTS * 4, bytes);
            grid.z = (unsigned)a.split;
            turbok_cu_launch(cu, kernels[size] + which, grid, TURBOK_CU_DIM(WIDE_THREADS),
                             (size_t)TURBOK_CU_W8A8_WIDE_SHARED(tile), TURBOK_CU_PDL, &a);
        }
    }
}
