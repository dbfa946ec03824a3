/* core/weights/linear.c: matrices: which tensors one is made of, what it takes, and its handle. Main thread. Must
 * not know how a format packs its codes. */
#include <stdio.h>
#include <string.h>

#include "util/err.h"
#include "util/sha256.h"
#include "weights/gguf_map.h"
#include "weights/state.h"

#define MAX_PARTS 8 /* of linear_rows */

/* One of the tensors, or sets of tensors, that form a matrix. */
typedef struct piece {
    const turbod_st_tensor *t; /* its numbers; NULL: quant has them */
    const turbod_st_tensor *bias; /* or NULL */
    turbod_quant_part quant;
    bool online; /* t's numbers become quantised, as quant.grid says */
} piece;

#define ONLINE_GROUP 32 /* inputs that share a scale */

/* Will t, which is not quantised in the folder, be quantised? Embeddings stay: a token reads a row. Where there
 * is no file yet, what config.json says counts. */
static void choose_online(const turbo_weights *w, piece *p, const char *base, uint32_t flags)
{
    int64_t in = p->quant.in, group = in % ONLINE_GROUP ? 16 : ONLINE_GROUP;
    if (turbod_index_absent(w->index) && !(flags & TURBO_LINEAR_TABLE) &&
        p->quant.rows != w->vocab && turbod_quant_assume(w->quant, base, in, &p->quant.grid)) {
        p->online = true;
        return;
    }
    if (!w->bits || flags & (TURBO_LINEAR_TABLE | TURBO_LINEAR_AS_STORED) || in % group ||
        in > INT32_MAX)
        return;
    p->online = true;
    p->quant.grid = (turbok_grid){.bits = p->quant.rows == w->vocab ? 8 : w->bits,
                                  .group = (int32_t)group,
                                  .scale_dtype = group == in ? TURBO_F32 : TURBO_BF16};
    p->quant.grid.offset = p->quant.grid.bits == 8 ? 128 : 8;
}

static turbo_status count_piece(turbod_weights_sums *s, const piece *p, bool table, turbo_err *err)
{
    uint64_t bytes = 0, n = (uint64_t)p->quant.rows * (uint64_t)p->quant.in;
    for (int i = 0; !p->t && i < TURBOD_QUANT_TENSORS; i++)
        bytes += p->quant.t[i] ? p->quant.t[i]->bytes : 0;
    const turbok_grid *g = &p->quant.grid;
    if (p->online)
        bytes = n / 8 * (uint64_t)g->bits +
                n / (uint64_t)g->group *
                    ((g->scale_dtype == TURBO_F32 ? 4u : 2u) + (g->zero ? 1u : 0u));
    else if (p->t)
        bytes = p->t->bytes;
    turbo_status st = weights_add(&s->stored, bytes, err);
    if (!st)
        st = weights_add(&s->params, n, err);
    if (!st && p->bias)
        st = weights_count_stored(s, p->bias, err);
    if (st)
        return st; /* the sums below are parts of those above */
    *(table ? &s->table : &s->matmul) += n;
    *(table ? &s->table_stored : &s->matmul_stored) += bytes;
    return TURBO_OK;
}

static void count_kind(turbod_weights_sums *s, const piece *p)
{
    const turbod_st_tensor *t = p->t ? p->t : p->quant.t[0];
    turbod_weights_kind k = {.bits = p->online ? p->quant.grid.bits : 0, .matrices = 1};
    const char *name = t->block                ? t->dtype_name
                       : !p->t                 ? p->quant.format->name
                       : t->dtype == TURBO_F32 ? "f32"
                       : t->dtype == TURBO_F16 ? "f16"
                                               : "bf16";
    snprintf(k.name, sizeof k.name, "%s", name);
    int32_t i = 0;
    while (i < s->n_kinds && (strcmp(s->kinds[i].name, k.name) || s->kinds[i].bits != k.bits))
        i++;
    if (i == TURBOD_WEIGHTS_KINDS) {
        snprintf(s->kinds[i - 1].name, sizeof k.name, "others");
        s->kinds[i - 1].bits = 0;
        s->kinds[i - 1].matrices++;
    } else if (i < s->n_kinds) {
        s->kinds[i].matrices++;
    } else {
        s->kinds[s->n_kinds++] = k;
    }
}

