/* core/media/png.c: PNG to RGB through libpng. Runs in the image helper. Of an animated file the still
 * picture is taken. Gamma, colour profiles and transparency do not change the colours. */
#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "media/decode.h"

#define MAX_RAW ((size_t)256 << 20) /* bytes of the picture as it is stored */

typedef struct source {
    const uint8_t *at;
    size_t left;
} source;

_Noreturn static void on_error(png_structp png, png_const_charp text)
{
    (void)png;
    turbod_decode_fail(TURBO_EDATA, "the PNG image is damaged: %s", text);
}

static void on_warning(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void on_read(png_structp png, png_bytep to, size_t n)
{
    source *s = png_get_io_ptr(png);
    if (n > s->left)
        turbod_decode_fail(TURBO_EDATA, "the PNG image is cut off: its data ends too early");
    memcpy(to, s->at, n);
    s->at += n;
    s->left -= n;
}

/* Colours of a palette; an index that has no colour is black, as Pillow has it. */
static void read_palette(png_structp png, png_infop info, uint8_t colours[256][3])
{
    png_colorp p = NULL;
    int n = 0;
    memset(colours, 0, 256 * 3);
    if (!png_get_PLTE(png, info, &p, &n))
        turbod_decode_fail(TURBO_EDATA, "the PNG image is damaged: no palette");
    for (int i = 0; i < n && i < 256; i++) {
        colours[i][0] = p[i].red;
        colours[i][1] = p[i].green;
        colours[i][2] = p[i].blue;
    }
}

/* One row as libpng gives it to RGB. 16 bits of grey are cut to 0..255 and not scaled down: that is what
 * Pillow's "I;16" becomes. */
static void convert(const uint8_t *in, int type, int depth, const uint8_t colours[256][3],
                    int32_t n, uint8_t *out)
{
    for (int32_t i = 0; i < n; i++, out += 3) {
        if (type == PNG_COLOR_TYPE_PALETTE)
            memcpy(out, colours[in[i]], 3);
        else if (type == PNG_COLOR_TYPE_GRAY && depth == 16)
            out[0] = out[1] = out[2] = in[2 * i] ? 255 : in[2 * i + 1];
        else if (type == PNG_COLOR_TYPE_GRAY)
            out[0] = out[1] = out[2] = in[i];
        else if (type == PNG_COLOR_TYPE_GRAY_ALPHA)
            out[0] = out[1] = out[2] = in[2 * i];
        else
            memcpy(out, in + (size_t)i * (type == PNG_COLOR_TYPE_RGB ? 3 : 4), 3);
    }
}

/* All rows as libpng gives them; an interlaced picture is complete only at its end. */
static uint8_t *read_rows(png_structp png, png_infop info, int32_t height, size_t *row)
{
    *row = png_get_rowbytes(png, info);
    size_t bytes;
    if (__builtin_mul_overflow(*row, (size_t)height, &bytes) || bytes > MAX_RAW)
        turbod_decode_fail(TURBO_ELIMIT, "the image takes more memory than an image may");
    uint8_t *raw = calloc(bytes, 1);
    png_bytepp rows = calloc((size_t)height, sizeof *rows);
    if (!raw || !rows)
        turbod_decode_fail(TURBO_ELIMIT, "the image takes more memory than an image may");
    for (int32_t y = 0; y < height; y++)
        rows[y] = raw + (size_t)y * *row;
    png_read_image(png, rows);
    free(rows);
    return raw;
}

void turbod_decode_png(const uint8_t *bytes, size_t n, turbod_picture *out)
{
    source src = {bytes, n};
    uint8_t colours[256][3];
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    if (!info)
        turbod_decode_fail(TURBO_ELIMIT, "no memory for a PNG image");
    png_set_read_fn(png, &src, on_read);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_chunk_malloc_max(png, (png_alloc_size_t)1 << 20);
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff); /* ours, with our words, come next */
    png_read_info(png, info);
    png_uint_32 width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    turbod_decode_size(width, height);
    int type = png_get_color_type(png, info), depth = png_get_bit_depth(png, info);
    if (type == PNG_COLOR_TYPE_PALETTE)
        read_palette(png, info, colours);
    if (depth == 16 && type != PNG_COLOR_TYPE_GRAY)
        png_set_strip_16(png);
    if (depth < 8 && type == PNG_COLOR_TYPE_GRAY)
        png_set_expand_gray_1_2_4_to_8(png);
    if (depth < 8)
        png_set_packing(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);

    out->width = (int32_t)width;
    out->height = (int32_t)height;
    size_t row, line = (size_t)width * 3;
    uint8_t *raw = read_rows(png, info, out->height, &row);
    out->rgb = calloc(height, line);
    if (!out->rgb)
        turbod_decode_fail(TURBO_ELIMIT, "the image takes more memory than an image may");
    for (size_t y = 0; y < height; y++)
        convert(raw + y * row, type, depth, (const uint8_t(*)[3])colours, out->width,
                out->rgb + y * line);
    free(raw);
    png_destroy_read_struct(&png, &info, NULL);
}
