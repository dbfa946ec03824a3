/* core/lua/policy.c: see policy.h. Any thread; the only thing requests share is the count of
 * time-outs, behind a mutex that is never held while a script runs. */
#include "lua/policy.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lua/bind.h"
#include "util/err.h"
#include "util/log.h"
#include "util/utf8.h"

#define MAX_ARGS 1024
#define MAX_ARG_DEPTH 8
#define MAX_ARG_NAMES 32
#define MAX_TIMEOUTS 5 /* of a policy ... */
#define TIMEOUT_WINDOW 60 /* ... within so many seconds switch it off */
#define REQUEST "turbo.request"

struct turbod_policy {
    turbod_script script;
    char name[65];
    bool skip; /* on_error = "skip" */
    struct timeouts {
        pthread_mutex_t mu;
        int64_t at[MAX_TIMEOUTS]; /* seconds; a ring */
        unsigned n;
        bool off;
        _Atomic uint64_t runs, errors, nano; /* for /metrics; not under mu */
    } * timeouts;
};

typedef struct policy_job {
    const turbod_policy *policy;
    turbo_sample_params *params; /* what the script sees and changes */
    turbo_sample_params asked; /* what the caller asked for */
    const cJSON *args;
    turbod_policy *load; /* while loading: on_error goes here */
    uint64_t draws; /* of req:random() */
    bool args_wrong;
    bool is_rejected;
    bool timed_out;
    char rejected[200];
} policy_job;

static const char key_policy, key_job; /* registry keys; their addresses count */

static policy_job *job_of(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_job);
    policy_job *j = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return j;
}

/* ---- turbo.policy --------------------------------------------------------------------------- */

static void check_field(lua_State *L, const char *key, int value)
{
    static const char *const later[] = {"token", "finish", "logits"};
    int t = lua_type(L, value);
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++)
        if (!strcmp(key, later[i]))
            luaL_error(L,
                       "turbo.policy: the hook \"%s\" is not run by this version; init and request "
                       "are",
                       key);
    if (!strcmp(key, "init") || !strcmp(key, "request")) {
        if (t != LUA_TFUNCTION)
            luaL_error(L, "turbo.policy: %s must be a function", key);
    } else if (!strcmp(key, "chain")) {
        if (!turbod_chain_is(L, value))
            luaL_error(L, "turbo.policy: chain must be made by turbo.chain()");
    } else if (!strcmp(key, "on_error")) {
        const char *v = t == LUA_TSTRING ? lua_tostring(L, value) : "";
        if (strcmp(v, "fail") && strcmp(v, "skip"))
            luaL_error(L, "turbo.policy: on_error must be \"fail\" or \"skip\"");
    } else if (!strcmp(key, "args")) {
        if (t != LUA_TTABLE || lua_rawlen(L, value) > MAX_ARG_NAMES)
            luaL_error(L, "turbo.policy: args must be a list of at most %d names", MAX_ARG_NAMES);
    } else {
        luaL_error(
            L,
            "turbo.policy: unknown field \"%s\"; init, request, chain, args and on_error are "
            "known",
            key);
    }
}

/* turbo.policy{...} or turbo.policy(chain). */
static int bind_policy(lua_State *L)
{
    lua_settop(L, 1);
    if (turbod_chain_is(L, 1)) {
        lua_createtable(L, 0, 1);
        lua_insert(L, 1);
        lua_setfield(L, 1, "chain");
    }
    if (lua_type(L, 1) != LUA_TTABLE)
        return luaL_error(L, "turbo.policy takes a table of hooks or a chain");
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_policy) != LUA_TNIL)
        return luaL_error(L, "turbo.policy is called a second time");
    lua_settop(L, 1);
    int fields = 0;
    lua_pushnil(L);
    while (lua_next(L, 1)) {
        check_field(L, lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?", 3);
        fields++;
        lua_pop(L, 1);
    }
    if (!fields)
        return luaL_error(L, "turbo.policy: a policy needs a chain or a request hook");
    /* A copy: a script that keeps its table cannot slip another kind of value in later. */
    static const char *const keys[] = {"init", "request", "chain", "on_error", "args"};
    lua_createtable(L, 0, 5);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        lua_pushstring(L, keys[i]);
        lua_rawget(L, 1);
        lua_setfield(L, 2, keys[i]);
    }
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_policy);
    return 0;
}

