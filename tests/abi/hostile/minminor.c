/* tests/abi/hostile/minminor.c: cannot live with so old a host. */
#include "common.h"

SAMPLER(one, "minminor", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("minminor", list, .min_minor = 77)
