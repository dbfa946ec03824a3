/* tests/abi/hostile/missing.c: calls a function that nobody defines. */
#include "common.h"

turbo_status nobody_defines_this(const turbo_host *h, turbo_err *err);
SAMPLER(one, "missing", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("missing", list, .init = nobody_defines_this)
