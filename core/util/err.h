/* core/util/err.h: filling turbo_err, and what a status means to the outside.
 * Any thread. The text is filled once, where the cause is known; callers pass it on unchanged. */
#ifndef TURBOD_ERR_H
#define TURBOD_ERR_H

#include "turbo/plugin.h"

/* Formats one line into err (NULL allowed; control bytes become '?', cut at a UTF-8 boundary) and
 * returns status, so that `return turbod_err(err, TURBO_EDATA, "...", ...)` reads as one thought. */
turbo_status turbod_err(turbo_err *err, turbo_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "what: " before the text of a failed status and returns it; OK changes nothing. */
turbo_status turbod_err_of(turbo_err *err, turbo_status status, const char *what);

const char *turbod_status_name(turbo_status s); /* "EDATA" */
/* Process exit code: 0 ok, 64 usage, 65 model data, 66 no input, 71 resources, 74 I/O, 75 engine,
 * 78 configuration. doc/errors.md has the table. */
int turbod_exit_code(turbo_status s);

#endif
