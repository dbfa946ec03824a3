/* core/lua/bind.h: what the bindings of a policy share: sampling parameters by name, token sets, steps of
 * a sampling program, chains. All functions may raise Lua errors; they run under turbod_lua_protect or
 * turbod_lua_call. */
#ifndef TURBOD_LUA_BIND_H
#define TURBOD_LUA_BIND_H

#include "lua/policy.h"
#include "lua/sandbox.h"

/* ---- params.c ------------------------------------------------------------------------------------ */

typedef enum { PARAM_FLOAT, PARAM_INT, PARAM_SEED } param_kind;

typedef struct param_row {
    const char *name;
    size_t offset; /* in turbo_sample_params */
    param_kind kind;
    double lo, hi; /* the ranges that HTTP bodies have too */
} param_row;

/* NULL when a request has no such parameter. */
const param_row *turbod_param_find(const char *name);
size_t turbod_param_index(const param_row *row);
/* Names of all, separated by ", ". */
const char *turbod_param_names(void);
void turbod_param_push(lua_State *L, const turbo_sample_params *p, const param_row *row);
/* Sets it from the value at index `at`, or raises with name, value and range. */
void turbod_param_set(lua_State *L, turbo_sample_params *p, const param_row *row, int at);
/* Copies the parameters whose bit (turbod_param_index) is set. */
void turbod_param_copy(turbo_sample_params *to, const turbo_sample_params *from, uint32_t which);

/* ---- tokens.c: sets of token ids, immutable ---------------------------------------------------------- */

typedef struct token_set {
    int32_t n;
    int32_t ids[]; /* [n] ascending, each once */
} token_set;

/* The tokenizer that scripts of this state know; NULL: none. */
const turbod_policy_env *turbod_env_of(lua_State *L);
/* turbo.tokens, a table that can be called. */
void turbod_tokens_push(lua_State *L);
/* turbo.encode(text): its ids in order, a list. */
int turbod_tokens_encode(lua_State *L);
/* The set at index `at`: a set, an id, a name of a special token, or a list of these, which is replaced on
 * the stack by the set that it makes. */
const token_set *turbod_tokens_check(lua_State *L, int at);

/* ---- steps.c: one step of a sampling program ------------------------------------------------------------- */

#define MAX_STEPS 32 /* of a chain or a tape; a chain and a tape together fit the sampler's 64 */
#define STD_STEPS                                                                                  \
    5 /* the first kinds, TURBO_STEP_PENALIZE to _MIN_P: those that are parameters too */

/* The kind that a method is called by; 0: none. */
int turbod_step_find(const char *method);
const char *turbod_step_name(int kind);
const char *turbod_step_names(void);
/* Reads the arguments from index 2 on. Token sets that the step points to stand at the index that is
 * returned, 0: none; the caller keeps them alive. */
int turbod_step_read(lua_State *L, int kind, turbo_sample_step *step);

/* ---- chain.c ---------------------------------------------------------------------------------------------- */

typedef struct chain {
    uint32_t params; /* bit i: parameter i is set by a step */
    int32_t n;
    bool plain; /* the parameters alone say it: standard steps in the sampler's own order */
    turbo_sample_params values;
    turbo_sample_step steps[MAX_STEPS];
} chain;

int turbod_chain_new(lua_State *L); /* turbo.chain() */
const chain *turbod_chain_get(lua_State *L, int at); /* NULL: no chain stands there */
const chain *turbod_chain_check(lua_State *L, int at); /* raises */

/* A program in one block of memory, free(); NULL: no memory. a and b may be empty. */
turbo_sample_step *turbod_program_copy(const turbo_sample_step *a, int32_t n_a,
                                       const turbo_sample_step *b, int32_t n_b);

#endif
