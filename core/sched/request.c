/* core/sched/request.c: making, checking and freeing requests. Any thread. */
#include "sched/request.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/engine.h"
#include "engine/media.h"
#include "sched/queue.h"
#include "sched/steer.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/log.h"

int64_t turbod_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

void turbod_sample_defaults(turbo_sample_params *p)
{
    *p = (turbo_sample_params){
        .size = sizeof *p,
        .temperature = 1.0f,
        .top_p = 1.0f,
        .repetition_penalty = 1.0f,
        .n_logprobs = -1,
    };
}

void turbod_request_ref(turbod_request *r)
{
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
}

void turbod_request_release(turbod_request *r)
{
    if (!r || atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
        return;
    turbod_media_give(r->media, r->seen, r->n_seen);
    free(r->seen);
    free(r->tokens); /* the KV table was given back by the engine when the request ended */
    free(r->keys);
    free(r->slots);
    free(r->param_arrays);
    free(r->sampler_state);
    if (r->steer)
        r->steer->free(r->steer);
    turbod_detok_free(r->detok);
    turbod_stop_free(&r->stop);
    free(r);
}

void turbod_request_cancel(turbod_request *r)
{
    /* The flag alone decides; the poke only shortens an idle engine's nap. The inbox outlives every
     * reference, because an engine is closed after its requests were released. */
    if (!atomic_exchange_explicit(&r->cancelled, true, memory_order_acq_rel) && r->inbox)
        turbod_inbox_poke(r->inbox);
}

static turbo_status check_ids(const int32_t *ids, int32_t n, int32_t vocab, const char *what,
                              turbo_err *err)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return turbod_err(err, TURBO_EINVAL, "%s: token id %d is not in 0..%d", what, ids[i],
                              vocab - 1);
    return TURBO_OK;
}

