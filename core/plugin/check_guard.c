/* core/plugin/check_guard.c: see check_guard.h. */
#include "plugin/check_guard.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "plugin/host.h"
#include "util/err.h"

static guard *of_exec(turbo_exec *x)
{
    return (guard *)(void *)x;
}

/* The first finding is kept; false, for the caller to return. */
__attribute__((format(printf, 2, 3))) static bool found(guard *g, const char *fmt, ...)
{
    char text[sizeof g->why.text];
    va_list ap;
    if (g->why.text[0])
        return false;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    turbod_err(&g->why, 0, "%s", text);
    return false;
}

/* ---- memory ----------------------------------------------------------------------------------- */

typedef struct span {
    const char *name;
    const void *at;
    int64_t rows, width; /* of activations */
} span;

static uint64_t bytes_of(const span *s)
{
    return (uint64_t)s->rows * (uint64_t)s->width * sizeof(float);
}

static bool inside(guard *g, const char *op, const span *s)
{
    uint64_t base = (uint64_t)(uintptr_t)g->batch->workspace, at = (uint64_t)(uintptr_t)s->at;
    if (s->at && at >= base && at - base <= g->workspace_bytes &&
        bytes_of(s) <= g->workspace_bytes - (at - base))
        return true;
    if (!s->at || at < base || at - base > g->workspace_bytes)
        return found(g, "%s: %s does not lie in the workspace", op, s->name);
    return found(g,
                 "%s: %s [%lld,%lld] ends at byte %llu of the workspace; workspace() asked for "
                 "%llu (T=%d, R=%d)",
                 op, s->name, (long long)s->rows, (long long)s->width,
                 (unsigned long long)(at - base + bytes_of(s)),
                 (unsigned long long)g->workspace_bytes, g->batch->n_tokens, g->batch->n_rows);
}

static bool apart(guard *g, const char *op, const span *a, const span *b)
{
    uintptr_t pa = (uintptr_t)a->at, pb = (uintptr_t)b->at;
    if (pa + bytes_of(a) <= pb || pb + bytes_of(b) <= pa)
        return true;
    return found(g, "%s: %s and %s overlap", op, a->name, b->name);
}

/* Each lies in the workspace, and no two overlap. */
static bool spans(guard *g, const char *op, const span *s, int n)
{
    for (int i = 0; i < n; i++)
        if (!inside(g, op, &s[i]))
            return false;
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (!apart(g, op, &s[i], &s[j]))
                return false;
    return true;
}

static bool rows_ok(guard *g, const char *op, int32_t T)
{
    const turbo_batch *b = g->batch;
    int32_t most = b->n_tokens > b->n_rows ? b->n_tokens : b->n_rows;
    return (T >= 1 && T <= most) ||
           found(g, "%s: %d rows in a batch of %d tokens and %d wanted rows", op, T, b->n_tokens,
                 b->n_rows);
}

static const guard_handle *handle(guard *g, const char *op, const char *name, const void *at)
{
    for (int32_t i = 0; i < g->n_handles; i++)
        if (g->handles[i].at == at)
            return &g->handles[i];
    found(g, "%s: %s is no handle that open() got from the host", op, name);
    return NULL;
}

static bool same_batch(guard *g, const char *op, const turbo_batch *b)
{
    const turbo_batch *own = g->batch;
    return (b && b->n_tokens == own->n_tokens && b->n_seqs == own->n_seqs && b->kv == own->kv &&
            b->tokens == own->tokens && b->positions == own->positions) ||
           found(g, "%s: it got another batch than forward()", op);
}

/* ---- kernels ---------------------------------------------------------------------------------- */

static void g_embed(turbo_exec *x, const turbo_linear *table, const turbo_batch *b, void *out)
{
    guard *g = of_exec(x);
    const guard_handle *w = g->why.text[0] ? NULL : handle(g, "embed", "table", table);
    if (!w || !same_batch(g, "embed", b))
        return;
    if (!(w->flags & TURBO_LINEAR_TABLE))
        found(g, "embed: the table was opened without TURBO_LINEAR_TABLE");
    if (w->out != g->info->vocab)
        found(g, "embed: the table has %lld rows, describe() says a vocabulary of %d",
              (long long)w->out, g->info->vocab);
    if (!g->why.text[0] && spans(g, "embed", &(span){"out", out, b->n_tokens, w->in}, 1))
        g->real->embed(g->exec, table, b, out);
}

