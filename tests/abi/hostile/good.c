/* tests/abi/hostile/good.c: nothing is wrong with this one. */
#include "common.h"

SAMPLER(one, "good", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("good", list, .min_minor = 0)
