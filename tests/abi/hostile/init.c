/* tests/abi/hostile/init.c: init fails. */
#include <stdio.h>

#include "common.h"

static turbo_status init(const turbo_host *h, turbo_err *err)
{
    (void)h;
    snprintf(err->text, sizeof err->text, "no frobnicator on this machine");
    return TURBO_EUNSUPPORTED;
}
SAMPLER(one, "init", .reserved = 0);
static const turbo_sampler_vtbl *const list[] = {&one, NULL};
PLUGIN("init", list, .init = init)
