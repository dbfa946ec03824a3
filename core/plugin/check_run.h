/* core/plugin/check_run.h: how one conformance test runs and reports; between the check_*.c files.
 * A test returns CHECK_OK, or CHECK_FAILED or CHECK_SKIPPED with the reason in why->text. It runs
 * in a child process. */
#ifndef TURBOD_CHECK_RUN_H
#define TURBOD_CHECK_RUN_H

#include <stdio.h>

#include "turbo/plugin.h"

enum { CHECK_OK = 0, CHECK_FAILED = 1, CHECK_SKIPPED = 2 };

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

extern const check_test check_model_tests[], check_tokenizer_tests[], check_sampler_tests[];

#endif
