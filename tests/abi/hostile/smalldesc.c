/* tests/abi/hostile/smalldesc.c: the descriptor ends before samplers. */
#include "common.h"

SAMPLER(one, "smalldesc", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("smalldesc", list, .size = offsetof(turbo_plugin, samplers))
