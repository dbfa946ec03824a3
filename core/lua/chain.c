/* core/lua/chain.c: turbo.chain(), an immutable list of sampling steps.
 *
 * Steps run in the order in which they are written. A chain of the standard sampler's own steps in its own
 * order is no program: it sets the request's parameters, and costs nothing. A step of that kind sets its
 * parameter in any case, so that a script which looks sees what is going to happen. */
#include <string.h>

#include "lua/bind.h"

#define CHAIN "turbo.chain"

const chain *turbod_chain_get(lua_State *L, int at)
{
    return luaL_testudata(L, at, CHAIN);
}

const chain *turbod_chain_check(lua_State *L, int at)
{
    const chain *c = luaL_testudata(L, at, CHAIN);
    if (!c)
        luaL_error(L, "a chain made by turbo.chain() is needed");
    return c;
}

/* The token sets of a chain's steps are kept alive by its user value, a list. */
static chain *push_chain(lua_State *L)
{
    chain *c = lua_newuserdatauv(L, sizeof *c, 1);
    memset(c, 0, sizeof *c);
    c->plain = true;
    return c;
}

static void set_param(chain *c, const char *name, float f, int32_t i)
{
    const param_row *row = turbod_param_find(name);
    char *to = (char *)&c->values + row->offset;
    if (row->kind == PARAM_INT)
        memcpy(to, &i, sizeof i);
    else
        memcpy(to, &f, sizeof f);
    c->params |= 1u << turbod_param_index(row);
}

static bool names(lua_State *L, const char *key)
{
    bool there = lua_getfield(L, 2, key) != LUA_TNIL;
    lua_pop(L, 1);
    return there;
}

/* The parameters that a standard step stands for; of penalties those that its table names. */
static void set_params(lua_State *L, chain *c, const turbo_sample_step *s)
{
    switch (s->kind) {
    case TURBO_STEP_PENALIZE:
        if (names(L, "rep"))
            set_param(c, "repetition_penalty", s->a, 0);
        if (names(L, "pres"))
            set_param(c, "presence_penalty", s->b, 0);
        if (names(L, "freq"))
            set_param(c, "frequency_penalty", s->c, 0);
        break;
    case TURBO_STEP_TEMPERATURE: set_param(c, "temperature", s->a, 0); break;
    case TURBO_STEP_TOP_K: set_param(c, "top_k", 0, s->n); break;
    case TURBO_STEP_TOP_P: set_param(c, "top_p", s->a, 0); break;
    case TURBO_STEP_MIN_P: set_param(c, "min_p", s->a, 0); break;
    default: break;
    }
}

/* Keeps the set at index `set` alive with the chain on top, whose forerunner is at index 1. */
static void keep_sets(lua_State *L, int set)
{
    int to = lua_gettop(L);
    lua_newtable(L);
    lua_Integer n = 0;
    if (lua_getiuservalue(L, 1, 1) == LUA_TTABLE)
        for (; lua_rawgeti(L, -1, n + 1) != LUA_TNIL; n++)
            lua_rawseti(L, -3, n + 1);
    lua_settop(L, to + 1);
    if (set) {
        lua_pushvalue(L, set);
        lua_rawseti(L, -2, n + 1);
    }
    lua_setiuservalue(L, to, 1);
}

/* chain:step(...): a new chain with one step more. The kind is the function's upvalue. */
static int chain_step(lua_State *L)
{
    int kind = (int)lua_tointeger(L, lua_upvalueindex(1));
    const chain *from = luaL_testudata(L, 1, CHAIN);
    turbo_sample_step step;
    if (!from)
        return luaL_error(L, "call chain:%s(...) with a colon", turbod_step_name(kind));
    if (from->n == MAX_STEPS)
        return luaL_error(L, "chain: at most %d steps", MAX_STEPS);
    int set = turbod_step_read(L, kind, &step);
    chain *c = push_chain(L);
    *c = *from;
    luaL_setmetatable(L, CHAIN);
    int last = c->n ? c->steps[c->n - 1].kind : 0;
    c->plain =
        c->plain && kind <= STD_STEPS && kind > last && !(kind == TURBO_STEP_PENALIZE && step.n);
    c->steps[c->n++] = step;
    set_params(L, c, &step);
    keep_sets(L, set);
    return 1;
}

/* chain.name for a name that is no step. */
static int chain_index(lua_State *L)
{
    const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    int kind = turbod_step_find(name);
    if (!kind)
        return luaL_error(L, "chain: there is no step \"%s\"; there are %s", name,
                          turbod_step_names());
    lua_pushinteger(L, kind);
    lua_pushcclosure(L, chain_step, 1);
    return 1;
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
