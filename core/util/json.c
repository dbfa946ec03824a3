/* core/util/json.c: see json.h. The scanner is a loop over tokens with an explicit stack, so that
 * hostile nesting costs 64 bytes and not the C stack. */
#include "util/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/utf8.h"

const turbod_json_limits turbod_json_request = {64, 65536, 256};
const turbod_json_limits turbod_json_file = {64, 8u << 20, 4096};

typedef struct scanner {
    const unsigned char *s;
    size_t n, i;
    const char *fault; /* NULL while all is well */
} scanner;

static bool bad(scanner *c, const char *fault)
{
    if (!c->fault)
        c->fault = fault;
    return false;
}

static void skip_space(scanner *c)
{
    while (c->i < c->n &&
           (c->s[c->i] == ' ' || c->s[c->i] == '\t' || c->s[c->i] == '\n' || c->s[c->i] == '\r'))
        c->i++;
}

/* The four hex digits of \uXXXX at i; the escape must be whole. */
static bool hex4(scanner *c, unsigned *out)
{
    if (c->n - c->i < 6 || c->s[c->i] != '\\' || c->s[c->i + 1] != 'u')
        return false;
    unsigned v = 0;
    for (size_t k = 2; k < 6; k++) {
        unsigned char h = c->s[c->i + k];
        unsigned digit;
        if (h >= '0' && h <= '9')
            digit = (unsigned)(h - '0');
        else if ((h | 32) >= 'a' && (h | 32) <= 'f')
            digit = (unsigned)((h | 32) - 'a') + 10;
        else
            return false;
        v = v * 16 + digit;
    }
    *out = v;
    return true;
}

static bool scan_escape(scanner *c)
{
    if (c->n - c->i < 2)
        return bad(c, "a string ends inside an escape");
    unsigned char e = c->s[c->i + 1];
    if (e != 'u') {
        if (!e || !strchr("\"\\/bfnrt", e))
            return bad(c, "an unknown escape in a string");
        c->i += 2;
        return true;
    }
    unsigned hi, lo;
    if (!hex4(c, &hi))
        return bad(c, "a broken \\u escape");
    if (!hi)
        return bad(c, "\\u0000 is not accepted");
    if (hi >= 0xDC00 && hi <= 0xDFFF)
        return bad(c, "a lone low surrogate");
    c->i += 6;
    if (hi >= 0xD800 && hi <= 0xDBFF) {
        if (!hex4(c, &lo) || lo < 0xDC00 || lo > 0xDFFF)
            return bad(c, "a lone high surrogate");
        c->i += 6;
    }
    return true;
}

/* At the opening quote; leaves i behind the closing one. */
static bool scan_string(scanner *c, size_t max_len)
{
    size_t start = ++c->i;
    while (c->i < c->n) {
        unsigned char ch = c->s[c->i];
        if (ch == '"') {
            if (c->i - start > max_len)
                return bad(c, "a key is too long");
            c->i++;
            return true;
        }
        if (ch < 0x20)
            return bad(c, "a raw control byte in a string");
        if (ch == '\\') {
            if (!scan_escape(c))
                return false;
            continue;
        }
        size_t l = turbod_utf8_len(c->s + c->i, c->n - c->i);
        if (!l)
            return bad(c, "invalid UTF-8");
        c->i += l;
    }
    return bad(c, "a string that does not end");
}

static size_t digits(scanner *c)
{
    size_t from = c->i;
    while (c->i < c->n && c->s[c->i] >= '0' && c->s[c->i] <= '9')
        c->i++;
    return c->i - from;
}

static bool scan_number(scanner *c)
{
    size_t from = c->i;
    if (c->s[c->i] == '-')
        c->i++;
    if (c->i < c->n && c->s[c->i] == '0')
        c->i++;
    else if (!digits(c))
        return bad(c, "a malformed number");
    if (c->i < c->n && c->s[c->i] == '.') {
        c->i++;
        if (!digits(c))
            return bad(c, "a malformed number");
    }
    if (c->i < c->n && (c->s[c->i] | 32) == 'e') {
        c->i++;
        if (c->i < c->n && (c->s[c->i] == '+' || c->s[c->i] == '-'))
            c->i++;
        if (!digits(c))
            return bad(c, "a malformed number");
    }
    return c->i - from <= 63 ? true : bad(c, "a number of more than 63 characters");
}

static bool scan_literal(scanner *c)
{
    static const char *const words[] = {"true", "false", "null"};
    for (int k = 0; k < 3; k++) {
        size_t l = strlen(words[k]);
        if (c->n - c->i >= l && !memcmp(c->s + c->i, words[k], l)) {
            c->i += l;
            return true;
        }
    }
    return bad(c, "not a JSON value");
}

/* A scalar; containers are the loop's business. */
static bool scan_scalar(scanner *c)
{
    unsigned char ch = c->s[c->i];
    if (ch == '"')
        return scan_string(c, SIZE_MAX);
    if (ch == '-' || (ch >= '0' && ch <= '9'))
        return scan_number(c);
    return scan_literal(c);
}

