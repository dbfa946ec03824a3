/* plugins/tok-spm/config.c: tokenizer_config.json and the tables built from it.
 *
 * added_tokens_decoder renames pieces by id: `[UNUSED_TOKEN_145]` of the file is `<|im_end|>` of the
 * model. A special token never results from untrusted text, neither by its new name nor by its old
 * one, so it is left out of the tables that text is looked up in. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spm.h"

#define MAX_ADDED 65536
#define CONFIG "tokenizer_config.json"

/* Room for names that live as long as the tokenizer. */
static char *keep(spm *s, size_t *used, size_t cap, const char *text, size_t len)
{
    if (cap - *used < len)
        return NULL;
    char *p = s->arena + *used;
    memcpy(p, text, len);
    *used += len;
    return p;
}

static turbo_status rename_one(spm *s, const turbo_host *h, const turbo_config *c, const char *key,
                               size_t *used, size_t cap, turbo_err *err)
{
    char path[96];
    const char *content = NULL;
    int32_t special;
    unsigned long id = 0;
    for (const char *p = key; *p; p++) {
        if (*p < '0' || *p > '9' || id > SPM_MAX_PIECES)
            return spm_fail(err, TURBO_EDATA, CONFIG ": added_tokens_decoder has the key \"%.32s\"", key);
        id = id * 10 + (unsigned long)(*p - '0');
    }
    if (!*key || id >= (unsigned long)s->n)
        return spm_fail(err, TURBO_EDATA,
                        CONFIG ": added token id %lu is beyond the %d pieces of tokenizer.model", id,
                        s->n);
    snprintf(path, sizeof path, "added_tokens_decoder.%s.content", key);
    turbo_status st = h->cfg_str(c, path, NULL, &content, err);
    snprintf(path, sizeof path, "added_tokens_decoder.%s.special", key);
    if (!st)
        st = h->cfg_bool(c, path, 0, &special, err);
    if (st)
        return st;
    if (!content || !*content || strlen(content) > SPM_MAX_PIECE)
        return spm_fail(err, TURBO_EDATA, CONFIG ": added token %lu has no content of 1 to %d bytes", id,
                        SPM_MAX_PIECE);
    spm_piece *p = &s->pieces[id];
    p->name_len = (uint32_t)strlen(content);
    p->name = keep(s, used, cap, content, p->name_len + 1);
    p->name_len = (uint32_t)strlen(content);
    p->special = special != 0;
    return p->name ? TURBO_OK : spm_fail(err, TURBO_ELIMIT, CONFIG ": the added tokens are too long");
}

/* A token named by a string, or by an object with "content". */
static turbo_status named_id(spm *s, const turbo_host *h, const turbo_config *c, const char *key,
                             int32_t *id, turbo_err *err)
{
    char path[64];
    const char *name = NULL;
    snprintf(path, sizeof path, "%s.content", key);
    turbo_status st = h->cfg_has(c, path) ? h->cfg_str(c, path, NULL, &name, err)
                      : h->cfg_len(c, key) < 0 ? h->cfg_str(c, key, NULL, &name, err)
                                               : TURBO_OK;
    if (st || !name)
        return st;
    for (int32_t i = 0; i < s->n; i++)
        if (s->pieces[i].name_len == strlen(name) && !memcmp(s->pieces[i].name, name, strlen(name))) {
            *id = i;
            return TURBO_OK;
        }
    return spm_fail(err, TURBO_EDATA, CONFIG ": %s \"%.40s\" is no token", key, name);
}

/* Forms that decoding needs: U+2581 as a blank. */
static turbo_status make_forms(spm *s, size_t extra, size_t *used, size_t *cap, turbo_err *err)
{
    size_t total = extra + 1;
    for (int32_t i = 0; i < s->n; i++)
        total += s->pieces[i].len;
    s->arena = malloc(total);
    if (!s->arena)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %zu bytes of pieces", total);
    for (int32_t i = 0; i < s->n; i++) {
        spm_piece *p = &s->pieces[i];
        p->name = p->text;
        p->name_len = p->len;
        p->out = s->arena + *used;
        p->blank_first = p->len >= 3 && !memcmp(p->text, SPM_SPACE, 3);
        for (uint32_t k = 0; k < p->len;) {
            bool blank = p->len - k >= 3 && !memcmp(p->text + k, SPM_SPACE, 3);
            s->arena[(*used)++] = blank ? ' ' : p->text[k];
            k += blank ? 3 : 1;
        }
        p->out_len = (uint32_t)(s->arena + *used - p->out);
    }
    *cap = total;
    return TURBO_OK;
}

turbo_status spm_configure(spm *s, const turbo_host *h, const char *folder, turbo_err *err)
{
    turbo_config *c = NULL;
    turbo_err why = {{0}};
    size_t used = 0, cap = 0, extra = 0;
    int64_t n = 0;
    turbo_status st = h->json_open(folder, CONFIG, &c, &why);
    if (st && st != TURBO_ENOENT) {
        *err = why;
        return st;
    }
    if (c) {
        n = h->cfg_len(c, "added_tokens_decoder");
        n = n < 0 ? 0 : n;
        if (n > MAX_ADDED) {
            st = spm_fail(err, TURBO_EDATA, CONFIG ": %lld added tokens; at most %d", (long long)n,
                          MAX_ADDED);
            goto out;
        }
        extra = (size_t)n * (SPM_MAX_PIECE + 1) < ((size_t)1 << 20) ? (size_t)n * (SPM_MAX_PIECE + 1)
                                                                    : (size_t)1 << 20;
    }
    st = make_forms(s, extra, &used, &cap, err);
    for (int64_t i = 0; i < n && !st; i++)
        st = rename_one(s, h, c, h->cfg_key(c, "added_tokens_decoder", i), &used, cap, err);
    s->add_bos = s->bos >= 0;
    if (c && !st)
        st = h->cfg_bool(c, "add_bos_token", s->bos >= 0, &s->add_bos, err);
    if (c && !st)
        st = named_id(s, h, c, "bos_token", &s->bos, err);
    if (c && !st)
        st = named_id(s, h, c, "eos_token", &s->eos, err);
out:
    h->json_close(c);
    return st;
}

turbo_status spm_index(spm *s, turbo_err *err)
{
    turbo_status st = spm_map_init(&s->lookup, (size_t)s->n, err);
    if (!st)
        st = spm_map_init(&s->user, (size_t)s->n, err);
    if (!st)
        st = spm_map_init(&s->specials, (size_t)s->n, err);
    bool any = false;
    for (int32_t i = 0; i < s->n && !st; i++) {
        const spm_piece *p = &s->pieces[i];
        bool text = p->type == SPM_NORMAL || p->type == SPM_USER || p->type == SPM_UNUSED;
        if (p->type == SPM_NORMAL) {
            s->min_score = !any || p->score < s->min_score ? p->score : s->min_score;
            s->max_score = !any || p->score > s->max_score ? p->score : s->max_score;
            any = true;
        }
        if (text && !p->special) {
            if (!spm_map_add(&s->lookup, p->text, p->len, i))
                st = spm_fail(err, TURBO_EDATA, "tokenizer.model: piece %d stands there twice", i);
            else if (p->type == SPM_USER)
                spm_map_add(&s->user, p->text, p->len, i);
        }
        if (p->special || p->type == SPM_CONTROL)
            spm_map_add(&s->specials, p->name, p->name_len, i); /* the first of equal names counts */
    }
    return st;
}