static void g_rmsnorm(turbo_exec *x, void *h, const void *delta, const turbo_vector *w, float eps,
                      int32_t T, int32_t E, void *out)
{
    guard *g = of_exec(x);
    const char *op = "rmsnorm";
    const guard_handle *v = g->why.text[0] ? NULL : handle(g, op, "w", w);
    if (!v || !rows_ok(g, op, T))
        return;
    if (v->out != E || v->in)
        found(g, "%s: w has %lld numbers, E is %d", op, (long long)v->out, E);
    if (!(eps >= 0) || !isfinite(eps))
        found(g, "%s: eps is %g", op, (double)eps);
    if (g->why.text[0])
        return;
    span s[] = {{"h", h, T, E}, {"out", out, T, E}, {"delta", delta, T, E}};
    /* out may be delta, entirely */
    if (spans(g, op, s, delta && delta != out ? 3 : 2))
        g->real->rmsnorm(g->exec, h, delta, w, eps, T, E, out);
}

static void g_linear(turbo_exec *x, const turbo_linear *w, const void *in, int32_t T, void *out)
{
    guard *g = of_exec(x);
    const guard_handle *v = g->why.text[0] ? NULL : handle(g, "linear", "w", w);
    if (!v || !rows_ok(g, "linear", T))
        return;
    span s[] = {{"in", in, T, v->in}, {"out", out, T, v->out}};
    if (spans(g, "linear", s, 2))
        g->real->linear(g->exec, w, in, T, out);
}

static bool attn_ok(guard *g, const char *op, const turbo_attn *a, const turbo_batch *b)
{
    const turbo_model_info *m = g->info;
    if (g->why.text[0] || !same_batch(g, op, b))
        return false;
    if (a->size < sizeof *a)
        return found(g, "%s: turbo_attn.size is %u; set it to sizeof(turbo_attn)", op, a->size);
    if (a->layer < 0 || a->layer >= m->n_layers)
        return found(g, "%s: layer %d; describe() says %d layers", op, a->layer, m->n_layers);
    if (a->n_heads != m->n_heads || a->n_kv != m->n_kv || a->head_dim != m->head_dim)
        return found(g, "%s: %d heads, %d key/value heads of %d; describe() says %d, %d and %d", op,
                     a->n_heads, a->n_kv, a->head_dim, m->n_heads, m->n_kv, m->head_dim);
    if (!isfinite(a->scale) || a->window < 0)
        return found(g, "%s: scale is %g, window is %d", op, (double)a->scale, a->window);
    bool known = !a->rope;
    for (int32_t i = 0; i < g->n_ropes; i++)
        known = known || g->rope[i] == a->rope;
    return known || found(g, "%s: rope is no handle that open() got from the host", op);
}

static void g_store(turbo_exec *x, const turbo_attn *a, const turbo_batch *b, const void *qkv,
                    void *q)
{
    guard *g = of_exec(x);
    const char *op = "qkv_rope_store";
    if (!attn_ok(g, op, a, b))
        return;
    int64_t Q = (int64_t)a->n_heads * a->head_dim, K = (int64_t)a->n_kv * a->head_dim;
    span s[] = {{"qkv", qkv, b->n_tokens, Q + 2 * K}, {"q", q, b->n_tokens, Q}};
    if (!spans(g, op, s, 2))
        return;
    if (a->layer < GUARD_MAX_LAYERS && g->stored[a->layer]++)
        found(g, "%s: layer %d is stored twice in one step", op, a->layer);
    else
        g->real->qkv_rope_store(g->exec, a, b, qkv, q);
    union {
        const void *in;
        void *out;
    } spent = {.in = qkv}; /* what is read of it from now on is no number */
    memset(spent.out, 0xff, (size_t)b->n_tokens * (size_t)(Q + 2 * K) * sizeof(float));
}

