/* core/plan/plan.c: see plan.h. */
#include "plan/plan.h"

#include <stdio.h>
#include <string.h>

#include "util/checked.h"
#include "util/err.h"

#define TOPS 20 /* alternatives a sampling row has room for, turbo_sample_row.top */

const char *const turbod_mem_names[TURBOD_MEM_KINDS] = {
    [TURBOD_MEM_WEIGHTS] = "weights",   [TURBOD_MEM_VECTORS] = "vectors",
    [TURBOD_MEM_ROPE] = "rope",         [TURBOD_MEM_WORKSPACE] = "workspace",
    [TURBOD_MEM_SAMPLING] = "sampling", [TURBOD_MEM_SCRATCH] = "scratch",
    [TURBOD_MEM_IMAGES] = "images",     [TURBOD_MEM_CONTEXT] = "context",
    [TURBOD_MEM_GRAPHS] = "graphs",     [TURBOD_MEM_KV] = "kv",
    [TURBOD_MEM_KV_INDEX] = "kv_index", [TURBOD_MEM_SWAP] = "swap",
};

/* GiB or, less than one, MiB. */
static const char *in_words(double bytes, int digits, char text[32])
{
    bool large = bytes >= 0x1p30;
    if (large)
        snprintf(text, 32, "%.*f GiB", digits, bytes / 0x1p30);
    else
        snprintf(text, 32, "%.1f MiB", bytes / 0x1p20);
    return text;
}

const char *turbod_plan_size(double bytes, char text[32])
{
    return in_words(bytes, 2, text);
}

/* For an error: one digit behind the point is enough. */
static const char *rough(double bytes, char text[32])
{
    return in_words(bytes, 1, text);
}

turbok_kv_dims turbod_plan_kv_dims(const turbo_model_info *info, const turbok_kv_dims *wanted)
{
    turbok_kv_dims d = *wanted;
    d.n_layers = info->n_layers;
    d.n_kv = info->n_kv;
    d.head_dim = info->head_dim;
    d.dtype = wanted->dtype >= 0 ? wanted->dtype : info->dtype;
    return d;
}

/* count * size, on whole cache lines. */
static bool region(uint64_t count, uint64_t size, uint64_t *out)
{
    size_t n;
    return turbod_mul(count, size, &n) && turbod_round_up(n, 64, out);
}

static turbo_status make_fixed(const turbod_plan_in *in, turbod_plan *p, turbo_err *err)
{
    uint64_t *b = p->bytes, B = (uint64_t)p->max_batch, V = (uint64_t)in->info->vocab, n, sum = 0;
    b[TURBOD_MEM_WEIGHTS] = in->as_stored ? in->weights->stored : in->weights->linear;
    b[TURBOD_MEM_VECTORS] = in->as_stored ? 0 : in->weights->vector;
    b[TURBOD_MEM_ROPE] = in->weights->rope;
    b[TURBOD_MEM_SCRATCH] =
        in->act_bytes ? in->steps : turbok_scratch_bytes(in->threads, in->info->head_dim);
    b[TURBOD_MEM_IMAGES] = in->images;
    b[TURBOD_MEM_CONTEXT] = in->context;
    b[TURBOD_MEM_GRAPHS] = in->later;
    uint64_t ws = in->vtbl->workspace(in->info, p->max_step_tokens, p->max_batch,
                                      in->act_bytes ? in->act_bytes : (int32_t)sizeof(float));
    bool ok = turbod_mul(B, V, &n) && region(n, sizeof(float), &p->logits) &&
              region(B, sizeof(turbo_sample_row), &p->rows) &&
              region(B * TOPS, sizeof(turbo_logprob), &p->tops) &&
              turbod_round_up(ws, 64, &b[TURBOD_MEM_WORKSPACE]) &&
              turbod_add(p->logits, p->rows + p->tops, &b[TURBOD_MEM_SAMPLING]);
    for (int k = 0; k < TURBOD_MEM_KV && ok; k++)
        ok = turbod_add(sum, b[k], &sum);
    if (!ok)
        return turbod_err(err, TURBO_ELIMIT,
                          "max_batch_size %d and max_prefill_token_num %d are too large for this "
                          "model; lower them",
                          p->max_batch, p->max_step_tokens);
    p->fixed = p->total = sum;
    if (p->vacant && sum > p->vacant) {
        uint64_t step = b[TURBOD_MEM_WORKSPACE] + b[TURBOD_MEM_SAMPLING];
        char needed[32], vacant[32];
        return turbod_err(err, TURBO_ENOMEM,
                          "the model needs %s before any KV cache, %s are free: %s",
                          rough((double)sum, needed), rough((double)p->vacant, vacant),
                          sum - step <= p->vacant
                              ? "lower max_batch_size or max_prefill_token_num"
                              : "use a smaller or quantised model, or a machine with more memory");
    }
    p->left = p->vacant ? p->vacant - sum : 0;
    return TURBO_OK;
}

