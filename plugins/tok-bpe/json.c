/* plugins/tok-bpe/json.c: see json.h. */
#include "json.h"

#include <stdlib.h>
#include <string.h>

#include "bpe.h"

/* Members of an object that are compared with each other; the vocabulary is checked by its map. */
#define SMALL_OBJECT 64

typedef struct reader {
    bpe_json *j;
    size_t at, len;
    const char *why; /* NULL: no error yet */
} reader;

static bool wrong(reader *r, const char *why)
{
    if (!r->why)
        r->why = why;
    return false;
}

static void blanks(reader *r)
{
    while (r->at < r->len) {
        char c = r->j->text[r->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            return;
        r->at++;
    }
}

static bool take(reader *r, char c)
{
    if (r->at >= r->len || r->j->text[r->at] != c)
        return false;
    r->at++;
    return true;
}

static bool word(reader *r, const char *w)
{
    size_t n = strlen(w);
    if (r->len - r->at < n || memcmp(r->j->text + r->at, w, n) != 0)
        return wrong(r, "a value is expected");
    r->at += n;
    return true;
}

static uint32_t add(reader *r, uint32_t type)
{
    bpe_json *j = r->j;
    if (j->n == j->cap) {
        uint32_t cap = j->cap ? j->cap * 2 : 1024;
        bpe_node *p = cap <= BPE_JSON_VALUES ? realloc(j->nodes, cap * sizeof *p) : NULL;
        if (!p) {
            wrong(r, "there are too many values");
            return UINT32_MAX;
        }
        j->nodes = p;
        j->cap = cap;
    }
    j->nodes[j->n] = (bpe_node){.type = type};
    return j->n++;
}

static bool hex4(reader *r, uint32_t *out)
{
    *out = 0;
    if (r->len - r->at < 4)
        return wrong(r, "an escape is cut off");
    for (int i = 0; i < 4; i++) {
        char c = r->j->text[r->at++];
        uint32_t d;
        if (c >= '0' && c <= '9')
            d = (uint32_t)(c - '0');
        else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
            d = (uint32_t)((c | 32) - 'a' + 10);
        else
            return wrong(r, "an escape is no hexadecimal number");
        *out = *out * 16 + d;
    }
    return true;
}

static bool escape(reader *r, size_t *to)
{
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    char *text = r->j->text;
    if (r->at >= r->len)
        return wrong(r, "a string is cut off");
    char c = text[r->at++];
    const char *p = c ? strchr(from, c) : NULL;
    if (p) {
        text[(*to)++] = into[p - from];
        return true;
    }
    uint32_t u, low;
    if (c != 'u')
        return wrong(r, "an unknown escape");
    if (!hex4(r, &u))
        return false;
    if (u >= 0xD800 && u <= 0xDBFF) {
        if (!take(r, '\\') || !take(r, 'u') || !hex4(r, &low) || low < 0xDC00 || low > 0xDFFF)
            return wrong(r, "half of a surrogate pair");
        u = 0x10000 + ((u - 0xD800) << 10) + (low - 0xDC00);
    } else if (u >= 0xDC00 && u <= 0xDFFF) {
        return wrong(r, "half of a surrogate pair");
    }
    *to += bpe_put(u, text + *to); /* an escape is never shorter than what it stands for */
    return true;
}

/* Behind the opening quote. The unescaped bytes take the place of the escaped ones. */
static bool string(reader *r, uint32_t *at, uint32_t *len)
{
    char *text = r->j->text;
    size_t to = r->at;
    *at = (uint32_t)to;
    while (r->at < r->len) {
        unsigned char c = (unsigned char)text[r->at++];
        if (c == '"') {
            *len = (uint32_t)(to - *at);
            return true;
        }
        if (c < 0x20)
            return wrong(r, "a control character inside a string");
        if (c == '\\') {
            if (!escape(r, &to))
                return false;
        } else {
            text[to++] = (char)c;
        }
    }
    return wrong(r, "a string is cut off");
}

static bool digits(reader *r)
{
    size_t from = r->at;
    while (r->at < r->len && r->j->text[r->at] >= '0' && r->j->text[r->at] <= '9')
        r->at++;
    return r->at > from || wrong(r, "a number is malformed");
}

static bool number(reader *r, uint32_t v)
{
    size_t from = r->at;
    take(r, '-');
    if (!take(r, '0') && !digits(r))
        return false;
    if (take(r, '.') && !digits(r))
        return false;
    if (take(r, 'e') || take(r, 'E')) {
        if (!take(r, '-'))
            take(r, '+');
        if (!digits(r))
            return false;
    }
    r->j->nodes[v].at = (uint32_t)from;
    r->j->nodes[v].len = (uint32_t)(r->at - from);
    return true;
}

static bool twins(const bpe_json *j, const bpe_node *obj)
{
    for (const bpe_node *a = bpe_json_child(j, obj); a; a = bpe_json_next(j, a))
        for (const bpe_node *b = bpe_json_next(j, a); b; b = bpe_json_next(j, b))
            if (a->key_len == b->key_len && !memcmp(j->text + a->key, j->text + b->key, a->key_len))
                return true;
    return false;
}

static bool value(reader *r, unsigned depth, uint32_t *out);

/* Members or elements, behind the opening bracket. */
static bool members(reader *r, uint32_t v, bool object, unsigned depth)
{
    uint32_t last = 0, n = 0;
    if (depth >= BPE_JSON_DEPTH)
        return wrong(r, "the nesting is deeper than 64");
    blanks(r);
    if (take(r, object ? '}' : ']'))
        return true;
    for (;;) {
        uint32_t key = 0, key_len = 0, c;
        blanks(r);
        if (object) {
            if (!take(r, '"'))
                return wrong(r, "a key is expected");
            if (!string(r, &key, &key_len))
                return false;
            blanks(r);
            if (!take(r, ':'))
                return wrong(r, "a colon is expected");
        }
        if (!value(r, depth + 1, &c))
            return false;
        bpe_node *nodes = r->j->nodes;
        nodes[c].key = key;
        nodes[c].key_len = key_len;
        if (n++)
            nodes[last].next = c;
        else
            nodes[v].child = c;
        nodes[v].n = n;
        last = c;
        blanks(r);
        if (take(r, object ? '}' : ']'))
            break;
        if (!take(r, ','))
            return wrong(r, "a comma or a closing bracket is expected");
    }
    if (object && n <= SMALL_OBJECT && twins(r->j, &r->j->nodes[v]))
        return wrong(r, "a key stands twice in one object");
    return true;
}

static bool value(reader *r, unsigned depth, uint32_t *out)
{
    blanks(r);
    if (r->at >= r->len)
        return wrong(r, "the file is cut off");
    char c = r->j->text[r->at];
    uint32_t type = c == '{'   ? BPE_OBJECT
                    : c == '[' ? BPE_ARRAY
                    : c == '"' ? BPE_STRING
                    : c == 't' ? BPE_TRUE
                    : c == 'f' ? BPE_FALSE
                    : c == 'n' ? BPE_NULL
                               : BPE_NUMBER;
    uint32_t v = add(r, type), at = 0, len = 0;
    if (v == UINT32_MAX)
        return false;
    *out = v;
    switch (type) {
    case BPE_TRUE: return word(r, "true");
    case BPE_FALSE: return word(r, "false");
    case BPE_NULL: return word(r, "null");
    case BPE_NUMBER: return number(r, v);
    case BPE_STRING:
        r->at++;
        if (!string(r, &at, &len))
            return false;
        r->j->nodes[v].at = at;
        r->j->nodes[v].len = len;
        return true;
    default: r->at++; return members(r, v, type == BPE_OBJECT, depth);
    }
}

turbo_status bpe_json_open(const turbo_host *h, const char *folder, const char *name,
                           uint64_t max_bytes, bpe_json *out, turbo_err *err)
{
    uint8_t *bytes = NULL;
    uint64_t len = 0;
    *out = (bpe_json){.file = name};
    turbo_status st = h->file_read(folder, name, max_bytes, &bytes, &len, err);
    if (st)
        return st;
    if (len >= UINT32_MAX)
        st = bpe_fail(err, TURBO_ELIMIT, "%s: %llu bytes are too many", name,
                      (unsigned long long)len);
    if (!st && !bpe_utf8_valid((const char *)bytes, len))
        st = bpe_fail(err, TURBO_EDATA, "%s: it is not UTF-8", name);
    out->text = st ? NULL : malloc(len + 1);
    if (!st && !out->text)
        st = bpe_fail(err, TURBO_ENOMEM, "no memory for %s", name);
    if (!st) {
        memcpy(out->text, bytes, len);
        out->text[len] = '\0';
    }
    h->file_free(bytes);
    if (st)
        return st;
    reader r = {.j = out, .len = len};
    uint32_t root;
    if (len >= 3 && !memcmp(out->text, "\xEF\xBB\xBF", 3))
        r.at = 3;
    bool ok = value(&r, 0, &root);
    if (ok) {
        blanks(&r);
        ok = r.at == r.len || wrong(&r, "something stands behind the end");
    }
    return ok ? TURBO_OK
              : bpe_fail(err, TURBO_EDATA, "%s: byte %zu: %s", name, r.at,
                         r.why ? r.why : "it is no JSON");
}

void bpe_json_free(bpe_json *j)
{
    free(j->nodes);
    free(j->text);
    *j = (bpe_json){0};
}

const bpe_node *bpe_json_child(const bpe_json *j, const bpe_node *v)
{
    return v && v->child ? &j->nodes[v->child] : NULL;
}

const bpe_node *bpe_json_next(const bpe_json *j, const bpe_node *v)
{
    return v->next ? &j->nodes[v->next] : NULL;
}

const bpe_node *bpe_json_get(const bpe_json *j, const bpe_node *obj, const char *key)
{
    size_t n = strlen(key);
    if (!obj || obj->type != BPE_OBJECT)
        return NULL;
    for (const bpe_node *m = bpe_json_child(j, obj); m; m = bpe_json_next(j, m))
        if (m->key_len == n && !memcmp(j->text + m->key, key, n))
            return m->type == BPE_NULL ? NULL : m;
    return NULL;
}

bool bpe_json_is(const bpe_json *j, const bpe_node *v, const char *text)
{
    size_t n = strlen(text);
    return v && v->type == BPE_STRING && v->len == n && !memcmp(j->text + v->at, text, n);
}

bool bpe_json_uint(const bpe_json *j, const bpe_node *v, uint32_t hi, uint32_t *out)
{
    uint64_t x = 0;
    if (!v || v->type != BPE_NUMBER || !v->len || v->len > 10)
        return false;
    for (uint32_t i = 0; i < v->len; i++) {
        char c = j->text[v->at + i];
        if (c < '0' || c > '9')
            return false;
        x = x * 10 + (uint64_t)(c - '0');
    }
    *out = (uint32_t)x;
    return x <= hi;
}

bool bpe_json_bool(const bpe_json *j, const bpe_node *obj, const char *key, bool dflt, bool *out)
{
    const bpe_node *v = bpe_json_get(j, obj, key);
    *out = v ? v->type == BPE_TRUE : dflt;
    return !v || v->type == BPE_TRUE || v->type == BPE_FALSE;
}
