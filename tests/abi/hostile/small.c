/* tests/abi/hostile/small.c: the sampler table ends before sample(). */
#include "common.h"

SAMPLER(one, "small", .size = offsetof(turbo_sampler_vtbl, sample));
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("small", list, .min_minor = 0)
