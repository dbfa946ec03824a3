/* core/net/logprobs.c: log probabilities in the two forms clients know. Daemon thread, under
 * exchange.mu. The values are the model's own distribution, before any filter. */
#include <stdio.h>
#include <string.h>

#include "net/gen.h"
#include "util/utf8.h"

#define LOWEST (-9999.0) /* JSON has no infinity; clients know this number */

static const turbod_engine_facts *facts(const turbod_choice *c)
{
    return turbod_engine_facts_of(c->gen->x->svc->engine);
}

/* The bytes a token stands for; a control token's name. Empty without a tokenizer. */
static turbod_text token_bytes(const turbod_choice *c, int32_t id)
{
    const turbod_engine_facts *f = facts(c);
    const char *p = "";
    uint32_t n = 0;
    if (!f->tok_vtbl || id >= f->tok_info.n_vocab)
        return (turbod_text){"", 0};
    if (f->tok_vtbl->piece(f->tok, id, 0, &p, &n) || !n)
        if (f->tok_vtbl->name(f->tok, id, &p, &n))
            n = 0;
    return (turbod_text){p, n};
}

static turbod_record record(const turbod_choice *c, size_t i)
{
    turbod_record r;
    memcpy(&r, c->records.ptr + i * sizeof r, sizeof r);
    return r;
}

static turbo_logprob alternative(const turbod_choice *c, const turbod_record *r, int32_t i)
{
    turbo_logprob t;
    memcpy(&t, c->tops.ptr + (r->top + (size_t)i) * sizeof t, sizeof t);
    return t;
}

static double finite(float v)
{
    double d = (double)v;
    return d >= LOWEST && d <= 0 ? d : d > 0 ? 0 : LOWEST;
}

/* Is the sampled token among the alternatives that were asked for? */
static bool listed(const turbod_choice *c, const turbod_record *r)
{
    for (int32_t i = 0; i < r->n_top; i++)
        if (alternative(c, r, i).id == r->id)
            return true;
    return false;
}

/* ---- chat ---------------------------------------------------------------------------------------------- */

static void chat_token(turbod_buf *b, const turbod_choice *c, int32_t id, float logprob)
{
    turbod_text t = token_bytes(c, id);
    turbod_buf_str(b, "{\"token\":\"");
    turbod_buf_json(b, t.p, t.n);
    turbod_buf_printf(b, "\",\"logprob\":%.9g,\"bytes\":[", finite(logprob));
    for (size_t i = 0; i < t.n; i++)
        turbod_buf_printf(b, i ? ",%u" : "%u", (unsigned)(unsigned char)t.p[i]);
    turbod_buf_str(b, "]");
}

static void chat_logprobs(turbod_buf *b, turbod_choice *c, size_t from, size_t to)
{
    turbod_buf_str(b, "{\"content\":[");
    for (size_t i = from; i < to; i++) {
        turbod_record r = record(c, i);
        if (i > from)
            turbod_buf_str(b, ",");
        chat_token(b, c, r.id, r.logprob);
        turbod_buf_str(b, ",\"top_logprobs\":[");
        for (int32_t k = 0; k < r.n_top; k++) {
            turbo_logprob t = alternative(c, &r, k);
            if (k)
                turbod_buf_str(b, ",");
            chat_token(b, c, t.id, t.logprob);
            turbod_buf_str(b, "}");
        }
        if (r.n_top && !listed(c, &r)) {
            turbod_buf_str(b, ",");
            chat_token(b, c, r.id, r.logprob);
            turbod_buf_str(b, "}");
        }
        turbod_buf_str(b, "]}");
    }
    turbod_buf_str(b, "],\"refusal\":null}");
}

/* ---- completions ---------------------------------------------------------------------------------------- */

