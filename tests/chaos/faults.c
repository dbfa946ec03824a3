/* tests/chaos/faults.c: preloaded into turbod, makes the n-th call of a kind fail. Any thread.
 *
 * $TURBO_FAULTS names a file that holds a `control`; whoever maps it too arms a site by writing how many calls
 * are left until one fails. Reads and writes fail for regular files only: sockets and wake-ups have their own
 * tests. Memory that the C library and others take counts as well: what the server is built of must not matter.
 * Must not know: anything of turbod. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MEMORY, OPEN, READ, WRITE, FSYNC, RENAME, ACCEPT, THREAD, EPOLL, SITES };

typedef struct control { /* faults.py has the same in its own words */
    _Atomic int64_t left[SITES]; /* calls until one fails; 0 none will, -1 all do */
    _Atomic int64_t failed[SITES]; /* calls that failed */
    _Atomic int64_t error[SITES]; /* errno of a failure */
    _Atomic int64_t stay; /* after the first failure all others fail too */
    _Atomic int64_t live; /* blocks of memory taken and not given back */
} control;

static control *shared;

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

__attribute__((constructor)) static void attach(void)
{
    const char *name = getenv("TURBO_FAULTS");
    int fd = name ? openat(AT_FDCWD, name, O_RDWR | O_CLOEXEC) : -1;
    void *p =
        fd >= 0 ? mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : NULL;
    if (fd >= 0)
        close(fd);
    shared = p == MAP_FAILED ? NULL : p;
}

static bool fails(int site)
{
    control *c = shared;
    if (!c)
        return false;
    int64_t left = atomic_load(&c->left[site]);
    while (
        left > 0 &&
        !atomic_compare_exchange_weak(&c->left[site], &left,
                                      left > 1 ? left - 1 : -(int64_t)(atomic_load(&c->stay) != 0)))
        continue;
    if (left != 1 && left != -1)
        return false;
    atomic_fetch_add(&c->failed[site], 1);
    errno = (int)atomic_load(&c->error[site]);
    return true;
}

static void *counted(void *p)
{
    if (p && shared)
        atomic_fetch_add_explicit(&shared->live, 1, memory_order_relaxed);
    return p;
}

void *malloc(size_t n)
{
    return fails(MEMORY) ? NULL : counted(__libc_malloc(n));
}

void *calloc(size_t a, size_t b)
{
    return fails(MEMORY) ? NULL : counted(__libc_calloc(a, b));
}

void *realloc(void *p, size_t n)
{
    if (n && fails(MEMORY))
        return NULL;
    if (!p)
        return counted(__libc_realloc(p, n));
    if (!n && shared)
        atomic_fetch_sub_explicit(&shared->live, 1, memory_order_relaxed);
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t a, size_t n)
{
    return fails(MEMORY) ? NULL : counted(__libc_memalign(a, n));
}

int posix_memalign(void **out, size_t a, size_t n)
{
    *out = fails(MEMORY) ? NULL : counted(__libc_memalign(a, n));
    return *out ? 0 : ENOMEM;
}

void free(void *p)
{
    if (p && shared)
        atomic_fetch_sub_explicit(&shared->live, 1, memory_order_relaxed);
    __libc_free(p);
}

/* The next function of that name, through an integer because ISO C has no such conversion. */
#define NEXT(type, name) ((type)(uintptr_t)dlsym(RTLD_NEXT, name))

int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fails(OPEN) ? -1 : NEXT(int (*)(const char *, int, mode_t), "open")(path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fails(OPEN)
               ? -1
               : NEXT(int (*)(int, const char *, int, mode_t), "openat")(dir, path, flags, mode);
}

static bool regular(int fd)
{
    struct stat st;
    return fd > 2 && !fstat(fd, &st) && S_ISREG(st.st_mode);
}

ssize_t read(int fd, void *p, size_t n)
{
    return regular(fd) && fails(READ) ? -1
                                      : NEXT(ssize_t(*)(int, void *, size_t), "read")(fd, p, n);
}

ssize_t write(int fd, const void *p, size_t n)
{
    if (!regular(fd) || !fails(WRITE))
        return NEXT(ssize_t(*)(int, const void *, size_t), "write")(fd, p, n);
    return -1;
}

int fsync(int fd)
{
    return fails(FSYNC) ? -1 : NEXT(int (*)(int), "fsync")(fd);
}

int renameat(int a, const char *from, int b, const char *to)
{
    return fails(RENAME)
               ? -1
               : NEXT(int (*)(int, const char *, int, const char *), "renameat")(a, from, b, to);
}

int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    return fails(ACCEPT) ? -1
                         : NEXT(int (*)(int, struct sockaddr *, socklen_t *, int),
                                "accept4")(fd, addr, len, flags);
}

int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg)
{
    if (fails(THREAD))
        return EAGAIN;
    return NEXT(int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *),
                "pthread_create")(t, a, run, arg);
}

int epoll_ctl(int ep, int op, int fd, struct epoll_event *ev)
{
    return op == EPOLL_CTL_ADD && fails(EPOLL)
               ? -1
               : NEXT(int (*)(int, int, int, struct epoll_event *), "epoll_ctl")(ep, op, fd, ev);
}
