/* kernels/cuda/grids.c: quantised matrices behind handles: which parts share one, packing through the pinned
 * buffers a slab of rows at a time, and the products of a handle of several. Packing runs on the pool, the
 * rest on the caller's thread. Must not know: formats of files. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/state.h"

enum { MOST_RUNS = 16, TILE = 16 };

/* Neighbouring parts that make one matrix. */
typedef struct run {
    const turbok_part *parts;
    int32_t n;
    turbok_cu_wq q;
} run;

static bool same_kind(const turbok_grid *g, const turbok_grid *h)
{
    return !g->perm && !h->perm && g->bits == h->bits && g->group == h->group &&
           g->scale_dtype == h->scale_dtype && g->offset == h->offset && !g->zero == !h->zero &&
           !g->min == !h->min && !g->table == !h->table && !g->coded_inputs == !h->coded_inputs;
}

/* Tiles have 16 rows of one part, so a part that ends inside one is the last of its run. */
static turbo_status next_run(const turbok_part *parts, int32_t n, int64_t in, run *r,
                             turbo_err *err)
{
    int64_t rows = 0;
    bool bias = false;
    *r = (run){.parts = parts};
    while (r->n < n && parts[r->n].grid && rows % TILE == 0 &&
           (!r->n || same_kind(parts->grid, parts[r->n].grid))) {
        if (parts[r->n].rows < 1 || __builtin_add_overflow(rows, parts[r->n].rows, &rows))
            return turbok_fail(err, TURBO_EINVAL, "a matrix has a part of %lld rows",
                               (long long)parts[r->n].rows);
        bias = bias || parts[r->n].bias;
        r->n++;
    }
    if (!r->n)
        return turbok_fail(
            err, TURBO_EUNSUPPORTED,
            "only some of the parts that form this matrix are quantised, which CUDA "
            "cannot store; use quantize = \"int8\" for the others, or device = \"cpu\"");
    if (in > TURBOK_GRID_IN)
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "%lld quantised inputs are more than the %d that CUDA can multiply; use "
                           "unquantised weights",
                           (long long)in, TURBOK_GRID_IN);
    turbo_err why = {{0}};
    if (turbok_cu_wq_plan(parts->grid, rows, in, bias, &r->q, &why))
        return turbok_fail(err, TURBO_EUNSUPPORTED, "%.120s; use device = \"cpu\"", why.text);
    return TURBO_OK;
}

/* Allowed: parts of several kinds, but not in a table. */
static turbo_status plan(const turbok_part *parts, int32_t n, int64_t in, uint32_t flags,
                         run runs[MOST_RUNS], int32_t *n_runs, turbo_err *err)
{
    *n_runs = 0;
    for (int32_t i = 0; i < n; i += runs[(*n_runs)++].n) {
        if (*n_runs == MOST_RUNS)
            return turbok_fail(err, TURBO_EUNSUPPORTED,
                               "a matrix of more than %d kinds of quantised parts; use device = "
                               "\"cpu\"",
                               MOST_RUNS);
        turbo_status st = next_run(parts + i, n - i, in, &runs[*n_runs], err);
        if (st)
            return st;
    }
    if (*n_runs > 1 && flags & TURBO_LINEAR_TABLE)
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "a table of embeddings whose parts are quantised in several ways; use "
                           "device = \"cpu\"");
    return TURBO_OK;
}

uint64_t turbok_cuda_grids_bytes(const turbok_part *parts, int32_t n, int64_t in, uint32_t flags,
                                 turbo_err *err)
{
    run runs[MOST_RUNS];
    int32_t n_runs;
    uint64_t sum = 0;
    if (plan(parts, n, in, flags, runs, &n_runs, err))
        return 0;
    for (int32_t i = 0; i < n_runs; i++)
        sum += turbok_alloc_size(runs[i].q.bytes);
    return sum;
}

/* ---- packing ------------------------------------------------------------------------------------------- */

