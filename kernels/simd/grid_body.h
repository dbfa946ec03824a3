/* kernels/simd/grid_body.h: products with quantised matrices (grid.h) for vectors of VL 32-bit lanes. One
 * text; an instruction set defines VL, MANY (rows that share a load of codes), WORDS (of codes that a turn of
 * the loop takes), SINGLE (are groups of one block a case of their own?), the types vi and vf and
 * the small functions used here, and includes it. A lane is an output: a word of 4 activations meets 4
 * codes of each lane, so no sum crosses lanes. What is computed is what cpu/grid.c computes, to the bit:
 * sums of codes are exact in any order, sums of floats go block by block.
 *
 *   begin(start)           the sum of a block, from what quantize() put into `start`
 *   dot_u(sum, w, x)       sum + codes 0..15 times x
 *   dot_s(sum, w, x)       sum + codes -128..127 times x
 *   end_u(sum), end_s(sum) as int32 lanes */

#define NV (TURBOK_STRIPE / VL)
#define PANEL 512 /* inputs whose codes are unpacked together: 16 KiB */
#define ROWS_PANEL 16 /* from so many rows on that pays */
/* Bytes fetched before one pass uses them: a core's share of memory times its latency, and more. */
#define AHEAD 4096
/* Bytes of codes that all rows of a product take before the next, where they need several passes: the first-level
 * cache holds them and the next ones, which arrive meanwhile, in each pass a share. */
#define PIECE 8192
#define ALWAYS static inline __attribute__((always_inline))

/* How codes lie: as in the stripe, or one a byte in a panel. */
enum { S8, U4, T4, U4_PANEL, F4, F8, F8_BITS };

typedef struct view {
    const turbok_tiles *w;
    const char *codes; /* of the first group */
    size_t code_step; /* from group to group */
    const char *params; /* scales of the first group; then zeros or minima */
    size_t param_step;
    int64_t first_group, groups;
    int64_t from, to; /* blocks of each group that are taken; all, or some of one group, whose */
    float *part; /* [rows][32] sums wait here */
    const char *fetch, *fetch_end; /* with several passes: what comes next in memory */
    size_t fetch_share; /* of it, for each block of each pass */
    vi table; /* T4 */
} view;

ALWAYS int word_count(int kind, int block)
{
    return kind == U4 || kind == T4 ? block / 8 : block / 4;
}

/* Sums of one block, for nv vectors of outputs and `rows` rows. */
ALWAYS void block_sums(int kind, int block, int rows, int nv, const char *codes, vi table,
                       const int8_t *q, int64_t ldq, vi d[MANY][NV])
{
    const int words = word_count(kind, block);
#pragma GCC unroll WORDS
    for (int j = 0; j < words; j++) {
        vi c[NV];
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            c[v] = load_codes(codes + (j * TURBOK_STRIPE + v * VL) * 4);
        if (kind == S8 || kind == U4_PANEL) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                vi x = load_word(q + r * ldq + 4 * j);
#pragma GCC unroll 8
                for (int v = 0; v < nv; v++)
                    d[r][v] = kind == S8 ? dot_s(d[r][v], c[v], x) : dot_u(d[r][v], c[v], x);
            }
            continue;
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) {
                vi n = half ? high4(c[v]) : low4(c[v]);
                n = kind == T4 ? lookup(table, n) : n;
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    vi x = load_word(q + r * ldq + 4 * (j + half * words));
                    d[r][v] = kind == T4 ? dot_s(d[r][v], n, x) : dot_u(d[r][v], n, x);
                }
            }
    }
}

