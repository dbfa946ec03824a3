/* core/lua/chain.c: turbo.chain(), an immutable list of built-in processors. The standard sampler
 * runs them in one fixed order, so a chain is accepted only when it reads in that order: a script
 * never says one thing and gets another. */
#include <string.h>

#include "lua/bind.h"
#include "util/checked.h"

#define CHAIN "turbo.chain"
#define MAX_PENALTIES 3

/* In the sampler's order. */
enum { OP_PENALIZE, OP_TEMPERATURE, OP_TOP_K, OP_TOP_P, OP_MIN_P, N_OPS };
static const char *const op_names[N_OPS] = {"penalize", "temperature", "top_k", "top_p", "min_p"};
static const char op_list[] = "penalize, temperature, top_k, top_p, min_p";

/* What a chain sets: the parameters of the steps that it has. */
typedef struct chain {
    uint32_t steps; /* bit i: op i is there */
    uint32_t params; /* bit i: row i of the table below is set */
    turbo_sample_params values;
} chain;

#define ROW(name, kind, lo, hi)                                                                    \
    {                                                                                              \
#name, offsetof(turbo_sample_params, name), kind, lo, hi                                   \
    }
static const param_row rows[] = {
    ROW(temperature, PARAM_FLOAT, 0, 2),
    ROW(top_p, PARAM_FLOAT, 1e-12, 1),
    ROW(min_p, PARAM_FLOAT, 0, 1),
    ROW(top_k, PARAM_INT, 0, 2147483647),
    ROW(repetition_penalty, PARAM_FLOAT, 1e-6, 10),
    ROW(presence_penalty, PARAM_FLOAT, -2, 2),
    ROW(frequency_penalty, PARAM_FLOAT, -2, 2),
    ROW(min_tokens, PARAM_INT, 0, 2147483647),
    ROW(seed, PARAM_SEED, 0, 0),
};
#undef ROW
#define N_ROWS (sizeof rows / sizeof rows[0])

const param_row *turbod_param_find(const char *name)
{
    for (size_t i = 0; i < N_ROWS; i++)
        if (!strcmp(rows[i].name, name))
            return &rows[i];
    return NULL;
}

const char *turbod_param_names(void)
{
    return "temperature, top_p, min_p, top_k, repetition_penalty, presence_penalty, "
           "frequency_penalty, min_tokens, seed";
}

void turbod_param_push(lua_State *L, const turbo_sample_params *p, const param_row *row)
{
    const char *at = (const char *)p + row->offset;
    float f;
    int32_t i;
    uint64_t u;
    if (row->kind == PARAM_FLOAT) {
        memcpy(&f, at, sizeof f);
        lua_pushnumber(L, (double)f);
    } else if (row->kind == PARAM_INT) {
        memcpy(&i, at, sizeof i);
        lua_pushinteger(L, i);
    } else {
        memcpy(&u, at, sizeof u);
        lua_pushinteger(L, (lua_Integer)u);
    }
}

void turbod_param_set(lua_State *L, turbo_sample_params *p, const param_row *row, int at)
{
    char *to = (char *)p + row->offset;
    if (lua_type(L, at) != LUA_TNUMBER)
        luaL_error(L, "%s is a %s; a number is needed", row->name, luaL_typename(L, at));
    if (row->kind == PARAM_SEED) {
        int whole;
        lua_Integer v = lua_tointegerx(L, at, &whole);
        uint64_t u = (uint64_t)v;
        if (!whole)
            luaL_error(L, "seed is not a whole number");
        memcpy(to, &u, sizeof u);
        return;
    }
    double v = lua_tonumber(L, at);
    if (!turbod_d_in(v, row->lo, row->hi))
        luaL_error(L, "%s is %f; %f to %f is possible", row->name, v, row->lo, row->hi);
    if (row->kind == PARAM_FLOAT) {
        float f = (float)v;
        memcpy(to, &f, sizeof f);
        return;
    }
    int64_t whole = 0;
    if (!turbod_d2i(v, (int64_t)row->lo, (int64_t)row->hi, &whole))
        luaL_error(L, "%s is %f; a whole number is needed", row->name, v);
    int32_t i = (int32_t)whole;
    memcpy(to, &i, sizeof i);
}

/* ---- chains --------------------------------------------------------------------------------- */

