/* tests/abi/hostile/badid.c: an id with capital letters and a blank. */
#include "common.h"

SAMPLER(one, "badid", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("Bad Id", list, .min_minor = 0)
