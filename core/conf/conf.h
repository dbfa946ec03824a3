/* core/conf/conf.h: the effective configuration of a process.
 *
 * Filled once from flag > environment > conf file > default, all by the one table options.def; then
 * read-only. SIGHUP makes a new one and swaps the pointer; a turbod_conf is never changed in place.
 * Must not know: HTTP, engine, models. */
#ifndef TURBOD_CONF_H
#define TURBOD_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "turbo/plugin.h"

#define TURBOD_T_STR char *
#define TURBOD_T_PATH char *
#define TURBOD_T_INT int64_t
#define TURBOD_T_NUM double
#define TURBOD_T_BOOL bool
#define TURBOD_T_SIZE uint64_t

#define TURBOD_MAX_MODELS 16

typedef enum {
    TURBOD_FROM_DEFAULT,
    TURBOD_FROM_FILE,
    TURBOD_FROM_ENV,
    TURBOD_FROM_FLAG
} turbod_origin;

typedef struct turbod_conf {
    char *file; /* the conf file, or NULL */
    turbod_origin *origins; /* one an option, in table order */
    /* models = ( {...}, ... ): one configuration a model, owned: this one with the entry's keys laid over
     * it. 0: the one model of `model`. */
    struct turbod_conf **models;
    size_t n_models;
#define OPT(section, key, type, dflt, lo, hi, reload, meta, help) TURBOD_T_##type key;
#include "conf/options.def"
#undef OPT
} turbod_conf;

#define TURBOD_EUSAGE (-100) /* status of turbod_conf_load alone: a flag is wrong; exit code 64 */

/* Reads flags (argv[0] is skipped), environment and the conf file that --conf names. Flags that are
 * not in the table are handed to extra(ctx, argc, argv, i), which returns how many words it took, 0
 * when it does not know the flag, -1 when it is wrong. NULL extra: none. The result is owned by the caller. */
typedef int (*turbod_extra_flag)(void *ctx, int argc, char **argv, int i);
turbo_status turbod_conf_load(int argc, char **argv, turbod_extra_flag extra, void *ctx,
                              turbod_conf **out, turbo_err *err);
void turbod_conf_free(turbod_conf *c);

/* Sets one option by its key, as a flag would; for programs that take it in another way. Before the
 * configuration is handed to others. */
turbo_status turbod_conf_set(turbod_conf *c, const char *key, const char *text, turbo_err *err);
turbod_origin turbod_conf_origin(const turbod_conf *c, const char *key);

/* "8GiB", "512 MiB", "1.5GB", "4096": bytes. False on anything else or overflow. */
bool turbod_conf_size(const char *text, uint64_t *out);

void turbod_conf_print(const turbod_conf *c, FILE *out); /* -T: values with their origins */
void turbod_conf_help(FILE *out);                        /* the option part of --help */
/* The same for the options that want() wants; NULL: all. */
void turbod_conf_help_some(FILE *out, bool (*want)(void *, const char *, const char *), void *ctx);
void turbod_conf_man(FILE *out);                         /* the option part of turbo.conf(5) */

#endif
