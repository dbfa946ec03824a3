/* plugins/tok-spm/config.c: the JSON files beside tokenizer.model, all optional.
 *
 * tokenizer_config.json: added_tokens_decoder names tokens by id: `[UNUSED_TOKEN_145]` of the
 * .model may be `<|im_end|>` of the chat format; ids behind the last piece are new tokens. Where
 * there is no such table, added_tokens.json (name to id) is read, and what it lists is special.
 * "legacy": true puts a dummy prefix in front of each stretch between special tokens.
 * special_tokens_map.json and tokenizer_config.json say which tokens are bos, eos and special. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spm.h"

#define MAX_ADDED 65536
#define CONFIG "tokenizer_config.json"
#define ADDED "added_tokens.json"
#define SPECIAL "special_tokens_map.json"
#define DECODER "added_tokens_decoder"

/* A line of added_tokens_decoder; content lives as long as the turbo_config. */
typedef struct added {
    const char *content;
    int32_t id;
    int32_t special, lstrip, rstrip;
} added;

typedef struct source {
    const turbo_host *h;
    turbo_config *config, *names, *map; /* the three files, NULL when absent */
    added *list;
    int64_t n;
} source;

static turbo_status open_optional(const turbo_host *h, const char *folder, const char *file,
                                  turbo_config **out, turbo_err *err)
{
    turbo_err why = {{0}};
    turbo_status st = h->json_open(folder, file, out, &why);
    if (st == TURBO_ENOENT) {
        *out = NULL;
        return TURBO_OK;
    }
    if (st)
        *err = why;
    return st;
}

static turbo_status read_flag(const source *f, const char *key, const char *flag, int32_t *out,
                              turbo_err *err)
{
    char path[96];
    snprintf(path, sizeof path, DECODER ".%s.%s", key, flag);
    return f->h->cfg_bool(f->config, path, 0, out, err);
}

static turbo_status read_decoder_line(const source *f, int64_t i, added *a, turbo_err *err)
{
    const char *key = f->h->cfg_key(f->config, DECODER, i);
    char path[96];
    int64_t id = key && *key ? 0 : -1;
    for (const char *p = key; id >= 0 && *p; p++)
        id = *p < '0' || *p > '9' || id > SPM_MAX_PIECES ? -1 : id * 10 + (*p - '0');
    if (id < 0 || id > SPM_MAX_PIECES)
        return spm_fail(err, TURBO_EDATA,
                        CONFIG ": " DECODER " has the key \"%.32s\", an id is needed",
                        key ? key : "");
    int32_t single = 0;
    a->id = (int32_t)id;
    snprintf(path, sizeof path, DECODER ".%s.content", key);
    turbo_status st = f->h->cfg_str(f->config, path, NULL, &a->content, err);
    if (!st)
        st = read_flag(f, key, "special", &a->special, err);
    if (!st)
        st = read_flag(f, key, "lstrip", &a->lstrip, err);
    if (!st)
        st = read_flag(f, key, "rstrip", &a->rstrip, err);
    if (!st)
        st = read_flag(f, key, "single_word", &single, err);
    if (!st && single)
        st = spm_fail(err, TURBO_EUNSUPPORTED,
                      CONFIG ": added token %s is single_word, which is not supported", key);
    return st;
}

static turbo_status read_names_line(const source *f, int64_t i, added *a, turbo_err *err)
{
    const char *key = f->h->cfg_key(f->names, "", i);
    int64_t id = -1;
    if (!key || !*key || !f->h->cfg_has(f->names, key)) /* a dot in a name reads as a path */
        return spm_fail(err, TURBO_EUNSUPPORTED,
                        ADDED ": the token \"%.40s\" cannot be read; list it in " CONFIG
                              " as " DECODER,
                        key ? key : "");
    turbo_status st = f->h->cfg_int(f->names, key, -1, 0, SPM_MAX_PIECES, &id, err);
    *a = (added){.content = key, .id = (int32_t)id, .special = 1};
    return st;
}