void turbod_weights_kinds(const turbod_weights_sums *s, char *text, size_t cap)
{
    size_t at = 0;
    *text = '\0';
    for (int32_t i = 0; i < s->n_kinds && at < cap; i++) {
        const turbod_weights_kind *k = &s->kinds[i];
        int n = snprintf(text + at, cap - at, "%s%lld %s", i ? ", " : "", (long long)k->matrices,
                         k->name);
        at += n > 0 ? (size_t)n : 0;
        if (k->bits && at < cap) {
            n = snprintf(text + at, cap - at, " that become int%d", k->bits);
            at += n > 0 ? (size_t)n : 0;
        }
    }
}

/* Pieces as parts of a matrix; grids [n] are those of the quantised ones. The type of the others. */
static int32_t as_parts(const turbo_weights *w, const piece *p, const turbok_grid *grids, int32_t n,
                        turbok_part *parts, turbok_file *files)
{
    int32_t dtype = TURBO_F32;
    for (int32_t i = 0; i < n; i++) {
        const turbod_st_tensor *t = p[i].t;
        bool coded = !t || p[i].online;
        parts[i] = (turbok_part){.grid = coded ? &grids[i] : NULL,
                                 .rows = p[i].quant.rows,
                                 .bias = p[i].bias ? p[i].bias->data : NULL,
                                 .bias_dtype = p[i].bias ? p[i].bias->dtype : 0};
        if (!t)
            continue;
        /* What becomes codes waits for the CPU, and reading takes less of it. */
        files[i] = (turbok_file){.fd = t->fd, .mapped = t->in_memory && !coded, .at = t->at};
        parts[i].data = t->data;
        parts[i].file = t->at ? &files[i] : NULL;
        parts[i].finite = !coded && !w->opts.allow_nonfinite;
        parts[i].dtype = t->dtype;
        parts[i].later = !coded && w->opts.later;
        parts[i].name = t->name;
        dtype = coded ? dtype : t->dtype;
    }
    return dtype;
}

/* What a device says of a matrix, with the tensor it is about. */
static turbo_status named(const piece *p, turbo_status st, const turbo_err *why, turbo_err *err)
{
    const turbod_st_tensor *t = p->t;
    for (int i = 0; !t && i < TURBOD_QUANT_TENSORS; i++)
        t = p->quant.t[i];
    return turbod_err(err, st, "%.80s: %.160s", t ? t->name : "a matrix", why->text);
}

/* The same of all pieces; of numbers that are not finite, the tensor that has them. */
static turbo_status refused(const turbo_weights *w, const piece *p, int32_t n, turbo_status st,
                            const turbo_err *why, turbo_err *err)
{
    for (int32_t i = 0; i < n && st == TURBO_EDATA; i++)
        if (p[i].t && weights_finite(w, p[i].t, err))
            return TURBO_EDATA;
    return named(&p[0], st, why, err);
}

/* A matrix of n pieces, total rows. */
static turbo_status count_linear(turbo_weights *w, const piece *p, int32_t n, int64_t total,
                                 int64_t in, uint32_t flags, turbo_err *err)
{
    turbod_weights_sums *s = w->sums;
    bool table = flags & TURBO_LINEAR_TABLE;
    turbok_part parts[MAX_PARTS];
    turbok_grid grids[MAX_PARTS];
    turbok_file files[MAX_PARTS];
    for (int32_t i = 0; i < n; i++)
        grids[i] = p[i].quant.grid;
    int32_t dtype = as_parts(w, p, grids, n, parts, files);
    for (int32_t i = 0; i < n; i++) /* a tensor without a file has no data */
        parts[i].bias = p[i].bias ? weights_stand_in : NULL;
    turbo_err why = {{0}};
    uint64_t bytes = turbok_linear_rows_bytes(w->opts.device, dtype, parts, n, in, flags, &why);
    turbo_status st =
        bytes ? weights_add(&s->linear, bytes, err) : named(&p[0], TURBO_EUNSUPPORTED, &why, err);
    for (int32_t i = 0; i < n && !st; i++) {
        s->quantised = s->quantised || parts[i].grid;
        s->grids_made += p[i].online;
        s->grids_stored += parts[i].grid && !p[i].online;
        st = count_piece(s, &p[i], table, err);
        count_kind(s, &p[i]);
    }
    s->n_heads += !table && total == w->vocab;
    return st;
}

