/* kernels/cuda/l_w8a8.c: launches of the products of codes with codes. See w8a8.h. */
#include "cuda/w8a8.h"

#include "prim.h"

enum {
    FEWEST = 17, /* rows; fewer stream the weights */
    THREADS = 256,
    ROWS = TURBOK_CU_W8A8_ROWS,
    OUTS = TURBOK_CU_W8A8_OUTS,
    SUMS = ROWS * OUTS * 4, /* bytes of a block's sums */
    SPLIT_INPUTS = 512, /* at least, of a split */
    MOST_SPLIT = 16,
    BLOCKS = TURBOK_CU_WQ_COUNTERS / 4 /* that split sums */
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

turbok_cu_coded_rows turbok_cu_w8a8_code(turbok_cu *cu, int32_t act, const turbok_cu_wq *w,
                                         const void *x, int32_t T, void *room)
{
    turbok_cu_coded_rows r = {
        .codes = room,
        .scale = (float *)(void *)((char *)room + code_bytes(w->in, T)),
        .rows = T,
        .ld = (int32_t)over(T, 8) * 8,
        .groups = (int32_t)w->groups,
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
    };
    turbok_cu_launch(cu, TURBOK_CU_code_rows_f16 + (act == TURBO_BF16),
                     TURBOK_CU_DIM((unsigned)r.ld), TURBOK_CU_DIM(THREADS), 0, TURBOK_CU_PDL, &a);
    return r;
}

/* As many splits as fill the card, with so many blocks a multiprocessor. */
static int32_t splits_for(const turbok_cu *cu, int64_t in, int64_t blocks, int each, uint64_t bytes)
{
    int64_t room = (int64_t)(bytes / SUMS) / blocks;
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
    const bool e4m3 = w->kind == TURBOK_CU_Q_E4M3, blocks = w->groups > 1;
    const int kernel = TURBOK_CU_w8a8_s8 + 2 * e4m3 + blocks;
    const size_t row = (size_t)ldy * turbok_dtype_size(out_dtype);
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
    const int32_t most = cu->deterministic && (e4m3 || blocks) ? ROWS : x->rows;
    for (int32_t t = 0; t < x->rows; t += most) {
        a.rows = x->rows - t < most ? x->rows - t : most;
        a.x = (const char *)x->codes + code_bytes(w->in, t);
        a.x_scale = x->scale + t;
        a.out = (char *)y + (size_t)t * row;
        turbok_cu_dim grid = {(unsigned)over(a.rows, ROWS), (unsigned)over(w->out, OUTS), 1};
        a.split = splits_for(cu, w->in, (int64_t)grid.x * grid.y, e4m3 || blocks ? 1 : 2, bytes);
        grid.z = (unsigned)a.split;
        turbok_cu_launch(cu, kernel, grid, TURBOK_CU_DIM(THREADS), TURBOK_CU_W8A8_SHARED,
                         TURBOK_CU_PDL, &a);
    }
}
