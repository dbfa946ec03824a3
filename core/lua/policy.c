/* core/lua/policy.c: see policy.h. */
#include "lua/policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lua/sandbox.h"
#include "util/checked.h"
#include "util/err.h"

#define MAX_ARGS 1024
#define MAX_ARG_DEPTH 8

struct turbod_policy {
    turbod_script script;
    char name[65];
};

static const char key_request, key_chain, key_job; /* registry keys */

typedef struct policy_job {
    turbo_sample_params *params;
    const cJSON *args;
    char rejected[200];
} policy_job;

static policy_job *job_of(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_job);
    policy_job *j = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return j;
}

/* ---- parameters a script may read and set -------------------------------------------------------------- */

typedef struct param_row {
    const char *name;
    size_t offset;
    bool whole; /* int32_t instead of float */
    double lo, hi;
} param_row;

#define F(name, lo, hi) {#name, offsetof(turbo_sample_params, name), false, lo, hi}
#define I(name, lo, hi) {#name, offsetof(turbo_sample_params, name), true, lo, hi}
static const param_row params[] = {
    F(temperature, 0, 2),          F(top_p, 1e-12, 1),
    F(min_p, 0, 1),                I(top_k, 0, 2147483647),
    F(repetition_penalty, 1e-6, 10), F(presence_penalty, -2, 2),
    F(frequency_penalty, -2, 2),   I(min_tokens, 0, 2147483647),
};
#undef F
#undef I
#define N_PARAMS (sizeof params / sizeof params[0])

static const param_row *param_of(lua_State *L, const char *name)
{
    for (size_t i = 0; i < N_PARAMS; i++)
        if (!strcmp(params[i].name, name))
            return &params[i];
    luaL_error(L, "a request has no field \"%s\"", name);
    return NULL;
}

static void set_param(lua_State *L, turbo_sample_params *p, const param_row *row, int at)
{
    if (lua_type(L, at) != LUA_TNUMBER)
        luaL_error(L, "%s must be a number", row->name);
    double v = lua_tonumber(L, at);
    if (!turbod_d_in(v, row->lo, row->hi) || (row->whole && floor(v) < v))
        luaL_error(L, "%s is %f; %f to %f are possible", row->name, v, row->lo, row->hi);
    if (row->whole) {
        int32_t i = (int32_t)v;
        memcpy((char *)p + row->offset, &i, sizeof i);
    } else {
        float f = (float)v;
        memcpy((char *)p + row->offset, &f, sizeof f);
    }
}

/* ---- chains: a table of steps, in the order the sampler applies them ------------------------------------- */

/* A chain in Lua is a table {steps..., methods by the host}; scripts cannot forge one that the host
 * does not check again when it is used. */
static const char *const chain_order[] = {"penalize", "temperature", "top_k", "top_p", "min_p"};

static int chain_rank(const char *op)
{
    for (int i = 0; i < 5; i++)
        if (!strcmp(chain_order[i], op))
            return i;
    return -1;
}

static int chain_step(lua_State *L);

/* Pushes a fresh chain with the methods and no steps. */
static void push_chain(lua_State *L)
{
    lua_createtable(L, 4, 5);
    for (int i = 0; i < 5; i++) {
        lua_pushstring(L, chain_order[i]);
        lua_pushcclosure(L, chain_step, 1);
        lua_setfield(L, -2, chain_order[i]);
    }
}

/* chain:op(value) -> a new chain with one step more: {op, value}. */
static int chain_step(lua_State *L)
{
    const char *op = lua_tostring(L, lua_upvalueindex(1));
    int rank = chain_rank(op);
    if (lua_type(L, 1) != LUA_TTABLE)
        return luaL_error(L, "call chain:%s(...) with a colon", op);
    if (lua_type(L, 2) != (rank ? LUA_TNUMBER : LUA_TTABLE))
        return luaL_error(L, "chain:%s needs %s", op,
                          rank ? "a number" : "a table {rep=, pres=, freq=}");
    lua_settop(L, 2);
    push_chain(L);
    size_t n = (size_t)lua_rawlen(L, 1);
    if (n > 16)
        return luaL_error(L, "a chain has at most 16 steps");
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, 1, (lua_Integer)i);
        lua_rawseti(L, 3, (lua_Integer)i);
    }
    lua_createtable(L, 2, 0);
    lua_pushstring(L, op);
    lua_rawseti(L, -2, 1);
    lua_pushvalue(L, 2);
    lua_rawseti(L, -2, 2);
    lua_rawseti(L, 3, (lua_Integer)n + 1);
    return 1;
}

static int new_chain(lua_State *L)
{
    push_chain(L);
    return 1;
}

