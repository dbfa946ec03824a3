/* core/weights/config.c: see config.h. */
#include "weights/config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/json.h"
#include "weights/gguf_map.h"

#define MAX_CONFIG (64u << 20)

struct turbo_config {
    cJSON *root;
    bool part; /* root belongs to another config, and so does this */
    const cJSON *generation; /* of a part: what the path "generation" means; NULL: nothing */
    cJSON *arch; /* of a part: what its architecture is said to be; NULL: what stands there */
    char *folder; /* it was read from; NULL: from none */
    turbod_config_finder find;
    const void *find_ctx;
    char name[64]; /* of the file, for messages */
    turbod_gguf *gguf; /* the file, until it has been translated */
    const turbo_gguf *table;
    char gguf_arch[64];
};

turbo_status turbod_config_parse(const char *text, size_t n, const char *name, turbo_config **out,
                                 turbo_err *err)
{
    turbo_err why;
    turbo_config *c = calloc(1, sizeof *c);
    if (!c)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %s", name);
    strncpy(c->name, name, sizeof c->name - 1);
    turbo_status st = turbod_json_parse(text, n, &turbod_json_file, &c->root, &why);
    if (st) {
        turbod_config_close(c);
        return turbod_err(err, st == TURBO_ENOMEM ? st : TURBO_EDATA, "%s: %s", name, why.text);
    }
    *out = c;
    return TURBO_OK;
}

turbo_status turbod_host_json_open(const char *folder, const char *name, turbo_config **out,
                                   turbo_err *err)
{
    uint8_t *bytes;
    uint64_t len;
    turbo_status st = turbod_file_read(folder, name, MAX_CONFIG, &bytes, &len, err);
    if (st)
        return st;
    st = turbod_config_parse((const char *)bytes, len, name, out, err);
    free(bytes);
    if (st)
        return st;
    (*out)->folder = strdup(folder);
    if ((*out)->folder)
        return TURBO_OK;
    turbod_config_close(*out);
    *out = NULL;
    return turbod_err(err, TURBO_ENOMEM, "no memory for %s", name);
}

static turbo_status open_gguf(const char *path, turbo_config **out, turbo_err *err)
{
    turbo_config *c = NULL;
    turbo_status st = turbod_config_parse("{}", 2, "config.json", &c, err);
    if (!st)
        st = turbod_gguf_open(path, &c->gguf, err);
    const turbod_gguf_value *v = st ? NULL : turbod_gguf_find(c->gguf, "general.architecture");
    if (!st && (!v || v->type != TURBO_GGUF_STRING || !v->n || v->n >= sizeof c->gguf_arch))
        st = turbod_err(err, TURBO_EDATA,
                        "%.100s: general.architecture is missing or no text of 1 to %zu bytes",
                        turbod_gguf_name(c->gguf), sizeof c->gguf_arch - 1);
    if (!st) {
        memcpy(c->gguf_arch, v->at, v->n);
        c->folder = strdup(path);
        st = c->folder ? TURBO_OK : turbod_err(err, TURBO_ENOMEM, "no memory for a path");
    }
    if (st)
        turbod_config_close(c);
    else
        *out = c;
    return st;
}

const char *turbod_config_arch(const turbo_config *c)
{
    return *c->gguf_arch ? c->gguf_arch : NULL;
}

const turbo_gguf *turbod_config_gguf(const turbo_config *c)
{
    return c->table;
}

turbo_status turbod_config_translate(turbo_config *c, const turbo_gguf *table, turbo_err *err)
{
    cJSON *root = NULL;
    if (!c->gguf)
        return TURBO_OK;
    turbo_status st = turbod_gguf_config(c->gguf, table, &root, err);
    if (st)
        return st;
    cJSON_Delete(c->root);
    c->root = root;
    c->table = table;
    snprintf(c->name, sizeof c->name, "%s", turbod_gguf_name(c->gguf));
    turbod_gguf_close(c->gguf);
    c->gguf = NULL;
    return TURBO_OK;
}

