/* tests/abi/hostile/decline.c: declines every host. */
#include <stddef.h>
#include "turbo/plugin.h"

const turbo_plugin *turbo_plugin_entry(uint32_t host_abi)
{
    (void)host_abi;
    return NULL;
}
