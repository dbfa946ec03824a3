/* core/cli/args.c: words and flags of a subcommand, by its row. Main thread. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "conf/table.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/log.h"

static int flag_index(const cli_cmd *cmd, const char *name, size_t len)
{
    for (int i = 0; cmd->flags && cmd->flags[i].name; i++)
        if (strlen(cmd->flags[i].name) == len && !memcmp(cmd->flags[i].name, name, len))
            return i;
    return -1;
}

static bool parse_number(const char *text, double *v)
{
    char *end;
    if (!*text || text[strspn(text, "+-.eE0123456789")])
        return false;
    *v = strtod(text, &end);
    return !*end;
}

static bool value_ok(const cli_flag *f, const char *text, turbo_err *err)
{
    double v;
    if (f->kind != CLI_INT && f->kind != CLI_NUM)
        return true;
    bool whole = !text[strspn(text, "0123456789")] && strlen(text) <= 18;
    if (parse_number(text, &v) && turbod_d_in(v, f->lo, f->hi) && (f->kind == CLI_NUM || whole))
        return true;
    turbod_err(err, TURBOD_EUSAGE, "--%s is \"%.40s\"; %s %.15g to %.15g is needed", f->name, text,
               f->kind == CLI_INT ? "a whole number" : "a number", f->lo, f->hi);
    return false;
}

/* turbod_extra_flag: what the option table does not know. */
static int extra(void *ctx, int argc, char **argv, int i)
{
    cli_args *a = ctx;
    const char *w = argv[i];
    if (!strcmp(w, "-h") || !strcmp(w, "--help")) {
        a->help = true;
        return 1;
    }
    if (strncmp(w, "--", 2)) { /* a word; "-" is one, -x is not */
        if ((w[0] == '-' && w[1]) || a->n_words >= (int)(sizeof a->words / sizeof a->words[0]))
            return 0;
        a->words[a->n_words++] = w;
        return 1;
    }
    const char *eq = strchr(w, '=');
    int k = flag_index(a->cmd, w + 2, eq ? (size_t)(eq - w) - 2 : strlen(w + 2));
    if (k < 0) {
        a->unknown = w + 2;
        return 0;
    }
    const cli_flag *f = &a->cmd->flags[k];
    const char *text = eq ? eq + 1 : f->kind == CLI_SWITCH ? "" : i + 1 < argc ? argv[i + 1] : NULL;
    if (f->kind == CLI_SWITCH && eq) {
        turbod_err(&a->wrong, TURBOD_EUSAGE, "--%s takes no value", f->name);
        return -1;
    }
    if (!text)
        return -1;
    if (!value_ok(f, text, &a->wrong))
        return -1;
    if (a->text[k] && f->kind != CLI_MULTI && f->kind != CLI_SWITCH) {
        turbod_err(&a->wrong, TURBOD_EUSAGE, "--%s is given twice", f->name);
        return -1;
    }
    a->text[k] = text;
    if (f->kind == CLI_MULTI) {
        if (a->n_multi >= CLI_MAX_MULTI) {
            turbod_err(&a->wrong, TURBOD_EUSAGE, "--%s can be given %d times", f->name,
                       CLI_MAX_MULTI);
            return -1;
        }
        a->multi[a->n_multi++] = text;
    }
    return eq || f->kind == CLI_SWITCH ? 1 : 2;
}

bool cli_key_wanted(const cli_cmd *cmd, const char *section, const char *key)
{
    size_t n_section = strlen(section), n_key = strlen(key);
    for (const char *p = cmd->keys; *p;) {
        size_t len = strcspn(p, " ");
        if ((len == n_section && !memcmp(p, section, len)) ||
            (len == n_key && !memcmp(p, key, len)))
            return true;
        p += len + strspn(p + len, " ");
    }
    return false;
}

/* An option that exists but means nothing to this command is refused, not ignored. */
static turbo_status check_keys(const cli_args *a, turbo_err *err)
{
    for (size_t i = 0; i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        if (a->conf->origins[i] == TURBOD_FROM_FLAG && !cli_key_wanted(a->cmd, o->section, o->key))
            return turbod_err(err, TURBOD_EUSAGE,
                              "turbo %s has no use for --%s; see turbo %s --help", a->cmd->name,
                              o->key, a->cmd->name);
    }
    return TURBO_OK;
}

static turbo_status parse_plain(cli_args *a, int argc, char **argv, turbo_err *err)
{
    for (int i = 1; i < argc;) {
        int used = extra(a, argc, argv, i);
        if (used < 1)
            return turbod_err(err, TURBOD_EUSAGE,
                              used ? "%s needs a value; see turbo %s --help"
                                   : "%s is not known; see turbo %s --help",
                              argv[i], a->cmd->name);
        i += used;
    }
    return TURBO_OK;
}

