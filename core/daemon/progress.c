/* core/daemon/progress.c: how far loading is: a bar on a terminal, a line each 10 % elsewhere.
 * Called by the thread that loads. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "util/log.h"

#define BAR 40

void turbod_progress_init(turbod_progress *p)
{
    *p = (turbod_progress){.terminal = isatty(STDERR_FILENO), .shown = 0};
}

void turbod_progress_step(void *progress, uint64_t done, uint64_t total)
{
    turbod_progress *p = progress;
    if (!total)
        return;
    int percent = (int)((double)done / (double)total * 100);
    if (p->terminal && percent != p->shown) {
        char bar[BAR + 1];
        int full = percent * BAR / 100;
        full = full > BAR ? BAR : full;
        memset(bar, '.', BAR);
        memset(bar, '#', (size_t)full);
        bar[BAR] = '\0';
        fprintf(stderr, "\rloading [%s] %3d %%", bar, percent);
        p->shown = percent;
    } else if (!p->terminal && percent / 10 > p->shown) {
        p->shown = percent / 10;
        turbod_log(TURBO_LOG_INFO, "loading: %d %%, %.1f of %.1f MiB", p->shown * 10,
                   (double)done / 0x1p20, (double)total / 0x1p20);
    }
}

void turbod_progress_end(turbod_progress *p)
{
    if (p->terminal && p->shown)
        fputs("\r\033[K", stderr);
}
