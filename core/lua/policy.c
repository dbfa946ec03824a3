/* core/lua/policy.c: a policy: its script, its run before a request is queued, its time-outs. Any thread;
 * requests share the script and the count of time-outs, behind a mutex that is never held while a script
 * runs. */
#include "lua/policy.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lua/run.h"
#include "util/err.h"
#include "util/log.h"

#define MAX_ARG_NAMES 32

static const char key_policy, key_run; /* registry keys; their addresses count */

static const struct {
    const char *name;
    unsigned bit;
} hook_names[] = {{"request", HOOK_REQUEST},
                  {"logits", HOOK_LOGITS},
                  {"token", HOOK_TOKEN},
                  {"finish", HOOK_FINISH}};
#define N_HOOKS (sizeof hook_names / sizeof hook_names[0])

policy_run *turbod_run_of(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_run);
    policy_run *r = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return r;
}

void turbod_run_push_policy(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &key_policy);
}

const turbod_policy_env *turbod_env_of(lua_State *L)
{
    const policy_run *r = turbod_run_of(L);
    return r && r->policy ? &r->policy->env : NULL;
}

/* ---- turbo.policy --------------------------------------------------------------------------- */

static unsigned hook_bit(const char *key)
{
    for (size_t i = 0; i < N_HOOKS; i++)
        if (!strcmp(key, hook_names[i].name))
            return hook_names[i].bit;
    return 0;
}

static void check_field(lua_State *L, const char *key, int value)
{
    int t = lua_type(L, value);
    if (hook_bit(key) || !strcmp(key, "init")) {
        if (t != LUA_TFUNCTION)
            luaL_error(L, "turbo.policy: %s must be a function", key);
    } else if (!strcmp(key, "chain")) {
        if (!turbod_chain_get(L, value))
            luaL_error(L, "turbo.policy: chain must be made by turbo.chain()");
    } else if (!strcmp(key, "on_error")) {
        const char *v = t == LUA_TSTRING ? lua_tostring(L, value) : "";
        if (strcmp(v, "fail") && strcmp(v, "skip"))
            luaL_error(L, "turbo.policy: on_error must be \"fail\" or \"skip\"");
    } else if (!strcmp(key, "args")) {
        if (t != LUA_TTABLE || lua_rawlen(L, value) > MAX_ARG_NAMES)
            luaL_error(L, "turbo.policy: args must be a list of at most %d names", MAX_ARG_NAMES);
    } else {
        luaL_error(L,
                   "turbo.policy: unknown field \"%s\"; init, request, logits, token, finish, "
                   "chain, args and on_error are known",
                   key);
    }
}

/* turbo.policy{...} or turbo.policy(chain). */
static int bind_policy(lua_State *L)
{
    lua_settop(L, 1);
    if (turbod_chain_get(L, 1)) {
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
        return luaL_error(L, "turbo.policy: a policy needs a chain or a hook");
    /* A copy: a script that keeps its table cannot slip another kind of value in later. */
    static const char *const keys[] = {"init",   "request", "logits",   "token",
                                       "finish", "chain",   "on_error", "args"};
    lua_createtable(L, 0, 8);
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
    turbod_tokens_push(L);
    lua_setfield(L, -2, "tokens");
    lua_pushcfunction(L, turbod_tokens_encode);
    lua_setfield(L, -2, "encode");
    lua_setglobal(L, "turbo");
    return 0;
}

/* ---- running -------------------------------------------------------------------------------- */

static int set_run(lua_State *L)
{
    lua_rawsetp(L, LUA_REGISTRYINDEX, &key_run);
    return 0;
}

/* After the script's main chunk: its init hook. */
static int run_init(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    lua_settop(L, 0);
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_policy) != LUA_TTABLE)
        return luaL_error(L, "the script does not call turbo.policy");
    if (r->loading) {
        lua_getfield(L, 1, "on_error");
        r->loading->skip = lua_type(L, -1) == LUA_TSTRING && !strcmp(lua_tostring(L, -1), "skip");
        lua_pop(L, 1);
        for (size_t i = 0; i < N_HOOKS; i++) {
            bool there = lua_getfield(L, 1, hook_names[i].name) == LUA_TFUNCTION;
            r->loading->hooks |= there ? hook_names[i].bit : 0;
            lua_pop(L, 1);
        }
    }
    if (lua_getfield(L, 1, "init") == LUA_TFUNCTION) {
        lua_createtable(L, 0, 1);
        lua_pushstring(L, r->policy->name);
        lua_setfield(L, -2, "name");
        lua_call(L, 1, 0);
    }
    return 0;
}

