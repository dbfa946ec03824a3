/* plugins/tok-spm/special.c: text to ids. Trusted text is cut at the names of special tokens, the
 * longest name first; what stands between them is ordinary text. Any thread. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

turbo_status spm_plain(const spm *s, const char *text, size_t len, bool first, spm_ids *out,
                       turbo_err *err)
{
    char *norm;
    size_t n;
    if (!len)
        return TURBO_OK;
    turbo_status st = spm_normalize(s, text, len, first, &norm, &n, err);
    if (st)
        return st;
    if (n)
        st = s->model_type == SPM_BPE ? spm_bpe(s, norm, n, out, err)
                                      : spm_unigram(s, norm, n, out, err);
    free(norm);
    return st;
}

/* Length of the white space character at text, 0 when there is none (Unicode's White_Space). */
static size_t space_at(const char *text, size_t len)
{
    static const char *const wide[] = {
        "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
        "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80",
    };
    if (len && (*text == ' ' || (*text >= '\t' && *text <= '\r')))
        return 1;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++) {
        size_t n = strlen(wide[i]);
        if (len >= n && !memcmp(text, wide[i], n))
            return n;
    }
    bool quad = len >= 3 && !memcmp(text, "\xE2\x80", 2) && (uint8_t)text[2] >= 0x80 &&
                (uint8_t)text[2] <= 0x8A; /* U+2000..U+200A */
    return quad ? 3 : 0;
}

static size_t skip_spaces(const char *text, size_t len)
{
    size_t i = 0, n;
    while ((n = space_at(text + i, len - i)))
        i += n;
    return i;
}

/* Length of text without the white space at its end. */
static size_t trim_end(const char *text, size_t len)
{
    for (bool again = true; again && len;) {
        again = false;
        for (size_t n = 1; n <= 3 && n <= len && !again; n++)
            if (space_at(text + len - n, n) == n) {
                len -= n;
                again = true;
            }
    }
    return len;
}

turbo_status spm_trusted(const spm *s, const char *text, size_t len, bool first, spm_ids *out,
                         turbo_err *err)
{
    turbo_status st = TURBO_OK;
    size_t from = 0, i = 0;
    while (i < len && !st) {
        int32_t id;
        uint32_t l = spm_trie_longest(&s->specials, text + i, len - i, &id);
        if (!l) {
            i++;
            continue;
        }
        size_t n = i - from;
        if (s->pieces[id].lstrip)
            n = trim_end(text + from, n);
        st = spm_plain(s, text + from, n, first && (from == 0 || s->each_stretch), out, err);
        spm_emit(out, id);
        i += l;
        if (s->pieces[id].rstrip)
            i += skip_spaces(text + i, len - i);
        from = i;
    }
    if (!st)
        st = spm_plain(s, text + from, len - from, first && (from == 0 || s->each_stretch), out,
                       err);
    return st;
}
