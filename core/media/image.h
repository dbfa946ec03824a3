/* core/media/image.h: an image file to the pixels a vision tower takes.
 *
 * The file is decoded and resized in a process of its own, turbo-image, which has limits on memory, time
 * and system calls: whatever a file does to a decoder, it does not do it here. posix_spawn starts it: glibc
 * clones without copying page tables and runs nothing of this process in the child, so it is safe and cheap
 * in a daemon with threads and gigabytes of weights, where fork is neither. Any thread; blocks for up to
 * TURBOD_IMAGE_MS. Must not know: HTTP, models. */
#ifndef TURBOD_IMAGE_H
#define TURBOD_IMAGE_H

#include <stddef.h>

#include "media/wire.h"
#include "turbo/plugin.h"

/* pixels [fit->height, fit->width, 3] RGB, of the caller. *width and *height (may be NULL): of the picture
 * as sent. EINVAL: no image file; EUNSUPPORTED: of a kind that is not taken; EDATA: damaged; ELIMIT: too
 * large or too slow to decode; EIO, ENOMEM, EINTERNAL: not the picture's fault. */
turbo_status turbod_image_prepare(const void *bytes, size_t n, const turbod_image_fit *fit,
                                  uint8_t *pixels, int32_t *width, int32_t *height, turbo_err *err);

#endif
