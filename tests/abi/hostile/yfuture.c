/* tests/abi/hostile/yfuture.c: built with a later header: bigger structs, which the host cuts to
 * its own size. */
#include "common.h"

typedef struct later_sampler {
    turbo_sampler_vtbl now;
    void (*added)(void);
} later_sampler;
typedef struct later_plugin {
    turbo_plugin now;
    void (*added)(void);
} later_plugin;
static void added(void)
{
}
static const later_sampler one = {
    .now = {.size = sizeof(later_sampler),
            .id = "future",
            .open = h_open,
            .close = h_close,
            .state_bytes = h_state,
            .begin = h_begin,
            .sample = h_sample,
            .accept = h_accept},
    .added = added,
};
static const turbo_sampler_vtbl *const list[] = {&one.now, NULL};
static const later_plugin plugin = {
    .now = {.magic = TURBO_PLUGIN_MAGIC,
            .abi_major = TURBO_ABI_MAJOR,
            .abi_minor = TURBO_ABI_MINOR + 1,
            .size = sizeof(later_plugin),
            .id = "future",
            .version = "1",
            .license = "Apache-2.0",
            .build = "test",
            .samplers = list},
    .added = added,
};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return &plugin.now;
}
