/* core/net/loop.c: the thread of one libmicrohttpd daemon. It owns the daemon from start to stop; other
 * threads only suspend and resume connections and hand sockets over.
 *
 * The library's own thread is not used: its epoll loop calls epoll_wait again, without end, whenever a call
 * returned exactly 128 events, so 256 clients that send at the same moment could wait until somebody else
 * came (libmicrohttpd 0.9.75). MHD_run never blocks; this thread does, for at most TICK_MS. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "net/net.h"
#include "util/err.h"

#define TICK_MS 250 /* in case a wake-up is lost */

/* A socket on its way from the door to the daemon. */
typedef struct adopted {
    int fd;
    socklen_t len;
    struct sockaddr_storage addr;
    uint64_t tag;
} adopted;

struct turbod_loop {
    turbod_http *http;
    struct MHD_Daemon *daemon;
    pthread_t thread;
    int epoll_fd, wake_fd; /* epoll_fd is the daemon's */
    _Atomic bool stop;
    pthread_mutex_t mu; /* guards what follows */
    adopted *queue;
    size_t n, cap;
};

static void adopt_all(turbod_loop *l)
{
    pthread_mutex_lock(&l->mu);
    adopted *queue = l->queue;
    size_t n = l->n;
    l->queue = NULL;
    l->n = l->cap = 0;
    pthread_mutex_unlock(&l->mu);
    for (size_t i = 0; i < n; i++) {
        adopted *a = &queue[i];
        /* On failure the daemon has closed the socket, and called nobody. */
        if (MHD_add_connection(l->daemon, a->fd, (struct sockaddr *)&a->addr, a->len) != MHD_YES)
            turbod_door_lost(l->http, a->fd, a->tag);
    }
    free(queue);
}

static void *loop_main(void *arg)
{
    turbod_loop *l = arg;
    pthread_setname_np(pthread_self(), "turbo-http");
    while (!atomic_load(&l->stop)) {
        struct pollfd fds[2] = {{.fd = l->epoll_fd, .events = POLLIN},
                                {.fd = l->wake_fd, .events = POLLIN}};
        MHD_UNSIGNED_LONG_LONG wait = 0;
        int ms = TICK_MS;
        if (MHD_get_timeout(l->daemon, &wait) == MHD_YES && wait < TICK_MS)
            ms = (int)wait;
        if (poll(fds, 2, ms) > 0 && fds[1].revents) {
            uint64_t v;
            (void)!read(l->wake_fd, &v, sizeof v);
        }
        adopt_all(l);
        MHD_run(l->daemon);
    }
    return NULL;
}

turbo_status turbod_loop_start(turbod_http *h, struct MHD_Daemon *daemon, turbod_loop **out,
                               turbo_err *err)
{
    turbod_loop *l = calloc(1, sizeof *l);
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (l) {
        l->http = h;
        l->daemon = daemon;
        l->epoll_fd = info ? info->epoll_fd : -1;
        l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        pthread_mutex_init(&l->mu, NULL);
        if (l->epoll_fd >= 0 && l->wake_fd >= 0 &&
            !pthread_create(&l->thread, NULL, loop_main, l)) {
            *out = l;
            return TURBO_OK;
        }
        if (l->wake_fd >= 0)
            close(l->wake_fd);
        pthread_mutex_destroy(&l->mu);
        free(l);
    }
    MHD_stop_daemon(daemon);
    return turbod_err(err, TURBO_ENOMEM, "the HTTP thread does not start: %s", strerror(errno));
}

void turbod_loop_poke(turbod_loop *l)
{
    const uint64_t one = 1;
    (void)!write(l->wake_fd, &one, sizeof one);
}

bool turbod_loop_adopt(turbod_loop *l, int fd, const struct sockaddr_storage *addr, socklen_t len,
                       uint64_t tag)
{
    pthread_mutex_lock(&l->mu);
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        adopted *more = realloc(l->queue, cap * sizeof *more);
        if (!more) {
            pthread_mutex_unlock(&l->mu);
            return false;
        }
        l->queue = more;
        l->cap = cap;
    }
    l->queue[l->n++] = (adopted){.fd = fd, .len = len, .addr = *addr, .tag = tag};
    pthread_mutex_unlock(&l->mu);
    turbod_loop_poke(l);
    return true;
}

void turbod_loop_stop(turbod_loop *l)
{
    if (!l)
        return;
    atomic_store(&l->stop, true);
    turbod_loop_poke(l);
    pthread_join(l->thread, NULL);
    adopt_all(l); /* the daemon closes them with the rest */
    MHD_stop_daemon(l->daemon);
    close(l->wake_fd);
    pthread_mutex_destroy(&l->mu);
    free(l);
}
