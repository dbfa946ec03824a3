/* core/lua/bind.h: what the bindings of a policy share: sampling parameters by name, and chains.
 * All functions may raise Lua errors; they run under turbod_lua_protect or turbod_lua_call. */
#ifndef TURBOD_LUA_BIND_H
#define TURBOD_LUA_BIND_H

#include "lua/sandbox.h"

typedef enum { PARAM_FLOAT, PARAM_INT, PARAM_SEED } param_kind;

typedef struct param_row {
    const char *name;
    size_t offset; /* in turbo_sample_params */
    param_kind kind;
    double lo, hi; /* the ranges that HTTP bodies have too */
} param_row;

/* NULL when a request has no such parameter. */
const param_row *turbod_param_find(const char *name);
/* Names of all, separated by ", ". */
const char *turbod_param_names(void);
void turbod_param_push(lua_State *L, const turbo_sample_params *p, const param_row *row);
/* Sets it from the value at index `at`, or raises with name, value and range. */
void turbod_param_set(lua_State *L, turbo_sample_params *p, const param_row *row, int at);

int turbod_chain_new(lua_State *L); /* turbo.chain() */
bool turbod_chain_is(lua_State *L, int at);
void turbod_chain_apply(lua_State *L, int at, turbo_sample_params *p);

#endif
