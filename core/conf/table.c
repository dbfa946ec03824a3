/* core/conf/table.c: rows of the option table, the types of their values, and what a misspelt name
 * may have meant. Main thread. Must not know where a value comes from. */
#include "conf/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/err.h"

#define DFLT_STR(x) (x)
#define DFLT_PATH(x) (x)
#define DFLT_SIZE(x) (x)
#define DFLT_INT(x) #x
#define DFLT_NUM(x) #x
#define DFLT_BOOL(x) #x
const turbod_opt turbod_opts[] = {
#define OPT(section, key, type, dflt, lo, hi, reload, meta, help)                                  \
    {section, #key, TURBOD_OPT_##type,         DFLT_##type(dflt), lo, hi, reload,                  \
     meta,    help, offsetof(turbod_conf, key)},
#include "conf/options.def"
#undef OPT
};
const size_t turbod_n_opts = sizeof turbod_opts / sizeof turbod_opts[0];

/* Values of options that take one of a few words; hint: what else may have been meant. */
static const struct {
    const char *key, *words[6], *hint;
} choices[] = {
    {"log_level", {"error", "warn", "info", "debug", NULL}, ""},
    {"isa", {"auto", "scalar", "avx2", "avx512", "neon", NULL}, ""},
    {"quantize", {"int8", "int4", "", NULL}, ", or leave it out"},
    {"device_precision", {"auto", "bf16", "f16", "f32", NULL}, ""},
    {"kv_dtype",
     {"auto", "f32", "bf16", "f16", NULL},
     "; quantised ones are quant_policy = 8 or 4"},
};

const turbod_opt *turbod_opt_find(const char *section, const char *key, size_t key_len)
{
    for (size_t i = 0; i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        if (section && strcmp(section, o->section))
            continue;
        if (strlen(o->key) == key_len && !memcmp(o->key, key, key_len))
            return o;
    }
    return NULL;
}

#define WORD_MAX 48

static int least(int a, int b, int c)
{
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Levenshtein distance with swaps of neighbours (optimal string alignment). */
static int distance(const char *a, const char *b)
{
    size_t n = strnlen(a, WORD_MAX), m = strnlen(b, WORD_MAX);
    int rows[3][WORD_MAX + 1];
    int *two = rows[0], *one = rows[1], *now = rows[2];
    for (size_t j = 0; j <= m; j++)
        one[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int cost = a[i - 1] != b[j - 1];
            now[j] = least(one[j] + 1, now[j - 1] + 1, one[j - 1] + cost);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                two[j - 2] + 1 < now[j])
                now[j] = two[j - 2] + 1;
        }
        int *t = two;
        two = one;
        one = now;
        now = t;
    }
    return one[m];
}

/* Is a the beginning of b? Dashes of flags are underscores of keys. 2: all of it. */
static int begins(const char *a, const char *b)
{
    while (*a && (*a == *b || (*a == '-' && *b == '_') || (*a == '_' && *b == '-')))
        a++, b++;
    return *a ? 0 : *b ? 1 : 2;
}

/* What other servers call an option. */
static const char *elsewhere(const char *name)
{
    static const char *const names[][2] = {
        {"dtype", "device_precision"},
        {"max_model_len", "session_len"},
        {"ctx_size", "session_len"},
        {"gpu_memory_utilization", "cache_max_entry_count"},
        {"max_num_seqs", "max_batch_size"},
        {"max_num_batched_tokens", "max_prefill_token_num"},
        {"kv_cache_dtype", "kv_dtype"},
        {"block_size", "cache_block_seq_len"},
        {"served_model_name", "model_name"},
        {"quantization", "quantize"},
        {"server_port", "port"},
        {"server_name", "host"},
        {"n_gpu_layers", "device"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (begins(name, names[i][0]) == 2)
            return names[i][1];
    return "";
}

const char *turbod_nearest(const char *text, const char *const *words, size_t n)
{
    const char *best = NULL, *ours = elsewhere(text);
    int most = (int)(strnlen(text, WORD_MAX) / 3) + 1;
    for (size_t i = 0; *ours && i < n; i++)
        if (begins(ours, words[i]) == 2)
            return words[i];
    for (size_t i = 0; i < n; i++) {
        int d = distance(text, words[i]);
        if (d <= most && (!best || d < most)) {
            most = d;
            best = words[i];
        }
    }
    for (size_t i = 0; !best && strlen(text) > 2 && i < n; i++)
        best = begins(text, words[i]) ? words[i] : NULL;
    return best;
}

const char *turbod_either(const char *const *words, size_t n, char *text, size_t cap)
{
    *text = 0;
    for (size_t i = 0, at = 0; i < n && at < cap; i++) {
        const char *between = i + 2 < n ? ", " : " or ";
        at += (size_t)snprintf(text + at, cap - at, "%s%s", words[i], i + 1 < n ? between : "");
    }
    return text;
}

const char *turbod_opt_nearest(const char *section, const char *key)
{
    const char *words[sizeof turbod_opts / sizeof turbod_opts[0]];
    size_t n = 0;
    for (size_t i = 0; i < turbod_n_opts; i++)
        if (!section || !strcmp(section, turbod_opts[i].section))
            words[n++] = turbod_opts[i].key;
    return turbod_nearest(key, words, n);
}

bool turbod_conf_size(const char *text, uint64_t *out)
{
    static const struct {
        const char *name;
        uint64_t unit;
    } units[] = {
        {"", 1},
        {"B", 1},
        {"KiB", 1u << 10},
        {"MiB", 1u << 20},
        {"GiB", 1u << 30},
        {"TiB", 1ull << 40},
        {"kB", 1000},
        {"KB", 1000},
        {"MB", 1000000},
        {"GB", 1000000000},
        {"TB", 1000000000000},
    };
    uint64_t whole = 0, part = 0, scale = 1;
    const char *p = text;
    if (*p < '0' || *p > '9')
        return false;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(whole, 10u, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*p - '0'), &whole))
            return false;
    if (*p == '.') {
        const char *first = ++p;
        for (; *p >= '0' && *p <= '9'; p++) {
            if (p - first >= 6)
                return false;
            part = part * 10 + (uint64_t)(*p - '0');
            scale *= 10;
        }
        if (p == first)
            return false;
    }
    while (*p == ' ')
        p++;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(p, units[i].name))
            continue;
        /* part < 10^6 and unit <= 2^40: their product fits. Half a byte is no size. */
        if (scale > 1 && units[i].unit == 1)
            return false;
        return !__builtin_mul_overflow(whole, units[i].unit, out) &&
               !__builtin_add_overflow(*out, part * units[i].unit / scale, out);
    }
    return false;
}

