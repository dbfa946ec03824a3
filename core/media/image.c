/* core/media/image.c: see image.h. */
#include "media/image.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "conf/paths.h"
#include "util/checked.h"
#include "util/err.h"
#include "util/sha256.h"
#include "util/utf8.h"

typedef struct child {
    pid_t pid;
    int out; /* the helper's descriptor 1, read end */
    int64_t deadline;
} child;

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* What the first bytes say. Only JPEG and PNG go on. */
static turbo_status check_kind(const uint8_t *b, size_t n, turbo_err *err)
{
    static const struct {
        size_t at, n;
        const char *magic, *name;
    } kinds[] = {
        {0, 3, "\xff\xd8\xff", NULL}, {0, 8, "\x89PNG\r\n\x1a\n", NULL},
        {0, 4, "GIF8", "GIF"},        {8, 4, "WEBP", "WebP"},
        {0, 2, "BM", "BMP"},          {0, 4, "II*\0", "TIFF"},
        {0, 4, "MM\0*", "TIFF"},      {4, 8, "ftypavif", "AVIF"},
        {4, 8, "ftypheic", "HEIC"},   {0, 4, "%PDF", "PDF"},
        {0, 4, "\0\0\1\0", "ICO"},    {0, 5, "<?xml", "SVG"},
        {0, 4, "<svg", "SVG"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (n >= kinds[i].at + kinds[i].n && !memcmp(b + kinds[i].at, kinds[i].magic, kinds[i].n))
            return kinds[i].name
                       ? turbod_err(err, TURBO_EUNSUPPORTED,
                                    "the image is a %s file; JPEG and PNG are taken", kinds[i].name)
                       : TURBO_OK;
    return turbod_err(err, TURBO_EINVAL, "the data is no image; JPEG and PNG are taken");
}

/* The request as a file in memory, open at its beginning. */
static int make_input(const void *bytes, size_t n, const turbod_image_fit *fit)
{
    const turbod_image_request q = {.magic = TURBOD_IMAGE_MAGIC, .fit = *fit, .n_bytes = n};
    int fd = memfd_create("turbo-image", MFD_CLOEXEC);
    const char *part[2] = {(const char *)&q, bytes};
    size_t left[2] = {sizeof q, n};
    for (int i = 0; fd >= 0 && i < 2; i++)
        while (left[i]) {
            ssize_t k = write(fd, part[i], left[i]);
            if (k <= 0 && errno != EINTR) {
                close(fd);
                return -1;
            }
            part[i] += k > 0 ? k : 0;
            left[i] -= k > 0 ? (size_t)k : 0;
        }
    if (fd >= 0 && lseek(fd, 0, SEEK_SET)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* in and out become its descriptors 0 and 1; it has no others, no environment and plain signals. */
static int spawn(int in, int out, pid_t *pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    char name[] = "turbo-image", *argv[] = {name, NULL}, *envp[] = {NULL};
    sigemptyset(&none);
    sigfillset(&all);
    int e = posix_spawn_file_actions_init(&files);
    if (e)
        return e;
    e = posix_spawnattr_init(&attr);
    if (!e) {
        e = posix_spawn_file_actions_adddup2(&files, in, 0);
        if (!e)
            e = posix_spawn_file_actions_adddup2(&files, out, 1);
        if (!e)
            e = posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
        if (!e)
            e = posix_spawn_file_actions_addclosefrom_np(&files, 3);
        if (!e)
            e = posix_spawnattr_setsigmask(&attr, &none);
        if (!e)
            e = posix_spawnattr_setsigdefault(&attr, &all);
        if (!e)
            e = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
        if (!e)
            e = posix_spawn(pid, turbod_image_helper(), &files, &attr, argv, envp);
        posix_spawnattr_destroy(&attr);
    }
    posix_spawn_file_actions_destroy(&files);
    return e;
}

static turbo_status start(const void *bytes, size_t n, const turbod_image_fit *fit, child *c,
                          turbo_err *err)
{
    int in = make_input(bytes, n, fit), pipes[2] = {-1, -1};
    if (in < 0 || pipe2(pipes, O_CLOEXEC)) {
        int e = errno;
        if (in >= 0)
            close(in);
        return turbod_err(err, TURBO_EIO, "no descriptors for an image: %s", strerror(e));
    }
    c->deadline = now_ms() + TURBOD_IMAGE_MS;
    int e = spawn(in, pipes[1], &c->pid);
    close(in);
    close(pipes[1]);
    c->out = pipes[0];
    if (!e)
        return TURBO_OK;
    close(pipes[0]);
    return turbod_err(err, TURBO_EIO, "the image helper %s does not start: %s",
                      turbod_image_helper(), strerror(e));
}

/* n bytes from the helper; 0 in time, 1 it ended before, 2 too late. */
static int receive(child *c, void *p, size_t n)
{
    char *at = p;
    while (n) {
        int64_t left = c->deadline - now_ms();
        struct pollfd f = {.fd = c->out, .events = POLLIN};
        if (left <= 0)
            return 2;
        if (poll(&f, 1, (int)left) <= 0)
            continue;
        ssize_t k = read(c->out, at, n);
        if (k == 0 || (k < 0 && errno != EINTR))
            return 1;
        at += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
    return 0;
}

/* The reply to a status and, when it is a yes, pixels. */
static turbo_status collect(child *c, uint8_t *pixels, size_t n, turbod_image_reply *r,
                            turbo_err *err)
{
    int got = receive(c, r, sizeof *r);
    if (!got && r->magic != TURBOD_IMAGE_MAGIC)
        got = 1;
    if (!got && r->status) {
        r->text[sizeof r->text - 1] = '\0';
        bool known = r->status == TURBO_EDATA || r->status == TURBO_ELIMIT ||
                     r->status == TURBO_EUNSUPPORTED;
        bool text = turbod_utf8_valid(r->text, strlen(r->text));
        return turbod_err(err, known ? r->status : TURBO_EINTERNAL, "%s",
                          text ? r->text : "the image is damaged");
    }
    if (!got)
        got = receive(c, pixels, n);
    if (got == 2)
        return turbod_err(err, TURBO_ELIMIT, "the image takes longer than %d ms to decode",
                          TURBOD_IMAGE_MS);
    if (got)
        return turbod_err(err, TURBO_EDATA, "the image is damaged: its decoder broke down");
    return TURBO_OK;
}

turbo_status turbod_image_prepare(const void *bytes, size_t n, const turbod_image_fit *fit,
                                  uint8_t *pixels, int32_t *width, int32_t *height, turbo_err *err)
{
    size_t out;
    turbod_image_reply r = {0};
    child c;
    if (fit->width < 1 || fit->height < 1 ||
        !turbod_mul((size_t)fit->width * 3, (size_t)fit->height, &out))
        return turbod_err(err, TURBO_EINTERNAL, "no image has %d x %d pixels", fit->width,
                          fit->height);
    if (n > TURBOD_IMAGE_MAX_FILE)
        return turbod_err(err, TURBO_ELIMIT, "the image file has %zu bytes; at most %llu are taken",
                          n, (unsigned long long)TURBOD_IMAGE_MAX_FILE);
    turbo_status st = check_kind(bytes, n, err);
    if (!st)
        st = start(bytes, n, fit, &c, err);
    if (st)
        return st;
    st = collect(&c, pixels, out, &r, err);
    close(c.out);
    kill(c.pid, SIGKILL); /* it has ended, or must: nothing more is wanted of it */
    while (waitpid(c.pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    if (!st && width)
        *width = r.width;
    if (!st && height)
        *height = r.height;
    return st;
}

turbo_status turbod_image_new(const void *bytes, size_t n, const turbod_image_fit *fit,
                              turbod_image **out, turbo_err *err)
{
    const int32_t shape[4] = {fit->fit, fit->edge, fit->width, fit->height};
    size_t len, size;
    uint8_t both[sizeof shape + 32];
    if (fit->width < 1 || fit->height < 1 ||
        !turbod_mul((size_t)fit->width * 3, (size_t)fit->height, &len) ||
        !turbod_add(len, sizeof **out, &size))
        return turbod_err(err, TURBO_EINTERNAL, "no image has %d x %d pixels", fit->width,
                          fit->height);
    turbod_image *i = malloc(size);
    if (!i)
        return turbod_err(err, TURBO_ENOMEM, "no memory for an image");
    atomic_init(&i->refs, 1);
    turbo_status st = turbod_image_prepare(bytes, n, fit, i->pixels, NULL, NULL, err);
    if (st) {
        free(i);
        return st;
    }
    memcpy(both, shape, sizeof shape);
    turbod_sha256(i->pixels, len, both + sizeof shape);
    turbod_sha256(both, sizeof both, i->digest);
    *out = i;
    return TURBO_OK;
}

turbod_image *turbod_image_ref(turbod_image *i)
{
    atomic_fetch_add_explicit(&i->refs, 1, memory_order_relaxed);
    return i;
}

void turbod_image_release(turbod_image *i)
{
    if (i && atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) == 1)
        free(i);
}

bool turbod_slots_add(turbod_slots *s, int32_t at, turbod_image *image)
{
    turbod_slot *v = reallocarray(s->v, s->n + 1, sizeof *v);
    if (!v)
        return false;
    s->v = v;
    s->v[s->n++] = (turbod_slot){.at = at, .image = turbod_image_ref(image)};
    return true;
}

void turbod_slots_free(turbod_slots *s)
{
    for (size_t i = 0; i < s->n; i++)
        turbod_image_release(s->v[i].image);
    free(s->v);
    *s = (turbod_slots){0};
}
