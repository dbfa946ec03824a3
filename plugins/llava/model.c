/* plugins/llava/model.c: LLaVA-1.5 (Liu et al., arXiv 2310.03744): a CLIP tower and a projector before a language
 * model, which is opened through the host and belongs to another plugin. Pictures reach forward() as rows
 * in the batch, so the language half computes them as it computes tokens. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "llava.h"

typedef struct model {
    const turbo_model_vtbl *inner;
    void *text;
    llava_tower *tower;
} model;

static turbo_status describe(const turbo_host *h, const turbo_config *c, turbo_model_info *out,
                             turbo_err *err)
{
    llava_config cfg;
    turbo_status st = llava_read(h, c, &cfg, err);
    if (!st) { /* a host of another header has another size */
        uint32_t size = out->size ? out->size : (uint32_t)sizeof *out;
        memcpy(out, &cfg.info, size < sizeof *out ? size : sizeof *out);
        out->size = size;
    }
    llava_config_free(h, &cfg);
    return st;
}

static uint64_t workspace(const turbo_model_info *info, int32_t max_T, int32_t max_R,
                          int32_t act_bytes)
{
    return info->inner ? info->inner->workspace(info, max_T, max_R, act_bytes) : 0;
}

/* The language half, whose tensors have other names in the whole. */
static turbo_status open_text(const turbo_host *h, const llava_config *cfg, turbo_weights *w,
                              const turbo_ops *ops, model *m, turbo_err *err)
{
    static const char *const all[] = {""}, *const under[] = {"language_model."};
    static const char *const body[] = {"model."}, *const renewed[] = {"model.language_model."};
    turbo_status st = TURBO_OK;
    if (cfg->layout == LLAVA_HF) {
        bool old = h->has_tensor(w, "language_model.model.embed_tokens.weight");
        st = h->weights_view(w, old ? all : body, old ? under : renewed, 1, &w, err);
    }
    return st ? st : m->inner->open(h, cfg->text, w, ops, &m->text, err);
}

static void close_model(void *p)
{
    model *m = p;
    if (!m)
        return;
    if (m->text)
        m->inner->close(m->text);
    llava_tower_close(m->tower);
    free(m);
}

static turbo_status open_model(const turbo_host *h, const turbo_config *c, turbo_weights *w,
                               const turbo_ops *ops, void **out, turbo_err *err)
{
    llava_config cfg;
    model *m = calloc(1, sizeof *m);
    turbo_status st = llava_read(h, c, &cfg, err);
    if (!st && !m)
        st = llava_fail(err, TURBO_ENOMEM, "no memory for a model");
    if (!st) {
        m->inner = cfg.inner;
        st = llava_tower_open(h, &cfg, w, ops, &m->tower, err);
    }
    if (!st)
        st = open_text(h, &cfg, w, ops, m, err);
    llava_config_free(h, &cfg);
    if (st)
        close_model(m);
    else
        *out = m;
    return st;
}

static turbo_status forward(void *p, turbo_exec *x, const turbo_batch *b, float *logits,
                            turbo_err *err)
{
    const model *m = p;
    return m->inner->forward(m->text, x, b, logits, err);
}

/* ---- turbo.media/1 ---------------------------------------------------------------------------- */

static turbo_status media_describe(const turbo_host *h, const turbo_config *c,
                                   turbo_media_info *out, turbo_err *err)
{
    llava_config cfg;
    turbo_status st = llava_read(h, c, &cfg, err);
    if (!st) {
        uint32_t size = out->size ? out->size : (uint32_t)sizeof *out;
        memcpy(out, &cfg.media, size < sizeof *out ? size : sizeof *out);
        out->size = size;
    }
    llava_config_free(h, &cfg);
    return st;
}

static turbo_status media_embed(void *p, turbo_exec *x, const uint8_t *pixels, void *workspace_mem,
                                uint64_t bytes, void *rows, turbo_err *err)
{
    const model *m = p;
    return llava_tower_embed(m->tower, x, pixels, workspace_mem, bytes, rows, err);
}

static const turbo_media_vtbl media = {
    .size = sizeof media,
    .describe = media_describe,
    .embed = media_embed,
};

static const void *extension(const char *id)
{
    return strcmp(id, TURBO_MEDIA_ID) ? NULL : &media;
}

static const turbo_model_vtbl llava_vtbl = {
    .size = sizeof llava_vtbl,
    .id = "llava",
    .probe = llava_probe,
    .describe = describe,
    .expect = llava_expect,
    .workspace = workspace,
    .open = open_model,
    .close = close_model,
    .forward = forward,
};

static const turbo_model_vtbl *const models[] = {&llava_vtbl, NULL};

static const turbo_plugin plugin = {
    .magic = TURBO_PLUGIN_MAGIC,
    .abi_major = TURBO_ABI_MAJOR,
    .abi_minor = TURBO_ABI_MINOR,
    .size = sizeof plugin,
    .min_minor = 1,
    .id = "llava",
    .version = "1.0",
    .license = "Apache-2.0",
    .build = "gcc " __VERSION__,
    .models = models,
    .extension = extension,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    return (host_abi & 0xffff) >= 1 ? &plugin : NULL;
}