/* Rows [first, first + rows) of g, its pointers moved there. */
static turbok_grid rows_of(const turbok_grid *g, int64_t first, int64_t in)
{
    size_t row = (size_t)first, groups = row * (size_t)(in / g->group);
    turbok_grid s = *g;
    s.codes += row * (size_t)in * (size_t)g->bits / 8;
    s.scale = (const char *)g->scale + groups * turbok_dtype_size(g->scale_dtype);
    s.zero = g->zero ? g->zero + groups : NULL;
    s.min = g->min ? g->min + groups : NULL;
    return s;
}

/* A slab: rows of one part, as a small matrix of its own in a pinned buffer. */
typedef struct slab {
    turbok_cu_wq q;
    turbok_grid g; /* codes NULL: they are made tile by tile ... */
    turbok_cuda_source from; /* ... of these numbers, from byte `offset` on */
    uint64_t offset;
    const turbok_prim *prim;
    char *scratch; /* [threads, code_scratch] */
    const void *bias;
    int32_t bias_dtype;
    char *image;
    _Atomic bool bad, other_codes; /* other_codes: not those of e4m3 */
    _Atomic bool unread;
} slab;

/* Where a thread makes the codes of a tile: numbers, codes and scales of its rows, and what that needs. */
typedef struct code_places {
    size_t codes, scale, rest, all;
} code_places;

static code_places code_scratch(const turbok_cu_wq *q, int32_t dtype)
{
    size_t in = (size_t)q->in;
    code_places p;
    p.codes = (TILE * in * turbok_dtype_size(dtype) + 63) / 64 * 64;
    p.scale = p.codes + (TILE * in * (size_t)q->bits / 8 + 63) / 64 * 64;
    p.rest = p.scale + (TILE * (size_t)q->groups * sizeof(float) + 63) / 64 * 64;
    p.all = p.rest + turbok_quantize_scratch(q->in);
    return p;
}

/* Tiles of a slab that has numbers. */
static void code_tiles(slab *s, int64_t from, int64_t to, char *mine)
{
    const code_places at = code_scratch(&s->q, s->from.dtype);
    size_t row = (size_t)s->q.in * turbok_dtype_size(s->from.dtype);
    turbok_grid g = s->g;
    g.codes = (uint8_t *)mine + at.codes;
    g.scale = mine + at.scale;
    for (int64_t t = from; t < to; t++) {
        int64_t first = t * TILE, rows = s->q.out - first < TILE ? s->q.out - first : TILE;
        const char *bias = s->bias;
        if (!turbok_cuda_fetch(&s->from, s->offset + (uint64_t)first * row, (size_t)rows * row,
                               mine)) {
            atomic_store(&s->unread, true);
            return;
        }
        if (!turbok_quantize_rows(s->prim, &g, s->from.dtype, mine, rows, s->q.in, mine + at.rest,
                                  (uint8_t *)mine + at.codes, mine + at.scale)) {
            atomic_store(&s->bad, true);
            return;
        }
        if (bias)
            bias += (size_t)first * turbok_dtype_size(s->bias_dtype);
        turbok_cu_wq_pack(&s->q, &g, first, rows, bias, s->bias_dtype, t, t + 1, s->image);
    }
}

static void pack_tiles(void *ctx, int64_t from, int64_t to, int thread)
{
    slab *s = ctx;
    int64_t first = from * TILE, end = to * TILE < s->q.out ? to * TILE : s->q.out;
    bool e4m3 = false;
    if (!s->g.codes) {
        code_tiles(s, from, to,
                   s->scratch + (size_t)thread * code_scratch(&s->q, s->from.dtype).all);
        return;
    }
    turbok_grid g = rows_of(&s->g, first, s->q.in);
    g.perm = NULL; /* once for the whole matrix */
    if (turbok_cu_wq_check(&g, end - first, s->q.in, &e4m3, NULL))
        atomic_store(&s->bad, true);
    if (!e4m3)
        atomic_store(&s->other_codes, true);
    turbok_cu_wq_pack(&s->q, &s->g, 0, s->q.out, s->bias, s->bias_dtype, from, to, s->image);
}

