/* core/plugin/check_rig.c: see check_rig.h. */
#include "plugin/check_rig.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin/check_run.h"
#include "plugin/host.h"
#include "util/buf.h"
#include "util/checked.h"
#include "util/err.h"
#include "weights/config.h"

#define MAX_NUMBERS (UINT64_C(1) << 24) /* of a checkpoint made here */
#define MAX_HEADER (1 << 22)
#define MAX_WORKSPACE (UINT64_C(1) << 30) /* bytes for a few tokens of a tiny model */
#define SLACK 65536 /* bytes watched behind the workspace and behind the logits */
#define MARK 0xA5

/* ---- a checkpoint ------------------------------------------------------------------------------- */

typedef struct maker {
    turbod_buf header; /* JSON of safetensors */
    turbod_buf shapes; /* one uint64_t a tensor: its numbers; the top bit: a vector */
    uint64_t at, total; /* bytes, numbers */
    turbo_err why;
} maker;

static turbo_status add_tensor(void *ctx, const turbo_tensor_spec *s)
{
    maker *m = ctx;
    uint64_t dims[4], n;
    char text[256];
    if (!s || !s->name || s->ndim < 1 || s->ndim > 4 || strnlen(s->name, 121) > 120)
        return turbod_err(
            &m->why, TURBO_EINVAL,
            "expect emits a tensor without a name, with a name of more than 120 bytes, or "
            "with ndim outside 1..4");
    for (int32_t d = 0; d < s->ndim; d++)
        dims[d] = (uint64_t)s->dims[d];
    for (const char *c = s->name; *c; c++)
        if (*c < 0x21 || *c > 0x7e || *c == '"' || *c == '\\')
            return turbod_err(
                &m->why, TURBO_EINVAL,
                "expect names a tensor with a blank, a quote or no ASCII in it: %.80s", s->name);
    if (!turbod_numel(dims, (unsigned)s->ndim, &n) || n > MAX_NUMBERS ||
        (m->total += n) > MAX_NUMBERS)
        return turbod_err(&m->why, TURBO_ELIMIT, "more than %" PRIu64 " numbers", MAX_NUMBERS);
    snprintf(text, sizeof text, "%s\"%.120s\":{\"dtype\":\"F32\",\"shape\":[", m->at ? "," : "",
             s->name);
    turbod_buf_str(&m->header, text);
    for (int32_t d = 0; d < s->ndim; d++) {
        snprintf(text, sizeof text, "%s%" PRIu64, d ? "," : "", dims[d]);
        turbod_buf_str(&m->header, text);
    }
    snprintf(text, sizeof text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", m->at,
             m->at + 4 * n);
    turbod_buf_str(&m->header, text);
    m->at += 4 * n;
    /* The last dimension decides how large the numbers are: sums shall stay near one. */
    uint64_t entry[2] = {n, s->ndim > 1 ? dims[s->ndim - 1] : 0};
    turbod_buf_add(&m->shapes, entry, sizeof entry);
    return m->header.failed || m->shapes.failed ? TURBO_ENOMEM : TURBO_OK;
}

/* -1..1, from a linear congruence: any numbers do, the same every time. */
static float draw(uint64_t *s)
{
    *s = *s * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (float)(int32_t)(*s >> 32) * 0x1p-31f;
}

static bool write_numbers(FILE *f, const maker *m)
{
    uint64_t seed = 1, entry[2];
    for (size_t i = 0; i < m->shapes.len / sizeof entry; i++) {
        memcpy(entry, m->shapes.ptr + i * sizeof entry, sizeof entry);
        float scale = entry[1] ? 1.7f / sqrtf((float)entry[1]) : 0.1f;
        for (uint64_t k = 0; k < entry[0]; k++) {
            float v = scale * draw(&seed) + (entry[1] ? 0 : 1);
            if (fwrite(&v, sizeof v, 1, f) != 1)
                return false;
        }
    }
    return true;
}

/* The folder is gone when this returns: the weights stay mapped. */
static turbo_status make_weights(rig *r, maker *m, turbo_err *why)
{
    char folder[] = "/tmp/turbo-check-XXXXXX", path[64];
    turbod_weights_opts opts = {.device = r->device};
    if (!mkdtemp(folder))
        return turbod_err(why, TURBO_EIO, "cannot make a folder in /tmp");
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    turbod_buf_str(&m->header, "}");
    uint64_t len = m->header.len;
    FILE *f = fopen(path, "wbe");
    bool ok = f && !m->header.failed && fwrite(&len, sizeof len, 1, f) == 1 &&
              fwrite(m->header.ptr, 1, m->header.len, f) == m->header.len && write_numbers(f, m);
    if (f && fclose(f))
        ok = false;
    turbo_status st = ok ? turbod_weights_open(folder, &opts, &r->weights, why)
                         : turbod_err(why, TURBO_EIO, "%s cannot be written", path);
    unlink(path);
    rmdir(folder);
    return st;
}

/* ---- opening ------------------------------------------------------------------------------------ */

