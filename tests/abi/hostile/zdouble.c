/* tests/abi/hostile/zdouble.c: its sampler has the id of the good one, which loads before it. */
#include "common.h"

SAMPLER(one, "good", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("zdouble", list, .min_minor = 0)
