/* plugins/llava/config.c: config.json of LLaVA-1.5, in the layout of transformers and in the original one.
 * Defaults of absent keys are those of LlavaConfig and CLIPVisionConfig of transformers. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "llava.h"

turbo_status llava_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    for (char *p = err->text; *p; p++) /* one line of ASCII, whatever a config holds */
        if (*p < 0x20 || *p > 0x7e)
            *p = '?';
    return s;
}

/* Architectures of the original layout, and what their language half is. */
static const char *const originals[][2] = {
    {"LlavaLlamaForCausalLM", "LlamaForCausalLM"},
    {"LlavaMistralForCausalLM", "MistralForCausalLM"},
};

static const char *original_text(const turbo_host *h, const turbo_config *c)
{
    const char *s = NULL;
    turbo_err err;
    if (h->cfg_str(c, "architectures.0", NULL, &s, &err) || !s)
        return NULL;
    for (size_t i = 0; i < sizeof originals / sizeof originals[0]; i++)
        if (!strcmp(s, originals[i][0]))
            return originals[i][1];
    return NULL;
}

int32_t llava_probe(const turbo_host *h, const turbo_config *c)
{
    const char *s = NULL;
    turbo_err err;
    if (original_text(h, c))
        return 100;
    if (!h->cfg_str(c, "architectures.0", NULL, &s, &err) && s)
        return !strcmp(s, "LlavaForConditionalGeneration") ? 100 : 0;
    s = NULL;
    if (!h->cfg_str(c, "model_type", NULL, &s, &err) && s && !strcmp(s, "llava"))
        return h->cfg_has(c, "text_config") ? 50 : 0;
    return 0;
}

static turbo_status read_act(const turbo_host *h, const turbo_config *c, const char *key,
                             const char *dflt, int32_t *act, turbo_err *err)
{
    static const struct {
        const char *name;
        int32_t act;
    } acts[] = {
        {"quick_gelu", TURBO_ACT_QUICK_GELU},
        {"gelu", TURBO_ACT_GELU_ERF},
        {"gelu_new", TURBO_ACT_GELU_TANH},
        {"gelu_pytorch_tanh", TURBO_ACT_GELU_TANH},
        {"silu", TURBO_ACT_SILU},
    };
    const char *s = NULL;
    turbo_status st = h->cfg_str(c, key, dflt, &s, err);
    if (st)
        return st;
    for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++)
        if (!strcmp(s, acts[i].name)) {
            *act = acts[i].act;
            return TURBO_OK;
        }
    return llava_fail(err, TURBO_EUNSUPPORTED,
                      "config.json: %s is \"%.40s\"; quick_gelu, gelu, gelu_new, "
                      "gelu_pytorch_tanh and silu are computed",
                      key, s);
}

static turbo_status read_vision(const turbo_host *h, const turbo_config *c, llava_vision *v,
                                turbo_err *err)
{
    const struct {
        const char *key;
        int64_t dflt, lo, hi;
        int32_t *to;
    } rows[] = {
        {"hidden_size", 768, 1, 16384, &v->E},
        {"intermediate_size", 3072, 1, 131072, &v->I},
        {"num_hidden_layers", 12, 1, 256, &v->layers},
        {"num_attention_heads", 12, 1, 256, &v->H},
        {"image_size", 224, 1, 2048, &v->image},
        {"patch_size", 32, 1, 256, &v->patch},
    };
    const char *type = NULL;
    turbo_status st = h->cfg_str(c, "model_type", "clip_vision_model", &type, err);
    if (!st && strcmp(type, "clip_vision_model") && strcmp(type, "clip"))
        return llava_fail(err, TURBO_EUNSUPPORTED,
                          "config.json: the vision tower is of type \"%.40s\"; CLIP towers "
                          "(clip_vision_model) are computed",
                          type);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && !st; i++) {
        int64_t n;
        st = h->cfg_int(c, rows[i].key, rows[i].dflt, rows[i].lo, rows[i].hi, &n, err);
        *rows[i].to = (int32_t)n;
    }
    double eps;
    if (!st)
        st = h->cfg_num(c, "layer_norm_eps", 1e-5, 1e-12, 0.1, &eps, err);
    if (!st)
        st = read_act(h, c, "hidden_act", "quick_gelu", &v->act, err);
    if (st)
        return st;
    v->eps = (float)eps;
    v->D = v->E / v->H;
    if (v->E % v->H || v->D > TURBO_FULL_HEAD)
        return llava_fail(err, TURBO_EDATA,
                          "config.json: the tower has %d heads on a hidden_size of %d; heads of "
                          "equal size, at most %d, are needed",
                          v->H, v->E, TURBO_FULL_HEAD);
    if (v->patch > v->image)
        return llava_fail(err, TURBO_EDATA,
                          "config.json: the tower's patch_size %d is larger than its image_size %d",
                          v->patch, v->image);
    v->P = (v->image / v->patch) * (v->image / v->patch);
    return TURBO_OK;
}

