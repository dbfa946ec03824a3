/* core/lua/library.c: what a script can name. The parts of Lua's library that reach the machine,
 * run unbounded C loops, or let a script put code where errors are handled are not there. */
#include <string.h>

#include "lua/sandbox.h"

#define MAX_REP 65536
#define MAX_FORMAT_ARGS 64

static void drop(lua_State *L, const char *table, const char *const *names)
{
    lua_getglobal(L, table);
    for (; *names; names++) {
        lua_pushnil(L);
        lua_setfield(L, -2, *names);
    }
    lua_pop(L, 1);
}

/* string.rep(s, n [, sep]): at most 65536 times and 64 KiB. */
static int s_rep(lua_State *L)
{
    size_t len, sep_len;
    const char *s = luaL_checklstring(L, 1, &len);
    lua_Integer n = luaL_checkinteger(L, 2);
    const char *sep = luaL_optlstring(L, 3, "", &sep_len);
    luaL_Buffer b;
    if (n <= 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    if (n > MAX_REP || len > MAX_REP || sep_len > MAX_REP ||
        (len + sep_len) > (size_t)MAX_REP / (size_t)n)
        return luaL_error(L, "string.rep: more than %d times or bytes", MAX_REP);
    luaL_buffinit(L, &b);
    for (lua_Integer i = 0; i < n; i++) {
        luaL_addlstring(&b, s, len);
        if (i + 1 < n)
            luaL_addlstring(&b, sep, sep_len);
    }
    luaL_pushresult(&b);
    return 1;
}

/* string.find(s, what [, init]): plain text. A fourth argument may be given; patterns are not. */
static int s_find(lua_State *L)
{
    size_t len, n;
    const char *s = luaL_checklstring(L, 1, &len), *what = luaL_checklstring(L, 2, &n);
    lua_Integer init = luaL_optinteger(L, 3, 1), size = (lua_Integer)len;
    if (init < 0)
        init = init < -size ? 1 : size + init + 1;
    else if (init == 0)
        init = 1;
    const char *at =
        init > size + 1 ? NULL : memmem(s + init - 1, len - (size_t)(init - 1), what, n);
    if (!at) {
        lua_pushnil(L);
        return 1;
    }
    lua_pushinteger(L, at - s + 1);
    lua_pushinteger(L, at - s + (lua_Integer)n);
    return 2;
}

/* string.format: conversions d i f e g x X c s q %, of numbers, strings, booleans and nil. The
 * format is read here, then Lua's own function does the work. */
static int s_format(lua_State *L)
{
    const char *f = luaL_checkstring(L, 1);
    int arg = 1, top = lua_gettop(L);
    if (top > MAX_FORMAT_ARGS)
        return luaL_error(L, "string.format: more than %d arguments", MAX_FORMAT_ARGS - 1);
    while ((f = strchr(f, '%'))) {
        if (*++f == '%') {
            f++;
            continue;
        }
        f += strspn(f, "-+ #0");
        size_t width = strspn(f, "0123456789");
        f += width;
        size_t digits = *f == '.' ? strspn(f + 1, "0123456789") : 0;
        f += *f == '.' ? digits + 1 : 0;
        if (width > 2 || digits > 2 || !*f || !strchr("difegxXcsq", *f))
            return luaL_error(L, "string.format: conversion %%%c is not available", *f ? *f : '?');
        int t = ++arg <= top ? lua_type(L, arg) : LUA_TNONE;
        if (t != LUA_TNUMBER && t != LUA_TSTRING && t != LUA_TBOOLEAN && t != LUA_TNIL)
            return luaL_error(L, "string.format: argument %d is %s", arg,
                              t == LUA_TNONE ? "missing" : lua_typename(L, t));
        f++;
    }
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, top, 1);
    return 1;
}

/* tostring: no addresses. */
static int g_tostring(lua_State *L)
{
    luaL_checkany(L, 1);
    int t = lua_type(L, 1);
    if (t == LUA_TNUMBER || t == LUA_TSTRING || t == LUA_TBOOLEAN || t == LUA_TNIL)
        luaL_tolstring(L, 1, NULL);
    else
        lua_pushstring(L, lua_typename(L, t));
    return 1;
}

static int raise(lua_State *L, int at)
{
    lua_pushvalue(L, at);
    if (lua_type(L, -1) == LUA_TSTRING)
        turbod_lua_of(L)->raised = lua_topointer(L, -1);
    return lua_error(L);
}

/* error(text): ends the script; the text is for whoever made the request, so no position is added.
 */
static int g_error(lua_State *L)
{
    lua_settop(L, 1);
    return raise(L, 1);
}

/* assert(value, text): the same text as error(text) would give. */
static int g_assert(lua_State *L)
{
    if (lua_toboolean(L, 1))
        return lua_gettop(L);
    luaL_checkany(L, 1);
    if (lua_type(L, 2) != LUA_TSTRING)
        return luaL_error(L, "assertion failed");
    return raise(L, 2);
}

static void string_library(lua_State *L)
{
    static const char *const gone[] = {"dump", "gsub",   "gmatch",   "match",
                                       "pack", "unpack", "packsize", NULL};
    drop(L, LUA_STRLIBNAME, gone);
    lua_getglobal(L, LUA_STRLIBNAME);
    lua_getfield(L, -1, "format");
    lua_pushcclosure(L, s_format, 1);
    lua_setfield(L, -2, "format");
    lua_pushcfunction(L, s_rep);
    lua_setfield(L, -2, "rep");
    lua_pushcfunction(L, s_find);
    lua_setfield(L, -2, "find");
    /* ("x"):rep() looks in the metatable's __index, which is this very table, now trimmed. */
    lua_pushliteral(L, "");
    if (lua_getmetatable(L, -1)) {
        lua_pushvalue(L, -3);
        lua_setfield(L, -2, "__index");
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
        lua_pop(L, 1);
    }
    lua_pop(L, 2);
}

void turbod_lua_library(lua_State *L)
{
    static const luaL_Reg libs[] = {
        {LUA_GNAME, luaopen_base},        {LUA_TABLIBNAME, luaopen_table},
        {LUA_STRLIBNAME, luaopen_string}, {LUA_MATHLIBNAME, luaopen_math},
        {LUA_UTF8LIBNAME, luaopen_utf8},  {NULL, NULL},
    };
    static const char *const globals[] = {
        "load", "loadfile", "dofile",   "require",      "collectgarbage", "xpcall", "print",
        "warn", "rawset",   "rawequal", "getmetatable", "setmetatable",   NULL};
    static const char *const table[] = {"move", NULL};
    static const char *const math[] = {"random", "randomseed", NULL};
    static const char *const utf8[] = {"charpattern", NULL};
    for (const luaL_Reg *l = libs; l->func; l++) {
        luaL_requiref(L, l->name, l->func, 1);
        lua_pop(L, 1);
    }
    drop(L, LUA_GNAME, globals);
    drop(L, LUA_TABLIBNAME, table);
    drop(L, LUA_MATHLIBNAME, math);
    drop(L, LUA_UTF8LIBNAME, utf8);
    string_library(L);
    /* The registry's list of modules is for require and tracebacks: neither is here. */
    lua_pushnil(L);
    lua_setfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    lua_pushcfunction(L, g_tostring);
    lua_setglobal(L, "tostring");
    lua_pushcfunction(L, g_error);
    lua_setglobal(L, "error");
    lua_pushcfunction(L, g_assert);
    lua_setglobal(L, "assert");
}
