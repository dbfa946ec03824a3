/* core/lua/request.c: the request as a policy's hooks see it. One state, one thread at a time. */
#include <stdlib.h>
#include <string.h>

#include "lua/run.h"
#include "util/err.h"
#include "util/utf8.h"

#define MAX_ARGS 1024
#define MAX_ARG_DEPTH 8
#define MAX_INJECT_TEXT 4096
#define REQUEST "turbo.request"

static const char key_request;

enum { ARGS = 1, ASKED, STATE }; /* user values of the object */

static void take_program(lua_State *L, policy_run *r, const chain *c)
{
    turbo_sample_step *base = turbod_program_copy(c->steps, c->n, NULL, 0);
    if (!base) {
        turbod_lua_of(L)->no_memory = true;
        luaL_error(L, "no memory for a sampling program");
    }
    free(r->base);
    r->base = base;
    r->n_base = c->n;
}

void turbod_request_use(lua_State *L, policy_run *r, const chain *c)
{
    turbod_param_copy(&r->now, &c->values, c->params);
    if (!c->plain) {
        take_program(L, r, c);
        return;
    }
    free(r->base);
    r->base = NULL;
    r->n_base = 0;
}

/* Which hooks may call a method. */
static void only_in(lua_State *L, const policy_run *r, unsigned hooks, const char *what)
{
    if (!(r->in_hook & hooks))
        luaL_error(L, "%s is for %s", what,
                   hooks == HOOK_REQUEST ? "the request hook" : "the hooks logits and token");
}

static int req_use(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    only_in(L, r, HOOK_REQUEST, "req:use");
    turbod_request_use(L, r, turbod_chain_check(L, 2));
    lua_settop(L, 1);
    return 1;
}

/* From the next token on the chain is the program, whatever its order. */
static int req_switch(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    only_in(L, r, HOOK_LOGITS | HOOK_TOKEN, "req:switch");
    take_program(L, r, turbod_chain_check(L, 2));
    lua_settop(L, 1);
    return 1;
}

static int req_stop(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    only_in(L, r, HOOK_TOKEN, "req:stop");
    r->stop = true;
    lua_settop(L, 1);
    return 1;
}

/* The tokens of a text become the next ones of the answer. The script is the server's own, so names of
 * special tokens in it become those tokens. */
static int req_inject(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    const turbod_policy_env *env = &r->policy->env;
    int32_t ids[MAX_INJECT];
    uint64_t n = 0;
    size_t len;
    turbo_err err = {{0}};
    only_in(L, r, HOOK_LOGITS | HOOK_TOKEN, "req:inject");
    const char *text = luaL_checklstring(L, 2, &len);
    if (!env->tok_vtbl)
        return luaL_error(L, "req:inject: this model has no tokenizer");
    if (!turbod_utf8_valid(text, len) || len > MAX_INJECT_TEXT)
        return luaL_error(L, "req:inject takes valid UTF-8 of at most %d bytes", MAX_INJECT_TEXT);
    turbo_status st =
        env->tok_vtbl->encode(env->tok, text, len, TURBO_TOK_TRUSTED, ids, MAX_INJECT, &n, &err);
    if (st == TURBO_ELIMIT || n > (uint64_t)(MAX_INJECT - r->n_inject))
        return luaL_error(L, "req:inject: more than %d tokens wait to be put in", MAX_INJECT);
    turbod_lua_of(L)->no_memory = st == TURBO_ENOMEM;
    if (st)
        return luaL_error(L, "req:inject: %s", err.text);
    for (uint64_t i = 0; i < n; i++)
        r->inject[(r->next_inject + r->n_inject++) % MAX_INJECT] = ids[i];
    lua_settop(L, 1);
    return 1;
}

/* Ends the script; pcall cannot undo it. The first text counts. */
static int req_reject(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    size_t n = 0;
    only_in(L, r, HOOK_REQUEST, "req:reject");
    const char *why = lua_type(L, 2) == LUA_TSTRING ? lua_tolstring(L, 2, &n) : NULL;
    if (!why || !n)
        return luaL_error(L, "req:reject takes the reason, a text");
    if (!r->is_rejected) {
        turbo_err line;
        turbod_err(&line, 0, "%.*s", (int)(n < sizeof r->rejected ? n : sizeof r->rejected - 1),
                   why);
        size_t len = strlen(line.text);
        bool whole = turbod_utf8_valid(line.text, len);
        while (!whole && len > 0) /* cut inside a character, or not UTF-8 from the start */
            whole = turbod_utf8_valid(line.text, --len);
        memcpy(r->rejected, line.text, len);
        r->rejected[len] = '\0';
        r->is_rejected = true;
    }
    turbod_lua_of(L)->dead = true; /* every later instruction raises */
    lua_sethook(L, lua_gethook(L), LUA_MASKCOUNT, 1);
    return luaL_error(L, "rejected");
}

