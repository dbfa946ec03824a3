/* core/net/lists.h: between params.c and lists.c: fields that hold lists. */
#ifndef TURBOD_LISTS_H
#define TURBOD_LISTS_H

#include "net/gen.h"

typedef struct turbod_params_ctx {
    turbod_exchange *x;
    turbod_params *p;
    bool seed_given, stream_options;
} turbod_params_ctx;

typedef struct field turbod_field;

bool turbod_read_stop(turbod_params_ctx *c, const turbod_field *f, const cJSON *v);
bool turbod_read_bias(turbod_params_ctx *c, const turbod_field *f, const cJSON *v);
bool turbod_read_allowed(turbod_params_ctx *c, const turbod_field *f, const cJSON *v);
bool turbod_read_bad_words(turbod_params_ctx *c, const turbod_field *f, const cJSON *v);
bool turbod_read_stop_ids(turbod_params_ctx *c, const turbod_field *f, const cJSON *v);
/* Adds the chat template's stop tokens and points p->s at the lists. */
bool turbod_lists_settle(turbod_params_ctx *c, int kind);

/* 400: what a field holds and what it should. Always false. */
bool turbod_params_bad(turbod_params_ctx *c, const char *field, const cJSON *v,
                       const char *expected);

#endif
