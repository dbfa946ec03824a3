/* core/engine/detok.c: token ids to text as it arrives, never splitting a character.
 * One owner. All memory is taken when it is made: a push allocates nothing. */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "util/utf8.h"

#define MAX_PIECE 4096 /* bytes of one token; the tokenizer plugins refuse longer pieces */

struct turbod_detok {
    const turbo_tokenizer_vtbl *v;
    const void *tok;
    bool keep_special;
    uint32_t flags; /* TURBO_TOK_FIRST and _EMPTY as long as they hold */
    turbod_utf8_join join;
    char out[3 * (MAX_PIECE + 4)];
};

turbod_detok *turbod_detok_new(const turbo_tokenizer_vtbl *v, const void *tok, bool keep_special)
{
    turbod_detok *d = calloc(1, sizeof *d);
    if (d) {
        d->v = v;
        d->tok = tok;
        d->keep_special = keep_special;
        d->flags = TURBO_TOK_FIRST | TURBO_TOK_EMPTY;
    }
    return d;
}

void turbod_detok_free(turbod_detok *d)
{
    free(d);
}

void turbod_detok_continue(turbod_detok *d)
{
    d->flags = 0;
}

void turbod_detok_push(turbod_detok *d, int32_t id, const char **text, size_t *len)
{
    const char *bytes = "";
    uint32_t n = 0;
    uint32_t attr = d->v->attr(d->tok, id);
    *text = d->out;
    *len = 0;
    if (attr & (TURBO_TOKEN_CONTROL | TURBO_TOKEN_SPECIAL)) {
        /* A hidden token still ends a run of bytes, as it does when everything is decoded at once. */
        *len = turbod_utf8_flush(&d->join, d->out);
        if (!d->keep_special || d->v->name(d->tok, id, &bytes, &n))
            return;
    } else if (d->v->piece(d->tok, id, d->flags, &bytes, &n)) {
        return; /* ids beyond the vocabulary (padding rows of the head) stand for nothing */
    }
    d->flags &= ~(uint32_t)TURBO_TOK_FIRST;
    if (n > MAX_PIECE)
        n = MAX_PIECE;
    *len += turbod_utf8_push(&d->join, bytes, n, d->out + *len);
    if (*len || d->join.n)
        d->flags = 0;
}

void turbod_detok_flush(turbod_detok *d, const char **text, size_t *len)
{
    *text = d->out;
    *len = turbod_utf8_flush(&d->join, d->out);
}
