/* plugins/tok-bpe/decode.c: the decoder, run over every token once, at load: what a token decodes to
 * behind others and at the start of a text. A decoder that needs to see more than that (the last
 * token, or its neighbours) is refused by name. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

enum { D_REPLACE, D_BYTES, D_FUSE, D_STRIP, D_METASPACE, D_BYTE_LEVEL, D_BLANK };

typedef struct step {
    int32_t kind;
    const char *text, *with; /* REPLACE; STRIP, METASPACE: text is one character */
    uint32_t text_len, with_len;
    uint32_t start, stop; /* STRIP */
    bool keep_first; /* METASPACE with prepend_scheme never */
    bool fused; /* STRIP: of the whole text, a Fuse came before */
} step;

typedef struct decoder {
    step s[BPE_MAX_RULES];
    int n;
    bool fused;
} decoder;

/* ---- reading ------------------------------------------------------------------------------- */

static bool one_char(const bpe_json *j, const bpe_node *v, step *s)
{
    if (!v || v->type != BPE_STRING || !v->len)
        return false;
    s->text = bpe_json_text(j, v);
    s->text_len = v->len;
    return bpe_char_len((unsigned char)s->text[0]) == v->len;
}

static bool read_replace(const bpe_json *j, const bpe_node *v, step *s)
{
    const bpe_node *from = bpe_json_get(j, bpe_json_get(j, v, "pattern"), "String"),
                   *with = bpe_json_get(j, v, "content");
    if (!from || from->type != BPE_STRING || !from->len || !with || with->type != BPE_STRING)
        return false;
    s->text = bpe_json_text(j, from);
    s->text_len = from->len;
    s->with = bpe_json_text(j, with);
    s->with_len = with->len;
    return true;
}

static turbo_status read_step(decoder *d, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    const bpe_node *type = bpe_json_get(j, v, "type");
    step s = {0};
    bool ok = false;
    if (bpe_json_is(j, type, "Replace")) {
        s.kind = D_REPLACE;
        ok = !d->fused && read_replace(j, v, &s);
    } else if (bpe_json_is(j, type, "ByteFallback")) {
        s.kind = D_BYTES;
        ok = !d->fused;
    } else if (bpe_json_is(j, type, "Fuse")) {
        s.kind = D_FUSE;
        d->fused = ok = true;
    } else if (bpe_json_is(j, type, "Strip")) {
        s.kind = D_STRIP;
        s.fused = d->fused;
        ok = one_char(j, bpe_json_get(j, v, "content"), &s) &&
             bpe_json_uint(j, bpe_json_get(j, v, "start"), 1000, &s.start) &&
             bpe_json_uint(j, bpe_json_get(j, v, "stop"), 1000, &s.stop) &&
             (!d->fused || (s.start <= 1 && !s.stop));
    } else if (bpe_json_is(j, type, "Metaspace")) {
        bool prefix = true;
        s.kind = D_METASPACE;
        ok = !d->fused && one_char(j, bpe_json_get(j, v, "replacement"), &s) &&
             bpe_json_bool(j, v, "add_prefix_space", true, &prefix);
        const bpe_node *scheme = bpe_json_get(j, v, "prepend_scheme");
        s.keep_first = scheme ? bpe_json_is(j, scheme, "never") : !prefix;
    } else if (bpe_json_is(j, type, "ByteLevel")) {
        s.kind = D_BYTE_LEVEL;
        ok = !d->fused;
    }
    if (!ok)
        return bpe_bad_rule(err, j, "decoder", v);
    if (d->n == BPE_MAX_RULES)
        return bpe_fail(err, TURBO_ELIMIT, "tokenizer.json: decoder: more than %d steps",
                        BPE_MAX_RULES);
    d->s[d->n++] = s;
    return TURBO_OK;
}

/* ---- running ------------------------------------------------------------------------------- */

