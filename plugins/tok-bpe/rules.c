/* plugins/tok-bpe/rules.c: the normaliser, pre-tokeniser and post-processor of tokenizer.json, read
 * into the lists that normal.c and pre.c run. What is not known is refused by its name. */
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

#define NORMAL "tokenizer.json: normalizer"
#define PRE "tokenizer.json: pre_tokenizer"
/* The pattern of GPT-2's encoder, which ByteLevel uses. */
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* \w+|[^\w\s]+ in a dialect where joiners are word characters. */
#define WHITESPACE_PATTERN "[\\w\\u200c\\u200d]+|[^\\w\\s\\u200c\\u200d]+"

turbo_status bpe_bad_rule(turbo_err *err, const bpe_json *j, const char *part, const bpe_node *v)
{
    const bpe_node *type = bpe_json_get(j, v, "type");
    if (!type || type->type != BPE_STRING)
        return bpe_fail(err, TURBO_EDATA, "tokenizer.json: %s: an object with a \"type\" is needed",
                        part);
    return bpe_fail(err, TURBO_EUNSUPPORTED,
                    "tokenizer.json: %s: \"%.*s\" is not known, or has settings that are not", part,
                    (int)(type->len < 60 ? type->len : 60), bpe_json_text(j, type));
}

bpe_rule *bpe_new_rule(bpe_rules *rules, int32_t kind, turbo_err *err)
{
    if (rules->n == BPE_MAX_RULES) {
        bpe_fail(err, TURBO_ELIMIT, "tokenizer.json: more than %d steps", BPE_MAX_RULES);
        return NULL;
    }
    bpe_rule *r = &rules->r[rules->n++];
    r->kind = kind;
    return r;
}

void bpe_rules_free(bpe_rules *rules)
{
    for (int i = 0; i < rules->n; i++) {
        bpe_regex_free(rules->r[i].regex);
        free(rules->r[i].text);
        free(rules->r[i].with);
    }
    rules->n = 0;
}

/* A string member, copied; false when it is absent, no string, too long, or memory ran out. */
static bool copy(const bpe_json *j, const bpe_node *v, char **out, size_t *len)
{
    if (!v || v->type != BPE_STRING || v->len > BPE_MAX_PIECE)
        return false;
    *out = malloc((size_t)v->len + 1);
    if (!*out)
        return false;
    memcpy(*out, bpe_json_text(j, v), v->len);
    (*out)[v->len] = '\0';
    *len = v->len;
    return true;
}

/* Runs read on v, or on each element of a Sequence. */
static turbo_status
each(bpe *b, const bpe_json *j, const bpe_node *v, const char *list,
     turbo_status (*read)(bpe *, const bpe_json *, const bpe_node *, turbo_err *), turbo_err *err)
{
    if (!bpe_json_is(j, bpe_json_get(j, v, "type"), "Sequence"))
        return read(b, j, v, err);
    const bpe_node *parts = bpe_json_get(j, v, list);
    if (!parts || parts->type != BPE_ARRAY)
        return bpe_fail(err, TURBO_EDATA, "tokenizer.json: a Sequence without its list \"%s\"",
                        list);
    turbo_status st = TURBO_OK;
    for (const bpe_node *e = bpe_json_child(j, parts); e && !st; e = bpe_json_next(j, e))
        st = read(b, j, e, err);
    return st;
}

/* ---- normalisers --------------------------------------------------------------------------- */

static turbo_status read_pattern(const bpe_json *j, const bpe_node *pattern, const char *where,
                                 bpe_rule *r, turbo_err *err)
{
    const bpe_node *re = bpe_json_get(j, pattern, "Regex"), *s = bpe_json_get(j, pattern, "String");
    if (re && re->type == BPE_STRING)
        return bpe_regex_new(bpe_json_text(j, re), re->len, where, &r->regex, err);
    if (s && s->len && copy(j, s, &r->text, &r->text_len))
        return TURBO_OK;
    return bpe_fail(err, TURBO_EDATA, "%s: a pattern with a Regex or a String is needed", where);
}