/* Bytes of a tile in each array of an image. */
typedef struct tile_bytes {
    size_t codes, scale, zero, min;
} tile_bytes;

static tile_bytes tile_of(const turbok_cu_wq *q)
{
    size_t each = (size_t)q->groups * TILE;
    return (tile_bytes){(size_t)q->chunks * 512, each * turbok_dtype_size(q->scale_dtype),
                        q->zero ? each : 0, q->min ? each * sizeof(float) : 0};
}

/* Rows of a slab: whole tiles, and what else an image has, fit a pinned buffer. */
static int64_t slab_rows(const turbok_cu_wq *q)
{
    const tile_bytes b = tile_of(q);
    size_t each = b.codes + b.scale + b.zero + b.min + TILE * sizeof(float);
    size_t fixed = 8 * 256 + 256 * sizeof(float) + (size_t)q->in * sizeof(int32_t);
    _Static_assert(TURBOK_GRID_IN * (TILE + TILE * 8 / 16 + 4) + 65536 < STAGE_BYTES,
                   "a tile fits");
    return (int64_t)((STAGE_BYTES - fixed) / each) * TILE;
}

/* Sends a packed slab to its place: it begins with tile `tile` of the matrix. */
static void send_slab(turbok_cuda *s, const turbok_cuda_matrix *m, const slab *p, int64_t tile)
{
    const tile_bytes b = tile_of(&p->q);
    const turbok_cu_wq *to = &m->q, *from = &p->q;
    const struct {
        uint64_t to, from;
        size_t bytes;
    } copies[] = {
        {(uint64_t)tile * b.codes, 0, (size_t)from->tiles * b.codes},
        {to->scale_at + (uint64_t)tile * b.scale, from->scale_at, (size_t)from->tiles * b.scale},
        {to->zero_at + (uint64_t)tile * b.zero, from->zero_at, (size_t)from->tiles * b.zero},
        {to->min_at + (uint64_t)tile * b.min, from->min_at, (size_t)from->tiles * b.min},
        {to->bias_at + (uint64_t)tile * TILE * sizeof(float), from->bias_at,
         to->bias ? (size_t)from->out * sizeof(float) : 0},
        {to->table_at, from->table_at, p->g.table && !tile ? 256 * sizeof(float) : 0},
        {to->perm_at, from->perm_at, to->permuted && !tile ? (size_t)to->in * sizeof(int32_t) : 0},
    };
    for (size_t i = 0; i < sizeof copies / sizeof copies[0]; i++)
        if (copies[i].bytes)
            turbok_cu_to_device(s->cu, turbok_cu_at(m->l.data) + copies[i].to,
                                p->image + copies[i].from, copies[i].bytes);
    turbok_cuda_sent(s);
}

/* Room for the codes of a tile, of each thread; kept for the next matrix. NULL: no memory. */
static char *room_for_codes(turbok_device *d, const turbok_cu_wq *q, int32_t dtype)
{
    turbok_cuda *s = d->exec.self;
    size_t need = (size_t)turbok_pool_threads(d->exec.pool) * code_scratch(q, dtype).all;
    if (s->coder_bytes < need) {
        free(s->coder);
        s->coder = malloc(need);
        s->coder_bytes = s->coder ? need : 0;
    }
    return s->coder;
}

static turbo_status bad_codes(const slab *p, const turbok_part *part, int64_t in, bool *e4m3,
                              turbo_err *err)
{
    if (atomic_load(&p->unread))
        return turbok_cuda_unread(err);
    if (!p->g.codes)
        return turbok_fail(err, TURBO_EDATA, "a number is not finite");
    return turbok_cu_wq_check(part->grid, part->rows, in, e4m3, err); /* once more, for the words */
}