/* config.json is missing: perhaps the folder is one that holds GGUF files, or there is no folder. */
static turbo_status no_config(const char *folder, turbo_err *err)
{
    static const char needed[] = "a model is a folder with config.json, or a GGUF file";
    DIR *d = opendir(folder);
    if (!d)
        return turbod_err(err, TURBO_ENOENT,
                          "%.120s: cannot open the folder: %s; %s, and nothing is downloaded",
                          folder, strerror(errno), needed);
    turbo_status st = TURBO_OK;
    for (struct dirent *e; !st && (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        if (n > 5 && !strcasecmp(e->d_name + n - 5, ".gguf"))
            st = turbod_err(
                err, TURBO_ENOENT,
                "%.120s has no config.json, but %.60s: give that file instead of the folder",
                folder, e->d_name);
    }
    closedir(d);
    return st ? st : turbod_err(err, TURBO_ENOENT, "%.150s has no config.json; %s", folder, needed);
}

turbo_status turbod_config_open(const char *folder, turbo_config **out, turbo_err *err)
{
    if (turbod_gguf_is(folder))
        return open_gguf(folder, out, err);
    turbo_config *c = NULL, *gen = NULL;
    turbo_err why;
    turbo_status st = turbod_host_json_open(folder, "config.json", &c, err);
    if (st)
        return st == TURBO_ENOENT ? no_config(folder, err) : st;
    if (!cJSON_IsObject(c->root)) {
        st = turbod_err(err, TURBO_EDATA, "config.json is not a JSON object");
        goto out;
    }
    /* The path belongs to the other file, whether it exists or not. */
    cJSON_DeleteItemFromObjectCaseSensitive(c->root, "generation");
    st = turbod_host_json_open(folder, "generation_config.json", &gen, &why);
    if (st == TURBO_ENOENT) {
        st = TURBO_OK;
        goto out;
    }
    if (st) {
        st = turbod_err(err, st, "%s", why.text);
        goto out;
    }
    if (!cJSON_AddItemToObject(c->root, "generation", gen->root))
        st = turbod_err(err, TURBO_ENOMEM, "no memory for generation_config.json");
    else
        gen->root = NULL; /* moved */
out:
    turbod_config_close(gen);
    if (st)
        turbod_config_close(c);
    else
        *out = c;
    return st;
}

void turbod_config_close(turbo_config *c)
{
    if (!c)
        return;
    if (!c->part)
        cJSON_Delete(c->root);
    cJSON_Delete(c->arch);
    turbod_gguf_close(c->gguf);
    free(c->folder);
    free(c);
}

void turbod_config_bind(turbo_config *c, turbod_config_finder find, const void *ctx)
{
    c->find = find;
    c->find_ctx = ctx;
}

/* Follows a dotted path; a part that is a number selects an array element. NULL when absent/null.
 */
static const cJSON *find(const turbo_config *c, const char *path)
{
    const cJSON *v = c->root;
    char part[128];
    if (c->part && !strncmp(path, "generation", 10) && (!path[10] || path[10] == '.')) {
        v = c->generation;
        path += path[10] ? 11 : 10;
    }
    if (c->arch && !strcmp(path, "architectures.0"))
        return c->arch;
    if (c->arch && (!strcmp(path, "model_type") || !strcmp(path, "architectures")))
        return NULL;
    while (v && *path) {
        size_t n = strcspn(path, ".");
        if (n >= sizeof part)
            return NULL;
        memcpy(part, path, n);
        part[n] = '\0';
        path += n + (path[n] == '.');
        if (cJSON_IsArray(v)) {
            int64_t i = 0;
            for (size_t k = 0; k < n; k++) {
                if (part[k] < '0' || part[k] > '9' || i > 1000000)
                    return NULL;
                i = i * 10 + (part[k] - '0');
            }
            for (v = v->child; v && i; v = v->next)
                i--;
        } else {
            v = turbod_json_get(v, part);
        }
    }
    return v && !cJSON_IsNull(v) ? v : NULL;
}

/* A path as a message names it: of a GGUF file with the key that gave the value. */
typedef struct said {
    char text[160];
} said;

static said say(const turbo_config *c, const char *path)
{
    said s;
    const turbo_gguf_row *r = c->table ? c->table->keys : NULL;
    while (r && r->from &&
           (!r->to || strcmp(r->to, path) ||
            (r->rule > TURBO_GGUF_SAME && r->rule != TURBO_GGUF_NEED)))
        r++;
    if (r && r->from)
        snprintf(s.text, sizeof s.text, "%s%.90s (%.60s)", *r->from == '.' ? c->table->arch : "",
                 r->from, path);
    else
        snprintf(s.text, sizeof s.text, "%.150s", path);
    return s;
}

turbo_status turbod_host_cfg_int(const turbo_config *c, const char *path, int64_t dflt, int64_t lo,
                                 int64_t hi, int64_t *out, turbo_err *err)
{
    const cJSON *v = find(c, path);
    *out = dflt;
    if (!v || turbod_json_int(v, lo, hi, out))
        return TURBO_OK;
    if (cJSON_IsNumber(v))
        return turbod_err(err, TURBO_EDATA, "%s: %s is %g; an integer from %lld to %lld is needed",
                          c->name, say(c, path).text, v->valuedouble, (long long)lo, (long long)hi);
    return turbod_err(err, TURBO_EDATA, "%s: %s is %s; an integer from %lld to %lld is needed",
                      c->name, say(c, path).text, turbod_json_kind(v), (long long)lo,
                      (long long)hi);
}

turbo_status turbod_host_cfg_num(const turbo_config *c, const char *path, double dflt, double lo,
                                 double hi, double *out, turbo_err *err)
{
    const cJSON *v = find(c, path);
    *out = dflt;
    if (!v || turbod_json_num(v, lo, hi, out))
        return TURBO_OK;
    if (cJSON_IsNumber(v))
        return turbod_err(err, TURBO_EDATA, "%s: %s is %g; a number from %g to %g is needed",
                          c->name, say(c, path).text, v->valuedouble, lo, hi);
    return turbod_err(err, TURBO_EDATA, "%s: %s is %s; a number from %g to %g is needed", c->name,
                      say(c, path).text, turbod_json_kind(v), lo, hi);
}

turbo_status turbod_host_cfg_bool(const turbo_config *c, const char *path, int32_t dflt,
                                  int32_t *out, turbo_err *err)
{
    const cJSON *v = find(c, path);
    *out = dflt;
    if (!v)
        return TURBO_OK;
    if (!cJSON_IsBool(v))
        return turbod_err(err, TURBO_EDATA, "%s: %s is %s; true or false is needed", c->name,
                          say(c, path).text, turbod_json_kind(v));
    *out = cJSON_IsTrue(v);
    return TURBO_OK;
}

turbo_status turbod_host_cfg_str(const turbo_config *c, const char *path, const char *dflt,
                                 const char **out, turbo_err *err)
{
    const cJSON *v = find(c, path);
    *out = dflt;
    if (!v)
        return TURBO_OK;
    if (!cJSON_IsString(v))
        return turbod_err(err, TURBO_EDATA, "%s: %s is %s; a string is needed", c->name,
                          say(c, path).text, turbod_json_kind(v));
    *out = v->valuestring;
    return TURBO_OK;
}

int32_t turbod_host_cfg_has(const turbo_config *c, const char *path)
{
    return find(c, path) != NULL;
}

int64_t turbod_host_cfg_len(const turbo_config *c, const char *path)
{
    const cJSON *v = find(c, path);
    int64_t n = 0;
    if (!cJSON_IsArray(v) && !cJSON_IsObject(v))
        return -1;
    for (v = v->child; v; v = v->next)
        n++;
    return n;
}

const char *turbod_host_cfg_key(const turbo_config *c, const char *path, int64_t i)
{
    const cJSON *v = find(c, path);
    if (!cJSON_IsObject(v) || i < 0)
        return NULL;
    for (v = v->child; v && i > 0; v = v->next)
        i--;
    return v ? v->string : NULL;
}

turbo_status turbod_host_file_read(const char *folder, const char *name, uint64_t max_bytes,
                                   uint8_t **bytes, uint64_t *len, turbo_err *err)
{
    if (!strcmp(name, TURBO_GGUF_HEADER) && turbod_gguf_is(folder))
        return turbod_gguf_header(folder, max_bytes, bytes, len, err);
    return turbod_file_read(folder, name, max_bytes, bytes, len, err);
}

void turbod_host_file_free(uint8_t *bytes)
{
    free(bytes);
}

turbo_status turbod_host_cfg_sub(const turbo_config *c, const char *path, const char *arch,
                                 turbo_config **out, turbo_err *err)
{
    const cJSON *v = find(c, path);
    if (!v)
        return turbod_err(err, TURBO_ENOENT, "%s: %s is missing", c->name, path);
    if (!cJSON_IsObject(v))
        return turbod_err(err, TURBO_EDATA, "%s: %s is %s; an object is needed", c->name, path,
                          turbod_json_kind(v));
    turbo_config *part = calloc(1, sizeof *part);
    if (!part)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %s", c->name);
    *part = (turbo_config){
        .root = (cJSON *)(uintptr_t)v,
        .part = true,
        .generation = c->part ? c->generation : turbod_json_get(c->root, "generation"),
        .folder = c->folder ? strdup(c->folder) : NULL,
        .find = c->find,
        .find_ctx = c->find_ctx,
    };
    snprintf(part->name, sizeof part->name, "%.24s%s%.32s", c->name, *path ? ", " : "", path);
    part->arch = arch ? cJSON_CreateString(arch) : NULL;
    if ((c->folder && !part->folder) || (arch && !part->arch)) {
        turbod_config_close(part);
        return turbod_err(err, TURBO_ENOMEM, "no memory for %s", c->name);
    }
    *out = part;
    return TURBO_OK;
}

turbo_status turbod_host_cfg_file(const turbo_config *c, const char *folder, const char *file,
                                  turbo_config **out, turbo_err *err)
{
    char other[4096];
    if (!c->folder)
        return turbod_err(err, TURBO_ENOENT, "%s was not read from a folder", c->name);
    turbo_status st =
        *folder ? turbod_file_folder(c->folder, folder, other, sizeof other, err) : TURBO_OK;
    if (!st)
        st = turbod_host_json_open(*folder ? other : c->folder, file, out, err);
    if (!st)
        turbod_config_bind(*out, c->find, c->find_ctx);
    return st;
}

turbo_status turbod_host_model_for(const turbo_config *c, const turbo_model_vtbl **out,
                                   turbo_err *err)
{
    if (!c->find)
        return turbod_err(err, TURBO_ENOENT, "no plugin can be asked about %s", c->name);
    return c->find(c->find_ctx, c, out, err);
}