static void g_attention(turbo_exec *x, const turbo_attn *a, const turbo_batch *b, const void *q,
                        void *out)
{
    guard *g = of_exec(x);
    if (!attn_ok(g, "attention", a, b))
        return;
    int64_t Q = (int64_t)a->n_heads * a->head_dim;
    span s[] = {{"q", q, b->n_tokens, Q}, {"out", out, b->n_tokens, Q}};
    if (a->layer < GUARD_MAX_LAYERS && !g->stored[a->layer])
        found(g, "attention: the keys of layer %d are not stored in this step", a->layer);
    else if (spans(g, "attention", s, 2))
        g->real->attention(g->exec, a, b, q, out);
}

static void g_mlp(turbo_exec *x, const turbo_linear *gate, const turbo_linear *up,
                  const turbo_linear *down, int32_t act, const void *in, int32_t T, void *scratch,
                  void *out)
{
    guard *g = of_exec(x);
    const char *op = "gated_mlp";
    const guard_handle *a = g->why.text[0] ? NULL : handle(g, op, "gate", gate);
    const guard_handle *b = a ? handle(g, op, "up", up) : NULL;
    const guard_handle *c = b ? handle(g, op, "down", down) : NULL;
    if (!c || !rows_ok(g, op, T))
        return;
    if (a->out != b->out || a->in != b->in || c->in != a->out || c->out != a->in ||
        act < TURBO_ACT_SILU || act > TURBO_ACT_QUICK_GELU) {
        found(g, "%s: gate [%lld,%lld], up [%lld,%lld], down [%lld,%lld], act %d do not fit", op,
              (long long)a->out, (long long)a->in, (long long)b->out, (long long)b->in,
              (long long)c->out, (long long)c->in, act);
        return;
    }
    span s[] = {{"in", in, T, a->in}, {"scratch", scratch, T, 2 * a->out}, {"out", out, T, a->in}};
    if (spans(g, op, s, 3))
        g->real->gated_mlp(g->exec, gate, up, down, act, in, T, scratch, out);
}

static void g_gather(turbo_exec *x, const void *in, const int32_t *index, int32_t R, int32_t E,
                     void *out)
{
    guard *g = of_exec(x);
    if (g->why.text[0] || !rows_ok(g, "gather", R))
        return;
    if (!index || E < 1) {
        found(g, "gather: without an index, or %d wide", E);
        return;
    }
    int32_t last = 0;
    for (int32_t i = 0; i < R; i++) {
        if (index[i] < 0 || index[i] >= g->batch->n_tokens) {
            found(g, "gather: index %d is %d in a batch of %d tokens", i, index[i],
                  g->batch->n_tokens);
            return;
        }
        last = index[i] > last ? index[i] : last;
    }
    span s[] = {{"in", in, last + 1, E}, {"out", out, R, E}};
    if (spans(g, "gather", s, 2))
        g->real->gather(g->exec, in, index, R, E, out);
}

static void g_layernorm(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                        const turbo_vector *bias, float eps, int32_t T, int32_t E, void *out)
{
    guard *g = of_exec(x);
    const char *op = "layernorm";
    const guard_handle *v = g->why.text[0] ? NULL : handle(g, op, "w", w);
    const guard_handle *b = v ? handle(g, op, "bias", bias) : NULL;
    if (!b || !rows_ok(g, op, T))
        return;
    if (v->out != E || v->in || b->out != E || b->in)
        found(g, "%s: w has %lld numbers, bias %lld, E is %d", op, (long long)v->out,
              (long long)b->out, E);
    if (!(eps >= 0) || !isfinite(eps))
        found(g, "%s: eps is %g", op, (double)eps);
    if (g->why.text[0])
        return;
    span s[] = {{"h", h, T, E}, {"out", out, T, E}, {"delta", delta, T, E}};
    if (spans(g, op, s, delta && delta != out ? 3 : 2))
        g->real->layernorm(g->exec, h, delta, w, bias, eps, T, E, out);
}

