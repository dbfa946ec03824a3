/* core/lua/policies.c: see policies.h. */
#include "lua/policies.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"

#define MAX_POLICIES 256
#define MAX_NAME 64

struct turbod_policies {
    size_t n;
    struct {
        char name[MAX_NAME + 1];
        turbod_policy *policy;
    } rows[MAX_POLICIES];
};

/* "house.lua" -> length of "house"; 0 for anything that is not a policy's file name. */
static size_t stem(const char *file)
{
    size_t n = strlen(file);
    if (n < 5 || n > MAX_NAME + 4 || strcmp(file + n - 4, ".lua"))
        return 0;
    for (size_t i = 0; i < n - 4; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789_-", file[i]))
            return 0;
    return n - 4;
}

static int wanted(const struct dirent *d)
{
    return stem(d->d_name) != 0;
}

turbo_status turbod_policies_load(const char *dir, turbod_policies **out, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    struct dirent **list = NULL;
    int n = 0;
    turbod_policies *p = calloc(1, sizeof *p);
    if (!p)
        return turbod_err(err, TURBO_ENOMEM, "no memory for policies");
    if (dir && *dir) {
        n = scandir(dir, &list, wanted, alphasort);
        if (n < 0)
            st = turbod_err(err, TURBO_ENOENT, "policies: cannot read the folder %s: %s", dir,
                            strerror(errno));
        else if (n > MAX_POLICIES)
            st = turbod_err(err, TURBO_ELIMIT, "policies: %d scripts in %s; at most %d", n, dir,
                            MAX_POLICIES);
    }
    for (int i = 0; !st && i < n; i++) {
        char path[4096];
        int len = snprintf(path, sizeof path, "%s/%s", dir, list[i]->d_name);
        if (len < 0 || (size_t)len >= sizeof path) {
            st = turbod_err(err, TURBO_ELIMIT, "policies: the folder's name is too long");
            break;
        }
        memcpy(p->rows[p->n].name, list[i]->d_name, stem(list[i]->d_name));
        st = turbod_policy_load(path, p->rows[p->n].name, &p->rows[p->n].policy, err);
        p->n += !st;
    }
    for (int i = 0; i < n; i++)
        free(list[i]);
    free(list);
    if (st) {
        turbod_policies_free(p);
        return st;
    }
    *out = p;
    return TURBO_OK;
}

void turbod_policies_free(turbod_policies *p)
{
    for (size_t i = 0; p && i < p->n; i++)
        turbod_policy_free(p->rows[i].policy);
    free(p);
}

turbod_policy *turbod_policies_find(const turbod_policies *p, const char *name)
{
    for (size_t i = 0; i < p->n; i++)
        if (!strcmp(p->rows[i].name, name))
            return p->rows[i].policy;
    return NULL;
}

size_t turbod_policies_count(const turbod_policies *p)
{
    return p->n;
}

const char *turbod_policies_name(const turbod_policies *p, size_t i)
{
    return p->rows[i].name;
}
