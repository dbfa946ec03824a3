/* tests/abi/hostile/magic.c: the magic is another. */
#include "common.h"

SAMPLER(one, "magic", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("magic", list, .magic = 0x12345678u)
