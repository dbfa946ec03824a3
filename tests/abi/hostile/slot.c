/* tests/abi/hostile/slot.c: a mandatory slot is empty. */
#include "common.h"

SAMPLER(one, "slot", .accept = NULL);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("slot", list, .min_minor = 0)
