/* tests/abi/hostile/twins.c: two tables with one id. */
#include "common.h"

SAMPLER(one, "twin", .reserved = 0);
SAMPLER(two, "twin", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, &two, NULL};
PLUGIN("twins", list, .min_minor = 0)
