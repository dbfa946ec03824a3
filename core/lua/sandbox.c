/* core/lua/sandbox.c: see sandbox.h. One thread a state. doc/lua.md has the script's side. */
#include "lua/sandbox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "util/checked.h"
#include "util/err.h"
#include "util/file.h"
#include "util/utf8.h"

#define HOOK_EVERY 20 /* instructions; with 100 the slowest hostile script ran 139 ms */
#define BUSY_FACTOR 8 /* a script may wait this many budgets for a CPU before it ends regardless   \
                       */

static int64_t now_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Refuses growth beyond the caps; shrinking never fails. */
static void *capped(void *ud, void *ptr, size_t osize, size_t nsize)
{
    turbod_lua *s = ud;
    size_t old = ptr ? osize : 0; /* without ptr osize is a type tag */
    if (!nsize) {
        free(ptr);
        s->used -= old;
        return NULL;
    }
    s->starved = false;
    if (nsize > old && (nsize > s->block || s->used - old + nsize > s->cap))
        return NULL;
    void *p = realloc(ptr, nsize);
    s->starved = !p && nsize > old;
    if (!p && nsize <= old)
        p = ptr; /* the old block is large enough */
    if (p)
        s->used = s->used - old + nsize;
    return p;
}

turbod_lua *turbod_lua_of(lua_State *L)
{
    void *ud;
    lua_getallocf(L, &ud);
    return ud;
}

/* The clock that counts is the wall's, so that requests are answered in time. But time in which
 * this thread had no CPU is not the script's fault, and is given back within reason. */
static void hook(lua_State *L, lua_Debug *ar)
{
    turbod_lua *s = turbod_lua_of(L);
    (void)ar;
    if (!s->dead) {
        int64_t t = now_ns(CLOCK_MONOTONIC);
        if (t < s->deadline)
            return;
        int64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID) - s->cpu_start;
        if (cpu < s->budget && t < s->last) {
            s->deadline = t + (s->budget - cpu);
            return;
        }
        s->dead = true;
        lua_sethook(L, hook, LUA_MASKCOUNT, 1);
    }
    luaL_error(L, "script limit");
}

void turbod_lua_clock(turbod_lua *s, int64_t ms)
{
    int64_t t = now_ns(CLOCK_MONOTONIC);
    s->budget = ms * 1000000;
    s->deadline = t + s->budget;
    s->last = t + BUSY_FACTOR * s->budget;
    s->cpu_start = now_ns(CLOCK_THREAD_CPUTIME_ID);
}

static int open_libraries(lua_State *L)
{
    lua_CFunction bindings = lua_tocfunction(L, 1);
    turbod_lua_library(L);
    if (bindings)
        bindings(L);
    return 0;
}

