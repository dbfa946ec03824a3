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

typedef enum {
    TURBOD_FROM_DEFAULT,
    TURBOD_FROM_FILE,
    TURBOD_FROM_ENV,
    TURBOD_FROM_FLAG
} turbod_origin;

typedef struct turbod_conf {
    char *file; /* the conf file, or NULL */
    turbod_origin *origins; /* one an option, in table order */
#define OPT(section, key, type, dflt, lo, hi, reload, meta, help) TURBOD_T_##type key;
#include "conf/options.def"
#undef OPT
} turbod_conf;

/* Reads flags (argv[0] is skipped), environment and the conf file that --conf names. Flags that are
 * not in the table are handed to extra(ctx, argc, argv, i), which returns how many words it took, 0
 * when it does not know the flag. NULL extra: none. The result is owned by the caller. */
typedef int (*turbod_extra_flag)(void *ctx, int argc, char **argv, int i);
turbo_status turbod_conf_load(int argc, char **argv, turbod_extra_flag extra, void *ctx,
                              turbod_conf **out, turbo_err *err);
void turbod_conf_free(turbod_conf *c);

/* "8GiB", "512 MiB", "1.5GB", "4096": bytes. False on anything else or overflow. */
bool turbod_conf_size(const char *text, uint64_t *out);

void turbod_conf_print(const turbod_conf *c, FILE *out); /* -T: values with their origins */
void turbod_conf_help(FILE *out);                        /* the option part of --help */
void turbod_conf_man(FILE *out);                         /* the option part of turbo.conf(5), mdoc */

#endif