/* acc += part * scale, and what zeros, minima or an odd offset take away. */
ALWAYS void close_group(const turbok_tiles *w, bool shifted, const char *params, int lane, int rows,
                        int nv, const vf part[MANY][NV], const float *sum, int64_t ld_sum,
                        vf acc[MANY][NV])
{
    size_t es = w->scale_dtype == TURBO_F32 ? 4 : 2;
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++) {
        int at = lane + v * VL;
        vf s = load_scale(w->scale_dtype, params + (size_t)at * es);
        vf shift = {0};
        if (shifted) {
            const char *zero = params + TURBOK_STRIPE * es;
            if (w->zero)
                shift = mul(s, to_float(sub32(load_bytes(zero + at), splat32(w->bias))));
            else
                shift = fma_f(s, splat_f((float)(w->offset - w->bias)),
                              w->min ? load_f(zero + 4 * at) : splat_f(0));
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            acc[r][v] = fma_f(part[r][v], s, acc[r][v]);
            if (shifted)
                acc[r][v] = fnma_f(shift, splat_f(sum[r * ld_sum]), acc[r][v]);
        }
    }
}

/* rows x nv vectors from output `lane` on, over the groups of a view. kind, block, rows, nv and single
 * (a group is a block) are constants where this is called. */
ALWAYS void tile(int kind, int block, bool single, bool shifted, const view *m,
                 const turbok_acts *a, int64_t first, int rows, int nv, int lane, float *out)
{
    const turbok_tiles *w = m->w;
    const int8_t *q = a->q + first * w->depth;
    const float *scale = a->scale + first * w->blocks;
    const int32_t *start = a->start + first * w->blocks;
    const float *sum = shifted ? a->sum + first * w->groups : NULL;
    const size_t block_bytes = (size_t)(word_count(kind, block) * TURBOK_STRIPE * 4);
    const int64_t per = single ? 1 : w->group / block;
    const int64_t from = single ? 0 : m->from, to = single ? 1 : m->to;
    const bool unsigned_codes = kind == U4 || kind == U4_PANEL;
    const size_t share = m->fetch_share;
    const char *fetch =
        share ? m->fetch + (size_t)(lane / (nv * VL)) * share * (size_t)(m->groups * (to - from))
              : NULL;
    vf acc[MANY][NV], part[MANY][NV];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            acc[r][v] = load_f(out + r * TURBOK_STRIPE + lane + v * VL);
    for (int64_t g = m->first_group; g < m->first_group + m->groups; g++) {
        const char *codes = m->codes + (size_t)(g - m->first_group) * m->code_step + lane * 4 +
                            (size_t)from * block_bytes;
        const char *params = m->params + (size_t)(g - m->first_group) * m->param_step;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++)
                part[r][v] =
                    from ? load_f(m->part + r * TURBOK_STRIPE + lane + v * VL) : splat_f(0);
        for (int64_t i = from; i < to; i++, codes += block_bytes) {
            int64_t b = g * per + i;
            vi d[MANY][NV];
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
                for (int v = 0; v < nv; v++)
                    d[r][v] = begin(start[r * w->blocks + b]);
            if (fetch < m->fetch_end) {
                for (size_t at = 0; at < share; at += 64)
                    __builtin_prefetch(fetch + at, 0, 3);
                fetch += share;
            } else if (kind != U4_PANEL && !share) {
#pragma GCC unroll 16
                for (size_t at = 0; at < block_bytes; at += 64)
                    __builtin_prefetch(codes + AHEAD + at, 0, 3);
            }
            block_sums(kind, block, rows, nv, codes, m->table, q + b * block, w->depth, d);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                vf xs = splat_f(scale[r * w->blocks + b]);
#pragma GCC unroll 8
                for (int v = 0; v < nv; v++) {
                    vf f = to_float(unsigned_codes ? end_u(d[r][v]) : end_s(d[r][v]));
                    part[r][v] = single ? mul(f, xs) : fma_f(f, xs, part[r][v]);
                }
            }
        }
        if (to < per) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
                for (int v = 0; v < nv; v++)
                    store_f(m->part + r * TURBOK_STRIPE + lane + v * VL, part[r][v]);
            return; /* acc is as it was */
        }
        close_group(w, shifted, params, lane, rows, nv, part, sum ? sum + g : NULL, w->groups, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            store_f(out + r * TURBOK_STRIPE + lane + v * VL, acc[r][v]);
}

