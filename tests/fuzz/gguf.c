/* Fuzz target: a GGUF file, from its bytes to the numbers of its matrices. Returns 1 when it is refused. */
#include "driver.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/log.h"
#include "weights/quant/quant.h"

/* A matrix of moderate size, to its numbers. */
static void read_matrix(const turbod_quant *q, const turbod_index *ix, const turbod_st_tensor *t)
{
    char base[600];
    turbod_quant_part p;
    turbok_grid g;
    turbo_err err;
    size_t n = strlen(t->name);
    if (t->ndim != 2 || t->bytes > 1 << 20 || t->dims[1] > 4096 || n < 8 || n >= sizeof base ||
        strcmp(t->name + n - 7, ".weight"))
        return;
    memcpy(base, t->name, n - 7);
    base[n - 7] = '\0';
    if (turbod_quant_find(q, ix, base, (int64_t)t->dims[0], (int64_t)t->dims[1], &p, &err) ||
        !p.format || turbod_quant_scan(&p, false, &err) ||
        turbod_quant_grid(&p, NULL, false, &g, &err))
        return;
    if (turbod_quant_scan(&p, true, &err))
        abort(); /* unpacking did not find what reading the scales alone does */
    float *row = malloc(t->dims[1] * sizeof *row);
    for (int64_t o = 0; row && o < p.rows; o++)
        turbok_grid_row(&g, o, p.in, row);
    free(row);
    turbod_quant_grid_free(&g);
}

int fuzz_one(const uint8_t *data, size_t size)
{
    char path[256];
    turbod_index *ix = NULL;
    turbod_quant *q = NULL;
    turbo_err err;
    turbod_log_level(-1);
    fuzz_put("model.gguf", data, size);
    turbo_status st = turbod_index_open(fuzz_path("model.gguf", path), &ix, &err);
    if (!st)
        st = turbod_quant_open(NULL, "", &q, &err);
    for (size_t i = 0; !st && i < turbod_index_count(ix); i++)
        read_matrix(q, ix, turbod_index_at(ix, i));
    turbod_quant_close(q);
    turbod_index_close(ix);
    return st != TURBO_OK;
}

uint8_t *fuzz_seed(int i, size_t *size)
{
    char path[512];
    const char *src = getenv("srcdir");
    snprintf(path, sizeof path, "%s/tests/golden/gguf/blocks.gguf", src ? src : ".");
    FILE *f = i ? NULL : fopen(path, "rb");
    if (!f) {
        if (!i)
            fprintf(stderr, "%s cannot be read\n", path);
        return NULL;
    }
    uint8_t *out = malloc(1 << 20);
    *size = fread(out, 1, 1 << 20, f);
    fclose(f);
    return out;
}
