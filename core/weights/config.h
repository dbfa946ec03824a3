/* core/weights/config.h: config.json (with generation_config.json under the path "generation") and
 * the functions by which plugins read it. Read-only after open; any thread. */
#ifndef TURBOD_CONFIG_H
#define TURBOD_CONFIG_H

#include <stddef.h>

#include "turbo/ext/gguf.h"

/* folder: a model folder, or a GGUF file, which becomes a config when its table is known. */
turbo_status turbod_config_open(const char *folder, turbo_config **out, turbo_err *err);
void turbod_config_close(turbo_config *c); /* NULL allowed */

/* The slots of turbo_host of the same names; see turbo/plugin.h. */
turbo_status turbod_host_cfg_int(const turbo_config *c, const char *path, int64_t dflt, int64_t lo,
                                 int64_t hi, int64_t *out, turbo_err *err);
turbo_status turbod_host_cfg_num(const turbo_config *c, const char *path, double dflt, double lo,
                                 double hi, double *out, turbo_err *err);
turbo_status turbod_host_cfg_bool(const turbo_config *c, const char *path, int32_t dflt,
                                  int32_t *out, turbo_err *err);
turbo_status turbod_host_cfg_str(const turbo_config *c, const char *path, const char *dflt,
                                 const char **out, turbo_err *err);
int32_t turbod_host_cfg_has(const turbo_config *c, const char *path);
int64_t turbod_host_cfg_len(const turbo_config *c, const char *path);
const char *turbod_host_cfg_key(const turbo_config *c, const char *path, int64_t i);
turbo_status turbod_host_json_open(const char *folder, const char *name, turbo_config **out,
                                   turbo_err *err);
turbo_status turbod_host_file_read(const char *folder, const char *name, uint64_t max_bytes,
                                   uint8_t **bytes, uint64_t *len, turbo_err *err);
void turbod_host_file_free(uint8_t *bytes);

turbo_status turbod_host_cfg_sub(const turbo_config *c, const char *path, const char *arch,
                                 turbo_config **out, turbo_err *err);
turbo_status turbod_host_cfg_file(const turbo_config *c, const char *folder, const char *file,
                                  turbo_config **out, turbo_err *err);
turbo_status turbod_host_model_for(const turbo_config *c, const turbo_model_vtbl **out,
                                   turbo_err *err);

/* Who answers model_for for this config and its parts; ctx lives as long as they. */
typedef turbo_status (*turbod_config_finder)(const void *ctx, const turbo_config *c,
                                             const turbo_model_vtbl **out, turbo_err *err);
void turbod_config_bind(turbo_config *c, turbod_config_finder find, const void *ctx);

/* Of a GGUF file: "general.architecture", and NULL otherwise. translate makes the config of the file by a
 * table for that architecture, once; gguf is that table, NULL before and for folders. */
const char *turbod_config_arch(const turbo_config *c);
turbo_status turbod_config_translate(turbo_config *c, const turbo_gguf *table, turbo_err *err);
const turbo_gguf *turbod_config_gguf(const turbo_config *c);

/* Parses text as if it were a config.json; for tests and `turbo plugin check`. */
turbo_status turbod_config_parse(const char *text, size_t n, const char *name, turbo_config **out,
                                 turbo_err *err);

#endif
