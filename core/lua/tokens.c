/* core/lua/tokens.c: turbo.tokens, sets of token ids. Any thread; one state. */
#include <stdlib.h>
#include <string.h>

#include "lua/bind.h"

#define TOKENS "turbo.tokens"
#define MAX_TEXT 4096

static int by_id(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static token_set *push_set(lua_State *L, int32_t room)
{
    token_set *s = lua_newuserdatauv(L, sizeof *s + (size_t)room * sizeof s->ids[0], 0);
    s->n = 0;
    luaL_setmetatable(L, TOKENS);
    return s;
}

static void settle(token_set *s)
{
    int32_t n = 0;
    qsort(s->ids, (size_t)s->n, sizeof s->ids[0], by_id);
    for (int32_t i = 0; i < s->n; i++)
        if (!n || s->ids[n - 1] != s->ids[i])
            s->ids[n++] = s->ids[i];
    s->n = n;
}

static const turbod_policy_env *tokenizer(lua_State *L, const char *what)
{
    const turbod_policy_env *env = turbod_env_of(L);
    if (!env || !env->tok_vtbl)
        luaL_error(L, "%s: this model has no tokenizer", what);
    return env;
}

/* An id or the name of a token at index `at`. */
static int32_t one_id(lua_State *L, int at)
{
    const turbod_policy_env *env = turbod_env_of(L);
    int whole = 0;
    if (lua_type(L, at) == LUA_TNUMBER) {
        lua_Integer id = lua_tointegerx(L, at, &whole);
        lua_Integer most = env && env->vocab ? env->vocab : INT32_MAX;
        if (!whole || id < 0 || id >= most)
            luaL_error(L, "%f is no token id; ids are whole numbers from 0 to %I",
                       lua_tonumber(L, at), most - 1);
        return (int32_t)id;
    }
    if (lua_type(L, at) != LUA_TSTRING)
        luaL_error(L, "a token is an id or a name, not a %s", luaL_typename(L, at));
    size_t len;
    const char *name = lua_tolstring(L, at, &len);
    env = tokenizer(L, "a token by its name");
    int32_t id = env->tok_vtbl->find(env->tok, name, (uint32_t)len);
    if (id < 0)
        luaL_error(L, "the tokenizer has no token \"%s\"", name);
    return id;
}

const token_set *turbod_tokens_check(lua_State *L, int at)
{
    const token_set *have = luaL_testudata(L, at, TOKENS);
    if (have)
        return have;
    bool list = lua_type(L, at) == LUA_TTABLE;
    lua_Unsigned n = list ? lua_rawlen(L, at) : 1;
    if (n > 1u << 20)
        luaL_error(L, "a token set has at most 1048576 ids");
    token_set *s = push_set(L, (int32_t)n);
    for (lua_Unsigned i = 0; i < n; i++) {
        if (list)
            lua_rawgeti(L, at, (lua_Integer)i + 1);
        s->ids[s->n++] = one_id(L, list ? lua_gettop(L) : at);
        if (list)
            lua_pop(L, 1);
    }
    settle(s);
    lua_replace(L, at);
    return s;
}

/* turbo.tokens{...} */
static int make(lua_State *L)
{
    lua_settop(L, 2); /* the table that was called, the list */
    if (lua_type(L, 2) != LUA_TTABLE)
        return luaL_error(L, "turbo.tokens takes a list of ids and names");
    turbod_tokens_check(L, 2);
    return 1;
}

static bool holds(const char *piece, size_t len, const char *what, size_t n, bool first, bool last)
{
    if (first && last)
        return len == n && !memcmp(piece, what, n);
    if (first)
        return len >= n && !memcmp(piece, what, n);
    if (last)
        return len >= n && !memcmp(piece + len - n, what, n);
    return memmem(piece, len, what, n) != NULL;
}

/* turbo.tokens.matching(text): all tokens whose text has it inside; "^" before and "$" behind it tie it to
 * the beginning and to the end. Special tokens have no text. */
static int matching(lua_State *L)
{
    size_t n;
    const char *what = luaL_checklstring(L, 1, &n);
    const turbod_policy_env *env = tokenizer(L, "turbo.tokens.matching");
    bool first = n && what[0] == '^', last = n > 1 && what[n - 1] == '$';
    what += first;
    n -= (size_t)first + last;
    if (!n || n > MAX_TEXT)
        return luaL_error(L, "turbo.tokens.matching takes a text of 1 to %d bytes", MAX_TEXT);
    turbo_tokenizer_info info = {.size = sizeof info};
    env->tok_vtbl->info(env->tok, &info);
    for (int pass = 0, count = 0; pass < 2; pass++) {
        token_set *s = pass ? push_set(L, count) : NULL;
        for (int32_t id = 0; id < info.n_vocab; id++) {
            const char *piece;
            uint32_t len;
            if (env->tok_vtbl->piece(env->tok, id, 0, &piece, &len) || !len ||
                !holds(piece, len, what, n, first, last))
                continue;
            if (pass)
                s->ids[s->n++] = id;
            count++;
        }
    }
    return 1;
}

int turbod_tokens_encode(lua_State *L)
{
    size_t len;
    const char *text = luaL_checklstring(L, 1, &len);
    const turbod_policy_env *env = tokenizer(L, "turbo.encode");
    uint64_t n = 0;
    turbo_err err = {{0}};
    if (len > MAX_TEXT)
        return luaL_error(L, "turbo.encode takes a text of at most %d bytes", MAX_TEXT);
    token_set *s = push_set(L, (int32_t)len + 16); /* the memory, for now */
    turbo_status st = env->tok_vtbl->encode(env->tok, text, len, 0, s->ids, len + 16, &n, &err);
    turbod_lua_of(L)->no_memory = st == TURBO_ENOMEM;
    if (st)
        return luaL_error(L, "turbo.encode: %s", err.text);
    lua_createtable(L, (int)n, 0);
    for (uint64_t i = 0; i < n; i++) {
        lua_pushinteger(L, s->ids[i]);
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    return 1;
}

/* turbo.tokens.of(text): the ids that the text is made of. */
static int of_text(lua_State *L)
{
    turbod_tokens_encode(L);
    turbod_tokens_check(L, lua_gettop(L));
    return 1;
}

static int set_len(lua_State *L)
{
    lua_pushinteger(L, turbod_tokens_check(L, 1)->n);
    return 1;
}

static int set_index(lua_State *L)
{
    const token_set *s = turbod_tokens_check(L, 1);
    lua_Integer i = lua_type(L, 2) == LUA_TNUMBER ? lua_tointeger(L, 2) : 0;
    if (i >= 1 && i <= s->n)
        lua_pushinteger(L, s->ids[i - 1]);
    else
        lua_pushnil(L);
    return 1;
}

static int fixed(lua_State *L)
{
    return luaL_error(L, "a token set cannot be changed");
}

static void set_function(lua_State *L, const char *name, lua_CFunction f)
{
    lua_pushcfunction(L, f);
    lua_setfield(L, -2, name);
}

void turbod_tokens_push(lua_State *L)
{
    luaL_newmetatable(L, TOKENS);
    set_function(L, "__len", set_len);
    set_function(L, "__index", set_index);
    set_function(L, "__newindex", fixed);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_pop(L, 1);
    lua_newtable(L); /* turbo.tokens */
    set_function(L, "matching", matching);
    set_function(L, "of", of_text);
    lua_newtable(L);
    set_function(L, "__call", make);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_setmetatable(L, -2);
}
