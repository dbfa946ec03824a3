/* tests/kern/picture.h: checks of the ops for towers that look at whole pictures, for the list of
 * test_ops.c. */
#ifndef PICTURE_H
#define PICTURE_H

#include "kit.h"

void check_layernorm(const kit_devices *k, kit_rng *r);
void check_mlp(const kit_devices *k, kit_rng *r);
void check_attention_full(const kit_devices *k, kit_rng *r);
void check_patches(const kit_devices *k, kit_rng *r);
void check_position_rows(const kit_devices *k, kit_rng *r);
void check_add(const kit_devices *k, kit_rng *r);

#endif
