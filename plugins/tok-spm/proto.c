/* plugins/tok-spm/proto.c: reads tokenizer.model, a protobuf message of type ModelProto.
 * Field numbers are those of sentencepiece_model.proto. Every length is checked against what is
 * left of the message that holds it. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spm.h"

turbo_status spm_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    return s;
}

typedef struct cursor {
    const uint8_t *p, *end;
    bool bad;
} cursor;

typedef struct field {
    uint32_t number, wire;
    uint64_t value; /* wire 0, 1, 5 */
    cursor bytes; /* wire 2 */
} field;

static uint64_t varint(cursor *c)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (c->p == c->end)
            break;
        uint8_t b = *c->p++;
        if (shift < 64)
            v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80))
            return v;
    }
    c->bad = true;
    return 0;
}

static uint64_t fixed(cursor *c, size_t n)
{
    uint64_t v = 0;
    if ((size_t)(c->end - c->p) < n) {
        c->bad = true;
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)c->p[i] << (8 * i);
    c->p += n;
    return v;
}

/* The next field; false at the end or at a fault (c->bad). */
static bool next(cursor *c, field *f)
{
    if (c->bad || c->p == c->end)
        return false;
    uint64_t key = varint(c);
    *f = (field){.number = (uint32_t)(key >> 3), .wire = (uint32_t)(key & 7)};
    if (key >> 32)
        c->bad = true;
    if (f->wire == 0) {
        f->value = varint(c);
    } else if (f->wire == 1) {
        f->value = fixed(c, 8);
    } else if (f->wire == 5) {
        f->value = fixed(c, 4);
    } else if (f->wire == 2) {
        uint64_t n = varint(c);
        if (n > (uint64_t)(c->end - c->p))
            c->bad = true;
        else
            f->bytes = (cursor){c->p, c->p + n, false};
        c->p = c->bad ? c->p : c->p + n;
    } else {
        c->bad = true; /* groups were never used by this format */
    }
    return !c->bad;
}