static turbo_status read_normal(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    static const struct {
        const char *name;
        int32_t kind;
    } rows[] = {
        {"NFC", BPE_N_NFC},         {"NFD", BPE_N_NFD},         {"NFKC", BPE_N_NFKC},
        {"NFKD", BPE_N_NFKD},       {"Lowercase", BPE_N_LOWER}, {"Replace", BPE_N_REPLACE},
        {"Prepend", BPE_N_PREPEND}, {"Strip", BPE_N_STRIP},
    };
    const bpe_node *type = bpe_json_get(j, v, "type");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!bpe_json_is(j, type, rows[i].name))
            continue;
        bpe_rule *r = bpe_new_rule(&b->normal, rows[i].kind, err);
        if (!r)
            return TURBO_ELIMIT;
        bool ok = true;
        turbo_status st = TURBO_OK;
        if (r->kind == BPE_N_REPLACE) {
            st = read_pattern(j, bpe_json_get(j, v, "pattern"), NORMAL, r, err);
            ok = copy(j, bpe_json_get(j, v, "content"), &r->with, &r->with_len);
        } else if (r->kind == BPE_N_PREPEND) {
            ok = copy(j, bpe_json_get(j, v, "prepend"), &r->with, &r->with_len);
        } else if (r->kind == BPE_N_STRIP) {
            ok = bpe_json_bool(j, v, "strip_left", true, &r->left) &&
                 bpe_json_bool(j, v, "strip_right", true, &r->right);
        }
        return st || ok ? st
                        : bpe_fail(err, TURBO_EDATA, NORMAL ": %s lacks a setting, or it is wrong",
                                   rows[i].name);
    }
    return bpe_bad_rule(err, j, "normalizer", v);
}

turbo_status bpe_read_normalizer(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    return v ? each(b, j, v, "normalizers", read_normal, err) : TURBO_OK;
}

/* ---- pre-tokenisers ------------------------------------------------------------------------ */

turbo_status bpe_add_split(bpe *b, const char *pattern, int32_t behavior, bool invert,
                           turbo_err *err)
{
    bpe_rule *r = bpe_new_rule(&b->pre, BPE_P_SPLIT, err);
    if (!r)
        return TURBO_ELIMIT;
    r->behavior = behavior;
    r->invert = invert;
    return bpe_regex_new(pattern, strlen(pattern), PRE, &r->regex, err);
}

turbo_status bpe_byte_level(bpe *b, bool prefix, bool regex, turbo_err *err)
{
    b->byte_level = true;
    if (prefix && !bpe_new_rule(&b->pre, BPE_P_PREFIX, err))
        return TURBO_ELIMIT;
    return regex ? bpe_add_split(b, GPT2_PATTERN, BPE_ISOLATED, false, err) : TURBO_OK;
}

static bool read_behavior(const bpe_json *j, const bpe_node *v, int32_t *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    for (int32_t i = 0; i < 5; i++)
        if (bpe_json_is(j, v, names[i])) {
            *out = i;
            return true;
        }
    return false;
}

static turbo_status read_split(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    bpe_rule *r = bpe_new_rule(&b->pre, BPE_P_SPLIT, err);
    if (!r)
        return TURBO_ELIMIT;
    if (!read_behavior(j, bpe_json_get(j, v, "behavior"), &r->behavior) ||
        !bpe_json_bool(j, v, "invert", false, &r->invert))
        return bpe_bad_rule(err, j, "pre_tokenizer", v);
    return read_pattern(j, bpe_json_get(j, v, "pattern"), PRE, r, err);
}

static turbo_status read_metaspace(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    const bpe_node *scheme = bpe_json_get(j, v, "prepend_scheme");
    bool prefix;
    bpe_rule *r = bpe_new_rule(&b->pre, BPE_P_METASPACE, err);
    if (!r)
        return TURBO_ELIMIT;
    bool ok = copy(j, bpe_json_get(j, v, "replacement"), &r->with, &r->with_len) && r->with_len &&
              bpe_char_len((unsigned char)r->with[0]) == r->with_len &&
              bpe_json_bool(j, v, "add_prefix_space", true, &prefix) &&
              bpe_json_bool(j, v, "split", true, &r->split);
    if (ok && !scheme) /* files of older versions have add_prefix_space only */
        r->scheme = prefix ? BPE_ALWAYS : BPE_NEVER;
    else if (ok && bpe_json_is(j, scheme, "always"))
        r->scheme = BPE_ALWAYS;
    else if (ok && bpe_json_is(j, scheme, "first"))
        r->scheme = BPE_FIRST;
    else if (ok && bpe_json_is(j, scheme, "never"))
        r->scheme = BPE_NEVER;
    else
        ok = false;
    return ok ? TURBO_OK : bpe_bad_rule(err, j, "pre_tokenizer", v);
}