turbo_status turbod_run_open(policy_run *r, turbo_err *err)
{
    const turbod_script *script = &r->policy->script;
    turbo_status st = turbod_lua_open(&r->lua, 0, bindings, err);
    if (st)
        return st;
    turbod_lua_clock(&r->lua, TURBOD_LUA_REQUEST_MS);
    st = turbod_lua_protect(&r->lua, set_run, r, script, err);
    if (!st)
        st = turbod_lua_run(&r->lua, script, err);
    if (!st)
        st = turbod_lua_protect(&r->lua, run_init, r, script, err);
    return st;
}

void turbod_run_close(policy_run *r)
{
    turbod_lua_close(&r->lua);
    turbod_policy_free(r->policy);
    free(r->base);
    free(r->program);
    free(r);
}

/* A name that the policy does not list is the caller's mistake, and he is told. */
static void check_args(lua_State *L, policy_run *r, int policy)
{
    bool hook = lua_getfield(L, policy, "request") == LUA_TFUNCTION ||
                (r->policy->hooks & HOOKS_WHILE_RUNNING);
    bool listed = lua_getfield(L, policy, "args") == LUA_TTABLE;
    int list = lua_gettop(L);
    for (const cJSON *m = r->args ? r->args->child : NULL; m; m = m->next) {
        bool known = hook && !listed;
        for (lua_Integer i = 1; listed && !known && i <= MAX_ARG_NAMES; i++) {
            known =
                lua_rawgeti(L, list, i) == LUA_TSTRING && !strcmp(lua_tostring(L, -1), m->string);
            lua_pop(L, 1);
        }
        if (!known) {
            r->args_wrong = true;
            luaL_error(L, "policy_args: the policy %s takes no \"%s\"", r->policy->name, m->string);
        }
    }
    lua_settop(L, list - 2);
}

static int run_request(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    lua_settop(L, 0);
    turbod_run_push_policy(L);
    check_args(L, r, 1);
    if (lua_getfield(L, 1, "chain") != LUA_TNIL)
        turbod_request_use(L, r, turbod_chain_check(L, 2));
    turbod_request_push(L, r); /* with the arguments, for all hooks */
    if (lua_getfield(L, 1, "request") == LUA_TFUNCTION) {
        lua_insert(L, -2);
        r->in_hook = HOOK_REQUEST;
        lua_call(L, 1, 0);
    }
    return 0;
}

/* error("text") in a policy is a failure like any other. */
static turbo_status failed(const policy_run *r, turbo_status st, turbo_err *err)
{
    if (st != TURBO_EINVAL)
        return st;
    turbo_err said = *err;
    return turbod_err(err, TURBO_EDATA, "%s: %.160s", r->policy->script.name, said.text);
}

static policy_run *new_run(turbod_policy *p, turbo_err *err)
{
    policy_run *r = calloc(1, sizeof *r);
    if (!r)
        turbod_err(err, TURBO_ENOMEM, "no memory for a policy");
    else
        r->policy = turbod_policy_ref(p);
    return r;
}

/* Of a policy without hooks each request gets the same: its chain is kept, and no script runs for it. */
static int keep_chain(lua_State *L)
{
    turbod_policy *p = turbod_run_of(L)->loading;
    lua_settop(L, 0);
    turbod_run_push_policy(L);
    if (lua_getfield(L, 1, "chain") == LUA_TNIL)
        return 0;
    const chain *c = turbod_chain_check(L, 2);
    p->fixed = c->values;
    p->fixed_which = c->params;
    if (c->plain)
        return 0;
    p->fixed_steps = turbod_program_copy(c->steps, c->n, NULL, 0);
    p->n_fixed = c->n;
    if (!p->fixed_steps) {
        turbod_lua_of(L)->no_memory = true;
        luaL_error(L, "no memory for a sampling program");
    }
    return 0;
}

/* ---- policies ------------------------------------------------------------------------------- */

