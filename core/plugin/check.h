/* core/plugin/check.h: what a plugin author runs: conformance tests and a new project. Main thread.
 */
#ifndef TURBOD_PLUGIN_CHECK_H
#define TURBOD_PLUGIN_CHECK_H

#include <stdio.h>

#include "turbo/plugin.h"

/* Loads the file as turbod would and exercises every table in it; writes one line a test, "ok ..."
 * or "FAILED ...", and a summary to out. TURBO_OK when nothing failed; else EABI, and err holds the
 * first failure. The plugin's code runs in this process. */
turbo_status turbod_plugin_check(const char *path, FILE *out, turbo_err *err);

/* Writes a project into dir (made when absent; files in it are never overwritten): Makefile, a
 * plugin in C that works, README, for a model also what writes a tiny checkpoint. name:
 * [a-z][a-z0-9-]{0,30}. kind: "model" or "sampler". data_dir: the folder that holds plugin-new/. */
turbo_status turbod_plugin_new(const char *name, const char *kind, const char *dir,
                               const char *data_dir, turbo_err *err);

#endif
