/* plugins/tok-bpe/normal.c: normalisers: text to text. Works between two buffers of the scratch;
 * text that nothing changes is not copied. Every step is linear in the text: marks are brought into
 * canonical order by counting, however many stand in a row (Unicode Standard Annex 15). */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "bpe.h"

bool bpe_buf_add(bpe_buf *b, const char *p, size_t n)
{
    if (n > b->cap - b->len) {
        size_t cap = b->cap ? b->cap : 256;
        while (cap - b->len < n) {
            if (cap > SIZE_MAX / 2)
                return false;
            cap *= 2;
        }
        char *q = realloc(b->p, cap);
        if (!q)
            return false;
        b->p = q;
        b->cap = cap;
    }
    if (n)
        memcpy(b->p + b->len, p, n);
    b->len += n;
    return true;
}

/* ---- normal forms -------------------------------------------------------------------------- */

/* Stable sort of the marks by class; a text may be nothing but marks. */
static void order_marks(int32_t *cp, int32_t *spare, size_t n)
{
    size_t at[257] = {0};
    for (size_t i = 0; i < n; i++)
        at[(size_t)utf8proc_get_property(cp[i])->combining_class + 1]++;
    for (size_t c = 1; c < 257; c++)
        at[c] += at[c - 1];
    for (size_t i = 0; i < n; i++)
        spare[at[utf8proc_get_property(cp[i])->combining_class]++] = cp[i];
    memcpy(cp, spare, n * sizeof *cp);
}

static void canonical_order(int32_t *cp, int32_t *spare, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t k = i;
        bool sorted = true;
        int last = 0;
        for (; k < n; k++) {
            int c = (int)utf8proc_get_property(cp[k])->combining_class;
            if (!c)
                break;
            sorted = sorted && c >= last;
            last = c;
        }
        if (!sorted)
            order_marks(cp + i, spare, k - i);
        i = k + (k == i);
    }
}

/* Characters that stay as they are in both composed forms and join with nothing before them: the
 * bulk of most texts. utf8proc decides on the rest. */
static bool plain(uint32_t c, bool compat)
{
    if (c < 0xA0)
        return true;
    if (c < 0x300)
        return !compat;
    return (c >= 0x400 && c < 0x483) || (c >= 0x3400 && c < 0xA000) ||
           (c >= 0xAC00 && c < 0xD7A4) || (c >= 0x3001 && c < 0x3003) ||
           (c >= 0x3041 && c < 0x3097) || (c >= 0x30A1 && c < 0x30FB) ||
           (!compat && c >= 0x2010 && c < 0x2027);
}

static bool all_plain(const char *text, size_t len, bool compat)
{
    for (size_t i = 0, n; i < len; i += n)
        if (!plain(bpe_get(text + i, &n), compat))
            return false;
    return true;
}

static bool room(bpe_scratch *s, size_t n)
{
    if (n <= s->cps_cap)
        return true;
    size_t cap = s->cps_cap ? s->cps_cap : 1024;
    while (cap < n) {
        if (cap > SIZE_MAX / 4 / sizeof *s->cps)
            return false;
        cap *= 2;
    }
    int32_t *p = realloc(s->cps, 2 * cap * sizeof *p); /* the second half is for sorting */
    if (!p)
        return false;
    s->cps = p;
    s->cps_cap = cap;
    return true;
}

