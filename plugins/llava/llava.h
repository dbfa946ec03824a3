/* plugins/llava/llava.h: what the files of this plugin share. */
#ifndef LLAVA_H
#define LLAVA_H

#include "turbo/ext/media.h"
#include "turbo/plugin.h"

enum { LLAVA_HF, LLAVA_ORIGINAL };

/* A CLIP vision tower (reference: Radford et al., arXiv 2103.00020; sheet 4.1). */
typedef struct llava_vision {
    int32_t E, I, H, D; /* width, width of the MLP, heads, their size */
    int32_t layers, used; /* of the tower; how many are computed */
    int32_t image, patch; /* pixels a side */
    int32_t P, n_rows, first; /* patches, rows that go on, and the first of them */
    int32_t act; /* TURBO_ACT_* */
    float eps;
} llava_vision;

typedef struct llava_config {
    int32_t layout;
    turbo_model_info info; /* of the whole */
    const turbo_model_vtbl *inner;
    turbo_config *text; /* part of the config it was read from */
    turbo_config *tower; /* config.json of the tower's own folder, or NULL */
    char tower_folder[256]; /* "": the tensors lie in the model's folder */
    llava_vision vision;
    turbo_media_info media;
    int32_t projector_layers; /* 1 or 2 */
    int32_t projector_act;
    int32_t projector_bias;
    float value[3 * 256]; /* what each level of each colour becomes */
} llava_config;

/* The names a tensor of the tower may have in a folder, most frequent first. */
extern const char *const llava_tower_prefixes[];

turbo_status llava_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int32_t llava_probe(const turbo_host *h, const turbo_config *c);
/* llava_config_free also after a failure. */
turbo_status llava_read(const turbo_host *h, const turbo_config *c, llava_config *out,
                        turbo_err *err);
void llava_config_free(const turbo_host *h, llava_config *c);
/* preprocess.c: fills media (but n_rows and placeholder) and value. */
turbo_status llava_preprocess(const turbo_host *h, const turbo_config *c, llava_config *out,
                              turbo_err *err);
turbo_status llava_expect(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                          void *ctx, turbo_err *err);

/* vision.c: tower and projector. */
typedef struct llava_tower llava_tower;
turbo_status llava_tower_open(const turbo_host *h, const llava_config *c, turbo_weights *w,
                              const turbo_ops *ops, llava_tower **out, turbo_err *err);
void llava_tower_close(llava_tower *t);
uint64_t llava_tower_workspace(const llava_vision *v, int32_t width, int32_t act_bytes);
turbo_status llava_tower_embed(const llava_tower *t, turbo_exec *x, const uint8_t *pixels,
                               void *workspace, uint64_t bytes, void *rows, turbo_err *err);

#endif