static turbo_status read_pre(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    const bpe_node *type = bpe_json_get(j, v, "type");
    bool flag, regex;
    int32_t behavior = BPE_ISOLATED;
    if (b->byte_level)
        return bpe_fail(err, TURBO_EUNSUPPORTED, PRE ": ByteLevel must be the last step");
    if (bpe_json_is(j, type, "Split"))
        return read_split(b, j, v, err);
    if (bpe_json_is(j, type, "Metaspace"))
        return read_metaspace(b, j, v, err);
    if (bpe_json_is(j, type, "ByteLevel") && bpe_json_bool(j, v, "add_prefix_space", true, &flag) &&
        bpe_json_bool(j, v, "use_regex", true, &regex))
        return bpe_byte_level(b, flag, regex, err);
    if (bpe_json_is(j, type, "Digits") && bpe_json_bool(j, v, "individual_digits", false, &flag))
        return bpe_add_split(b, "\\p{N}", flag ? BPE_ISOLATED : BPE_CONTIGUOUS, false, err);
    if (bpe_json_is(j, type, "Whitespace"))
        return bpe_add_split(b, WHITESPACE_PATTERN, BPE_REMOVED, true, err);
    if (bpe_json_is(j, type, "WhitespaceSplit"))
        return bpe_add_split(b, "\\s", BPE_REMOVED, false, err);
    const bpe_node *how = bpe_json_get(j, v, "behavior");
    if (bpe_json_is(j, type, "Punctuation") && (!how || read_behavior(j, how, &behavior)))
        return bpe_add_split(b, "[\\p{P}$+<=>^`|~]", behavior, false, err);
    return bpe_bad_rule(err, j, "pre_tokenizer", v);
}

turbo_status bpe_read_pre(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    return v ? each(b, j, v, "pretokenizers", read_pre, err) : TURBO_OK;
}

/* ---- post-processors: which token stands in front of a text -------------------------------- */

static turbo_status front(bpe *b, const char *name, size_t len, turbo_err *err)
{
    int32_t id = bpe_map_find(b, &b->names, name, len);
    if (id < 0)
        return bpe_fail(err, TURBO_EDATA,
                        "tokenizer.json: post_processor: \"%.*s\" is no token of this vocabulary",
                        (int)(len < 40 ? len : 40), name);
    if (b->add_bos)
        return bpe_fail(err, TURBO_EUNSUPPORTED,
                        "tokenizer.json: post_processor: two tokens in front of a text are not "
                        "supported");
    b->bos = id;
    b->add_bos = true;
    return TURBO_OK;
}

/* "single" is a list of {"SpecialToken": {"id": name}} and {"Sequence": {"id": "A"}}. What it has
 * behind the text ends a document; a prompt is to be continued and gets no such token. */
static turbo_status read_template(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    const bpe_node *single = bpe_json_get(j, v, "single"),
                   *known = bpe_json_get(j, v, "special_tokens");
    turbo_status st = TURBO_OK;
    for (const bpe_node *e = bpe_json_child(j, single); e && !st; e = bpe_json_next(j, e)) {
        const bpe_node *name = bpe_json_get(j, bpe_json_get(j, e, "SpecialToken"), "id");
        if (bpe_json_get(j, e, "Sequence"))
            return TURBO_OK;
        if (!name || name->type != BPE_STRING || name->len > 1000)
            return bpe_bad_rule(err, j, "post_processor", v);
        /* The name is that of the template; what it inserts are the tokens behind it. */
        char key[1001];
        memcpy(key, bpe_json_text(j, name), name->len);
        key[name->len] = '\0';
        const bpe_node *entry = bpe_json_get(j, known, key),
                       *tokens = bpe_json_get(j, entry, "tokens");
        const bpe_node *first = bpe_json_child(j, tokens);
        if (!first || first->type != BPE_STRING || bpe_json_next(j, first))
            return bpe_bad_rule(err, j, "post_processor", v);
        st = front(b, bpe_json_text(j, first), first->len, err);
    }
    return st ? st : bpe_bad_rule(err, j, "post_processor", v); /* no Sequence in it */
}

static turbo_status read_post(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    const bpe_node *type = bpe_json_get(j, v, "type");
    if (bpe_json_is(j, type, "ByteLevel"))
        return TURBO_OK; /* it moves offsets only */
    if (bpe_json_is(j, type, "TemplateProcessing"))
        return read_template(b, j, v, err);
    if (bpe_json_is(j, type, "RobertaProcessing") || bpe_json_is(j, type, "BertProcessing")) {
        const bpe_node *cls = bpe_json_child(j, bpe_json_get(j, v, "cls"));
        if (cls && cls->type == BPE_STRING)
            return front(b, bpe_json_text(j, cls), cls->len, err);
    }
    return bpe_bad_rule(err, j, "post_processor", v);
}

turbo_status bpe_read_post(bpe *b, const bpe_json *j, const bpe_node *v, turbo_err *err)
{
    return v ? each(b, j, v, "processors", read_post, err) : TURBO_OK;
}