static turbo_status read_added(source *f, turbo_err *err)
{
    bool decoder = f->config && f->h->cfg_has(f->config, DECODER);
    f->n = decoder ? f->h->cfg_len(f->config, DECODER) : f->names ? f->h->cfg_len(f->names, "") : 0;
    if (f->n < 0 || f->n > MAX_ADDED)
        return spm_fail(err, TURBO_EDATA, "%s: the added tokens must be an object of at most %d",
                        decoder ? CONFIG : ADDED, MAX_ADDED);
    f->list = calloc((size_t)f->n + 1, sizeof *f->list);
    if (!f->list)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %lld added tokens", (long long)f->n);
    turbo_status st = TURBO_OK;
    for (int64_t i = 0; i < f->n && !st; i++) {
        added *a = &f->list[i];
        st = decoder ? read_decoder_line(f, i, a, err) : read_names_line(f, i, a, err);
        if (!st && (!a->content || !*a->content || strlen(a->content) > SPM_MAX_PIECE))
            st = spm_fail(err, TURBO_EDATA, "%s: added token %d has no content of 1 to %d bytes",
                          decoder ? CONFIG : ADDED, a->id, SPM_MAX_PIECE);
    }
    return st;
}

/* Forms that decoding needs: U+2581 as a blank. */
turbo_status spm_forms(spm *s, turbo_err *err)
{
    size_t total = 1, used = 0;
    for (int32_t i = 0; i < s->n; i++)
        total += s->pieces[i].len; /* together at most the file */
    s->forms = malloc(total);
    if (!s->forms)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %zu bytes of pieces", total);
    for (int32_t i = 0; i < s->n; i++) {
        spm_piece *p = &s->pieces[i];
        p->name = p->text;
        p->name_len = p->len;
        p->out = s->forms + used;
        p->blank_first = p->len >= 3 && !memcmp(p->text, SPM_SPACE, 3);
        for (uint32_t k = 0; k < p->len;) {
            bool blank = p->len - k >= 3 && !memcmp(p->text + k, SPM_SPACE, 3);
            s->forms[used++] = blank ? ' ' : p->text[k];
            k += blank ? 3 : 1;
        }
        p->out_len = (uint32_t)(s->forms + used - p->out);
    }
    return TURBO_OK;
}

/* Room for ids behind the last piece, which must all be named. */
static turbo_status extend(spm *s, const source *f, turbo_err *err)
{
    int32_t last = s->n - 1;
    for (int64_t i = 0; i < f->n; i++)
        last = f->list[i].id > last ? f->list[i].id : last;
    s->n_file = s->n;
    if (last - s->n >= MAX_ADDED)
        return spm_fail(err, TURBO_EDATA,
                        "added token id %d is far beyond the %d pieces of tokenizer.model", last,
                        s->n);
    if (last < s->n)
        return TURBO_OK;
    spm_piece *more = realloc(s->pieces, ((size_t)last + 1) * sizeof *more);
    if (!more)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %d tokens", last + 1);
    s->pieces = more;
    for (; s->n <= last; s->n++)
        more[s->n] = (spm_piece){.text = "", .out = "", .type = SPM_ADDED};
    return TURBO_OK;
}

static turbo_status name_tokens(spm *s, const source *f, turbo_err *err)
{
    size_t total = 1, used = 0;
    for (int64_t i = 0; i < f->n; i++)
        total += strlen(f->list[i].content); /* 65,536 of 4,096 bytes at most */
    s->arena = malloc(total);
    if (!s->arena)
        return spm_fail(err, TURBO_ENOMEM, "no memory for %zu bytes of names", total);
    for (int64_t i = 0; i < f->n; i++) {
        const added *a = &f->list[i];
        spm_piece *p = &s->pieces[a->id];
        size_t n = strlen(a->content);
        bool same = p->len == n && !memcmp(p->text, a->content, n);
        if (p->added || (p->type == SPM_BYTE && (a->special || !same)))
            return spm_fail(err, TURBO_EDATA, "added token %d is %s", a->id,
                            p->added ? "listed twice" : "a byte piece of tokenizer.model");
        memcpy(s->arena + used, a->content, n);
        p->name = s->arena + used;
        p->name_len = (uint32_t)n;
        used += n;
        p->added = true;
        p->special = a->special;
        p->lstrip = a->lstrip;
        p->rstrip = a->rstrip;
        p->renamed = !same;
        if (p->renamed && p->type != SPM_CONTROL && p->type != SPM_UNKNOWN) {
            p->out = p->name;
            p->out_len = p->name_len;
            p->blank_first = false;
        }
    }
    for (int32_t i = s->n_file; i < s->n; i++)
        if (!s->pieces[i].added)
            return spm_fail(err, TURBO_EDATA,
                            "token %d has no name: tokenizer.model ends at %d, and added tokens "
                            "behind it must leave no gap",
                            i, s->n_file - 1);
    return TURBO_OK;
}