static int bindings(lua_State *L)
{
    lua_newtable(L);
    lua_pushcfunction(L, bind_policy);
    lua_setfield(L, -2, "policy");
    lua_pushcfunction(L, turbod_chain_new);
    lua_setfield(L, -2, "chain");
    lua_setglobal(L, "turbo");
    return 0;
}

/* ---- the request object --------------------------------------------------------------------- */

static int req_use(lua_State *L)
{
    policy_job *j = job_of(L);
    turbod_chain_apply(L, 2, j->params);
    lua_settop(L, 1);
    return 1;
}

/* Ends the script; pcall cannot undo it. The first text counts. */
static int req_reject(lua_State *L)
{
    policy_job *j = job_of(L);
    size_t n = 0;
    const char *why = lua_type(L, 2) == LUA_TSTRING ? lua_tolstring(L, 2, &n) : NULL;
    if (!why || !n)
        return luaL_error(L, "req:reject takes the reason, a text");
    if (!j->is_rejected) {
        turbo_err line;
        turbod_err(&line, 0, "%.*s", (int)(n < sizeof j->rejected ? n : sizeof j->rejected - 1),
                   why);
        size_t len = strlen(line.text);
        bool whole = turbod_utf8_valid(line.text, len);
        while (!whole && len > 0) /* cut inside a character, or not UTF-8 from the start */
            whole = turbod_utf8_valid(line.text, --len);
        memcpy(j->rejected, line.text, len);
        j->rejected[len] = '\0';
        j->is_rejected = true;
    }
    turbod_lua_of(L)->dead = true; /* every later instruction raises */
    lua_sethook(L, lua_gethook(L), LUA_MASKCOUNT, 1);
    return luaL_error(L, "rejected");
}

/* req:random(): a number in [0,1); req:random(m, n): a whole number in m..n. From the request's
 * seed. */
static int req_random(lua_State *L)
{
    policy_job *j = job_of(L);
    uint64_t x = j->asked.seed + UINT64_C(0x9e3779b97f4a7c15) * ++j->draws;
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
        {"use", req_use}, {"reject", req_reject}, {"random", req_random}, {NULL, NULL}};
    policy_job *j = job_of(L);
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    const param_row *row = turbod_param_find(key);
    if (row) {
        turbod_param_push(L, j->params, row);
        return 1;
    }
    for (const luaL_Reg *m = methods; m->name; m++)
        if (!strcmp(key, m->name)) {
            lua_pushcfunction(L, m->func);
            return 1;
        }
    if (!strcmp(key, "args") || !strcmp(key, "asked")) {
        lua_getiuservalue(L, 1, key[1] == 'r' ? 1 : 2);
        return 1;
    }
    if (!strcmp(key, "policy")) {
        lua_pushstring(L, j->policy->name);
        return 1;
    }
    return luaL_error(L,
                      "a request has no field \"%s\"; it has args, asked, policy, use, reject, "
                      "random, %s",
                      key, turbod_param_names());
}

