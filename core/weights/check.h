/* core/weights/check.h: the tensor table behind weights, for the files of this folder. */
#ifndef TURBOD_WEIGHTS_CHECK_H
#define TURBOD_WEIGHTS_CHECK_H

#include "weights/index.h"
#include "weights/quant/quant.h"

turbod_index *turbod_weights_index(turbo_weights *w); /* NULL after unmap */
const turbod_quant *turbod_weights_quant(const turbo_weights *w);
bool turbod_weights_reads(const turbo_weights *w); /* there is a device: data will be read */
bool turbod_weights_reads_all(const turbo_weights *w); /* also scales between codes */

#endif
