/* kernels/bench/grids.h: a model's linear layers in 8 and 4 bits. */
#ifndef BENCH_GRIDS_H
#define BENCH_GRIDS_H

#include "measure.h"

/* Decode of one row and of eight over all linear layers of the 1.8B shape with weights of `bits`, against
 * the read bandwidth of the same rounds; prefill of 512 rows over one layer against the peak of the
 * instructions used. layers 1..24. */
void bench_grids(turbok_device *d, const turbok_reader *r, int bits, int layers, int rounds,
                 bool json);

#endif
