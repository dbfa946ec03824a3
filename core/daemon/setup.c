/* core/daemon/setup.c: the process before anything else happens in it. Main thread, before any other
 * thread exists. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "util/err.h"
#include "util/log.h"
#include "weights/guard.h"

#define SPARE_FDS 256 /* model files, plugins, epoll, logs: everything but client connections */

turbo_status turbod_process_begin(turbo_err *err)
{
    umask(077);
    for (int fd = 0; fd <= 2; fd++) /* else the first socket would become our stderr */
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) != fd)
            return turbod_err(err, TURBO_EIO, "cannot open /dev/null as descriptor %d: %s", fd,
                              strerror(errno));
    if (close_range(3, ~0u, 0)) /* kernels before 5.9: inherited descriptors stay, harmlessly */
        turbod_log(TURBO_LOG_DEBUG, "close_range: %s", strerror(errno));
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none); /* a core would hold weights, prompts and keys */
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    if (sigaction(SIGPIPE, &ignore, NULL))
        return turbod_err(err, TURBO_EINTERNAL, "cannot ignore SIGPIPE: %s", strerror(errno));
    turbod_guard_files();
    return TURBO_OK;
}

turbo_status turbod_process_limits(const turbod_conf *c, turbo_err *err)
{
    struct rlimit lim;
    rlim_t want = (rlim_t)c->max_connections + SPARE_FDS;
    if (geteuid() == 0 && !c->allow_root)
        return turbod_err(err, TURBO_EINVAL,
                          "running as root; use another user or set allow_root = true");
    if (getrlimit(RLIMIT_NOFILE, &lim))
        return turbod_err(err, TURBO_EINTERNAL, "getrlimit: %s", strerror(errno));
    if (lim.rlim_cur < want) {
        lim.rlim_cur = want < lim.rlim_max ? want : lim.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &lim))
            return turbod_err(err, TURBO_EINTERNAL, "setrlimit: %s", strerror(errno));
        if (lim.rlim_cur < want)
            return lim.rlim_cur > SPARE_FDS
                       ? turbod_err(err, TURBO_EINVAL,
                                    "max_connections %lld needs %llu descriptors, the limit is "
                                    "%llu: lower "
                                    "max_connections to %llu or raise LimitNOFILE",
                                    (long long)c->max_connections, (unsigned long long)want,
                                    (unsigned long long)lim.rlim_cur,
                                    (unsigned long long)lim.rlim_cur - SPARE_FDS)
                       : turbod_err(
                             err, TURBO_EINVAL,
                             "a limit of %llu descriptors is too low for a server, %llu are needed "
                             "for max_connections %lld: raise LimitNOFILE (ulimit -n)",
                             (unsigned long long)lim.rlim_cur, (unsigned long long)want,
                             (long long)c->max_connections);
    }
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return TURBO_OK;
}

turbo_status turbod_signals_open(int *fd, turbo_err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &set, NULL))
        return turbod_err(err, TURBO_EINTERNAL, "sigprocmask: %s", strerror(errno));
    *fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (*fd < 0)
        return turbod_err(err, TURBO_EINTERNAL, "signalfd: %s", strerror(errno));
    return TURBO_OK;
}

int turbod_signals_next(int fd)
{
    struct signalfd_siginfo info;
    ssize_t n = read(fd, &info, sizeof info);
    return n == (ssize_t)sizeof info ? (int)info.ssi_signo : 0;
}
