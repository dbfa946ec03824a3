/* core/media/helper.c: turbo-image, the process that looks at image files in turbod's place.
 *
 * It is started for one picture with two descriptors, takes limits on memory, time and system calls upon
 * itself before it reads the first byte, and ends. A picture that breaks a decoder breaks this process;
 * turbod sees that no reply came. One thread. Must not know: requests, models, the network. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "media/decode.h"

#define MAX_MEMORY ((rlim_t)1 << 30) /* address space, libraries and all */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* their shadow memory and system calls do not fit into the limits */
#else
#define SANITIZED 0
#endif

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif

static bool write_all(const void *p, size_t n)
{
    const char *at = p;
    while (n) {
        ssize_t k = write(1, at, n);
        if (k <= 0 && errno != EINTR)
            return false;
        if (k > 0) {
            at += k;
            n -= (size_t)k;
        }
    }
    return true;
}

static bool read_all(void *p, size_t n)
{
    char *at = p;
    while (n) {
        ssize_t k = read(0, at, n);
        if (k == 0 || (k < 0 && errno != EINTR))
            return false;
        if (k > 0) {
            at += k;
            n -= (size_t)k;
        }
    }
    return true;
}

_Noreturn void turbod_decode_fail(turbo_status status, const char *fmt, ...)
{
    turbod_image_reply r = {.magic = TURBOD_IMAGE_MAGIC, .status = status};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r.text, sizeof r.text, fmt, ap);
    va_end(ap);
    write_all(&r, sizeof r);
    _exit(0);
}

void turbod_decode_size(int64_t width, int64_t height)
{
    if (width < 1 || height < 1)
        turbod_decode_fail(TURBO_EDATA, "the image has no pixels: %lld x %lld", (long long)width,
                           (long long)height);
    if (width > TURBOD_IMAGE_MAX_SIDE || height > TURBOD_IMAGE_MAX_SIDE ||
        width * height > TURBOD_IMAGE_MAX_PIXELS)
        turbod_decode_fail(TURBO_ELIMIT,
                           "the image is %lld x %lld pixels; at most %d a side and %lld million in "
                           "all are taken",
                           (long long)width, (long long)height, TURBOD_IMAGE_MAX_SIDE,
                           (long long)(TURBOD_IMAGE_MAX_PIXELS / 1000000));
}

static bool limit(int what, rlim_t most)
{
    struct rlimit r = {most, most};
    return !setrlimit((__rlimit_resource_t)what, &r);
}

#ifdef ARCH
/* Only what decoding in memory and writing an answer need; anything else is refused. */
static bool close_the_door(void)
{
#define LOAD(field)                                                                                \
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define ALLOW(nr)                                                                                  \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter code[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        LOAD(nr),
        ALLOW(__NR_read),
        ALLOW(__NR_write),
        ALLOW(__NR_brk),
        ALLOW(__NR_mmap),
        ALLOW(__NR_munmap),
        ALLOW(__NR_mremap),
        ALLOW(__NR_madvise),
        ALLOW(__NR_getrandom), /* malloc's */
        ALLOW(__NR_rt_sigreturn),
        ALLOW(__NR_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog prog = {sizeof code / sizeof code[0], code};
    return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
           /* A kernel without filters still has the limits above. */
           (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0) || errno == EINVAL ||
            errno == ENOSYS);
}
#else
static bool close_the_door(void)
{
    return true;
}
#endif

static bool lock_up(void)
{
    struct itimerval wall = {.it_value = {.tv_sec = TURBOD_IMAGE_MS / 1000 + 1}};
    bool ok = limit(RLIMIT_CORE, 0) && limit(RLIMIT_FSIZE, 0) && limit(RLIMIT_NOFILE, 0) &&
              limit(RLIMIT_CPU, TURBOD_IMAGE_MS / 1000 + 1) && !setitimer(ITIMER_REAL, &wall, NULL);
    return ok && (SANITIZED || (limit(RLIMIT_AS, MAX_MEMORY) && close_the_door()));
}

int main(void)
{
    turbod_image_request q;
    turbod_image_reply r = {.magic = TURBOD_IMAGE_MAGIC};
    turbod_picture p = {0};
    if (!lock_up())
        turbod_decode_fail(TURBO_EINTERNAL, "the image helper could not limit itself");
    if (!read_all(&q, sizeof q) || q.magic != TURBOD_IMAGE_MAGIC ||
        q.n_bytes > TURBOD_IMAGE_MAX_FILE || q.fit.width < 1 || q.fit.height < 1 ||
        q.fit.width > TURBOD_IMAGE_MAX_SIDE || q.fit.height > TURBOD_IMAGE_MAX_SIDE)
        turbod_decode_fail(TURBO_EINTERNAL, "turbo-image is started by turbod, with a request");
    uint8_t *file = malloc((size_t)q.n_bytes + 1);
    if (!file || !read_all(file, (size_t)q.n_bytes))
        turbod_decode_fail(TURBO_EINTERNAL, "the image did not reach the image helper");
    if (q.n_bytes >= 2 && file[0] == 0xff && file[1] == 0xd8)
        turbod_decode_jpeg(file, (size_t)q.n_bytes, &p);
    else
        turbod_decode_png(file, (size_t)q.n_bytes, &p);
    free(file);
    size_t n = (size_t)q.fit.width * (size_t)q.fit.height * 3;
    uint8_t *out = malloc(n);
    if (!out || !turbod_image_resample(&p, &q.fit, out))
        turbod_decode_fail(TURBO_ELIMIT, "the image takes more memory than an image may");
    r.width = p.width;
    r.height = p.height;
    return write_all(&r, sizeof r) && write_all(out, n) ? 0 : 1;
}
