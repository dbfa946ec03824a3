/* kernels/cuda/bench/parts.c: the measurements of bench-gpu beside reading. */
#include <string.h>

#include "bench-gpu.h"

const shape shapes[] = {{"1.8B", 24, 2048, 8192, 16, 8, 128, 92544},
                        {"7B", 32, 4096, 14336, 32, 8, 128, 92544},
                        {"20B", 48, 6144, 16384, 48, 8, 128, 92544}};
enum { BLOCK = 64 };

const shape *shape_at(int i)
{
    static const shape tiny = {"tiny", 2, 128, 256, 4, 2, 64, 512};
    return quick ? &tiny : &shapes[i];
}

/* ---- a model shape on the device ------------------------------------------------------------------ */

typedef struct layer {
    void *qkv, *wo, *gate, *up, *down;
    const float *norm;
} layer;

typedef struct model {
    shape m;
    layer layers[64];
    void *head, *table;
    turbok_cu_attn at;
    turbok_cu_batch b;
    void *h, *x, *qkv, *q, *a, *mlp, *scratch;
    float *logits;
    uint64_t scratch_bytes;
    int32_t layers_of_attention;
    bool turned; /* the last product made what RoPE makes, too */
    bool in_one; /* RoPE made what attention makes, too */
    const products *with; /* other weights than layers and head, or NULL */
} model;

static const float *ones(int32_t n)
{
    float *v = calloc((size_t)n, sizeof *v);
    for (int32_t i = 0; i < n; i++)
        v[i] = 1;
    const float *d = upload(v, sizeof *v * (size_t)n);
    free(v);
    return d;
}

static void make_weights(model *w)
{
    const shape *m = &w->m;
    const float *norm = ones(m->E);
    for (int32_t l = 0; l < m->L; l++)
        w->layers[l] = (layer){.qkv = numbers((int64_t)(m->H + 2 * m->K) * m->D * m->E, 0.02f),
                               .wo = numbers((int64_t)m->E * m->H * m->D, 0.02f),
                               .gate = numbers((int64_t)m->I * m->E, 0.02f),
                               .up = numbers((int64_t)m->I * m->E, 0.02f),
                               .down = numbers((int64_t)m->E * m->I, 0.02f),
                               .norm = norm};
    w->head = numbers((int64_t)m->V * m->E, 0.02f);
    w->table = w->head;
}

static void free_weights(model *w)
{
    for (int32_t l = 0; l < w->m.L; l++) {
        layer *y = &w->layers[l];
        give(y->qkv), give(y->wo), give(y->gate), give(y->up), give(y->down);
    }
    give(w->head);
}

