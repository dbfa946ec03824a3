/* core/cli/plugin.c: turbo plugin list | check | new. Main thread. */
#include <string.h>

#include "cli/cli.h"
#include "plugin/check.h"
#include "util/err.h"
#include "util/log.h"

static const cli_flag flags[] = {
    {"json", CLI_SWITCH, "", "list: prints JSON.", 0, 0},
    {"kind", CLI_TEXT, "KIND", "new: model or sampler. Default: model.", 0, 0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

static void print_row_json(const turbod_plugin_row *row, bool first)
{
    const struct {
        const char *key, *text;
    } f[] = {{"path", row->path},       {"id", row->id},       {"version", row->version},
             {"license", row->license}, {"build", row->build}, {"offers", row->offers},
             {"refused", row->refused}};
    fputs(first ? "{" : ",\n{", stdout);
    bool any = false;
    for (size_t i = 0; i < sizeof f / sizeof f[0]; i++) {
        if (!f[i].text || !*f[i].text)
            continue;
        printf("%s\"%s\":", any ? "," : "", f[i].key);
        cli_put_json(stdout, f[i].text, strlen(f[i].text));
        any = true;
    }
    putchar('}');
}

static turbo_status list(const cli_args *a, turbo_err *err)
{
    turbod_registry *r = NULL;
    const char *path = turbod_plugin_path(a->conf->plugin_path);
    bool json = cli_given(a, "json");
    if (turbod_conf_origin(a->conf, "log_level") == TURBOD_FROM_DEFAULT)
        turbod_log_level(TURBO_LOG_ERROR); /* the list itself says what was refused */
    turbo_status st = turbod_registry_open(path, &r, err);
    if (st)
        return st;
    size_t n = turbod_registry_count(r);
    if (json)
        putchar('[');
    else
        printf("plugins in %s\n", path);
    for (size_t i = 0; i < n; i++) {
        turbod_plugin_row row;
        turbod_registry_row(r, i, &row);
        const char *slash = row.path ? strrchr(row.path, '/') : NULL;
        const char *file = slash ? slash + 1 : row.path ? row.path : "";
        if (json)
            print_row_json(&row, !i);
        else if (row.refused)
            printf("REFUSED  %-16s %s\n", file, row.refused);
        else
            printf("loaded   %-16s %s %s, %s: %s\n", file, row.id, row.version ? row.version : "",
                   row.license ? row.license : "no licence named", row.offers);
    }
    if (json)
        puts("]");
    turbod_registry_close(r);
    return TURBO_OK;
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    turbo_status st;
    const char *what = a->words[0];
    if (!strcmp(what, "list") && a->n_words == 1) {
        st = list(a, &err);
    } else if (!strcmp(what, "check") && a->n_words == 2) {
        st = turbod_plugin_check(a->words[1], stdout, &err);
    } else if (!strcmp(what, "new") && (a->n_words == 2 || a->n_words == 3)) {
        const char *dir = a->words[a->n_words - 1];
        const char *kind = cli_given(a, "kind") ? cli_text(a, "kind") : "model";
        st = turbod_plugin_new(a->words[1], kind, dir, turbod_data_dir(), &err);
        if (!st)
            printf("%s: a %s plugin. Next:\n  make -C %s check\n%s%s%s", dir, kind, dir,
                   strcmp(kind, "model") ? "" : "  make -C ", strcmp(kind, "model") ? "" : dir,
                   strcmp(kind, "model") ? "" : " test-model\n");
    } else {
        return cli_usage("usage: turbo plugin %s", a->cmd->words);
    }
    return st ? cli_fail(st, &err) : 0;
}

const cli_cmd cli_plugin = {
    .name = "plugin",
    .words = "list [--json] | check FILE.so | new NAME [FOLDER] [--kind KIND]",
    .summary = "Lists plugins, tests one, or begins a new one.",
    .about =
        "check runs the code of the plugin on this machine, each test in a process of its own. new "
        "writes a\n"
        "project that works and builds against turbo/plugin.h with pkg-config: a model (with a "
        "tiny\n"
        "checkpoint to serve) or a sampler. FOLDER is NAME by default.\n",
    .flags = flags,
    .keys = "plugin_path log_level",
    .min_words = 1,
    .max_words = 3,
    .run = run,
};
