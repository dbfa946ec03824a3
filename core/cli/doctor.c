/* core/cli/doctor.c: turbo doctor: what this machine offers and what is wrong with it. Main thread. */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/cli.h"
#include "plan/plan.h"
#include "util/err.h"
#include "util/log.h"
#include "util/memory.h"
#include "version.h"
#include "weights/gguf.h"

typedef struct report {
    int wrong;
} report;

static void wrong(report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void wrong(report *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("WRONG   ", stdout);
    vprintf(fmt, ap);
    putchar('\n');
    va_end(ap);
    r->wrong++;
}

static void cpu_name(char *out, size_t cap)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");
    snprintf(out, cap, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, "model name", 10))
            continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(out, cap, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (f)
        fclose(f);
}

static void machine(report *r)
{
    char name[128], isa[64], size[32];
    cpu_set_t cpus;
    struct utsname u;
    int n = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : CPU_COUNT(&cpus);
    uint64_t memory = turbod_memory_free();
    cpu_name(name, sizeof name);
    turbod_isa_names(isa, sizeof isa);
    printf("cpu     %s, %d usable\n", name, n);
    printf("isa     %s\n", isa);
    if (!strchr(isa, ' '))
        wrong(r, "no AVX2: the scalar kernels are many times slower");
    if (!uname(&u))
        printf("system  %s %s\n", u.sysname, u.release);
    printf("memory  %s free\n", turbod_plan_size((double)memory, size));
    if (memory && memory < (uint64_t)512 << 20)
        wrong(r, "less than 512 MiB of memory is free; only small models will load");
}

static void plugins(report *r, const cli_args *a)
{
    const char *path = turbod_plugin_path(a->conf->plugin_path);
    turbod_registry *reg = NULL;
    turbo_err err = {{0}};
    bool model = false, tok = false;
    printf("plugins %s\n", path);
    turbod_log_level(TURBO_LOG_ERROR);
    if (turbod_registry_open(path, &reg, &err)) {
        wrong(r, "%s; install turbod or set --plugin-path", err.text);
        return;
    }
    for (size_t i = 0; i < turbod_registry_count(reg); i++) {
        turbod_plugin_row row;
        turbod_registry_row(reg, i, &row);
        if (row.refused) {
            wrong(r, "%s", row.refused);
            continue;
        }
        printf("        %s %s: %s\n", row.id, row.version ? row.version : "", row.offers);
        model = model || strstr(row.offers, "model ");
        tok = tok || strstr(row.offers, "tokenizer ");
    }
    if (!model)
        wrong(r, "no plugin offers a model");
    if (!tok)
        wrong(r, "no plugin offers a tokenizer");
    if (!turbod_registry_sampler(reg, "std"))
        wrong(r, "no plugin offers the sampler \"std\"; nothing can be generated");
    turbod_registry_close(reg);
}

static void scripts(report *r)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/chat", turbod_data_dir());
    printf("scripts %s\n", turbod_data_dir());
    if (access(path, R_OK | X_OK))
        wrong(r, "%s: %s; chat templates will not be found; set TURBO_DATA", path, strerror(errno));
}

static void limits(report *r, const cli_args *a)
{
    struct rlimit lim;
    unsigned long long want = (unsigned long long)a->conf->max_connections + 256;
    if (getrlimit(RLIMIT_NOFILE, &lim))
        return;
    printf("files   %llu, at most %llu\n", (unsigned long long)lim.rlim_cur,
           (unsigned long long)lim.rlim_max);
    if (lim.rlim_max < want)
        wrong(r, "max_connections %lld needs %llu descriptors; raise the limit or lower it",
              (long long)a->conf->max_connections, want);
}

static void port(report *r, const cli_args *a)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)a->conf->port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || inet_pton(AF_INET, a->conf->host, &to.sin_addr) != 1) {
        printf("port    %s:%lld is not tested (no IPv4 address)\n", a->conf->host,
               (long long)a->conf->port);
    } else {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&to, sizeof to) || listen(fd, 1))
            wrong(r, "port %lld on %s: %s; another turbod? choose another --port",
                  (long long)a->conf->port, a->conf->host, strerror(errno));
        else
            printf("port    %s:%lld is free\n", a->conf->host, (long long)a->conf->port);
    }
    if (fd >= 0)
        close(fd);
}

static void model(report *r, const cli_args *a)
{
    struct stat st;
    const char *dir = a->n_words ? a->words[0] : a->conf->model;
    char path[4200];
    if (!*dir)
        return;
    printf("model   %s\n", dir);
    if (turbod_gguf_is(dir)) {
        turbod_gguf *g = NULL;
        turbo_err err;
        if (turbod_gguf_open(dir, &g, &err))
            wrong(r, "%s", err.text);
        turbod_gguf_close(g);
        printf("        turbod --model %s -t tests it in depth\n", dir);
        return;
    }
    if (stat(dir, &st) || !S_ISDIR(st.st_mode)) {
        wrong(r, "model %s: %s", dir, errno ? strerror(errno) : "is not a folder");
        return;
    }
    snprintf(path, sizeof path, "%s/config.json", dir);
    if (access(path, R_OK))
        wrong(r, "%s: %s", path, strerror(errno));
    printf("        turbod --model %s -t tests it in depth\n", dir);
}

static int run(cli_args *a)
{
    report r = {0};
    turbod_version_print(stdout, "turbo");
    printf("libcurl         %s\n\n", curl_version());
    machine(&r);
    plugins(&r, a);
    scripts(&r);
    limits(&r, a);
    port(&r, a);
    model(&r, a);
    if (geteuid() == 0)
        printf("note    running as root; turbod needs no rights of root\n");
    printf(r.wrong ? "\n%d things are wrong\n" : "\nnothing is wrong\n", r.wrong);
    return r.wrong ? turbod_exit_code(TURBO_EINVAL) : 0;
}

const cli_cmd cli_doctor = {
    .name = "doctor",
    .words = "[MODEL] [flags]",
    .summary = "Tells what this machine offers and what is wrong with it.",
    .about = "",
    .flags = NULL,
    .keys = "model plugin_path log_level host port max_connections",
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