static bool parse_int(const char *text, int64_t *out)
{
    const char *p = text + (*text == '-' || *text == '+');
    size_t digits = strspn(p, "0123456789");
    if (!digits || digits > 18 || p[digits])
        return false;
    int64_t v = 0;
    for (size_t i = 0; i < digits; i++)
        v = v * 10 + (p[i] - '0');
    *out = *text == '-' ? -v : v;
    return true;
}

static bool parse_num(const char *text, double *out)
{
    char *end;
    if (!text[strspn(text, "+-.eE0123456789")] && *text) {
        errno = 0;
        *out = strtod(text, &end);
        return !*end && !errno && turbod_d_in(*out, -1e300, 1e300);
    }
    return false;
}

static bool parse_bool(const char *text, bool *out)
{
    static const char *const words[] = {"false", "no", "off", "0", "true", "yes", "on", "1"};
    for (size_t i = 0; i < 8; i++)
        if (!strcmp(text, words[i])) {
            *out = i >= 4;
            return true;
        }
    return false;
}

static bool chosen(const char *const *words, const char *text)
{
    while (*words && strcmp(*words, text))
        words++;
    return *words;
}

static turbo_status no_choice(const turbod_opt *o, const char *text, size_t k, const char *where,
                              turbo_err *err)
{
    const char *const *words = choices[k].words;
    char list[80];
    size_t n = 0;
    while (words[n] && *words[n])
        n++;
    return turbod_err(err, TURBO_EINVAL, "%s: %s is \"%.40s\"; use %s%s", where, o->key, text,
                      turbod_either(words, n, list, sizeof list), choices[k].hint);
}

static turbo_status set_text(turbod_conf *c, const turbod_opt *o, const char *text,
                             const char *where, turbo_err *err)
{
    char **slot = (char **)(void *)((char *)c + o->offset);
    size_t n = strlen(text);
    if (n > (size_t)o->hi)
        return turbod_err(err, TURBO_EINVAL, "%s: %s is %zu bytes long; %lld are the most", where,
                          o->key, n, (long long)o->hi);
    if (n < (size_t)o->lo)
        return turbod_err(err, TURBO_EINVAL, "%s: %s is empty; leave it out for its default, %s",
                          where, o->key, o->dflt);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return turbod_err(err, TURBO_EINVAL, "%s: %s holds a control character", where, o->key);
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
        if (!strcmp(choices[i].key, o->key) && !chosen(choices[i].words, text))
            return no_choice(o, text, i, where, err);
    char *copy = strdup(text);
    if (!copy)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the configuration");
    free(*slot);
    *slot = copy;
    return TURBO_OK;
}

turbo_status turbod_opt_set(turbod_conf *c, const turbod_opt *o, const char *text,
                            turbod_origin origin, const char *where, turbo_err *err)
{
    void *slot = (char *)c + o->offset;
    turbo_status st = TURBO_OK;
    int64_t i = 0;
    uint64_t u = 0;
    double d = 0;
    bool b = false;
    switch (o->type) {
    case TURBOD_OPT_STR:
    case TURBOD_OPT_PATH: st = set_text(c, o, text, where, err); break;
    case TURBOD_OPT_INT:
        if (!parse_int(text, &i) || i < o->lo || i > o->hi)
            st = turbod_err(err, TURBO_EINVAL,
                            "%s: %s is %.40s; a whole number %lld to %lld is "
                            "needed",
                            where, o->key, *text ? text : "empty", (long long)o->lo,
                            (long long)o->hi);
        else
            *(int64_t *)slot = i;
        break;
    case TURBOD_OPT_NUM:
        if (!parse_num(text, &d) || !turbod_d_in(d, (double)o->lo, (double)o->hi))
            st = turbod_err(err, TURBO_EINVAL, "%s: %s is %.40s; a number %lld to %lld is needed",
                            where, o->key, *text ? text : "empty", (long long)o->lo,
                            (long long)o->hi);
        else
            *(double *)slot = d;
        break;
    case TURBOD_OPT_BOOL:
        if (!parse_bool(text, &b))
            st = turbod_err(err, TURBO_EINVAL, "%s: %s is %.40s; true or false is needed", where,
                            o->key, *text ? text : "empty");
        else
            *(bool *)slot = b;
        break;
    case TURBOD_OPT_SIZE:
        if (!turbod_conf_size(text, &u) || u < (uint64_t)o->lo || u > (uint64_t)o->hi)
            st = turbod_err(err, TURBO_EINVAL,
                            "%s: %s is %.40s; a size of %lld to %lld bytes is "
                            "needed, such as \"8MiB\"",
                            where, o->key, *text ? text : "empty", (long long)o->lo,
                            (long long)o->hi);
        else
            *(uint64_t *)slot = u;
        break;
    }
    if (!st)
        c->origins[o - turbod_opts] = origin;
    return st;
}