/* Rows of a part, which is tile `tile` of m and on. *e4m3: the codes are those of the type. */
static turbo_status pack_part(turbok_device *d, const turbok_cuda_matrix *m,
                              const turbok_part *part, int64_t tile, bool *e4m3, turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    const turbok_grid *g = part->grid;
    int64_t in = m->q.in, most = slab_rows(&m->q);
    if (!g->codes && !turbok_quantizable(part, in))
        return turbok_fail(err, TURBO_EINVAL,
                           "a matrix of type %d cannot become %d bits in groups of %d", part->dtype,
                           g->bits, g->group);
    if (g->perm) {
        bool unused;
        turbo_status st = turbok_cu_wq_check(g, 0, in, &unused, err);
        if (st)
            return st;
    }
    for (int64_t row = 0; row < part->rows && !turbok_cu_bad(s->cu); row += most) {
        slab p = {
            .g = g->codes ? rows_of(g, row, in) : *g,
            .from = {part->data, part->file, part->dtype, true},
            .offset = (uint64_t)(row * in) * turbok_dtype_size(part->dtype),
            .prim = d->exec.prim,
            .bias_dtype = part->bias_dtype,
        };
        int64_t rows = part->rows - row < most ? part->rows - row : most;
        turbo_status st = turbok_cu_wq_plan(&p.g, rows, in, m->q.bias, &p.q, err);
        if (st)
            return st;
        if (part->bias)
            p.bias = (const char *)part->bias + (size_t)row * turbok_dtype_size(part->bias_dtype);
        if (!p.g.codes && !(p.scratch = room_for_codes(d, &m->q, part->dtype)))
            return turbok_fail(err, TURBO_ENOMEM, "no memory to quantise rows of %lld numbers",
                               (long long)in);
        p.image = turbok_cuda_buffer(d, STAGE_BYTES);
        turbok_cuda_fill(d, (size_t)p.q.bytes, p.q.tiles, pack_tiles, &p);
        if (atomic_load(&p.bad) || atomic_load(&p.unread))
            return bad_codes(&p, part, in, e4m3, err);
        *e4m3 = *e4m3 && !atomic_load(&p.other_codes);
        send_slab(s, m, &p, tile + row / TILE);
    }
    return TURBO_OK;
}

static turbo_status run_new(turbok_device *d, const run *r, turbo_linear **out, turbo_err *err)
{
    turbok_cuda_matrix *m = calloc(1, sizeof *m);
    if (!m)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
    *out = &m->l;
    m->q = r->q;
    m->l = (turbo_linear){.dtype = TURBO_U8,
                          .out = r->q.out,
                          .in = r->q.in,
                          .data_bytes = (size_t)r->q.bytes};
    m->l.data = turbok_alloc(d, TURBOK_MEM_LINEAR, m->l.data_bytes);
    if (!m->l.data)
        return turbok_cuda_full(m->l.out, m->l.in, m->l.data_bytes, err);
    const turbok_grid *g = r->parts->grid;
    bool e4m3 = g->table && g->bits == 8;
    int64_t tile = 0;
    for (int32_t i = 0; i < r->n; i++) {
        const turbok_grid *h = r->parts[i].grid;
        if (h->table && memcmp(h->table, g->table, sizeof(float) << g->bits))
            return turbok_fail(err, TURBO_EUNSUPPORTED,
                               "parts of one matrix have different tables; use device = \"cpu\"");
        turbo_status st = pack_part(d, m, &r->parts[i], tile, &e4m3, err);
        if (st)
            return st;
        tile += r->parts[i].rows / TILE;
    }
    if (e4m3)
        m->q.kind = TURBOK_CU_Q_E4M3;
    turbok_cu_wq_place(&m->q, turbok_cu_at(m->l.data));
    const turbok_cuda *s = d->exec.self;
    return turbok_cu_status(s->cu, err);
}

