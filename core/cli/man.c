/* core/cli/man.c: the man pages, from the same rows as help and parsing. Run at build time. */
#include <string.h>

#include "cli/cli.h"
#include "version.h"

/* mdoc: a line that begins with . or ' is a request, and a backslash an escape. */
static void text(FILE *out, const char *s)
{
    bool start = true;
    for (; *s; s++) {
        if (start && (*s == '.' || *s == '\''))
            fputs("\\&", out);
        if (*s == '\\')
            fputs("\\e", out);
        else if (*s == '-')
            fputs("\\-", out);
        else
            putc(*s, out);
        start = *s == '\n';
    }
    if (!start)
        putc('\n', out);
}

static void head(FILE *out, const char *name, const char *section, const char *what)
{
    fprintf(out, ".\\\" Written by the program from its tables of options and commands.\n");
    fprintf(
        out,
        ".Dd $Mdocdate: November 24 2026 $\n.Dt %s %s\n.Os turbod %s\n.Sh NAME\n.Nm %s\n.Nd %s\n",
        name, section, turbod_version(), name, what);
}

static void exit_codes(FILE *out)
{
    fputs(".Sh EXIT STATUS\n.Bl -tag -width Ds -compact\n"
          ".It 0\nstopped, or done\n.It 64\na flag or word is wrong\n"
          ".It 65\nthe model's files are damaged or of a kind that no plugin runs\n"
          ".It 66\na file does not exist\n.It 71\nmemory ran out\n.It 74\nreading, writing or "
          "binding failed\n"
          ".It 75\nthe engine failed, or was busy; try again\n.It 78\nthe configuration is "
          "wrong\n.El\n",
          out);
}

static void turbo_1(FILE *out)
{
    head(out, "turbo", "1", "run, test and talk to language models");
    fputs(
        ".Sh SYNOPSIS\n.Nm\n.Ar command\n.Op Ar arguments\n.Sh DESCRIPTION\n"
        "Options of\n.Xr turbo.conf 5\nthat a command honours are flags of it too.\n.Sh COMMANDS\n",
        out);
    for (size_t i = 0; cli_cmds[i]; i++) {
        const cli_cmd *c = cli_cmds[i];
        fprintf(out, ".Ss %s\n.Dl ", c->name);
        fprintf(out, "turbo %s ", c->name);
        text(out, c->words);
        text(out, c->summary);
        text(out, c->about);
        if (c->flags && c->flags[0].name)
            fputs(".Bl -tag -width Ds\n", out);
        for (int k = 0; c->flags && c->flags[k].name; k++) {
            const cli_flag *f = &c->flags[k];
            fputs(".It Sy ", out);
            fputs("\\-\\-", out);
            for (const char *p = f->name; *p; p++)
                fputs(*p == '-' ? "\\-" : (char[]){*p, '\0'}, out);
            fprintf(out, "%s%s\n", *f->meta ? " Ar " : "", f->meta);
            text(out, f->help);
        }
        if (c->flags && c->flags[0].name)
            fputs(".El\n", out);
        if (*c->keys) {
            fputs("Options of the configuration:\n", out);
            text(out, c->keys);
        }
    }
    exit_codes(out);
    fputs(".Sh FILES\n.Pa ~/.local/state/turbo/chat\\-history\n"
          ".Sh SEE ALSO\n.Xr turbo.conf 5 ,\n.Xr turbod 8\n",
          out);
}

static void turbod_8(FILE *out)
{
    head(out, "turbod", "8", "serve a language model over HTTP");
    fputs(
        ".Sh SYNOPSIS\n.Nm\n.Fl \\-conf Ar file\n.Op Ar flags\n.Nm\n.Fl \\-conf Ar file\n.Fl t | "
        "T\n"
        ".Sh DESCRIPTION\n"
        "Loads one model or several and answers an API that clients of OpenAI's know.\n"
        "It listens at once; until the model is loaded, requests get status 503.\n.Pp\n"
        "Every option of\n.Xr turbo.conf 5\nis a flag too:\n.Ql key = value;\nis\n"
        ".Ql \\-\\-key value ,\nwith a dash for each underscore; booleans are\n.Ql \\-\\-key\nand\n"
        ".Ql \\-\\-no\\-key .\n"
        "A flag goes before the environment, the environment before the file.\n"
        ".Bl -tag -width Ds\n"
        ".It Fl t\nTests the configuration, the model's header, template, policies and keys, and "
        "prints the\n"
        "memory that would be taken; loads no weights.\n"
        ".It Fl T\nPrints every option with its origin.\n"
        ".It Fl h\nHelp with all options.\n.It Fl V\nBuild facts.\n.El\n"
        ".Sh SIGNALS\n.Bl -tag -width Ds\n"
        ".It Dv SIGTERM , SIGINT\nNo new requests; running answers have drain_ms. A second signal "
        "stops at\n"
        "once.\n"
        ".It Dv SIGHUP\nReads the file, template, policies and keys again. When anything is wrong "
        "with\n"
        "them, everything stays as it is.\n.El\n"
        ".Sh ENVIRONMENT\n.Bl -tag -width Ds\n"
        ".It Ev TURBO_KEY , TURBO_GROUP_KEY\nOptions; see\n.Xr turbo.conf 5 .\n"
        ".It Ev TURBO_DATA\nFolder of the scripts, in place of the installed one.\n"
        ".It Ev NOTIFY_SOCKET , WATCHDOG_USEC\nFrom the service manager.\n.El\n",
        out);
    exit_codes(out);
    fputs(".Sh SEE ALSO\n.Xr turbo 1 ,\n.Xr turbo.conf 5\n", out);
}

static void conf_5(FILE *out)
{
    head(out, "turbo.conf", "5", "configuration of turbod");
    fputs(
        ".Sh DESCRIPTION\nText of the form\n.Bd -literal -offset indent\n"
        "model = \"models/chat-7b\";\nserver = {\n    port = 23333;\n};\n.Ed\n.Pp\n"
        "Comments begin with # or // or lie between /* and */.\n"
        "Paths are relative to the folder of the file.\n"
        "Sizes are strings such as \"8GiB\" or numbers of bytes.\n"
        "A list may be one string with commas or (\"a\", \"b\").\n"
        "Several models are a list of groups in the place of model and model_name:\n"
        ".Bd -literal -offset indent\n"
        "models = (\n    { model = \"models/chat-7b\"; model_name = \"chat\"; },\n"
        "    { model = \"models/code-1b\"; model_name = \"code\"; kv_share = 2.0; }\n);\n.Ed\n.Pp\n"
        "An entry takes model, model_name, chat_template, policies, default_policy, model_format, "
        "quantize, "
        "allow_nonfinite\nand the options of engine, which win over those of the rest of the "
        "configuration.\n"
        "An unknown setting, a value of another type or out of its range is an error.\n"
        "The file must be a regular file of root or of the user, not writable by everyone;\n"
        "it cannot include others.\n.Sh OPTIONS\n",
        out);
    turbod_conf_man(out);
    fputs(".Sh SEE ALSO\n.Xr turbo 1 ,\n.Xr turbod 8\n", out);
}

void cli_man(const char *page, FILE *out)
{
    if (!strcmp(page, "turbo.1"))
        turbo_1(out);
    else if (!strcmp(page, "turbod.8"))
        turbod_8(out);
    else
        conf_5(out);
}
