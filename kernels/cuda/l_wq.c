/* kernels/cuda/l_wq.c: launches of the products with quantised matrices: which kernel, how many blocks, how
 * many splits. See wq.h. */
#include "cuda/w8a8.h"
#include "cuda/wide.h"

#include "prim.h"

enum {
    FEW = 8, /* rows of the kernels that stream */
    FEWEST = 2, /* of wq_digits.cuh */
    THREADS = 256,
    MOST_SPLIT = 16,
    BLOCKS = TURBOK_CU_WQ_COUNTERS / 4, /* that split sums */
    TILE_SUMS = 2 * THREADS * 16, /* bytes of a block's sums for 8 rows */
    TABLE_BYTES = 256 * 8 * 4, /* of a table in shared memory: wq.cuh */
    SLAB = 64 /* rows at a time where a row's bits must not depend on T */
};

/* The kernels of one width and type. */
typedef struct family {
    int bf16, gemv, gemv2, gated, gemm16, gemm64, rows;
} family;

static family family_of(int32_t bits, int32_t act)
{
#define FAMILY(w, T)                                                                               \
    {                                                                                              \
        TURBOK_CU_##w##_gemv_##T == TURBOK_CU_##w##_gemv_bf16, TURBOK_CU_##w##_gemv_##T,           \
            TURBOK_CU_##w##_gemv2_##T, TURBOK_CU_##w##_gated_##T, TURBOK_CU_##w##_gemm16_##T,      \
            TURBOK_CU_##w##_gemm64_##T, TURBOK_CU_##w##_rows_##T                                   \
    }
    static const family all[2][2] = {
        {FAMILY(w4, f16), FAMILY(w4, bf16)},
        {FAMILY(w8, f16), FAMILY(w8, bf16)},
    };
#undef FAMILY
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

/* For rows in another order, or as codes. */
static uint64_t rows_bytes(int64_t max_in, int32_t max_rows)
{
    uint64_t moved = ((uint64_t)max_in * (uint64_t)max_rows * 4 + 255) / 256 * 256;
    uint64_t coded = turbok_cu_w8a8_bytes(max_in, max_rows);
    const turbok_cu_wq any = {.in = max_in, .min = true};
    uint64_t laid = turbok_cu_wide_bytes(&any, max_rows);
    uint64_t most = moved > coded ? moved : coded;
    return most > laid ? most : laid;
}

/* Counters and sums of splits; rows in another order follow. */
static turbok_cu_split_room split_room(const turbok_cu *cu, void *scratch)
{
    return (turbok_cu_split_room){scratch, (char *)scratch + TURBOK_CU_WQ_COUNTERS,
                                  partial_bytes(cu)};
}

/* Do warp groups multiply T rows? */
static bool goes_wide(const turbok_cu *cu, const turbok_cu_wq *w, int32_t act, int32_t T)
{
    return (T > FEW || cu->deterministic) && turbok_cu_wide_covers(cu, w, act);
}

uint64_t turbok_cu_wq_scratch(const turbok_cu *cu, int64_t max_in, int32_t max_rows)
{
    return TURBOK_CU_WQ_COUNTERS + partial_bytes(cu) + rows_bytes(max_in, max_rows);
}

int32_t turbok_cu_wq_most(const turbok_cu *cu, int32_t act, const turbok_cu_wq *w, int32_t T,
                          int64_t max_in, int32_t max_rows)
{
    enum { BLOCK = TURBOK_CU_W8A8_ROWS };
    enum { MOST = 32768 }; /* a grid has less than 65,536 blocks along y */
    const uint64_t room = rows_bytes(max_in, max_rows);
    int64_t n = T;
    if (turbok_cu_w8a8_covers(cu, w, act, T)) {
        n = (int64_t)(room / (turbok_cu_w8a8_bytes(w->in, 8) / 8));
        n = n >= BLOCK ? n / BLOCK * BLOCK : n / 8 * 8;
    } else if (goes_wide(cu, w, act, T)) {
        n = (int64_t)(room / (turbok_cu_wide_bytes(w, 8) / 8));
        n = n >= BLOCK ? n / BLOCK * BLOCK : n / 8 * 8;
    } else if (w->permuted) {
        n = max_in * max_rows / w->in;
    }
    n = n < MOST ? n : MOST;
    return n < T ? (int32_t)n : T;
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

/* Rows [t, t + n) of a product of 16-bit activations. */
static struct turbok_cu_wq_args rows_of(const struct turbok_cu_wq_args *a, int32_t t, int32_t n)
{
    struct turbok_cu_wq_args b = *a;
    b.rows = n;
    b.x = (const char *)a->x + t * a->in * 2;
    b.out = (char *)a->out + t * a->ld * (a->out_f32 ? 4 : 2);
    return b;
}

/* Inputs of an entry of wq_stream.cuh, which has two chunks. */
static int32_t entry_inputs(const turbok_cu_wq *w)
{
    return w->bits == 4 ? 128 : 64;
}

/* Does wq_stream.cuh cover it? */
static bool streams(const turbok_cu_wq *w)
{
    bool power = !(w->group & (w->group - 1));
    bool numbers = w->kind == TURBOK_CU_Q_INT || (!w->zero && !w->min);
    return numbers && (power || w->group == w->in) &&
           (w->group == 32 || w->group % (w->bits == 4 ? 64 : 32) == 0);
}

/* Does wq_digits.cuh, of what streams? */
static bool counts(const turbok_cu_wq *w, int32_t rows)
{
    return w->bits == 4 && w->kind == TURBOK_CU_Q_INT && rows <= FEWEST;
}

/* Parts of groups that an entry has: 1, 2 and 4 are 0, 1 and 2. */
static int parts_of(const turbok_cu_wq *w)
{
    return w->group >= entry_inputs(w) ? 0 : w->bits == 8 || w->group == 64 ? 1 : 2;
}

static int form_of(const turbok_cu_wq *w)
{
    if (w->kind == TURBOK_CU_Q_TABLE)
        return 3;
    if (w->bits == 8 && w->kind == TURBOK_CU_Q_E4M3)
        return 4;
    return w->zero ? 1 : w->min ? 2 : 0;
}

/* The kernel of wq_digits.cuh. */
static int digits_of(const turbok_cu_wq *w, int matrices, const struct turbok_cu_wq_args *a,
                     int bf16)
{
    const int form = form_of(w), parts = parts_of(w);
    const bool plain = a->rows == 1 && w->scale_dtype != TURBO_F32 && !a->out_f32 &&
                       !a->m[0].bias && !a->m[1].bias;
    if (plain && ((form < 2 && parts == 0) || (form == 0 && parts == 2)))
        return (matrices == 2 ? TURBOK_CU_w4_single2_f1_f16_f16 : TURBOK_CU_w4_single_f1_f16_f16) +
               ((parts ? 2 : form) * 2 + (w->scale_dtype == TURBO_BF16)) * 2 + bf16;
    return (matrices == 2 ? TURBOK_CU_w4_digits2_f1_f16 : TURBOK_CU_w4_digits_f1_f16) +
           (form * 3 + parts) * 2 + bf16;
}

/* The kernel of wq_stream.cuh. */
static int stream_of(const turbok_cu_wq *w, int matrices, int bf16)
{
    const int form = form_of(w), parts = parts_of(w);
    if (w->bits == 4)
        return (matrices == 2 ? TURBOK_CU_w4_stream2_f1_f16 : TURBOK_CU_w4_stream_f1_f16) +
               (form * 3 + parts) * 2 + bf16;
    return (matrices == 2 ? TURBOK_CU_w8_stream2_f1_f16 : TURBOK_CU_w8_stream_f1_f16) +
           (form * 2 + parts) * 2 + bf16;
}

/* An input's group is input >> this. */
static int32_t group_shift(const turbok_cu_wq *w)
{
    int32_t shift = 31;
    for (int32_t i = 5; w->group < w->in && i < 31; i++)
        shift = w->group == 1 << i ? i : shift;
    return shift;
}

/* The shared memory of a block, also in *bytes, for so many rows of x; depth 0: there is not enough.
 * digits: for wq_digits.cuh; normed: rows come after a norm there. */
static turbok_cu_wq_stream stream_plan(const turbok_cu *cu, const turbok_cu_wq *w, int matrices,
                                       int32_t rows, bool digits, bool normed, int64_t *bytes)
{
    const int64_t k = entry_inputs(w), entries = (w->in + k - 1) / k;
    const int64_t parts = w->group < k ? k / w->group : 1; /* of groups in an entry */
    const int64_t belongs =
        16 * ((int64_t)turbok_dtype_size(w->scale_dtype) + w->zero + 4 * w->min);
    const int64_t entry_bytes = 1024 + parts * belongs, level = 16 * matrices * entry_bytes;
    /* Rows are apart so that the lanes of a load meet in no bank. */
    const int64_t x_stride = digits ? (entries * k + 127) / 128 * 128 + 64
                                    : entries * k * 2 + (w->bits == 4 && parts < 4 ? 16 : 64);
    const int64_t x = rows * (digits ? 3 : 1) * x_stride;
    const int64_t units = digits ? entries * 32 : 0;
    const int64_t sums = digits                         ? entries * parts * 32
                         : w->kind == TURBOK_CU_Q_TABLE ? matrices * TABLE_BYTES
                         : w->kind != TURBOK_CU_Q_INT   ? 0
                         : w->bits == 4 || w->min       ? entries * parts * 64
                                                        : 0;
    const int64_t tile = (int64_t)2 * TURBOK_CU_WQ_CREW * rows * matrices * 16 * 4;
    const int64_t others = normed ? rows * w->in * 2 : 0;
    const int64_t most = (cu->shared_optin - x - units - sums - tile - others) / level;
    int32_t depth = most >= 8 ? 8 : most >= 6 ? 6 : most >= 4 ? 4 : most == 3 ? 3 : 0;
    /* More on the way for one row only makes what it waits for come later. */
    if (digits)
        depth = most >= TURBOK_CU_WQ_DEPTH                    ? TURBOK_CU_WQ_DEPTH
                : most >= TURBOK_CU_WQ_LEAST && !cu->arch_900 ? TURBOK_CU_WQ_LEAST
                                                              : 0;
    else if (rows <= FEWEST)
        depth = most >= 3 ? 3 : 0;
    if (!depth)
        return (turbok_cu_wq_stream){0};
    *bytes = level * depth + x + units + sums + tile + others;
    /* Two of these are worse beside each other than one after the other. */
    if (*bytes < cu->shared_optin / 2)
        *bytes = cu->shared_optin / 2;
    return (turbok_cu_wq_stream){
        .depth = depth,
        .entries = (int32_t)entries,
        .entry_bytes = (int32_t)entry_bytes,
        .groups = (int32_t)w->groups,
        .shift = group_shift(w),
        .x_at = (int32_t)(level * depth),
        .x_stride = (int32_t)x_stride,
        .units_at = (int32_t)(level * depth + x),
        .sums_at = (int32_t)(level * depth + x + units),
        .tile_at = (int32_t)(level * depth + x + units + sums),
        .rows_at = (int32_t)(level * depth + x + units + sums + tile),
    };
}

/* Rows of x, whose plan is `plan`: one pass over the matrix, or over both of a gated product. */
static void pass(turbok_cu *cu, const turbok_cu_wq *w, int kernel, const turbok_cu_wq_stream *plan,
                 int64_t bytes, struct turbok_cu_wq_args a)
{
    unsigned most = (unsigned)cu->sm_count, tiles = over(w->out, 16);
    a.stream = *plan;
    turbok_cu_launch(cu, kernel, dim(tiles < most ? tiles : most, 1),
                     dim(TURBOK_CU_WQ_CREW * 32, 1), (size_t)bytes, TURBOK_CU_PDL, &a);
}

/* At most 8 rows, in as few passes over the matrix as their activations fit beside the queues. False: nothing
 * was done. matrices: 2 for a gated product. */
static bool stream(turbok_cu *cu, const turbok_cu_wq *w, const family *f, int matrices,
                   const struct turbok_cu_wq_args *a)
{
    turbok_cu_wq_stream plan = {0};
    int64_t bytes = 0;
    int32_t passes = 0, each = 0;
    if (!streams(w))
        return false;
    if (counts(w, a->rows)) {
        plan = stream_plan(cu, w, matrices, a->rows, true, a->norm, &bytes);
        if (plan.depth) {
            pass(cu, w, digits_of(w, matrices, a, f->bf16), &plan, bytes, *a);
            return true;
        }
    }
    while (!plan.depth && ++passes <= a->rows) {
        each = (a->rows + passes - 1) / passes;
        plan = stream_plan(cu, w, matrices, each, false, false, &bytes);
    }
    if (!plan.depth)
        return false;
    for (int32_t t = 0; t < a->rows; t += each)
        pass(cu, w, stream_of(w, matrices, f->bf16), &plan, bytes,
             rows_of(a, t, a->rows - t < each ? a->rows - t : each));
    return true;
}

static void few(turbok_cu *cu, const turbok_cu_wq *w, const family *f,
                const struct turbok_cu_wq_args *a)
{
    if (stream(cu, w, f, 1, a))
        return;
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
    const turbok_cu_split_room splits = split_room(cu, scratch);
    char *rows = (char *)splits.sums + splits.bytes;
    if (!turbok_cu_w8a8_covers(cu, w, act, T) && goes_wide(cu, w, act, T)) {
        const turbok_cu_laid_rows laid = turbok_cu_wide_lay(cu, act, w, x, T, rows);
        turbok_cu_wide_linear(cu, act, w, &laid, out_dtype, y, ldy, NULL, 0, &splits);
        return;
    }
    x = permuted(cu, act, w, x, T, scratch);
    struct turbok_cu_wq_args a = args_of(w, act, x, T, out_dtype, y);
    a.ld = ldy;
    family f = family_of(w->bits, act);
    if (act == TURBO_F32) {
        launch_plain(cu, w->bits, &a);
    } else if (turbok_cu_w8a8_covers(cu, w, act, T)) {
        const turbok_cu_coded_rows c = turbok_cu_w8a8_code(cu, act, w, x, T, rows);
        turbok_cu_w8a8_linear(cu, w, &c, out_dtype, y, ldy, scratch, splits.sums, splits.bytes);
    } else if (!cu->deterministic && T <= FEW) {
        few(cu, w, &f, &a);
    } else if (!cu->deterministic) {
        many(cu, w, &f, &a, scratch);
    } else {
        int32_t slab = takes_64(cu, w) ? SLAB : 16;
        for (int32_t t = 0; t < T; t += slab) {
            struct turbok_cu_wq_args b = rows_of(&a, t, T - t < slab ? T - t : slab);
            many(cu, w, &f, &b, scratch);
        }
    }
}

static bool alike(const turbok_cu_wq *a, const turbok_cu_wq *b)
{
    return a->out == b->out && a->in == b->in && a->bits == b->bits && a->group == b->group &&
           a->kind == b->kind && a->scale_dtype == b->scale_dtype && a->offset == b->offset &&
           a->zero == b->zero && a->min == b->min && !a->permuted && !b->permuted;
}

/* Is it a product by wq_digits.cuh that takes what is beside it? */
static bool takes(const turbok_cu *cu, int32_t act, const turbok_cu_wq *w, int matrices, int32_t T,
                  const turbok_cu_beside *b)
{
    int64_t bytes;
    return act != TURBO_F32 && !cu->deterministic && !w->perm && T >= 1 && streams(w) &&
           counts(w, T) && (!b->norm || w->in <= TURBOK_CU_BESIDE_INPUTS) &&
           stream_plan(cu, w, matrices, T, true, b->norm, &bytes).depth;
}

bool turbok_cu_wq_beside(turbok_cu *cu, int32_t act, const turbok_cu_wq *w, const void *x,
                         int32_t T, int32_t out_dtype, void *y, const turbok_cu_beside *b)
{
    struct turbok_cu_wq_args a = args_of(w, act, x, T, out_dtype, y);
    family f = family_of(w->bits, act);
    a.h = b->h, a.norm = b->norm, a.eps = b->eps;
    return takes(cu, act, w, 1, T, b) && stream(cu, w, &f, 1, &a);
}

bool turbok_cu_wq_gated(turbok_cu *cu, int32_t act, const turbok_cu_wq *gate,
                        const turbok_cu_wq *up, int32_t fn, const void *x, int32_t T, void *y,
                        void *scratch, const turbok_cu_beside *b)
{
    if (b && !takes(cu, act, gate, 2, T, b))
        return false;
    if (!alike(gate, up) || cu->deterministic || T < 1)
        return false;
    if (act != TURBO_F32 && T > FEW) {
        if (turbok_cu_w8a8_covers(cu, gate, act, T) || !goes_wide(cu, gate, act, T))
            return false;
        /* Rows are put in order once; the second product ends with the activation. */
        const turbok_cu_split_room splits = split_room(cu, scratch);
        const turbok_cu_laid_rows laid =
            turbok_cu_wide_lay(cu, act, gate, x, T, (char *)splits.sums + splits.bytes);
        turbok_cu_wide_linear(cu, act, gate, &laid, act, y, gate->out, NULL, 0, &splits);
        turbok_cu_wide_linear(cu, act, up, &laid, act, y, gate->out, y, fn, &splits);
        return true;
    }
    struct turbok_cu_wq_args a = args_of(gate, act, x, T, act, y);
    a.m[1] = up->m;
    a.act = fn;
    if (b)
        a.norm = b->norm, a.eps = b->eps;
    family f = family_of(gate->bits, act);
    if (act == TURBO_F32)
        launch_plain(cu, gate->bits, &a);
    else if (!stream(cu, gate, &f, 2, &a))
        turbok_cu_launch(cu, f.gated, dim((unsigned)gate->tiles, 1), dim(THREADS, 1), 0,
                         TURBOK_CU_PDL, &a);
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
