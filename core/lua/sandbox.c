/* core/lua/sandbox.c: see sandbox.h. What is removed, and why, is listed in doc/lua.md. */
#include "lua/sandbox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "util/err.h"
#include "util/file.h"

#define HOOK_EVERY 20 /* instructions; with 100 the slowest hostile script ran 139 ms */

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void *capped(void *ud, void *ptr, size_t osize, size_t nsize)
{
    turbod_lua *s = ud;
    size_t old = ptr ? osize : 0; /* without ptr osize is a type tag */
    if (!nsize) {
        free(ptr);
        s->used -= old;
        return NULL;
    }
    if (nsize > old && (nsize > s->block || s->used - old + nsize > s->cap))
        return NULL;
    void *p = realloc(ptr, nsize);
    if (p)
        s->used += nsize - old;
    return p;
}

static turbod_lua *self(lua_State *L)
{
    void *ud;
    lua_getallocf(L, &ud);
    return ud;
}

static void hook(lua_State *L, lua_Debug *ar)
{
    turbod_lua *s = self(L);
    (void)ar;
    if (!s->dead && now_ns() < s->deadline)
        return;
    s->dead = true;
    lua_sethook(L, hook, LUA_MASKCOUNT, 1);
    luaL_error(L, "script limit");
}

/* ---- replaced library functions: bounded work, no addresses ------------------------------------- */

static int safe_tostring(lua_State *L)
{
    switch (lua_type(L, 1)) {
    case LUA_TNONE: return luaL_error(L, "tostring: a value is needed");
    case LUA_TSTRING: lua_settop(L, 1); return 1;
    case LUA_TNUMBER:
        lua_settop(L, 1);
        lua_tolstring(L, 1, NULL);
        return 1;
    case LUA_TBOOLEAN: lua_pushstring(L, lua_toboolean(L, 1) ? "true" : "false"); return 1;
    case LUA_TNIL: lua_pushliteral(L, "nil"); return 1;
    default: lua_pushstring(L, lua_typename(L, lua_type(L, 1))); return 1;
    }
}