static void apply_penalties(lua_State *L, turbo_sample_params *p, int table)
{
    static const struct {
        const char *key, *param;
    } names[] = {{"rep", "repetition_penalty"}, {"pres", "presence_penalty"}, {"freq", "frequency_penalty"}};
    lua_pushnil(L);
    while (lua_next(L, table)) {
        const char *k = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
        const char *name = NULL;
        for (size_t i = 0; i < 3; i++)
            name = strcmp(k, names[i].key) ? name : names[i].param;
        if (!name)
            luaL_error(L, "penalize: unknown field \"%s\"; rep, pres and freq are known", k);
        set_param(L, p, param_of(L, name), lua_gettop(L));
        lua_pop(L, 1);
    }
}

/* Puts a chain's steps into p. The sampler's order is fixed, so a chain in another order is refused
 * rather than run differently from how it reads. */
static void apply_chain(lua_State *L, turbo_sample_params *p, int at)
{
    int last = -1;
    if (lua_type(L, at) != LUA_TTABLE)
        luaL_error(L, "a chain made by turbo.chain() is needed");
    size_t n = (size_t)lua_rawlen(L, at);
    for (size_t i = 1; i <= n; i++) {
        lua_rawgeti(L, at, (lua_Integer)i);
        int step = lua_gettop(L);
        if (lua_type(L, step) != LUA_TTABLE)
            luaL_error(L, "a chain made by turbo.chain() is needed");
        lua_rawgeti(L, step, 1);
        lua_rawgeti(L, step, 2);
        const char *op = lua_type(L, step + 1) == LUA_TSTRING ? lua_tostring(L, step + 1) : "?";
        int rank = chain_rank(op);
        if (rank < 0)
            luaL_error(L, "a chain has no step \"%s\"", op);
        if (rank <= last)
            luaL_error(L, "chain: %s must come before %s, once", op, chain_order[last]);
        last = rank;
        if (!rank && lua_type(L, step + 2) == LUA_TTABLE)
            apply_penalties(L, p, step + 2);
        else
            set_param(L, p, param_of(L, rank ? op : "repetition_penalty"), step + 2);
        lua_settop(L, step - 1);
    }
}

/* ---- the request object: get, set, use, reject -------------------------------------------------------------- */

static int req_get(lua_State *L)
{
    policy_job *j = job_of(L);
    if (lua_type(L, 2) != LUA_TSTRING)
        return luaL_error(L, "req:get(name)");
    const param_row *row = param_of(L, lua_tostring(L, 2));
    if (row->whole) {
        int32_t i;
        memcpy(&i, (char *)j->params + row->offset, sizeof i);
        lua_pushinteger(L, i);
    } else {
        float f;
        memcpy(&f, (char *)j->params + row->offset, sizeof f);
        lua_pushnumber(L, (double)f);
    }
    return 1;
}

static int req_set(lua_State *L)
{
    policy_job *j = job_of(L);
    if (lua_type(L, 2) != LUA_TSTRING)
        return luaL_error(L, "req:set(name, value)");
    set_param(L, j->params, param_of(L, lua_tostring(L, 2)), 3);
    lua_settop(L, 1);
    return 1;
}

static int req_use(lua_State *L)
{
    apply_chain(L, job_of(L)->params, 2);
    lua_settop(L, 1);
    return 1;
}

static int req_reject(lua_State *L)
{
    policy_job *j = job_of(L);
    const char *why = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "rejected by the policy";
    strncpy(j->rejected, *why ? why : "rejected by the policy", sizeof j->rejected - 1);
    return luaL_error(L, "rejected");
}

static void push_json(lua_State *L, const cJSON *v, int depth, int *left)
{
    if (depth > MAX_ARG_DEPTH || --*left < 0)
        luaL_error(L, "policy_args: at most %d values, %d deep", MAX_ARGS, MAX_ARG_DEPTH);
    luaL_checkstack(L, 4, "policy_args");
    if (cJSON_IsBool(v)) {
        lua_pushboolean(L, cJSON_IsTrue(v));
    } else if (cJSON_IsNumber(v)) {
        lua_pushnumber(L, v->valuedouble);
    } else if (cJSON_IsString(v)) {
        lua_pushstring(L, v->valuestring);
    } else if (cJSON_IsArray(v) || cJSON_IsObject(v)) {
        lua_Integer i = 1;
        lua_newtable(L);
        for (const cJSON *m = v->child; m; m = m->next) {
            if (cJSON_IsObject(v))
                lua_pushstring(L, m->string);
            else
                lua_pushinteger(L, i++);
            push_json(L, m, depth + 1, left);
            lua_rawset(L, -3);
        }
    } else {
        lua_pushnil(L);
    }
}

