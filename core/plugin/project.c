/* core/plugin/project.c: `turbo plugin new`: copies the template project of scripts/plugin-new with
 * the plugin's name filled in. Main thread of a tool. Must not know what the template does. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin/check.h"
#include "util/buf.h"
#include "util/err.h"
#include "util/file.h"

#define MAX_TEMPLATE 65536
#define MAX_PROJECT_NAME 31

/* Template file, and the name it gets; NULL: the plugin's name with .c. */
static const struct {
    const char *from, *to;
} files[] = {
    {"Makefile.in", "Makefile"},
    {"plugin.c.in", NULL},
    {"README.md.in", "README.md"},
};

static int good_name(const char *name)
{
    size_t n = name ? strnlen(name, MAX_PROJECT_NAME + 1) : 0;
    return n >= 1 && n <= MAX_PROJECT_NAME && name[0] >= 'a' && name[0] <= 'z' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == n;
}

/* Replaces each @NAME@ of text. */
static void expand(turbod_buf *b, const char *text, size_t len, const char *name)
{
    static const char mark[] = "@NAME@";
    const char *end = text + len, *p;
    while ((p = memmem(text, (size_t)(end - text), mark, sizeof mark - 1))) {
        turbod_buf_add(b, text, (size_t)(p - text));
        turbod_buf_str(b, name);
        text = p + sizeof mark - 1;
    }
    turbod_buf_add(b, text, (size_t)(end - text));
}

static turbo_status write_new(const char *path, const turbod_buf *b, turbo_err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return turbod_err(err, TURBO_EIO, "%s: %s%s", path, strerror(errno),
                          errno == EEXIST ? "; give an empty folder" : "");
    size_t done = 0;
    while (done < b->len) {
        ssize_t n = write(fd, b->ptr + done, b->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    if (close(fd) || done < b->len)
        return turbod_err(err, TURBO_EIO, "%s: %s", path, strerror(errno));
    return TURBO_OK;
}

static turbo_status write_one(size_t i, const char *name, const char *dir, const char *from_dir,
                              turbo_err *err)
{
    char file[64], path[4096];
    uint8_t *text = NULL;
    uint64_t len = 0;
    turbod_buf b;
    snprintf(file, sizeof file, "%s%s", files[i].to ? files[i].to : name, files[i].to ? "" : ".c");
    int n = snprintf(path, sizeof path, "%s/%s", dir, file);
    if (n < 0 || (size_t)n >= sizeof path)
        return turbod_err(err, TURBO_ELIMIT, "the folder's name is too long");
    turbo_status st = turbod_file_read(from_dir, files[i].from, MAX_TEMPLATE, &text, &len, err);
    if (st)
        return st;
    turbod_buf_init(&b, 2 * MAX_TEMPLATE);
    expand(&b, (const char *)text, len, name);
    st = b.failed ? turbod_err(err, TURBO_ENOMEM, "no memory for %s", file)
                  : write_new(path, &b, err);
    turbod_buf_free(&b);
    free(text);
    return st;
}

turbo_status turbod_plugin_new(const char *name, const char *dir, const char *data_dir,
                               turbo_err *err)
{
    char from[4096];
    if (!good_name(name))
        return turbod_err(err, TURBO_EINVAL,
                          "\"%.40s\" is no plugin name; use 1 to %d of a-z, 0-9 and '-', a letter "
                          "first",
                          name ? name : "", MAX_PROJECT_NAME);
    int n = snprintf(from, sizeof from, "%s/plugin-new", data_dir);
    if (n < 0 || (size_t)n >= sizeof from)
        return turbod_err(err, TURBO_ELIMIT, "the data folder's name is too long");
    if (mkdir(dir, 0755) && errno != EEXIST)
        return turbod_err(err, TURBO_EIO, "%s: %s", dir, strerror(errno));
    turbo_status st = TURBO_OK;
    for (size_t i = 0; !st && i < sizeof files / sizeof files[0]; i++)
        st = write_one(i, name, dir, from, err);
    return st;
}