/* Which rows go on: layer as hidden_states counts, -1 the last; full: with the class row. */
static turbo_status choose_rows(llava_vision *v, int64_t layer, int full, turbo_err *err)
{
    int64_t used = layer < 0 ? v->layers + 1 + layer : layer;
    if (used < 0 || used > v->layers)
        return llava_fail(err, TURBO_EDATA,
                          "config.json: vision feature layer %lld does not exist in a tower of %d "
                          "layers",
                          (long long)layer, v->layers);
    v->used = (int32_t)used;
    v->first = full ? 0 : 1;
    v->n_rows = v->P + (full ? 1 : 0);
    return TURBO_OK;
}

static turbo_status read_choice(const turbo_host *h, const turbo_config *c, const char *layer_key,
                                const char *rows_key, const char *patch, const char *full,
                                llava_vision *v, turbo_err *err)
{
    int64_t layer;
    const char *s = NULL;
    if (h->cfg_len(c, layer_key) >= 0)
        return llava_fail(err, TURBO_EUNSUPPORTED,
                          "config.json: %s is a list; features of one layer are computed",
                          layer_key);
    turbo_status st = h->cfg_int(c, layer_key, -2, -1024, 1024, &layer, err);
    if (!st)
        st = h->cfg_str(c, rows_key, patch, &s, err);
    if (!st && strcmp(s, patch) && strcmp(s, full))
        st =
            llava_fail(err, TURBO_EDATA, "config.json: %s is \"%.40s\"; \"%s\" or \"%s\" is needed",
                       rows_key, s, patch, full);
    return st ? st : choose_rows(v, layer, !strcmp(s, full), err);
}

/* The language half, from whichever plugin claims it. */
static turbo_status read_text(const turbo_host *h, const turbo_config *c, llava_config *out,
                              turbo_err *err)
{
    const turbo_model_info *m = &out->info;
    turbo_status st = h->model_for(out->text, &out->inner, err);
    if (st)
        return st;
    if (llava_probe(h, out->text))
        return llava_fail(err, TURBO_EUNSUPPORTED,
                          "config.json: the language half is a LLaVA model itself");
    out->info.size = sizeof out->info;
    st = out->inner->describe(h, out->text, &out->info, err);
    if (st)
        return st;
    char arch[sizeof m->arch];
    memcpy(arch, m->arch, sizeof arch);
    snprintf(out->info.arch, sizeof out->info.arch, "LLaVA on %.22s", arch);
    snprintf(out->info.chat, sizeof out->info.chat, "llava-1.5");
    out->info.inner = out->inner;
    /* transformers writes the type of all weights outside the halves */
    const char *type = NULL;
    if (!h->cfg_has(out->text, "torch_dtype") && !h->cfg_has(out->text, "dtype"))
        for (int i = 0; i < 2 && !st && !type; i++)
            st = h->cfg_str(c, i ? "dtype" : "torch_dtype", NULL, &type, err);
    if (!st && type)
        out->info.dtype = !strcmp(type, "float16")    ? TURBO_F16
                          : !strcmp(type, "bfloat16") ? TURBO_BF16
                                                      : TURBO_F32;
    return st;
}

static turbo_status read_hf(const turbo_host *h, const turbo_config *c, llava_config *out,
                            turbo_err *err)
{
    turbo_config *vision = NULL;
    int64_t id;
    turbo_status st = h->cfg_sub(c, "text_config", NULL, &out->text, err);
    if (!st)
        st = read_text(h, c, out, err);
    if (!st && h->cfg_has(c, "vision_config")) {
        st = h->cfg_sub(c, "vision_config", NULL, &vision, err);
        if (!st)
            st = read_vision(h, vision, &out->vision, err);
        if (vision)
            h->json_close(vision);
    } else if (!st) {
        st = llava_fail(err, TURBO_EDATA, "config.json: vision_config is missing");
    }
    if (!st)
        st = read_choice(h, c, "vision_feature_layer", "vision_feature_select_strategy", "default",
                         "full", &out->vision, err);
    if (!st)
        st = h->cfg_int(c, h->cfg_has(c, "image_token_id") ? "image_token_id" : "image_token_index",
                        32000, 0, out->info.vocab - 1, &id, err);
    if (!st)
        st = read_act(h, c, "projector_hidden_act", "gelu", &out->projector_act, err);
    if (!st)
        st = h->cfg_bool(c, "multimodal_projector_bias", 1, &out->projector_bias, err);
    out->projector_layers = 2;
    out->media.placeholder = st ? 0 : (int32_t)id;
    return st;
}

