/* turbo/ext/gguf.h: the extension "turbo.gguf/1": what a GGUF file means to a model.
 *
 * A GGUF file (version 3) holds metadata, a tokenizer and tensors under names of its own. A plugin whose
 * model may come from one returns a NULL-terminated list of turbo_gguf tables from
 * turbo_plugin.extension(TURBO_GGUF_ID). The host reads the file, takes the table whose arch is the file's
 * general.architecture, and makes of both what the model knows: a config.json and tensors by their usual
 * names, rows in their usual order. From there on nothing differs from a model folder.
 *
 * Plugins that read files of a model folder, such as tokenizers, get the path of the GGUF file as the folder.
 * The one file in it is TURBO_GGUF_HEADER: the beginning of the file, up to the data of its tensors, checked.
 *
 * Growth, ownership, errors and threads as in turbo/plugin.h. */
#ifndef TURBO_EXT_GGUF_H
#define TURBO_EXT_GGUF_H

#include "turbo/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TURBO_GGUF_ID "turbo.gguf/1"
#define TURBO_GGUF_HEADER "header.gguf"

/* Rows of keys: `from` is a metadata key, ".x" means "<arch>.x"; `to` is a dotted path of config.json. A path
 * that has a value already keeps it (null is no value), and so does one whose object does not exist. */
enum {
    TURBO_GGUF_KEY = 0, /* the value of the key                                                   */
    TURBO_GGUF_OPEN =
        1, /* the same, and makes the object; a value equal to arg counts as absent  */
    TURBO_GGUF_SAME =
        2, /* the same as KEY; a value that is there already must be equal           */
    TURBO_GGUF_MUST =
        3, /* the key is absent or has the number arg: others are not computed       */
    TURBO_GGUF_ROWS =
        4, /* rows of the tensor `from`                                              */
    TURBO_GGUF_HAS = 5, /* true or false: the tensor `from` is in the file                        */
    TURBO_GGUF_LACKS =
        6, /* true or false: it is not                                               */
    TURBO_GGUF_BANDS =
        7, /* the tensor `from` holds the divisors of TURBO_ROPE_BANDS: an object with
                           rope_type arg and the four numbers they were made from                 */
    TURBO_GGUF_NEED =
        8, /* the same as KEY; a file without the key is refused                     */
};

/* Rows of tensors: `from` and `to` are names without ".weight" and ".bias"; '#' is the number of a layer.
 * Rows of Q and K are those of heads whose lanes alternate between the halves: row 2i+p of a head of D rows
 * is row p*D/2+i. */
enum {
    TURBO_GGUF_PLAIN = 0,
    TURBO_GGUF_Q = 1, /* n_heads heads */
    TURBO_GGUF_K = 2, /* n_kv heads */
    /* Parts of one matrix in the order TURBO_QKV_GROUPED; three rows with one `to`. Q and K alternate. */
    TURBO_GGUF_GROUP_Q = 3,
    TURBO_GGUF_GROUP_K = 4,
    TURBO_GGUF_GROUP_V = 5,
};

typedef struct turbo_gguf_row {
    const char *from; /* NULL ends a list */
    const char *to;
    const char *arg; /* or NULL */
    int32_t rule;
    int32_t reserved;
} turbo_gguf_row;

typedef struct turbo_gguf {
    uint32_t size;
    uint32_t reserved;
    const char *arch; /* general.architecture */
    const char *config; /* a JSON object: config.json before the first row */
    const turbo_gguf_row *keys; /* applied in this order */
    const turbo_gguf_row *tensors;
} turbo_gguf;

#ifdef __cplusplus
}
#endif
#endif
