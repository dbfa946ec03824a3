/* plugins/samp-lua/plugin.c: the sampler "lua" and the border. It gives what "std" gives where there is
 * no program. See program.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

#define LN2 0.69314718055994530942

static void close_samp(void *p)
{
    lua_samp *s = p;
    if (!s)
        return;
    samp_close(s->std);
    free(s->row);
    free(s->mark);
    free(s);
}

static turbo_status open_samp(const turbo_host *h, int32_t vocab, void **out, turbo_err *err)
{
    (void)h;
    lua_samp *s = calloc(1, sizeof *s);
    turbo_status st = s ? samp_open(vocab, &s->std, err) : TURBO_ENOMEM;
    if (!st) {
        s->row = calloc((size_t)vocab, sizeof *s->row);
        s->mark = calloc((size_t)vocab, sizeof *s->mark);
        st = s->row && s->mark ? TURBO_OK : TURBO_ENOMEM;
    }
    if (st == TURBO_ENOMEM)
        samp_fail(err, st, "no memory for a sampler");
    if (st)
        close_samp(s);
    else
        *out = s;
    return st;
}

/* Bytes before the standard state; a multiple of 8. */
static size_t head_bytes(int32_t max_tokens)
{
    return (sizeof(lua_state) + (size_t)max_tokens * sizeof(int32_t) + 7) / 8 * 8;
}

samp_state *lua_std_state(const lua_state *st)
{
    return (samp_state *)(void *)((char *)(uintptr_t)st + head_bytes(st->room));
}

static uint64_t state_bytes(const void *p, int32_t max_tokens)
{
    const lua_samp *s = p;
    int32_t room = max_tokens < 1 ? 1 : max_tokens;
    return head_bytes(room) + samp_state_bytes(s->std, max_tokens);
}

static turbo_status begin(const void *p, void *state, int32_t max_tokens,
                          const turbo_sample_params *par, const int32_t *prompt, int32_t n_prompt,
                          turbo_err *err)
{
    const lua_samp *s = p;
    lua_state *st = state;
    const char *wrong = program_check(par, s->std->vocab);
    if (wrong)
        return samp_fail(err, TURBO_EINVAL, wrong);
    st->room = max_tokens < 1 ? 1 : max_tokens;
    st->mirostat = -1;
    turbo_status status =
        samp_begin(s->std, lua_std_state(st), max_tokens, par, prompt, n_prompt, err);
    if (status)
        return status;
    if (n_prompt)
        memcpy(st->history, prompt, (size_t)n_prompt * sizeof *prompt);
    st->n = st->n_prompt = n_prompt;
    return TURBO_OK;
}

/* What of temperature and filters the program has not done. */
static turbo_sample_params rest_of(const turbo_sample_params *p)
{
    turbo_sample_params rest = *p;
    if (program_has(p, TURBO_STEP_PENALIZE))
        rest.repetition_penalty = 1, rest.presence_penalty = rest.frequency_penalty = 0;
    if (program_has(p, TURBO_STEP_TEMPERATURE) || program_has(p, TURBO_STEP_FORCE))
        rest.temperature = 1;
    if (program_has(p, TURBO_STEP_TOP_K))
        rest.top_k = 0;
    if (program_has(p, TURBO_STEP_TOP_P))
        rest.top_p = 1;
    if (program_has(p, TURBO_STEP_MIN_P))
        rest.min_p = 0;
    return rest;
}

/* Moves mu by how surprising the drawn token was, in bits, to the step (arXiv 2007.14966, equation 9). */
static void learn(lua_state *st, const turbo_sample_params *p, double log_weight)
{
    const turbo_sample_step *s = &p->program[st->mirostat];
    double surprise = (st->z - log_weight) / LN2;
    st->mu -= (double)s->b * (surprise - (double)s->a);
    if (st->mu < 1e-6)
        st->mu = 1e-6; /* 0 means "not begun" */
}

static void sample_row(lua_samp *s, turbo_sample_row *r)
{
    lua_state *st = r->state;
    samp_state *std = lua_std_state(st);
    turbo_sample_params rest = rest_of(r->params);
    double log_z = 0;
    int32_t own, best;
    r->n_top = 0;
    r->status = samp_argmax(r->logits, s->std->vocab, &own);
    if (r->status)
        return;
    bool want = r->params->n_logprobs >= 0;
    if (want) { /* of whichever id is drawn, the untouched logit is needed afterwards */
        samp_logprobs(s->std, r, r->logits[own], &log_z);
        memcpy(s->std->values, r->logits, (size_t)s->std->vocab * sizeof *s->std->values);
    }
    turbo_sample_row shaped = *r;
    shaped.params = &rest;
    shaped.state = std;
    samp_shape(s->std, &shaped);
    program_row row = {
        .s = s, .st = st, .l = r->logits, .seed = r->params->seed, .position = std->position};
    st->mirostat = -1;
    turbo_status status = program_run(&row, r->params);
    if (samp_argmax(r->logits, s->std->vocab, &best)) {
        if (r->params->n_program) {
            r->status = TURBO_EINVAL;
            return;
        }
        status = TURBO_OK;
        r->token = own;
    } else if (!status) {
        r->token = samp_draw(s->std, r->logits, &rest, std->position, best);
    }
    r->status = status;
    if (!status && st->mirostat >= 0)
        learn(st, r->params, (double)r->logits[r->token]);
    if (!status && want)
        r->logprob = (float)((double)s->std->values[r->token] - log_z);
}

static turbo_status sample(void *p, turbo_sample_row *rows, int32_t n, turbo_err *err)
{
    (void)err;
    for (int32_t i = 0; i < n; i++)
        sample_row(p, &rows[i]);
    return TURBO_OK;
}

static void accept(const void *p, void *state, const turbo_sample_params *par, int32_t token)
{
    const lua_samp *s = p;
    lua_state *st = state;
    (void)par;
    samp_accept(s->std, lua_std_state(st), token);
    if (st->n < st->room && token >= 0 && token < s->std->vocab)
        st->history[st->n++] = token;
}

static const turbo_sampler_vtbl vtbl = {
    .size = sizeof vtbl,
    .id = "lua",
    .open = open_samp,
    .close = close_samp,
    .state_bytes = state_bytes,
    .begin = begin,
    .sample = sample,
    .accept = accept,
    .programs = 1,
};

static const turbo_sampler_vtbl *const samplers[] = {&vtbl, NULL};

static const turbo_plugin plugin = {
    .magic = TURBO_PLUGIN_MAGIC,
    .abi_major = TURBO_ABI_MAJOR,
    .abi_minor = TURBO_ABI_MINOR,
    .size = sizeof plugin,
    .id = "samp-lua",
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