/* Passes that up to 4 rows take over the 32 outputs: few rows leave registers for all at once. */
ALWAYS int passes(int64_t rows)
{
    return rows * NV <= WIDE ? 1 : rows * NV / 2 <= WIDE ? 2 : 4;
}

ALWAYS void tile_rows(int kind, int block, bool single, bool shifted, const view *m,
                      const turbok_acts *a, int64_t first, int rows, float *out)
{
    const int nv = NV / passes(rows);
#pragma GCC unroll 4
    for (int lane = 0; lane < TURBOK_STRIPE; lane += nv * VL)
        tile(kind, block, single, shifted, m, a, first, rows, nv, lane, out);
}

ALWAYS void all_rows(int kind, int block, bool single, bool shifted, const view *m,
                     const turbok_acts *a, int64_t first, int64_t rows, float *out)
{
    view here = *m;
    for (int64_t r = 0; r < rows; r += 4, out += 4 * TURBOK_STRIPE) {
        m = &here;
        if (r && here.fetch_share) {
            here.part += 4 * TURBOK_STRIPE;
            here.fetch += here.fetch_share * (size_t)(passes(4) * m->groups * (m->to - m->from));
        }
        switch (rows - r) {
        case 1: tile_rows(kind, block, single, shifted, m, a, first + r, 1, out); break;
        case 2: tile_rows(kind, block, single, shifted, m, a, first + r, 2, out); break;
        case 3: tile_rows(kind, block, single, shifted, m, a, first + r, 3, out); break;
        default: tile_rows(kind, block, single, shifted, m, a, first + r, 4, out); break;
        }
    }
}

#define SHAPES(name, kind)                                                                         \
    static void name(const view *m, const turbok_acts *a, int64_t first, int64_t rows, float *out) \
    {                                                                                              \
        bool shifted = kind != T4 && turbok_tiles_shifted(m->w);                                   \
        if (m->w->block == 16)                                                                     \
            all_rows(kind, 16, false, shifted, m, a, first, rows, out);                            \
        else if (m->w->group != 32 || !SINGLE)                                                     \
            all_rows(kind, 32, false, shifted, m, a, first, rows, out);                            \
        else if (shifted)                                                                          \
            all_rows(kind, 32, true, true, m, a, first, rows, out);                                \
        else                                                                                       \
            all_rows(kind, 32, true, false, m, a, first, rows, out);                               \
    }
SHAPES(run_s8, S8)
SHAPES(run_u4, U4)
SHAPES(run_t4, T4)
SHAPES(run_panel, U4_PANEL)

typedef void (*run_fn)(const view *m, const turbok_acts *a, int64_t first, int64_t rows,
                       float *out);

/* One piece for all rows, and meanwhile the next `bytes` into the cache. */
static void run_piece(run_fn run, view m, size_t bytes, const turbok_acts *a, int64_t first,
                      int64_t rows, float *out)
{
    int64_t blocks = m.groups * (m.to - m.from),
            turns = (rows + 3) / 4 * passes(rows < 4 ? rows : 4);
    m.fetch =
        m.codes + (size_t)m.from * (m.w->code_bytes / (size_t)(m.w->group / m.w->block)) + bytes;
    m.fetch_end = m.fetch + bytes;
    m.fetch_share = (bytes / (size_t)(blocks * turns) + 63) / 64 * 64;
    run(&m, a, first, rows, out);
}

