/* tests/fuzz/libfuzzer.c: a fuzz target under libFuzzer. The seeds are written into the folder FUZZ_CORPUS, which `make fuzz`
 * also names to libFuzzer; each has to be accepted. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    const char *corpus = getenv("FUZZ_CORPUS");
    uint8_t *seed;
    size_t size;
    int n = 0;
    atexit(fuzz_clean);
    for (; corpus && (seed = fuzz_seed(n, &size)); n++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/seed-%d", corpus, n);
        /* with -fork=N each child comes here too, and finds them written */
        FILE *f = access(path, F_OK) ? fopen(path, "wb") : NULL;
        if (f && (fwrite(seed, 1, size, f) != size || fclose(f))) {
            fprintf(stderr, "%s cannot be written\n", path);
            exit(1);
        }
        if (fuzz_one(seed, size)) {
            fprintf(stderr, "seed %d is refused\n", n);
            exit(1);
        }
        free(seed);
    }
    if (corpus && !n) {
        fprintf(stderr,
                "there is no seed; srcdir and TURBO_PLUGIN_PATH say where they come from\n");
        exit(1);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_one(data, size);
    return 0;
}