static int req_newindex(lua_State *L)
{
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    const param_row *row = turbod_param_find(key);
    if (!row)
        return luaL_error(L, "req.%s cannot be set; possible are %s", key, turbod_param_names());
    turbod_param_set(L, job_of(L)->params, row, 3);
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

/* A name that the policy does not list is the caller's mistake, and he is told. */
static void check_args(lua_State *L, policy_job *j, int policy)
{
    bool hook = lua_getfield(L, policy, "request") == LUA_TFUNCTION;
    bool listed = lua_getfield(L, policy, "args") == LUA_TTABLE;
    int list = lua_gettop(L);
    for (const cJSON *m = j->args ? j->args->child : NULL; m; m = m->next) {
        bool known = hook && !listed;
        for (lua_Integer i = 1; listed && !known && i <= MAX_ARG_NAMES; i++) {
            known =
                lua_rawgeti(L, list, i) == LUA_TSTRING && !strcmp(lua_tostring(L, -1), m->string);
            lua_pop(L, 1);
        }
        if (!known) {
            j->args_wrong = true;
            luaL_error(L, "policy_args: the policy %s takes no \"%s\"", j->policy->name, m->string);
        }
    }
    lua_settop(L, list - 2);
}

static void push_request(lua_State *L, policy_job *j)
{
    int left = MAX_ARGS;
    lua_newuserdatauv(L, 0, 2);
    int req = lua_gettop(L);
    if (j->args)
        push_json(L, j->args, 0, &left);
    else
        lua_newtable(L);
    lua_setiuservalue(L, req, 1);
    lua_newtable(L);
    for (const char *p = turbod_param_names(); *p;) {
        char name[32];
        size_t n = strcspn(p, ",");
        memcpy(name, p, n);
        name[n] = '\0';
        turbod_param_push(L, &j->asked, turbod_param_find(name));
        lua_setfield(L, -2, name);
        p += n + strspn(p + n, ", ");
    }
    lua_setiuservalue(L, req, 2);
    if (luaL_newmetatable(L, REQUEST)) {
        lua_pushcfunction(L, req_index);
        lua_setfield(L, -2, "__index");
        lua_pushcfunction(L, req_newindex);
        lua_setfield(L, -2, "__newindex");
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
    }
    lua_setmetatable(L, req);
}

/* ---- running ----------------------------------------------------------------------------------
 */

/* After the script's main chunk: its init hook. */
static int run_init(lua_State *L)
{
    policy_job *j = job_of(L);
    lua_settop(L, 0);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_policy) != LUA_TTABLE)
        return luaL_error(L, "the script does not call turbo.policy");
    if (j->load) {
        lua_getfield(L, 1, "on_error");
        j->load->skip = lua_type(L, -1) == LUA_TSTRING && !strcmp(lua_tostring(L, -1), "skip");
    }
    if (lua_getfield(L, 1, "init") == LUA_TFUNCTION) {
        lua_createtable(L, 0, 1);
        lua_pushstring(L, j->policy->name);
        lua_setfield(L, -2, "name");
        lua_call(L, 1, 0);
    }
    return 0;
}

static int run_request(lua_State *L)
{
    policy_job *j = job_of(L);
    lua_settop(L, 0);
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_policy);
    check_args(L, j, 1);
    if (lua_getfield(L, 1, "chain") != LUA_TNIL)
        turbod_chain_apply(L, 2, j->params);
    if (lua_getfield(L, 1, "request") == LUA_TFUNCTION) {
        push_request(L, j);
        lua_call(L, 1, 0);
    }
    return 0;
}

static int set_job(lua_State *L)
{
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_job);
    return 0;
}

static turbo_status run(policy_job *j, bool request, turbo_err *err)
{
    turbod_lua s;
    const turbod_script *script = &j->policy->script;
    turbo_status st = turbod_lua_open(&s, 0, bindings, err);
    if (st)
        return st;
    turbod_lua_clock(&s, TURBOD_LUA_REQUEST_MS);
    st = turbod_lua_protect(&s, set_job, j, script, err);
    if (!st)
        st = turbod_lua_run(&s, script, err);
    if (!st)
        st = turbod_lua_protect(&s, run_init, j, script, err);
    if (!st && request)
        st = turbod_lua_protect(&s, run_request, j, script, err);
    j->timed_out = s.dead && !j->is_rejected;
    turbod_lua_close(&s);
    if (st == TURBO_EINVAL) { /* error("text"): in a policy that is a failure like any other */
        turbo_err said = *err;
        st = turbod_err(err, TURBO_EDATA, "%s: %.160s", script->name, said.text);
    }
    return st;
}