/* What the plan would count is what open takes, and all that expect names is used. */
static int open_counted(rig *r, const maker *m, turbo_err *why)
{
    const turbo_host *h = turbod_host_table();
    turbod_weights_sums sums;
    turbo_err said = {{0}};
    if (turbod_weights_check(r->weights, h, r->v, r->config, &said) ||
        turbod_weights_count(r->weights, h, r->v, r->config, r->info.vocab, &sums, &said)) {
        turbod_err(why, 0, "a folder with the tensors of expect() cannot be opened: %.160s",
                   said.text);
        return CHECK_FAILED;
    }
    if (r->v->open(&r->guard.host, r->config, (turbo_weights *)(void *)&r->guard, &r->guard.ops,
                   &r->model, &said)) {
        turbod_err(why, 0, "open fails on a folder with the tensors of expect(): %.160s",
                   said.text);
        return CHECK_FAILED;
    }
    if (sums.params < m->total) {
        turbod_err(why, 0, "expect names tensors of %" PRIu64 " numbers, open takes %" PRIu64,
                   m->total, sums.params);
        return CHECK_FAILED;
    }
    if (sums.linear != turbok_device_mem(r->device, TURBOK_MEM_LINEAR) ||
        sums.vector != turbok_device_mem(r->device, TURBOK_MEM_VECTOR) ||
        sums.rope != turbok_device_mem(r->device, TURBOK_MEM_ROPE)) {
        turbod_err(why, 0, "a second open asks for other handles than the first");
        return CHECK_FAILED;
    }
    return CHECK_OK;
}

static int open_cache(rig *r, turbo_err *why)
{
    turbok_kv_dims dims = {.n_layers = r->info.n_layers,
                           .n_kv = r->info.n_kv,
                           .head_dim = r->info.head_dim,
                           .block_tokens = 8,
                           .dtype = TURBO_F32};
    turbo_status st =
        turbok_kv_pool_new(r->device, &dims, RIG_SEQS * (RIG_TOKENS / 8 + 1), &r->pool, why);
    for (int i = 0; i < RIG_SEQS && !st; i++)
        st = turbok_kv_table_init(&r->table[i], r->pool, RIG_TOKENS, why);
    return st ? CHECK_FAILED : CHECK_OK;
}

static int open_rest(rig *r, maker *m, turbo_err *why)
{
    turbok_device_opts one = {.threads = 1, .spin_us = -1};
    if (turbok_device_open(&one, &r->device, why) || make_weights(r, m, why))
        return CHECK_FAILED;
    guard_init(&r->guard, turbok_device_ops(r->device), turbok_device_exec(r->device), r->weights,
               &r->info);
    int result = open_counted(r, m, why);
    return result ? result : open_cache(r, why);
}

int rig_open(const turbo_model_vtbl *v, rig **out, turbo_err *why)
{
    const turbo_host *h = turbod_host_table();
    turbo_err said = {{0}};
    maker m = {0};
    rig *r = calloc(1, sizeof *r);
    turbod_buf_init(&m.header, MAX_HEADER);
    turbod_buf_init(&m.shapes, MAX_HEADER);
    turbod_buf_str(&m.header, "{");
    if (!r || turbod_config_parse(check_generic, strlen(check_generic), "config.json", &r->config,
                                  &said)) {
        turbod_err(why, 0, "no memory for the test");
        return CHECK_FAILED;
    }
    *out = r;
    r->v = v;
    r->info.size = sizeof r->info;
    turbo_status st = v->describe(h, r->config, &r->info, &said);
    if (!st)
        st = v->expect(h, r->config, add_tensor, &m, &said);
    if (st && m.why.text[0]) {
        *why = m.why;
        return st == TURBO_ELIMIT ? CHECK_SKIPPED : CHECK_FAILED;
    }
    if (st || !m.total) {
        turbod_err(why, 0, "%.200s",
                   !st ? "expect names no tensor"
                       : said.text); /* describe and expect have a test of their own */
        return CHECK_SKIPPED;
    }
    int result = open_rest(r, &m, why);
    turbod_buf_free(&m.header);
    turbod_buf_free(&m.shapes);
    return result;
}

void rig_forget(rig *r)
{
    for (int i = 0; i < RIG_SEQS; i++)
        turbok_kv_table_truncate(&r->table[i], r->pool, 0);
}

/* ---- a step ------------------------------------------------------------------------------------- */

typedef struct arrays {
    int32_t tokens[RIG_TOKENS], positions[RIG_TOKENS], rows[RIG_TOKENS];
    int32_t cu[RIG_SEQS + 1], kv_lens[RIG_SEQS], rope_lens[RIG_SEQS];
} arrays;

