/* tests/abi/hostile/needs.c: needs a feature that no host has yet. */
#include "common.h"

SAMPLER(one, "needs", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("needs", list, .needs = UINT64_C(1) << 40)