turbo_status turbod_policy_load(const char *path, const char *name, turbod_policy **out,
                                turbo_err *err)
{
    turbod_policy *p = calloc(1, sizeof *p);
    if (p)
        p->timeouts = calloc(1, sizeof *p->timeouts);
    if (!p || !p->timeouts) {
        free(p);
        return turbod_err(err, TURBO_ENOMEM, "no memory for a policy");
    }
    pthread_mutex_init(&p->timeouts->mu, NULL);
    strncpy(p->name, name, sizeof p->name - 1);
    policy_job job = {.policy = p, .load = p};
    turbo_status st = turbod_script_load(path, &p->script, err);
    if (!st)
        st = run(&job, false, err);
    if (st)
        turbod_policy_free(p);
    else
        *out = p;
    return st;
}

void turbod_policy_free(turbod_policy *p)
{
    if (!p)
        return;
    turbod_script_free(&p->script);
    pthread_mutex_destroy(&p->timeouts->mu);
    free(p->timeouts);
    free(p);
}

const char *turbod_policy_name(const turbod_policy *p)
{
    return p->name;
}

/* Notes a run that took too long; the fifth within the window switches the policy off. */
static void note_timeout(struct timeouts *t, const char *name)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&t->mu);
    t->at[t->n++ % MAX_TIMEOUTS] = (int64_t)now.tv_sec;
    /* What would be overwritten next is the oldest of the last five. */
    bool off = !t->off && t->n >= MAX_TIMEOUTS &&
               (int64_t)now.tv_sec - t->at[t->n % MAX_TIMEOUTS] <= TIMEOUT_WINDOW;
    t->off = t->off || off;
    pthread_mutex_unlock(&t->mu);
    if (off)
        turbod_log(TURBO_LOG_ERROR,
                   "policy %s is switched off: it ran too long %d times within %d s", name,
                   MAX_TIMEOUTS, TIMEOUT_WINDOW);
}

static bool is_off(struct timeouts *t)
{
    pthread_mutex_lock(&t->mu);
    bool off = t->off;
    pthread_mutex_unlock(&t->mu);
    return off;
}

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Runs the request hook, and counts what it cost. */
static turbo_status counted_run(policy_job *j, turbo_err *err)
{
    struct timeouts *t = j->policy->timeouts;
    int64_t t0 = now_ns();
    turbo_status st = run(j, true, err);
    atomic_fetch_add(&t->nano, (uint64_t)(now_ns() - t0));
    atomic_fetch_add(&t->runs, 1);
    if (st && !j->is_rejected && !j->args_wrong)
        atomic_fetch_add(&t->errors, 1);
    return st;
}

turbod_policy_stat turbod_policy_stat_of(const turbod_policy *p)
{
    struct timeouts *t = p->timeouts;
    return (turbod_policy_stat){
        .runs = atomic_load(&t->runs),
        .errors = atomic_load(&t->errors),
        .seconds = (double)atomic_load(&t->nano) * 1e-9,
    };
}

turbo_status turbod_policy_request(const turbod_policy *policy, turbo_sample_params *p,
                                   const cJSON *args, turbo_err *err)
{
    turbo_sample_params changed = *p; /* a script that fails half-way changes nothing */
    policy_job job = {.policy = policy, .params = &changed, .asked = *p, .args = args};
    turbo_status st;
    turbo_err why = {{0}};
    if (args && !cJSON_IsObject(args))
        return turbod_err(err, TURBO_EINVAL, "policy_args must be an object");
    if (is_off(policy->timeouts))
        st = turbod_err(&why, TURBO_ELIMIT,
                        "the policy %s is switched off: it ran too long %d times; "
                        "mend it and reload",
                        policy->name, MAX_TIMEOUTS);
    else
        st = counted_run(&job, &why);
    if (job.timed_out)
        note_timeout(policy->timeouts, policy->name);
    if (job.is_rejected)
        return turbod_err(err, TURBO_ECANCELLED, "%s", job.rejected);
    if (job.args_wrong)
        return turbod_err(err, TURBO_EINVAL, "%s", why.text);
    if (!st) {
        *p = changed;
        return TURBO_OK;
    }
    turbod_log(TURBO_LOG_WARN, "policy %s: %s", policy->name, why.text);
    if (policy->skip)
        return TURBO_OK;
    return turbod_err(err, st, "%s", why.text);
}