static float as_float(uint64_t bits)
{
    uint32_t u = (uint32_t)bits;
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

static turbo_status read_piece(cursor c, int32_t id, spm_piece *p, turbo_err *err)
{
    field f;
    p->type = SPM_NORMAL;
    p->text = "";
    while (next(&c, &f)) {
        if (f.number == 1 && f.wire == 2) {
            p->text = (const char *)f.bytes.p;
            if (f.bytes.end - f.bytes.p > SPM_MAX_PIECE)
                return spm_fail(err, TURBO_EDATA,
                                "tokenizer.model: piece %d has %lld bytes; at most %d", id,
                                (long long)(f.bytes.end - f.bytes.p), SPM_MAX_PIECE);
            p->len = (uint32_t)(f.bytes.end - f.bytes.p);
        } else if (f.number == 2 && f.wire == 5) {
            p->score = as_float(f.value);
        } else if (f.number == 3 && f.wire == 0) {
            if (f.value < SPM_NORMAL || f.value > SPM_BYTE)
                return spm_fail(err, TURBO_EDATA,
                                "tokenizer.model: piece %d has the unknown type %llu", id,
                                (unsigned long long)f.value);
            p->type = (uint8_t)f.value;
        }
    }
    if (c.bad || !p->len || !isfinite(p->score))
        return spm_fail(err, TURBO_EDATA, "tokenizer.model: piece %d is damaged", id);
    return TURBO_OK;
}

static bool read_trainer(cursor c, spm *s)
{
    field f;
    while (next(&c, &f)) {
        int32_t v = (int32_t)(uint32_t)f.value;
        switch (f.number) {
        case 3: s->model_type = v; break;
        case 24: s->suffix_space = f.value != 0; break;
        case 35: s->byte_fallback = f.value != 0; break;
        case 40: s->unk = v; break;
        case 41: s->bos = v; break;
        case 42: s->eos = v; break;
        case 44:
            if (f.wire == 2) {
                s->surface = (const char *)f.bytes.p;
                s->surface_len = (uint32_t)(f.bytes.end - f.bytes.p);
            }
            break;
        default: break;
        }
    }
    return !c.bad;
}

static bool read_normalizer(cursor c, spm *s)
{
    field f;
    while (next(&c, &f)) {
        switch (f.number) {
        case 2:
            s->charsmap = f.bytes.p;
            s->charsmap_len = f.wire == 2 ? (size_t)(f.bytes.end - f.bytes.p) : 0;
            break;
        case 3: s->dummy_prefix = f.value != 0; break;
        case 4: s->squeeze = f.value != 0; break;
        case 5: s->escape = f.value != 0; break;
        default: break;
        }
    }
    return !c.bad;
}

static turbo_status check_charsmap(spm *s, turbo_err *err)
{
    if (!s->charsmap_len)
        return TURBO_OK;
    uint64_t size = 0;
    if (s->charsmap_len >= 4) {
        cursor c = {s->charsmap, s->charsmap + 4, false};
        size = fixed(&c, 4);
    }
    if (size < 4 || size % 4 || size > s->charsmap_len - 4 ||
        s->charsmap[s->charsmap_len - 1] != '\0')
        return spm_fail(err, TURBO_EDATA,
                        "tokenizer.model: the normaliser's character map is damaged");
    /* A rule makes a few bytes of a few bytes: a text must not grow a thousandfold. */
    const uint8_t *end = s->charsmap + s->charsmap_len;
    for (const uint8_t *p = s->charsmap + 4 + size; p < end;) {
        const uint8_t *nul = memchr(p, 0, (size_t)(end - p));
        if (!nul || nul - p > SPM_MAX_RULE)
            return spm_fail(err, TURBO_EDATA,
                            "tokenizer.model: the normaliser has a replacement of over %d bytes",
                            SPM_MAX_RULE);
        p = nul + 1;
    }
    s->trie_units = (size_t)(size / 4);
    return TURBO_OK;
}

turbo_status spm_bytes(spm *s, const char *file, int32_t *found, turbo_err *err)
{
    *found = 0;
    for (int i = 0; i < 256; i++)
        s->bytes[i] = -1;
    for (int32_t id = 0; id < s->n; id++) {
        spm_piece *p = &s->pieces[id];
        unsigned v;
        char end, text[8] = {0};
        if (p->type != SPM_BYTE)
            continue;
        if (p->len == 6)
            memcpy(text, p->text, 6);
        if (sscanf(text, "<0x%2X%c", &v, &end) != 2 || end != '>' || s->bytes[v & 255] >= 0)
            return spm_fail(err, TURBO_EDATA, "%s: piece %d is no byte <0xHH> or a second one",
                            file, id);
        s->bytes[v & 255] = id;
        p->byte = (uint8_t)v;
        ++*found;
    }
    return TURBO_OK;
}

static turbo_status check_ids(spm *s, turbo_err *err)
{
    if (s->model_type != SPM_UNIGRAM && s->model_type != SPM_BPE)
        return spm_fail(err, TURBO_EUNSUPPORTED,
                        "tokenizer.model has the type %s; Unigram and BPE are read",
                        s->model_type == 3   ? "word"
                        : s->model_type == 4 ? "char"
                                             : "unknown");
    if (s->unk < 0 || s->unk >= s->n || s->pieces[s->unk].type != SPM_UNKNOWN)
        return spm_fail(err, TURBO_EDATA, "tokenizer.model: piece %d is not the unknown piece",
                        s->unk);
    /* As the library has it, bos and eos are control pieces or there are none. */
    if (s->bos >= s->n || s->bos < 0 || s->pieces[s->bos].type != SPM_CONTROL)
        s->bos = -1;
    if (s->eos >= s->n || s->eos < 0 || s->pieces[s->eos].type != SPM_CONTROL)
        s->eos = -1;
    int32_t found;
    turbo_status st = spm_bytes(s, "tokenizer.model", &found, err);
    if (st)
        return st;
    if (s->byte_fallback && found != 256)
        return spm_fail(err, TURBO_EDATA,
                        "tokenizer.model: byte fallback with %d of 256 byte pieces", found);
    return TURBO_OK;
}

turbo_status spm_parse(spm *s, const uint8_t *file, uint64_t len, turbo_err *err)
{
    cursor c = {file, file + len, false};
    field f;
    size_t count = 0;
    while (next(&c, &f))
        count += f.number == 1 && f.wire == 2;
    if (c.bad)
        return spm_fail(err, TURBO_EDATA, "tokenizer.model is truncated or no SentencePiece model");
    if (!count || count > SPM_MAX_PIECES)
        return spm_fail(err, TURBO_EDATA, "tokenizer.model has %zu pieces; 1 to %d are possible",
                        count, SPM_MAX_PIECES);
    s->pieces = calloc(count, sizeof *s->pieces);
    if (!s->pieces)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %zu pieces", count);
    s->model_type = SPM_UNIGRAM;
    s->bos = 1;
    s->eos = 2;
    s->dummy_prefix = s->squeeze = s->escape = true;
    s->surface = " \xE2\x81\x87 ";
    s->surface_len = 5;
    turbo_status st = TURBO_OK;
    for (c = (cursor){file, file + len, false}; !st && next(&c, &f);) {
        bool ok = true;
        if (f.wire != 2)
            continue;
        if (f.number == 1) {
            st = read_piece(f.bytes, s->n, &s->pieces[s->n], err);
            s->n++;
        } else if (f.number == 2) {
            ok = read_trainer(f.bytes, s);
        } else if (f.number == 3) {
            ok = read_normalizer(f.bytes, s);
        }
        if (!ok)
            st = spm_fail(err, TURBO_EDATA, "tokenizer.model: its %s settings are damaged",
                          f.number == 2 ? "trainer" : "normaliser");
    }
    if (!st)
        st = check_charsmap(s, err);
    return st ? st : check_ids(s, err);
}