/* Blocks and index together must fit into what is left; the index is less than a hundredth of them. */
static int64_t fitting(const turbod_plan_in *in, const turbod_plan *p, int64_t n)
{
    int64_t lo = 0, hi = n;
    while (p->vacant && lo < hi) { /* the largest that fits */
        int64_t mid = hi - (hi - lo) / 2;
        uint64_t bytes = (uint64_t)mid * p->block_bytes +
                         turbok_kv_index_bytes(&p->dims, (int32_t)mid, in->prefix_caching);
        if (bytes <= p->left)
            lo = mid;
        else
            hi = mid - 1;
    }
    return hi;
}

static turbo_status allow(const turbod_plan_in *in, turbod_plan *p, turbo_err *err)
{
    char asked[32], left[32];
    p->allowed =
        in->cache_bytes ? in->cache_bytes : (uint64_t)((double)p->left * in->cache_fraction);
    if (!in->cache_bytes && !p->vacant)
        return turbod_err(err, TURBO_ENOMEM,
                          "this machine does not say how much memory is free: give "
                          "cache_max_entry_count as a size, such as 8GiB");
    if (in->cache_bytes && p->vacant && in->cache_bytes > p->left)
        return turbod_err(err, TURBO_ENOMEM,
                          "cache_max_entry_count asks for %s, %s are free beside weights "
                          "and workspaces; lower it",
                          rough((double)in->cache_bytes, asked), rough((double)p->left, left));
    return TURBO_OK;
}

static turbo_status make_kv(const turbod_plan_in *in, turbod_plan *p, turbo_err *err)
{
    int64_t bt = in->kv.block_tokens,
            want = in->session_len ? in->session_len : in->info->max_position;
    p->dims = turbod_plan_kv_dims(in->info, &in->kv);
    p->block_bytes = turbok_kv_block_bytes(&p->dims);
    if (p->dims.dtype == TURBOK_KV_INT4 && p->dims.head_dim % 2)
        return turbod_err(
            err, TURBO_EINVAL,
            "quant_policy 4 packs two numbers in a byte, the model's heads have %d; use 8",
            p->dims.head_dim);
    if (!p->block_bytes)
        return turbod_err(err, TURBO_EINVAL,
                          "cache_block_seq_len %d does not work with this model; use 64",
                          in->kv.block_tokens);
    turbo_status st = allow(in, p, err);
    if (st)
        return st;
    int64_t seq_blocks = (want + bt - 1) / bt, most = INT32_MAX / bt;
    uint64_t n = p->allowed / p->block_bytes;
    most = seq_blocks < most / p->max_batch ? seq_blocks * p->max_batch : most;
    p->most_blocks = (int32_t)most;
    int64_t blocks = fitting(in, p, n < (uint64_t)most ? (int64_t)n : most);
    if (!blocks)
        return turbod_err(
            err, TURBO_ENOMEM,
            "the KV cache needs at least %.1f MiB for one block, %.1f MiB are allowed; "
            "raise cache_max_entry_count",
            (double)p->block_bytes / 0x1p20, (double)p->allowed / 0x1p20);
    char needed[32], allowed[32];
    if (in->session_len > blocks * bt)
        return turbod_err(err, TURBO_ENOMEM,
                          "session_len %lld needs %s of KV cache, %s are allowed: "
                          "lower session_len to %lld%s or raise cache_max_entry_count",
                          (long long)in->session_len,
                          rough((double)seq_blocks * (double)p->block_bytes, needed),
                          rough((double)p->allowed, allowed), (long long)(blocks * bt),
                          p->dims.dtype == TURBOK_KV_INT4   ? ""
                          : p->dims.dtype == TURBOK_KV_INT8 ? ", set quant_policy = 4"
                                                            : ", set quant_policy = 8");
    p->blocks = (int32_t)blocks;
    p->session_len = (int32_t)(want < blocks * bt ? want : blocks * bt);
    p->bytes[TURBOD_MEM_KV] = (uint64_t)blocks * p->block_bytes;
    p->bytes[TURBOD_MEM_KV_INDEX] = turbok_kv_index_bytes(&p->dims, p->blocks, in->prefix_caching);
    p->total = p->fixed + p->bytes[TURBOD_MEM_KV] + p->bytes[TURBOD_MEM_KV_INDEX];
    return TURBO_OK;
}

