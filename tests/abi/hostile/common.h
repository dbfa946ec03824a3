/* tests/abi/hostile/common.h: a plugin that would load, for the files beside it to spoil in one
 * place. Its sampler picks the first token; nothing here is meant to be sampled with. */
#ifndef HOSTILE_COMMON_H
#define HOSTILE_COMMON_H

#include <stddef.h>
#include <stdlib.h>

#ifndef PLUGIN_HEADER
#define PLUGIN_HEADER "turbo/plugin.h"
#endif
#include PLUGIN_HEADER

static turbo_status h_open(const turbo_host *h, int32_t vocab, void **out, turbo_err *err)
{
    (void)h, (void)vocab, (void)err;
    *out = malloc(1);
    return *out ? TURBO_OK : TURBO_ENOMEM;
}
static void h_close(void *p)
{
    free(p);
}
static uint64_t h_state(const void *p, int32_t n)
{
    (void)p, (void)n;
    return 8;
}
static turbo_status h_begin(const void *p, void *s, int32_t max, const turbo_sample_params *par,
                            const int32_t *prompt, int32_t n, turbo_err *err)
{
    (void)p, (void)s, (void)max, (void)par, (void)prompt, (void)n, (void)err;
    return TURBO_OK;
}
static turbo_status h_sample(void *p, turbo_sample_row *rows, int32_t n, turbo_err *err)
{
    (void)p, (void)err;
    for (int32_t i = 0; i < n; i++) {
        rows[i].token = 0;
        rows[i].status = TURBO_OK;
    }
    return TURBO_OK;
}
static void h_accept(const void *p, void *s, const turbo_sample_params *par, int32_t token)
{
    (void)p, (void)s, (void)par, (void)token;
}

#define SAMPLER(name, its_id, ...)                                                                 \
    static const turbo_sampler_vtbl name = {.size = sizeof(turbo_sampler_vtbl),                    \
                                            .id = its_id,                                          \
                                            .open = h_open,                                        \
                                            .close = h_close,                                      \
                                            .state_bytes = h_state,                                \
                                            .begin = h_begin,                                      \
                                            .sample = h_sample,                                    \
                                            .accept = h_accept,                                    \
                                            __VA_ARGS__}

#define PLUGIN(its_id, list, ...)                                                                  \
    static const turbo_plugin plugin = {.magic = TURBO_PLUGIN_MAGIC,                               \
                                        .abi_major = TURBO_ABI_MAJOR,                              \
                                        .abi_minor = TURBO_ABI_MINOR,                              \
                                        .size = sizeof(turbo_plugin),                              \
                                        .id = its_id,                                              \
                                        .version = "1",                                            \
                                        .license = "Apache-2.0",                                   \
                                        .build = "test",                                           \
                                        .samplers = list,                                          \
                                        __VA_ARGS__};                                              \
    const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)                                      \
    {                                                                                              \
        (void)host_abi;                                                                            \
        return &plugin;                                                                            \
    }

#endif
