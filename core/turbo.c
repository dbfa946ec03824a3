/* core/turbo.c: the command line: finds the subcommand and hands over. Subcommands lie in core/cli. */
#include <signal.h>
#include <string.h>

#include "cli/cli.h"
#include "conf/table.h"
#include "util/err.h"
#include "version.h"
#include "weights/guard.h"

const cli_cmd *const cli_cmds[] = {
    &cli_run,           &cli_chat,         &cli_client,        &cli_tokenize,
    &cli_detokenize,    &cli_eval,         &cli_plan_cmd,      &cli_bench_serve,
    &cli_bench_offline, &cli_bench_decode, &cli_bench_prefill, &cli_bench_turns,
    &cli_plugin,        &cli_policy,       &cli_doctor,        NULL,
};

static void print_help(FILE *out)
{
    fputs("usage: turbo COMMAND ...\n\n", out);
    for (size_t i = 0; cli_cmds[i]; i++)
        fprintf(out, "  %-15s%s\n", cli_cmds[i]->name, cli_cmds[i]->summary);
    fputs("  help           Help on a command: turbo help run.\n"
          "\nturbo COMMAND --help tells more. turbod serves a model over HTTP.\n",
          out);
}

/* The command that the words name; two words for those whose name has a blank. */
static const cli_cmd *find(char **words, int n, int *used)
{
    for (size_t i = 0; cli_cmds[i]; i++) {
        const char *name = cli_cmds[i]->name, *blank = strchr(name, ' ');
        size_t len = blank ? (size_t)(blank - name) : strlen(name);
        *used = blank ? 2 : 1;
        if (*used <= n && strlen(words[0]) == len && !memcmp(words[0], name, len) &&
            (!blank || !strcmp(words[1], blank + 1)))
            return cli_cmds[i];
    }
    return NULL;
}

/* No command: what may have been meant. */
static int unknown(char **words, int n)
{
    const char *names[64];
    char what[128];
    size_t k = 0, len = strlen(words[0]);
    for (size_t i = 0; cli_cmds[i] && k < 64; i++)
        names[k++] = cli_cmds[i]->name;
    bool pair = false; /* the first word of two */
    for (size_t i = 0; i < k; i++)
        pair |= !strncmp(names[i], words[0], len) && names[i][len] == ' ';
    if (pair && (n < 2 || *words[1] == '-'))
        return cli_usage("turbo %s needs another word; turbo help lists them", words[0]);
    snprintf(what, sizeof what, "%.40s%s%.40s", words[0], pair ? " " : "", pair ? words[1] : "");
    const char *near = turbod_nearest(what, names, k);
    return cli_usage("%s is no command%s%s%s", what, near ? "; did you mean " : "; see turbo help",
                     near ? near : "", near ? "?" : "");
}

static int help(int argc, char **argv)
{
    int used;
    const cli_cmd *cmd = argc > 2 ? find(argv + 2, argc - 2, &used) : NULL;
    if (argc > 2 && !cmd)
        return unknown(argv + 2, argc - 2);
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
    int used;
    const cli_cmd *cmd = find(argv + 1, argc - 1, &used);
    if (!cmd)
        return unknown(argv + 1, argc - 1);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &ignore, NULL); /* `turbo run ... | head` ends with an error, not a signal */
    turbod_guard_files();
    turbod_guard_cache();
    cli_args a;
    int code = 0;
    if (cli_parse(cmd, argc - used, argv + used, &a, &code))
        code = cmd->run(&a);
    cli_args_free(&a);
    if (fflush(stdout) && !code) {
        fputs("turbo: writing the output failed\n", stderr);
        code = turbod_exit_code(TURBO_EIO);
    }
    return code;
}
