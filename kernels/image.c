/* kernels/image.c: matrices of the CPU as bytes, to be kept in a file and mapped. Caller's thread. Must not know:
 * files. An image is a head, then what the handle points to, each on 64 bytes; one image after the other where
 * a matrix is of several kinds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MAGIC UINT64_C(0x676d69206b6f7274) /* "trok img" */
#define MAX_PARTS 64

typedef struct head {
    uint64_t magic, bytes; /* of this image, with its head and parts */
    int64_t out, in, tiles;
    uint64_t data, bias, perm; /* bytes; 0: there is none */
    int32_t dtype, n_parts;
    uint32_t has_grid, reserved;
    turbok_tiles grid;
} head;

bool turbok_image_kind(const turbok_device *d, char *out, size_t cap)
{
    int n = d->backend ? -1
                       : snprintf(out, cap, "layout %d, %zu, %s, %s%s", TURBOK_LAYOUT, sizeof(head),
                                  TURBOK_BUILD, d->exec.prim->name, d->exact ? ", exact" : "");
    return n > 0 && (size_t)n < cap;
}

static uint64_t padded(uint64_t n)
{
    return (n + 63) / 64 * 64;
}

static void describe(const turbo_linear *w, head *h)
{
    memset(h, 0, sizeof *h);
    h->magic = MAGIC;
    h->out = w->out;
    h->in = w->in;
    h->tiles = w->tiles;
    h->dtype = w->dtype;
    h->n_parts = w->n_parts;
    h->data = w->data_bytes;
    h->bias = w->bias ? (uint64_t)w->tiles * TURBOK_TILE * sizeof(float) : 0;
    h->has_grid = w->grid != NULL;
    if (w->grid) {
        h->perm = w->grid->perm ? (uint64_t)w->in * sizeof(int32_t) : 0;
        memcpy(&h->grid, w->grid, sizeof h->grid);
        h->grid.perm = NULL;
    }
    h->bytes = turbok_image_bytes(w);
}

uint64_t turbok_image_bytes(const turbo_linear *w)
{
    uint64_t n = padded(sizeof(head)) + padded(w->data_bytes);
    n += w->bias ? padded((uint64_t)w->tiles * TURBOK_TILE * sizeof(float)) : 0;
    n += w->grid && w->grid->perm ? padded((uint64_t)w->in * sizeof(int32_t)) : 0;
    for (int32_t i = 0; i < w->n_parts; i++)
        n += turbok_image_bytes(w->parts[i]);
    return n;
}

static bool put(turbok_sink *sink, void *ctx, const void *p, uint64_t n)
{
    static const char zeros[64];
    uint64_t rest = padded(n) - n;
    return (!n || sink(ctx, p, n)) && (!rest || sink(ctx, zeros, rest));
}

bool turbok_image_write(const turbo_linear *w, turbok_sink *sink, void *ctx)
{
    head h;
    describe(w, &h);
    bool ok = put(sink, ctx, &h, sizeof h) && put(sink, ctx, w->data, h.data) &&
              put(sink, ctx, w->bias, h.bias) &&
              put(sink, ctx, w->grid ? w->grid->perm : NULL, h.perm);
    for (int32_t i = 0; i < w->n_parts && ok; i++)
        ok = turbok_image_write(w->parts[i], sink, ctx);
    return ok;
}

/* Numbers that belong together. What the bytes mean the checksum of their keeper vouches for. */
static bool sound(const head *h, uint64_t bytes)
{
    const turbok_tiles *g = &h->grid;
    uint64_t cells, tiles = ((uint64_t)h->out + TURBOK_TILE - 1) / TURBOK_TILE;
    if (h->magic != MAGIC || h->bytes > bytes || h->bytes < padded(sizeof *h) || h->data > bytes ||
        h->bias > bytes || h->perm > bytes || h->out < 1 || h->out > INT32_MAX || h->in < 1 ||
        h->in > INT32_MAX || h->n_parts < 0 || h->n_parts > MAX_PARTS)
        return false;
    if (h->n_parts)
        return !h->data && !h->bias && !h->perm && !h->has_grid;
    if ((uint64_t)h->tiles != tiles || (h->bias && h->bias != tiles * TURBOK_TILE * sizeof(float)))
        return false;
    if (!h->has_grid)
        return !h->perm && turbok_dtype_size(h->dtype) &&
               !__builtin_mul_overflow(tiles * TURBOK_TILE, (uint64_t)h->in, &cells) &&
               !__builtin_mul_overflow(cells, turbok_dtype_size(h->dtype), &cells) &&
               h->data == cells;
    return g->in == h->in && (!h->perm || h->perm == (uint64_t)h->in * sizeof(int32_t)) &&
           g->stripes > 0 && g->groups > 0 &&
           (uint64_t)g->stripes == ((uint64_t)h->out + TURBOK_STRIPE - 1) / TURBOK_STRIPE &&
           !__builtin_mul_overflow(g->group_bytes, (uint64_t)g->groups, &cells) &&
           g->stripe_bytes == cells &&
           !__builtin_mul_overflow(g->stripe_bytes, (uint64_t)g->stripes, &cells) &&
           h->data == cells;
}

