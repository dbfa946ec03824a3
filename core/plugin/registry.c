/* core/plugin/registry.c: see registry.h. */
#include "plugin/registry.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "plugin/host.h"
#include "plugin/loader.h"
#include "util/err.h"
#include "util/log.h"
#include "weights/config.h"

#define MAX_PLUGINS 128

typedef struct entry {
    turbod_plugin *plugin; /* path is valid even when it was refused */
    bool refused;
    turbo_err why;
} entry;

struct turbod_registry {
    entry entries[MAX_PLUGINS];
    size_t n;
};

static int is_plugin(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return n > 3 && d->d_name[0] != '.' && !strcmp(d->d_name + n - 3, ".so");
}

/* Two tables of one kind with one id in a plugin; NULL when there are none. */
static const char *inner_twin(const turbod_plugin *p)
{
    for (int a = 0; a < p->n_models; a++)
        for (int b = 0; b < a; b++)
            if (!strcmp(p->models[a].id, p->models[b].id))
                return p->models[a].id;
    for (int a = 0; a < p->n_tokenizers; a++)
        for (int b = 0; b < a; b++)
            if (!strcmp(p->tokenizers[a].id, p->tokenizers[b].id))
                return p->tokenizers[a].id;
    for (int a = 0; a < p->n_samplers; a++)
        for (int b = 0; b < a; b++)
            if (!strcmp(p->samplers[a].id, p->samplers[b].id))
                return p->samplers[a].id;
    return NULL;
}

/* Ids are unique within a kind over all loaded plugins. */
static turbo_status check_unique(const turbod_registry *r, const turbod_plugin *p, turbo_err *err)
{
    const char *inner = inner_twin(p);
    if (inner)
        return turbod_err(err, TURBO_EABI, "%s: two of its tables have the id \"%s\"", p->path,
                          inner);
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *q = r->entries[i].plugin;
        if (r->entries[i].refused)
            continue;
        const char *twin = !strcmp(p->desc.id, q->desc.id) ? p->desc.id : NULL;
        for (int a = 0; a < p->n_models; a++)
            for (int b = 0; b < q->n_models; b++)
                twin = strcmp(p->models[a].id, q->models[b].id) ? twin : p->models[a].id;
        for (int a = 0; a < p->n_tokenizers; a++)
            for (int b = 0; b < q->n_tokenizers; b++)
                twin =
                    strcmp(p->tokenizers[a].id, q->tokenizers[b].id) ? twin : p->tokenizers[a].id;
        for (int a = 0; a < p->n_samplers; a++)
            for (int b = 0; b < q->n_samplers; b++)
                twin = strcmp(p->samplers[a].id, q->samplers[b].id) ? twin : p->samplers[a].id;
        if (twin)
            return turbod_err(err, TURBO_EABI, "%s: the id \"%s\" is taken by %s", p->path, twin,
                              q->path);
    }
    return TURBO_OK;
}

static turbo_status load_one(turbod_registry *r, const char *folder, const char *name,
                             turbo_err *err)
{
    if (r->n == MAX_PLUGINS)
        return turbod_err(err, TURBO_ELIMIT, "more than %d plugins", MAX_PLUGINS);
    entry *e = &r->entries[r->n];
    e->plugin = calloc(1, sizeof *e->plugin);
    if (!e->plugin)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a plugin");
    turbo_err why = {{0}};
    turbo_status st = turbod_plugin_load(folder, name, e->plugin, &why);
    if (!st)
        st = check_unique(r, e->plugin, &why);
    if (!st && e->plugin->desc.init) {
        turbo_err init = {{0}};
        st = e->plugin->desc.init(turbod_host_table(), &init);
        init.text[sizeof init.text - 1] = '\0';
        if (st)
            turbod_err(&why, st, "%s: init failed: %.150s", e->plugin->path, init.text);
    }
    if (st) {
        e->refused = true;
        e->why = why;
        turbod_log(TURBO_LOG_WARN, "plugin refused: %s", why.text);
    }
    r->n++;
    return TURBO_OK;
}

