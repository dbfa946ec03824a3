/* core/plugin/check.c: `turbo plugin check`: loads a plugin as turbod does and runs the tests of
 * check_model.c, check_forward.c and check_sampler.c on each of its tables. Main thread of a tool. */
#include "plugin/check.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plugin/check_run.h"
#include "plugin/host.h"
#include "plugin/loader.h"
#include "util/err.h"

#define SECONDS_A_TEST 20

static void report(check_run *run, int result, const char *what, const char *why)
{
    static const char *const words[] = {"ok", "FAILED", "skipped"};
    fprintf(run->out, "%-8s%s%s%s\n", words[result], what, *why ? ": " : "", why);
    run->ok += result == CHECK_OK;
    run->skipped += result == CHECK_SKIPPED;
    if (result == CHECK_FAILED && !run->failed++)
        turbod_err(&run->first, TURBO_EABI, "%s: %s", what, why);
}

static size_t read_all(int fd, char *to, size_t cap)
{
    size_t n = 0;
    while (n < cap) {
        ssize_t got = read(fd, to + n, cap - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    return n;
}

static void in_child(const check_test *t, const void *vtbl, int fd)
{
    turbo_err why = {{0}};
    alarm(SECONDS_A_TEST);
    int result = t->fn(vtbl, &why);
    why.text[sizeof why.text - 1] = '\0';
    size_t n = strlen(why.text);
    if (write(fd, why.text, n) != (ssize_t)n)
        result = CHECK_FAILED;
    _exit(result);
}

void check_one(check_run *run, const char *kind, const char *id, const check_test *t,
               const void *vtbl)
{
    char what[128];
    turbo_err why = {{0}};
    int fds[2], status = 0;
    snprintf(what, sizeof what, "%s %s: %s", kind, id, t->name);
    if (pipe(fds)) {
        report(run, CHECK_FAILED, what, strerror(errno));
        return;
    }
    fflush(NULL); /* or the child would write the parent's buffers once more */
    pid_t pid = fork();
    if (pid == 0) {
        close(fds[0]);
        in_child(t, vtbl, fds[1]);
    }
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        report(run, CHECK_FAILED, what, strerror(errno));
        return;
    }
    read_all(fds[0], why.text, sizeof why.text - 1);
    close(fds[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    int result = WIFEXITED(status) ? WEXITSTATUS(status) : CHECK_FAILED;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        turbod_err(&why, 0, "did not end within %d s", SECONDS_A_TEST);
    else if (WIFSIGNALED(status))
        turbod_err(&why, 0, "crashed with signal %d (%s)", WTERMSIG(status),
                   strsignal(WTERMSIG(status)));
    else if (check_trap_name(result))
        turbod_err(&why, 0, "it calls %s(): slots marked [engine] run for every token",
                   check_trap_name(result));
    else if (result > CHECK_SKIPPED || (result == CHECK_FAILED && !why.text[0]))
        turbod_err(&why, 0, "crashed, or ended the process with exit code %d", result);
    report(run, result > CHECK_SKIPPED ? CHECK_FAILED : result, what, why.text);
}

static void check_tables(check_run *run, const turbod_plugin *p)
{
    for (int i = 0; i < p->n_models; i++) {
        for (const check_test *t = check_model_tests; t->fn; t++)
            check_one(run, "model", p->models[i].id, t, &p->models[i]);
        for (const check_test *t = check_forward_tests; t->fn; t++)
            check_one(run, "model", p->models[i].id, t, &p->models[i]);
    }
    for (int i = 0; i < p->n_tokenizers; i++)
        for (const check_test *t = check_tokenizer_tests; t->fn; t++)
            check_one(run, "tokenizer", p->tokenizers[i].id, t, &p->tokenizers[i]);
    for (int i = 0; i < p->n_samplers; i++)
        for (const check_test *t = check_sampler_tests; t->fn; t++)
            check_one(run, "sampler", p->samplers[i].id, t, &p->samplers[i]);
}

/* "dir/x.so" to "dir" and "x.so"; "x.so" lies in ".". */
static turbo_status split(const char *path, char *folder, size_t cap, const char **name,
                          turbo_err *err)
{
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) : 0;
    *name = slash ? slash + 1 : path;
    if (n + 2 > cap)
        return turbod_err(err, TURBO_ELIMIT, "the file's name is too long");
    memcpy(folder, path, n);
    folder[n] = '\0';
    if (!n)
        memcpy(folder, slash ? "/" : ".", 2);
    return TURBO_OK;
}

turbo_status turbod_plugin_check(const char *path, FILE *out, turbo_err *err)
{
    check_run run = {.out = out};
    char folder[4096];
    const char *name;
    turbo_err why = {{0}};
    turbo_status st = split(path, folder, sizeof folder, &name, err);
    if (st)
        return st;
    turbod_plugin *p = calloc(1, sizeof *p);
    if (!p)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a plugin");
    st = turbod_plugin_load(folder, name, p, &why);
    report(&run, st ? CHECK_FAILED : CHECK_OK, "loads", why.text);
    if (st)
        goto out;
    fprintf(out, "        %s %s, licence %s, built for ABI %u.%u, %s\n", p->desc.id,
            *p->desc.version ? p->desc.version : "(no version)",
            *p->desc.license ? p->desc.license : "(none)", p->desc.abi_major, p->desc.abi_minor,
            *p->desc.build ? p->desc.build : "no build note");
    report(&run, *p->desc.version ? CHECK_OK : CHECK_FAILED, "has a version",
           *p->desc.version ? "" : "turbo_plugin.version is empty");
    report(&run, *p->desc.license ? CHECK_OK : CHECK_FAILED, "has a licence",
           *p->desc.license ? "" : "turbo_plugin.license is empty; give an SPDX name");
    if (p->desc.init) {
        turbo_err said = {{0}};
        st = p->desc.init(turbod_host_table(), &said);
        said.text[sizeof said.text - 1] = '\0';
        report(&run, st ? CHECK_FAILED : CHECK_OK, "init", said.text);
    }
    if (!st)
        check_tables(&run, p);
out:
    fprintf(out, "%d ok, %d failed, %d skipped\n", run.ok, run.failed, run.skipped);
    free(p);
    if (run.failed)
        return turbod_err(err, TURBO_EABI, "%s", run.first.text);
    return TURBO_OK;
}
