/* Fuzz target: a folder with one quantised matrix, from its files to its numbers. An input is a byte that chooses
 * the shape that a model asks for, two bytes that give the length of config.json, that, and
 * model.safetensors. Returns 1 when the matrix is refused. */
#include "driver.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/quant_folder.h"
#include "unit/st_file.h"
#include "util/log.h"
#include "weights/quant/quant.h"

static const int64_t shapes[][2] = {{32, 64}, {64, 32}, {16, 32}, {8, 256}, {1, 16}, {160, 96}};

int fuzz_one(const uint8_t *data, size_t size)
{
    char path[256];
    turbod_index *ix = NULL;
    turbod_quant *q = NULL;
    turbod_quant_part p;
    turbok_grid g;
    turbo_err err;
    if (size < 4)
        return 1;
    turbod_log_level(-1);
    const int64_t *shape = shapes[data[0] % (sizeof shapes / sizeof shapes[0])];
    size_t n = (size_t)data[1] | (size_t)data[2] << 8;
    n = n < size - 3 ? n : size - 3;
    fuzz_put("config.json", data + 3, n);
    fuzz_put("model.safetensors", data + 3 + n, size - 3 - n);
    const char *folder = fuzz_path("", path);
    turbo_status st = turbod_index_open(folder, &ix, &err);
    if (!st)
        st = turbod_quant_open(folder, "", &q, &err);
    if (!st)
        st = turbod_quant_find(q, ix, "m", shape[0], shape[1], &p, &err);
    if (!st && p.format)
        st = turbod_quant_scan(&p, true, &err);
    if (!st && p.format)
        st = turbod_quant_grid(&p, NULL, false, &g, &err);
    bool read = !st && p.format;
    if (read) {
        float row[256];
        for (int64_t o = 0; o < shape[0]; o++)
            turbok_grid_row(&g, o, shape[1], row);
        turbod_quant_grid_free(&g);
    }
    turbod_quant_close(q);
    turbod_index_close(ix);
    return !read;
}

uint8_t *fuzz_seed(int i, size_t *size)
{
    char path[256];
    if (i >= n_quant_cases)
        return NULL;
    st_file f = {0};
    quant_cases[i].add(&f, "m", shapes[0][0], shapes[0][1]);
    st_write(&f, fuzz_path("", path));
    uint8_t *out = malloc(1 << 16);
    int n = snprintf((char *)out + 3, 4096, "{\"quantization_config\":%s}",
                     quant_cases[i].quantization_config);
    out[0] = 0;
    out[1] = (uint8_t)n;
    out[2] = (uint8_t)(n >> 8);
    FILE *in = fopen(fuzz_path("model.safetensors", path), "rb");
    if (!in)
        abort();
    *size = 3 + (size_t)n + fread(out + 3 + n, 1, (1 << 16) - 3 - (size_t)n, in);
    fclose(in);
    return out;
}