/* Cache, inputs and workspaces for S sequences that have ctx tokens each, of which new ones are computed. */
static void make_step(model *w, int32_t S, int32_t ctx, int32_t new, int32_t kv_type,
                      int32_t layers)
{
    const shape *m = &w->m;
    int32_t per = (ctx + BLOCK - 1) / BLOCK, T = S * new;
    turbok_kv_dims d = {layers, m->K, m->D, BLOCK, kv_type};
    size_t es = sizeof(int32_t), n = (size_t)T;
    int32_t *ints = calloc((size_t)(S * per + T + S + 8), es);
    float *inv = calloc((size_t)m->D, sizeof *inv);
    for (int32_t i = 0; i < m->D / 2; i++)
        inv[i] = (float)(i + 1) * 1e-3f;
    uint64_t block = turbok_kv_block_bytes(&d);
    w->layers_of_attention = layers;
    w->at = (turbok_cu_attn){.kv = {.base = room(block * (uint64_t)(S * per)),
                                    .block_bytes = block,
                                    .plane_bytes = turbok_kv_plane_bytes(&d),
                                    .block_tokens = BLOCK,
                                    .n_kv = m->K,
                                    .head_dim = m->D,
                                    .dtype = kv_type},
                             .n_heads = m->H,
                             .layout = TURBO_QKV_GROUPED,
                             .scale = 0.088f,
                             .rope_dim = m->D,
                             .rope_table = ctx,
                             .inv = upload(inv, sizeof *inv * (size_t)m->D / 2),
                             .rope_scale = 1};
    /* Any bits will do for codes; as numbers they must be some. */
    turbok_cu_random(cu, TURBO_BF16, w->at.kv.base, (int64_t)(block * (uint64_t)(S * per) / 2),
                     0.5f, 7);
    float *angles = room(sizeof *angles * (size_t)ctx * (size_t)m->D / 2);
    turbok_cu_random(cu, TURBO_F32, angles, (int64_t)ctx * m->D / 2, 0.5f, 8);
    w->at.cosine = w->at.sine = angles;
    turbok_cu_batch *b = &w->b;
    *b = (turbok_cu_batch){
        .T = T, .S = S, .R = S, .max_new = new, .max_kv = ctx, .table_stride = per};
    b->tokens = upload(ints, es * n);
    for (int32_t i = 0; i < S * per; i++)
        ints[i] = (int32_t)((int64_t)i * 7919 % (S * per));
    b->tables = upload(ints, es * (size_t)(S * per));
    for (int32_t i = 0; i < T; i++)
        ints[i] = ctx - new + i % new;
    b->positions = upload(ints, es * n);
    for (int32_t i = 0; i < T; i++)
        ints[i] = i / new;
    b->seq_of = upload(ints, es * n);
    for (int32_t i = 0; i <= S; i++)
        ints[i] = i * new;
    b->cu_seqlens = upload(ints, es * (size_t)(S + 1));
    for (int32_t i = 0; i < S; i++)
        ints[i] = ctx;
    b->kv_lens = b->rope_lens = upload(ints, es * (size_t)S);
    for (int32_t i = 0; i < S; i++)
        ints[i] = i * new + new - 1;
    b->row_index = upload(ints, es * (size_t)S);
    free(ints), free(inv);
    w->h = numbers((int64_t)T * m->E, 1), w->x = numbers((int64_t)T * m->E, 1);
    w->qkv = numbers((int64_t)T * (m->H + 2 * m->K) * m->D, 1),
    w->q = numbers((int64_t)T * m->H * m->D, 1);
    w->a = room(n * (size_t)(m->H * m->D) * 2), w->mlp = room(n * (size_t)m->I * 4);
    w->logits = room((size_t)S * (size_t)m->V * 4);
    w->scratch_bytes = turbok_cu_attention_bytes(T, S, m->H, m->D, ctx);
    w->scratch = room(w->scratch_bytes);
    turbok_cu_fill(cu, turbok_cu_at(w->scratch), 0, w->scratch_bytes);
}

static void free_step(model *w)
{
    const void *all[] = {
        w->at.kv.base, w->at.inv,       w->b.tokens,  w->b.tables,    w->b.positions,
        w->b.seq_of,   w->b.cu_seqlens, w->b.kv_lens, w->b.row_index, w->h,
        w->x,          w->qkv,          w->q,         w->a,           w->mlp,
        w->logits,     w->scratch,      w->at.cosine};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        cu->drv.mem_free(turbok_cu_at(all[i]));
}

static void attend_all(void *ctx)
{
    model *w = ctx;
    for (w->at.layer = 0; w->at.layer < w->layers_of_attention; w->at.layer++)
        turbok_cu_attention(cu, TURBO_BF16, &w->at, &w->b, w->q, w->a, w->scratch,
                            w->scratch_bytes);
}

static double kv_bytes(const shape *m, int32_t ctx, int32_t type)
{
    turbok_kv_dims d = {1, m->K, m->D, BLOCK, type};
    return (double)turbok_kv_block_bytes(&d) * ctx / BLOCK;
}

static const int32_t kv_types[] = {TURBO_BF16, TURBOK_KV_INT8, TURBOK_KV_INT4};

void bench_decode(void)
{
    static const int32_t contexts[] = {512, 4096, 8192, 32768}, batches[] = {1, 16, 64, 256};
    for (int b = 0; b < 4; b++)
        for (int c = 0; c < 4; c++)
            for (int t = 0; t < 3; t++) {
                model w = {.m = shapes[1]};
                char text[96];
                int32_t ctx = quick ? 128 : contexts[c], S = quick ? 2 : batches[b];
                if (S > 1 && S * ctx > 1 << 20)
                    continue;
                /* as many layers as exceed the second cache */
                double each = kv_bytes(&w.m, ctx, kv_types[t]) * S;
                int32_t layers = quick ? 1 : each > 4e8 ? 4 : each > 2e7 ? 16 : 64;
                make_step(&w, S, ctx, 1, kv_types[t], layers);
                double s = seconds(attend_all, &w, 9) / layers;
                snprintf(text, sizeof text, "7B %s KV, batch %d, context %d",
                         turbok_kv_type_name(kv_types[t]), S, ctx);
                report("attention", text, s, each, 0, read_rate);
                free_step(&w);
                if (quick && t == 2)
                    return;
            }
}

