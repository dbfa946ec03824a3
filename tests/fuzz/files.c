/* tests/fuzz/files.c: the folder in memory where targets put the files that their readers open. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];

const char *fuzz_path(const char *name, char path[256])
{
    if (!*folder) {
        strcpy(folder,
               access("/dev/shm", W_OK) ? "/tmp/turbo-fuzz-XXXXXX" : "/dev/shm/turbo-fuzz-XXXXXX");
        if (!mkdtemp(folder))
            abort();
    }
    snprintf(path, 256, "%s%s%s", folder, *name ? "/" : "", name);
    return path;
}

void fuzz_put(const char *name, const uint8_t *data, size_t size)
{
    char path[256];
    FILE *f = fopen(fuzz_path(name, path), "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        abort();
}

void fuzz_clean(void)
{
    static const char *const files[] = {"config.json", "model.safetensors", "model.gguf"};
    char path[256];
    if (!*folder)
        return;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        unlink(fuzz_path(files[i], path));
    rmdir(folder);
}
