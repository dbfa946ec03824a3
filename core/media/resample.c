/* core/media/resample.c: bicubic resizing with the same bits as Pillow's Image.resize(BICUBIC).
 * Two passes, horizontal first, each rounded to 8 bits; weights are integers scaled by 2^22
 * (reference: section 4.2 of the model sheets, after Pillow's Resample.c). Runs in the image helper;
 * knows no file formats. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "media/decode.h"
#include "util/checked.h"

#define PRECISION 22
#define CUBIC_A (-0.5) /* Keys, 1981 */

/* Of each output position: which inputs, from from[i] on, count how much. */
typedef struct taps {
    int32_t count, most; /* outputs; room for weights of each */
    int32_t *from, *n, *w; /* [count], [count], [count, most] */
} taps;

/* A picture as the passes see it: perhaps inside a larger one of one colour. */
typedef struct canvas {
    const turbod_picture *p;
    int32_t width, height, left, top;
    uint8_t colour[3];
    uint8_t *line; /* [width, 3], margins filled; NULL when there are none beside the picture */
} canvas;

static double cubic(double x)
{
    x = fabs(x);
    if (x < 1.0)
        return ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * CUBIC_A;
    return 0;
}

static void taps_free(taps *t)
{
    free(t->from);
    free(t->n);
    free(t->w);
    *t = (taps){0};
}

/* One output position: centre and support in units of the input. */
static void weigh(taps *t, int32_t i, double centre, double support, double squeeze, int32_t in,
                  double *k)
{
    int32_t lo = (int32_t)(centre - support + 0.5), hi = (int32_t)(centre + support + 0.5);
    double sum = 0;
    lo = lo < 0 ? 0 : lo;
    hi = hi > in ? in : hi;
    for (int32_t j = 0; j < hi - lo; j++) {
        k[j] = cubic(((double)(j + lo) - centre + 0.5) * squeeze);
        sum += k[j];
    }
    t->from[i] = lo;
    t->n[i] = hi - lo;
    for (int32_t j = 0; j < hi - lo; j++) {
        double w = (k[j] / sum) * (1 << PRECISION);
        t->w[(size_t)i * (size_t)t->most + (size_t)j] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
    }
}

/* Outputs first .. first + count - 1 of a side of `in` pixels resized to `out`. */
static bool taps_make(taps *t, int32_t in, int32_t out, int32_t first, int32_t count)
{
    double scale = (double)in / out, wide = scale < 1.0 ? 1.0 : scale, support = 2.0 * wide;
    size_t n = (size_t)count, room;
    *t = (taps){.count = count, .most = (int32_t)ceil(support) * 2 + 1};
    t->from = calloc(n, sizeof *t->from);
    t->n = calloc(n, sizeof *t->n);
    t->w = turbod_mul(n, (size_t)t->most, &room) ? calloc(room, sizeof *t->w) : NULL;
    double *k = calloc((size_t)t->most, sizeof *k);
    if (!t->from || !t->n || !t->w || !k) {
        taps_free(t);
        free(k);
        return false;
    }
    for (int32_t i = 0; i < count; i++) {
        if (in == out) { /* a pass that changes nothing is not made */
            t->from[i] = first + i;
            t->n[i] = 1;
            t->w[(size_t)i * (size_t)t->most] = 1 << PRECISION;
        } else {
            weigh(t, i, ((double)(first + i) + 0.5) * scale, support, 1.0 / wide, in, k);
        }
    }
    free(k);
    return true;
}

/* Output i of a pass; in is input `base`, its neighbours are `step` bytes apart. */
static void sum_taps(const taps *t, int32_t i, const uint8_t *in, int32_t base, size_t step,
                     uint8_t out[3])
{
    const int32_t *w = t->w + (size_t)i * (size_t)t->most;
    int32_t r = 1 << (PRECISION - 1), g = r, b = r;
    in += (size_t)(t->from[i] - base) * step;
    for (int32_t j = 0; j < t->n[i]; j++, in += step) {
        r += in[0] * w[j];
        g += in[1] * w[j];
        b += in[2] * w[j];
    }
    const int32_t v[3] = {r >> PRECISION, g >> PRECISION, b >> PRECISION};
    for (int c = 0; c < 3; c++)
        out[c] = (uint8_t)(v[c] < 0 ? 0 : v[c] > 255 ? 255 : v[c]);
}

