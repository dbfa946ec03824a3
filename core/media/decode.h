/* core/media/decode.h: the decoders of the image helper. They run in that process only: a picture that
 * cannot be decoded ends it, after its reply. */
#ifndef TURBOD_MEDIA_DECODE_H
#define TURBOD_MEDIA_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "media/wire.h"
#include "turbo/plugin.h"

typedef struct turbod_picture {
    int32_t width, height;
    uint8_t *rgb; /* [height, width, 3] */
} turbod_picture;

/* Writes the reply "no" and ends the process. */
_Noreturn void turbod_decode_fail(turbo_status status, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Ends the process when a picture of that size is beyond the limits. */
void turbod_decode_size(int64_t width, int64_t height);

/* RGB as PIL's convert("RGB") makes it; alpha is dropped, EXIF orientation is not applied. */
void turbod_decode_jpeg(const uint8_t *bytes, size_t n, turbod_picture *out);
void turbod_decode_png(const uint8_t *bytes, size_t n, turbod_picture *out);

/* Resizes and cuts p as fit says, into out [fit.height, fit.width, 3]; the same bits as PIL's BICUBIC.
 * False: no memory, or a fit that makes no sense. A pure function. */
bool turbod_image_resample(const turbod_picture *p, const turbod_image_fit *fit, uint8_t *out);

#endif
