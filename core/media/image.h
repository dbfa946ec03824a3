/* core/media/image.h: an image file to the pixels a vision tower takes.
 *
 * The file is decoded and resized in a process of its own, turbo-image, which has limits on memory, time
 * and system calls: whatever a file does to a decoder, it does not do it here. posix_spawn starts it: glibc
 * clones without copying page tables and runs nothing of this process in the child, so it is safe and cheap
 * in a daemon with threads and gigabytes of weights, where fork is neither. Any thread; blocks for up to
 * TURBOD_IMAGE_MS. Must not know: HTTP, models. */
#ifndef TURBOD_IMAGE_H
#define TURBOD_IMAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "media/wire.h"
#include "turbo/plugin.h"

/* pixels [fit->height, fit->width, 3] RGB, of the caller. *width and *height (may be NULL): of the picture
 * as sent. EINVAL: no image file; EUNSUPPORTED: of a kind that is not taken; EDATA: damaged; ELIMIT: too
 * large or too slow to decode; EIO, ENOMEM, EINTERNAL: not the picture's fault. */
turbo_status turbod_image_prepare(const void *bytes, size_t n, const turbod_image_fit *fit,
                                  uint8_t *pixels, int32_t *width, int32_t *height, turbo_err *err);

/* A picture as the model will see it, counted: chats, requests and caches share it. Any thread. */
typedef struct turbod_image {
    _Atomic int refs;
    uint8_t digest[32]; /* SHA-256 of its shape and pixels */
    uint8_t pixels[]; /* [height, width, 3] of the fit */
} turbod_image;

/* turbod_image_prepare into a new one. */
turbo_status turbod_image_new(const void *bytes, size_t n, const turbod_image_fit *fit,
                              turbod_image **out, turbo_err *err);
turbod_image *turbod_image_ref(turbod_image *i);
void turbod_image_release(turbod_image *i); /* NULL allowed */

/* Pictures in a prompt: image i stands for the tokens from at on. */
typedef struct turbod_slot {
    int32_t at;
    int32_t reserved;
    turbod_image *image; /* a reference */
} turbod_slot;

typedef struct turbod_slots {
    turbod_slot *v; /* [n], by place */
    size_t n;
} turbod_slots;

/* Adds one, with a reference of its own. False: no memory. */
bool turbod_slots_add(turbod_slots *s, int32_t at, turbod_image *image);
void turbod_slots_free(turbod_slots *s);

/* What a model makes of pictures; n_rows 0: it takes none. */
typedef struct turbod_media_facts {
    turbod_image_fit fit;
    int32_t n_rows; /* tokens that a picture takes in a prompt */
    int32_t placeholder; /* their id */
    uint64_t workspace; /* bytes that making rows of one takes */
} turbod_media_facts;

#endif
