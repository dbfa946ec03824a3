/* plugins/tok-spm/unigram.c: the most probable segmentation under a unigram model, by Viterbi
 * (arXiv 1804.10959). Scores add up in single precision, as in the reference, so that ties
 * ("...." is "." + "..." or "..." + ".") fall the same way. */
#include <stdlib.h>
#include <string.h>

#include "spm.h"

/* The score of a user-defined piece for each byte behind the first, as version 0.2.3
 * of the library has it; older ones took the length times the largest score, less 0.1. */
#define USER_BONUS 0.1f

typedef struct node {
    int32_t id;
    float score;
    int64_t start; /* -1: not reached */
} node;

static void offer(node *to, float candidate, int64_t start, int32_t id)
{
    if (to->start < 0 || candidate > to->score)
        *to = (node){id, candidate, start};
}

static void extend(const spm *s, const char *text, size_t len, size_t at, node *best)
{
    const float here = best[at].score;
    size_t one = spm_char_len((unsigned char)text[at]);
    one = one < len - at ? one : len - at;
    bool single = false;
    uint32_t where = 0;
    for (size_t l = 1; l <= len - at && spm_trie_step(&s->words, &where, (uint8_t)text[at + l - 1]);
         l++) {
        int32_t id = s->words.nodes[where].id;
        if (id < 0)
            continue;
        float score =
            s->pieces[id].type == SPM_USER ? USER_BONUS * (float)(l - 1) : s->pieces[id].score;
        offer(&best[at + l], score + here, (int64_t)at, id);
        single = single || l == one;
    }
    if (!single)
        offer(&best[at + one], s->min_score - 10.0f + here, (int64_t)at, s->unk);
}

turbo_status spm_unigram(const spm *s, const char *text, size_t len, spm_ids *out, turbo_err *err)
{
    size_t bytes;
    if (__builtin_mul_overflow(len + 1, sizeof(node), &bytes))
        return spm_fail(err, TURBO_ELIMIT, "a text of %zu bytes is too long to tokenise", len);
    node *best = malloc(bytes);
    if (!best)
        return spm_fail(err, TURBO_ENOMEM, "no memory to tokenise %zu bytes", len);
    for (size_t i = 0; i <= len; i++)
        best[i] = (node){-1, 0, -1};
    best[0].start = 0;
    for (size_t at = 0; at < len;) {
        extend(s, text, len, at, best);
        size_t one = spm_char_len((unsigned char)text[at]);
        at += one < len - at ? one : len - at;
    }
    /* Walk back, turning each node's start into a forward link. */
    int64_t end = (int64_t)len, next = -1;
    while (end > 0) {
        int64_t start = best[end].start;
        best[end].start = next;
        next = end;
        end = start;
    }
    bool prev_unk = false;
    int64_t at = 0;
    for (int64_t e = next; e > 0; e = best[e].start) {
        if (best[e].id == s->unk) {
            prev_unk = spm_unknown(s, text + at, (size_t)(e - at), prev_unk, out);
        } else {
            spm_emit(out, best[e].id);
            prev_unk = false;
        }
        at = e;
    }
    free(best);
    return TURBO_OK;
}
