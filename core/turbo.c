/* core/turbo.c: the command line: finds the subcommand and hands over. Subcommands lie in core/cli. */
#include <signal.h>
#include <string.h>

#include "cli/cli.h"
#include "conf/table.h"
#include "util/err.h"
#include "version.h"

const cli_cmd *const cli_cmds[] = {&cli_run,        &cli_chat, &cli_client, &cli_tokenize,
                                   &cli_detokenize, &cli_eval, &cli_plugin, &cli_policy,
                                   &cli_doctor,     NULL};

static void print_help(FILE *out)
{
    fputs("usage: turbo COMMAND ...\n\n", out);
    for (size_t i = 0; cli_cmds[i]; i++)
        fprintf(out, "  %-12s%s\n", cli_cmds[i]->name, cli_cmds[i]->summary);
    fputs("  help        Help on a command: turbo help run.\n"
          "\nturbo COMMAND --help tells more. turbod serves a model over HTTP.\n",
          out);
}

static const cli_cmd *find(const char *name)
{
    for (size_t i = 0; cli_cmds[i]; i++)
        if (!strcmp(cli_cmds[i]->name, name))
            return cli_cmds[i];
    return NULL;
}

static int unknown(const char *name)
{
    const char *names[16];
    size_t n = 0;
    while (cli_cmds[n] && n < 16) {
        names[n] = cli_cmds[n]->name;
        n++;
    }
    const char *near = turbod_nearest(name, names, n);
    return cli_usage("%.40s is no command%s%s%s", name,
                     near ? "; did you mean " : "; see turbo help", near ? near : "",
                     near ? "?" : "");
}

static int help(int argc, char **argv)
{
    const cli_cmd *cmd = argc > 2 ? find(argv[2]) : NULL;
    if (argc > 2 && !cmd)
        return unknown(argv[2]);
    if (cmd)
        cli_help(cmd, stdout);
    else
        print_help(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h"))
        return help(argc, argv);
    if (!strcmp(name, "--version") || !strcmp(name, "-V") || !strcmp(name, "version")) {
        turbod_version_print(stdout, "turbo");
        return 0;
    }
    if (!strcmp(name, "--man") && argc == 3) { /* for the build */
        cli_man(argv[2], stdout);
        return 0;
    }
    const cli_cmd *cmd = find(name);
    if (!cmd)
        return unknown(name);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &ignore, NULL); /* `turbo run ... | head` ends with an error, not a signal */
    cli_args a;
    int code = 0;
    if (cli_parse(cmd, argc - 1, argv + 1, &a, &code))
        code = cmd->run(&a);
    cli_args_free(&a);
    if (fflush(stdout) && !code) {
        fputs("turbo: writing the output failed\n", stderr);
        code = turbod_exit_code(TURBO_EIO);
    }
    return code;
}
