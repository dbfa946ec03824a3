/* core/util/file.c: see file.h. */
#include "util/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/err.h"

bool turbod_file_name_ok(const char *name)
{
    size_t n = strlen(name);
    if (n < 1 || n > 255 || name[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
              c == '.' || c == '_' || c == '-'))
            return false;
    }
    return true;
}

turbo_status turbod_file_open(const char *folder, const char *name, int *fd, struct stat *st,
                              turbo_err *err)
{
    turbo_status status;
    int dir = -1, f = -1;
    if (!turbod_file_name_ok(name))
        return turbod_err(
            err, TURBO_EDATA,
            "file name \"%.64s\" is not plain: letters, digits, '.', '_' and '-' only", name);
    dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return turbod_err(err, TURBO_ENOENT, "%s: cannot open the folder: %s", folder,
                          strerror(errno));
    /* O_NONBLOCK: a fifo must not hang the start. */
    f = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f < 0) {
        status = turbod_err(err, errno == ENOENT ? TURBO_ENOENT : TURBO_EIO, "%s/%s: %s", folder,
                            name, strerror(errno));
        goto out;
    }
    if (fstat(f, st)) {
        status = turbod_err(err, TURBO_EIO, "%s/%s: %s", folder, name, strerror(errno));
        goto out;
    }
    if (!S_ISREG(st->st_mode)) {
        status = turbod_err(err, TURBO_EDATA, "%s/%s is not a regular file", folder, name);
        goto out;
    }
    struct stat link;
    if (!fstatat(dir, name, &link, AT_SYMLINK_NOFOLLOW) && S_ISLNK(link.st_mode) &&
        ((st->st_uid != 0 && st->st_uid != geteuid()) || (st->st_mode & S_IWOTH))) {
        status = turbod_err(err, TURBO_EDATA,
                            "%s/%s is a link to a file of another user; copy the file instead",
                            folder, name);
        goto out;
    }
    if (st->st_mode & S_IWOTH) {
        status = turbod_err(err, TURBO_EDATA, "%s/%s is writable by everyone; chmod o-w it", folder,
                            name);
        goto out;
    }
    *fd = f;
    f = -1;
    status = TURBO_OK;
out:
    if (f >= 0)
        close(f);
    close(dir);
    return status;
}

turbo_status turbod_file_folder(const char *folder, const char *name, char *out, size_t cap,
                                turbo_err *err)
{
    struct stat st;
    if (!turbod_file_name_ok(name))
        return turbod_err(
            err, TURBO_EDATA,
            "folder name \"%.64s\" is not plain: letters, digits, '.', '_' and '-' only", name);
    for (int i = 0; i < 2; i++) {
        int n = snprintf(out, cap, "%s/%s%s", folder, i ? "../" : "", name);
        if (n > 0 && (size_t)n < cap && !stat(out, &st) && S_ISDIR(st.st_mode))
            return TURBO_OK;
    }
    return turbod_err(err, TURBO_ENOENT,
                      "there is no folder %.64s inside the model folder or beside it", name);
}

turbo_status turbod_file_read(const char *folder, const char *name, uint64_t max_bytes,
                              uint8_t **bytes, uint64_t *len, turbo_err *err)
{
    int fd;
    struct stat st;
    turbo_status status = turbod_file_open(folder, name, &fd, &st, err);
    if (status)
        return status;
    uint64_t size = (uint64_t)st.st_size, done = 0;
    uint8_t *p = NULL;
    if (size > max_bytes) {
        status = turbod_err(err, TURBO_ELIMIT, "%s/%s has %llu bytes; at most %llu are read",
                            folder, name, (unsigned long long)size, (unsigned long long)max_bytes);
    } else if (!(p = malloc(size + 1))) {
        status = turbod_err(err, TURBO_ENOMEM, "no memory for %s (%llu bytes)", name,
                            (unsigned long long)size);
    }
    while (!status && done < size) {
        ssize_t n = read(fd, p + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            status = turbod_err(err, TURBO_EIO, "%s/%s: %s", folder, name,
                                n ? strerror(errno) : "the file became shorter while it was read");
        else
            done += (uint64_t)n;
    }
    close(fd);
    if (status) {
        free(p);
        return status;
    }
    p[size] = 0;
    *bytes = p;
    *len = size;
    return TURBO_OK;
}
