/* core/util/log.h: one line an event, to stderr. Any thread. Control bytes of a text are written as
 * \xNN, so that no field can forge a line. Bodies, prompts and keys never go here. */
#ifndef TURBOD_LOG_H
#define TURBOD_LOG_H

#include "turbo/plugin.h"

void turbod_log_level(int level);  /* TURBO_LOG_*; lines above it are dropped */
int turbod_log_level_of(const char *name); /* "error" "warn" "info" "debug", -1 for others */
void turbod_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
