/* plugins/tok-bpe/pre.c: pre-tokenisers: a text to the words the model sees. The steps are run depth
 * first, so no list of pieces is ever made; a piece goes to the model as soon as it is cut. */
#include <string.h>

#include "bpe.h"

/* A stretch of a text that is split: a match of the pattern, or what stands between two. */
typedef struct span {
    size_t from, to;
    bool match; /* after `invert` */
} span;

/* Stretches of one text on their way to the next step. One is held back: what follows decides. */
typedef struct splitter {
    const bpe *b;
    bpe_scratch *s;
    const char *text;
    const bpe_rule *r;
    int rule;
    bool start;
    span held;
    bool any, last_match;
    bpe_ids *out;
    turbo_err *err;
} splitter;

static turbo_status piece(const splitter *p, size_t from, size_t to)
{
    if (from == to)
        return TURBO_OK;
    return bpe_pre(p->b, p->s, p->rule + 1, p->text + from, to - from, p->start && from == 0,
                   p->out, p->err);
}

static turbo_status flush(splitter *p)
{
    bool any = p->any;
    p->any = false;
    return any ? piece(p, p->held.from, p->held.to) : TURBO_OK;
}

/* One more stretch, in order. */
static turbo_status give(splitter *p, span g)
{
    bool join = false;
    g.match = g.match != p->r->invert;
    switch (p->r->behavior) {
    case BPE_ISOLATED: return piece(p, g.from, g.to);
    case BPE_REMOVED: return g.match ? TURBO_OK : piece(p, g.from, g.to);
    case BPE_WITH_PREVIOUS: join = p->any && g.match && !p->last_match; break;
    case BPE_WITH_NEXT: join = p->any && p->held.match && !g.match; break;
    default: join = p->any && p->held.match == g.match; break;
    }
    p->last_match = g.match;
    if (join) {
        p->held.to = g.to;
        if (p->r->behavior == BPE_WITH_NEXT)
            p->held.match = false;
        return TURBO_OK;
    }
    turbo_status st = flush(p);
    p->held = g;
    p->any = true;
    return st;
}

/* The next match of a pattern, which is a text or a regular expression. */
static int next(const splitter *p, size_t len, bpe_search *at, size_t *start, size_t *end)
{
    const bpe_rule *r = p->r;
    if (r->regex)
        return bpe_regex_next(r->regex, p->s, p->text, len, at, start, end);
    const char *hit = memmem(p->text + at->from, len - at->from, r->text, r->text_len);
    if (!hit)
        return 0;
    *start = (size_t)(hit - p->text);
    *end = at->from = *start + r->text_len;
    return 1;
}

static turbo_status split(splitter *p, size_t len)
{
    turbo_status st = TURBO_OK;
    size_t from = 0, start, end;
    bpe_search at = {0};
    int rc;
    while (!st && (rc = next(p, len, &at, &start, &end)) > 0) {
        if (start > from)
            st = give(p, (span){from, start, false});
        if (!st)
            st = give(p, (span){start, end, true});
        from = end;
    }
    if (!st && rc < 0)
        return bpe_match_failed(rc, p->err);
    if (!st && from < len)
        st = give(p, (span){from, len, false});
    return st ? st : flush(p);
}

/* Blanks become the replacement; one is put in front; a word begins at each. */
static turbo_status metaspace(const splitter *p, size_t len)
{
    const bpe_rule *r = p->r;
    bpe_buf *to = &p->s->pre[p->rule];
    bool has = *p->text == ' ' || (len >= r->with_len && !memcmp(p->text, r->with, r->with_len));
    bool ok = true;
    to->len = 0;
    if (!has && (r->scheme == BPE_ALWAYS || (r->scheme == BPE_FIRST && p->start)))
        ok = bpe_buf_add(to, r->with, r->with_len);
    for (size_t i = 0; i < len && ok;) {
        const char *blank = memchr(p->text + i, ' ', len - i);
        size_t n = blank ? (size_t)(blank - p->text) - i : len - i;
        ok = bpe_buf_add(to, p->text + i, n) && (!blank || bpe_buf_add(to, r->with, r->with_len));
        i += n + (blank != NULL);
    }
    if (!ok)
        return bpe_no_memory(p->err);
    splitter q = *p;
    q.text = to->p;
    turbo_status st = TURBO_OK;
    size_t from = 0;
    while (r->split && from < to->len && !st) {
        const char *hit = to->len - from > r->with_len
                              ? memmem(to->p + from + r->with_len, to->len - from - r->with_len,
                                       r->with, r->with_len)
                              : NULL;
        /* A word that does not begin with the replacement is shorter than one, perhaps. */
        if (memcmp(to->p + from, r->with,
                   to->len - from < r->with_len ? to->len - from : r->with_len))
            hit = memmem(to->p + from, to->len - from, r->with, r->with_len);
        size_t end = hit ? (size_t)(hit - to->p) : to->len;
        st = piece(&q, from, end);
        from = end;
    }
    return st || r->split ? st : piece(&q, 0, to->len);
}

static turbo_status prefix(const splitter *p, size_t len)
{
    if (*p->text == ' ')
        return piece(p, 0, len);
    bpe_buf *to = &p->s->pre[p->rule];
    to->len = 0;
    if (!bpe_buf_add(to, " ", 1) || !bpe_buf_add(to, p->text, len))
        return bpe_no_memory(p->err);
    splitter q = *p;
    q.text = to->p;
    return piece(&q, 0, to->len);
}

turbo_status bpe_pre(const bpe *b, bpe_scratch *s, int rule, const char *text, size_t len,
                     bool start, bpe_ids *out, turbo_err *err)
{
    if (!len)
        return TURBO_OK;
    if (rule == b->pre.n)
        return bpe_model(b, s, text, len, out, err);
    splitter p = {.b = b,
                  .s = s,
                  .text = text,
                  .r = &b->pre.r[rule],
                  .rule = rule,
                  .start = start,
                  .out = out,
                  .err = err};
    switch (p.r->kind) {
    case BPE_P_SPLIT: return split(&p, len);
    case BPE_P_METASPACE: return metaspace(&p, len);
    default: return prefix(&p, len);
    }
}
