/* core/lua/sandbox.h: Lua 5.4 states that hostile scripts cannot leave.
 *
 * A script is compiled once and runs in a fresh state each time (tens of microseconds), so nothing
 * passes from one request to the next and no state is shared by threads. A state has a capped
 * allocator, a trimmed library, no metatables, and a hook that ends it when its time is over; once
 * over, every further instruction raises again, so pcall cannot swallow it. */
#ifndef TURBOD_SANDBOX_H
#define TURBOD_SANDBOX_H

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "turbo/plugin.h"

#define TURBOD_LUA_SOURCE_MAX (64u << 10)
#define TURBOD_LUA_MEMORY ((size_t)8 << 20)
#define TURBOD_LUA_BLOCK ((size_t)1 << 20)
#define TURBOD_LUA_REQUEST_MS 50

/* A compiled script. Read-only after load; any thread. */
typedef struct turbod_script {
    char name[128]; /* file name, for messages */
    char *code; /* bytecode made by this process from checked source */
    size_t len;
} turbod_script;

/* The source of a script file; *text is the caller's, free(). */
turbo_status turbod_script_read(const char *path, char **text, size_t *len, turbo_err *err);
turbo_status turbod_script_load(const char *path, turbod_script *out, turbo_err *err);
turbo_status turbod_script_compile(const char *source, size_t len, const char *name,
                                   turbod_script *out, turbo_err *err);
void turbod_script_free(turbod_script *s);

/* One state. One thread at a time; lives for one call. Must not move while it is open. */
typedef struct turbod_lua {
    lua_State *L;
    size_t used, cap, block;
    int64_t budget; /* ns; the whole visit of a script has one */
    int64_t deadline, last; /* monotonic ns; last: not even on a busy machine */
    int64_t cpu_start; /* ns of this thread */
    const void *raised; /* the string that the script gave to error() or assert() */
    bool dead; /* time is over: sticky */
    bool starved; /* the last growth was refused by the machine, not by the caps */
    bool no_memory; /* a function of the host had none: that is why it raised */
} turbod_lua;

/* extra: bytes the state may take beyond its cap, for data the host puts in. bindings(L) adds the
 * script's `turbo` table under protection (it may raise). No clock runs yet. */
turbo_status turbod_lua_open(turbod_lua *s, size_t extra, lua_CFunction bindings, turbo_err *err);
void turbod_lua_close(turbod_lua *s); /* a zeroed one is allowed */
turbod_lua *turbod_lua_of(lua_State *L);

/* Starts the clock that the calls below share. */
void turbod_lua_clock(turbod_lua *s, int64_t ms);
/* All three: EINVAL the script ended itself with error("text") or assert(x, "text"), err is that
 * text; EDATA the script is wrong; ELIMIT out of time or memory. The texts of the last two name
 * `script`. */
/* Loads the script's chunk and runs it. */
turbo_status turbod_lua_run(turbod_lua *s, const turbod_script *script, turbo_err *err);
/* lua_pcall: function and arguments are on the stack. */
turbo_status turbod_lua_call(turbod_lua *s, int nargs, int nresults, const turbod_script *script,
                             turbo_err *err);
/* Runs fn(L) protected, with arg as light userdata at index 1; for building tables. */
turbo_status turbod_lua_protect(turbod_lua *s, lua_CFunction fn, void *arg,
                                const turbod_script *script, turbo_err *err);

void turbod_lua_library(lua_State *L); /* library.c: fills _G; raises */

#endif