/* ---- the host's functions --------------------------------------------------------------------- */

/* The quantised matrix that view calls name; format NULL when there is none. */
static turbo_status take_quant(turbo_weights *view, const char *name, int64_t rows, int64_t in,
                               turbod_quant_part *p, turbo_err *err)
{
    char asked[640], full[640];
    const turbo_weights *w = weights_base(view);
    int k = snprintf(asked, sizeof asked, "%s.weight", name);
    *p = (turbod_quant_part){.rows = rows, .in = in};
    if (!w->index || k < 0 || (size_t)k >= sizeof asked ||
        !weights_real_name(view, asked, full, sizeof full))
        return TURBO_OK; /* weights_find() says why not */
    full[strlen(full) - strlen(".weight")] = '\0'; /* views change beginnings only */
    turbo_status st = turbod_quant_find(w->quant, w->index, full, rows, in, p, err);
    return st || !p->format || w->sums ? st : turbod_quant_scan(p, false, err);
}

static turbo_status take_piece(turbo_weights *w, const char *name, int64_t rows, int64_t in_dim,
                               uint32_t flags, piece *p, turbo_err *err)
{
    *p = (piece){0};
    turbo_status st = take_quant(w, name, rows, in_dim, &p->quant, err);
    if (!st && !p->quant.format) {
        st = weights_find(w, name, ".weight", 2, rows, in_dim, &p->t, err);
        if (!st)
            choose_online(weights_base(w), p, name, flags);
    }
    if (st || !(flags & (TURBO_LINEAR_BIAS | TURBO_LINEAR_OPTIONAL_BIAS)))
        return st;
    st = weights_take(w, name, ".bias", 1, rows, 0, &p->bias, err);
    return st == TURBO_ENOENT && !(flags & TURBO_LINEAR_BIAS) ? TURBO_OK : st;
}

static turbo_status make_linear(turbo_weights *w, const piece *p, int32_t n, int64_t in_dim,
                                uint32_t flags, turbo_linear **l, turbo_err *err)
{
    turbok_part parts[MAX_PARTS];
    turbok_grid grids[MAX_PARTS] = {0};
    turbok_file files[MAX_PARTS];
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < n && !st; i++) {
        const turbod_quant_part *q = &p[i].quant;
        if (p[i].online)
            grids[i] = q->grid; /* its codes are made by the device */
        else if (!p[i].t)
            st = turbod_quant_grid(q, w->opts.device, w->opts.allow_nonfinite, &grids[i], err);
    }
    int32_t dtype = as_parts(w, p, grids, n, parts, files);
    turbo_err why = {{0}};
    if (!st &&
        (st = turbok_linear_rows_new(w->opts.device, dtype, parts, n, in_dim, flags, l, &why)))
        st = refused(w, p, n, st, &why, err);
    for (int32_t i = 0; i < n; i++)
        if (!p[i].online)
            turbod_quant_grid_free(&grids[i]);
    if (!st && (st = weights_keep(w, HANDLE_LINEAR, *l, err)))
        turbok_linear_free(w->opts.device, *l);
    return st;
}

