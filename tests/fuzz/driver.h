/* tests/fuzz/driver.h: what a fuzz target has. With clang, link it with -fsanitize=fuzzer in the place of
 * driver.c. One thread. */
#ifndef TESTS_FUZZ_DRIVER_H
#define TESTS_FUZZ_DRIVER_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Input number i to start from, the caller's to free; NULL behind the last. */
uint8_t *fuzz_seed(int i, size_t *size);
/* A folder for files, made at the first call and removed at the end; path of NAME in it. */
const char *fuzz_path(const char *name, char path[256]);
void fuzz_put(const char *name, const uint8_t *data, size_t size);

#endif
