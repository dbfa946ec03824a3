/* tests/abi/hostile/xcrash.c: loads, and crashes when it is used. For the conformance check. */
#include "common.h"

static void crash(const void *p, void *s, const turbo_sample_params *par, int32_t token)
{
    (void)p, (void)par, (void)token;
    *(volatile int *)s = 1;
    *(volatile int *)NULL = 1;
}
SAMPLER(one, "crash", .reserved = 0);
static turbo_sampler_vtbl two;
static const turbo_sampler_vtbl *const list[] = {&two, NULL};
static turbo_status init(const turbo_host *h, turbo_err *err)
{
    (void)h, (void)err;
    return TURBO_OK;
}
static const turbo_plugin plugin = {.magic = TURBO_PLUGIN_MAGIC,
                                    .abi_major = TURBO_ABI_MAJOR,
                                    .abi_minor = TURBO_ABI_MINOR,
                                    .size = sizeof(turbo_plugin),
                                    .id = "xcrash",
                                    .version = "1",
                                    .license = "Apache-2.0",
                                    .build = "test",
                                    .samplers = list,
                                    .init = init};

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    two = one;
    two.accept = crash;
    return &plugin;
}
