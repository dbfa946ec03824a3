/* core/lua/policies.c: see policies.h. */
#include "lua/policies.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"

#define MAX_POLICIES 256 /* files; and as many that were put */
#define MAX_NAME 64

typedef struct row {
    turbod_policy *policy;
    bool file; /* of the folder, not put */
} row;

struct turbod_policies {
    pthread_mutex_t mu;
    turbod_policy_env env;
    size_t n;
    row rows[2 * MAX_POLICIES]; /* sorted by name */
};

static bool name_ok(const char *name, size_t n)
{
    if (!n || n > MAX_NAME)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789_-", name[i]))
            return false;
    return true;
}

bool turbod_policies_name_ok(const char *name)
{
    return name_ok(name, strlen(name));
}

/* "house.lua" -> length of "house"; 0 for anything that is not a policy's file name. */
static size_t stem(const char *file)
{
    size_t n = strlen(file);
    return n > 4 && !strcmp(file + n - 4, ".lua") && name_ok(file, n - 4) ? n - 4 : 0;
}

static int wanted(const struct dirent *d)
{
    return stem(d->d_name) != 0;
}

/* Index of the name, or where it belongs. */
static size_t place(const turbod_policies *p, const char *name, bool *there)
{
    size_t i = 0;
    int d = 1;
    while (i < p->n && (d = strcmp(turbod_policy_name(p->rows[i].policy), name)) < 0)
        i++;
    *there = i < p->n && !d;
    return i;
}

/* Takes the reference. False: there are too many of this kind. */
static bool insert(turbod_policies *p, turbod_policy *policy, bool file, turbod_policy **old)
{
    bool there;
    size_t i = place(p, turbod_policy_name(policy), &there), n = 0;
    *old = there ? p->rows[i].policy : NULL;
    for (size_t k = 0; k < p->n; k++)
        n += p->rows[k].file == file;
    if (n == MAX_POLICIES && !(there && p->rows[i].file == file))
        return false;
    if (!there) {
        memmove(p->rows + i + 1, p->rows + i, (p->n - i) * sizeof p->rows[0]);
        p->n++;
    }
    p->rows[i] = (row){policy, file};
    return true;
}

static turbo_status load_files(turbod_policies *p, const char *dir, turbo_err *err)
{
    struct dirent **list = NULL;
    turbo_status st = TURBO_OK;
    int n = scandir(dir, &list, wanted, alphasort);
    if (n < 0)
        return turbod_err(err, TURBO_ENOENT, "policies: cannot read the folder %s: %s", dir,
                          strerror(errno));
    if (n > MAX_POLICIES)
        st = turbod_err(err, TURBO_ELIMIT, "policies: %d scripts in %s; at most %d", n, dir,
                        MAX_POLICIES);
    for (int i = 0; !st && i < n; i++) {
        char path[4096], name[MAX_NAME + 1] = {0};
        turbod_policy *policy, *old;
        int len = snprintf(path, sizeof path, "%s/%s", dir, list[i]->d_name);
        if (len < 0 || (size_t)len >= sizeof path) {
            st = turbod_err(err, TURBO_ELIMIT, "policies: the folder's name is too long");
            break;
        }
        memcpy(name, list[i]->d_name, stem(list[i]->d_name));
        st = turbod_policy_load(path, name, &p->env, &policy, err);
        if (!st)
            insert(p, policy, true, &old); /* names of files differ */
    }
    for (int i = 0; i < n; i++)
        free(list[i]);
    free(list);
    return st;
}

turbo_status turbod_policies_load(const char *dir, const turbod_policy_env *env,
                                  turbod_policies **out, turbo_err *err)
{
    turbod_policies *p = calloc(1, sizeof *p);
    if (!p)
        return turbod_err(err, TURBO_ENOMEM, "no memory for policies");
    pthread_mutex_init(&p->mu, NULL);
    if (env)
        p->env = *env;
    turbo_status st = dir && *dir ? load_files(p, dir, err) : TURBO_OK;
    if (st)
        turbod_policies_free(p);
    else
        *out = p;
    return st;
}

void turbod_policies_free(turbod_policies *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++)
        turbod_policy_free(p->rows[i].policy);
    pthread_mutex_destroy(&p->mu);
    free(p);
}

