/* kernels/cuda/l_wq.c: launches of the products with quantised matrices: which kernel, how many blocks, how
 * many splits. See wq.h. */
#include "cuda/wq.h"

#include "prim.h"

enum {
    FEW = 8, /* rows of the kernels that stream */
    THREADS = 256,
    MOST_SPLIT = 16,
    BLOCKS = TURBOK_CU_WQ_COUNTERS / 4, /* that split sums */
    TILE_SUMS = 2 * THREADS * 16, /* bytes of a block's sums for 8 rows */
    SLAB = 64 /* rows at a time where a row's bits must not depend on T */
};

/* The kernels of one width and type. */
typedef struct family {
    int gemv, gemv2, gated, gemm16, gemm64, rows;
} family;

static family family_of(int32_t bits, int32_t act)
{
    static const family all[2][2] = {
        {{TURBOK_CU_w4_gemv_f16, TURBOK_CU_w4_gemv2_f16, TURBOK_CU_w4_gated_f16,
          TURBOK_CU_w4_gemm16_f16, TURBOK_CU_w4_gemm64_f16, TURBOK_CU_w4_rows_f16},
         {TURBOK_CU_w4_gemv_bf16, TURBOK_CU_w4_gemv2_bf16, TURBOK_CU_w4_gated_bf16,
          TURBOK_CU_w4_gemm16_bf16, TURBOK_CU_w4_gemm64_bf16, TURBOK_CU_w4_rows_bf16}},
        {{TURBOK_CU_w8_gemv_f16, TURBOK_CU_w8_gemv2_f16, TURBOK_CU_w8_gated_f16,
          TURBOK_CU_w8_gemm16_f16, TURBOK_CU_w8_gemm64_f16, TURBOK_CU_w8_rows_f16},
         {TURBOK_CU_w8_gemv_bf16, TURBOK_CU_w8_gemv2_bf16, TURBOK_CU_w8_gated_bf16,
          TURBOK_CU_w8_gemm16_bf16, TURBOK_CU_w8_gemm64_bf16, TURBOK_CU_w8_rows_bf16}},
    };
    return all[bits == 8][act == TURBO_BF16];
}

static unsigned over(int64_t n, int64_t each)
{
    return (unsigned)((n + each - 1) / each);
}

static turbok_cu_dim dim(unsigned x, unsigned y)
{
    return TURBOK_CU_DIM(x, y, 1);
}

/* Bytes of a block's stages in wq_gemm.cuh. */
static size_t stage_bytes(int32_t bits, int nt)
{
    return 4u * ((bits == 4 ? 2u : 1u) * (size_t)nt * 8 * 128 + 16384);
}

static uint64_t partial_bytes(const turbok_cu *cu)
{
    return (uint64_t)cu->sm_count * 2 * 8 * TILE_SUMS;
}

uint64_t turbok_cu_wq_scratch(const turbok_cu *cu, int64_t max_in, int32_t max_rows)
{
    uint64_t moved = ((uint64_t)max_in * (uint64_t)max_rows * 4 + 255) / 256 * 256;
    return TURBOK_CU_WQ_COUNTERS + partial_bytes(cu) + moved;
}

static struct turbok_cu_wq_args args_of(const turbok_cu_wq *w, int32_t act, const void *x,
                                        int32_t T, int32_t out_dtype, void *y)
{
    return (struct turbok_cu_wq_args){
        .m[0] = w->m,
        .x = x,
        .out = y,
        .in = w->in,
        .out_dim = w->out,
        .ld = w->out,
        .rows = T,
        .group = w->group,
        .kind = w->kind,
        .scale_dtype = w->scale_dtype,
        .offset = w->offset,
        .steps = w->steps,
        .split = 1,
        .out_f32 = out_dtype != act,
    };
}

/* As many splits as fill the card, each of 512 inputs or more. */
static int32_t splits_for(const turbok_cu *cu, const turbok_cu_wq *w, int64_t blocks, int nt)
{
    int64_t room = (int64_t)(partial_bytes(cu) / (uint64_t)(nt * TILE_SUMS)) / blocks;
    int64_t n = cu->sm_count / blocks, most = w->in / 512;
    n = n < most ? n : most;
    n = n < room ? n : room;
    n = n < MOST_SPLIT ? n : MOST_SPLIT;
    return blocks > BLOCKS || n < 2 ? 1 : (int32_t)n;
}

/* Does the kernel for 64 rows cover it? */
static bool takes_64(const turbok_cu *cu, const turbok_cu_wq *w)
{
    return w->kind == TURBOK_CU_Q_INT && !w->min && w->steps == 4 &&
           stage_bytes(w->bits, 8) <= (size_t)cu->shared_optin;
}

static void many(turbok_cu *cu, const turbok_cu_wq *w, const family *f, struct turbok_cu_wq_args *a,
                 char *scratch)
{
    bool large = (a->rows > 16 || cu->deterministic) && takes_64(cu, w);
    int nt = large ? 8 : 2;
    turbok_cu_dim grid = {over(a->rows, nt * 8), over(w->out, 256), 1};
    a->split = splits_for(cu, w, (int64_t)grid.x * grid.y, nt);
    a->arrived = (uint32_t *)(void *)scratch;
    a->partial = (float *)(void *)(scratch + TURBOK_CU_WQ_COUNTERS);
    grid.z = (unsigned)a->split;
    turbok_cu_launch(cu, large ? f->gemm64 : f->gemm16, grid, dim(THREADS, 1),
                     stage_bytes(w->bits, nt), TURBOK_CU_PDL, a);
}

