/* tests/kern/moe.h: checks of the ops for layers of experts, for the list of test_ops.c. */
#ifndef MOE_H
#define MOE_H

#include "kit.h"

void check_moe(const kit_devices *k, kit_rng *r);
void check_add_gated(const kit_devices *k, kit_rng *r);
void check_head_norm(const kit_devices *k, kit_rng *r);

#endif
