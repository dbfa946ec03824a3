/* core/util/file.h: opening and reading files of a model folder, safely. Any thread. */
#ifndef TURBOD_FILE_H
#define TURBOD_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "turbo/plugin.h"

/* Opens folder/name read-only. name is a plain file name ([A-Za-z0-9._-]{1,255}, no leading dot); the
 * file must be regular. Model caches link a name to a content-addressed file elsewhere, so a link is
 * followed when its target is a regular file owned by root or this user. *st is filled. */
turbo_status turbod_file_open(const char *folder, const char *name, int *fd, struct stat *st,
                              turbo_err *err);
bool turbod_file_name_ok(const char *name); /* a plain file name, as above */
/* The folder `name`, a plain name, inside `folder` or beside it; out has cap bytes. */
turbo_status turbod_file_folder(const char *folder, const char *name, char *out, size_t cap,
                                turbo_err *err);
/* The whole file, NUL-terminated behind len; free(). */
turbo_status turbod_file_read(const char *folder, const char *name, uint64_t max_bytes,
                              uint8_t **bytes, uint64_t *len, turbo_err *err);

#endif
