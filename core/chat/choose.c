/* core/chat/choose.c: see choose.h. */
#include "chat/choose.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/err.h"
#include "util/file.h"
#include "util/json.h"
#include "util/sha256.h"
#include "weights/gguf.h"

#define MAX_TEMPLATE ((uint64_t)1 << 20)
#define MAX_CONFIG ((uint64_t)16 << 20)
#define TABLE "fingerprints.txt"

static void digest(const char *text, size_t n, char hex[65])
{
    uint8_t sum[32];
    turbod_sha256(text, n, sum);
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
}

/* "chat_template" of a JSON file: a text, or a list of named ones, of which "default" counts. */
static turbo_status from_json(const char *folder, const char *name, char hex[65], turbo_err *err)
{
    uint8_t *bytes = NULL;
    uint64_t len;
    cJSON *root = NULL;
    turbo_err why = {{0}};
    turbo_status st = turbod_file_read(folder, name, MAX_CONFIG, &bytes, &len, err);
    if (st)
        return st;
    st = turbod_json_parse((const char *)bytes, len, &turbod_json_file, &root, &why);
    free(bytes);
    if (st)
        return turbod_err(err, TURBO_EDATA, "%s: %.180s", name, why.text);
    const cJSON *t = turbod_json_get(root, "chat_template"), *v;
    bool any = t != NULL, list = cJSON_IsArray(t);
    const cJSON *all = t;
    t = list ? NULL : t;
    for (v = list ? all->child : NULL; v; v = v->next) {
        const cJSON *key = turbod_json_get(v, "name");
        if (cJSON_IsString(key) && !strcmp(key->valuestring, "default"))
            t = turbod_json_get(v, "template");
    }
    if (cJSON_IsString(t))
        digest(t->valuestring, strlen(t->valuestring), hex);
    else if (any)
        st = turbod_err(
            err, TURBO_EDATA,
            "%s: chat_template is %s; a text is needed, or a list of named texts with one "
            "named \"default\"",
            name, list ? "a list without \"default\"" : turbod_json_kind(all));
    else
        st = turbod_err(err, TURBO_ENOENT, "%s has no chat_template", name);
    cJSON_Delete(root);
    return st;
}

static turbo_status from_gguf(const char *path, char hex[65], turbo_err *err)
{
    char *text = NULL;
    uint64_t len = 0;
    turbo_status st = turbod_gguf_text(path, "tokenizer.chat_template", &text, &len, err);
    if (!st)
        digest(text, len, hex);
    free(text);
    return st;
}

turbo_status turbod_chat_fingerprint(const char *folder, char hex[65], turbo_err *err)
{
    if (turbod_gguf_is(folder))
        return from_gguf(folder, hex, err);
    static const char *const files[] = {"chat_template.json", "tokenizer_config.json"};
    uint8_t *bytes = NULL;
    uint64_t len;
    turbo_status st =
        turbod_file_read(folder, "chat_template.jinja", MAX_TEMPLATE, &bytes, &len, err);
    if (!st)
        digest((const char *)bytes, len, hex);
    free(bytes);
    for (size_t i = 0; i < 2 && st == TURBO_ENOENT; i++)
        st = from_json(folder, files[i], hex, err);
    return st;
}

/* One line: HASH NAME, or a comment. name: the script that hex has. */
static turbo_status read_line(const char *p, size_t n, int number, const char *hex, char name[64],
                              turbo_err *err)
{
    static const char digits[] = "0123456789abcdef",
                      letters[] = "abcdefghijklmnopqrstuvwxyz0123456789.-_";
    while (n && (p[n - 1] == '\r' || p[n - 1] == ' '))
        n--;
    if (!n || *p == '#')
        return TURBO_OK;
    char line[160] = "";
    if (n < sizeof line)
        memcpy(line, p, n);
    size_t h = strspn(line, digits), gap = strspn(line + h, " "),
           s = strspn(line + h + gap, letters);
    if (h != 64 || !gap || !s || s >= 64 || h + gap + s != n || line[h + gap] == '.')
        return turbod_err(err, TURBO_EDATA,
                          TABLE
                          ": line %d is no \"SHA256 NAME\" with 64 digits and a script's name",
                          number);
    if (!memcmp(line, hex, 64))
        memcpy(name, line + h + gap, s + 1);
    return TURBO_OK;
}

static turbo_status look_up(const char *data, const char *hex, char name[64], turbo_err *err)
{
    char folder[4096];
    uint8_t *bytes = NULL;
    uint64_t len;
    name[0] = '\0';
    if ((size_t)snprintf(folder, sizeof folder, "%s/chat", data) >= sizeof folder)
        return turbod_err(err, TURBO_ELIMIT, "the name of the data folder is too long");
    turbo_status st = turbod_file_read(folder, TABLE, MAX_TEMPLATE, &bytes, &len, err);
    if (st)
        return st;
    const char *p = (const char *)bytes, *end = p + len;
    for (int number = 1; p < end && !st; number++) {
        const char *e = memchr(p, '\n', (size_t)(end - p));
        st = read_line(p, (size_t)((e ? e : end) - p), number, hex, name, err);
        p = e ? e + 1 : end;
    }
    free(bytes);
    return st;
}

turbo_status turbod_chat_choose(const char *given, const char *folder, const char *named,
                                const char *data, char *path, size_t cap, turbo_err *err)
{
    char hex[65], name[64] = "";
    if (*given) {
        snprintf(path, cap, "%s", given);
        return TURBO_OK;
    }
    turbo_status st = turbod_chat_fingerprint(folder, hex, err);
    bool has = !st;
    if (!st)
        st = look_up(data, hex, name, err);
    if (st && st != TURBO_ENOENT)
        return st;
    if (!has && *named) /* the folder has no template of its own: that of its kind of model */
        snprintf(name, sizeof name, "%s", named);
    if (*name) {
        snprintf(path, cap, "%s/chat/%s.lua", data, name);
        return TURBO_OK;
    }
    if (has)
        return turbod_err(
            err, TURBO_EUNSUPPORTED,
            "the folder's chat template is not known: write chat/NAME.lua and add \"%s "
            "NAME\" to chat/" TABLE ", or set chat_template",
            hex);
    return turbod_err(err, TURBO_ENOENT, "the model names no chat template; set chat_template");
}