/* req:random(): a number in [0,1); req:random(m, n): a whole number in m..n. From the request's
 * seed. */
static int req_random(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    uint64_t x = r->asked.seed + UINT64_C(0x9e3779b97f4a7c15) * ++r->draws;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9); /* SplitMix64 */
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    if (lua_gettop(L) <= 1) {
        lua_pushnumber(L, (double)(x >> 11) * 0x1p-53);
        return 1;
    }
    lua_Integer lo = luaL_checkinteger(L, 2), hi = luaL_checkinteger(L, 3);
    uint64_t span = (uint64_t)hi - (uint64_t)lo;
    if (lo > hi)
        return luaL_error(L, "req:random(m, n): m is above n");
    lua_pushinteger(L, (lua_Integer)((uint64_t)lo + (span == UINT64_MAX ? x : x % (span + 1))));
    return 1;
}

static int req_index(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"use", req_use},   {"reject", req_reject}, {"random", req_random},
        {"stop", req_stop}, {"inject", req_inject}, {"switch", req_switch},
        {NULL, NULL}};
    policy_run *r = turbod_run_of(L);
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    const param_row *row = turbod_param_find(key);
    if (row) {
        turbod_param_push(L, &r->now, row);
        return 1;
    }
    for (const luaL_Reg *m = methods; m->name; m++)
        if (!strcmp(key, m->name)) {
            lua_pushcfunction(L, m->func);
            return 1;
        }
    static const char *const tables[] = {"args", "asked", "state"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(key, tables[i])) {
            lua_getiuservalue(L, 1, i + 1);
            return 1;
        }
    if (!strcmp(key, "n_output")) {
        lua_pushinteger(L, r->n_output);
        return 1;
    }
    if (!strcmp(key, "policy")) {
        lua_pushstring(L, r->policy->name);
        return 1;
    }
    return luaL_error(
        L,
        "no field \"%s\"; there are args, asked, state, policy, n_output, use, reject, "
        "random, stop, inject, switch, %s",
        key, turbod_param_names());
}

static int req_newindex(lua_State *L)
{
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    const param_row *row = turbod_param_find(key);
    if (!row)
        return luaL_error(L, "req.%s cannot be set; possible are %s", key, turbod_param_names());
    policy_run *r = turbod_run_of(L);
    if (r->in_hook != HOOK_REQUEST)
        return luaL_error(L, "req.%s is fixed once the request runs; use req:switch(chain)", key);
    turbod_param_set(L, &r->now, row, 3);
    return 0;
}

static void push_json(lua_State *L, const cJSON *v, int depth, int *left)
{
    if (depth > MAX_ARG_DEPTH || --*left < 0)
        luaL_error(L, "policy_args: at most %d values, %d deep", MAX_ARGS, MAX_ARG_DEPTH);
    luaL_checkstack(L, 4, "policy_args");
    if (cJSON_IsBool(v)) {
        lua_pushboolean(L, cJSON_IsTrue(v));
    } else if (cJSON_IsNumber(v)) {
        lua_Integer whole;
        if (lua_numbertointeger(v->valuedouble, &whole) && (double)whole >= v->valuedouble &&
            (double)whole <= v->valuedouble)
            lua_pushinteger(L, whole);
        else
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

void turbod_request_push(lua_State *L, policy_run *r)
{
    int left = MAX_ARGS;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_request) == LUA_TUSERDATA)
        return;
    lua_pop(L, 1);
    lua_newuserdatauv(L, 0, 3);
    int req = lua_gettop(L);
    if (r->args)
        push_json(L, r->args, 0, &left);
    else
        lua_newtable(L);
    lua_setiuservalue(L, req, ARGS);
    lua_newtable(L);
    for (const char *p = turbod_param_names(); *p;) {
        char name[32];
        size_t n = strcspn(p, ",");
        memcpy(name, p, n);
        name[n] = '\0';
        turbod_param_push(L, &r->asked, turbod_param_find(name));
        lua_setfield(L, -2, name);
        p += n + strspn(p + n, ", ");
    }
    lua_setiuservalue(L, req, ASKED);
    lua_newtable(L);
    lua_setiuservalue(L, req, STATE);
    if (luaL_newmetatable(L, REQUEST)) {
        lua_pushcfunction(L, req_index);
        lua_setfield(L, -2, "__index");
        lua_pushcfunction(L, req_newindex);
        lua_setfield(L, -2, "__newindex");
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
    }
    lua_setmetatable(L, req);
    lua_pushvalue(L, req);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_request);
}