static void fill(uint8_t *line, int32_t n, const uint8_t colour[3])
{
    for (int32_t i = 0; i < n; i++)
        memcpy(line + 3 * (size_t)i, colour, 3);
}

static const uint8_t *canvas_row(canvas *c, int32_t y)
{
    const uint8_t *row = c->p->rgb + (size_t)(y - c->top) * (size_t)c->p->width * 3;
    if (!c->line)
        return row;
    memcpy(c->line + 3 * (size_t)c->left, row, (size_t)c->p->width * 3);
    return c->line;
}

/* The horizontal pass over the rows that the vertical one needs: rows [lo, hi) of the canvas. */
static bool pass_across(canvas *c, const taps *h, int32_t lo, int32_t hi, uint8_t *out)
{
    size_t row = (size_t)h->count * 3, width = (size_t)c->width * 3;
    uint8_t *margin = malloc(row), *line = malloc(width);
    if (!margin || !line) {
        free(margin);
        free(line);
        return false;
    }
    fill(line, c->width, c->colour);
    for (int32_t i = 0; i < h->count; i++)
        sum_taps(h, i, line, 0, 3, margin + 3 * (size_t)i);
    c->line = c->width > c->p->width ? line : NULL;
    for (int32_t y = lo; y < hi; y++, out += row) {
        if (y < c->top || y >= c->top + c->p->height) {
            memcpy(out, margin, row);
            continue;
        }
        const uint8_t *in = canvas_row(c, y);
        for (int32_t i = 0; i < h->count; i++)
            sum_taps(h, i, in, 0, 3, out + 3 * (size_t)i);
    }
    c->line = NULL;
    free(margin);
    free(line);
    return true;
}

static bool pass_both(canvas *c, const taps *h, const taps *v, uint8_t *out)
{
    int32_t lo = v->from[0], hi = v->from[v->count - 1] + v->n[v->count - 1];
    size_t row = (size_t)h->count * 3, bytes;
    uint8_t *mid = turbod_mul(row, (size_t)(hi - lo), &bytes) ? malloc(bytes) : NULL;
    bool ok = mid && pass_across(c, h, lo, hi, mid);
    for (int32_t y = 0; ok && y < v->count; y++)
        for (int32_t x = 0; x < h->count; x++, out += 3)
            sum_taps(v, y, mid + 3 * (size_t)x, lo, row, out);
    free(mid);
    return ok;
}

bool turbod_image_resample(const turbod_picture *p, const turbod_image_fit *fit, uint8_t *out)
{
    canvas c = {.p = p, .width = p->width, .height = p->height};
    int64_t w = fit->width, h = fit->height;
    if (w < 1 || h < 1 || (fit->fit != TURBOD_FIT_STRETCH && (fit->edge < w || fit->edge < h)))
        return false;
    if (fit->fit == TURBOD_FIT_PAD) {
        c.width = c.height = p->width > p->height ? p->width : p->height;
        c.left = (c.width - p->width) / 2;
        c.top = (c.height - p->height) / 2;
        memcpy(c.colour, fit->pad, 3);
    }
    if (fit->fit !=
        TURBOD_FIT_STRETCH) { /* the longer side is cut to a whole number, not rounded */
        bool wide = c.width > c.height;
        int64_t edge = fit->edge, lesser = wide ? c.height : c.width;
        w = wide ? edge * c.width / lesser : edge;
        h = wide ? edge : edge * c.height / lesser;
    }
    taps across, down = {0};
    bool ok = w <= INT32_MAX && h <= INT32_MAX &&
              taps_make(&across, c.width, (int32_t)w, (int32_t)((w - fit->width) / 2), fit->width);
    if (!ok)
        return false;
    ok = taps_make(&down, c.height, (int32_t)h, (int32_t)((h - fit->height) / 2), fit->height) &&
         pass_both(&c, &across, &down, out);
    taps_free(&across);
    taps_free(&down);
    return ok;
}