static turbo_status make(const char *source, size_t len, const char *file, const char *name,
                         const turbod_policy_env *env, turbod_policy **out, turbo_err *err)
{
    static _Atomic uint64_t generations; /* a count for people, shown by GET /v1/policies */
    turbod_policy *p = calloc(1, sizeof *p);
    if (!p)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a policy");
    atomic_init(&p->refs, 1);
    pthread_mutex_init(&p->mu, NULL);
    strncpy(p->name, name, sizeof p->name - 1);
    if (env)
        p->env = *env;
    p->source = malloc(len + 1);
    turbo_status st = p->source ? turbod_script_compile(source, len, file, &p->script, err)
                                : turbod_err(err, TURBO_ENOMEM, "no memory for a policy");
    if (!st) {
        memcpy(p->source, source, len);
        p->source_len = len;
        policy_run *r = new_run(p, err);
        st = TURBO_ENOMEM;
        if (r) {
            r->loading = p;
            st = turbod_run_open(r, err);
            if (!st && !p->hooks)
                st = turbod_lua_protect(&r->lua, keep_chain, NULL, &p->script, err);
            st = failed(r, st, err);
            turbod_run_close(r);
        }
    }
    p->generation = atomic_fetch_add(&generations, 1) + 1;
    if (st)
        turbod_policy_free(p);
    else
        *out = p;
    return st;
}

turbo_status turbod_policy_load(const char *path, const char *name, const turbod_policy_env *env,
                                turbod_policy **out, turbo_err *err)
{
    char *text = NULL;
    size_t len = 0;
    const char *slash = strrchr(path, '/');
    turbo_status st = turbod_script_read(path, &text, &len, err);
    if (!st)
        st = make(text, len, slash ? slash + 1 : path, name, env, out, err);
    free(text);
    return st;
}

turbo_status turbod_policy_compile(const char *source, size_t len, const char *name,
                                   const turbod_policy_env *env, turbod_policy **out,
                                   turbo_err *err)
{
    char file[80];
    snprintf(file, sizeof file, "%.64s.lua", name);
    return make(source, len, file, name, env, out, err);
}

turbod_policy *turbod_policy_ref(turbod_policy *p)
{
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
    return p;
}

void turbod_policy_free(turbod_policy *p)
{
    if (!p || atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1)
        return;
    turbod_script_free(&p->script);
    free(p->source);
    free(p->fixed_steps);
    pthread_mutex_destroy(&p->mu);
    free(p);
}

const char *turbod_policy_name(const turbod_policy *p)
{
    return p->name;
}

const char *turbod_policy_source(const turbod_policy *p, size_t *len)
{
    *len = p->source_len;
    return p->source;
}

const char *turbod_policy_hooks(const turbod_policy *p, char text[64])
{
    size_t n = 0;
    text[0] = '\0';
    for (size_t i = 0; i < N_HOOKS; i++)
        if (p->hooks & hook_names[i].bit)
            n += (size_t)snprintf(text + n, 64 - n, "%s%s", n ? ", " : "", hook_names[i].name);
    return n ? text : "chain";
}

uint64_t turbod_policy_generation(const turbod_policy *p)
{
    return p->generation;
}

/* ---- time-outs ------------------------------------------------------------------------------ */

void turbod_run_note_timeout(turbod_policy *p)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&p->mu);
    p->timeouts[p->n_timeouts++ % MAX_TIMEOUTS] = (int64_t)now.tv_sec;
    /* What would be overwritten next is the oldest of the last five. */
    bool off = !p->off && p->n_timeouts >= MAX_TIMEOUTS &&
               (int64_t)now.tv_sec - p->timeouts[p->n_timeouts % MAX_TIMEOUTS] <= TIMEOUT_WINDOW;
    p->off = p->off || off;
    pthread_mutex_unlock(&p->mu);
    if (off)
        turbod_log(TURBO_LOG_ERROR,
                   "policy %s is switched off: it ran too long %d times within %d s", p->name,
                   MAX_TIMEOUTS, TIMEOUT_WINDOW);
}

static bool is_off(turbod_policy *p)
{
    pthread_mutex_lock(&p->mu);
    bool off = p->off;
    pthread_mutex_unlock(&p->mu);
    return off;
}

/* ---- counts --------------------------------------------------------------------------------- */

