/* tests/abi/hostile/major.c: built for the next major ABI. */
#include "common.h"

SAMPLER(one, "major", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("major", list, .abi_major = TURBO_ABI_MAJOR + 1)
