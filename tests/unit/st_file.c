/* tests/unit/st_file.c: see st_file.h. */
#include "st_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void grow(void **p, size_t *cap, size_t need)
{
    if (need <= *cap)
        return;
    *cap = 2 * need;
    *p = realloc(*p, *cap);
    if (!*p)
        abort();
}

void st_add(st_file *f, const char *name, const char *dtype, int64_t d0, int64_t d1, int64_t d2,
            const void *data, size_t bytes)
{
    char shape[96] = "";
    int64_t dims[3] = {d0, d1, d2 > 0 ? d2 : -1};
    for (int i = 0; i < 3 && dims[i] >= 0; i++)
        snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", i ? "," : "",
                 (long long)dims[i]);
    grow((void **)&f->header, &f->header_cap, f->header_len + strlen(name) + 256);
    f->header_len +=
        (size_t)snprintf(f->header + f->header_len, f->header_cap - f->header_len,
                         "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                         f->header_len ? ',' : '{', name, dtype, shape, f->data_len,
                         f->data_len + bytes);
    grow((void **)&f->data, &f->data_cap, f->data_len + bytes);
    if (bytes)
        memcpy(f->data + f->data_len, data, bytes);
    f->data_len += bytes;
}

void st_write(st_file *f, const char *folder)
{
    char path[256];
    uint64_t n = f->header_len + 1;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    unlink(path);
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(&n, 8, 1, out) != 1 ||
        fwrite(f->header, 1, f->header_len, out) != f->header_len || putc('}', out) == EOF ||
        fwrite(f->data, 1, f->data_len, out) != f->data_len || fclose(out))
        abort();
    free(f->header);
    free(f->data);
    *f = (st_file){0};
}
