/* plugins/internlm2/internlm2.h: what config.c reads and model.c runs. */
#ifndef INTERNLM2_H
#define INTERNLM2_H

#include "turbo/plugin.h"

typedef struct internlm2_config {
    turbo_model_info info;
    turbo_rope_spec rope;
    float eps;
    int32_t bias; /* wqkv and wo carry a bias */
    int32_t tied; /* the head is the embedding */
} internlm2_config;

int32_t internlm2_probe(const turbo_host *h, const turbo_config *c);
turbo_status internlm2_read(const turbo_host *h, const turbo_config *c, internlm2_config *out,
                            turbo_err *err);
turbo_status internlm2_expect(const turbo_host *h, const turbo_config *c, turbo_expect_fn emit,
                              void *ctx, turbo_err *err);
turbo_status internlm2_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