/* ---- whole steps ------------------------------------------------------------------------------------ */

/* Gate, up and what joins them. */
static void join(model *w, const layer *y, const void *x, int32_t T, const turbok_cu_beside *b)
{
    const shape *m = &w->m;
    char *up = (char *)w->mlp + (size_t)T * (size_t)m->I * 2;
    if (turbok_cu_gemv_gated(cu, TURBO_BF16, y->gate, y->up, TURBO_BF16, TURBO_ACT_SILU, m->I, m->E,
                             x, T, w->mlp, b) ||
        dense_gated(y->gate, y->up, m->I, m->E, x, T, w->mlp))
        return;
    dense(y->gate, m->I, m->E, x, T, TURBO_BF16, w->mlp);
    dense(y->up, m->I, m->E, x, T, TURBO_BF16, up);
    turbok_cu_activate(cu, TURBO_BF16, TURBO_ACT_SILU, w->mlp, up, (int64_t)T * m->I, w->mlp);
}

static void product_of(model *w, int which, int32_t l, const void *x, void *y,
                       const turbok_cu_beside *b)
{
    const shape *m = &w->m;
    const layer *d = &w->layers[l];
    const bool qkv = which == QUANT_QKV, down = which == QUANT_DOWN;
    const int32_t T = w->b.T, in = qkv ? m->E : down ? m->I : m->H * m->D;
    const int32_t out = qkv ? (m->H + 2 * m->K) * m->D : m->E;
    const void *a = qkv ? d->qkv : down ? d->down : d->wo;
    if (w->with) {
        if (!w->with->layer(w->with->ctx, which, l, x, T, y, b))
            turbok_cu_note(cu, TURBOK_CU_INVALID, "a product does not take what is beside it");
    } else if (which == QUANT_GATED)
        join(w, d, x, T, b);
    else if (!b || !turbok_cu_gemv_beside(cu, TURBO_BF16, a, TURBO_BF16, NULL, out, in, x, T,
                                          TURBO_BF16, y, b))
        dense(a, out, in, x, T, TURBO_BF16, y);
}

/* What a layer does, one launch or few each. */
typedef enum part { NORM, QKV, ROPE, ATTEND, OUT, SECOND_NORM, UP, DOWN, PARTS } part;
static const char *const part_names[] = {"norm", "qkv",  "rope", "attn",
                                         "out",  "norm", "up",   "down"};

/* Of few rows the norms are parts of the products, as in the backend (fuse.c). */
static void run_part(model *w, part what, int32_t l, const void *delta)
{
    const shape *m = &w->m;
    const layer *y = &w->layers[l];
    int32_t T = w->b.T, act = TURBO_BF16;
    const bool few =
        T <= (w->with ? w->with->beside : TURBOK_CU_BESIDE_ROWS) && m->E >= cu->fused_width;
    const turbok_cu_beside norm = {.norm = y->norm, .eps = 1e-5f}, sum = {.h = w->h};
    w->at.layer = l;
    if (few && (what == NORM || what == SECOND_NORM))
        return;
    switch (what) {
    case NORM: turbok_cu_rmsnorm(cu, act, w->h, delta, y->norm, 1e-5f, T, m->E, w->x); break;
    case QKV:
        w->turned = !w->with && dense_turned(y->qkv, m->E, w->x, &w->at, &w->b, w->q);
        if (!w->turned)
            product_of(w, QUANT_QKV, l, few ? w->h : w->x, w->qkv, few ? &norm : NULL);
        break;
    case ROPE:
        w->in_one =
            !w->turned && turbok_cu_attention_turned(cu, act, &w->at, &w->b, w->qkv, w->q, w->a);
        if (!w->turned && !w->in_one)
            turbok_cu_rope_store(cu, act, &w->at, &w->b, w->qkv, w->q);
        break;
    case ATTEND:
        if (w->in_one)
            break;
        turbok_cu_attention(cu, act, &w->at, &w->b, w->q, w->a, w->scratch, w->scratch_bytes);
        break;
    case OUT: product_of(w, QUANT_WO, l, w->a, w->x, few ? &sum : NULL); break;
    case SECOND_NORM: turbok_cu_rmsnorm(cu, act, w->h, w->x, y->norm, 1e-5f, T, m->E, w->x); break;
    case UP: product_of(w, QUANT_GATED, l, few ? w->h : w->x, w->mlp, few ? &norm : NULL); break;
    default: product_of(w, QUANT_DOWN, l, w->mlp, w->x, few ? &sum : NULL);
    }
}

