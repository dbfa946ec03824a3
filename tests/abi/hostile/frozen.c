/* tests/abi/hostile/frozen.c: built with the frozen header of ABI 1.0; must load for ever. */
#define PLUGIN_HEADER "../frozen/plugin-1.0.h"
#include "common.h"

SAMPLER(one, "frozen", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("frozen-1-0", list, .min_minor = 0)