static void launch_plain(turbok_cu *cu, int32_t bits, const struct turbok_cu_wq_args *a)
{
    turbok_cu_launch(cu, bits == 4 ? TURBOK_CU_w4_plain : TURBOK_CU_w8_plain,
                     dim(over(a->out_dim, 128), over(a->rows, 4)), dim(THREADS, 1), 0,
                     TURBOK_CU_PDL, a);
}

static void few(turbok_cu *cu, const turbok_cu_wq *w, const family *f,
                const struct turbok_cu_wq_args *a)
{
    /* Two tiles share the activations they load, which is what counts with more than two rows. */
    bool two = a->rows > 2 && w->tiles >= 2 * cu->sm_count / 3;
    turbok_cu_launch(cu, two ? f->gemv2 : f->gemv, dim(over(w->out, two ? 32 : 16), 1),
                     dim(THREADS, 1), 0, TURBOK_CU_PDL, a);
}

static const void *permuted(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const void *x,
                            int32_t T, char *scratch)
{
    if (!w->perm)
        return x;
    struct turbok_cu_wq_permute_args a = {
        .x = x,
        .perm = w->perm,
        .out = scratch + TURBOK_CU_WQ_COUNTERS + partial_bytes(cu),
        .in = w->in,
        .rows = T,
        .wide = act == TURBO_F32,
    };
    turbok_cu_launch(cu, TURBOK_CU_wq_permute, dim(over(w->in, THREADS), (unsigned)T),
                     dim(THREADS, 1), 0, TURBOK_CU_PDL, &a);
    return a.out;
}

void turbok_cu_wq_linear(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const void *x,
                         int32_t T, int32_t out_dtype, void *y, int64_t ldy, void *scratch)
{
    if (T < 1)
        return;
    x = permuted(cu, act, w, x, T, scratch);
    struct turbok_cu_wq_args a = args_of(w, act, x, T, out_dtype, y);
    a.ld = ldy;
    family f = family_of(w->bits, act);
    if (act == TURBO_F32) {
        launch_plain(cu, w->bits, &a);
    } else if (!cu->deterministic && T <= FEW) {
        few(cu, w, &f, &a);
    } else if (!cu->deterministic) {
        many(cu, w, &f, &a, scratch);
    } else {
        int32_t slab = takes_64(cu, w) ? SLAB : 16;
        int64_t out_row = ldy * (int64_t)turbok_dtype_size(out_dtype);
        for (int32_t t = 0; t < T; t += slab) {
            a.rows = T - t < slab ? T - t : slab;
            a.x = (const char *)x + t * w->in * (int64_t)turbok_dtype_size(act);
            a.out = (char *)y + t * out_row;
            many(cu, w, &f, &a, scratch);
        }
    }
}

static bool alike(const turbok_cu_wq *a, const turbok_cu_wq *b)
{
    return a->out == b->out && a->in == b->in && a->bits == b->bits && a->group == b->group &&
           a->kind == b->kind && a->scale_dtype == b->scale_dtype && a->offset == b->offset &&
           a->zero == b->zero && a->min == b->min && !a->permuted && !b->permuted;
}

bool turbok_cu_wq_gated(turbok_cu *cu, int32_t act, const turbok_cu_wq *gate,
                        const turbok_cu_wq *up, int32_t fn, const void *x, int32_t T, void *y)
{
    if (!alike(gate, up) || cu->deterministic || T < 1 || (act != TURBO_F32 && T > FEW))
        return false;
    struct turbok_cu_wq_args a = args_of(gate, act, x, T, act, y);
    a.m[1] = up->m;
    a.act = fn;
    if (act == TURBO_F32)
        launch_plain(cu, gate->bits, &a);
    else
        turbok_cu_launch(cu, family_of(gate->bits, act).gated, dim((unsigned)gate->tiles, 1),
                         dim(THREADS, 1), 0, TURBOK_CU_PDL, &a);
    return true;
}

void turbok_cu_wq_rows(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const int32_t *rows,
                       int64_t first, int64_t n, void *y)
{
    struct turbok_cu_wq_rows_args a = {
        .m = w->m,
        .rows = rows,
        .out = y,
        .perm = w->perm,
        .in = w->in,
        .out_dim = w->out,
        .first = first,
        .n = n,
        .group = w->group,
        .kind = w->kind,
        .scale_dtype = w->scale_dtype,
        .offset = w->offset,
        .steps = w->steps,
    };
    int64_t blocks = (n * w->chunks * 4 + THREADS - 1) / THREADS, most = (int64_t)cu->sm_count * 16;
    int kernel = act == TURBO_F32 ? (w->bits == 4 ? TURBOK_CU_w4_rows_f32 : TURBOK_CU_w8_rows_f32)
                                  : family_of(w->bits, act).rows;
    if (n > 0)
        turbok_cu_launch(cu, kernel, dim((unsigned)(blocks < most ? blocks : most), 1),
                         dim(THREADS, 1), 0, TURBOK_CU_PDL, &a);
}