void turbod_policies_adopt(turbod_policies *p, turbod_policies *fresh)
{
    turbod_policy *gone[2 * MAX_POLICIES], *old = NULL;
    size_t n_gone = 0, kept = 0;
    pthread_mutex_lock(&p->mu);
    for (size_t i = 0; i < p->n; i++)
        if (p->rows[i].file)
            gone[n_gone++] = p->rows[i].policy;
        else
            p->rows[kept++] = p->rows[i];
    p->n = kept;
    for (size_t i = 0; i < fresh->n; i++) {
        turbod_policy *policy = fresh->rows[i].policy;
        bool there;
        (void)place(p, turbod_policy_name(policy), &there);
        if (there || !insert(p, policy, true, &old)) /* what was put stands before a file */
            gone[n_gone++] = policy;
    }
    fresh->n = 0;
    pthread_mutex_unlock(&p->mu);
    for (size_t i = 0; i < n_gone; i++)
        turbod_policy_free(gone[i]);
    turbod_policies_free(fresh);
}

turbod_policy *turbod_policies_find(turbod_policies *p, const char *name)
{
    bool there;
    pthread_mutex_lock(&p->mu);
    size_t i = place(p, name, &there);
    turbod_policy *found = there ? turbod_policy_ref(p->rows[i].policy) : NULL;
    pthread_mutex_unlock(&p->mu);
    return found;
}

turbo_status turbod_policies_default(turbod_policies *p, const char *name, turbo_err *err)
{
    turbod_policy *found = *name ? turbod_policies_find(p, name) : NULL;
    if (*name && !found)
        return turbod_err(err, TURBO_EINVAL, "default_policy \"%s\" is not in the policies folder",
                          name);
    turbod_policy_free(found);
    return TURBO_OK;
}

turbo_status turbod_policies_put(turbod_policies *p, const char *name, const char *source,
                                 size_t len, bool *replaced, turbo_err *err)
{
    turbod_policy *policy = NULL, *old = NULL;
    if (!turbod_policies_name_ok(name))
        return turbod_err(err, TURBO_EINVAL,
                          "the name of a policy has 1 to %d of a-z, 0-9, '_' and '-'", MAX_NAME);
    turbo_status st = turbod_policy_compile(source, len, name, &p->env, &policy, err);
    if (st)
        return st;
    pthread_mutex_lock(&p->mu);
    bool ok = insert(p, policy, false, &old);
    pthread_mutex_unlock(&p->mu);
    *replaced = old != NULL;
    turbod_policy_free(ok ? old : policy);
    return ok ? TURBO_OK
              : turbod_err(err, TURBO_ELIMIT, "there are %d policies; delete one first",
                           MAX_POLICIES);
}

turbo_status turbod_policies_delete(turbod_policies *p, const char *name, turbo_err *err)
{
    turbod_policy *old = NULL;
    bool there;
    pthread_mutex_lock(&p->mu);
    size_t i = place(p, name, &there);
    if (there) {
        old = p->rows[i].policy;
        memmove(p->rows + i, p->rows + i + 1, (p->n - i - 1) * sizeof p->rows[0]);
        p->n--;
    }
    pthread_mutex_unlock(&p->mu);
    turbod_policy_free(old);
    return there ? TURBO_OK : turbod_err(err, TURBO_ENOENT, "there is no policy of this name");
}

size_t turbod_policies_count(turbod_policies *p)
{
    pthread_mutex_lock(&p->mu);
    size_t n = p->n;
    pthread_mutex_unlock(&p->mu);
    return n;
}

void turbod_policies_json(turbod_policies *p, bool names_only, turbod_buf *b)
{
    char hooks[64];
    turbod_buf_str(b, "[");
    pthread_mutex_lock(&p->mu);
    for (size_t i = 0; i < p->n; i++) {
        const turbod_policy *policy = p->rows[i].policy;
        const char *name = turbod_policy_name(policy); /* letters that JSON takes as they are */
        if (names_only)
            turbod_buf_printf(b, "%s\"%s\"", i ? "," : "", name);
        else
            turbod_buf_printf(b,
                              "%s{\"name\":\"%s\",\"hooks\":\"%s\",\"generation\":%llu,"
                              "\"origin\":\"%s\"}",
                              i ? "," : "", name, turbod_policy_hooks(policy, hooks),
                              (unsigned long long)turbod_policy_generation(policy),
                              p->rows[i].file ? "file" : "put");
    }
    pthread_mutex_unlock(&p->mu);
    turbod_buf_str(b, "]");
}

void turbod_policies_each(turbod_policies *p, void (*fn)(void *ctx, const turbod_policy *policy),
                          void *ctx)
{
    pthread_mutex_lock(&p->mu);
    for (size_t i = 0; i < p->n; i++)
        fn(ctx, p->rows[i].policy);
    pthread_mutex_unlock(&p->mu);
}
