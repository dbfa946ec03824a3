/* core/plugin/project.c: `turbo plugin new`: copies a template project of scripts/plugin-new with the
 * plugin's name filled in. Main thread of a tool. Must not know what the templates do. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
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

/* Template file, and the name it gets; NULL: the plugin's name with .c. Each folder of plugin-new/ is a
 * kind; a file that is not optional must be there. */
static const struct {
    const char *from, *to;
    bool optional;
} files[] = {
    {"Makefile.in", "Makefile", false},
    {"plugin.c.in", NULL, false},
    {"README.md.in", "README.md", false},
    {"checkpoint.py.in", "checkpoint.py", true},
};

static const char *const kinds[] = {"model", "sampler"};

static int good_name(const char *name)
{
    size_t n = name ? strnlen(name, MAX_PROJECT_NAME + 1) : 0;
    return n >= 1 && n <= MAX_PROJECT_NAME && name[0] >= 'a' && name[0] <= 'z' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == n;
}

/* "my-model" to "MyModel": names of architectures are written so. out holds MAX_PROJECT_NAME + 1. */
static void class_name(const char *name, char *out)
{
    bool upper = true;
    for (; *name; name++) {
        if (*name != '-')
            *out++ = (char)(upper && *name >= 'a' && *name <= 'z' ? *name - 'a' + 'A' : *name);
        upper = *name == '-';
    }
    *out = '\0';
}

/* Replaces each @NAME@ and @CLASS@ of text. */
static void expand(turbod_buf *b, const char *text, size_t len, const char *name)
{
    char class[MAX_PROJECT_NAME + 1];
    const struct {
        const char *mark, *by;
    } words[] = {{"@NAME@", name}, {"@CLASS@", class}};
    const char *end = text + len;
    class_name(name, class);
    while (text < end) {
        const char *at = memchr(text, '@', (size_t)(end - text));
        turbod_buf_add(b, text, (size_t)((at ? at : end) - text));
        if (!at)
            return;
        size_t i = 0, n = 0;
        for (; i < sizeof words / sizeof words[0]; i++) {
            n = strlen(words[i].mark);
            if ((size_t)(end - at) >= n && !memcmp(at, words[i].mark, n))
                break;
        }
        if (i < sizeof words / sizeof words[0]) {
            turbod_buf_str(b, words[i].by);
            text = at + n;
        } else {
            turbod_buf_add(b, at, 1);
            text = at + 1;
        }
    }
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
        return st == TURBO_ENOENT && files[i].optional ? TURBO_OK : st;
    turbod_buf_init(&b, 2 * MAX_TEMPLATE);
    expand(&b, (const char *)text, len, name);
    st = b.failed ? turbod_err(err, TURBO_ENOMEM, "no memory for %s", file)
                  : write_new(path, &b, err);
    turbod_buf_free(&b);
    free(text);
    return st;
}

turbo_status turbod_plugin_new(const char *name, const char *kind, const char *dir,
                               const char *data_dir, turbo_err *err)
{
    char from[4096];
    size_t k = 0;
    while (k < sizeof kinds / sizeof kinds[0] && strcmp(kind, kinds[k]))
        k++;
    if (k == sizeof kinds / sizeof kinds[0])
        return turbod_err(err, TURBO_EINVAL, "the kind is \"%.40s\"; model and sampler are there",
                          kind);
    if (!good_name(name))
        return turbod_err(err, TURBO_EINVAL,
                          "\"%.40s\" is no plugin name; use 1 to %d of a-z, 0-9 and '-', a letter "
                          "first",
                          name ? name : "", MAX_PROJECT_NAME);
    int n = snprintf(from, sizeof from, "%s/plugin-new/%s", data_dir, kind);
    if (n < 0 || (size_t)n >= sizeof from)
        return turbod_err(err, TURBO_ELIMIT, "the data folder's name is too long");
    if (mkdir(dir, 0755) && errno != EEXIST)
        return turbod_err(err, TURBO_EIO, "%s: %s", dir, strerror(errno));
    turbo_status st = TURBO_OK;
    for (size_t i = 0; !st && i < sizeof files / sizeof files[0]; i++)
        st = write_one(i, name, dir, from, err);
    return st;
}
