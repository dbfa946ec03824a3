/* core/engine/encode.c: text to a fresh array of ids. Any thread. */
#include <stdlib.h>

#include "engine/engine.h"
#include "util/checked.h"
#include "util/err.h"

turbo_status turbod_encode_text(const turbo_tokenizer_vtbl *v, const void *tok, const char *text,
                                size_t len, bool add_bos, bool trusted, int32_t **ids,
                                size_t *n_ids, turbo_err *err)
{
    turbo_tokenizer_info info = {.size = sizeof info};
    v->info(tok, &info);
    size_t bos = add_bos && info.add_bos && info.bos >= 0;
    /* Every token of a text stands for at least one byte of it, a dummy prefix for none: so one
     * pass into a buffer of the text's length is enough, and it is never large by accident. */
    size_t cap, bytes;
    if (!turbod_add(len, bos + 8, &cap) || !turbod_mul(cap, sizeof **ids, &bytes))
        return turbod_err(err, TURBO_ELIMIT, "the text is too long");
    int32_t *out = malloc(bytes);
    if (!out)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu tokens", cap);
    uint64_t n = 0;
    uint32_t flags = (trusted ? (uint32_t)TURBO_TOK_TRUSTED : 0) | (uint32_t)TURBO_TOK_FIRST;
    if (bos)
        out[0] = info.bos;
    turbo_status st = v->encode(tok, text, len, flags, out + bos, cap - bos, &n, err);
    if (st == TURBO_ELIMIT && n > cap - bos) { /* a normaliser that lengthens text: ask again */
        int32_t *more = realloc(out, (n + bos) * sizeof *out);
        if (!more) {
            free(out);
            return turbod_err(err, TURBO_ENOMEM, "no memory for %llu tokens", (unsigned long long)n);
        }
        out = more;
        st = v->encode(tok, text, len, flags, out + bos, n, &n, err);
    }
    if (st) {
        free(out);
        return st;
    }
    *ids = out;
    *n_ids = n + bos;
    return TURBO_OK;
}
