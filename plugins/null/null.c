/* plugins/null/null.c: a model without weights whose answer is known beforehand: for measuring and
 * testing everything round a model. Serves the architecture "NullForCausalLM".
 *
 * The token behind position p is V/4 + p mod V/2, whatever came before, at every temperature: the
 * other tokens weigh e^-100 of it. A step returns at once, or takes null_step_us and null_token_us
 * a token: spinning, as a model on these CPUs does, or asleep (null_sleep), as one on a device.
 * For faults: opening takes null_open_ms; the step number null_fail_step fails, the step number
 * null_hang_step takes null_hang_ms longer (steps count from 1; 0: none).
 * forward runs on the engine thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "turbo/plugin.h"

#define PEAK 100.0f

typedef struct model {
    int64_t step_ns, token_ns, hang_ns;
    int64_t n_steps, fail_step, hang_step;
    int32_t vocab;
    int32_t asleep;
} model;

static int32_t probe(const turbo_host *h, const turbo_config *c)
{
    const char *s = NULL;
    turbo_err err;
    return !h->cfg_str(c, "architectures.0", NULL, &s, &err) && s && !strcmp(s, "NullForCausalLM")
               ? 100
               : 0;
}

static turbo_status describe(const turbo_host *h, const turbo_config *c, turbo_model_info *out,
                             turbo_err *err)
{
    turbo_model_info m = {.size = sizeof m, .dtype = TURBO_F16, .arch = "Null"};
    int64_t v, eos = -1;
    const struct {
        const char *key;
        int64_t dflt, lo, hi;
        int32_t *to;
    } rows[] = {
        {"vocab_size", 92544, 4, 2097152, &m.vocab},
        {"hidden_size", 64, 1, 65536, &m.embed_dim},
        {"intermediate_size", 64, 1, 1048576, &m.mlp_dim},
        {"num_hidden_layers", 1, 1, 512, &m.n_layers},
        {"num_attention_heads", 1, 1, 1024, &m.n_heads},
        {"num_key_value_heads", 1, 1, 1024, &m.n_kv},
        {"head_dim", 8, 2, 1024, &m.head_dim},
        {"max_position_embeddings", 32768, 1, 16777216, &m.max_position},
        {"bos_token_id", 1, -1, 2097151, &m.bos},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        turbo_status st = h->cfg_int(c, rows[i].key, rows[i].dflt, rows[i].lo, rows[i].hi, &v, err);
        if (st)
            return st;
        *rows[i].to = (int32_t)v;
    }
    if (m.n_heads % m.n_kv) {
        snprintf(err->text, sizeof err->text,
                 "config.json: num_attention_heads %d is no multiple of num_key_value_heads %d",
                 m.n_heads, m.n_kv);
        return TURBO_EDATA;
    }
    if (m.bos >= m.vocab)
        m.bos = -1;
    turbo_status st = h->cfg_int(c, "eos_token_id", -1, -1, m.vocab - 1, &eos, err);
    if (st)
        return st;
    m.n_eos = eos >= 0;
    m.eos[0] = (int32_t)eos;
    /* A host built against another header has another size; what it does not have is not written. */
    uint32_t host_size = out->size ? out->size : (uint32_t)sizeof *out;
    memcpy(out, &m, host_size < sizeof m ? host_size : sizeof m);
    out->size = host_size;
    return TURBO_OK;
}

static turbo_status expect(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                           void *ctx, turbo_err *err)
{
    (void)h, (void)c, (void)emit, (void)ctx, (void)err;
    return TURBO_OK; /* no tensors: the folder needs no weight file */
}

static uint64_t workspace(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                          int32_t act_bytes)
{
    (void)info, (void)max_T, (void)max_R, (void)act_bytes;
    return 0;
}

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void sleep_until(int64_t end)
{
    struct timespec ts = {.tv_sec = end / 1000000000, .tv_nsec = end % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL))
        ;
}

static void pass_time(const model *m, int64_t from, int64_t ns)
{
    if (m->asleep)
        sleep_until(from + ns);
    else
        while (now_ns() < from + ns)
            ;
}

static turbo_status open_model(const turbo_host *h, const turbo_config *c, turbo_weights *w,
                               const turbo_ops *ops, void **out, turbo_err *err)
{
    turbo_model_info info = {.size = sizeof info};
    int64_t step = 0, token = 0, hang = 0, slow = 0;
    model *m = calloc(1, sizeof *m);
    (void)w, (void)ops;
    if (!m) {
        snprintf(err->text, sizeof err->text, "no memory for a model");
        return TURBO_ENOMEM;
    }
    const struct {
        const char *key;
        int64_t hi, *to;
    } rows[] = {
        {"null_step_us", 60000000, &step},
        {"null_token_us", 60000000, &token},
        {"null_hang_ms", 86400000, &hang},
        {"null_hang_step", INT32_MAX, &m->hang_step},
        {"null_fail_step", INT32_MAX, &m->fail_step},
        {"null_open_ms", 60000, &slow},
    };
    turbo_status st = describe(h, c, &info, err);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++)
        st = h->cfg_int(c, rows[i].key, 0, 0, rows[i].hi, rows[i].to, err);
    if (!st)
        st = h->cfg_bool(c, "null_sleep", 0, &m->asleep, err);
    if (st) {
        free(m);
        return st;
    }
    m->vocab = info.vocab;
    m->step_ns = step * 1000;
    m->token_ns = token * 1000;
    m->hang_ns = hang * 1000000;
    sleep_until(now_ns() + slow * 1000000);
    *out = m;
    return TURBO_OK;
}

static void close_model(void *p)
{
    free(p);
}

static turbo_status forward(void *p, turbo_exec *x, const turbo_batch *b, float *logits,
                            turbo_err *err)
{
    model *m = p;
    size_t V = (size_t)m->vocab;
    m->n_steps++;
    if (m->n_steps == m->fail_step) {
        snprintf(err->text, sizeof err->text, "null_fail_step %lld", (long long)m->fail_step);
        return TURBO_EINTERNAL;
    }
    if (m->n_steps == m->hang_step)
        sleep_until(now_ns() + m->hang_ns);
    int64_t ns = m->step_ns + m->token_ns * b->n_tokens, from = ns ? now_ns() : 0;
    (void)x;
    for (int32_t r = 0; r < b->n_rows; r++) {
        float *row = logits + (size_t)r * V;
        int32_t at = b->positions[b->row_index[r]];
        memset(row, 0, V * sizeof *row);
        row[m->vocab / 4 + at % (m->vocab / 2)] = PEAK;
    }
    if (ns)
        pass_time(m, from, ns);
    return TURBO_OK;
}

static const turbo_model_vtbl null_vtbl = {
    .size = sizeof null_vtbl,
    .id = "null",
    .probe = probe,
    .describe = describe,
    .expect = expect,
    .workspace = workspace,
    .open = open_model,
    .close = close_model,
    .forward = forward,
};

static const turbo_model_vtbl *const models[] = {&null_vtbl, NULL};

static const turbo_plugin plugin = {
    .magic = TURBO_PLUGIN_MAGIC,
    .abi_major = TURBO_ABI_MAJOR,
    .abi_minor = TURBO_ABI_MINOR,
    .size = sizeof plugin,
    .id = "null",
    .version = "1.0",
    .license = "Apache-2.0",
    .build = "gcc " __VERSION__,
    .models = models,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin;
}
