/* core/conf/conf.c: one effective configuration out of defaults, conf file, environment and flags.
 * Main thread. Must not know what an option means. */
#include "conf/conf.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conf/table.h"
#include "util/err.h"

/* Flags are read before the file (one of them names it) and stored after it. */
typedef struct flag_list {
    struct {
        const turbod_opt *opt;
        const char *text;
    } * at;
    size_t n;
    const char *conf;
} flag_list;

/* The row that a flag word such as "no-pin-threads" names. negated: it begins with no-. */
static const turbod_opt *flag_row(const char *word, size_t len, bool *negated)
{
    char key[64];
    if (len >= sizeof key)
        return NULL;
    for (size_t i = 0; i < len; i++)
        key[i] = word[i] == '-' ? '_' : word[i];
    *negated = false;
    const turbod_opt *o = turbod_opt_find(NULL, key, len);
    if (!o && len > 3 && !memcmp(key, "no_", 3)) {
        o = turbod_opt_find(NULL, key + 3, len - 3);
        *negated = true;
        if (o && o->type != TURBOD_OPT_BOOL)
            return NULL;
    }
    return o;
}

static turbo_status unknown_flag(const char *word, size_t len, turbo_err *err)
{
    char key[64], flag[64];
    snprintf(key, sizeof key, "%.*s", (int)(len < 60 ? len : 60), word);
    for (char *p = key; *p; p++)
        if (*p == '-')
            *p = '_';
    const char *near = turbod_opt_nearest(NULL, key);
    snprintf(flag, sizeof flag, "%s", near ? near : "");
    for (char *p = flag; *p; p++)
        if (*p == '_')
            *p = '-';
    return turbod_err(err, TURBOD_EUSAGE, "unknown flag --%.*s%s%s%s", (int)(len < 60 ? len : 60),
                      word, near ? "; did you mean --" : "; see --help", flag, near ? "?" : "");
}

/* One word that begins with --. Returns the number of words taken, 0: not ours, -1: error. */
static int one_flag(flag_list *l, int argc, char **argv, int i, turbo_err *err)
{
    const char *word = argv[i] + 2, *eq = strchr(word, '=');
    size_t len = eq ? (size_t)(eq - word) : strlen(word);
    bool negated = false, conf = len == 4 && !memcmp(word, "conf", 4);
    const turbod_opt *o = conf ? NULL : flag_row(word, len, &negated);
    const char *text = eq ? eq + 1 : NULL;
    int used = 1;
    if (!o && !conf)
        return 0;
    if (o && o->type == TURBOD_OPT_BOOL) {
        if (negated && eq) {
            turbod_err(err, TURBO_EINVAL, "--%.*s takes no value", (int)len, word);
            return -1;
        }
        if (!text)
            text = negated ? "false" : "true";
    } else if (!text) {
        if (i + 1 >= argc) {
            turbod_err(err, TURBO_EINVAL, "--%s needs a value: --%s %s", word, word,
                       conf ? "FILE" : o->meta);
            return -1;
        }
        text = argv[i + 1];
        used = 2;
    }
    if (conf) {
        l->conf = text;
        return used;
    }
    l->at[l->n].opt = o;
    l->at[l->n++].text = text;
    return used;
}

static turbo_status read_flags(flag_list *l, int argc, char **argv, turbod_extra_flag extra,
                               void *ctx, turbo_err *err)
{
    for (int i = 1; i < argc;) {
        int used = 0;
        if (!strncmp(argv[i], "--", 2) && argv[i][2])
            used = one_flag(l, argc, argv, i, err);
        if (used < 0)
            return TURBOD_EUSAGE;
        if (!used && extra)
            used = extra(ctx, argc, argv, i);
        if (used < 0) /* a flag of the program, known and without its value */
            return turbod_err(err, TURBOD_EUSAGE, "%s needs a value; see --help", argv[i]);
        if (!used && !strncmp(argv[i], "--", 2)) {
            const char *eq = strchr(argv[i], '=');
            return unknown_flag(argv[i] + 2, eq ? (size_t)(eq - argv[i]) - 2 : strlen(argv[i] + 2),
                                err);
        }
        if (!used)
            return turbod_err(err, TURBOD_EUSAGE, "\"%.60s\" is not expected here; see --help",
                              argv[i]);
        i += used;
    }
    return TURBO_OK;
}

