/* plugins/llava/preprocess.c: how a picture becomes the numbers the tower was trained on: the image
 * processor's file, and image_aspect_ratio of the original layout (sheet 4.2). */
#include <stdio.h>
#include <string.h>

#include "llava.h"

/* CLIP's own, when a folder says nothing. */
static const double clip_mean[3] = {0.48145466, 0.4578275, 0.40821073};
static const double clip_std[3] = {0.26862954, 0.26130258, 0.27577711};

/* {"height": a, "width": b}, or one number for both; *w = *h = 0 when the key is absent. */
static turbo_status read_size(const turbo_host *h, const turbo_config *c, const char *key,
                              int64_t *width, int64_t *height, turbo_err *err)
{
    char path[64];
    turbo_status st;
    *width = *height = 0;
    if (h->cfg_len(c, key) < 0) {
        st = h->cfg_int(c, key, 0, 1, 4096, width, err);
        *height = *width;
        return st;
    }
    snprintf(path, sizeof path, "%s.width", key);
    st = h->cfg_int(c, path, 0, 1, 4096, width, err);
    snprintf(path, sizeof path, "%s.height", key);
    return st ? st : h->cfg_int(c, path, 0, 1, 4096, height, err);
}

static turbo_status read_shape(const turbo_host *h, const turbo_config *c, int32_t side,
                               turbo_media_info *m, turbo_err *err)
{
    int64_t edge, w, t, width, height;
    int32_t crop, resize;
    turbo_status st = h->cfg_int(c, "size.shortest_edge", 0, 1, 4096, &edge, err);
    if (!st)
        st = read_size(h, c, "size", &w, &t, err);
    if (!st)
        st = read_size(h, c, "crop_size", &width, &height, err);
    if (!st)
        st = h->cfg_bool(c, "do_center_crop", 1, &crop, err);
    if (!st)
        st = h->cfg_bool(c, "do_resize", 1, &resize, err);
    if (st)
        return st;
    if (!edge && h->cfg_len(c, "size") < 0) /* one number means the shortest edge */
        edge = w ? w : side;
    m->fit = edge ? TURBO_FIT_CROP : TURBO_FIT_STRETCH;
    m->edge = (int32_t)edge;
    m->width = (int32_t)(edge ? width ? width : side : w);
    m->height = (int32_t)(edge ? height ? height : side : t);
    if (m->width != side || m->height != side || !resize || (edge && (!crop || edge < side)))
        return llava_fail(err, TURBO_EUNSUPPORTED,
                          "preprocessor_config.json: pictures become %d x %d pixels (shortest edge "
                          "%d), the vision tower takes %d x %d",
                          m->width, m->height, m->edge, side, side);
    return TURBO_OK;
}

static turbo_status read_colours(const turbo_host *h, const turbo_config *c, llava_config *out,
                                 turbo_err *err)
{
    double mean[3], dev[3], factor;
    char path[32];
    int64_t filter;
    int32_t rescale, normalise;
    turbo_status st = h->cfg_num(c, "rescale_factor", 1.0 / 255, 1e-6, 1, &factor, err);
    for (int i = 0; i < 3 && !st; i++) {
        snprintf(path, sizeof path, "image_mean.%d", i);
        st = h->cfg_num(c, path, clip_mean[i], -10, 10, &mean[i], err);
        snprintf(path, sizeof path, "image_std.%d", i);
        st = st ? st : h->cfg_num(c, path, clip_std[i], 1e-3, 10, &dev[i], err);
    }
    if (!st)
        st = h->cfg_int(c, "resample", 3, 0, 5, &filter, err);
    if (!st)
        st = h->cfg_bool(c, "do_rescale", 1, &rescale, err);
    if (!st)
        st = h->cfg_bool(c, "do_normalize", 1, &normalise, err);
    if (st)
        return st;
    if (filter != 3)
        return llava_fail(err, TURBO_EUNSUPPORTED,
                          "preprocessor_config.json: resample is %lld; 3, bicubic, is computed",
                          (long long)filter);
    for (int i = 0; i < 3; i++) {
        float m = normalise ? (float)mean[i] : 0, d = normalise ? (float)dev[i] : 1;
        double pad = mean[i] * 255;
        out->media.pad[i] = (uint8_t)(pad < 0 ? 0 : pad > 255 ? 255 : pad);
        for (int v = 0; v < 256; v++)
            out->value[i * 256 + v] = ((float)(rescale ? v * factor : v) - m) / d;
    }
    return TURBO_OK;
}

/* The image processor's settings; *own is to be closed. */
static turbo_status find_file(const turbo_host *h, const turbo_config *c, const char *folder,
                              turbo_config **own, turbo_config **part, turbo_err *err)
{
    turbo_status st = h->cfg_file(c, folder, "preprocessor_config.json", own, err);
    if (st != TURBO_ENOENT)
        return st;
    st = h->cfg_file(c, folder, "processor_config.json", own, err);
    if (!st && h->cfg_has(*own, "image_processor"))
        st = h->cfg_sub(*own, "image_processor", NULL, part, err);
    return st;
}

turbo_status llava_preprocess(const turbo_host *h, const turbo_config *c, llava_config *out,
                              turbo_err *err)
{
    turbo_config *own = NULL, *part = NULL, *none = NULL;
    const char *aspect = NULL;
    turbo_status st = find_file(h, c, out->tower_folder, &own, &part, err);
    if (st == TURBO_ENOENT) /* what is absent everywhere has the defaults of CLIP */
        st = h->cfg_sub(c, "vision_config", NULL, &none, err);
    if (st == TURBO_ENOENT)
        st = h->cfg_sub(out->tower, "", NULL, &none, err);
    const turbo_config *from = part ? part : own ? own : none;
    if (!st)
        st = read_shape(h, from, out->vision.image, &out->media, err);
    if (!st)
        st = read_colours(h, from, out, err);
    if (!st && out->layout == LLAVA_ORIGINAL)
        st = h->cfg_str(c, "image_aspect_ratio", "square", &aspect, err);
    if (!st && aspect && !strncmp(aspect, "anyres", 6))
        st = llava_fail(err, TURBO_EUNSUPPORTED,
                        "config.json: image_aspect_ratio is \"%.40s\", which cuts a picture into "
                        "tiles; \"pad\" and \"square\" are run",
                        aspect);
    if (!st && aspect && !strcmp(aspect, "pad") && out->media.fit == TURBO_FIT_CROP)
        out->media.fit = TURBO_FIT_PAD;
    turbo_config *close[] = {part, own, none};
    for (int i = 0; i < 3; i++)
        if (close[i])
            h->json_close(close[i]);
    return st;
}