/* "openai/clip-vit-large-patch14-336" names a folder clip-vit-large-patch14-336 near the model. */
static turbo_status open_tower(const turbo_host *h, const turbo_config *c, llava_config *out,
                               turbo_err *err)
{
    const char *name = NULL;
    turbo_status st = h->cfg_str(c, "mm_vision_tower", NULL, &name, err);
    if (st)
        return st;
    if (!name)
        return llava_fail(err, TURBO_EDATA, "config.json: mm_vision_tower is missing");
    const char *slash = strrchr(name, '/');
    snprintf(out->tower_folder, sizeof out->tower_folder, "%s", slash ? slash + 1 : name);
    st = h->cfg_file(c, out->tower_folder, "config.json", &out->tower, err);
    if (st == TURBO_ENOENT)
        return llava_fail(err, TURBO_ENOENT,
                          "the vision tower %.60s is not part of this model; put its folder, named "
                          "%.60s, inside the model folder or beside it",
                          name, out->tower_folder);
    return st;
}

static turbo_status read_original(const turbo_host *h, const turbo_config *c, llava_config *out,
                                  turbo_err *err)
{
    const char *type = NULL;
    int32_t marks;
    int64_t width;
    turbo_status st = h->cfg_sub(c, "", original_text(h, c), &out->text, err);
    if (!st)
        st = read_text(h, c, out, err);
    if (!st)
        st = open_tower(h, c, out, err);
    if (!st && h->cfg_has(out->tower, "vision_config")) {
        turbo_config *vision = NULL;
        st = h->cfg_sub(out->tower, "vision_config", NULL, &vision, err);
        if (!st)
            st = read_vision(h, vision, &out->vision, err);
        if (vision)
            h->json_close(vision);
    } else if (!st) {
        st = read_vision(h, out->tower, &out->vision, err);
    }
    if (!st)
        st = read_choice(h, c, "mm_vision_select_layer", "mm_vision_select_feature", "patch",
                         "cls_patch", &out->vision, err);
    if (!st)
        st = h->cfg_int(c, "mm_hidden_size", out->vision.E, 1, 65536, &width, err);
    if (!st && width != out->vision.E)
        st = llava_fail(err, TURBO_EDATA,
                        "config.json: mm_hidden_size is %lld, the vision tower's hidden_size %d",
                        (long long)width, out->vision.E);
    if (!st)
        st = h->cfg_bool(c, "mm_use_im_start_end", 0, &marks, err);
    if (!st && marks)
        st = llava_fail(err, TURBO_EUNSUPPORTED,
                        "config.json: mm_use_im_start_end is true; models without marks around a "
                        "picture are run");
    if (!st)
        st = h->cfg_str(c, "mm_projector_type", "linear", &type, err);
    if (!st && strcmp(type, "linear") && strcmp(type, "mlp2x_gelu"))
        st = llava_fail(err, TURBO_EUNSUPPORTED,
                        "config.json: mm_projector_type is \"%.40s\"; linear and mlp2x_gelu are "
                        "computed",
                        type);
    if (st)
        return st;
    out->projector_layers = strcmp(type, "linear") ? 2 : 1;
    out->projector_act = TURBO_ACT_GELU_ERF;
    out->projector_bias = 1;
    out->media.placeholder = 0; /* no token of the vocabulary stands for a picture */
    return TURBO_OK;
}

turbo_status llava_read(const turbo_host *h, const turbo_config *c, llava_config *out,
                        turbo_err *err)
{
    memset(out, 0, sizeof *out);
    out->layout = original_text(h, c) ? LLAVA_ORIGINAL : LLAVA_HF;
    turbo_status st =
        out->layout == LLAVA_HF ? read_hf(h, c, out, err) : read_original(h, c, out, err);
    if (!st)
        st = llava_preprocess(h, c, out, err);
    out->media.n_rows = out->vision.n_rows;
    out->media.workspace = llava_tower_workspace(&out->vision, out->info.embed_dim, 4);
    return st;
}

void llava_config_free(const turbo_host *h, llava_config *c)
{
    if (c->text)
        h->json_close(c->text);
    if (c->tower)
        h->json_close(c->tower);
    c->text = c->tower = NULL;
}