/* All groups of a stripe, a piece at a time where rows take several passes. */
static void in_pieces(run_fn run, view m, const turbok_acts *a, int64_t first, int64_t rows,
                      float *out)
{
    const turbok_tiles *w = m.w;
    const int64_t per = w->group / w->block, end = m.groups;
    const size_t block_bytes = w->code_bytes / (size_t)per;
    const int64_t blocks = PIECE / (int64_t)block_bytes, most = blocks / per;
    float part[TURBOK_ACT_ROWS * TURBOK_STRIPE] TURBOK_RAW;
    m.part = part;
    if (rows <= 4 && passes(rows) == 1) {
        run(&m, a, first, rows, out);
        return;
    }
    for (int64_t g = 0; g < end && most; g += most) {
        m.first_group = g;
        m.groups = end - g < most ? end - g : most;
        run_piece(run, m, m.code_step * (size_t)m.groups, a, first, rows, out);
        m.codes += m.code_step * (size_t)most;
        m.params += m.param_step * (size_t)most;
    }
    if (most)
        return;
    m.groups = 1;
    for (m.first_group = 0; m.first_group < end; m.first_group++) {
        for (m.from = 0; m.from < per; m.from = m.to) {
            m.to = per - m.from < blocks ? per : m.from + blocks;
            run_piece(run, m, block_bytes * (size_t)(m.to - m.from), a, first, rows, out);
        }
        m.codes += m.code_step;
        m.params += m.param_step;
    }
}

/* Codes of some groups one a byte: 4-bit codes as they are, or what the table has for them. */
static void unpack(const view *m, bool table, char *panel)
{
    const turbok_tiles *w = m->w;
    const size_t half = (size_t)w->block / 8 * TURBOK_STRIPE * 4;
    for (int64_t g = 0; g < m->groups; g++) {
        const char *codes = m->codes + (size_t)g * m->code_step;
        for (size_t at = 0; at < w->code_bytes; at += half, panel += 2 * half)
            for (size_t i = 0; i < half; i += VL * 4) {
                vi c = load_codes(codes + at + i), lo = low4(c), hi = high4(c);
                store_codes(panel + i, table ? lookup(m->table, lo) : lo);
                store_codes(panel + half + i, table ? lookup(m->table, hi) : hi);
            }
    }
}

static void with_panels(view m, bool table, const turbok_acts *a, int64_t first, int64_t rows,
                        float *out)
{
    _Alignas(64) char panel[PANEL * TURBOK_STRIPE] TURBOK_RAW;
    int64_t most = PANEL / m.w->group, end = m.first_group + m.groups;
    size_t step = m.code_step;
    for (int64_t g = m.first_group; g < end; g += most) {
        m.groups = end - g < most ? end - g : most;
        unpack(&m, table, panel);
        view p = m;
        p.codes = panel;
        p.code_step = 2 * m.w->code_bytes;
        p.first_group = g;
        (table ? run_s8 : run_panel)(&p, a, first, rows, out);
        m.codes += step * (size_t)m.groups;
        m.params += m.param_step * (size_t)m.groups;
    }
}

/* ---- tables of fp32 --------------------------------------------------------------------------------- */

/* The 4 inputs of a word, one after the other: part = fma(x, table[code], part). */
ALWAYS void word_f(int kind, const turbok_tiles *w, const float_table *t, vi codes, int rows, int v,
                   const float *x, int64_t ldx, vf part[MANY][NV])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vf f = kind == F4        ? table4(t, shift_right(codes, 8 * i))
               : kind == F8_BITS ? bits8(w, codes, i)
                                 : table8(w->table, shift_right(codes, 8 * i));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            part[r][v] = fma_f(splat_f(x[r * ldx + i]), f, part[r][v]);
    }
}

ALWAYS void words_f(int kind, int half, int words, const turbok_tiles *w, const float_table *t,
                    const char *codes, int rows, int nv, const float *x, vf part[MANY][NV])
{
    for (int j = 0; j < words; j++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) {
            vi c = load_codes(codes + (j * TURBOK_STRIPE + v * VL) * 4);
            word_f(kind, w, t, half ? shift_right(c, 4) : c, rows, v, x + 4 * j, w->depth, part);
        }
}