static void run_head(void *ctx)
{
    model *w = ctx;
    turbok_cu_gather(cu, TURBO_BF16, w->x, w->b.row_index, w->b.R, w->m.E, w->a);
    if (w->with && w->with->head)
        w->with->head(w->with->ctx, &w->m, w->a, w->b.R, w->logits);
    else
        dense(w->head, w->m.V, w->m.E, w->a, w->b.R, TURBO_F32, w->logits);
}

static void run_step(void *ctx)
{
    model *w = ctx;
    turbok_cu_embed(cu, TURBO_BF16, w->table, TURBO_BF16, w->m.E, &w->b, w->h);
    for (int32_t l = 0; l < w->m.L; l++)
        for (int what = 0; what < PARTS; what++)
            run_part(w, (part)what, l, l ? w->x : NULL);
    turbok_cu_rmsnorm(cu, TURBO_BF16, w->h, w->x, w->layers[0].norm, 1e-5f, w->b.T, w->m.E, w->x);
    run_head(ctx);
}

void step_with(const shape *s, const products *p, int32_t S, const char *text)
{
    model w = {.m = *s, .table = p->table, .head = p->table, .with = p};
    const int32_t ctx = quick ? 64 : 512;
    char name[96];
    for (int32_t l = 0; l < s->L; l++)
        w.layers[l].norm = l ? w.layers[0].norm : ones(s->E);
    make_step(&w, S, ctx, 1, TURBO_BF16, s->L);
    snprintf(name, sizeof name, "%s, batch %d, context %d", text, S, ctx);
    report("step", name, seconds(run_step, &w, 15),
           p->bytes + kv_bytes(s, ctx, TURBO_BF16) * s->L * S, 0, read_rate);
    free_step(&w);
}

static double weight_bytes(const shape *m)
{
    double layer_bytes =
        (double)m->E * (m->H + 2 * m->K) * m->D + (double)m->E * m->H * m->D + 3.0 * m->E * m->I;
    return 2 * (layer_bytes * m->L + (double)m->V * m->E);
}

/* A step of S sequences; the time of it, 0: the device is too small. */
static double one_step(model *w, int32_t S, int32_t ctx, int32_t kv_type)
{
    char text[96];
    double kv = kv_bytes(&w->m, ctx, kv_type) * w->m.L * S, bytes = weight_bytes(&w->m) + kv;
    if (bytes > 0.85 * (double)cu->total_bytes)
        return 0;
    make_step(w, S, ctx, 1, kv_type, w->m.L);
    double s = seconds(run_step, w, 15);
    snprintf(text, sizeof text, "%s, %s KV, batch %d, context %d", w->m.name,
             turbok_kv_type_name(kv_type), S, ctx);
    report("step", text, s, bytes, 0, read_rate);
    free_step(w);
    return s;
}

/* What each 1,000 tokens more cost a step of one sequence. */
static void step_slope(model *w, int32_t kv_type)
{
    static const int32_t contexts[] = {512, 1024, 4096, 8192, 16384, 32768};
    double sx = 0, sy = 0, sxx = 0, sxy = 0, n = 0;
    for (int c = 0; c < 6; c++) {
        int32_t ctx = quick ? 64 + 8 * c : contexts[c];
        double s = one_step(w, 1, ctx, kv_type);
        if (c > 0)
            sx += ctx, sy += s, sxx += (double)ctx * ctx, sxy += ctx * s, n++;
    }
    report("slope, 1000 tokens", turbok_kv_type_name(kv_type),
           (n * sxy - sx * sy) / (n * sxx - sx * sx) * 1000,
           kv_bytes(&w->m, 1, kv_type) * 1000 * w->m.L, 0, read_rate);
}

/* Steps of one sequence, whatever their weights: after prompts and large batches a card is hot, and a tenth slower. */
void bench_single(void)
{
    open_blas();
    if (only_batch <= 1)
        quant_steps(true);
    for (int i = 0; i < (quick ? 1 : SHAPES) && only_batch <= 1; i++) {
        model w = {.m = *shape_at(i)};
        if (weight_bytes(&w.m) > 0.85 * (double)cu->total_bytes)
            continue;
        make_weights(&w);
        for (int t = 0; t < 3; t++)
            if (!t || i == 1)
                step_slope(&w, kv_types[t]);
            else
                one_step(&w, 1, quick ? 64 : 512, kv_types[t]);
        free_weights(&w);
    }
}

