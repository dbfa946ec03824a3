/* core/media/jpeg.c: JPEG to RGB through libjpeg-turbo. Runs in the image helper. */
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#include <jerror.h>

#include "media/decode.h"

#define MAX_WARNINGS 1000
#define MAX_SCANS 64 /* of a progressive file; each costs a pass over the whole picture */

_Noreturn static void on_error(j_common_ptr j)
{
    char text[JMSG_LENGTH_MAX];
    j->err->format_message(j, text);
    turbod_decode_fail(j->err->msg_code == JERR_OUT_OF_MEMORY ? TURBO_ELIMIT : TURBO_EDATA,
                       "the JPEG image is damaged or of a kind that is not taken: %s", text);
}

/* level < 0: a warning, the data is damaged and decoding goes on. */
static void on_message(j_common_ptr j, int level)
{
    if (level < 0 && ++j->err->num_warnings > MAX_WARNINGS)
        turbod_decode_fail(TURBO_EDATA, "the JPEG image is damaged in more than %d places",
                           MAX_WARNINGS);
}

static boolean on_end(j_decompress_ptr j)
{
    (void)j;
    turbod_decode_fail(TURBO_EDATA, "the JPEG image is cut off: its data ends too early");
}

static void on_progress(j_common_ptr j)
{
    if (j->is_decompressor && ((j_decompress_ptr)j)->input_scan_number > MAX_SCANS)
        turbod_decode_fail(TURBO_EDATA, "the JPEG image has more than %d scans", MAX_SCANS);
}

/* a * b / 255, rounded. */
static int product(int a, int b)
{
    int t = a * b + 128;
    return ((t >> 8) + t) >> 8;
}

/* Four components are taken as Adobe stores them, inverted, as Pillow does. in [n,4], out [n,3]. */
static void from_cmyk(const uint8_t *in, int32_t n, uint8_t *out)
{
    for (int32_t i = 0; i < n; i++, in += 4, out += 3)
        for (int c = 0; c < 3; c++) {
            int v = in[3] - product(255 - in[c], in[3]);
            out[c] = (uint8_t)(v < 0 ? 0 : v);
        }
}

static void convert(const uint8_t *in, int components, int32_t n, uint8_t *out)
{
    if (components == 4)
        from_cmyk(in, n, out);
    else
        for (int32_t i = 0; i < n; i++, out += 3)
            out[0] = out[1] = out[2] = in[i];
}

void turbod_decode_jpeg(const uint8_t *bytes, size_t n, turbod_picture *out)
{
    struct jpeg_decompress_struct j;
    struct jpeg_error_mgr err;
    struct jpeg_progress_mgr watch = {.progress_monitor = on_progress};
    j.err = jpeg_std_error(&err);
    err.error_exit = on_error;
    err.emit_message = on_message;
    jpeg_create_decompress(&j);
    jpeg_mem_src(&j, bytes, (unsigned long)n);
    j.src->fill_input_buffer = on_end;
    j.progress = &watch;
    jpeg_read_header(&j, TRUE);
    turbod_decode_size(j.image_width, j.image_height);
    if (j.num_components != 1 && j.num_components != 3 && j.num_components != 4)
        turbod_decode_fail(TURBO_EUNSUPPORTED,
                           "the JPEG image has %d components; 1, 3 or 4 are taken",
                           j.num_components);
    j.out_color_space = j.num_components == 1   ? JCS_GRAYSCALE
                        : j.num_components == 3 ? JCS_RGB
                                                : JCS_CMYK;
    jpeg_start_decompress(&j);
    out->width = (int32_t)j.output_width;
    out->height = (int32_t)j.output_height;
    size_t row = (size_t)out->width * 3;
    out->rgb = calloc((size_t)out->height, row);
    uint8_t *line = calloc((size_t)out->width, 4);
    if (!out->rgb || !line)
        turbod_decode_fail(TURBO_ELIMIT, "the image takes more memory than an image may");
    while (j.output_scanline < j.output_height) {
        uint8_t *to = out->rgb + row * j.output_scanline;
        uint8_t *into = j.num_components == 3 ? to : line;
        jpeg_read_scanlines(&j, &into, 1);
        if (j.num_components != 3)
            convert(line, j.num_components, out->width, to);
    }
    free(line);
    jpeg_destroy_decompress(&j);
}
