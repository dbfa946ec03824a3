/* plugins/tok-bpe/regex.c: patterns of the reference's dialect (Oniguruma, Ruby syntax, UTF-8) for
 * PCRE2. Compiled once, matched by any thread with a matcher of its own.
 *
 * The dialects differ in what \s, \w, \d, \h and \v mean, in {,n}, in possessive intervals and
 * nested sets. The first are written out, so that white space is White_Space and a word character
 * is Alphabetic, a mark, a digit or a connector; what is not known to be the same in both is refused
 * by name. Subjects are valid UTF-8: the caller has looked once, so PCRE2 need not look each time. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "bpe.h"

#define MAX_PATTERN 8192
#define MATCH_LIMIT 20000000
#define JIT_STACK ((size_t)4 << 20)
#define SPACES                                                                                     \
    "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"          \
    "\\x{205f}\\x{3000}"
#define NO_SPACES                                                                                  \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"                   \
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"                 \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}"
#define WORDS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside of a set, Oniguruma counts six numbers of Latin-1 in. */
#define SIX "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

struct bpe_regex {
    pcre2_code *code;
    bool jit;
};

struct bpe_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* ---- translation --------------------------------------------------------------------------- */

typedef struct translator {
    const char *p, *end;
    char out[4 * MAX_PATTERN];
    size_t n;
    char what[48]; /* the construct that is not known; "" none */
} translator;

static void put(translator *t, const char *s, size_t n)
{
    if (t->n + n < sizeof t->out) {
        memcpy(t->out + t->n, s, n);
        t->n += n;
    } else if (!t->what[0]) {
        memcpy(t->what, "its length", sizeof "its length");
    }
}

static void puts_(translator *t, const char *s)
{
    put(t, s, strlen(s));
}

static bool refuse(translator *t, const char *from)
{
    size_t n = (size_t)(t->end - from);
    n = n < 12 ? n : 12;
    while (n && n < (size_t)(t->end - from) && ((unsigned char)from[n] & 0xC0) == 0x80)
        n--;
    if (!t->what[0]) {
        memcpy(t->what, from, n);
        t->what[n] = '\0';
    }
    return false;
}

/* \p{...}: general categories mean the same in both; other names are scripts. */
static bool property(translator *t, const char *from, bool negated)
{
    static const char *const categories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc",
                                             "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
                                             "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So",
                                             "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Cn", "Co"};
    const char *close = memchr(t->p, '}', (size_t)(t->end - t->p));
    if (t->p >= t->end || *t->p != '{' || !close || close - t->p > 24)
        return refuse(t, from);
    const char *name = t->p + 1;
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    size_t n = (size_t)(close - name);
    bool category = false;
    for (size_t i = 0; i < n; i++)
        if (!((name[i] | 32) >= 'a' && (name[i] | 32) <= 'z'))
            return refuse(t, from);
    for (size_t i = 0; i < sizeof categories / sizeof categories[0]; i++)
        category = category || (strlen(categories[i]) == n && !memcmp(categories[i], name, n));
    if (!n || (!category && n < 3))
        return refuse(t, from);
    puts_(t, negated ? "\\P{" : "\\p{");
    puts_(t, category ? "" : "sc:");
    put(t, name, n);
    puts_(t, "}");
    t->p = close + 1;
    return true;
}