static int safe_rep(lua_State *L)
{
    size_t len, sep_len = 0;
    const char *s = luaL_checklstring(L, 1, &len);
    lua_Integer n = luaL_checkinteger(L, 2);
    const char *sep = luaL_optlstring(L, 3, "", &sep_len);
    if (n <= 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    size_t one = len + sep_len;
    if (n > 65536 || (one && (size_t)n > 65536 / one))
        return luaL_error(L, "string.rep: the result may have 64 KiB at most");
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    for (lua_Integer i = 0; i < n; i++) {
        luaL_addlstring(&b, s, len);
        if (i + 1 < n)
            luaL_addlstring(&b, sep, sep_len);
    }
    luaL_pushresult(&b);
    return 1;
}

/* Plain search only: patterns can backtrack for ever. */
static int safe_find(lua_State *L)
{
    size_t len, want_len;
    const char *s = luaL_checklstring(L, 1, &len);
    const char *want = luaL_checklstring(L, 2, &want_len);
    lua_Integer from = luaL_optinteger(L, 3, 1);
    if (from < 0)
        from = (size_t)-from > len ? 1 : (lua_Integer)len + from + 1;
    if (from < 1)
        from = 1;
    const char *hit = NULL;
    if ((size_t)from <= len + 1)
        hit = want_len ? memmem(s + from - 1, len - (size_t)from + 1, want, want_len) : s + from - 1;
    if (!hit) {
        lua_pushnil(L);
        return 1;
    }
    lua_pushinteger(L, hit - s + 1);
    lua_pushinteger(L, hit - s + (lua_Integer)want_len);
    return 2;
}

/* Pushes one number: spec is %[flags][width][.precision]letter, checked letter by letter. */
static void push_number(lua_State *L, const char *spec, char letter, int arg)
{
    char out[512], wide[40];
    int n;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (letter == 'f' || letter == 'e' || letter == 'g') {
        n = snprintf(out, sizeof out, spec, luaL_checknumber(L, arg));
    } else {
        snprintf(wide, sizeof wide, "%.*sll%c", (int)strlen(spec) - 1, spec,
                 letter == 'u' ? 'd' : letter);
        n = snprintf(out, sizeof out, wide, (long long)luaL_checkinteger(L, arg));
    }
#pragma GCC diagnostic pop
    lua_pushlstring(L, out, n < 0 ? 0 : (size_t)n < sizeof out ? (size_t)n : sizeof out - 1);
}

static void push_conversion(lua_State *L, const char *spec, char letter, int arg)
{
    if (letter == 'c') {
        char c = (char)luaL_checkinteger(L, arg);
        lua_pushlstring(L, &c, 1);
    } else if (letter == 's' || letter == 'q') {
        int t = lua_type(L, arg);
        if (t != LUA_TSTRING && t != LUA_TNUMBER && t != LUA_TBOOLEAN && t != LUA_TNIL)
            luaL_error(L, "string.format: argument %d is a %s", arg, lua_typename(L, t));
        if (letter == 'q')
            lua_pushliteral(L, "\"");
        lua_pushcfunction(L, safe_tostring);
        lua_pushvalue(L, arg);
        lua_call(L, 1, 1);
        if (letter == 'q') {
            lua_pushliteral(L, "\"");
            lua_concat(L, 3);
        }
    } else {
        push_number(L, spec, letter, arg);
    }
}

static int safe_format(lua_State *L)
{
    size_t len;
    const char *f = luaL_checklstring(L, 1, &len), *end = f + len;
    int arg = 1;
    /* The pieces are collected on the stack of values, so that nothing but Lua owns memory here. */
    int top = lua_gettop(L), parts = 0;
    while (f < end) {
        const char *p = memchr(f, '%', (size_t)(end - f));
        luaL_checkstack(L, 4, "string.format");
        lua_pushlstring(L, f, (size_t)((p ? p : end) - f));
        parts++;
        if (!p)
            break;
        char spec[16] = "%";
        size_t k = 1;
        for (p++; p < end && k < 6 && strchr("-+ #0123456789.", *p) && *p; p++)
            spec[k++] = *p;
        if (p == end || !strchr("diufegxXcsq%", *p) || !*p)
            return luaL_error(L, "string.format: only %%d %%i %%u %%f %%e %%g %%x %%X %%c %%s %%q");
        spec[k] = *p;
        f = p + 1;
        if (*p == '%') {
            lua_pushliteral(L, "%");
        } else if (++arg > top) {
            return luaL_error(L, "string.format: argument %d is missing", arg);
        } else {
            push_conversion(L, spec, *p, arg);
        }
        parts++;
        if (parts > 64)
            return luaL_error(L, "string.format: more than 32 conversions");
    }
    lua_concat(L, parts);
    return 1;
}

/* ---- the library ---------------------------------------------------------------------------------- */

static void drop(lua_State *L, const char *const *names)
{
    for (; *names; names++) {
        lua_pushnil(L);
        lua_setfield(L, -2, *names);
    }
}

static int open_libraries(lua_State *L)
{
    static const char *const from_g[] = {"load", "loadfile", "dofile", "require", "collectgarbage",
                                         "xpcall", "print", "warn", "rawset", "rawequal",
                                         "getmetatable", "setmetatable", NULL};
    static const char *const from_string[] = {"dump", "gsub", "gmatch", "match", "pack", "unpack",
                                              "packsize", NULL};
    static const char *const from_table[] = {"move", NULL};
    static const char *const from_math[] = {"random", "randomseed", NULL};
    luaL_requiref(L, "_G", luaopen_base, 1);
    luaL_requiref(L, "table", luaopen_table, 1);
    luaL_requiref(L, "string", luaopen_string, 1);
    luaL_requiref(L, "math", luaopen_math, 1);
    luaL_requiref(L, "utf8", luaopen_utf8, 1);
    lua_settop(L, 1); /* the bindings */
    lua_pushglobaltable(L);
    drop(L, from_g);
    lua_pushcfunction(L, safe_tostring);
    lua_setfield(L, -2, "tostring");
    lua_getfield(L, -1, "table");
    drop(L, from_table);
    lua_pop(L, 1);
    lua_getfield(L, -1, "math");
    drop(L, from_math);
    lua_pop(L, 1);
    lua_getfield(L, -1, "string");
    drop(L, from_string);
    lua_pushcfunction(L, safe_rep);
    lua_setfield(L, -2, "rep");
    lua_pushcfunction(L, safe_find);
    lua_setfield(L, -2, "find");
    lua_pushcfunction(L, safe_format);
    lua_setfield(L, -2, "format");
    /* ("x"):rep(n) must reach the trimmed table, and nobody its metatable. */
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_settop(L, 1);
    /* The registry's table of loaded modules would hand the untrimmed tables out; nothing reads it. */
    lua_pushnil(L);
    lua_setfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    lua_CFunction bindings = (lua_CFunction)lua_tocfunction(L, 1);
    if (bindings) {
        lua_pushcfunction(L, bindings);
        lua_call(L, 0, 0);
    }
    return 0;
}

/* The error value as a line; only strings are looked at. */
static turbo_status explain(turbod_lua *s, int status, turbo_err *err)
{
    turbo_status st = TURBO_EINVAL;
    if (s->dead)
        st = turbod_err(err, TURBO_ELIMIT, "script limit: it ran too long");
    else if (status == LUA_ERRMEM)
        st = turbod_err(err, TURBO_ELIMIT, "not enough memory: a script may use %zu MiB",
                        TURBOD_LUA_MEMORY >> 20);
    else if (lua_type(s->L, -1) == LUA_TSTRING)
        st = turbod_err(err, TURBO_EINVAL, "%.240s", lua_tostring(s->L, -1));
    else
        st = turbod_err(err, TURBO_EINVAL, "the script raised a %s",
                        lua_typename(s->L, lua_type(s->L, -1)));
    lua_settop(s->L, 0);
    return st;
}

turbo_status turbod_lua_call(turbod_lua *s, int nargs, int nresults, int ms, turbo_err *err)
{
    s->deadline = now_ns() + (int64_t)ms * 1000000;
    lua_sethook(s->L, hook, LUA_MASKCOUNT, HOOK_EVERY);
    int status = lua_pcall(s->L, nargs, nresults, 0);
    lua_sethook(s->L, NULL, 0, 0);
    if (status != LUA_OK || s->dead)
        return explain(s, status, err);
    return TURBO_OK;
}

turbo_status turbod_lua_protect(turbod_lua *s, lua_CFunction fn, void *arg, int ms, turbo_err *err)
{
    lua_pushcfunction(s->L, fn); /* light C functions and userdata take no memory */
    lua_pushlightuserdata(s->L, arg);
    return turbod_lua_call(s, 1, LUA_MULTRET, ms, err);
}

turbo_status turbod_lua_open(turbod_lua *s, size_t extra, lua_CFunction bindings, turbo_err *err)
{
    *s = (turbod_lua){.cap = TURBOD_LUA_MEMORY + extra, .block = TURBOD_LUA_BLOCK + extra};
    s->L = lua_newstate(capped, s);
    if (!s->L)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a script");
    lua_pushcfunction(s->L, open_libraries);
    if (bindings)
        lua_pushcfunction(s->L, bindings);
    else
        lua_pushnil(s->L);
    turbo_status st = turbod_lua_call(s, 1, 0, 1000, err);
    if (st)
        turbod_lua_close(s);
    return st;
}

void turbod_lua_close(turbod_lua *s)
{
    if (!s->L)
        return;
    lua_sethook(s->L, NULL, 0, 0);
    lua_close(s->L);
    s->L = NULL;
}

turbo_status turbod_lua_run(turbod_lua *s, const turbod_script *script, int ms, turbo_err *err)
{
    int status = luaL_loadbufferx(s->L, script->code, script->len, script->name, "b");
    if (status != LUA_OK)
        return explain(s, status, err);
    return turbod_lua_call(s, 0, 0, ms, err);
}

/* ---- compiling ------------------------------------------------------------------------------------- */

static int append_code(lua_State *L, const void *p, size_t n, void *ud)
{
    turbod_script *s = ud;
    (void)L;
    char *code = realloc(s->code, s->len + n);
    if (!code)
        return 1;
    memcpy(code + s->len, p, n);
    s->code = code;
    s->len += n;
    return 0;
}

turbo_status turbod_script_compile(const char *source, size_t len, const char *name,
                                   turbod_script *out, turbo_err *err)
{
    char chunk[sizeof out->name + 1];
    turbod_lua s;
    *out = (turbod_script){0};
    snprintf(out->name, sizeof out->name, "%.120s", name);
    if (len > TURBOD_LUA_SOURCE_MAX)
        return turbod_err(err, TURBO_ELIMIT, "%s has %zu bytes; a script may have %u", out->name, len,
                          TURBOD_LUA_SOURCE_MAX);
    turbo_status st = turbod_lua_open(&s, 0, NULL, err);
    if (st)
        return st;
    snprintf(chunk, sizeof chunk, "@%s", out->name); /* messages read "file.lua:3: ..." */
    int status = luaL_loadbufferx(s.L, source, len, chunk, "t");
    if (status != LUA_OK)
        st = explain(&s, status, err);
    else if (lua_dump(s.L, append_code, out, 0))
        st = turbod_err(err, TURBO_ENOMEM, "no memory to compile %s", out->name);
    turbod_lua_close(&s);
    if (st)
        turbod_script_free(out);
    return st;
}

turbo_status turbod_script_load(const char *path, turbod_script *out, turbo_err *err)
{
    char folder[4096];
    uint8_t *text;
    uint64_t len;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = slash ? (size_t)(slash - path) : 1;
    *out = (turbod_script){0};
    if (n >= sizeof folder)
        return turbod_err(err, TURBO_ELIMIT, "the path of a script is too long");
    memcpy(folder, slash ? path : ".", n);
    folder[n] = '\0';
    turbo_status st = turbod_file_read(n ? folder : "/", name, TURBOD_LUA_SOURCE_MAX, &text, &len, err);
    if (st)
        return st;
    st = turbod_script_compile((const char *)text, len, name, out, err);
    free(text);
    return st;
}

void turbod_script_free(turbod_script *s)
{
    free(s->code);
    *s = (turbod_script){0};
}
