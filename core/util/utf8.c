/* core/util/utf8.c: see utf8.h. */
#include "util/utf8.h"

#include <string.h>

/* Bytes a lead byte announces, 0 for a byte that cannot lead. */
static size_t lead_len(unsigned char c)
{
    if (c < 0x80)
        return 1;
    if (c >= 0xC2 && c <= 0xDF)
        return 2;
    if (c >= 0xE0 && c <= 0xEF)
        return 3;
    return c >= 0xF0 && c <= 0xF4 ? 4 : 0;
}

/* Are the first n bytes (n <= announced length) right so far? */
static bool well_formed(const unsigned char *p, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80)
            return false;
    if (n < 2)
        return true;
    return !((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) ||
             (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F));
}

size_t turbod_utf8_len(const unsigned char *p, size_t n)
{
    size_t l = n ? lead_len(p[0]) : 0;
    return l && l <= n && well_formed(p, l) ? l : 0;
}

bool turbod_utf8_valid(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    for (size_t i = 0; i < n;) {
        size_t l = turbod_utf8_len(p + i, n - i);
        if (!l)
            return false;
        i += l;
    }
    return true;
}

bool turbod_utf8_prefix(const unsigned char *p, size_t n)
{
    size_t l = n ? lead_len(p[0]) : 0;
    return l > n && well_formed(p, n);
}

static size_t put_replacement(char *out)
{
    memcpy(out, "\xEF\xBF\xBD", 3);
    return 3;
}

size_t turbod_utf8_push(turbod_utf8_join *j, const char *bytes, size_t n, char *out)
{
    size_t w = 0;
    for (size_t i = 0; i < n; i++) {
        j->tail[j->n++] = (unsigned char)bytes[i];
        while (j->n) {
            size_t l = turbod_utf8_len(j->tail, j->n);
            if (l) {
                memcpy(out + w, j->tail, l);
                w += l;
            } else if (turbod_utf8_prefix(j->tail, j->n)) {
                break;
            } else {
                w += put_replacement(out + w);
                l = 1;
            }
            j->n -= (uint32_t)l;
            memmove(j->tail, j->tail + l, j->n);
        }
    }
    return w;
}

size_t turbod_utf8_flush(turbod_utf8_join *j, char *out)
{
    size_t w = 0;
    for (; j->n; j->n--)
        w += put_replacement(out + w);
    return w;
}