static bool replace(const step *s, const bpe_buf *in, bpe_buf *out)
{
    for (size_t i = 0; i < in->len;) {
        const char *hit = memmem(in->p + i, in->len - i, s->text, s->text_len);
        size_t n = hit ? (size_t)(hit - in->p) - i : in->len - i;
        if (!bpe_buf_add(out, in->p + i, n) || (hit && !bpe_buf_add(out, s->with, s->with_len)))
            return false;
        i += n + (hit ? s->text_len : 0);
    }
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* <0x41>: the byte, -1: it is no such token. */
static int byte_of(const char *p, size_t n)
{
    if (n != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>')
        return -1;
    int hi = hex_digit(p[3]), lo = hex_digit(p[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

static bool strip(const step *s, const bpe_buf *in, bpe_buf *out)
{
    size_t from = 0, to = in->len;
    for (uint32_t i = 0;
         i < s->start && to - from >= s->text_len && !memcmp(in->p + from, s->text, s->text_len);
         i++)
        from += s->text_len;
    for (uint32_t i = 0; i < s->stop && to - from >= s->text_len &&
                         !memcmp(in->p + to - s->text_len, s->text, s->text_len);
         i++)
        to -= s->text_len;
    return bpe_buf_add(out, in->p + from, to - from);
}

/* One step on one token. first: the token stands at the start of the text. */
static bool run(const step *s, bool first, const bpe_buf *in, bpe_buf *out, bool *byte)
{
    int value = byte_of(in->p, in->len);
    bool same = false;
    switch (s->kind) {
    case D_REPLACE: return replace(s, in, out);
    case D_BYTES:
        if (value >= 0) {
            *byte = true;
            return bpe_buf_add(out, &(char){(char)value}, 1);
        }
        same = true;
        break;
    case D_STRIP:
        if (s->fused && !first)
            same = true;
        else
            return strip(s, in, out);
        break;
    case D_METASPACE: {
        step r = *s;
        r.with = " ";
        r.with_len = first && !s->keep_first ? 0 : 1;
        return replace(&r, in, out);
    }
    case D_BYTE_LEVEL: {
        char bytes[BPE_MAX_PIECE];
        size_t n;
        if (in->len <= sizeof bytes && bpe_unalias(in->p, in->len, bytes, &n))
            return bpe_buf_add(out, bytes, n);
        same = true;
        break;
    }
    case D_BLANK:
        if (!first && !bpe_buf_add(out, " ", 1))
            return false;
        same = true;
        break;
    default: same = true; break;
    }
    return !same || bpe_buf_add(out, in->p, in->len);
}

static bool decode(bpe *b, const decoder *d, int32_t id, bool first, bpe_buf buf[2], int *which)
{
    bpe_token *t = &b->tokens[id];
    bool byte = false;
    *which = 0;
    buf[0].len = 0;
    if (!bpe_buf_add(&buf[0], b->arena + t->name, t->name_len))
        return false;
    for (int i = 0; i < d->n; i++) {
        buf[!*which].len = 0;
        if (!run(&d->s[i], first, &buf[*which], &buf[!*which], &byte))
            return false;
        *which = !*which;
    }
    if (byte)
        t->flags |= BPE_TOK_BYTE;
    return true;
}

/* Keeps n bytes, where they are already if the token's name or its other form has them. */
static bool keep_form(bpe *b, const bpe_token *t, const bpe_buf *form, uint32_t *at, uint32_t *len)
{
    *len = (uint32_t)form->len;
    *at = t->name;
    if (form->len == t->name_len && !memcmp(b->arena + t->name, form->p, form->len))
        return true;
    uint32_t skip = t->out_len - *len;
    if (t->out_len >= *len && !memcmp(b->arena + t->out + skip, form->p, form->len)) {
        *at = t->out + skip;
        return true;
    }
    *at = bpe_keep(b, form->p, form->len);
    return *at != UINT32_MAX;
}

static turbo_status decode_all(bpe *b, const decoder *d, turbo_err *err)
{
    bpe_buf buf[2] = {{0}};
    turbo_status st = TURBO_OK;
    for (int32_t i = 0; i < b->n && !st; i++) {
        int k;
        bpe_token form = b->tokens[i];
        form.out_len = 0;
        bool ok = decode(b, d, i, false, buf, &k) &&
                  keep_form(b, &form, &buf[k], &form.out, &form.out_len) &&
                  decode(b, d, i, true, buf, &k) &&
                  keep_form(b, &form, &buf[k], &form.first, &form.first_len);
        form.flags = b->tokens[i].flags;
        b->tokens[i] = form;
        if (!ok)
            st = bpe_no_memory(err);
        else if (form.out_len > BPE_MAX_PIECE)
            st = bpe_fail(err, TURBO_EDATA, "tokenizer.json: token %d decodes to %u bytes", i,
                          form.out_len);
    }
    free(buf[0].p);
    free(buf[1].p);
    return st;
}

turbo_status bpe_read_decoder(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    decoder d = {0};
    turbo_status st = TURBO_OK;
    if (!v) /* the reference joins tokens with blanks */
        d.s[d.n++].kind = D_BLANK;
    else if (!bpe_json_is(j, bpe_json_get(j, v, "type"), "Sequence"))
        st = read_step(&d, j, v, err);
    else
        for (const bpe_node *e = bpe_json_child(j, bpe_json_get(j, v, "decoders")); e && !st;
             e = bpe_json_next(j, e))
            st = read_step(&d, j, e, err);
    return st ? st : decode_all(b, &d, err);
}

turbo_status bpe_decode_bytes(bpe *b, turbo_err *err)
{
    decoder d = {.n = 1, .s = {{.kind = D_BYTE_LEVEL}}};
    return decode_all(b, &d, err);
}