void bench_step(void)
{
    static const int32_t batches[][2] = {{8, 512},   {32, 512},  {64, 512},  {128, 512},
                                         {256, 512}, {64, 4096}, {16, 32768}};
    open_blas();
    for (int i = 0; i < SHAPES; i++) {
        model w = {.m = *shape_at(i)};
        if (weight_bytes(&w.m) > 0.85 * (double)cu->total_bytes)
            continue;
        make_weights(&w);
        for (int t = 0; t < 3; t++)
            for (int b = 0; b < (quick ? 1 : 7); b++)
                if (!only_batch || only_batch == batches[b][0])
                    one_step(&w, batches[b][0], quick ? 64 : batches[b][1], kv_types[t]);
        free_weights(&w);
        if (quick)
            return;
    }
}

void graphs_in_memory(void (*stage)(const char *what))
{
    enum { AHEAD_OF = 2 };
    static const int32_t batches[] = {1, 2, 4, 8, 16, 64, 128, 256};
    static turbok_cu_graph_exec kept[2 * AHEAD_OF * 8];
    int n = 0;
    for (int i = 0; i < (quick ? 1 : 2); i++) {
        model w = {.m = *shape_at(i)};
        char text[96];
        make_weights(&w);
        make_step(&w, 256, 64, 1, TURBO_BF16, w.m.L);
        stage("weights and workspaces");
        for (int k = 0; k < 8; k++) {
            w.b.T = w.b.S = w.b.R = batches[k];
            run_step(&w);
            if (turbok_cu_wait(cu, &(turbo_err){""}))
                return;
            snprintf(text, sizeof text, "%s, batch %d, first launches", w.m.name, batches[k]);
            stage(text);
            for (int a = 0; a < AHEAD_OF; a++) {
                turbok_cu_graph g = NULL;
                cu->drv.capture_begin(cu->stream, TURBOK_CU_CAPTURE_THREAD_LOCAL);
                run_step(&w);
                if (cu->drv.capture_end(cu->stream, &g) ||
                    cu->drv.graph_instantiate(&kept[n], g, 0))
                    return;
                cu->drv.graph_launch(kept[n++], cu->stream);
                cu->drv.graph_destroy(g);
            }
            if (turbok_cu_wait(cu, &(turbo_err){""}))
                return;
            snprintf(text, sizeof text, "%s, batch %d, 2 graphs", w.m.name, batches[k]);
            stage(text);
        }
        free_step(&w);
        free_weights(&w);
        stage("weights and workspaces freed");
    }
    while (n)
        cu->drv.graph_exec_destroy(kept[--n]);
    stage("graphs freed");
}

/* ---- the parts of a step, each alone, by the size of the batch ---------------------------------------- */

typedef struct part_job {
    model *w;
    part what;
    turbok_cu_sample_row *rows;
    void *sums;
    int32_t *tokens;
} part_job;

static void run_parts(void *ctx)
{
    part_job *j = ctx;
    for (int32_t l = 0; l < j->w->m.L; l++)
        run_part(j->w, j->what, l, l ? j->w->x : NULL);
}

static void run_draw(void *ctx)
{
    part_job *j = ctx;
    turbok_cu_sample(cu, j->rows, j->w->b.R, j->w->m.V, j->w->logits, j->sums, j->tokens,
                     j->tokens + j->w->b.R);
}

/* Microseconds of drawing a token of each row. */
static double time_draw(model *w, float temperature, float top_p)
{
    int32_t n = w->b.R;
    size_t bytes = sizeof(turbok_cu_sample_row) * (size_t)n;
    turbok_cu_sample_row *rows = calloc((size_t)n, sizeof *rows);
    turbok_cu_sample_state *states = room(sizeof *states * (size_t)n);
    turbok_cu_fill(cu, turbok_cu_at(states), 0, sizeof *states * (size_t)n);
    for (int32_t i = 0; i < n; i++)
        rows[i] = (turbok_cu_sample_row){.state = states + i,
                                         .temperature = temperature,
                                         .top_p = top_p,
                                         .repetition = 1,
                                         .index = i};
    part_job j = {.w = w,
                  .rows = upload(rows, bytes),
                  .sums = room((size_t)turbok_cu_sample_bytes(n, w->m.V)),
                  .tokens = room(2 * sizeof(int32_t) * (size_t)n)};
    double s = seconds(run_draw, &j, 9);
    give(states), give(j.rows), give(j.sums), give(j.tokens);
    free(rows);
    return s * 1e6;
}