/* \x{...} and \uHHHH. */
static bool code_point(translator *t, const char *from, char kind)
{
    bool braces = kind == 'x';
    if (braces && (t->p >= t->end || *t->p != '{'))
        return refuse(t, from);
    t->p += braces;
    uint32_t v = 0;
    int n = 0;
    for (; t->p < t->end && n < (braces ? 6 : 4); n++, t->p++) {
        char c = *t->p;
        if (c >= '0' && c <= '9')
            v = v * 16 + (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            v = v * 16 + (uint32_t)((c | 32) - 'a' + 10);
        else
            break;
    }
    if (!n || (!braces && n != 4) || v > 0x10FFFF || (v >= 0xD800 && v <= 0xDFFF) ||
        (braces && (t->p >= t->end || *t->p++ != '}')))
        return refuse(t, from);
    static const char hex[] = "0123456789abcdef";
    char text[12] = "\\x{";
    size_t k = 3;
    for (int shift = 20; shift >= 0; shift -= 4)
        text[k++] = hex[v >> shift & 15];
    text[k++] = '}';
    put(t, text, k);
    return true;
}

/* Behind a backslash, inside a set or outside. */
static bool escape(translator *t, bool set)
{
    const char *from = t->p - 1;
    if (t->p >= t->end)
        return refuse(t, from);
    char c = *t->p++;
    switch (c) {
    case 's': puts_(t, set ? SPACES : "[" SPACES "]"); return true;
    case 'S': puts_(t, set ? NO_SPACES : "[^" SPACES "]"); return true;
    case 'w': puts_(t, set ? WORDS : "[" WORDS SIX "]"); return true;
    case 'W': puts_(t, "[^" WORDS SIX "]"); return set ? refuse(t, from) : true;
    case 'd': puts_(t, "\\p{Nd}"); return true;
    case 'D': puts_(t, "\\P{Nd}"); return true;
    case 'p': return property(t, from, false);
    case 'P': return property(t, from, true);
    case 'x':
    case 'u': return code_point(t, from, c);
    case 'n': puts_(t, "\\n"); return true;
    case 'r': puts_(t, "\\r"); return true;
    case 't': puts_(t, "\\t"); return true;
    case 'f': puts_(t, "\\f"); return true;
    case 'v': puts_(t, "\\x{b}"); return true;
    case 'A':
    case 'z': put(t, from, 2); return set ? refuse(t, from) : true;
    default: break;
    }
    if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'))
        return refuse(t, from);
    if ((unsigned char)c < 0x80)
        puts_(t, "\\");
    put(t, &c, 1);
    return true;
}

/* Behind the opening bracket of a set. */
static bool set(translator *t)
{
    const char *from = t->p - 1;
    puts_(t, "[");
    if (t->p < t->end && *t->p == '^') {
        puts_(t, "^");
        t->p++;
    }
    if (t->p < t->end && *t->p == ']')
        return refuse(t, from);
    while (t->p < t->end && *t->p != ']') {
        char c = *t->p++;
        if (c == '[' || (c == '&' && t->p < t->end && *t->p == '&'))
            return refuse(t, t->p - 1);
        if (c == '\\') {
            if (!escape(t, true))
                return false;
        } else {
            put(t, &c, 1);
        }
    }
    if (t->p >= t->end)
        return refuse(t, from);
    t->p++;
    puts_(t, "]");
    return true;
}

/* Behind an opening brace: {n} {n,} {n,m} {,m}, or a brace that is text. */
static bool interval(translator *t)
{
    const char *p = t->p;
    size_t a = 0, b = 0;
    bool comma = false;
    for (; p < t->end && ((*p >= '0' && *p <= '9') || (*p == ',' && !comma)); p++) {
        if (*p == ',')
            comma = true;
        else if (comma)
            b++;
        else
            a++;
    }
    if (p >= t->end || *p != '}' || !(a + b)) {
        puts_(t, "\\{");
        return true;
    }
    puts_(t, a ? "{" : "{0");
    put(t, t->p, (size_t)(p + 1 - t->p));
    t->p = p + 1;
    return t->p < t->end && *t->p == '+' ? refuse(t, t->p - 1) : true;
}

static bool group(translator *t)
{
    static const char *const known[] = {"?:", "?i:", "?=", "?!", "?<=", "?<!", "?>"};
    puts_(t, "(");
    if (t->p >= t->end || *t->p != '?')
        return t->p < t->end && *t->p == '*' ? refuse(t, t->p - 1) : true;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        size_t n = strlen(known[i]);
        if ((size_t)(t->end - t->p) >= n && !memcmp(t->p, known[i], n)) {
            put(t, known[i], n);
            t->p += n;
            return true;
        }
    }
    return refuse(t, t->p - 1);
}

static bool translate(translator *t)
{
    bool ok = true;
    while (ok && t->p < t->end) {
        char c = *t->p++;
        if (c == '\\')
            ok = escape(t, false);
        else if (c == '[')
            ok = set(t);
        else if (c == '(')
            ok = group(t);
        else if (c == '{')
            ok = interval(t);
        else
            put(t, &c, 1);
    }
    return ok && !t->what[0];
}