/* A token as a JSON string; bytes that are no text on their own as bytes:\xNN..., so that keys differ. */
static void legacy_token(turbod_buf *b, const turbod_choice *c, int32_t id)
{
    const turbod_engine_facts *f = facts(c);
    turbod_text t = token_bytes(c, id);
    bool byte = f->tok_vtbl && id < f->tok_info.n_vocab &&
                (f->tok_vtbl->attr(f->tok, id) & TURBO_TOKEN_BYTE);
    turbod_buf_str(b, "\"");
    if (!byte && turbod_utf8_valid(t.p, t.n)) {
        turbod_buf_json(b, t.p, t.n);
    } else {
        turbod_buf_str(b, "bytes:");
        for (size_t i = 0; i < t.n; i++)
            turbod_buf_printf(b, "\\\\x%02x", (unsigned)(unsigned char)t.p[i]);
    }
    turbod_buf_str(b, "\"");
}

static size_t count_chars(const char *p, size_t n)
{
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)p[i] & 0xC0) != 0x80;
    return chars;
}

/* Offsets count characters of the text with nothing held back; the detokeniser tells them again. */
static void legacy_offsets(turbod_buf *b, turbod_choice *c, size_t from, size_t to)
{
    const turbod_engine_facts *f = facts(c);
    if (!c->detok && f->tok_vtbl) {
        const turbod_prompt *p = &c->gen->prompts[c->prompt];
        c->detok = turbod_detok_new(f->tok_vtbl, f->tok, c->gen->params.keep_special);
        if (!c->detok)
            b->failed = true; /* rather no answer than wrong numbers */
        for (size_t i = 0; c->detok && i < p->n; i++)
            if (p->ids[i] < f->tok_info.n_vocab &&
                !(f->tok_vtbl->attr(f->tok, p->ids[i]) & TURBO_TOKEN_CONTROL)) {
                turbod_detok_continue(c->detok);
                break;
            }
    }
    for (size_t i = from; i < to; i++) {
        const char *text = "";
        size_t n = 0;
        turbod_buf_printf(b, i > from ? ",%zu" : "%zu", c->chars);
        if (c->detok)
            turbod_detok_push(c->detok, record(c, i).id, &text, &n);
        c->chars += count_chars(text, n);
    }
}

static void legacy_logprobs(turbod_buf *b, turbod_choice *c, size_t from, size_t to)
{
    turbod_buf_str(b, "{\"tokens\":[");
    for (size_t i = from; i < to; i++) {
        if (i > from)
            turbod_buf_str(b, ",");
        legacy_token(b, c, record(c, i).id);
    }
    turbod_buf_str(b, "],\"token_logprobs\":[");
    for (size_t i = from; i < to; i++)
        turbod_buf_printf(b, i > from ? ",%.9g" : "%.9g", finite(record(c, i).logprob));
    turbod_buf_str(b, "],\"top_logprobs\":[");
    for (size_t i = from; i < to; i++) {
        turbod_record r = record(c, i);
        turbod_buf_str(b, i > from ? ",{" : "{");
        bool any = false;
        for (int32_t k = 0; k < r.n_top; k++, any = true) {
            turbo_logprob t = alternative(c, &r, k);
            if (any)
                turbod_buf_str(b, ",");
            legacy_token(b, c, t.id);
            turbod_buf_printf(b, ":%.9g", finite(t.logprob));
        }
        if (!listed(c, &r)) {
            if (any)
                turbod_buf_str(b, ",");
            legacy_token(b, c, r.id);
            turbod_buf_printf(b, ":%.9g", finite(r.logprob));
        }
        turbod_buf_str(b, "}");
    }
    turbod_buf_str(b, "],\"text_offset\":[");
    legacy_offsets(b, c, from, to);
    turbod_buf_str(b, "]}");
}

void turbod_logprobs_json(turbod_buf *b, turbod_choice *c, size_t from, size_t to)
{
    if (c->gen->kind == FOR_CHAT)
        chat_logprobs(b, c, from, to);
    else
        legacy_logprobs(b, c, from, to);
}