/* The token a key names, by a string or an object with "content"; -1 when the key is absent. */
static turbo_status named(spm *s, const turbo_host *h, const turbo_config *c, const char *key,
                          bool must, int32_t *id, turbo_err *err)
{
    char path[96];
    const char *name = NULL;
    *id = -1;
    snprintf(path, sizeof path, "%s.content", key);
    turbo_status st = h->cfg_has(c, path) ? h->cfg_str(c, path, NULL, &name, err)
                                          : h->cfg_str(c, key, NULL, &name, err);
    if (st || !name)
        return st;
    size_t n = strlen(name);
    for (int32_t i = s->n; i-- > 0;) /* a renamed piece before one of the file */
        if (s->pieces[i].name_len == n && !memcmp(s->pieces[i].name, name, n)) {
            *id = i;
            return TURBO_OK;
        }
    if (must)
        return spm_fail(err, TURBO_EDATA, "%s \"%.40s\" is no token of tokenizer.model or " DECODER,
                        key, name);
    return TURBO_OK;
}

/* What one of the two files says about bos, eos and other special tokens. */
static turbo_status read_roles(spm *s, const turbo_host *h, const turbo_config *c, turbo_err *err)
{
    static const char *const keys[] = {"bos_token", "eos_token",  "unk_token", "pad_token",
                                       "cls_token", "mask_token", "sep_token"};
    turbo_status st = TURBO_OK;
    if (!c)
        return TURBO_OK;
    int64_t more = h->cfg_len(c, "additional_special_tokens");
    more = more < 0 ? 0 : more > MAX_ADDED ? MAX_ADDED : more;
    for (int64_t i = 0; i < 7 + more && !st; i++) {
        char path[64];
        int32_t id;
        if (i < 7)
            snprintf(path, sizeof path, "%s", keys[i]);
        else
            snprintf(path, sizeof path, "additional_special_tokens.%lld", (long long)i - 7);
        st = named(s, h, c, path, i < 2, &id, err);
        if (st || id < 0 || s->pieces[id].type == SPM_BYTE)
            continue;
        s->pieces[id].special = true;
        if (i == 0)
            s->bos = id;
        if (i == 1)
            s->eos = id;
    }
    return st;
}

turbo_status spm_configure(spm *s, const turbo_host *h, const char *folder, turbo_err *err)
{
    source f = {.h = h};
    turbo_status st = spm_forms(s, err);
    if (!st)
        st = open_optional(h, folder, CONFIG, &f.config, err);
    if (!st)
        st = open_optional(h, folder, ADDED, &f.names, err);
    if (!st)
        st = open_optional(h, folder, SPECIAL, &f.map, err);
    if (!st)
        st = read_added(&f, err);
    if (!st)
        st = extend(s, &f, err);
    if (!st)
        st = name_tokens(s, &f, err);
    if (!st)
        st = read_roles(s, h, f.map, err);
    if (!st)
        st = read_roles(s, h, f.config, err);
    s->add_bos = s->bos >= 0;
    if (!st && f.config)
        st = h->cfg_bool(f.config, "add_bos_token", s->add_bos, &s->add_bos, err);
    if (!st && f.config)
        st = h->cfg_bool(f.config, "legacy", 0, &s->each_stretch, err);
    free(f.list);
    h->json_close(f.config);
    h->json_close(f.names);
    h->json_close(f.map);
    return st;
}