static bool scan_document(scanner *c, const turbod_json_limits *lim)
{
    char stack[64]; /* '{' or '[' for each open container */
    unsigned depth = 0;
    size_t values = 0;
    bool fresh = false; /* just behind an opening bracket: it may close at once */
    for (;;) {
        skip_space(c);
        if (c->i >= c->n)
            return bad(c, "the text ends too early");
        if (fresh && c->s[c->i] == (stack[depth - 1] == '{' ? '}' : ']')) {
            c->i++;
            depth--;
        } else {
            if (++values > lim->max_values)
                return bad(c, "too many values");
            if (depth && stack[depth - 1] == '{') {
                if (c->s[c->i] != '"')
                    return bad(c, "a key must be a string");
                if (!scan_string(c, lim->max_key))
                    return false;
                skip_space(c);
                if (c->i >= c->n || c->s[c->i] != ':')
                    return bad(c, "a key without ':'");
                c->i++;
                skip_space(c);
                if (c->i >= c->n)
                    return bad(c, "the text ends too early");
            }
            if (c->s[c->i] == '{' || c->s[c->i] == '[') {
                if (depth >= lim->max_depth || depth >= sizeof stack)
                    return bad(c, "nested too deeply");
                stack[depth++] = (char)c->s[c->i++];
                fresh = true;
                continue;
            }
            if (!scan_scalar(c))
                return false;
        }
        /* A value is complete: close what closes, then expect a comma or the end. */
        for (fresh = false; depth; depth--, c->i++) {
            skip_space(c);
            if (c->i >= c->n)
                return bad(c, "the text ends too early");
            if (c->s[c->i] == ',') {
                c->i++;
                break;
            }
            if (c->s[c->i] != (stack[depth - 1] == '{' ? '}' : ']'))
                return bad(c, "expected ',' or a closing bracket");
        }
        if (!depth) {
            skip_space(c);
            return c->i == c->n ? true : bad(c, "text after the end of the document");
        }
    }
}

turbo_status turbod_json_scan(const char *text, size_t n, const turbod_json_limits *lim,
                              turbo_err *err)
{
    scanner c = {.s = (const unsigned char *)text, .n = n};
    if (scan_document(&c, lim))
        return TURBO_OK;
    return turbod_err(err, TURBO_EINVAL, "invalid JSON at byte %zu: %s", c.i, c.fault);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Duplicate keys anywhere below v. Objects are sorted by key: n log n, whatever their size. */
static turbo_status refuse_duplicates(const cJSON *v, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    size_t n = 0, bytes;
    for (const cJSON *m = v->child; m; m = m->next)
        n++;
    if (cJSON_IsObject(v) && n > 1) {
        const char **keys = turbod_mul(n, sizeof *keys, &bytes) ? malloc(bytes) : NULL;
        if (!keys)
            return turbod_err(err, TURBO_ENOMEM, "no memory for a JSON document");
        size_t i = 0;
        for (const cJSON *m = v->child; m; m = m->next)
            keys[i++] = m->string;
        qsort(keys, n, sizeof *keys, by_key);
        for (i = 1; i < n && !st; i++)
            if (!strcmp(keys[i - 1], keys[i]))
                st = turbod_err(err, TURBO_EINVAL, "invalid JSON: the key \"%.64s\" appears twice",
                                keys[i]);
        free(keys);
    }
    for (const cJSON *m = v->child; m && !st; m = m->next)
        if (m->child)
            st = refuse_duplicates(m, err); /* depth is at most 64 by the scan */
    return st;
}

turbo_status turbod_json_parse(const char *text, size_t n, const turbod_json_limits *lim,
                               cJSON **out, turbo_err *err)
{
    turbo_status st = turbod_json_scan(text, n, lim, err);
    if (st)
        return st;
    cJSON *v = cJSON_ParseWithLength(text, n);
    if (!v)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a JSON document of %zu bytes", n);
    st = refuse_duplicates(v, err);
    if (st)
        cJSON_Delete(v);
    else
        *out = v;
    return st;
}

/* Bytes that spell c at p; 0: none do. */
static size_t spelt(const char *p, const char *end, char c)
{
    static const char hex[] = "0123456789abcdef";
    if (p < end && *p == c)
        return 1;
    if (end - p < 6 || memcmp(p, "\\u00", 4) || p[4] != hex[c >> 4])
        return 0;
    return p[5] == hex[c & 15] || (p[5] >= 'A' && (p[5] | 32) == hex[c & 15]) ? 6 : 0;
}

bool turbod_json_spells(const char *text, size_t n, const char *word)
{
    const char *end = text + n;
    if (!n || memmem(text, n, word, strlen(word)))
        return n > 0;
    if (!memmem(text, n, "\\u00", 4))
        return false;
    for (; text < end; text++) {
        const char *p = text, *w = word;
        for (size_t k; *w && (k = spelt(p, end, *w)) > 0; w++)
            p += k;
        if (!*w)
            return true;
    }
    return false;
}

const cJSON *turbod_json_get(const cJSON *obj, const char *key)
{
    const cJSON *v = cJSON_IsObject(obj) ? cJSON_GetObjectItemCaseSensitive(obj, key) : NULL;
    return v && !cJSON_IsNull(v) ? v : NULL;
}

bool turbod_json_int(const cJSON *v, int64_t lo, int64_t hi, int64_t *out)
{
    return cJSON_IsNumber(v) && turbod_d2i(v->valuedouble, lo, hi, out);
}

bool turbod_json_num(const cJSON *v, double lo, double hi, double *out)
{
    if (!cJSON_IsNumber(v) || !turbod_d_in(v->valuedouble, lo, hi))
        return false;
    *out = v->valuedouble;
    return true;
}

const char *turbod_json_kind(const cJSON *v)
{
    if (!v || cJSON_IsNull(v))
        return "null";
    if (cJSON_IsBool(v))
        return "a boolean";
    if (cJSON_IsNumber(v))
        return "a number";
    if (cJSON_IsString(v))
        return "a string";
    return cJSON_IsArray(v) ? "an array" : "an object";
}

const char *turbod_json_show(const cJSON *v, char buf[32])
{
    if (!cJSON_IsNumber(v))
        return turbod_json_kind(v);
    snprintf(buf, 32, "%.10g", v->valuedouble);
    return buf;
}
