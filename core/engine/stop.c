/* core/engine/stop.c: see stop.h. */
#include "engine/stop.h"

#include <stdlib.h>
#include <string.h>

#include "util/checked.h"

bool turbod_stop_init(turbod_stop *s, const char *const *stops, int32_t n)
{
    *s = (turbod_stop){.n = n};
    size_t total = 0, longest = 0;
    for (int32_t i = 0; i < n; i++) {
        size_t l = strlen(stops[i]);
        longest = l > longest ? l : longest;
        if (!turbod_add(total, l, &total))
            return false;
    }
    s->cap = TURBOD_STOP_PUSH + longest;
    s->hold = malloc(s->cap);
    s->text = malloc(total + 1);
    s->len = calloc((size_t)n + 1, sizeof *s->len);
    if (!s->hold || !s->text || !s->len) {
        turbod_stop_free(s);
        return false;
    }
    char *p = s->text;
    for (int32_t i = 0; i < n; i++) {
        s->len[i] = (uint32_t)strlen(stops[i]);
        memcpy(p, stops[i], s->len[i]);
        p += s->len[i];
    }
    return true;
}

void turbod_stop_free(turbod_stop *s)
{
    free(s->text);
    free(s->len);
    free(s->hold);
    *s = (turbod_stop){0};
}

/* Longest tail of hold that is a proper beginning of some stop string. */
static size_t undecided(const turbod_stop *s)
{
    size_t best = 0;
    const char *p = s->text;
    for (int32_t i = 0; i < s->n; p += s->len[i], i++) {
        size_t k = s->len[i] - 1 < s->n_hold ? s->len[i] - 1 : s->n_hold;
        for (; k > best; k--)
            if (!memcmp(s->hold + s->n_hold - k, p, k))
                best = k;
    }
    return best;
}

int32_t turbod_stop_push(turbod_stop *s, const char *text, size_t len, bool include,
                         const char **out, size_t *out_len)
{
    memmove(s->hold, s->hold + s->shown, s->n_hold - s->shown);
    s->n_hold -= s->shown;
    s->shown = 0;
    if (len > s->cap - s->n_hold) /* a piece is never that long; losing none of it matters more */
        len = s->cap - s->n_hold;
    if (len)
        memcpy(s->hold + s->n_hold, text, len);
    s->n_hold += len;

    int32_t hit = -1;
    size_t at = 0;
    const char *p = s->text;
    for (int32_t i = 0; i < s->n; p += s->len[i], i++) {
        const char *m = memmem(s->hold, s->n_hold, p, s->len[i]);
        if (!m)
            continue;
        size_t pos = (size_t)(m - s->hold);
        if (hit < 0 || pos < at || (pos == at && s->len[i] > s->len[hit])) {
            hit = i;
            at = pos;
        }
    }
    *out = s->hold;
    if (hit >= 0) {
        *out_len = include ? at + s->len[hit] : at;
        s->shown = s->n_hold;
        return hit;
    }
    s->shown = *out_len = s->n_hold - undecided(s);
    return -1;
}

void turbod_stop_flush(turbod_stop *s, const char **out, size_t *out_len)
{
    *out = s->hold + s->shown;
    *out_len = s->n_hold - s->shown;
    s->shown = s->n_hold;
}
