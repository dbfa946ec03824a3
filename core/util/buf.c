/* core/util/buf.c: see buf.h. */
#include "util/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/utf8.h"

void turbod_buf_init(turbod_buf *b, size_t max)
{
    *b = (turbod_buf){.max = max};
}

void turbod_buf_free(turbod_buf *b)
{
    free(b->ptr);
    *b = (turbod_buf){.max = b->max};
}

void turbod_buf_clear(turbod_buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->ptr)
        b->ptr[0] = '\0';
}

bool turbod_buf_reserve(turbod_buf *b, size_t extra)
{
    if (b->failed || extra > b->max || b->len > b->max - extra) {
        b->failed = true;
        return false;
    }
    size_t need = b->len + extra + 1;
    if (need <= b->cap)
        return true;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    char *p = realloc(b->ptr, cap);
    if (!p) {
        b->failed = true;
        return false;
    }
    b->ptr = p;
    b->cap = cap;
    return true;
}

bool turbod_buf_add(turbod_buf *b, const void *p, size_t n)
{
    if (!turbod_buf_reserve(b, n))
        return false;
    if (n)
        memcpy(b->ptr + b->len, p, n);
    b->len += n;
    b->ptr[b->len] = '\0';
    return true;
}

bool turbod_buf_str(turbod_buf *b, const char *s)
{
    return turbod_buf_add(b, s, strlen(s));
}

bool turbod_buf_printf(turbod_buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    bool ok = n >= 0 && turbod_buf_reserve(b, (size_t)n);
    if (ok) {
        (void)vsnprintf(b->ptr + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return ok;
}

bool turbod_buf_json(turbod_buf *b, const char *s, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *p = (const unsigned char *)s;
    size_t i = 0, run = 0;
    while (i < n) {
        unsigned char c = p[i];
        size_t l = turbod_utf8_len(p + i, n - i); /* 0: invalid */
        if (l > 0 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) {
            i += l;
            continue;
        }
        turbod_buf_add(b, s + run, i - run);
        if (l == 0) {
            turbod_buf_add(b, "\xEF\xBF\xBD", 3);
        } else if (c == '"' || c == '\\') {
            turbod_buf_add(b, (char[]){'\\', (char)c}, 2);
        } else if (c == '\n') {
            turbod_buf_add(b, "\\n", 2);
        } else if (c == '\t') {
            turbod_buf_add(b, "\\t", 2);
        } else if (c == '\r') {
            turbod_buf_add(b, "\\r", 2);
        } else {
            turbod_buf_add(b, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
        }
        run = ++i;
    }
    turbod_buf_add(b, s + run, n - run);
    return !b->failed;
}