/* The next n bytes of an image; what they take of the device is counted. NULL for none. */
static void *borrow(turbok_device *d, const char **at, uint64_t n)
{
    void *p = n ? (void *)(uintptr_t)*at : NULL; /* never written: handles are constant */
    *at += padded(n);
    d->mem[TURBOK_MEM_LINEAR] += n ? turbok_alloc_size(n) : 0;
    return p;
}

static turbo_status no_memory(turbo_err *err)
{
    return turbok_fail(err, TURBO_ENOMEM, "no memory for a weight handle");
}

static turbo_status open_image(turbok_device *d, const char *at, uint64_t bytes, bool part,
                               uint64_t *used, turbo_linear **res, turbo_err *err);

static turbo_status open_parts(turbok_device *d, const head *h, const char *at, turbo_linear *w,
                               turbo_err *err)
{
    uint64_t left = h->bytes - padded(sizeof *h), used = 0;
    int64_t rows = 0;
    w->parts = calloc((size_t)h->n_parts, sizeof(turbo_linear *));
    if (!w->parts)
        return no_memory(err);
    for (int32_t i = 0; i < h->n_parts; i++) {
        turbo_status st = open_image(d, at, left, true, &used, &w->parts[i], err);
        if (st)
            return st;
        w->n_parts++;
        rows += w->parts[i]->out;
        at += used;
        left -= used;
        if (w->parts[i]->in != h->in) {
            rows = -1;
            break;
        }
    }
    return rows == h->out && !left
               ? TURBO_OK
               : turbok_fail(err, TURBO_EDATA, "the image of a matrix has parts that do not fit");
}

/* part: it is one of several behind a handle, and has none itself. */
static turbo_status open_image(turbok_device *d, const char *at, uint64_t bytes, bool part,
                               uint64_t *used, turbo_linear **res, turbo_err *err)
{
    head h;
    turbo_status st = TURBO_OK;
    if (bytes < padded(sizeof h))
        return turbok_fail(err, TURBO_EDATA, "the image of a matrix has %llu bytes",
                           (unsigned long long)bytes);
    memcpy(&h, at, sizeof h);
    at += padded(sizeof h);
    if (!sound(&h, bytes) || (part && h.n_parts) ||
        (!h.n_parts &&
         h.bytes != padded(sizeof h) + padded(h.data) + padded(h.bias) + padded(h.perm)))
        return turbok_fail(err, TURBO_EDATA, "the image of a matrix is damaged");
    turbo_linear *w = calloc(1, sizeof *w);
    if (!w || (h.has_grid && !(w->grid = calloc(1, sizeof *w->grid)))) {
        free(w);
        return no_memory(err);
    }
    w->mapped = true;
    w->dtype = h.dtype;
    w->out = h.out;
    w->in = h.in;
    w->tiles = h.tiles;
    w->data_bytes = h.data;
    if (w->grid)
        memcpy(w->grid, &h.grid, sizeof h.grid);
    if (h.n_parts) {
        st = open_parts(d, &h, at, w, err);
    } else {
        w->data = borrow(d, &at, h.data);
        w->bias = borrow(d, &at, h.bias);
        if (w->grid)
            w->grid->perm = borrow(d, &at, h.perm);
    }
    if (st) {
        turbok_linear_free(d, w);
        return st;
    }
    *used = h.bytes;
    *res = w;
    return TURBO_OK;
}

turbo_status turbok_image_open(turbok_device *d, const void *image, uint64_t bytes, uint64_t *used,
                               turbo_linear **res, turbo_err *err)
{
    return open_image(d, image, bytes, false, used, res, err);
}
