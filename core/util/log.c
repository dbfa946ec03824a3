/* core/util/log.c: see log.h. The level is the one global of the program. */
#include "util/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic int level_limit = TURBO_LOG_INFO;
static const char *const level_names[] = {"error", "warn", "info", "debug"};

void turbod_log_level(int level)
{
    atomic_store_explicit(&level_limit, level, memory_order_relaxed);
}

int turbod_log_level_of(const char *name)
{
    for (int i = 0; i < 4; i++)
        if (!strcmp(name, level_names[i]))
            return i;
    return -1;
}

void turbod_log(int level, const char *fmt, ...)
{
    if (level > atomic_load_explicit(&level_limit, memory_order_relaxed) || level < 0 || level > 3)
        return;
    char text[1024], line[4 * sizeof text + 64];
    va_list ap;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof text, fmt, ap) < 0)
        text[0] = '\0';
    va_end(ap);

    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ %-5s ", ts.tv_nsec / 1000000,
                          level_names[level]);
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c == 0x7f)
            n += (size_t)snprintf(line + n, sizeof line - n, "\\x%02x", c);
        else
            line[n++] = *p;
    }
    line[n++] = '\n';
    /* One write a line keeps lines of several threads apart. A full disk must not stop serving. */
    ssize_t done = write(STDERR_FILENO, line, n);
    (void)done;
}