static int lay_out(rig *r, arrays *a, const rig_piece *p, int32_t n, turbok_kv_table **tables,
                   turbo_err *why)
{
    int32_t t = 0;
    for (int32_t s = 0; s < n; s++) {
        turbok_kv_table *kv = &r->table[p[s].seq];
        if (p[s].done + p[s].n > RIG_TOKENS ||
            !turbok_kv_table_reserve(kv, r->pool, p[s].done + p[s].n)) {
            turbod_err(why, 0, "no room in the cache of this test");
            return CHECK_FAILED;
        }
        tables[s] = kv;
        a->cu[s] = t;
        a->kv_lens[s] = p[s].done + p[s].n;
        a->rope_lens[s] = RIG_TOKENS; /* fixed for a sequence */
        for (int32_t i = 0; i < p[s].n; i++, t++) {
            a->tokens[t] = p[s].ids[i];
            a->positions[t] = p[s].done + i;
        }
    }
    a->cu[n] = t;
    return CHECK_OK;
}

static bool marked(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != MARK)
            return false;
    return true;
}

static int judge(rig *r, const turbo_batch *b, turbo_status st, const turbo_err *said,
                 const uint8_t *area, size_t ws, const uint8_t *out, turbo_err *why)
{
    size_t n = (size_t)b->n_rows * (size_t)r->info.vocab;
    const char *bad = NULL;
    if (r->guard.why.text[0])
        turbod_err(why, 0, "%s", r->guard.why.text);
    else if (st)
        turbod_err(why, 0, "forward fails on a good batch of T=%d, R=%d: %.160s", b->n_tokens,
                   b->n_rows, *said->text ? said->text : "without an error text");
    else if (!marked(area, SLACK) || !marked(area + SLACK + ws, SLACK))
        bad = "forward writes outside the workspace that workspace() asked for";
    else if (!marked(out, SLACK) || !marked(out + SLACK + n * sizeof(float), SLACK))
        bad = "forward writes outside the logits [R,V]";
    for (size_t i = 0; i < n && !why->text[0] && !bad; i++) {
        float v;
        memcpy(&v, out + SLACK + i * sizeof v, sizeof v);
        if (!isfinite(v))
            bad = "a logit is left unwritten or is not finite, with weights and tokens that are";
    }
    if (bad)
        turbod_err(why, 0, "%s (T=%d, R=%d)", bad, b->n_tokens, b->n_rows);
    return why->text[0] ? CHECK_FAILED : CHECK_OK;
}

int rig_forward(rig *r, const rig_piece *p, int32_t n, const int32_t *rows, int32_t R, int fill,
                float *logits, turbo_err *why)
{
    arrays a = {0}, before;
    turbok_kv_table *tables[RIG_SEQS];
    struct turbo_kv kv = {r->pool, tables};
    turbo_err said = {{0}};
    if (lay_out(r, &a, p, n, tables, why))
        return CHECK_FAILED;
    if (R)
        memcpy(a.rows, rows, (size_t)R * sizeof *rows);
    before = a;
    uint64_t ws = r->v->workspace(&r->info, a.cu[n], R, 4);
    if (ws > MAX_WORKSPACE) {
        turbod_err(why, 0, "workspace(T=%d, R=%d) asks for %" PRIu64 " bytes for a tiny model",
                   a.cu[n], R, ws);
        return CHECK_FAILED;
    }
    size_t bytes = (size_t)R * (size_t)r->info.vocab * sizeof(float), room;
    uint8_t *out = calloc(1, bytes + 2 * SLACK), *area = NULL;
    if (turbod_round_up(ws + 2 * SLACK, 64, &room))
        area = aligned_alloc(64, room);
    if (!out || !area) {
        turbod_err(why, 0, "no memory for a workspace of %" PRIu64 " bytes", ws);
        return CHECK_FAILED;
    }
    memset(area, MARK, room);
    memset(area + SLACK, fill, ws);
    memset(out, MARK, bytes + 2 * SLACK);
    memset(out + SLACK, 0xff, bytes); /* NaN: tells what was not written */
    turbo_batch b = {.size = sizeof b,
                     .n_tokens = a.cu[n],
                     .n_seqs = n,
                     .n_rows = R,
                     .tokens = a.tokens,
                     .positions = a.positions,
                     .cu_seqlens = a.cu,
                     .kv_lens = a.kv_lens,
                     .rope_lens = a.rope_lens,
                     .row_index = a.rows,
                     .kv = &kv,
                     .workspace = area + SLACK,
                     .workspace_bytes = ws};
    float *to = (float *)(void *)(out + SLACK);
    guard_begin(&r->guard, &b, to);
    turbo_status st = r->v->forward(r->model, (turbo_exec *)(void *)&r->guard, &b, to, &said);
    said.text[sizeof said.text - 1] = '\0';
    for (int32_t s = 0; s < n; s++)
        tables[s]->len = a.kv_lens[s];
    int result = judge(r, &b, st, &said, area, ws, out, why);
    if (!result && memcmp(&a, &before, sizeof a)) {
        turbod_err(why, 0, "forward writes into the arrays of the batch");
        result = CHECK_FAILED;
    }
    if (!result && bytes)
        memcpy(logits, out + SLACK, bytes);
    free(out);
    free(area);
    return result;
}
