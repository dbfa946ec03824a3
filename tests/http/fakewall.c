/* tests/http/fakewall.c: for LD_PRELOAD: a wall clock that jumps a year forth or back at each reading.
 * Monotonic clocks tell the truth. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define YEAR 31536000

static _Atomic unsigned n_read;

static time_t jump(void)
{
    return atomic_fetch_add(&n_read, 1) % 2 ? YEAR : -YEAR;
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
    int bad = (int)syscall(SYS_clock_gettime, id, ts);
    if (!bad && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        ts->tv_sec += jump();
    return bad;
}

time_t time(time_t *out)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out)
        *out = ts.tv_sec;
    return ts.tv_sec;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
    struct timespec ts;
    (void)tz;
    clock_gettime(CLOCK_REALTIME, &ts);
    *tv = (struct timeval){.tv_sec = ts.tv_sec, .tv_usec = ts.tv_nsec / 1000};
    return 0;
}
