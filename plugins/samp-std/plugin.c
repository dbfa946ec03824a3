/* plugins/samp-std/plugin.c: the sampler "std" and the border. See samp.h. */
#include <string.h>

#include "samp.h"

static turbo_status open_samp(const turbo_host *h, int32_t vocab, void **out, turbo_err *err)
{
    samp *s = NULL;
    (void)h;
    turbo_status st = samp_open(vocab, &s, err);
    *out = s;
    return st;
}

static void close_samp(void *p)
{
    samp_close(p);
}

static uint64_t state_bytes(const void *p, int32_t max_tokens)
{
    return samp_state_bytes(p, max_tokens);
}

static turbo_status begin(const void *p, void *state, int32_t max_tokens,
                          const turbo_sample_params *par, const int32_t *prompt, int32_t n_prompt,
                          turbo_err *err)
{
    return samp_begin(p, state, max_tokens, par, prompt, n_prompt, err);
}

static turbo_status sample(void *p, turbo_sample_row *rows, int32_t n, turbo_err *err)
{
    samp *s = p;
    (void)err;
    for (int32_t i = 0; i < n; i++) {
        turbo_sample_row *r = &rows[i];
        const samp_state *st = r->state;
        double log_z = 0;
        int32_t own; /* the model's own best, for when everything is banned */
        r->n_top = 0;
        r->status = samp_argmax(r->logits, s->vocab, &own);
        if (r->status)
            continue;
        bool want = r->params->n_logprobs >= 0;
        if (want) { /* of whichever id is drawn, the untouched logit is needed afterwards */
            samp_logprobs(s, r, r->logits[own], &log_z);
            memcpy(s->values, r->logits, (size_t)s->vocab * sizeof *s->values);
        }
        int32_t best = own;
        bool none = samp_shape(s, r) && samp_argmax(r->logits, s->vocab, &best);
        r->token = none ? own : samp_draw(s, r->logits, r->params, st->position, best);
        if (want)
            r->logprob = (float)((double)s->values[r->token] - log_z);
    }
    return TURBO_OK;
}

static void accept(const void *p, void *state, const turbo_sample_params *par, int32_t token)
{
    (void)par;
    samp_accept(p, state, token);
}

static const turbo_sampler_vtbl vtbl = {
    .size = sizeof vtbl,
    .id = "std",
    .open = open_samp,
    .close = close_samp,
    .state_bytes = state_bytes,
    .begin = begin,
    .sample = sample,
    .accept = accept,
};

static const turbo_sampler_vtbl *const samplers[] = {&vtbl, NULL};

static const turbo_plugin plugin = {
    .magic = TURBO_PLUGIN_MAGIC,
    .abi_major = TURBO_ABI_MAJOR,
    .abi_minor = TURBO_ABI_MINOR,
    .size = sizeof plugin,
    .id = "samp-std",
    .version = "1.0",
    .license = "Apache-2.0",
    .build = "gcc " __VERSION__,
    .samplers = samplers,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin;
}
