/* tests/abi/hostile/nothing.c: offers nothing. */
#include "common.h"

PLUGIN("nothing", NULL, .min_minor = 0)
