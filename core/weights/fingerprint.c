/* core/weights/fingerprint.c: see fingerprint.h. */
#include "weights/fingerprint.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/err.h"
#include "util/file.h"
#include "util/sha256.h"

#define PIECE 4096
#define HEAD_PIECES 16
#define SPREAD_PIECES 64

/* The digest so far goes in front of what is added. */
typedef struct chain {
    uint8_t bytes[32 + PIECE];
} chain;

static void add(chain *c, size_t n)
{
    turbod_sha256(c->bytes, 32 + n, c->bytes);
}

static bool has_end(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n > k && !strcmp(name + n - k, end);
}

static int wanted(const struct dirent *d)
{
    return d->d_name[0] != '.' && (has_end(d->d_name, ".json") || has_end(d->d_name, ".model") ||
                                   has_end(d->d_name, ".safetensors"));
}

static bool add_piece(chain *c, int fd, off_t at)
{
    ssize_t n;
    do
        n = pread(fd, c->bytes + 32, PIECE, at);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return false;
    add(c, (size_t)n);
    return true;
}

static turbo_status add_file(chain *c, const char *folder, const char *name, bool dated,
                             turbo_err *err)
{
    int fd;
    struct stat st;
    turbo_status status = turbod_file_open(folder, name, &fd, &st, err);
    if (status)
        return status;
    size_t n = strlen(name);
    memcpy(c->bytes + 32, name, n);
    memcpy(c->bytes + 32 + n, &st.st_size, sizeof st.st_size);
    add(c, n + sizeof st.st_size);
    if (dated) {
        const int64_t time[2] = {st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
        memcpy(c->bytes + 32, time, sizeof time);
        add(c, sizeof time);
    }
    off_t pieces = (st.st_size + PIECE - 1) / PIECE;
    off_t stride =
        pieces > HEAD_PIECES + SPREAD_PIECES ? (pieces - HEAD_PIECES) / SPREAD_PIECES : 1;
    bool ok = true;
    for (off_t i = 0; i < pieces && ok; i += i < HEAD_PIECES ? 1 : stride)
        ok = add_piece(c, fd, i * PIECE);
    close(fd);
    return ok ? TURBO_OK
              : turbod_err(err, TURBO_EIO, "%s cannot be read: %s", name, strerror(errno));
}

/* A GGUF file is all there is. */
static turbo_status of_file(const char *path, bool dated, uint8_t out[32], turbo_err *err)
{
    const char *slash = strrchr(path, '/');
    chain c = {{0}};
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    if (!folder)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a path");
    turbo_status st = add_file(&c, folder, slash ? slash + 1 : path, dated, err);
    free(folder);
    memcpy(out, c.bytes, 32);
    return st;
}

static turbo_status of_folder(const char *folder, bool dated, uint8_t out[32], turbo_err *err)
{
    struct stat at;
    if (!stat(folder, &at) && S_ISREG(at.st_mode))
        return of_file(folder, dated, out, err);
    struct dirent **names = NULL;
    chain c = {{0}};
    int n = scandir(folder, &names, wanted, alphasort);
    if (n < 0)
        return turbod_err(err, TURBO_EIO, "%s: %s", folder, strerror(errno));
    turbo_status st = TURBO_OK;
    for (int i = 0; i < n; i++) {
        if (!st)
            st = add_file(&c, folder, names[i]->d_name, dated, err);
        free(names[i]);
    }
    free(names);
    memcpy(out, c.bytes, 32);
    return st;
}

turbo_status turbod_fingerprint(const char *folder, uint8_t out[32], turbo_err *err)
{
    return of_folder(folder, false, out, err);
}

turbo_status turbod_fingerprint_dated(const char *folder, uint8_t out[32], turbo_err *err)
{
    return of_folder(folder, true, out, err);
}