static turbo_status check_scalars(const turbo_sample_params *p, turbo_err *err)
{
    const struct {
        const char *name;
        double v, lo, hi;
    } rows[] = {
        {"temperature", (double)p->temperature, 0, 2},
        {"top_p", (double)p->top_p, 1e-12, 1},
        {"min_p", (double)p->min_p, 0, 1},
        {"top_k", p->top_k, 0, INT32_MAX},
        {"repetition_penalty", (double)p->repetition_penalty, 1e-6, 10},
        {"presence_penalty", (double)p->presence_penalty, -2, 2},
        {"frequency_penalty", (double)p->frequency_penalty, -2, 2},
        {"min_tokens", p->min_tokens, 0, INT32_MAX},
        {"logprobs", p->n_logprobs, -1, 20},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (!turbod_d_in(rows[i].v, rows[i].lo, rows[i].hi))
            return turbod_err(err, TURBO_EINVAL, "%s is %g; give %g to %g", rows[i].name, rows[i].v,
                              rows[i].lo, rows[i].hi);
    return TURBO_OK;
}

static turbo_status check(const turbod_request_spec *s, const turbod_request_limits *lim,
                          turbo_err *err)
{
    turbo_status st = check_scalars(&s->params, err);
    if (!st)
        st = check_ids(s->prompt, s->n_prompt, lim->vocab, "prompt", err);
    if (!st)
        st = check_ids(s->stop_ids, s->n_stop_ids, lim->vocab, "stop_token_ids", err);
    if (!st)
        st =
            check_ids(s->params.allowed, s->params.n_allowed, lim->vocab, "allowed_token_ids", err);
    int64_t n_bad_ids = 0;
    for (int32_t i = 0; !st && i < s->params.n_bad; i++)
        n_bad_ids += s->params.bad_len[i];
    if (!st)
        st = check_ids(s->params.bad_ids, (int32_t)n_bad_ids, lim->vocab, "bad_words", err);
    for (int32_t i = 0; !st && i < s->params.n_bias; i++) {
        st = check_ids(&s->params.bias[i].id, 1, lim->vocab, "logit_bias", err);
        if (!st && !turbod_d_in((double)s->params.bias[i].bias, -100, 100))
            st = turbod_err(err, TURBO_EINVAL, "logit_bias: values must lie in -100..100");
    }
    if (st)
        return st;
    if (s->n_prompt < 1)
        return turbod_err(err, TURBO_EINVAL, "the prompt is empty; give at least one token");
    if (s->max_tokens < 1)
        return turbod_err(err, TURBO_EINVAL, "max_tokens is %d; give at least 1", s->max_tokens);
    int32_t most = lim->session_len < lim->pool_tokens ? lim->session_len : lim->pool_tokens;
    if (s->n_prompt > most || s->max_tokens > most - s->n_prompt)
        return turbod_err(err, TURBO_ELIMIT,
                          "prompt of %d tokens and max_tokens %d exceed the limit of %d tokens; "
                          "shorten the prompt or lower max_tokens",
                          s->n_prompt, s->max_tokens, most);
    if (s->priority < -TURBOD_MAX_PRIORITY || s->priority > TURBOD_MAX_PRIORITY)
        return turbod_err(err, TURBO_EINVAL, "priority is %d; give -%d to %d", s->priority,
                          TURBOD_MAX_PRIORITY, TURBOD_MAX_PRIORITY);
    if (s->cache_salt && strlen(s->cache_salt) > TURBOD_MAX_SALT)
        return turbod_err(err, TURBO_EINVAL, "cache_salt has more than %d bytes", TURBOD_MAX_SALT);
    if (s->n_stops < 0 || s->n_stops > TURBOD_MAX_STOPS)
        return turbod_err(err, TURBO_EINVAL, "at most %d stop strings", TURBOD_MAX_STOPS);
    for (int32_t i = 0; i < s->n_stops; i++) {
        size_t l = strlen(s->stops[i]);
        if (l < 1 || l > TURBOD_MAX_STOP_BYTES)
            return turbod_err(err, TURBO_EINVAL, "stop strings must have 1 to %d bytes",
                              TURBOD_MAX_STOP_BYTES);
    }
    return TURBO_OK;
}

/* Copies the arrays of params, and eos + stop ids, into one block that the request owns. */
static bool copy_params(turbod_request *r, const turbod_request_spec *s,
                        const turbod_request_limits *lim)
{
    const turbo_sample_params *p = &s->params;
    size_t n_eos = s->ignore_eos ? 0 : (size_t)lim->n_eos, n_bad = 0;
    for (int32_t i = 0; i < p->n_bad; i++)
        n_bad += (size_t)p->bad_len[i];
    size_t n_ids = n_eos + (size_t)s->n_stop_ids + n_bad + (size_t)p->n_bad + (size_t)p->n_allowed;
    size_t bytes, steps = (size_t)p->n_program * sizeof *p->program;
    for (int32_t i = 0; i < p->n_program; i++)
        n_ids += (size_t)p->program[i].n_ids * (p->program[i].values ? 2 : 1);
    if (!turbod_mul((size_t)p->n_bias, sizeof *p->bias, &bytes) ||
        !turbod_add(bytes, steps, &bytes) ||
        !turbod_add(bytes, n_ids * sizeof(int32_t) + 1, &bytes))
        return false;
    char *block = malloc(bytes);
    if (!block)
        return false;
    r->param_arrays = block;
    turbo_sample_step *program = (turbo_sample_step *)(void *)block;
    r->params.program = program;
    block += steps;
    turbo_logit_bias *bias = (turbo_logit_bias *)(void *)block;
    int32_t *ids = (int32_t *)(void *)(block + (size_t)p->n_bias * sizeof *p->bias);
#define COPY(dst, src, n) ((n) ? memcpy(dst, src, (size_t)(n) * sizeof *(dst)) : (void *)0)
    COPY(bias, p->bias, p->n_bias);
    r->params.bias = bias;
    r->params.stop_ids = ids;
    r->params.n_stop = (int32_t)n_eos + s->n_stop_ids;
    COPY(ids, lim->eos, n_eos);
    ids += n_eos;
    COPY(ids, s->stop_ids, s->n_stop_ids);
    ids += s->n_stop_ids;
    r->params.bad_ids = ids;
    COPY(ids, p->bad_ids, n_bad);
    ids += n_bad;
    r->params.bad_len = ids;
    COPY(ids, p->bad_len, p->n_bad);
    ids += p->n_bad;
    r->params.allowed = ids;
    COPY(ids, p->allowed, p->n_allowed);
    ids += p->n_allowed;
    COPY(program, p->program, p->n_program);
    for (int32_t i = 0; i < p->n_program; i++) {
        const turbo_sample_step *from = &p->program[i];
        COPY(ids, from->ids, from->n_ids);
        program[i].ids = ids;
        ids += from->n_ids;
        if (!from->values)
            continue;
        float *values = (float *)(void *)ids;
        COPY(values, from->values, from->n_ids);
        program[i].values = values;
        ids += from->n_ids;
    }
#undef COPY
    return true;
}

turbo_status turbod_request_new(const turbod_request_spec *spec, const turbod_request_limits *lim,
                                turbod_request **out, turbo_err *err)
{
    turbo_status st = check(spec, lim, err);
    turbod_request *r = st ? NULL : calloc(1, sizeof *r);
    if (!r) {
        if (spec->steer)
            spec->steer->free(spec->steer);
        return st ? st : turbod_err(err, TURBO_ENOMEM, "no memory for a request");
    }
    atomic_init(&r->refs, 1);
    r->steer = spec->steer;
    r->n_prompt = spec->n_prompt;
    r->max_tokens = spec->max_tokens;
    r->params = spec->params;
    r->include_stop = spec->include_stop;
    r->priority = spec->priority;
    r->on_event = spec->on_event;
    r->ctx = spec->ctx;
    r->n_tokens = spec->n_prompt;
    r->rope_len = spec->n_prompt;
    r->place = -1;
    r->t_submit = turbod_now();
    if (spec->queue_timeout_ms > 0)
        r->queue_deadline = r->t_submit + spec->queue_timeout_ms * 1000000;
    if (spec->timeout_ms > 0)
        r->deadline = r->t_submit + spec->timeout_ms * 1000000;
    if (spec->id)
        strncpy(r->id, spec->id, sizeof r->id - 1);
    size_t n = (size_t)spec->n_prompt + (size_t)spec->max_tokens;
    r->tokens = calloc(n, sizeof *r->tokens);
    if (!r->tokens || !copy_params(r, spec, lim) ||
        !turbod_stop_init(&r->stop, spec->stops, spec->n_stops)) {
        turbod_request_release(r);
        return turbod_err(err, TURBO_ENOMEM, "no memory for a request of %zu tokens", n);
    }
    memcpy(r->tokens, spec->prompt, (size_t)spec->n_prompt * sizeof *r->tokens);
    *out = r;
    return TURBO_OK;
}

bool turbod_request_move(turbod_request *r, turbod_phase to)
{
    static const bool allowed[TURBOD_ENDED + 1][TURBOD_ENDED + 1] = {
        [TURBOD_ARRIVING] = {[TURBOD_WAITING] = true},
        [TURBOD_WAITING] = {[TURBOD_RUNNING] = true, [TURBOD_ENDED] = true},
        [TURBOD_RUNNING] = {[TURBOD_WAITING] = true, [TURBOD_ENDED] = true},
    };
    if (allowed[r->phase][to]) {
        r->phase = to;
        return true;
    }
    turbod_log(TURBO_LOG_ERROR, "request %s: a move from phase %d to %d is a defect", r->id,
               r->phase, to);
#ifdef TURBOD_DEBUG
    __builtin_trap();
#endif
    return false;
}

bool turbod_request_started(const turbod_request *r)
{
    return atomic_load_explicit(&r->started, memory_order_acquire);
}