static void g_plain_mlp(turbo_exec *x, const turbo_linear *up, const turbo_linear *down,
                        int32_t act, const void *in, int32_t T, void *scratch, void *out)
{
    guard *g = of_exec(x);
    const char *op = "mlp";
    const guard_handle *a = g->why.text[0] ? NULL : handle(g, op, "up", up);
    const guard_handle *b = a ? handle(g, op, "down", down) : NULL;
    if (!b || !rows_ok(g, op, T))
        return;
    if (b->in != a->out || act < TURBO_ACT_SILU || act > TURBO_ACT_QUICK_GELU) {
        found(g, "%s: up [%lld,%lld], down [%lld,%lld], act %d do not fit", op, (long long)a->out,
              (long long)a->in, (long long)b->out, (long long)b->in, act);
        return;
    }
    span s[] = {{"in", in, T, a->in}, {"scratch", scratch, T, a->out}, {"out", out, T, b->out}};
    if (spans(g, op, s, 3))
        g->real->mlp(g->exec, up, down, act, in, T, scratch, out);
}

static void g_add(turbo_exec *x, void *h, const void *delta, int32_t T, int32_t E)
{
    guard *g = of_exec(x);
    if (g->why.text[0] || !rows_ok(g, "add", T))
        return;
    span s[] = {{"h", h, T, E}, {"delta", delta, T, E}};
    if (spans(g, "add", s, 2))
        g->real->add(g->exec, h, delta, T, E);
}

static void g_moe(turbo_exec *x, const turbo_linear *router, const turbo_experts *w, const void *in,
                  int32_t T, void *scratch, void *out)
{
    guard *g = of_exec(x);
    const guard_handle *r = g->why.text[0] ? NULL : handle(g, "moe", "router", router);
    const guard_handle *e = r ? handle(g, "moe", "w", w) : NULL;
    if (!e || !rows_ok(g, "moe", T))
        return;
    if (!e->experts || r->out != g->moe[e->experts - 1].n_experts || r->in != e->in) {
        found(g, "moe: the router [%lld,%lld] and the experts do not fit", (long long)r->out,
              (long long)r->in);
        return;
    }
    int64_t floats = (int64_t)(turbo_moe_scratch(&g->moe[e->experts - 1], T, 4) / sizeof(float));
    span s[] = {{"in", in, T, e->in}, {"out", out, T, e->in}, {"scratch", scratch, 1, floats}};
    if ((uintptr_t)scratch % 64)
        found(g, "moe: scratch does not begin on a multiple of 64");
    else if (spans(g, "moe", s, 3))
        g->real->moe(g->exec, router, w, in, T, scratch, out);
}

static void g_add_gated(turbo_exec *x, void *h, const void *delta, const turbo_vector *w,
                        const void *in, int32_t T, int32_t E)
{
    guard *g = of_exec(x);
    const guard_handle *v = g->why.text[0] ? NULL : handle(g, "add_gated", "w", w);
    if (!v || !rows_ok(g, "add_gated", T))
        return;
    span s[] = {{"h", h, T, E}, {"delta", delta, T, E}, {"in", in, T, E}};
    if (v->out != E || v->in)
        found(g, "add_gated: w has %lld numbers, E is %d", (long long)v->out, E);
    else if (spans(g, "add_gated", s, 3))
        g->real->add_gated(g->exec, h, delta, w, in, T, E);
}

static void g_head_norm(turbo_exec *x, const turbo_attn *a, const turbo_vector *q,
                        const turbo_vector *k, float eps, int32_t T, void *qkv)
{
    guard *g = of_exec(x);
    const char *op = "head_norm";
    const guard_handle *v = g->why.text[0] ? NULL : handle(g, op, "q", q);
    const guard_handle *b = v ? handle(g, op, "k", k) : NULL;
    if (!b || !rows_ok(g, op, T) || !attn_ok(g, op, a, g->batch))
        return;
    if (v->out != a->head_dim || v->in || b->out != a->head_dim || b->in)
        found(g, "%s: q has %lld numbers, k %lld, a head %d", op, (long long)v->out,
              (long long)b->out, a->head_dim);
    else if (!(eps >= 0) || !isfinite(eps))
        found(g, "%s: eps is %g", op, (double)eps);
    else if (a->layer < GUARD_MAX_LAYERS && g->stored[a->layer])
        found(g, "%s: layer %d is stored already", op, a->layer);
    else if (inside(g, op,
                    &(span){"qkv", qkv, T,
                            ((int64_t)a->n_heads + 2 * (int64_t)a->n_kv) * a->head_dim}))
        g->real->head_norm(g->exec, a, q, k, eps, T, qkv);
}