static void env_name(const turbod_opt *o, char out[80])
{
    snprintf(out, 80, "TURBO_%s%s%s", o->section, *o->section ? "_" : "", o->key);
    for (char *p = out; *p; p++)
        *p = (char)toupper((unsigned char)*p);
}

extern char **environ;

/* A misspelt TURBO_SERVER_PROT would otherwise be ignored for ever. */
static turbo_status check_environment(turbo_err *err)
{
    static const char *const prefixes[] = {"TURBO_SERVER_", "TURBO_ENGINE_"};
    const char *names[128];
    static const size_t max = sizeof names / sizeof names[0];
    char text[128][80];
    size_t n = turbod_n_opts < max ? turbod_n_opts : max;
    for (size_t i = 0; i < n; i++) {
        env_name(&turbod_opts[i], text[i]);
        names[i] = text[i];
    }
    for (char **e = environ; e && *e; e++) {
        const char *eq = strchr(*e, '=');
        char name[80];
        if (!eq || (size_t)(eq - *e) >= sizeof name ||
            (strncmp(*e, prefixes[0], 13) && strncmp(*e, prefixes[1], 13)))
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(eq - *e), *e);
        size_t i = 0;
        while (i < n && strcmp(names[i], name))
            i++;
        if (i < n)
            continue;
        const char *near = turbod_nearest(name, names, n);
        return turbod_err(err, TURBO_EINVAL, "environment: %s is no option%s%s%s", name,
                          near ? "; did you mean " : "; turbod --help lists all", near ? near : "",
                          near ? "?" : "");
    }
    return TURBO_OK;
}

static turbo_status read_environment(turbod_conf *c, turbo_err *err)
{
    turbo_status st = check_environment(err);
    for (size_t i = 0; !st && i < turbod_n_opts; i++) {
        char name[80], where[100];
        env_name(&turbod_opts[i], name);
        const char *text = getenv(name);
        if (!text || !*text)
            continue;
        snprintf(where, sizeof where, "environment %s", name);
        st = turbod_opt_set(c, &turbod_opts[i], text, TURBOD_FROM_ENV, where, err);
    }
    return st;
}

/* "cuda", "cuda:1", and for `turbo plan` a card's name. */
static bool on_card(const char *device)
{
    return strcmp(device, "cpu") && strcmp(device, "auto");
}

/* On a card a step of many sequences or tokens takes little longer than one of few: other defaults suit it. */
static turbo_status suit_device(turbod_conf *c, turbo_err *err)
{
    static const char *const rows[][2] = {{"max_batch_size", "256"},
                                          {"max_prefill_token_num", "2048"}};
    turbo_status st = TURBO_OK;
    for (size_t i = 0; i < 2 && !st && on_card(c->device); i++) {
        const turbod_opt *o = turbod_opt_find("engine", rows[i][0], strlen(rows[i][0]));
        if (c->origins[o - turbod_opts] == TURBOD_FROM_DEFAULT)
            st = turbod_opt_set(c, o, rows[i][1], TURBOD_FROM_DEFAULT, "default", err);
    }
    return st;
}

static turbo_status cross_checks(const turbod_conf *c, turbo_err *err)
{
    if (c->cache_block_seq_len % 8)
        return turbod_err(err, TURBO_EINVAL,
                          "cache_block_seq_len is %lld; a multiple of 8 is needed",
                          (long long)c->cache_block_seq_len);
    if (*c->metrics_compat && strcmp(c->metrics_compat, "vllm"))
        return turbod_err(err, TURBO_EINVAL, "metrics_compat is \"%s\"; use \"\" or \"vllm\"",
                          c->metrics_compat);
    if (c->kv_share <= 0)
        return turbod_err(err, TURBO_EINVAL, "kv_share is %g; a number above 0 is needed",
                          c->kv_share);
    if (c->swap_space && !strcmp(c->device, "cpu"))
        return turbod_err(err, TURBO_EINVAL,
                          "swap_space is for the KV cache of a card, device is \"cpu\"; set "
                          "swap_space = 0, or device = \"cuda\"");
    /* A larger max_batch_size alone raises the other; two numbers that contradict each other do not. */
    if (turbod_conf_origin(c, "max_prefill_token_num") != TURBOD_FROM_DEFAULT &&
        c->max_prefill_token_num < c->max_batch_size)
        return turbod_err(
            err, TURBO_EINVAL,
            "max_prefill_token_num is %lld, max_batch_size %lld: a step has a token of "
            "every sequence; raise the first or lower the second",
            (long long)c->max_prefill_token_num, (long long)c->max_batch_size);
    return TURBO_OK;
}

