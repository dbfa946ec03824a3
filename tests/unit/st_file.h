/* tests/unit/st_file.h: writes model.safetensors tensor by tensor. One thread. */
#ifndef TESTS_ST_FILE_H
#define TESTS_ST_FILE_H

#include <stddef.h>
#include <stdint.h>

typedef struct st_file {
    char *header;
    uint8_t *data;
    size_t header_len, header_cap, data_len, data_cap;
} st_file;

/* d1 < 0: one dimension, d0 < 0 too: none; d2 in use when above 0. */
void st_add(st_file *f, const char *name, const char *dtype, int64_t d0, int64_t d1, int64_t d2,
            const void *data, size_t bytes);
/* Writes folder/model.safetensors and forgets everything. */
void st_write(st_file *f, const char *folder);

#endif
