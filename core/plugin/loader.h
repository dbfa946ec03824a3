/* core/plugin/loader.h: one shared object: checked, opened, its tables copied. Main thread.
 *
 * A plugin has all rights of the process: installing one means trusting its author. What the loader
 * refuses are mistakes: the wrong file, the wrong ABI, a table with holes. */
#ifndef TURBOD_LOADER_H
#define TURBOD_LOADER_H

#include <sys/stat.h>

#include "turbo/plugin.h"

#define TURBOD_MAX_VTBLS 32 /* of one kind in one plugin */

typedef struct turbod_plugin {
    char path[4096];
    turbo_plugin desc; /* host-sized copy; slots the plugin does not know are NULL */
    turbo_model_vtbl models[TURBOD_MAX_VTBLS];
    turbo_tokenizer_vtbl tokenizers[TURBOD_MAX_VTBLS];
    turbo_sampler_vtbl samplers[TURBOD_MAX_VTBLS];
    int n_models, n_tokenizers, n_samplers;
} turbod_plugin;

/* folder/name; out is filled. The object stays mapped for ever. The plugin's init is not yet run.
 */
turbo_status turbod_plugin_load(const char *folder, const char *name, turbod_plugin *out,
                                turbo_err *err);

/* Who may write to the file or folder: only root or this user. */
turbo_status turbod_plugin_safe(const struct stat *st, const char *path, turbo_err *err);

#endif
