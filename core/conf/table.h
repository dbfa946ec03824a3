/* core/conf/table.h: the option table as data, between the files of core/conf only. Main thread. */
#ifndef TURBOD_CONF_TABLE_H
#define TURBOD_CONF_TABLE_H

#include <stddef.h>

#include "conf/conf.h"

typedef enum {
    TURBOD_OPT_STR,
    TURBOD_OPT_PATH,
    TURBOD_OPT_INT,
    TURBOD_OPT_NUM,
    TURBOD_OPT_BOOL,
    TURBOD_OPT_SIZE
} turbod_opt_type;

typedef struct turbod_opt {
    const char *section, *key;
    turbod_opt_type type;
    const char *dflt; /* as text */
    int64_t lo, hi;
    int reload;
    const char *meta, *help;
    size_t offset; /* in turbod_conf */
} turbod_opt;

extern const turbod_opt turbod_opts[];
extern const size_t turbod_n_opts;

/* Row by section and key; NULL: none. section NULL: in any. */
const turbod_opt *turbod_opt_find(const char *section, const char *key, size_t key_len);
/* The known word that other servers call so, or the nearest to text by edit distance, when near enough to be meant, or
 * one that begins with it; else NULL. */
const char *turbod_nearest(const char *text, const char *const *words, size_t n);
/* "a, b or c" into text [cap]; cut when it is longer. */
const char *turbod_either(const char *const *words, size_t n, char *text, size_t cap);
/* Nearest key of a section (NULL: of all). */
const char *turbod_opt_nearest(const char *section, const char *key);

/* An option that a model of several may have for itself: a key of an entry of models = ( ... ). */
bool turbod_opt_of_model(const turbod_opt *o);
/* The nearest of their keys, as turbod_opt_nearest. */
const char *turbod_opt_nearest_of_model(const char *key);

/* Parses text for the row, checks its range, stores it with its origin. where is the beginning of
 * the error text: "conf/a.conf:12". */
turbo_status turbod_opt_set(turbod_conf *c, const turbod_opt *o, const char *text,
                            turbod_origin origin, const char *where, turbo_err *err);

/* file.c: reads c->file into c; an entry of c->models then holds its own keys only. */
turbo_status turbod_conf_file(turbod_conf *c, turbo_err *err);
/* models.c: what an entry does not say comes from c; after file, environment and flags. */
turbo_status turbod_conf_fill_models(turbod_conf *c, turbo_err *err);
/* models.c: a new entry of c->models, empty. NULL: no memory. */
turbod_conf *turbod_conf_add_model(turbod_conf *c);
/* What the pre-scan does to a text, for tests: refuses @include, NUL and numbers beyond 64 bits, and
 * marks numbers beyond 31 bits with L, which libconfig would cut. *out is the caller's: free(). */
turbo_status turbod_conf_prescan(const char *text, size_t n, const char *name, char **out,
                                 turbo_err *err);

/* Value of a row as text. buf is used where the value has no text of its own. */
const char *turbod_opt_text(const turbod_conf *c, const turbod_opt *o, char buf[64]);

#endif