turbo_status bpe_normal_form(bpe_scratch *s, int32_t kind, const char *text, size_t len,
                             bpe_buf *to, turbo_err *err)
{
    bool compat = kind == BPE_N_NFKC || kind == BPE_N_NFKD;
    bool compose = kind == BPE_N_NFC || kind == BPE_N_NFKC;
    int options = UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    size_t n = 0;
    for (size_t i = 0, k; i < len; i += k) {
        int32_t cp[32];
        int boundary = 0;
        utf8proc_ssize_t m = utf8proc_decompose_char((int32_t)bpe_get(text + i, &k), cp, 32,
                                                     (utf8proc_option_t)options, &boundary);
        if (m < 0 || m > 32)
            return bpe_fail(err, TURBO_EINTERNAL, "a character decomposes into too many");
        if (!room(s, n + (size_t)m))
            return bpe_no_memory(err);
        memcpy(s->cps + n, cp, (size_t)m * sizeof *cp);
        n += (size_t)m;
    }
    if (n)
        canonical_order(s->cps, s->cps + s->cps_cap, n);
    if (compose && n) {
        utf8proc_ssize_t m =
            utf8proc_normalize_utf32(s->cps, (utf8proc_ssize_t)n,
                                     (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
        if (m < 0)
            return bpe_fail(err, TURBO_EINTERNAL, "a text cannot be composed");
        n = (size_t)m;
    }
    for (size_t i = 0; i < n; i++) {
        char c[4];
        if (!bpe_buf_add(to, c, bpe_put((uint32_t)s->cps[i], c)))
            return bpe_no_memory(err);
    }
    return TURBO_OK;
}

/* ---- the other steps ----------------------------------------------------------------------- */

static turbo_status lower(const char *text, size_t len, bpe_buf *to, turbo_err *err)
{
    for (size_t i = 0, n; i < len; i += n) {
        char c[8];
        uint32_t cp = bpe_get(text + i, &n);
        size_t m;
        if (cp < 0x80) {
            c[0] = (char)(cp >= 'A' && cp <= 'Z' ? cp + 32 : cp);
            m = 1;
        } else if (cp == 0x130) { /* the one that becomes two characters: i and a dot above */
            memcpy(c, "i\xCC\x87", 3);
            m = 3;
        } else {
            m = bpe_put((uint32_t)utf8proc_tolower((int32_t)cp), c);
        }
        if (!bpe_buf_add(to, c, m))
            return bpe_no_memory(err);
    }
    return TURBO_OK;
}

static turbo_status replace_text(const bpe_rule *r, const char *text, size_t len, bpe_buf *to,
                                 turbo_err *err)
{
    while (len) {
        const char *hit = memmem(text, len, r->text, r->text_len);
        size_t n = hit ? (size_t)(hit - text) : len;
        if (!bpe_buf_add(to, text, n) || (hit && !bpe_buf_add(to, r->with, r->with_len)))
            return bpe_no_memory(err);
        n += hit ? r->text_len : 0;
        text += n;
        len -= n;
    }
    return TURBO_OK;
}

static turbo_status replace_regex(const bpe_rule *r, bpe_scratch *s, const char *text, size_t len,
                                  bpe_buf *to, turbo_err *err)
{
    size_t from = 0, start, end;
    bpe_search at = {0};
    int rc;
    while ((rc = bpe_regex_next(r->regex, s, text, len, &at, &start, &end)) > 0) {
        if (!bpe_buf_add(to, text + from, start - from) || !bpe_buf_add(to, r->with, r->with_len))
            return bpe_no_memory(err);
        from = end;
    }
    if (rc < 0)
        return bpe_match_failed(rc, err);
    return bpe_buf_add(to, text + from, len - from) ? TURBO_OK : bpe_no_memory(err);
}

/* Does the step leave this text alone? Then nothing is copied. */
static bool idle(const bpe_rule *r, const char *text, size_t len)
{
    switch (r->kind) {
    case BPE_N_NFC: return all_plain(text, len, false);
    case BPE_N_NFKC: return all_plain(text, len, true);
    case BPE_N_REPLACE: return r->text && !memmem(text, len, r->text, r->text_len);
    default: return false;
    }
}

turbo_status bpe_normalize(const bpe *b, bpe_scratch *s, const char **text, size_t *len,
                           bool *start, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    int into = 0;
    for (int i = 0; i < b->normal.n && *len && !st; i++) {
        const bpe_rule *r = &b->normal.r[i];
        if (r->kind == BPE_N_STRIP) {
            size_t skip = r->left ? bpe_skip_space(*text, *len) : 0;
            *start = *start && !skip;
            *text += skip;
            *len -= skip;
            *len = r->right ? bpe_trim_space(*text, *len) : *len;
            continue;
        }
        if (idle(r, *text, *len))
            continue;
        bpe_buf *to = &s->normal[into];
        into = !into;
        to->len = 0;
        if (r->kind == BPE_N_LOWER)
            st = lower(*text, *len, to, err);
        else if (r->kind == BPE_N_REPLACE)
            st = r->text ? replace_text(r, *text, *len, to, err)
                         : replace_regex(r, s, *text, *len, to, err);
        else if (r->kind == BPE_N_PREPEND)
            st = bpe_buf_add(to, r->with, r->with_len) && bpe_buf_add(to, *text, *len)
                     ? TURBO_OK
                     : bpe_no_memory(err);
        else
            st = bpe_normal_form(s, r->kind, *text, *len, to, err);
        if (!st && to->len > BPE_MAX_TEXT)
            st = bpe_fail(err, TURBO_ELIMIT, "the text grows beyond 1 GiB when it is normalised");
        *text = to->p;
        *len = to->len;
    }
    return st;
}
