/* core/plugin/check_run.h: how one conformance test runs and reports; between the check_*.c files.
 * A test returns CHECK_OK, or CHECK_FAILED or CHECK_SKIPPED with the reason in why->text. It runs
 * in a child process. */
#ifndef TURBOD_CHECK_RUN_H
#define TURBOD_CHECK_RUN_H

#include <stdbool.h>
#include <stdio.h>

#include "turbo/plugin.h"

/* CHECK_TRAPPED and more: an exit code of check_trap.c. */
enum { CHECK_OK = 0, CHECK_FAILED = 1, CHECK_SKIPPED = 2, CHECK_TRAPPED = 100 };

typedef struct check_run {
    FILE *out;
    int ok, failed, skipped;
    turbo_err first; /* of the failures */
} check_run;

typedef int (*check_fn)(const void *vtbl, turbo_err *why);

typedef struct check_test {
    const char *name;
    check_fn fn;
} check_test;

/* Runs fn(vtbl) in a child with a time limit, so that a crash or a hang is one failed line. */
void check_one(check_run *run, const char *kind, const char *id, const check_test *t,
               const void *vtbl);

/* From now on the process ends when the plugin of v calls what no [engine] slot may call. False with why
 * where that cannot be done. */
bool check_trap(const turbo_model_vtbl *v, turbo_err *why);
/* The function that such an exit code tells of; NULL when it tells of none. */
const char *check_trap_name(int exit_code);

extern const check_test check_model_tests[], check_forward_tests[], check_tokenizer_tests[],
    check_sampler_tests[];

#endif
