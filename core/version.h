/* core/version.h: what --version prints: build facts that a bug report needs. */
#ifndef TURBOD_VERSION_H
#define TURBOD_VERSION_H

#include <stdio.h>

void turbod_version_print(FILE *out, const char *program);
const char *turbod_version(void);                    /* "0.1.0" */
void turbod_isa_names(char *out, unsigned long cap); /* "scalar avx2 avx512", best last */

#endif