/* The ops of picture towers have no place in a forward over tokens. */
static void g_attention_full(turbo_exec *x, const void *qkv, int32_t N, int32_t T, int32_t H,
                             int32_t D, float scale, void *out)
{
    (void)qkv, (void)N, (void)T, (void)H, (void)D, (void)scale, (void)out;
    found(of_exec(x), "attention_full lets a token see those behind it; forward needs attention");
}

static void g_patches(turbo_exec *x, const uint8_t *pixels, int32_t N, int32_t height,
                      int32_t width, int32_t size, const float *value, void *out)
{
    (void)pixels, (void)N, (void)height, (void)width, (void)size, (void)value, (void)out;
    found(of_exec(x), "patches is for pictures; forward gets their rows as embed_rows");
}

static void g_position_rows(turbo_exec *x, const void *in, const turbo_vector *first,
                            const turbo_vector *position, int32_t N, int32_t P, int32_t E,
                            void *out)
{
    (void)in, (void)first, (void)position, (void)N, (void)P, (void)E, (void)out;
    found(of_exec(x), "position_rows is for pictures; forward gets their rows as embed_rows");
}

static void g_logits(turbo_exec *x, const turbo_linear *head, const void *in, int32_t R, float *out)
{
    guard *g = of_exec(x);
    const guard_handle *w = g->why.text[0] ? NULL : handle(g, "logits", "head", head);
    if (!w || !rows_ok(g, "logits", R))
        return;
    if (w->out != g->info->vocab) {
        found(g, "logits: the head has %lld rows, describe() says a vocabulary of %d",
              (long long)w->out, g->info->vocab);
        return;
    }
    if (!out || out < g->logits || R > g->batch->n_rows || (out - g->logits) % w->out ||
        (out - g->logits) / w->out > g->batch->n_rows - R) {
        found(g, "logits: %d rows do not lie in the %d wanted rows of forward()", R,
              g->batch->n_rows);
        return;
    }
    if (inside(g, "logits", &(span){"in", in, R, w->in}))
        g->real->logits(g->exec, head, in, R, out);
}

/* ---- handles ---------------------------------------------------------------------------------- */

static turbo_status keep(guard *g, const void *at, int64_t out, int64_t in, uint32_t flags,
                         turbo_err *err)
{
    if (g->n_handles == GUARD_MAX_HANDLES)
        return turbod_err(err, TURBO_ELIMIT, "this test keeps %d handles", GUARD_MAX_HANDLES);
    g->handles[g->n_handles++] = (guard_handle){at, out, in, flags, 0};
    return TURBO_OK;
}

static guard *of_weights(const turbo_weights *w)
{
    union {
        const turbo_weights *w;
        guard *g;
    } u = {w};
    return u.g;
}

static turbo_status h_linear(turbo_weights *w, const char *name, int64_t out_dim, int64_t in_dim,
                             uint32_t flags, const turbo_linear **to, turbo_err *err)
{
    guard *g = of_weights(w);
    turbo_status st =
        turbod_host_table()->linear(g->weights, name, out_dim, in_dim, flags, to, err);
    return st ? st : keep(g, *to, out_dim, in_dim, flags, err);
}

static turbo_status h_linear_rows(turbo_weights *w, const char *const *names, const int64_t *rows,
                                  int32_t n, int64_t in_dim, uint32_t flags,
                                  const turbo_linear **to, turbo_err *err)
{
    guard *g = of_weights(w);
    turbo_status st =
        turbod_host_table()->linear_rows(g->weights, names, rows, n, in_dim, flags, to, err);
    int64_t sum = 0;
    for (int32_t i = 0; !st && i < n; i++)
        sum += rows[i];
    return st ? st : keep(g, *to, sum, in_dim, flags, err);
}

static turbo_status h_vector(turbo_weights *w, const char *name, int64_t n, const turbo_vector **to,
                             turbo_err *err)
{
    guard *g = of_weights(w);
    turbo_status st = turbod_host_table()->vector(g->weights, name, n, to, err);
    return st ? st : keep(g, *to, n, 0, 0, err);
}

