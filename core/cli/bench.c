/* core/cli/bench.c: small things that every `turbo bench` needs. Main thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"
#include "util/checked.h"
#include "util/err.h"

turbo_status cli_number_list(const char *text, int32_t lo, int32_t hi, int32_t *out, int max,
                             int *n, const char *flag, turbo_err *err)
{
    *n = 0;
    for (const char *p = text; *p || !*n;) {
        size_t digits = strspn(p, "0123456789");
        int64_t v = 0;
        for (size_t i = 0; i < digits && i < 10; i++)
            v = v * 10 + (p[i] - '0');
        bool last = p[digits] == '\0';
        if (!digits || digits > 9 || v < lo || v > hi || *n >= max ||
            (!last && (p[digits] != ',' || !p[digits + 1])))
            return turbod_err(err, TURBOD_EUSAGE,
                              "--%s is \"%.60s\"; 1 to %d numbers %d to %d with commas are needed",
                              flag, text, max, lo, hi);
        out[(*n)++] = (int32_t)v;
        p += digits + !last;
    }
    return TURBO_OK;
}

turbo_status cli_slo_parse(const char *text, cli_slo *out, turbo_err *err)
{
    const char *p = text;
    memset(out, 0, sizeof *out);
    do {
        double *to = !strncmp(p, "ttft=", 5)  ? &out->ttft
                     : !strncmp(p, "itl=", 4) ? &out->itl
                     : !strncmp(p, "e2e=", 4) ? &out->e2e
                                              : NULL;
        char *end = NULL;
        p += strcspn(p, "=");
        double ms = to && strchr("0123456789.", p[1]) ? strtod(p + 1, &end) : 0;
        if (!turbod_d_in(ms, 1e-3, 1e9) || (*end && *end != ','))
            return turbod_err(err, TURBOD_EUSAGE,
                              "--slo is \"%.60s\"; ttft=MS,itl=MS,e2e=MS is needed, any of them",
                              text);
        *to = ms * 1e-3;
        p = *end ? end + 1 : NULL;
    } while (p);
    return TURBO_OK;
}

void cli_machine(char *out, size_t size)
{
    char line[200], name[128] = "unknown CPU";
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (f)
        fclose(f);
    snprintf(out, size, "%s, %ld CPUs", name, sysconf(_SC_NPROCESSORS_ONLN));
}

void cli_today(char out[32])
{
    time_t t = time(NULL);
    struct tm tm;
    if (!gmtime_r(&t, &tm) || !strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm))
        snprintf(out, 32, "unknown");
}
