/* Fuzz target: the image of a matrix, which cache_dir maps. Checksums vouch for what the bytes mean; here none does, and
 * whatever is accepted must fit the bytes there are. Returns 1 when it is refused. */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

#include "turbok.h"

static turbok_device *device(void)
{
    static turbok_device *d;
    const turbok_device_opts o = {.isa = TURBOK_ISA_SCALAR, .threads = 1};
    turbo_err err;
    if (!d && turbok_device_open(&o, &d, &err))
        abort();
    return d;
}

int fuzz_one(const uint8_t *data, size_t size)
{
    void *block = NULL;
    uint64_t used = 0;
    turbo_linear *w = NULL;
    turbo_err err;
    /* The last byte of the input is the last of the block: whoever reads behind it is found. */
    if (posix_memalign(&block, 64, size))
        abort();
    memcpy(block, data, size);
    turbo_status st = turbok_image_open(device(), block, size, &used, &w, &err);
    if (!st) {
        if (used > size || turbok_linear_out(w) < 1 || turbok_linear_in(w) < 1 ||
            turbok_image_bytes(w) != used)
            abort();
        turbok_linear_free(device(), w);
    }
    free(block);
    return st != TURBO_OK;
}

typedef struct bytes {
    uint8_t *p;
    size_t n;
} bytes;

static bool keep(void *ctx, const void *p, uint64_t n)
{
    bytes *b = ctx;
    b->p = realloc(b->p, b->n + n);
    if (!b->p)
        abort();
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return true;
}

/* Plain, int8 with a bias, int4 whose inputs are permuted, and rows of two kinds behind one handle. */
uint8_t *fuzz_seed(int i, size_t *size)
{
    enum { OUT = 40, IN = 64 };
    static float number[OUT * IN], bias[OUT];
    static uint8_t codes[OUT * IN];
    static float scale[OUT * IN / 32];
    int32_t perm[IN];
    for (int k = 0; k < OUT * IN; k++)
        codes[k] = (uint8_t)(k * 37);
    for (int k = 0; k < IN; k++)
        perm[k] = IN - 1 - k;
    const turbok_grid g = {.bits = i == 2 ? 4 : 8,
                           .group = 32,
                           .scale_dtype = TURBO_F32,
                           .offset = i == 2 ? 8 : 128,
                           .codes = codes,
                           .scale = scale,
                           .perm = i == 2 ? perm : NULL};
    const turbok_part parts[] = {{.data = number, .rows = OUT}, {.rows = OUT, .grid = &g}};
    turbo_linear *w = NULL;
    turbo_err err;
    bytes b = {0};
    turbo_status st = TURBO_EINVAL;
    if (i == 0)
        st = turbok_linear_new(device(), TURBO_F32, number, OUT, IN, bias, TURBO_F32, 0, &w, &err);
    else if (i < 3)
        st = turbok_grid_new(device(), &g, OUT, IN, i == 1 ? bias : NULL, TURBO_F32, 0, &w, &err);
    else if (i == 3)
        st = turbok_linear_rows_new(device(), TURBO_F32, parts, 2, IN, 0, &w, &err);
    if (st) {
        if (i < 4)
            abort();
        return NULL;
    }
    turbok_image_write(w, keep, &b);
    turbok_linear_free(device(), w);
    *size = b.n;
    return b.p;
}
