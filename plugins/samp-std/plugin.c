/* plugins/samp-std/plugin.c: the sampler "std": state of a sequence and the border. See samp.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "samp.h"

static turbo_status fail(turbo_err *err, turbo_status s, const char *text)
{
    snprintf(err->text, sizeof err->text, "%s", text);
    return s;
}

static void close_samp(void *p)
{
    samp *s = p;
    if (!s)
        return;
    free(s->ids);
    free(s->prob);
    free(s->values);
    free(s);
}

static turbo_status open_samp(const turbo_host *h, int32_t vocab, void **out, turbo_err *err)
{
    (void)h;
    if (vocab < 1 || vocab > 1 << 24)
        return fail(err, TURBO_EINVAL, "the vocabulary must have 1 to 2^24 tokens");
    samp *s = calloc(1, sizeof *s);
    if (s) {
        s->vocab = vocab;
        s->ids = calloc((size_t)vocab, sizeof *s->ids);
        s->prob = calloc((size_t)vocab, sizeof *s->prob);
        s->values = calloc((size_t)vocab, sizeof *s->values);
    }
    if (!s || !s->ids || !s->prob || !s->values) {
        close_samp(s);
        return fail(err, TURBO_ENOMEM, "no memory for a sampler");
    }
    *out = s;
    return TURBO_OK;
}

/* Slots for every token that can come, at most half full, and never more than the vocabulary needs. */
static uint32_t table_size(const samp *s, int32_t max_tokens)
{
    uint32_t most = (uint32_t)(max_tokens < s->vocab ? max_tokens : s->vocab), n = 16;
    while (n < 2 * most)
        n *= 2;
    return n;
}

static uint64_t state_bytes(const void *p, int32_t max_tokens)
{
    return sizeof(samp_state) + (uint64_t)table_size(p, max_tokens) * sizeof(seen);
}

static seen *entry(samp_state *st, int32_t id)
{
    uint32_t i = ((uint32_t)id * 2654435761u) & st->mask;
    while (st->table[i].id && st->table[i].id != id + 1)
        i = (i + 1) & st->mask;
    st->table[i].id = id + 1;
    return &st->table[i];
}

static void remember(samp_state *st, int32_t id)
{
    st->recent[st->n_recent % SAMP_RECENT] = id;
    st->n_recent++;
}

static bool differs(float a, float b)
{
    return a < b || a > b;
}

static turbo_status begin(const void *p, void *state, int32_t max_tokens,
                          const turbo_sample_params *par, const int32_t *prompt, int32_t n_prompt,
                          turbo_err *err)
{
    samp_state *st = state;
    const samp *s = p;
    for (int32_t i = 0; i < par->n_bad; i++)
        if (par->bad_len[i] < 1 || par->bad_len[i] > SAMP_RECENT)
            return fail(err, TURBO_ELIMIT, "a bad word must have 1 to 64 tokens");
    st->tracking = differs(par->repetition_penalty, 1) || differs(par->presence_penalty, 0) ||
                   differs(par->frequency_penalty, 0);
    st->mask = table_size(s, max_tokens) - 1;
    for (int32_t i = 0; i < n_prompt; i++) {
        remember(st, prompt[i]);
        /* Only the repetition penalty looks at the prompt. */
        if (st->tracking && differs(par->repetition_penalty, 1))
            (void)entry(st, prompt[i]);
    }
    return TURBO_OK;
}

static turbo_status sample(void *p, turbo_sample_row *rows, int32_t n, turbo_err *err)
{
    samp *s = p;
    (void)err;
    for (int32_t i = 0; i < n; i++) {
        turbo_sample_row *r = &rows[i];
        const samp_state *st = r->state;
        double log_z = 0;
        r->status = samp_logprobs(s, r, &log_z);
        if (r->status)
            continue;
        /* The untouched logit of whichever id is drawn is needed afterwards: keep a copy of all only
         * when logprobs are asked for. */
        bool want = r->params->n_logprobs >= 0;
        if (want)
            memcpy(s->values, r->logits, (size_t)s->vocab * sizeof *s->values);
        int32_t fallback = samp_argmax(r->logits, s->vocab);
        samp_shape(s, r);
        int32_t id = samp_draw(s, r->logits, r->params, st->position);
        r->token = id < 0 ? fallback : id; /* everything was banned: the model's own best */
        if (want)
            r->logprob = (float)((double)s->values[r->token] - log_z);
    }
    return TURBO_OK;
}

static void accept(const void *p, void *state, const turbo_sample_params *par, int32_t token)
{
    samp_state *st = state;
    (void)p;
    (void)par;
    st->position++;
    remember(st, token);
    if (st->tracking)
        entry(st, token)->output++;
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
