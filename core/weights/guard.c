/* core/weights/guard.c: see guard.h. Handlers call nothing but what may be called in one. */
#include "weights/guard.h"

#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "util/err.h"
#include "weights/cache.h"

static int lost_code; /* worked out before it is needed: a handler calls as little as it can */

static void on_bus(int sig, siginfo_t *info, void *context)
{
    static const char text[] = "error: a mapped file of the model or of cache_dir was cut short, "
                               "or its disk failed, while "
                               "it was read; put the whole file back and start again\n";
    static atomic_flag told;
    (void)context;
    turbod_cache_abandon();
    if (info->si_code != BUS_ADRERR) { /* a defect, or somebody's kill */
        signal(sig, SIG_DFL);
        raise(sig);
        return;
    }
    while (atomic_flag_test_and_set(&told)) /* several threads read the file: one tells */
        pause();
    ssize_t n = write(2, text, sizeof text - 1);
    (void)n; /* there is nobody else to tell */
    _exit(lost_code);
}

void turbod_guard_files(void)
{
    struct sigaction sa = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    lost_code = turbod_exit_code(TURBO_EIO);
    sigaction(SIGBUS, &sa, NULL);
}

static void on_end(int sig)
{
    turbod_cache_abandon();
    raise(sig);
}

void turbod_guard_cache(void)
{
    static const int ends[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction sa = {.sa_handler = on_end, .sa_flags = (int)SA_RESETHAND}, was;
    for (int i = 0; i < 3; i++)
        if (!sigaction(ends[i], NULL, &was) && was.sa_handler == SIG_DFL)
            sigaction(ends[i], &sa, NULL);
}
