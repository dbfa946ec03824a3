/* core/conf/paths.c: where plugins, scripts and the image helper lie: what was configured, else the build tree this
 * program stands in, else the place of installation. Main thread first, then read-only. */
#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conf/paths.h"

#ifndef TURBO_PLUGINDIR
#define TURBO_PLUGINDIR "/usr/local/lib/turbo/plugins"
#endif
#ifndef TURBO_LIBEXECDIR
#define TURBO_LIBEXECDIR "/usr/local/libexec/turbod"
#endif
#ifndef TURBO_SCRIPTDIR
#define TURBO_SCRIPTDIR "/usr/local/share/turbo/scripts"
#endif

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char plugin_path[8192]; /* of the build tree; "" when this is no build tree */
static char backend_path[PATH_MAX];
static char script_dir[PATH_MAX];
static char image_helper[PATH_MAX];

/* configure leaves core/conf/source-tree in a build tree: one line, the name of the source tree. */
static bool read_marker(const char *dir, char *source, size_t cap)
{
    char path[PATH_MAX + 32];
    struct stat st;
    snprintf(path, sizeof path, "%s/core/conf/source-tree", dir);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    /* A program in /usr/bin must not be led astray by a file that somebody else put beside it. */
    bool ok = !fstat(fileno(f), &st) && S_ISREG(st.st_mode) && !(st.st_mode & S_IWOTH) &&
              (st.st_uid == 0 || st.st_uid == geteuid()) && fgets(source, (int)cap, f) &&
              source[0] == '/';
    fclose(f);
    if (ok)
        source[strcspn(source, "\n")] = '\0';
    return ok;
}

static int shown(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

/* plugins/NAME/.libs, in the order of their names. glob() of glibc 2.36 frees twice when memory is short. */
static void list_plugins(const char *top)
{
    char path[PATH_MAX + 300];
    struct dirent **names = NULL;
    struct stat st;
    size_t at = 0;
    snprintf(path, sizeof path, "%s/plugins", top);
    int n = scandir(path, &names, shown, alphasort);
    for (int i = 0; i < n; i++) {
        int len = snprintf(path, sizeof path, "%s/plugins/%s/.libs", top, names[i]->d_name);
        bool there =
            len > 0 && (size_t)len < sizeof path && !stat(path, &st) && S_ISDIR(st.st_mode);
        if (there && at + (size_t)len + 2 <= sizeof plugin_path) {
            if (at)
                plugin_path[at++] = ':';
            memcpy(plugin_path + at, path, (size_t)len + 1);
            at += (size_t)len;
        }
        free(names[i]);
    }
    free(names);
}

static void find_build_tree(void)
{
    char dir[PATH_MAX], source[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    if (n <= 0)
        return;
    dir[n] = '\0';
    for (int up = 0; up < 4; up++) { /* turbod is at the top, tests lie up to three folders down */
        char *slash = strrchr(dir, '/');
        if (!slash || slash == dir)
            return;
        *slash = '\0';
        if (read_marker(dir, source, sizeof source))
            break;
        if (up == 3)
            return;
    }
    list_plugins(dir);
    if (strlen(dir) + sizeof "/kernels/cuda/.libs" <= sizeof backend_path)
        snprintf(backend_path, sizeof backend_path, "%s/kernels/cuda/.libs", dir);
    if (strlen(dir) + sizeof "/turbo-image" <= sizeof image_helper) {
        memcpy(image_helper, dir, strlen(dir) + 1);
        strncat(image_helper, "/turbo-image", sizeof image_helper - strlen(image_helper) - 1);
    }
    if (strlen(source) + sizeof "/scripts" <= sizeof script_dir) {
        memcpy(script_dir, source, strlen(source) + 1);
        strncat(script_dir, "/scripts", sizeof script_dir - strlen(script_dir) - 1);
    }
}

const char *turbod_plugin_path(const char *configured)
{
    if (configured && *configured)
        return configured;
    pthread_once(&once, find_build_tree);
    return *plugin_path ? plugin_path : TURBO_PLUGINDIR;
}

const char *turbod_backend_path(void)
{
    pthread_once(&once, find_build_tree);
    return *backend_path ? backend_path : TURBO_BACKENDDIR;
}

const char *turbod_data_dir(void)
{
    const char *env = getenv("TURBO_DATA");
    if (env && *env)
        return env;
    pthread_once(&once, find_build_tree);
    return *script_dir ? script_dir : TURBO_SCRIPTDIR;
}

const char *turbod_image_helper(void)
{
    pthread_once(&once, find_build_tree);
    return *image_helper ? image_helper : TURBO_LIBEXECDIR "/turbo-image";
}
