/* plugins/example/mirostat.c: the example plugin, a sampler that steers surprise.
 *
 * Mirostat 2.0 (Basu et al., arXiv 2007.14966, algorithm 2): tokens whose surprise -log2 p exceeds
 * a running limit mu are dropped, one of the rest is drawn, and mu moves by ETA times the
 * difference between the drawn token's surprise and the target TAU. Text neither bores nor rambles,
 * without a top_k or top_p to tune. Built outside the tree against turbo/plugin.h alone, as any
 * plugin is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <turbo/plugin.h>

#define TAU 5.0 /* bits; the paper's value */
#define ETA 0.1 /* learning rate; the paper's value */

typedef struct sampler {
    int32_t vocab; /* V */
    double *p; /* [V] scratch: probabilities of the row at hand */
} sampler;

/* Of one sequence. mu is kept as its distance from the start 2*TAU, so that zeroed memory is right.
 */
typedef struct state {
    uint64_t position; /* tokens accepted */
    double mu_moved;
    double surprise; /* bits of the token that was drawn last */
} state;

static turbo_status fail(turbo_err *err, turbo_status status, const char *text)
{
    if (err)
        snprintf(err->text, sizeof err->text, "mirostat: %s", text);
    return status;
}

static void close_sampler(void *p)
{
    sampler *s = p;
    if (s)
        free(s->p);
    free(s);
}

static turbo_status open_sampler(const turbo_host *h, int32_t vocab, void **out, turbo_err *err)
{
    (void)h;
    sampler *s = calloc(1, sizeof *s);
    if (s)
        s->p = calloc((size_t)vocab, sizeof *s->p);
    if (!s || !s->p) {
        close_sampler(s);
        return fail(err, TURBO_ENOMEM, "no memory for a sampler");
    }
    s->vocab = vocab;
    *out = s;
    return TURBO_OK;
}

static uint64_t state_bytes(const void *p, int32_t max_tokens)
{
    (void)p;
    (void)max_tokens;
    return sizeof(state);
}

static turbo_status begin(const void *p, void *st, int32_t max_tokens,
                          const turbo_sample_params *par, const int32_t *prompt, int32_t n_prompt,
                          turbo_err *err)
{
    (void)st;
    (void)max_tokens;
    (void)prompt;
    (void)n_prompt;
    const sampler *s = p;
    if (par->top_p < 1 || par->top_k > 0 || par->min_p > 0)
        return fail(err, TURBO_EUNSUPPORTED,
                    "it chooses its own cut; leave out top_p, top_k and min_p");
    if (par->repetition_penalty < 1 || par->repetition_penalty > 1 || par->presence_penalty < 0 ||
        par->presence_penalty > 0 || par->frequency_penalty < 0 || par->frequency_penalty > 0)
        return fail(err, TURBO_EUNSUPPORTED, "penalties are not supported");
    if (par->n_bad || par->min_tokens || par->n_logprobs >= 0)
        return fail(err, TURBO_EUNSUPPORTED,
                    "bad words, min_tokens and logprobs are not supported");
    for (int32_t i = 0; i < par->n_allowed; i++)
        if (par->allowed[i] < 0 || par->allowed[i] >= s->vocab)
            return fail(err, TURBO_EINVAL, "an allowed id is outside the vocabulary");
    for (int32_t i = 0; i < par->n_bias; i++)
        if (par->bias[i].id < 0 || par->bias[i].id >= s->vocab)
            return fail(err, TURBO_EINVAL, "a biased id is outside the vocabulary");
    return TURBO_OK;
}

/* Uniform in [0,1), a function of seed and position alone (SplitMix64's finaliser, twice). */
static double uniform(uint64_t seed, uint64_t position)
{
    uint64_t x = seed;
    for (int i = 0; i < 2; i++) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        x ^= x >> 31;
        x ^= i ? 0 : position;
    }
    return (double)(x >> 11) * 0x1p-53;
}

/* Allowed ids and biases, in place; then the id of the largest logit, -1 when none is finite or one
 * is NaN. logits [V] f32 */
static int32_t prepare(const sampler *s, const turbo_sample_params *par, double *z,
                       const float *logits)
{
    int32_t best = -1;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (isnan(logits[i]) || logits[i] > 3e38f)
            return -1;
        z[i] = par->n_allowed ? -HUGE_VAL : (double)logits[i];
    }
    for (int32_t i = 0; i < par->n_allowed; i++)
        z[par->allowed[i]] = (double)logits[par->allowed[i]];
    for (int32_t i = 0; i < par->n_bias; i++)
        z[par->bias[i].id] += (double)par->bias[i].bias;
    for (int32_t i = 0; i < s->vocab; i++)
        if (z[i] > -HUGE_VAL && (best < 0 || z[i] > z[best]))
            best = i;
    return best;
}

static void sample_row(const sampler *s, turbo_sample_row *r)
{
    state *st = r->state;
    const turbo_sample_params *par = r->params;
    double *p = s->p, total = 0, kept = 0;
    int32_t best = prepare(s, par, p, r->logits);
    r->status = best < 0 ? TURBO_EDATA : TURBO_OK;
    r->token = best;
    st->surprise = TAU;
    if (best < 0 || !(par->temperature > 0))
        return;
    double top = p[best];
    for (int32_t i = 0; i < s->vocab; i++)
        total += p[i] = exp((p[i] - top) / (double)par->temperature);
    /* -log2 p <= mu keeps a token; the most likely one is always kept. */
    double least = exp2(-(2 * TAU + st->mu_moved)) * total;
    for (int32_t i = 0; i < s->vocab; i++)
        if (p[i] >= least || i == best)
            kept += p[i];
    double u = uniform(par->seed, st->position) * kept;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (!(p[i] >= least || i == best) || !(p[i] > 0))
            continue;
        r->token = i;
        if ((u -= p[i]) < 0)
            break;
    }
    /* The paper measures the surprise in the distribution that was drawn from. */
    st->surprise = -log2(p[r->token] / kept);
}

static turbo_status sample(void *p, turbo_sample_row *rows, int32_t n, turbo_err *err)
{
    (void)err;
    for (int32_t i = 0; i < n; i++)
        sample_row(p, &rows[i]);
    return TURBO_OK;
}

static void accept(const void *p, void *state_of, const turbo_sample_params *par, int32_t token)
{
    state *st = state_of;
    (void)p;
    (void)par;
    (void)token;
    st->position++;
    st->mu_moved -= ETA * (st->surprise - TAU);
}

static const turbo_sampler_vtbl vtbl = {
    .size = sizeof vtbl,
    .id = "mirostat",
    .open = open_sampler,
    .close = close_sampler,
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
    .id = "mirostat",
    .version = "1.0.0",
    .license = "Apache-2.0",
    .build = "cc " __VERSION__,
    .samplers = samplers,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin;
}
