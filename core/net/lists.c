/* core/net/lists.c: stop strings, token ids, biases and banned words of a request. Workers.
 * Ids are proven against the vocabulary here, before a place in the queue is taken. */
#include "net/lists.h"

#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/json.h"

#define MAX_BAD_WORDS 64
#define MAX_BAD_BYTES 256
#define MAX_STOP_IDS 64

static int32_t vocab(const turbod_params_ctx *c)
{
    return turbod_engine_facts_of(c->x->svc->engine)->model.vocab;
}

static bool no_memory(turbod_params_ctx *c)
{
    turbod_reply_error(c->x, 503, "out_of_memory", NULL, "no memory for this request");
    return false;
}

static bool add_stop(turbod_params_ctx *c, const cJSON *v)
{
    turbod_params *p = c->p;
    size_t n = cJSON_IsString(v) ? strlen(v->valuestring) : 0;
    if (n < 1 || n > TURBOD_MAX_STOP_BYTES || p->n_stops == TURBOD_MAX_STOPS)
        return turbod_params_bad(c, "stop", v, "at most 16 strings of 1 to 256 bytes");
    memcpy(p->stops[p->n_stops++], v->valuestring, n + 1);
    return true;
}

bool turbod_read_stop(turbod_params_ctx *c, const turbod_field *f, const cJSON *v)
{
    (void)f;
    if (!turbod_engine_facts_of(c->x->svc->engine)->tok_vtbl) {
        turbod_reply_error(c->x, 400, "unsupported_value", "stop",
                           "this model has no tokenizer; use stop_token_ids");
        return false;
    }
    if (!cJSON_IsArray(v))
        return add_stop(c, v);
    for (const cJSON *s = v->child; s; s = s->next)
        if (!add_stop(c, s))
            return false;
    return true;
}

/* A list of ids of the vocabulary. *ids is the caller's. */
static bool read_ids(turbod_params_ctx *c, const char *name, const cJSON *v, int most,
                     int32_t **ids, int32_t *n)
{
    int count = 0;
    if (!cJSON_IsArray(v) || !v->child)
        return turbod_params_bad(c, name, v, "a list of token ids");
    for (const cJSON *e = v->child; e; e = e->next)
        count++;
    if (count > most) {
        turbod_reply_error(c->x, 400, "invalid_value", name, "%s has %d ids; at most %d are taken",
                           name, count, most);
        return false;
    }
    int32_t *list = calloc((size_t)count, sizeof *list);
    if (!list)
        return no_memory(c);
    *ids = list;
    *n = count;
    for (const cJSON *e = v->child; e; e = e->next, list++) {
        int64_t id;
        if (!turbod_json_int(e, 0, vocab(c) - 1, &id)) {
            turbod_reply_error(c->x, 400, "invalid_token", name,
                               "%s holds %s; token ids are 0 to %d", name, turbod_json_kind(e),
                               vocab(c) - 1);
            return false;
        }
        *list = (int32_t)id;
    }
    return true;
}

bool turbod_read_allowed(turbod_params_ctx *c, const turbod_field *f, const cJSON *v)
{
    (void)f;
    return read_ids(c, "allowed_token_ids", v, TURBOD_MAX_IDS, &c->p->allowed, &c->p->s.n_allowed);
}

bool turbod_read_stop_ids(turbod_params_ctx *c, const turbod_field *f, const cJSON *v)
{
    (void)f;
    if (cJSON_IsArray(v) && !v->child)
        return true;
    return read_ids(c, "stop_token_ids", v, MAX_STOP_IDS, &c->p->stop_ids, &c->p->n_user_stop_ids);
}