static turbo_status make_swap(const turbod_plan_in *in, turbod_plan *p, turbo_err *err)
{
    uint64_t n = in->swap / p->block_bytes;
    if (!in->swap)
        return TURBO_OK;
    if (!n || n > INT32_MAX)
        return turbod_err(
            err, TURBO_EINVAL,
            "swap_space is %.1f MiB, a KV block takes %.1f MiB; set 0 or room for some "
            "hundred of them",
            (double)in->swap / 0x1p20, (double)p->block_bytes / 0x1p20);
    p->swap_blocks = (int32_t)n;
    p->bytes[TURBOD_MEM_SWAP] = n * p->block_bytes;
    return TURBO_OK;
}

turbo_status turbod_plan_make(const turbod_plan_in *in, turbod_plan *out, turbo_err *err)
{
    *out = (turbod_plan){
        .vacant = in->vacant,
        .max_batch = in->max_batch,
        /* A step must hold one token of every running sequence. */
        .max_step_tokens =
            in->max_step_tokens > in->max_batch ? in->max_step_tokens : in->max_batch,
    };
    if (!in->cache_bytes && !turbod_d_in(in->cache_fraction, 1e-9, 1))
        return turbod_err(err, TURBO_EINVAL,
                          "cache_max_entry_count is %g; a fraction above 0 and at most 1 is needed",
                          in->cache_fraction);
    turbo_status st = make_fixed(in, out, err);
    if (st) { /* what a block takes is worth knowing all the same */
        out->dims = turbod_plan_kv_dims(in->info, &in->kv);
        out->block_bytes = turbok_kv_block_bytes(&out->dims);
        return st;
    }
    st = make_kv(in, out, err);
    return st ? st : make_swap(in, out, err);
}

int64_t turbod_plan_tokens(const turbod_plan *p)
{
    return (int64_t)p->blocks * p->dims.block_tokens;
}

double turbod_plan_token_bytes(const turbod_plan *p)
{
    return (double)p->block_bytes / (double)p->dims.block_tokens;
}

int64_t turbod_plan_at_once(const turbod_plan *p, int64_t len)
{
    int64_t each = (len + p->dims.block_tokens - 1) / p->dims.block_tokens;
    return each > 0 ? p->blocks / each : 0;
}

void turbod_plan_summary(const turbod_plan *p, char *text, size_t cap)
{
    char a[32], b[32], c[32], d[32], e[32];
    uint64_t weights =
        p->bytes[TURBOD_MEM_WEIGHTS] + p->bytes[TURBOD_MEM_VECTORS] + p->bytes[TURBOD_MEM_ROPE];
    snprintf(text, cap,
             "weights %s, workspaces %s, KV %s of %s in %d blocks of %d tokens; %s of %s free; "
             "session_len %d",
             turbod_plan_size((double)weights, a),
             turbod_plan_size((double)(p->fixed - weights), b),
             turbod_plan_size((double)(p->bytes[TURBOD_MEM_KV] + p->bytes[TURBOD_MEM_KV_INDEX]), c),
             turbok_kv_type_name(p->dims.dtype), p->blocks, p->dims.block_tokens,
             turbod_plan_size((double)p->total, d), turbod_plan_size((double)p->vacant, e),
             p->session_len);
}
