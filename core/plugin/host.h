/* core/plugin/host.h: the one turbo_host table that every plugin gets. Constant; any thread. */
#ifndef TURBOD_HOST_H
#define TURBOD_HOST_H

#include "turbo/plugin.h"

const turbo_host *turbod_host_table(void);

#endif
