/* plugins/tok-spm/index.c: the tables of a model, once files and names are known.
 *
 * What ordinary text may become is decided here: a special, renamed or added token is in no table
 * that such text is looked up in, neither by its new name nor by its old one. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "spm.h"

static bool from_text(const spm_piece *p)
{
    bool text = p->type == SPM_NORMAL || p->type == SPM_USER || p->type == SPM_UNUSED;
    return text && !p->special && !p->renamed;
}

static bool is_word(const spm_piece *p)
{
    return from_text(p) && p->type != SPM_UNUSED;
}

static bool is_user(const spm_piece *p)
{
    return from_text(p) && p->type == SPM_USER;
}

static bool is_cut(const spm_piece *p)
{
    return p->special || p->added || p->type == SPM_CONTROL;
}

/* A trie of the pieces that `wanted` picks, by text or by name. */
static turbo_status build(const spm *s, bool (*wanted)(const spm_piece *), bool by_name,
                          spm_trie *t, turbo_err *err)
{
    spm_key *keys = calloc((size_t)s->n, sizeof *keys);
    size_t n = 0;
    if (!keys)
        return spm_fail(err, TURBO_ENOMEM, "no memory for an index of %d pieces", s->n);
    for (int32_t i = 0; i < s->n; i++) {
        const spm_piece *p = &s->pieces[i];
        if (wanted(p))
            keys[n++] =
                by_name ? (spm_key){p->name, p->name_len, i} : (spm_key){p->text, p->len, i};
    }
    turbo_status st = spm_trie_build(t, keys, n, err);
    free(keys);
    return st;
}

static turbo_status fill_maps(spm *s, turbo_err *err)
{
    turbo_status st = spm_map_init(&s->lookup, (size_t)s->n, err);
    s->min_score = FLT_MAX;
    if (!st)
        st = spm_map_init(&s->names, (size_t)s->n, err);
    for (int32_t i = 0; i < s->n && !st; i++) {
        const spm_piece *p = &s->pieces[i];
        if (p->type == SPM_NORMAL)
            s->min_score = fminf(s->min_score, p->score);
        if (from_text(p) && !spm_map_add(&s->lookup, p->text, p->len, i))
            st = spm_fail(err, TURBO_EDATA, "%s: piece %d stands there twice", s->list, i);
        /* Of equal names a special one is meant; see below. */
        if (is_cut(p))
            spm_map_add(&s->names, p->name, p->name_len, i);
    }
    for (int32_t i = 0; i < s->n && !st; i++)
        if (!is_cut(&s->pieces[i]))
            spm_map_add(&s->names, s->pieces[i].name, s->pieces[i].name_len, i);
    return st;
}

turbo_status spm_index(spm *s, turbo_err *err)
{
    turbo_status st = fill_maps(s, err);
    if (!st)
        st = build(s, is_user, false, &s->user, err);
    if (!st)
        st = build(s, is_cut, true, &s->specials, err);
    if (!st && s->model_type == SPM_BPE)
        st = spm_words_init(s, err);
    if (!st && s->model_type == SPM_UNIGRAM)
        st = build(s, is_word, false, &s->words, err);
    return st;
}