turbo_status turbod_conf_load(int argc, char **argv, turbod_extra_flag extra, void *ctx,
                              turbod_conf **out, turbo_err *err)
{
    flag_list l = {0};
    turbo_status st = TURBO_OK;
    turbod_conf *c = calloc(1, sizeof *c);
    l.at = calloc((size_t)argc + 1, sizeof *l.at);
    if (c)
        c->origins = calloc(turbod_n_opts, sizeof *c->origins);
    if (!c || !l.at || !c->origins)
        st = turbod_err(err, TURBO_ENOMEM, "no memory for the configuration");
    for (size_t i = 0; !st && i < turbod_n_opts; i++)
        st = turbod_opt_set(c, &turbod_opts[i], turbod_opts[i].dflt, TURBOD_FROM_DEFAULT, "default",
                            err);
    if (!st)
        st = read_flags(&l, argc, argv, extra, ctx, err);
    if (!st && l.conf) {
        c->file = strdup(l.conf);
        st = c->file ? turbod_conf_file(c, err)
                     : turbod_err(err, TURBO_ENOMEM, "no memory for the configuration");
    }
    if (!st)
        st = read_environment(c, err);
    for (size_t i = 0; !st && i < l.n; i++) {
        char where[80];
        snprintf(where, sizeof where, "flag --%s", l.at[i].opt->key);
        for (char *p = where; *p; p++)
            if (*p == '_')
                *p = '-';
        st = turbod_opt_set(c, l.at[i].opt, l.at[i].text, TURBOD_FROM_FLAG, where, err);
        st = st == TURBO_EINVAL ? TURBOD_EUSAGE : st;
    }
    if (!st)
        st = turbod_conf_fill_models(c, err);
    if (!st)
        st = suit_device(c, err);
    for (size_t i = 0; !st && i < c->n_models; i++)
        st = suit_device(c->models[i], err);
    if (!st)
        st = cross_checks(c, err);
    for (size_t i = 0; !st && i < c->n_models; i++) {
        char which[32];
        snprintf(which, sizeof which, "models[%zu]", i);
        st = cross_checks(c->models[i], err);
        st = turbod_err_of(err, st, which);
    }
    free(l.at);
    if (st) {
        turbod_conf_free(c);
        return st;
    }
    *out = c;
    return TURBO_OK;
}

turbo_status turbod_conf_set(turbod_conf *c, const char *key, const char *text, turbo_err *err)
{
    const turbod_opt *o = turbod_opt_find(NULL, key, strlen(key));
    if (!o)
        return turbod_err(err, TURBO_EINTERNAL, "no option is called %s", key);
    return turbod_opt_set(c, o, text, TURBOD_FROM_FLAG, "command line", err);
}

turbod_origin turbod_conf_origin(const turbod_conf *c, const char *key)
{
    const turbod_opt *o = turbod_opt_find(NULL, key, strlen(key));
    return o ? c->origins[o - turbod_opts] : TURBOD_FROM_DEFAULT;
}

void turbod_conf_free(turbod_conf *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < turbod_n_opts; i++)
        if (turbod_opts[i].type == TURBOD_OPT_STR || turbod_opts[i].type == TURBOD_OPT_PATH)
            free(*(char **)(void *)((char *)c + turbod_opts[i].offset));
    for (size_t i = 0; i < c->n_models; i++)
        turbod_conf_free(c->models[i]);
    free(c->models);
    free(c->origins);
    free(c->file);
    free(c);
}
