/* plugins/gguf/gguf_keys.c: see gguf_keys.h. The host has checked the file; nothing is believed all the same. */
#include "gguf_keys.h"

#include <stdlib.h>
#include <string.h>

#define MAX_HEADER ((uint64_t)512 << 20)
#define PREFIX "tokenizer."

static void read_value(turbo_gguf_cursor *c, gguf_value *v)
{
    v->key_len = turbo_gguf_uint(c, 8);
    v->key = (const char *)turbo_gguf_bytes(c, v->key_len);
    v->type = (uint32_t)turbo_gguf_uint(c, 4);
    v->elem = v->type == TURBO_GGUF_ARRAY ? (uint32_t)turbo_gguf_uint(c, 4) : 0;
    v->n = v->type == TURBO_GGUF_ARRAY || v->type == TURBO_GGUF_STRING ? turbo_gguf_uint(c, 8) : 1;
    v->at = c->p;
    uint32_t w = v->type == TURBO_GGUF_ARRAY    ? turbo_gguf_width(v->elem)
                 : v->type == TURBO_GGUF_STRING ? 1
                                                : turbo_gguf_width(v->type);
    uint64_t size;
    if (w && !__builtin_mul_overflow(v->n, w, &size))
        turbo_gguf_bytes(c, size);
    else if (w || v->elem != TURBO_GGUF_STRING)
        c->bad = true;
    for (uint64_t i = 0; !w && i < v->n && !c->bad; i++)
        turbo_gguf_bytes(c, turbo_gguf_uint(c, 8));
    v->end = c->p;
}

static turbo_status fail(turbo_err *err, turbo_status s, const char *text)
{
    strncpy(err->text, text, sizeof err->text - 1);
    err->text[sizeof err->text - 1] = '\0';
    return s;
}

turbo_status gguf_header_open(const turbo_host *h, const char *folder, gguf_header *g,
                              turbo_err *err)
{
    uint8_t *file = NULL;
    size_t prefix = strlen(PREFIX);
    *g = (gguf_header){0};
    turbo_status st = h->file_read(folder, TURBO_GGUF_HEADER, MAX_HEADER, &file, &g->len, err);
    if (st)
        return st;
    g->bytes = malloc(g->len + 1); /* an own copy: the host's memory is released by the host only */
    if (g->bytes)
        memcpy(g->bytes, file, g->len);
    h->file_free(file);
    if (!g->bytes)
        return fail(err, TURBO_ENOMEM, "no memory for the header of a GGUF file");
    turbo_gguf_cursor c = {g->bytes, g->bytes + g->len, false};
    turbo_gguf_bytes(&c, 16); /* magic, version, tensors */
    uint64_t keys = turbo_gguf_uint(&c, 8);
    for (uint64_t i = 0; i < keys && !c.bad; i++) {
        gguf_value v = {0};
        read_value(&c, &v);
        if (c.bad || v.key_len <= prefix || memcmp(v.key, PREFIX, prefix) != 0)
            continue;
        if (g->n == GGUF_MAX_KEYS)
            return fail(err, TURBO_ELIMIT, "the GGUF file has more than 64 keys of a tokenizer");
        v.key += prefix;
        v.key_len -= prefix;
        g->values[g->n++] = v;
    }
    return c.bad ? fail(err, TURBO_EDATA, "the header of the GGUF file is damaged") : TURBO_OK;
}

const gguf_value *gguf_find(const gguf_header *g, const char *key)
{
    for (int i = 0; i < g->n; i++)
        if (g->values[i].key_len == strlen(key) &&
            !memcmp(g->values[i].key, key, g->values[i].key_len))
            return &g->values[i];
    return NULL;
}

bool gguf_is(const gguf_value *v, const char *text)
{
    return v && v->type == TURBO_GGUF_STRING && v->n == strlen(text) && !memcmp(v->at, text, v->n);
}

bool gguf_uint(const gguf_header *g, const char *key, uint32_t hi, uint32_t *out)
{
    const gguf_value *v = gguf_find(g, key);
    uint32_t w =
        v && v->type != TURBO_GGUF_F32 && v->type != TURBO_GGUF_F64 ? turbo_gguf_width(v->type) : 0;
    if (!w)
        return false;
    turbo_gguf_cursor c = {v->at, v->end, false};
    uint64_t u = turbo_gguf_uint(&c, w); /* a negative one is too large */
    *out = (uint32_t)u;
    return u <= hi;
}

bool gguf_bool(const gguf_header *g, const char *key, bool dflt)
{
    const gguf_value *v = gguf_find(g, key);
    return v && v->type == TURBO_GGUF_BOOL ? *v->at != 0 : dflt;
}

const gguf_value *gguf_list(const gguf_header *g, const char *key, uint32_t elem)
{
    const gguf_value *v = gguf_find(g, key);
    bool fits = v && v->type == TURBO_GGUF_ARRAY &&
                (v->elem == elem || (elem == TURBO_GGUF_U32 && v->elem == TURBO_GGUF_I32));
    return fits ? v : NULL;
}

bool gguf_next(const gguf_value *v, const uint8_t **at, const char **text, uint64_t *len)
{
    turbo_gguf_cursor c = {*at, v->end, false};
    *len = turbo_gguf_uint(&c, 8);
    *text = (const char *)turbo_gguf_bytes(&c, *len);
    *at = c.p;
    return !c.bad;
}

uint32_t gguf_bits(const gguf_value *v, uint64_t i)
{
    turbo_gguf_cursor c = {v->at + 4 * i, v->end, false};
    return (uint32_t)turbo_gguf_uint(&c, 4);
}
