/* tests/model/quant_folder.h: model folders with random numbers, their layers quantised in a format, and the
 * same folders with what those codes stand for. One thread. */
#ifndef TESTS_QUANT_FOLDER_H
#define TESTS_QUANT_FOLDER_H

#include "plugin/registry.h"

typedef struct quant_case {
    const char *name;
    const char *quantization_config; /* JSON */
    /* Adds the tensors of base.weight [rows,in]. */
    void (*add)(void *file, const char *base, int64_t rows, int64_t in);
} quant_case;

extern const quant_case quant_cases[];
extern const int n_quant_cases;

/* config: members of config.json without braces. Both folders are made; names go to quantised, plain [64]. */
void quant_folders(const turbod_registry *registry, const char *config, const quant_case *c,
                   char *quantised, char *plain);
void quant_folder_remove(const char *folder);

#endif
