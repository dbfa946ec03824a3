/* plugins/tok-spm/normalize.c: SentencePiece's normaliser.
 *
 * At each position: a user-defined piece is copied, else the longest rule of the character map is
 * applied (a Darts double-array trie whose values are offsets of replacement strings), else one
 * character is copied. Blanks become U+2581. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

typedef struct sink {
    char *p;
    size_t n, cap;
} sink;

static bool put(sink *o, const char *s, size_t n)
{
    if (o->cap - o->n < n) {
        size_t cap = (o->cap + n) * 2;
        char *p = realloc(o->p, cap);
        if (!p)
            return false;
        o->p = p;
        o->cap = cap;
    }
    memcpy(o->p + o->n, s, n);
    o->n += n;
    return true;
}

static uint32_t unit(const spm *s, size_t i)
{
    uint32_t u = 0;
    if (i < s->trie_units)
        for (size_t b = 0; b < 4; b++)
            u |= (uint32_t)s->charsmap[4 + 4 * i + b] << (8 * b);
    return u;
}

/* Longest key of the trie at text: its length, and where its replacement begins. Units: bit 31
 * marks a value, bits 0..7 a label, bit 8 "has a value", bits 10.. an offset (scaled by 256 with
 * bit 9). */
static size_t rule(const spm *s, const char *text, size_t len, const char **to, size_t *to_len)
{
    size_t best = 0;
    uint32_t value = 0, u = unit(s, 0);
    size_t at = (u >> 10) << ((u & (1u << 9)) >> 6);
    for (size_t i = 0; i < len; i++) {
        uint8_t c = (uint8_t)text[i];
        at ^= c;
        u = unit(s, at);
        if (at >= s->trie_units || (u & (0x80000000u | 0xffu)) != c)
            break;
        at ^= (u >> 10) << ((u & (1u << 9)) >> 6);
        if (u & 0x100u) {
            best = i + 1;
            value = unit(s, at) & 0x7fffffffu;
        }
    }
    size_t base = 4 + 4 * s->trie_units;
    if (!best || value >= s->charsmap_len - base)
        return 0;
    *to = (const char *)s->charsmap + base + value;
    *to_len = strlen(*to); /* the map ends with NUL, checked when it was read */
    return best;
}

/* Normal form of what stands at text; returns the bytes consumed. */
static size_t prefix(const spm *s, const char *text, size_t len, const char **to, size_t *to_len)
{
    int32_t id;
    uint32_t user = spm_trie_longest(&s->user, text, len, &id);
    size_t used;
    if (user) {
        *to = text;
        *to_len = user;
        return user;
    }
    if (s->trie_units && (used = rule(s, text, len, to, to_len)))
        return used;
    used = spm_char_len((unsigned char)*text);
    used = used < len ? used : len;
    *to = text;
    *to_len = used;
    return used;
}

static bool put_escaped(const spm *s, sink *o, const char *t, size_t n)
{
    bool ok = true;
    for (size_t i = 0; i < n && ok; i++)
        ok = s->escape && t[i] == ' ' ? put(o, SPM_SPACE, 3) : put(o, t + i, 1);
    return ok;
}

turbo_status spm_normalize(const spm *s, const char *text, size_t len, bool first, char **out,
                           size_t *out_len, turbo_err *err)
{
    sink o = {.cap = len + 16};
    const char *t;
    size_t n, used;
    bool ok = (o.p = malloc(o.cap)) != NULL;
    while (s->squeeze && len) { /* leading blanks */
        used = prefix(s, text, len, &t, &n);
        if (n != 1 || *t != ' ')
            break;
        text += used;
        len -= used;
    }
    bool any = len > 0, blank_before = s->squeeze, dummy = s->dummy_prefix && first;
    if (any && dummy && !s->suffix_space)
        ok = ok && put_escaped(s, &o, " ", 1);
    while (len && ok) {
        used = prefix(s, text, len, &t, &n);
        while (blank_before && n && *t == ' ') {
            t++;
            n--;
        }
        if (n) {
            ok = put_escaped(s, &o, t, n);
            blank_before = t[n - 1] == ' ';
        }
        text += used;
        len -= used;
        if (!s->squeeze)
            blank_before = false;
    }
    const char *space = s->escape ? SPM_SPACE : " ";
    size_t width = strlen(space);
    while (s->squeeze && o.n >= width && !memcmp(o.p + o.n - width, space, width))
        o.n -= width;
    if (any && dummy && s->suffix_space)
        ok = ok && put_escaped(s, &o, " ", 1);
    if (!ok) {
        free(o.p);
        return spm_fail(err, TURBO_ENOMEM, "no memory to normalise a text");
    }
    *out = o.p;
    *out_len = o.n;
    return TURBO_OK;
}