/* ---- compiling ----------------------------------------------------------------------------- */

static turbo_status compile(const translator *t, const char *where, bpe_regex *re, turbo_err *err)
{
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR why[96] = "";
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    if (!c || pcre2_set_newline(c, PCRE2_NEWLINE_LF)) {
        pcre2_compile_context_free(c);
        return bpe_no_memory(err);
    }
    pcre2_set_parens_nest_limit(c, 64);
    re->code = pcre2_compile((PCRE2_SPTR)t->out, t->n,
                             PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C |
                                 PCRE2_NO_AUTO_CAPTURE | PCRE2_NO_UTF_CHECK,
                             &code, &at, c);
    pcre2_compile_context_free(c);
    if (!re->code) {
        pcre2_get_error_message(code, why, sizeof why);
        return bpe_fail(err, TURBO_EUNSUPPORTED, "%s: the pattern is not understood: %s", where,
                        (const char *)why);
    }
    re->jit = !pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE); /* without: the interpreter */
    return TURBO_OK;
}

turbo_status bpe_regex_new(const char *pattern, size_t len, const char *where, bpe_regex **out,
                           turbo_err *err)
{
    if (!len || len > MAX_PATTERN)
        return bpe_fail(err, TURBO_ELIMIT, "%s: a pattern of %zu bytes; 1 to %d are possible",
                        where, len, MAX_PATTERN);
    translator *t = calloc(1, sizeof *t);
    bpe_regex *re = calloc(1, sizeof *re);
    turbo_status st = t && re ? TURBO_OK : bpe_no_memory(err);
    if (!st) {
        t->p = pattern;
        t->end = pattern + len;
        st = translate(t)
                 ? compile(t, where, re, err)
                 : bpe_fail(err, TURBO_EUNSUPPORTED,
                            "%s: the pattern has \"%s\", which is not known here", where, t->what);
    }
    free(t);
    if (st)
        bpe_regex_free(re);
    else
        *out = re;
    return st;
}

void bpe_regex_free(bpe_regex *re)
{
    if (re)
        pcre2_code_free(re->code);
    free(re);
}

/* ---- matching ------------------------------------------------------------------------------ */

struct bpe_matcher *bpe_matcher_new(void)
{
    struct bpe_matcher *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    m->stack = pcre2_jit_stack_create((size_t)32 << 10, JIT_STACK, NULL);
    if (!m->data || !m->context) {
        bpe_matcher_free(m);
        return NULL;
    }
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    if (m->stack)
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
    return m;
}

void bpe_matcher_free(struct bpe_matcher *m)
{
    if (!m)
        return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    pcre2_jit_stack_free(m->stack);
    free(m);
}

int bpe_regex_next(const bpe_regex *re, bpe_scratch *s, const char *text, size_t len,
                   bpe_search *at, size_t *start, size_t *end)
{
    struct bpe_matcher *m = s->matcher;
    PCRE2_SPTR p = (PCRE2_SPTR)text;
    while (at->from <= len) {
        int rc = re->jit ? pcre2_jit_match(re->code, p, len, at->from, 0, m->data, m->context)
                         : pcre2_match(re->code, p, len, at->from, PCRE2_NO_UTF_CHECK, m->data,
                                       m->context);
        if (rc == PCRE2_ERROR_NOMATCH)
            return 0;
        if (rc == PCRE2_ERROR_NOMEMORY)
            return TURBO_ENOMEM;
        if (rc < 0)
            return TURBO_ELIMIT;
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(m->data);
        if (v[1] > v[0] || !at->any || at->end != v[1]) {
            *start = v[0];
            *end = at->end = at->from = v[1];
            at->any = true;
            return 1;
        }
        /* An empty match behind the last one does not count: go on behind the next character. */
        at->from += at->from < len ? bpe_char_len((unsigned char)text[at->from]) : 1;
    }
    return 0;
}

turbo_status bpe_match_failed(int rc, turbo_err *err)
{
    if (rc == TURBO_ENOMEM)
        return bpe_no_memory(err);
    return bpe_fail(err, TURBO_ELIMIT,
                    "the tokenizer's pattern takes too long on this text; send a shorter one");
}