static turbo_status load_folder(turbod_registry *r, const char *folder, turbo_err *err)
{
    struct stat st;
    struct dirent **list = NULL;
    if (stat(folder, &st))
        return turbod_err(err, TURBO_ENOENT, "plugin folder %s: %s; set plugin_path", folder,
                          strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return turbod_err(err, TURBO_ENOENT, "plugin folder %s is not a folder; set plugin_path",
                          folder);
    turbo_err unsafe;
    if (turbod_plugin_safe(&st, folder, &unsafe))
        return turbod_err(err, TURBO_EABI, "plugin folder %s", unsafe.text);
    int n = scandir(folder, &list, is_plugin, alphasort);
    if (n < 0)
        return turbod_err(err, TURBO_EIO, "plugin folder %s: %s", folder, strerror(errno));
    turbo_status status = TURBO_OK;
    for (int i = 0; i < n; i++) {
        if (!status)
            status = load_one(r, folder, list[i]->d_name, err);
        free(list[i]);
    }
    free(list);
    return status;
}

turbo_status turbod_registry_open(const char *paths, turbod_registry **out, turbo_err *err)
{
    turbod_registry *r = calloc(1, sizeof *r);
    if (!r)
        return turbod_err(err, TURBO_ENOMEM, "no memory for the plugin registry");
    turbo_status st = TURBO_OK;
    while (!st && *paths) {
        char folder[4096];
        size_t n = strcspn(paths, ":");
        if (n >= sizeof folder) {
            st = turbod_err(err, TURBO_ELIMIT, "a plugin folder's name is too long");
            break;
        }
        memcpy(folder, paths, n);
        folder[n] = '\0';
        if (n)
            st = load_folder(r, folder, err);
        paths += n + (paths[n] == ':');
    }
    if (st)
        turbod_registry_close(r);
    else
        *out = r;
    return st;
}

void turbod_registry_close(turbod_registry *r)
{
    for (size_t i = 0; r && i < r->n; i++)
        free(r->entries[i].plugin);
    free(r);
}

static turbo_status find_model(const void *registry, const turbo_config *config,
                               const turbo_model_vtbl **out, turbo_err *err)
{
    const turbod_registry *r = registry;
    const turbo_host *h = turbod_host_table();
    int32_t best = 0;
    char known[160] = "";
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *p = r->entries[i].plugin;
        for (int m = 0; m < p->n_models && !r->entries[i].refused; m++) {
            int32_t score = p->models[m].probe(h, config);
            size_t used = strlen(known);
            snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", p->models[m].id);
            if (score > best) {
                best = score;
                *out = &p->models[m];
            }
        }
    }
    if (best)
        return TURBO_OK;
    const char *arch = NULL, *type = NULL;
    turbo_err none;
    if (h->cfg_str(config, "architectures.0", "(none)", &arch, &none))
        arch = "(not a string)";
    if (h->cfg_str(config, "model_type", "(none)", &type, &none))
        type = "(not a string)";
    if (!strcmp(arch, "(none)") && !strcmp(type, "(none)"))
        return turbod_err(err, TURBO_EUNSUPPORTED,
                          "config.json has neither architectures nor model_type: it is not that of "
                          "a language model");
    return turbod_err(
        err, TURBO_EUNSUPPORTED,
        "no plugin runs the architecture %.48s (model_type %.32s); loaded models: %s. "
        "Install its plugin into the plugin folder",
        arch, type, *known ? known : "none");
}

/* The table of a plugin, as much of it as this host knows, for the architecture. */
static const turbo_gguf *table_for(const turbod_registry *r, const char *arch)
{
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *p = r->entries[i].plugin;
        if (r->entries[i].refused || !p->desc.extension)
            continue;
        const turbo_gguf *const *list = p->desc.extension(TURBO_GGUF_ID);
        for (; list && *list; list++)
            if ((*list)->size >= sizeof **list && !strcmp((*list)->arch, arch))
                return *list;
    }
    return NULL;
}