/* A matrix made from its tensors; or only counted. */
static turbo_status rows_new(turbo_weights *w, const char *const *names, const int64_t *rows,
                             int32_t n, int64_t in_dim, uint32_t flags, const turbo_linear **out,
                             turbo_err *err)
{
    piece p[MAX_PARTS];
    const turbod_st_tensor *plain = NULL; /* the first part that is not quantised */
    int64_t total = 0;
    for (int32_t i = 0; i < n; i++) {
        turbo_status st = take_piece(w, names[i], rows[i], in_dim, flags, &p[i], err);
        if (st)
            return st;
        plain = plain ? plain : p[i].t;
        if (p[i].t && p[i].t->dtype != plain->dtype && !p[i].online)
            return turbod_err(
                err, TURBO_EUNSUPPORTED,
                "%.110s is %s and %.110s is %s; they form one matrix and need one type",
                plain->name, plain->dtype_name, p[i].t->name, p[i].t->dtype_name);
        total += rows[i]; /* each is a dimension of a tensor that exists */
    }
    w = weights_base(w);
    if (w->sums) {
        *out = (const turbo_linear *)(const void *)weights_stand_in;
        return count_linear(w, p, n, total, in_dim, flags, err);
    }
    turbo_linear *l = NULL;
    turbo_status st = make_linear(w, p, n, in_dim, flags, &l, err);
    if (st)
        return st;
    for (int32_t i = 0; i < n; i++) {
        if (p[i].t)
            weights_used(w, p[i].t);
        for (int k = 0; !p[i].t && k < TURBOD_QUANT_TENSORS; k++)
            if (p[i].quant.t[k])
                weights_used(w, p[i].quant.t[k]);
        if (p[i].bias)
            weights_used(w, p[i].bias);
    }
    turbod_gguf_drop(&w->ordered);
    *out = l;
    return TURBO_OK;
}

/* What a matrix is called in a cache: everything it was asked for with, under the folder's own names. */
static bool cache_key(const turbo_weights *view, const char *const *names, const int64_t *rows,
                      int32_t n, int64_t in, uint32_t flags, uint8_t key[32])
{
    char text[MAX_PARTS * 680], full[640];
    int at = snprintf(text, sizeof text, "%lld %u", (long long)in, flags);
    for (int32_t i = 0; i < n; i++) {
        if (!weights_real_name(view, names[i], full, sizeof full))
            return false;
        at += snprintf(text + at, sizeof text - (size_t)at, "\n%lld %s", (long long)rows[i], full);
    }
    turbod_sha256(text, (size_t)at, key);
    return true;
}

/* The matrix from the cache. *out NULL: there is none that has it. */
static turbo_status from_cache(turbo_weights *w, const uint8_t key[32], int64_t rows, int64_t in,
                               const turbo_linear **out, turbo_err *err)
{
    turbo_linear *l = NULL;
    uint64_t bytes;
    *out = NULL;
    if (!turbod_cache_get(w->cache, key, &l, &bytes))
        return TURBO_OK;
    turbo_status st = turbok_linear_out(l) == rows && turbok_linear_in(l) == in
                          ? weights_keep(w, HANDLE_LINEAR, l, err)
                          : turbod_err(err, TURBO_EINTERNAL, "a cached matrix has another shape");
    if (st) {
        turbok_linear_free(w->opts.device, l);
        return st;
    }
    weights_done(w, bytes);
    *out = l;
    return TURBO_OK;
}

turbo_status turbod_host_linear_rows(turbo_weights *view, const char *const *names,
                                     const int64_t *rows, int32_t n, int64_t in_dim, uint32_t flags,
                                     const turbo_linear **out, turbo_err *err)
{
    uint8_t key[32];
    int64_t total = 0;
    turbo_weights *w = weights_base(view);
    if (n < 1 || n > MAX_PARTS)
        return turbod_err(err, TURBO_EINVAL, "a matrix of %d parts; 1 to %d are possible", n,
                          MAX_PARTS);
    bool keyed =
        !w->sums && weights_cache(w) && cache_key(view, names, rows, n, in_dim, flags, key);
    for (int32_t i = 0; i < n; i++)
        if (rows[i] < 1 || __builtin_add_overflow(total, rows[i], &total))
            keyed = false; /* refused below, as no tensor has that shape */
    if (keyed) {
        turbo_status st = from_cache(w, key, total, in_dim, out, err);
        if (st || *out)
            return st;
    }
    turbo_status st = rows_new(view, names, rows, n, in_dim, flags, out, err);
    if (!st && keyed)
        turbod_cache_put(w->cache, key, *out);
    return st;
}

turbo_status turbod_host_linear(turbo_weights *w, const char *name, int64_t out_dim, int64_t in_dim,
                                uint32_t flags, const turbo_linear **out, turbo_err *err)
{
    return turbod_host_linear_rows(w, &name, &out_dim, 1, in_dim, flags, out, err);
}
