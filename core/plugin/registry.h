/* core/plugin/registry.h: all plugins of a process: loaded ones by what they offer, refused ones
 * with the reason. Filled once on the main thread, then read-only; any thread. */
#ifndef TURBOD_REGISTRY_H
#define TURBOD_REGISTRY_H

#include <stddef.h>

#include "turbo/plugin.h"

typedef struct turbod_registry turbod_registry;

/* paths: folders separated by ':'. Each *.so of each folder, in order of its name. A plugin that is
 * refused is kept with its reason and logged; only an unusable folder fails the call. */
turbo_status turbod_registry_open(const char *paths, turbod_registry **out, turbo_err *err);
void turbod_registry_close(turbod_registry *r); /* NULL allowed; the objects stay mapped */

/* Also makes this registry the one that answers for parts of the config. */
turbo_status turbod_registry_model_for(const turbod_registry *r, turbo_config *config,
                                       const turbo_model_vtbl **out, turbo_err *err);
/* The extension `id` of the plugin that offers this model; NULL: it has none. */
const void *turbod_registry_extension(const turbod_registry *r, const turbo_model_vtbl *model,
                                      const char *id);
turbo_status turbod_registry_tokenizer_for(const turbod_registry *r, const char *folder,
                                           const turbo_tokenizer_vtbl **out, turbo_err *err);
const turbo_sampler_vtbl *turbod_registry_sampler(const turbod_registry *r, const char *id);
/* The first sampler that runs programs; NULL: none. */
const turbo_sampler_vtbl *turbod_registry_programs(const turbod_registry *r);

typedef struct turbod_plugin_row {
    const char *path, *refused; /* refused: NULL when loaded, else why not */
    const char *id, *version, *license, *build;
    char offers[512]; /* "model NAME, sampler std" */
} turbod_plugin_row;
size_t turbod_registry_count(const turbod_registry *r);
void turbod_registry_row(const turbod_registry *r, size_t i, turbod_plugin_row *out);

#endif
