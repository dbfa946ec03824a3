/* tests/unit/shared.h: where test data outside the repository lies. */
#ifndef TESTS_SHARED_H
#define TESTS_SHARED_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The folder of shared test data, or NULL: then the test says SKIP and exits with 77. */
static inline const char *shared_dir(void)
{
    const char *dir = getenv("TURBO_SHARED");
    if (!dir || !*dir || access(dir, R_OK)) {
        printf("SKIP: no shared test data; set TURBO_SHARED to its folder\n");
        return NULL;
    }
    return dir;
}

#endif
