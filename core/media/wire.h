/* core/media/wire.h: what turbod and its image helper say to each other.
 *
 * The helper, turbo-image, gets a request and the image file on descriptor 0, and writes a reply and, when
 * status is 0, the pixels to descriptor 1. Both sides come from one build and run on one machine, so these
 * are plain structs. Nothing in a request but the image file comes from a client. */
#ifndef TURBOD_MEDIA_WIRE_H
#define TURBOD_MEDIA_WIRE_H

#include <stdint.h>

#define TURBOD_IMAGE_MAGIC 0x31676d69u /* "img1", little-endian */

/* Limits on a picture, checked from its header before anything is decoded. */
#define TURBOD_IMAGE_MAX_FILE ((uint64_t)20 << 20)
#define TURBOD_IMAGE_MAX_PIXELS ((int64_t)40 * 1000 * 1000)
#define TURBOD_IMAGE_MAX_SIDE 16384
#define TURBOD_IMAGE_MS 2000 /* decoding and resizing together */

/* How a picture becomes the width * height pixels that a vision tower takes. Resizing is bicubic. */
enum {
    TURBOD_FIT_CROP = 0, /* the shorter side becomes edge, then the centre is cut out            */
    TURBOD_FIT_PAD = 1, /* first widened to a square of colour pad, then as CROP                */
    TURBOD_FIT_STRETCH =
        2, /* resized to width * height, whatever its shape                        */
};

typedef struct turbod_image_fit {
    int32_t fit;
    int32_t edge; /* CROP, PAD: at least width and height */
    int32_t width, height; /* of the result */
    uint8_t pad[4]; /* RGB, 0 */
} turbod_image_fit;

typedef struct turbod_image_request {
    uint32_t magic;
    turbod_image_fit fit;
    uint64_t n_bytes; /* of the image file that follows */
} turbod_image_request;

typedef struct turbod_image_reply {
    uint32_t magic;
    int32_t status; /* turbo_status */
    int32_t width, height; /* of the picture as it was sent */
    char text[256]; /* why not */
} turbod_image_reply;

#endif