void bench_parts(void)
{
    static const int32_t batches[] = {1, 8, 64, 256};
    open_blas();
    printf("microseconds of a layer; %s\n", "sum: of a step, without drawing");
    printf("%-5s %5s", "", "batch");
    for (int what = 0; what < PARTS; what++)
        printf(" %7s", part_names[what]);
    printf(" %8s %8s %8s %8s %8s %8s\n", "head", "greedy", "random", "sum", "step", "of limit");
    for (int i = 0; i < 2; i++) {
        model w = {.m = *shape_at(i)};
        make_weights(&w);
        for (int k = 0; k < (quick ? 2 : 4); k++) {
            int32_t S = batches[k], ctx = quick ? 64 : 512;
            if (only_batch && S != only_batch)
                continue;
            part_job j = {.w = &w};
            make_step(&w, S, ctx, 1, TURBO_BF16, w.m.L);
            double sum = 0,
                   bytes = weight_bytes(&w.m) + kv_bytes(&w.m, ctx, TURBO_BF16) * w.m.L * S;
            double step = seconds(run_step, &w, 9) * 1e6, head = seconds(run_head, &w, 9) * 1e6;
            printf("%-5s %5d", w.m.name, (int)S);
            for (int what = 0; what < PARTS; what++) {
                j.what = (part)what;
                double s = seconds(run_parts, &j, 9) * 1e6;
                sum += s;
                printf(" %7.2f", s / w.m.L);
            }
            printf(" %8.1f %8.1f %8.1f %8.0f %8.0f %8.3f\n", head, time_draw(&w, 0, 1),
                   time_draw(&w, 1, 1), sum + head, step, bytes / step * 1e6 / read_rate);
            fflush(stdout);
            free_step(&w);
        }
        free_weights(&w);
        if (quick)
            return;
    }
}

/* ---- prompts ------------------------------------------------------------------------------------------ */

static void run_layers(void *ctx)
{
    model *w = ctx;
    for (int32_t l = 0; l < w->m.L; l++)
        for (int what = 0; what < PARTS; what++)
            run_part(w, (part)what, l, l ? w->x : NULL);
}

/* Whole layers of a prompt of n tokens, and their share of what cuBLASLt's fastest reach on the products alone. */
static void prefill_layers(const shape *m, int32_t n)
{
    enum { LAYERS = 4 };
    model w = {.m = *m};
    char text[96];
    w.m.L = LAYERS;
    w.m.V = 256; /* no head, a small table */
    double linear = 2.0 * n * (weight_bytes(&w.m) / 2 - (double)w.m.V * m->E) / LAYERS;
    make_weights(&w);
    make_step(&w, 1, n, n, TURBO_BF16, LAYERS);
    timed layers = {run_layers, &w, 0};
    const double alone = dense_layer(m, n, &layers), s = layers.seconds / LAYERS;
    snprintf(text, sizeof text, "%s, a layer, prompt %d", m->name, n);
    report("prefill", text, s, 0, linear + 2.0 * n * n * m->H * m->D,
           alone > 0 ? linear / alone : 0);
    part_job j = {.w = &w};
    printf("    its parts, us:");
    for (int what = 0; what < PARTS; what++) {
        j.what = (part)what;
        printf(" %s %.1f", part_names[what], seconds(run_parts, &j, 5) * 1e6 / LAYERS);
    }
    printf("; products alone %.1f\n", alone * 1e6);
    snprintf(text, sizeof text, "%s, prompt %d", m->name, n);
    w.layers_of_attention = 1;
    report("attention, prompt", text, seconds(attend_all, &w, 5), 0, 2.0 * n * n * m->H * m->D, 0);
    free_step(&w);
    free_weights(&w);
}

void bench_prefill(void)
{
    static const int32_t lengths[] = {512, 2048, 4096, 16384};
    open_blas();
    for (int i = 0; i < (quick ? 1 : SHAPES); i++)
        for (int k = 0; k < (quick ? 1 : 4); k++)
            prefill_layers(shape_at(i), quick ? 40 : lengths[k]);
}