/* Pushes the hook and the request. */
static int push_call(lua_State *L)
{
    policy_job *j = job_of(L);
    int left = MAX_ARGS;
    static const luaL_Reg methods[] = {
        {"get", req_get}, {"set", req_set}, {"use", req_use}, {"reject", req_reject}, {NULL, NULL}};
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_request) != LUA_TFUNCTION) {
        /* A policy that is a chain alone. */
        lua_rawgetp(L, LUA_REGISTRYINDEX, &key_chain);
        apply_chain(L, j->params, lua_gettop(L));
        return 0;
    }
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    if (j->args)
        push_json(L, j->args, 0, &left);
    else
        lua_newtable(L);
    lua_setfield(L, -2, "args");
    return 2;
}

/* turbo.policy{ request = function(req) end } or turbo.policy(chain). */
static int bind_policy(lua_State *L)
{
    if (lua_type(L, 1) != LUA_TTABLE)
        return luaL_error(L, "turbo.policy needs a chain or a table of hooks");
    lua_settop(L, 1);
    if (lua_rawlen(L, 1)) {
        turbo_sample_params scratch = {.size = sizeof scratch};
        apply_chain(L, &scratch, 1); /* refuse a wrong chain now, not at the first request */
        lua_rawsetp(L, LUA_REGISTRYINDEX, &key_chain);
        return 0;
    }
    lua_pushnil(L);
    while (lua_next(L, 1)) {
        const char *k = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "?";
        if (strcmp(k, "request"))
            return luaL_error(L, "turbo.policy: the hook \"%s\" is not run by this version; "
                                 "request is", k);
        lua_pop(L, 1);
    }
    lua_pushliteral(L, "request");
    lua_rawget(L, 1);
    if (lua_type(L, -1) != LUA_TFUNCTION)
        return luaL_error(L, "turbo.policy: request must be a function");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_request);
    return 0;
}

static int bindings(lua_State *L)
{
    lua_newtable(L);
    lua_pushcfunction(L, bind_policy);
    lua_setfield(L, -2, "policy");
    lua_pushcfunction(L, new_chain);
    lua_setfield(L, -2, "chain");
    lua_setglobal(L, "turbo");
    return 0;
}

static int set_job(lua_State *L)
{
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_job);
    return 0;
}

static turbo_status start(turbod_lua *s, const turbod_script *script, policy_job *job, turbo_err *err)
{
    turbo_status st = turbod_lua_open(s, 0, bindings, err);
    if (st)
        return st;
    st = turbod_lua_protect(s, set_job, job, TURBOD_LUA_REQUEST_MS, err);
    if (!st)
        st = turbod_lua_run(s, script, TURBOD_LUA_REQUEST_MS, err);
    if (!st && lua_rawgetp(s->L, LUA_REGISTRYINDEX, &key_request) != LUA_TFUNCTION &&
        lua_rawgetp(s->L, LUA_REGISTRYINDEX, &key_chain) != LUA_TTABLE)
        st = turbod_err(err, TURBO_EDATA, "%s does not call turbo.policy", script->name);
    lua_settop(s->L, 0);
    if (st)
        turbod_lua_close(s);
    return st;
}

turbo_status turbod_policy_load(const char *path, const char *name, turbod_policy **out,
                                turbo_err *err)
{
    turbod_lua s = {0};
    policy_job job = {0};
    turbod_policy *p = calloc(1, sizeof *p);
    if (!p)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a policy");
    strncpy(p->name, name, sizeof p->name - 1);
    turbo_status st = turbod_script_load(path, &p->script, err);
    if (!st)
        st = start(&s, &p->script, &job, err);
    if (st) {
        turbod_policy_free(p);
        return st;
    }
    turbod_lua_close(&s);
    *out = p;
    return TURBO_OK;
}

void turbod_policy_free(turbod_policy *p)
{
    if (!p)
        return;
    turbod_script_free(&p->script);
    free(p);
}

const char *turbod_policy_name(const turbod_policy *p)
{
    return p->name;
}

turbo_status turbod_policy_request(const turbod_policy *policy, turbo_sample_params *p,
                                   const cJSON *args, turbo_err *err)
{
    turbod_lua s;
    turbo_sample_params changed = *p; /* a script that fails half-way changes nothing */
    policy_job job = {.params = &changed, .args = args};
    turbo_status st = start(&s, &policy->script, &job, err);
    if (st)
        return st;
    st = turbod_lua_protect(&s, push_call, NULL, TURBOD_LUA_REQUEST_MS, err);
    if (!st && lua_gettop(s.L) == 2)
        st = turbod_lua_call(&s, 1, 0, TURBOD_LUA_REQUEST_MS, err);
    turbod_lua_close(&s);
    if (job.rejected[0])
        return turbod_err(err, TURBO_ECANCELLED, "%s", job.rejected);
    if (!st)
        *p = changed;
    return st;
}