/* {"50256": -100}: keys are ids in plain decimal. */
bool turbod_read_bias(turbod_params_ctx *c, const turbod_field *f, const cJSON *v)
{
    int n = 0;
    (void)f;
    if (!cJSON_IsObject(v))
        return turbod_params_bad(c, "logit_bias", v, "an object of token id to number");
    for (const cJSON *e = v->child; e; e = e->next)
        n++;
    if (n > TURBOD_MAX_BIAS) {
        turbod_reply_error(c->x, 400, "invalid_value", "logit_bias",
                           "logit_bias has %d entries; at most %d are taken", n, TURBOD_MAX_BIAS);
        return false;
    }
    if (!n)
        return true;
    if (!(c->p->bias = calloc((size_t)n, sizeof *c->p->bias)))
        return no_memory(c);
    for (const cJSON *e = v->child; e; e = e->next) {
        size_t digits = strspn(e->string, "0123456789");
        int64_t id = 0;
        double d;
        for (size_t i = 0; i < digits && i < 10; i++)
            id = id * 10 + (e->string[i] - '0');
        if (!digits || digits > 10 || e->string[digits] || id >= vocab(c)) {
            turbod_reply_error(c->x, 400, "invalid_token", "logit_bias",
                               "a key of logit_bias is no token id; ids are 0 to %d", vocab(c) - 1);
            return false;
        }
        if (!turbod_json_num(e, -100, 100, &d))
            return turbod_params_bad(c, "logit_bias", e, "numbers from -100 to 100");
        c->p->bias[c->p->s.n_bias++] = (turbo_logit_bias){(int32_t)id, (float)d};
    }
    return true;
}

/* A word has two spellings in ids: with a space in front and without. Both are banned. */
static bool add_word(turbod_params_ctx *c, const cJSON *v, size_t *used, size_t cap)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(c->x->svc->engine);
    turbod_params *p = c->p;
    char text[MAX_BAD_BYTES + 2] = " ";
    size_t len = cJSON_IsString(v) ? strlen(v->valuestring) : 0;
    if (len < 1 || len > MAX_BAD_BYTES)
        return turbod_params_bad(c, "bad_words", v, "strings of 1 to 256 bytes");
    memcpy(text + 1, v->valuestring, len);
    for (size_t bare = 0; bare < 2; bare++) {
        turbo_err err = {{0}};
        uint64_t n = 0;
        turbo_status st = f->tok_vtbl->encode(f->tok, text + bare, len + 1 - bare, 0,
                                              p->bad_ids + *used, cap - *used, &n, &err);
        if (st) {
            turbod_reply_status(c->x, st, "bad_words", &err);
            return false;
        }
        if (!n)
            continue;
        p->bad_len[p->s.n_bad++] = (int32_t)n;
        *used += (size_t)n;
    }
    return true;
}

bool turbod_read_bad_words(turbod_params_ctx *c, const turbod_field *f, const cJSON *v)
{
    /* a byte makes at most one id, plus one for the space in front; two spellings a word */
    const size_t cap = (size_t)MAX_BAD_WORDS * 2 * (MAX_BAD_BYTES + 2);
    size_t used = 0;
    int n = 0;
    (void)f;
    if (!cJSON_IsArray(v))
        return turbod_params_bad(c, "bad_words", v, "a list of strings");
    if (!v->child)
        return true;
    if (!turbod_engine_facts_of(c->x->svc->engine)->tok_vtbl) {
        turbod_reply_error(c->x, 400, "unsupported_value", "bad_words",
                           "this model has no tokenizer; use logit_bias");
        return false;
    }
    c->p->bad_ids = calloc(cap, sizeof *c->p->bad_ids);
    c->p->bad_len = calloc((size_t)MAX_BAD_WORDS * 2, sizeof *c->p->bad_len);
    if (!c->p->bad_ids || !c->p->bad_len)
        return no_memory(c);
    for (const cJSON *e = v->child; e; e = e->next) {
        if (++n > MAX_BAD_WORDS)
            return turbod_params_bad(c, "bad_words", v, "at most 64 words");
        if (!add_word(c, e, &used, cap))
            return false;
    }
    return true;
}

bool turbod_lists_settle(turbod_params_ctx *c, int kind)
{
    const turbod_service *svc = c->x->svc;
    turbod_params *p = c->p;
    int32_t n_chat = kind != FOR_COMPLETION && !p->ignore_eos ? svc->n_stop_ids : 0;
    p->n_stop_ids = p->n_user_stop_ids + n_chat;
    if (n_chat) {
        int32_t *all = realloc(p->stop_ids, (size_t)p->n_stop_ids * sizeof *all);
        if (!all)
            return no_memory(c);
        memcpy(all + p->n_user_stop_ids, svc->stop_ids, (size_t)n_chat * sizeof *all);
        p->stop_ids = all;
    }
    p->s.bias = p->bias;
    p->s.allowed = p->allowed;
    p->s.bad_ids = p->bad_ids;
    p->s.bad_len = p->bad_len;
    return true;
}
