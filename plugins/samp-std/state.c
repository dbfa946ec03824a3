/* plugins/samp-std/state.c: a sampler's scratch memory, and the state of a sequence: where its draws
 * are and what tokens it has seen. Shared with samp-lua. Open and close on the main thread; begin on
 * any; the rest on the engine's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "samp.h"

turbo_status samp_fail(turbo_err *err, turbo_status s, const char *text)
{
    snprintf(err->text, sizeof err->text, "%s", text);
    return s;
}

void samp_close(samp *s)
{
    if (!s)
        return;
    free(s->ids);
    free(s->pool);
    free(s->prob);
    free(s->values);
    free(s);
}

turbo_status samp_open(int32_t vocab, samp **out, turbo_err *err)
{
    if (vocab < 1 || vocab > 1 << 24)
        return samp_fail(err, TURBO_EINVAL, "the vocabulary must have 1 to 2^24 tokens");
    samp *s = calloc(1, sizeof *s);
    if (s) {
        s->vocab = vocab;
        s->ids = calloc((size_t)vocab, sizeof *s->ids);
        s->pool = calloc((size_t)vocab, sizeof *s->pool);
        s->prob = calloc((size_t)vocab, sizeof *s->prob);
        s->values = calloc((size_t)vocab, sizeof *s->values);
    }
    if (!s || !s->ids || !s->pool || !s->prob || !s->values) {
        samp_close(s);
        return samp_fail(err, TURBO_ENOMEM, "no memory for a sampler");
    }
    *out = s;
    return TURBO_OK;
}

/* Tokens that a sequence can see: never more than the vocabulary has. */
static uint32_t room_for(const samp *s, int32_t max_tokens)
{
    int32_t most = max_tokens < s->vocab ? max_tokens : s->vocab;
    return most < 1 ? 1 : (uint32_t)most;
}

/* A power of two, at most half full. */
static uint32_t slots_for(uint32_t room)
{
    uint32_t n = 16;
    while (n < 2 * room)
        n *= 2;
    return n;
}

uint64_t samp_state_bytes(const samp *s, int32_t max_tokens)
{
    uint32_t room = room_for(s, max_tokens);
    return sizeof(samp_state) + (uint64_t)room * sizeof(seen) +
           (uint64_t)slots_for(room) * sizeof(uint32_t);
}

/* The entry of a token, made when it is new; NULL when a caller exceeds its max_tokens. */
static seen *entry(samp_state *st, int32_t id)
{
    uint32_t *slots = (uint32_t *)(void *)(st->list + st->room);
    uint32_t i = ((uint32_t)id * 2654435761u) & st->mask;
    for (; slots[i]; i = (i + 1) & st->mask)
        if (st->list[slots[i] - 1].id == id)
            return &st->list[slots[i] - 1];
    if (st->n_seen == st->room)
        return NULL;
    st->list[st->n_seen] = (seen){id, 0};
    slots[i] = ++st->n_seen;
    return &st->list[st->n_seen - 1];
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

static bool in_range(const samp *s, const int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->vocab)
            return false;
    return true;
}

/* Ids index the logits: what is out of range is refused before it can be written to. */
static turbo_status check(const samp *s, const turbo_sample_params *p, turbo_err *err)
{
    int64_t bad = 0;
    if (p->n_bias < 0 || p->n_stop < 0 || p->n_bad < 0 || p->n_allowed < 0 || p->n_logprobs > 20)
        return samp_fail(err, TURBO_EINVAL, "a number of sampling ids is out of range");
    for (int32_t i = 0; i < p->n_bad; i++) {
        if (p->bad_len[i] < 1 || p->bad_len[i] > SAMP_RECENT)
            return samp_fail(err, TURBO_ELIMIT, "a bad word must have 1 to 64 tokens");
        bad += p->bad_len[i];
    }
    for (int32_t i = 0; i < p->n_bias; i++)
        if (!in_range(s, &p->bias[i].id, 1))
            return samp_fail(err, TURBO_EINVAL, "logit_bias names an id beyond the vocabulary");
    if (!in_range(s, p->stop_ids, p->n_stop) || !in_range(s, p->bad_ids, bad) ||
        !in_range(s, p->allowed, p->n_allowed))
        return samp_fail(err, TURBO_EINVAL,
                         "stop, bad or allowed tokens hold an id beyond the vocabulary");
    return TURBO_OK;
}

turbo_status samp_begin(const samp *s, samp_state *st, int32_t max_tokens,
                        const turbo_sample_params *par, const int32_t *prompt, int32_t n_prompt,
                        turbo_err *err)
{
    turbo_status status = check(s, par, err);
    if (status)
        return status;
    if (n_prompt < 0 || n_prompt > max_tokens || !in_range(s, prompt, n_prompt))
        return samp_fail(err, TURBO_EINVAL,
                         "the prompt is longer than max_tokens or holds a wrong id");
    bool repetition = differs(par->repetition_penalty, 1);
    st->tracking =
        repetition || differs(par->presence_penalty, 0) || differs(par->frequency_penalty, 0);
    st->room = room_for(s, max_tokens);
    st->mask = slots_for(st->room) - 1;
    for (int32_t i = 0; i < n_prompt; i++) {
        remember(st, prompt[i]);
        if (repetition) /* the other penalties do not look at the prompt */
            (void)entry(st, prompt[i]);
    }
    return TURBO_OK;
}

void samp_accept(const samp *s, samp_state *st, int32_t token)
{
    st->position++;
    if (token < 0 || token >= s->vocab)
        return;
    remember(st, token);
    seen *e = st->tracking ? entry(st, token) : NULL;
    if (e)
        e->output++;
}
