/* core/conf/print.c: the configuration and its table for people: -T, --help, turbo.conf(5).
 * Main thread. */
#include <ctype.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "conf/table.h"

static const char *const origin_names[] = {"default", "file", "environment", "flag"};

const char *turbod_opt_text(const turbod_conf *c, const turbod_opt *o, char buf[64])
{
    const void *slot = (const char *)c + o->offset;
    switch (o->type) {
    case TURBOD_OPT_STR:
    case TURBOD_OPT_PATH: return *(char *const *)slot;
    case TURBOD_OPT_INT: snprintf(buf, 64, "%" PRId64, *(const int64_t *)slot); break;
    case TURBOD_OPT_NUM: snprintf(buf, 64, "%.17g", *(const double *)slot); break;
    case TURBOD_OPT_BOOL: snprintf(buf, 64, "%s", *(const bool *)slot ? "true" : "false"); break;
    case TURBOD_OPT_SIZE: {
        static const char *const names[] = {"", " KiB", " MiB", " GiB"};
        uint64_t v = *(const uint64_t *)slot;
        int unit = 0;
        while (unit < 3 && v >= 1024 && !(v % 1024)) {
            v /= 1024;
            unit++;
        }
        snprintf(buf, 64, "%" PRIu64 "%s", v, names[unit]);
        break;
    }
    }
    return buf;
}

static void put_quoted(FILE *out, const char *s)
{
    putc('"', out);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            putc('\\', out);
        putc(*s, out);
    }
    putc('"', out);
}

/* api_keys names a file. Somebody who wrote a key there instead must not read it in a terminal. */
static bool is_secret(const turbod_opt *o, const char *text)
{
    return !strcmp(o->key, "api_keys") && *text && access(text, F_OK);
}

static void print_row(const turbod_conf *c, size_t i, int indent, FILE *out)
{
    const turbod_opt *o = &turbod_opts[i];
    char buf[64];
    const char *text = turbod_opt_text(c, o, buf);
    fprintf(out, "%*s%s = ", indent, "", o->key);
    if (is_secret(o, text))
        fputs("\"***\"", out);
    else if (o->type == TURBOD_OPT_INT || o->type == TURBOD_OPT_BOOL || o->type == TURBOD_OPT_NUM)
        fputs(text, out);
    else
        put_quoted(out, text);
    turbod_origin from = c->origins[i];
    fprintf(out, "; # %s%s%s\n", origin_names[from], from == TURBOD_FROM_FILE ? " " : "",
            from == TURBOD_FROM_FILE ? c->file : "");
}

static void print_models(const turbod_conf *c, FILE *out)
{
    fputs("models = (\n", out);
    for (size_t m = 0; m < c->n_models; m++) {
        fputs("    {\n", out);
        for (size_t i = 0; i < turbod_n_opts; i++)
            if (turbod_opt_of_model(&turbod_opts[i]))
                print_row(c->models[m], i, 8, out);
        fprintf(out, "    }%s\n", m + 1 < c->n_models ? "," : "");
    }
    fputs(");\n", out);
}

void turbod_conf_print(const turbod_conf *c, FILE *out)
{
    const char *section = "";
    for (size_t i = 0; i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        if (strcmp(section, o->section)) {
            if (*section)
                fputs("};\n", out);
            section = o->section;
            fprintf(out, "%s = {\n", section);
        }
        print_row(c, i, *section ? 4 : 0, out);
    }
    if (*section)
        fputs("};\n", out);
    if (c->n_models)
        print_models(c, out);
}

static void range_text(const turbod_opt *o, char buf[96])
{
    if (o->type == TURBOD_OPT_INT || o->type == TURBOD_OPT_NUM)
        snprintf(buf, 96, "%" PRId64 " to %" PRId64, o->lo, o->hi);
    else
        buf[0] = '\0';
}

static void wrap(FILE *out, const char *text, int indent, int width)
{
    int at = indent;
    fprintf(out, "%*s", indent, "");
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (at > indent && at + 1 + n > width) {
            fprintf(out, "\n%*s", indent, "");
            at = indent;
        }
        if (at > indent)
            at += (putc(' ', out), 1);
        fwrite(text, 1, (size_t)n, out);
        at += n;
        text += n;
        text += *text == ' ';
    }
    putc('\n', out);
}

void turbod_conf_help(FILE *out)
{
    turbod_conf_help_some(out, NULL, NULL);
}

void turbod_conf_help_some(FILE *out, bool (*want)(void *, const char *, const char *), void *ctx)
{
    const char *section = NULL;
    for (size_t i = 0; i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        char flag[96], range[96];
        if (want && !want(ctx, o->section, o->key))
            continue;
        if (!section || strcmp(section, o->section)) {
            fprintf(out, "%s%s%s:\n", section ? "\n" : "",
                    *o->section ? "Options of the group " : "Options", o->section);
            section = o->section;
        }
        snprintf(flag, sizeof flag, "  --%s%s%s", o->key, *o->meta ? " " : "", o->meta);
        for (char *p = flag + 4; *p && *p != ' '; p++)
            if (*p == '_')
                *p = '-';
        range_text(o, range);
        fprintf(out, "%s", flag);
        if (*o->dflt)
            fprintf(out, "  (default %s%s%s)",
                    o->type == TURBOD_OPT_BOOL
                        ? (*o->dflt == '1' || *o->dflt == 't' ? "on; --no-..." : "off")
                        : o->dflt,
                    *range ? ", " : "", range);
        putc('\n', out);
        wrap(out, o->help, 8, 100);
    }
}

/* mdoc: a line that begins with . or ' is a request, and a backslash an escape. */
static void put_mdoc(FILE *out, const char *s)
{
    if (*s == '.' || *s == '\'')
        fputs("\\&", out);
    for (; *s; s++) {
        if (*s == '\\')
            fputs("\\e", out);
        else
            putc(*s, out);
    }
}

void turbod_conf_man(FILE *out)
{
    const char *section = NULL;
    for (size_t i = 0; i < turbod_n_opts; i++) {
        const turbod_opt *o = &turbod_opts[i];
        char range[96], env[96];
        if (!section || strcmp(section, o->section)) {
            if (section)
                fputs(".El\n", out);
            section = o->section;
            fprintf(out, ".Ss %s%s\n.Bl -tag -width Ds\n", *section ? "Group " : "Top level",
                    section);
        }
        static const char *const types[] = {"string", "path",    "integer",
                                            "number", "boolean", "size"};
        fprintf(out, ".It Sy %s No \\&( Ns %s Ns )\n", o->key, types[o->type]);
        put_mdoc(out, o->help);
        range_text(o, range);
        if (*range)
            fprintf(out, "\nFrom %s.", range);
        if (o->type == TURBOD_OPT_BOOL)
            fprintf(out, "\nDefault: %s.", *o->dflt == '1' || *o->dflt == 't' ? "true" : "false");
        else if (*o->dflt)
            fprintf(out, "\nDefault: %s.", o->dflt);
        snprintf(env, sizeof env, "TURBO_%s%s%s", section, *section ? "_" : "", o->key);
        for (char *p = env; *p; p++)
            *p = (char)toupper((unsigned char)*p);
        fprintf(out, "\nEnvironment: %s.%s\n", env, o->reload ? "\nTakes effect on SIGHUP." : "");
    }
    fputs(".El\n", out);
}
