/* tests/unit/tiny_model.h: writes small InternLM2 checkpoints whose weights follow a formula. */
#ifndef TESTS_TINY_MODEL_H
#define TESTS_TINY_MODEL_H

#include <stdint.h>

typedef struct tiny_model {
    int32_t vocab, embed, layers, heads, kv_heads, inner, max_position;
    int bf16;            /* store bf16 instead of f32 */
    int random;          /* 0: the published val() formula; else a seed */
    int bias, tied;
    const char *extra;   /* more JSON members of config.json, "" for none */
} tiny_model;

/* Makes a temporary folder with config.json and model.safetensors; its name goes to folder [64]. */
void tiny_model_write(const tiny_model *m, char *folder);
/* Makes a weight of the first key of layer 0 so large, in a folder of f32 weights, that every token's key holds an
 * infinity. */
void tiny_model_overflow(const tiny_model *m, const char *folder);
void tiny_model_remove(const char *folder);

#endif
