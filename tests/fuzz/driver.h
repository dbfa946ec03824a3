/* tests/fuzz/driver.h: what a fuzz target has, and what its driver gives it. driver.c mutates blindly, libfuzzer.c lets
 * libFuzzer (clang, --enable-libfuzzer) follow coverage. One thread. */
#ifndef TESTS_FUZZ_DRIVER_H
#define TESTS_FUZZ_DRIVER_H

#include <stddef.h>
#include <stdint.h>

/* The target: one input. 0 when it is accepted; a seed has to be. */
int fuzz_one(const uint8_t *data, size_t size);
/* Input number i to start from, the caller's to free; NULL behind the last. */
uint8_t *fuzz_seed(int i, size_t *size);

/* A folder for files, made at the first call; path of NAME in it. */
const char *fuzz_path(const char *name, char path[256]);
void fuzz_put(const char *name, const uint8_t *data, size_t size);
/* Removes the folder and the files that targets put there. */
void fuzz_clean(void);

#endif