/* A script's bytes as one line of valid UTF-8. */
static void say(turbo_err *err, const char *before, const char *text, size_t len)
{
    char clean[sizeof err->text];
    size_t n = len < sizeof clean - 1 ? len : sizeof clean - 1;
    while (n > 0 && n < len && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--; /* cut between two characters */
    memcpy(clean, text, n);
    clean[n] = '\0';
    for (size_t i = 0; i < n;) {
        size_t l = clean[i] ? turbod_utf8_len((const unsigned char *)clean + i, n - i) : 0;
        if (!l)
            clean[i] = '?';
        i += l ? l : 1;
    }
    turbod_err(err, 0, "%s%s", before, clean);
}

/* The error value as a line; only strings are looked at, so that nothing of the script runs here.
 */
static turbo_status explain(turbod_lua *s, int status, const turbod_script *script, turbo_err *err)
{
    char before[sizeof script->name + 3];
    const char *name = script ? script->name : "script";
    turbo_status st = TURBO_EDATA;
    if (s->dead) {
        st = turbod_err(err, TURBO_ELIMIT, "%s: script limit: it ran longer than %lld ms", name,
                        (long long)(s->budget / 1000000));
    } else if (s->no_memory || (status == LUA_ERRMEM && s->starved)) {
        st = turbod_err(err, TURBO_ENOMEM, "no memory for a script");
    } else if (status == LUA_ERRMEM) {
        st = turbod_err(err, TURBO_ELIMIT,
                        "%s: not enough memory: a script may use %zu MiB, %zu MiB "
                        "at a time",
                        name, TURBOD_LUA_MEMORY >> 20, TURBOD_LUA_BLOCK >> 20);
    } else if (lua_type(s->L, -1) == LUA_TSTRING) {
        size_t len, n = strlen(name);
        const char *text = lua_tolstring(s->L, -1, &len);
        bool own = s->raised && lua_topointer(s->L, -1) == s->raised;
        /* Lua's own texts begin with "file.lua:3:". */
        bool named = len > n && !memcmp(text, name, n) && text[n] == ':';
        snprintf(before, sizeof before, "%s%s", own || named ? "" : name, own || named ? "" : ": ");
        say(err, before, text, len);
        st = own ? TURBO_EINVAL : TURBO_EDATA;
    } else {
        turbod_err(err, st, "%s: it raised a %s; error() takes a text", name,
                   lua_typename(s->L, lua_type(s->L, -1)));
    }
    lua_settop(s->L, 0);
    return st;
}

turbo_status turbod_lua_call(turbod_lua *s, int nargs, int nresults, const turbod_script *script,
                             turbo_err *err)
{
    s->raised = NULL;
    s->no_memory = false;
    lua_sethook(s->L, hook, LUA_MASKCOUNT, HOOK_EVERY);
    int status = lua_pcall(s->L, nargs, nresults, 0);
    lua_sethook(s->L, NULL, 0, 0);
    if (status != LUA_OK || s->dead)
        return explain(s, status, script, err);
    return TURBO_OK;
}

turbo_status turbod_lua_protect(turbod_lua *s, lua_CFunction fn, void *arg,
                                const turbod_script *script, turbo_err *err)
{
    lua_pushcfunction(s->L, fn); /* light C functions and userdata take no memory */
    lua_pushlightuserdata(s->L, arg);
    return turbod_lua_call(s, 1, LUA_MULTRET, script, err);
}

turbo_status turbod_lua_open(turbod_lua *s, size_t extra, lua_CFunction bindings, turbo_err *err)
{
    *s = (turbod_lua){.cap = TURBOD_LUA_MEMORY, .block = TURBOD_LUA_BLOCK};
    if (!turbod_add(s->cap, extra, &s->cap) || !turbod_add(s->block, extra, &s->block))
        return turbod_err(err, TURBO_ELIMIT, "a script's data is too large");
    s->L = lua_newstate(capped, s);
    if (!s->L)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a script");
    turbod_lua_clock(s, 1000);
    lua_pushcfunction(s->L, open_libraries);
    if (bindings)
        lua_pushcfunction(s->L, bindings);
    else
        lua_pushnil(s->L);
    turbo_status st = turbod_lua_call(s, 1, 0, NULL, err);
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

turbo_status turbod_lua_run(turbod_lua *s, const turbod_script *script, turbo_err *err)
{
    int status = luaL_loadbufferx(s->L, script->code, script->len, script->name, "b");
    if (status != LUA_OK)
        return explain(s, status, script, err);
    return turbod_lua_call(s, 0, 0, script, err);
}

/* ---- compiling
 * ------------------------------------------------------------------------------------- */

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
        return turbod_err(err, TURBO_ELIMIT, "%s has %zu bytes; a script may have %u", out->name,
                          len, TURBOD_LUA_SOURCE_MAX);
    turbo_status st = turbod_lua_open(&s, 0, NULL, err);
    if (st)
        return st;
    snprintf(chunk, sizeof chunk, "@%s", out->name); /* messages read "file.lua:3: ..." */
    int status = luaL_loadbufferx(s.L, source, len, chunk, "t");
    if (status != LUA_OK)
        st = explain(&s, status, out, err);
    else if (lua_dump(s.L, append_code, out, 0))
        st = turbod_err(err, TURBO_ENOMEM, "no memory to compile %s", out->name);
    turbod_lua_close(&s);
    if (st)
        turbod_script_free(out);
    return st;
}

turbo_status turbod_script_read(const char *path, char **text, size_t *n_text, turbo_err *err)
{
    char folder[4096];
    uint8_t *bytes;
    uint64_t len;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = slash ? (size_t)(slash - path) : 1;
    if (n >= sizeof folder)
        return turbod_err(err, TURBO_ELIMIT, "the path of a script is too long");
    memcpy(folder, slash ? path : ".", n);
    folder[n] = '\0';
    turbo_status st =
        turbod_file_read(n ? folder : "/", name, TURBOD_LUA_SOURCE_MAX, &bytes, &len, err);
    if (st)
        return st;
    *text = (char *)bytes;
    *n_text = len;
    return TURBO_OK;
}

turbo_status turbod_script_load(const char *path, turbod_script *out, turbo_err *err)
{
    char *text = NULL;
    size_t len = 0;
    const char *slash = strrchr(path, '/');
    *out = (turbod_script){0};
    turbo_status st = turbod_script_read(path, &text, &len, err);
    if (!st)
        st = turbod_script_compile(text, len, slash ? slash + 1 : path, out, err);
    free(text);
    return st;
}

void turbod_script_free(turbod_script *s)
{
    free(s->code);
    *s = (turbod_script){0};
}