int64_t turbod_run_clock(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

void turbod_run_count(turbod_policy *p, int64_t t0, bool error)
{
    atomic_fetch_add(&p->nano, (uint64_t)(turbod_run_clock() - t0));
    atomic_fetch_add(&p->runs, 1);
    if (error)
        atomic_fetch_add(&p->errors, 1);
}

turbod_policy_stat turbod_policy_stat_of(const turbod_policy *p)
{
    return (turbod_policy_stat){
        .runs = atomic_load(&p->runs),
        .errors = atomic_load(&p->errors),
        .seconds = (double)atomic_load(&p->nano) * 1e-9,
    };
}

/* ---- a request ------------------------------------------------------------------------------ */

void turbod_policy_result_free(turbod_policy_result *o)
{
    free(o->program);
    if (o->steer)
        o->steer->free(o->steer);
    *o = (turbod_policy_result){0};
}

static turbo_status give_program(turbod_policy_result *out, const turbo_sample_step *steps,
                                 int32_t n, turbo_err *err)
{
    if (!n)
        return TURBO_OK;
    out->program = turbod_program_copy(steps, n, NULL, 0);
    if (!out->program)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a sampling program");
    out->params.program = out->program;
    out->params.n_program = n;
    return TURBO_OK;
}

/* Changed parameters and program to the caller; the run itself when it has more to do. */
static turbo_status hand_over(policy_run *r, turbod_policy_result *out, turbo_err *err)
{
    out->params = r->now;
    turbo_status st = give_program(out, r->base, r->n_base, err);
    if (st)
        return st;
    if (r->policy->hooks & HOOKS_WHILE_RUNNING) {
        r->args = NULL;
        r->in_hook = 0;
        turbod_steer_init(&r->steer);
        out->steer = &r->steer;
    }
    return TURBO_OK;
}

static turbo_status run_once(turbod_policy *policy, policy_run *r, turbod_policy_result *out,
                             turbo_err *err)
{
    if (is_off(policy))
        return turbod_err(err, TURBO_ELIMIT,
                          "the policy %s is switched off: it ran too long %d times; "
                          "mend it and reload",
                          policy->name, MAX_TIMEOUTS);
    turbo_status st = turbod_run_open(r, err);
    if (!st)
        st = turbod_lua_protect(&r->lua, run_request, r, &policy->script, err);
    if (r->lua.dead && !r->is_rejected)
        turbod_run_note_timeout(policy);
    st = failed(r, st, err);
    return st ? st : hand_over(r, out, err);
}

turbo_status turbod_policy_request(turbod_policy *policy, const turbo_sample_params *p,
                                   const cJSON *args, turbod_policy_result *out, turbo_err *err)
{
    turbo_err why = {{0}};
    *out = (turbod_policy_result){.params = *p};
    if (args && !cJSON_IsObject(args))
        return turbod_err(err, TURBO_EINVAL, "policy_args must be an object");
    int64_t t0 = turbod_run_clock();
    if (!policy->hooks && !(args && args->child)) {
        turbod_param_copy(&out->params, &policy->fixed, policy->fixed_which);
        turbo_status st = give_program(out, policy->fixed_steps, policy->n_fixed, err);
        turbod_run_count(policy, t0, st != TURBO_OK);
        return st;
    }
    policy_run *r = new_run(policy, err);
    if (!r)
        return TURBO_ENOMEM;
    r->asked = r->now = *p;
    r->args = args;
    turbo_status st = run_once(policy, r, out, &why);
    bool rejected = r->is_rejected, wrong = r->args_wrong;
    turbod_run_count(policy, t0, st && !rejected && !wrong);
    if (rejected)
        turbod_err(err, 0, "%s", r->rejected);
    if (!out->steer)
        turbod_run_close(r);
    if (rejected)
        return TURBO_ECANCELLED;
    if (!st)
        return TURBO_OK;
    turbod_policy_result_free(out); /* a script that fails half-way changes nothing */
    out->params = *p;
    if (wrong)
        return turbod_err(err, TURBO_EINVAL, "%s", why.text);
    turbod_log(TURBO_LOG_WARN, "policy %s: %s", policy->name, why.text);
    if (policy->skip)
        return TURBO_OK;
    return turbod_err(err, st, "%s", why.text);
}