static turbo_status h_vector_of(turbo_weights *w, const char *name, int64_t n,
                                const turbo_vector **to, turbo_err *err)
{
    guard *g = of_weights(w);
    turbo_status st = turbod_host_table()->vector_of(g->weights, name, n, to, err);
    return st ? st : keep(g, *to, n, 0, 0, err);
}

static turbo_status h_experts(turbo_weights *w, const turbo_moe *m, const char *gate,
                              const char *up, const char *down, const turbo_experts **to,
                              turbo_err *err)
{
    guard *g = of_weights(w);
    if (m->size < sizeof *m)
        return turbod_err(err, TURBO_EINVAL, "turbo_moe.size is %u; set it to sizeof(turbo_moe)",
                          m->size);
    if (g->n_moe == GUARD_MAX_LAYERS)
        return turbod_err(err, TURBO_ELIMIT, "this test keeps %d layers of experts",
                          GUARD_MAX_LAYERS);
    turbo_status st = turbod_host_table()->experts(g->weights, m, gate, up, down, to, err);
    if (!st)
        st = keep(g, *to, m->n_experts, m->width, 0, err);
    if (st)
        return st;
    g->moe[g->n_moe++] = *m;
    g->handles[g->n_handles - 1].experts = g->n_moe;
    return TURBO_OK;
}

static turbo_status h_weights_view(turbo_weights *w, const char *const *from, const char *const *to,
                                   int32_t n, turbo_weights **out, turbo_err *err)
{
    (void)w, (void)from, (void)to, (void)n, (void)out;
    return turbod_err(err, TURBO_EUNSUPPORTED, "a model inside a model is not run by this check");
}

static turbo_status h_weights_beside(turbo_weights *w, const char *folder, turbo_weights **out,
                                     turbo_err *err)
{
    (void)w, (void)folder, (void)out;
    return turbod_err(err, TURBO_EUNSUPPORTED, "a model inside a model is not run by this check");
}

static turbo_status h_rope(turbo_weights *w, const turbo_rope_spec *spec, const turbo_rope **to,
                           turbo_err *err)
{
    guard *g = of_weights(w);
    turbo_status st = turbod_host_table()->rope(g->weights, spec, to, err);
    if (!st && g->n_ropes == GUARD_MAX_LAYERS)
        return turbod_err(err, TURBO_ELIMIT, "this test keeps %d rope tables", GUARD_MAX_LAYERS);
    if (!st)
        g->rope[g->n_ropes++] = *to;
    return st;
}

static int32_t h_has_tensor(const turbo_weights *w, const char *name)
{
    return turbod_host_table()->has_tensor(of_weights(w)->weights, name);
}

void guard_init(guard *g, const turbo_ops *real, turbo_exec *exec, turbo_weights *weights,
                const turbo_model_info *info)
{
    memset(g, 0, sizeof *g);
    g->real = real;
    g->exec = exec;
    g->weights = weights;
    g->info = info;
    g->ops = (turbo_ops){
        .size = sizeof g->ops,
        .act_dtype = real->act_dtype,
        .embed = g_embed,
        .rmsnorm = g_rmsnorm,
        .linear = g_linear,
        .qkv_rope_store = g_store,
        .attention = g_attention,
        .gated_mlp = g_mlp,
        .gather = g_gather,
        .logits = g_logits,
        .layernorm = g_layernorm,
        .mlp = g_plain_mlp,
        .attention_full = g_attention_full,
        .patches = g_patches,
        .position_rows = g_position_rows,
        .add = g_add,
        .moe = g_moe,
        .add_gated = g_add_gated,
        .head_norm = g_head_norm,
    };
    g->host = *turbod_host_table();
    g->host.linear = h_linear;
    g->host.linear_rows = h_linear_rows;
    g->host.vector = h_vector;
    g->host.vector_of = h_vector_of;
    g->host.weights_view = h_weights_view;
    g->host.weights_beside = h_weights_beside;
    g->host.rope = h_rope;
    g->host.experts = h_experts;
    g->host.has_tensor = h_has_tensor;
}

void guard_begin(guard *g, const turbo_batch *b, float *logits)
{
    g->batch = b;
    g->logits = logits;
    g->workspace_bytes = b->workspace_bytes;
    memset(g->stored, 0, sizeof g->stored);
}
