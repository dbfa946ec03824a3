/* turbo/ext/media.h: the extension "turbo.media/1": pictures to rows that stand among the tokens of a prompt.
 *
 * A plugin whose model looks at pictures returns a turbo_media_vtbl from turbo_plugin.extension(TURBO_MEDIA_ID).
 * The host decodes and resizes a picture as turbo_media_info says, puts n_rows placeholders into the prompt,
 * and hands the rows to forward() as turbo_batch.embed_rows. The same pixels give the same rows: the host
 * keeps them and finds prompts that hold them in its prefix cache. Growth, ownership, errors and threads as
 * in turbo/plugin.h. */
#ifndef TURBO_EXT_MEDIA_H
#define TURBO_EXT_MEDIA_H

#include "turbo/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TURBO_MEDIA_ID "turbo.media/1"

/* How a picture becomes width * height pixels. Resizing is bicubic, with the bits of Pillow. */
enum {
    TURBO_FIT_CROP = 0, /* the shorter side becomes edge, then the centre is cut out          */
    TURBO_FIT_PAD = 1, /* first widened to a square of the colour pad, then as CROP          */
    TURBO_FIT_STRETCH = 2, /* resized to width * height, whatever its shape                      */
};

typedef struct turbo_media_info {
    uint32_t size;
    int32_t fit; /* TURBO_FIT_*                                                           */
    int32_t edge; /* CROP, PAD: at least width and height                                  */
    int32_t width; /* 1..4096                                                               */
    int32_t height; /* 1..4096                                                               */
    uint8_t pad[4]; /* RGB, 0                                                                */
    int32_t n_rows; /* rows one picture becomes, 1..65536                                    */
    int32_t placeholder; /* id, 0..V-1, that stands for each row in a prompt; never computed      */
    uint64_t workspace; /* bytes of scratch that embed() needs where activations take 4 bytes    */
} turbo_media_info;

typedef struct turbo_media_vtbl {
    uint32_t size;
    uint32_t reserved;
    /* What the model wants, from config.json and its neighbours. [any] */
    turbo_status (*describe)(const turbo_host *h, const turbo_config *c, turbo_media_info *out,
                             turbo_err *err);
    /* One picture. pixels [height,width,3] RGB, host memory; workspace 64-byte aligned, at least what
     * info asks for; rows [n_rows,E] act. model: of the model's open(). Neither allocates nor
     * synchronises. [engine] */
    turbo_status (*embed)(void *model, turbo_exec *x, const uint8_t *pixels, void *workspace,
                          uint64_t workspace_bytes, void *rows, turbo_err *err);
} turbo_media_vtbl;

#ifdef __cplusplus
}
#endif
#endif