/* The flag nobody knew, with what may have been meant: flags of the command and of its options. */
static turbo_status unknown_flag(const cli_args *a, turbo_err *err)
{
    const char *names[CLI_MAX_FLAGS + 128];
    char text[128][64], word[64];
    size_t n = 0, n_text = 0;
    for (int i = 0; a->cmd->flags && a->cmd->flags[i].name; i++)
        names[n++] = a->cmd->flags[i].name;
    for (size_t i = 0; i < turbod_n_opts && n_text < 128; i++) {
        const turbod_opt *o = &turbod_opts[i];
        if (!cli_key_wanted(a->cmd, o->section, o->key))
            continue;
        snprintf(text[n_text], sizeof text[0], "%s", o->key);
        for (char *p = text[n_text]; *p; p++)
            *p = *p == '_' ? '-' : *p;
        names[n++] = text[n_text++];
    }
    snprintf(word, sizeof word, "%.*s", (int)strcspn(a->unknown, "="), a->unknown);
    const char *near = turbod_nearest(word, names, n);
    return turbod_err(err, TURBOD_EUSAGE, "turbo %s does not know --%s%s%s%s", a->cmd->name, word,
                      near ? "; did you mean --" : "; see --help", near ? near : "",
                      near ? "?" : "");
}

bool cli_parse(const cli_cmd *cmd, int argc, char **argv, cli_args *a, int *code)
{
    turbo_err err = {{0}};
    turbo_status st;
    *a = (cli_args){.cmd = cmd};
    if (*cmd->keys) {
        st = turbod_conf_load(argc, argv, extra, a, &a->conf, &err);
        if (!st)
            st = check_keys(a, &err);
    } else {
        st = parse_plain(a, argc, argv, &err);
    }
    if (st == TURBOD_EUSAGE && a->unknown)
        st = unknown_flag(a, &err);
    if (st == TURBOD_EUSAGE && *a->wrong.text)
        err = a->wrong;
    *code = 0;
    if (a->help) {
        cli_help(cmd, stdout);
        return false;
    }
    if (!st && (a->n_words < cmd->min_words || a->n_words > cmd->max_words))
        st = turbod_err(&err, TURBOD_EUSAGE, "usage: turbo %s %s; see turbo %s --help", cmd->name,
                        cmd->words, cmd->name);
    if (st) {
        *code = cli_fail(st, &err);
        return false;
    }
    if (a->conf) /* a tool is quiet unless it is asked to speak */
        turbod_log_level(turbod_conf_origin(a->conf, "log_level") == TURBOD_FROM_DEFAULT
                             ? TURBO_LOG_WARN
                             : turbod_log_level_of(a->conf->log_level));
    else
        turbod_log_level(TURBO_LOG_WARN);
    return true;
}

void cli_args_free(cli_args *a)
{
    turbod_conf_free(a->conf);
    a->conf = NULL;
}

const char *cli_text(const cli_args *a, const char *flag)
{
    int k = flag_index(a->cmd, flag, strlen(flag));
    return k < 0 ? NULL : a->text[k];
}

bool cli_given(const cli_args *a, const char *flag)
{
    return cli_text(a, flag) != NULL;
}

double cli_num(const cli_args *a, const char *flag, double dflt)
{
    const char *t = cli_text(a, flag);
    double v = dflt;
    return t && parse_number(t, &v) ? v : dflt;
}

int64_t cli_int(const cli_args *a, const char *flag, int64_t dflt)
{
    const char *t = cli_text(a, flag);
    int64_t v = 0;
    if (!t)
        return dflt;
    for (; *t >= '0' && *t <= '9'; t++) /* checked when it was parsed: at most 18 digits */
        v = v * 10 + (*t - '0');
    return v;
}

static bool wanted(void *ctx, const char *section, const char *key)
{
    return cli_key_wanted(ctx, section, key);
}

void cli_help(const cli_cmd *cmd, FILE *out)
{
    fprintf(out, "usage: turbo %s %s\n\n%s\n", cmd->name, cmd->words, cmd->summary);
    if (*cmd->about)
        fprintf(out, "\n%s", cmd->about);
    if (cmd->flags && cmd->flags[0].name)
        fputs("\nFlags:\n", out);
    for (int i = 0; cmd->flags && cmd->flags[i].name; i++)
        fprintf(out, "  --%s%s%s\n        %s\n", cmd->flags[i].name, *cmd->flags[i].meta ? " " : "",
                cmd->flags[i].meta, cmd->flags[i].help);
    if (*cmd->keys) {
        fputs("  --conf FILE\n        A conf file for the options below; see turbo.conf(5).\n\n",
              out);
        cli_cmd copy = *cmd;
        turbod_conf_help_some(out, wanted, &copy);
    }
}