turbo_status turbod_registry_model_for(const turbod_registry *r, turbo_config *config,
                                       const turbo_model_vtbl **out, turbo_err *err)
{
    const char *arch = turbod_config_arch(config);
    const turbo_gguf *table = arch ? table_for(r, arch) : NULL;
    if (arch && !table)
        return turbod_err(
            err, TURBO_EUNSUPPORTED,
            "no plugin runs GGUF files of the architecture \"%.48s\"; install one that "
            "does into the plugin folder",
            arch);
    turbo_status st = table ? turbod_config_translate(config, table, err) : TURBO_OK;
    if (st)
        return st;
    turbod_config_bind(config, find_model, r);
    return find_model(r, config, out, err);
}

const void *turbod_registry_extension(const turbod_registry *r, const turbo_model_vtbl *model,
                                      const char *id)
{
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *p = r->entries[i].plugin;
        for (int m = 0; m < p->n_models && !r->entries[i].refused; m++)
            if (&p->models[m] == model)
                return p->desc.extension ? p->desc.extension(id) : NULL;
    }
    return NULL;
}

turbo_status turbod_registry_tokenizer_for(const turbod_registry *r, const char *folder,
                                           const turbo_tokenizer_vtbl **out, turbo_err *err)
{
    int32_t best = 0;
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *p = r->entries[i].plugin;
        for (int t = 0; t < p->n_tokenizers && !r->entries[i].refused; t++) {
            int32_t score = p->tokenizers[t].probe(turbod_host_table(), folder);
            if (score > best) {
                best = score;
                *out = &p->tokenizers[t];
            }
        }
    }
    return best ? TURBO_OK
                : turbod_err(err, TURBO_EUNSUPPORTED,
                             "no plugin reads the tokenizer files of %s (tokenizer.model, "
                             "tokenizer.json and "
                             "vocab.json with merges.txt are known)",
                             folder);
}

const turbo_sampler_vtbl *turbod_registry_sampler(const turbod_registry *r, const char *id)
{
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *p = r->entries[i].plugin;
        for (int s = 0; s < p->n_samplers && !r->entries[i].refused; s++)
            if (!strcmp(p->samplers[s].id, id))
                return &p->samplers[s];
    }
    return NULL;
}

const turbo_sampler_vtbl *turbod_registry_programs(const turbod_registry *r)
{
    for (size_t i = 0; i < r->n; i++) {
        const turbod_plugin *p = r->entries[i].plugin;
        for (int s = 0; s < p->n_samplers && !r->entries[i].refused; s++)
            if (p->samplers[s].programs)
                return &p->samplers[s];
    }
    return NULL;
}

size_t turbod_registry_count(const turbod_registry *r)
{
    return r->n;
}

static void add_offer(char *to, size_t cap, const char *kind, const char *id)
{
    size_t used = strlen(to);
    snprintf(to + used, cap - used, "%s%s %s", used ? ", " : "", kind, id);
}

void turbod_registry_row(const turbod_registry *r, size_t i, turbod_plugin_row *out)
{
    const entry *e = &r->entries[i];
    const turbod_plugin *p = e->plugin;
    *out = (turbod_plugin_row){.path = p->path, .refused = e->refused ? e->why.text : NULL};
    if (e->refused)
        return;
    out->id = p->desc.id;
    out->version = p->desc.version;
    out->license = p->desc.license;
    out->build = p->desc.build;
    for (int k = 0; k < p->n_models; k++)
        add_offer(out->offers, sizeof out->offers, "model", p->models[k].id);
    for (int k = 0; k < p->n_tokenizers; k++)
        add_offer(out->offers, sizeof out->offers, "tokenizer", p->tokenizers[k].id);
    for (int k = 0; k < p->n_samplers; k++)
        add_offer(out->offers, sizeof out->offers, "sampler", p->samplers[k].id);
}
