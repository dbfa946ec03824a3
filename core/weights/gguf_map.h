/* core/weights/gguf_map.h: a GGUF file as the model that it came from: config.json, and tensors by the names
 * and in the order of rows that the model knows. What to make of it says a table of the model's plugin
 * (turbo/ext/gguf.h). Any thread. Must not know: architectures. */
#ifndef TURBOD_GGUF_MAP_H
#define TURBOD_GGUF_MAP_H

#include <cjson/cJSON.h>

#include "turbo/ext/gguf.h"
#include "weights/gguf.h"

/* Where the rows of a tensor lie. */
typedef struct turbod_gguf_rows {
    int32_t n; /* 1, or 3: Q, K and V of a grouped matrix */
    int32_t n_heads, n_kv, head_dim;
    const turbod_st_tensor *part[3];
    bool alternate[3]; /* lanes of a head alternate between its halves */
} turbod_gguf_rows;

/* Row r of the mapped tensor t: its bytes; *from is the tensor of the file that has it. An element of a
 * vector is a row of one. */
const uint8_t *turbod_gguf_row_at(const turbod_st_tensor *t, uint64_t r,
                                  const turbod_st_tensor **from);
/* Tensors of numbers whose rows were brought into order, in memory of their own. */
typedef struct turbod_gguf_ordered {
    turbod_st_tensor t; /* what is handed on */
    const turbod_st_tensor *of;
    struct turbod_gguf_ordered *next;
} turbod_gguf_ordered;

/* *t becomes the same tensor, its rows in order; it lives until drop. Nothing happens where they are, nor to
 * quantised tensors. */
turbo_status turbod_gguf_order(turbod_gguf_ordered **list, const turbod_st_tensor **t,
                               turbo_err *err);
/* As turbod_st_release, also for what order made of a tensor. */
void turbod_gguf_release(const turbod_gguf_ordered *list, const turbod_st_tensor *t);
void turbod_gguf_drop(turbod_gguf_ordered **list);

/* *out: an object, as config.json would be; cJSON_Delete. */
turbo_status turbod_gguf_config(const turbod_gguf *g, const turbo_gguf *table, cJSON **out,
                                turbo_err *err);
/* The name that a tensor of the model has in the file, by the table: in out, and out is returned. NULL: the table
 * does not name it. */
const char *turbod_gguf_file_name(const turbo_gguf *table, const char *name, char out[160]);
/* The tensors under the model's names. Those that the table does not name keep theirs; those that made keys
 * of the config are left out. Names and *rows are the caller's; g must stay. */
turbo_status turbod_gguf_map(const turbod_gguf *g, const turbo_gguf *table,
                             const turbo_model_info *info, turbod_st_tensor **out, size_t *n,
                             turbod_gguf_rows **rows, turbo_err *err);

#endif