ALWAYS void tile_f(int kind, const turbok_tiles *w, const char *stripe, const turbok_acts *a,
                   int64_t first, int rows, int nv, int lane, float *out)
{
    const float_table t = float_table_of(w->table);
    const float *x = a->x + first * w->depth;
    vf acc[MANY][NV], part[MANY][NV];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            acc[r][v] = splat_f(0);
    for (int64_t g = 0; g < w->groups; g++) {
        const char *group = stripe + (size_t)g * w->group_bytes, *codes = group + lane * 4;
        const int words = w->block / (kind == F4 ? 8 : 4);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++)
                part[r][v] = splat_f(0);
        for (int64_t b = 0; b < w->group / w->block; b++, x += w->block) {
            words_f(kind, 0, words, w, &t, codes, rows, nv, x, part);
            if (kind == F4)
                words_f(kind, 1, words, w, &t, codes, rows, nv, x + 4 * words, part);
            codes += words * TURBOK_STRIPE * 4;
        }
        close_group(w, false, group + w->code_bytes, lane, rows, nv, part, NULL, 0, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            store_f(out + r * TURBOK_STRIPE + lane + v * VL, acc[r][v]);
}

#define TABLES(name, kind)                                                                         \
    static void name(const turbok_tiles *w, const char *stripe, const turbok_acts *a,              \
                     int64_t first, int64_t rows, float *out)                                      \
    {                                                                                              \
        int64_t r = 0;                                                                             \
        for (; r + 4 <= rows; r += 4)                                                              \
            _Pragma("GCC unroll 2") for (int lane = 0; lane < TURBOK_STRIPE; lane += 16)           \
                tile_f(kind, w, stripe, a, first + r, 4, 16 / VL, lane, out + r * TURBOK_STRIPE);  \
        for (; r < rows; r++)                                                                      \
            tile_f(kind, w, stripe, a, first + r, 1, NV, 0, out + r * TURBOK_STRIPE);              \
    }
TABLES(run_f4, F4)
TABLES(run_f8, F8)
TABLES(run_bits, F8_BITS)

/* ---- the two functions -------------------------------------------------------------------------------- */

static void stripe(const turbok_tiles *w, const char *at, const turbok_acts *a, int64_t first,
                   int64_t rows, float *acc)
{
    if (w->kind == TURBOK_GRID_F) {
        (w->bits == 4 ? run_f4 : w->float_bits ? run_bits : run_f8)(w, at, a, first, rows, acc);
        return;
    }
    view m = {
        .w = w,
        .codes = at,
        .code_step = w->group_bytes,
        .params = at + w->code_bytes,
        .param_step = w->group_bytes,
        .groups = w->groups,
        .to = w->group / w->block,
        .table = w->kind == TURBOK_GRID_T4 ? table_of(w->itable) : splat32(0),
    };
    bool table = w->kind == TURBOK_GRID_T4;
    memset(acc, 0, (size_t)rows * TURBOK_STRIPE * sizeof *acc);
    if (w->kind == TURBOK_GRID_S8)
        in_pieces(run_s8, m, a, first, rows, acc);
    else if (rows >= ROWS_PANEL && w->group <= PANEL)
        with_panels(m, table, a, first, rows, acc);
    else
        in_pieces(table ? run_t4 : run_u4, m, a, first, rows, acc);
}

static void quantize(const turbok_tiles *w, const float *x, int8_t *q, float *scale, int32_t *start,
                     float *sum)
{
    int64_t per = w->group / w->block;
    for (int64_t b = 0; b < w->blocks; b++, x += w->block, q += w->block) {
        float most, strange;
        extremes(x, w->block, &most, &strange);
        bool some = most >= TURBOK_ACT_LEAST && strange == 0.0f;
        int32_t total = 0;
        if (some)
            total = to_codes(x, w->block, 127.0f / most, q, w->kind, &start[b]);
        else
            memset(q, 0, (size_t)w->block);
        start[b] = some ? start[b] : 0;
        scale[b] = some ? most / 127.0f : strange == 0.0f ? 0.0f : NAN;
        if (sum)
            sum[b / per] = fmaf((float)total, scale[b], b % per ? sum[b / per] : 0.0f);
    }
}