bool turbod_chain_is(lua_State *L, int at)
{
    return luaL_testudata(L, at, CHAIN) != NULL;
}

static void set_row(lua_State *L, chain *c, const char *name, int at)
{
    const param_row *row = turbod_param_find(name);
    turbod_param_set(L, &c->values, row, at);
    c->params |= 1u << (row - rows);
}

/* penalize{ rep=, pres=, freq= } */
static void read_penalties(lua_State *L, chain *c, int at)
{
    static const struct {
        const char *key, *param;
    } names[MAX_PENALTIES] = {
        {"rep", "repetition_penalty"}, {"pres", "presence_penalty"}, {"freq", "frequency_penalty"}};
    if (lua_type(L, at) != LUA_TTABLE)
        luaL_error(L, "chain:penalize takes a table {rep=, pres=, freq=}");
    lua_pushnil(L);
    while (lua_next(L, at)) {
        const char *key = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
        const char *param = NULL;
        for (size_t i = 0; i < MAX_PENALTIES; i++)
            param = strcmp(key, names[i].key) ? param : names[i].param;
        if (!param)
            luaL_error(L, "chain:penalize: this version has no \"%s\"; it has rep, pres, freq",
                       key);
        set_row(L, c, param, lua_gettop(L));
        lua_pop(L, 1);
    }
}

static chain *push_chain(lua_State *L)
{
    chain *c = lua_newuserdatauv(L, sizeof *c, 0);
    memset(c, 0, sizeof *c);
    return c;
}

/* chain:op(value): a new chain with one step more. The op is the function's upvalue. */
static int chain_step(lua_State *L)
{
    int op = (int)lua_tointeger(L, lua_upvalueindex(1));
    const chain *from = luaL_testudata(L, 1, CHAIN);
    if (!from)
        return luaL_error(L, "call chain:%s(...) with a colon", op_names[op]);
    if (lua_gettop(L) != 2)
        return luaL_error(L, "chain:%s takes one value", op_names[op]);
    if (from->steps >> op & 1)
        return luaL_error(L, "chain: %s is there twice", op_names[op]);
    for (int later = op + 1; later < N_OPS; later++)
        if (from->steps >> later & 1)
            return luaL_error(L, "chain: %s stands behind %s; the sampler's order is %s",
                              op_names[op], op_names[later], op_list);
    chain *c = push_chain(L);
    *c = *from;
    luaL_setmetatable(L, CHAIN);
    c->steps |= 1u << op;
    if (op == OP_PENALIZE)
        read_penalties(L, c, 2);
    else
        set_row(L, c, op_names[op], 2);
    lua_settop(L, 3);
    return 1;
}

/* chain.name for a name that is no op. */
static int chain_index(lua_State *L)
{
    const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    for (int i = 0; i < N_OPS; i++)
        if (!strcmp(name, op_names[i])) {
            lua_pushinteger(L, i);
            lua_pushcclosure(L, chain_step, 1);
            return 1;
        }
    return luaL_error(L, "chain: this version has no operation \"%s\"; it has %s", name, op_list);
}

static int chain_fixed(lua_State *L)
{
    return luaL_error(L, "a chain cannot be changed; each step makes a new one");
}

int turbod_chain_new(lua_State *L)
{
    if (lua_gettop(L) != 0)
        return luaL_error(L, "turbo.chain() takes no arguments");
    push_chain(L);
    if (luaL_newmetatable(L, CHAIN)) {
        lua_pushcfunction(L, chain_index);
        lua_setfield(L, -2, "__index");
        lua_pushcfunction(L, chain_fixed);
        lua_setfield(L, -2, "__newindex");
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
    }
    lua_setmetatable(L, -2);
    return 1;
}

void turbod_chain_apply(lua_State *L, int at, turbo_sample_params *p)
{
    const chain *c = luaL_testudata(L, at, CHAIN);
    if (!c)
        luaL_error(L, "a chain made by turbo.chain() is needed");
    for (size_t i = 0; c && i < N_ROWS; i++) {
        size_t n = rows[i].kind == PARAM_SEED ? sizeof(uint64_t) : sizeof(float);
        if (c->params >> i & 1)
            memcpy((char *)p + rows[i].offset, (const char *)&c->values + rows[i].offset, n);
    }
}
