/* core/weights/check.h: the tensor table behind weights, for the files of this folder. */
#ifndef TURBOD_WEIGHTS_CHECK_H
#define TURBOD_WEIGHTS_CHECK_H

#include "weights/index.h"

turbod_index *turbod_weights_index(turbo_weights *w); /* NULL after unmap */

#endif