turbo_status turbok_cuda_grids_new(turbok_device *d, const turbok_part *parts, int32_t n,
                                   int64_t in, uint32_t flags, turbo_linear **res, turbo_err *err)
{
    run runs[MOST_RUNS];
    int32_t n_runs;
    turbo_linear *w = NULL;
    turbo_status st = plan(parts, n, in, flags, runs, &n_runs, err);
    if (!st && n_runs == 1) {
        st = run_new(d, &runs[0], &w, err);
    } else if (!st) {
        turbok_cuda_matrix *m = calloc(1, sizeof *m);
        w = m ? &m->l : NULL;
        if (!w || !(w->parts = calloc((size_t)n_runs, sizeof(turbo_linear *))))
            st = turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
        for (int32_t i = 0; i < n_runs && !st; i++) {
            st = run_new(d, &runs[i], &w->parts[i], err);
            w->n_parts = i + 1;
            w->out += w->parts[i] ? w->parts[i]->out : 0;
            w->in = in;
        }
    }
    if (st) {
        turbok_cuda_linear_free(d, w);
        return st;
    }
    *res = w;
    return TURBO_OK;
}

/* ---- products ------------------------------------------------------------------------------------------- */

/* Rows of the widest matrix whose inputs can be put in order or become codes at a time, in steps of so many tokens: from
 * 512 on as much memory as all rows of 16,384 inputs take, up to 2,048 tokens. */
static int32_t moved_rows(int32_t max_tokens)
{
    return max_tokens < 512 ? 16 : max_tokens < 2048 ? max_tokens / 32 : 64;
}

uint64_t turbok_cuda_coded_scratch(const turbok_cu *cu, int32_t max_tokens)
{
    return turbok_cu_wq_scratch(cu, TURBOK_GRID_IN, moved_rows(max_tokens));
}

bool turbok_cuda_coded_gated(turbok_cuda *s, const turbok_cu_wq *gate, const turbok_cu_wq *up,
                             int32_t fn, const void *x, int32_t T, void *y,
                             const turbok_cu_beside *b)
{
    const size_t size = turbok_dtype_size(s->act), in = (size_t)gate->in * size;
    const int32_t most =
        turbok_cu_wq_most(s->cu, s->act, gate, T, TURBOK_GRID_IN, moved_rows(s->steps.max_tokens));
    for (int32_t t = 0; t < T; t += most)
        if (!turbok_cu_wq_gated(s->cu, s->act, gate, up, fn, (const char *)x + (size_t)t * in,
                                T - t < most ? T - t : most,
                                (char *)y + (size_t)t * (size_t)gate->out * size, s->wq_scratch, b))
            return false; /* of the first rows as of all */
    return true;
}

void turbok_cuda_coded_multiply(turbok_cuda *s, const turbo_linear *w, const void *x, int32_t T,
                                int32_t out_dtype, void *y)
{
    char *to = y;
    for (int32_t i = 0; i < (w->parts ? w->n_parts : 1); i++) {
        const turbo_linear *part = w->parts ? w->parts[i] : w;
        const turbok_cu_wq *q = turbok_cuda_coded(part);
        int32_t most =
            turbok_cu_wq_most(s->cu, s->act, q, T, TURBOK_GRID_IN, moved_rows(s->steps.max_tokens));
        for (int32_t t = 0; t < T; t += most) {
            size_t in_row = (size_t)w->in * turbok_dtype_size(s->act);
            size_t out_row = (size_t)w->out * turbok_dtype_size(out_dtype);
            turbok_cu_wq_linear(s->cu, s->act, q, (const char *)x + (size_t)t * in_row,
                                T - t < most ? T - t : most, out_dtype, to + (size_t)t * out_row,
                                w->out, s->wq_scratch);
        }
        to += (size_t)part->out * turbok_dtype_size(out_dtype);
    }
}

void turbok_cuda_coded_rows(turbok_cuda *s, const turbo_linear *w, const int32_t *rows, int32_t n,
                            void *y)
{
    turbok_cu_wq_rows(s->cu, s->act, turbok_cuda_coded(w), rows, 0, n, y);
}
