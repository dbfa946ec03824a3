/* core/lua/hooks.c: the hooks of a running request: logits with its tape, token, finish. Engine thread,
 * between the model and the next step: each has 5 ms, and one that fails hurts its own request only. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lua/run.h"
#include "util/err.h"
#include "util/log.h"

#define TAPE "turbo.logits"
#define MAX_PEEK 256

static const char key_tape;

static policy_run *run_of(turbod_steer *s)
{
    return (policy_run *)(void *)s; /* the steer is its first member */
}

/* ---- the logits object ---------------------------------------------------------------------- */

/* The run whose logits are open, or an error. */
static policy_run *tape_of(lua_State *L)
{
    policy_run *r = turbod_run_of(L);
    if (!luaL_testudata(L, 1, TAPE) || !r->logits)
        luaL_error(L, "the logits are there during the logits hook only");
    return r;
}

/* lg:step(...): one step more on the tape. */
static int tape_step(lua_State *L)
{
    policy_run *r = tape_of(L);
    int kind = (int)lua_tointeger(L, lua_upvalueindex(1));
    if (r->n_tape == MAX_STEPS)
        return luaL_error(L, "logits: at most %d steps a token", MAX_STEPS);
    int set = turbod_step_read(L, kind, &r->tape[r->n_tape]);
    if (set) { /* alive until the tape was copied: as long as the list in the user value */
        lua_getiuservalue(L, 1, 1);
        lua_pushvalue(L, set);
        lua_rawseti(L, -2, r->n_tape + 1);
    }
    r->n_tape++;
    lua_settop(L, 1);
    return 1;
}

static double log_sum(const policy_run *r, double *best)
{
    double m = -INFINITY, sum = 0;
    for (int32_t i = 0; i < r->policy->env.vocab; i++)
        m = (double)r->logits[i] > m ? (double)r->logits[i] : m;
    for (int32_t i = 0; i < r->policy->env.vocab; i++)
        sum += exp((double)r->logits[i] - m);
    *best = m;
    return m + log(sum);
}

/* lg:topk(n): the n best of the model's own distribution as {{id=, logprob=}, ...}. */
static int tape_topk(lua_State *L)
{
    policy_run *r = tape_of(L);
    lua_Integer n = luaL_checkinteger(L, 2);
    int32_t ids[MAX_PEEK], have = 0;
    double best;
    if (n < 1 || n > MAX_PEEK)
        return luaL_error(L, "logits:topk takes 1 to %d", MAX_PEEK);
    for (int32_t i = 0; i < r->policy->env.vocab; i++) {
        if (have == n && !(r->logits[i] > r->logits[ids[have - 1]]))
            continue;
        int32_t k = have < n ? have++ : have - 1; /* insertion into the best so far */
        for (; k > 0 && r->logits[i] > r->logits[ids[k - 1]]; k--)
            ids[k] = ids[k - 1];
        ids[k] = i;
    }
    double log_z = log_sum(r, &best);
    lua_createtable(L, have, 0);
    for (int32_t k = 0; k < have; k++) {
        lua_createtable(L, 0, 2);
        lua_pushinteger(L, ids[k]);
        lua_setfield(L, -2, "id");
        lua_pushnumber(L, (double)r->logits[ids[k]] - log_z);
        lua_setfield(L, -2, "logprob");
        lua_rawseti(L, -2, k + 1);
    }
    return 1;
}

/* lg:entropy(): of the model's own distribution, in nats. */
static int tape_entropy(lua_State *L)
{
    policy_run *r = tape_of(L);
    double best, log_z = log_sum(r, &best), h = 0;
    for (int32_t i = 0; i < r->policy->env.vocab; i++) {
        double lp = (double)r->logits[i] - log_z;
        if (lp > -700)
            h -= exp(lp) * lp;
    }
    lua_pushnumber(L, h);
    return 1;
}

/* lg:prob(token): its probability in the model's own distribution. */
static int tape_prob(lua_State *L)
{
    policy_run *r = tape_of(L);
    double best;
    const token_set *s = turbod_tokens_check(L, 2);
    if (s->n != 1 || s->ids[0] >= r->policy->env.vocab)
        return luaL_error(L, "logits:prob takes one token");
    lua_pushnumber(L, exp((double)r->logits[s->ids[0]] - log_sum(r, &best)));
    return 1;
}

static int tape_index(lua_State *L)
{
    static const luaL_Reg peeks[] = {{"topk", tape_topk},
                                     {"entropy", tape_entropy},
                                     {"prob", tape_prob},
                                     {NULL, NULL}};
    const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";
    for (const luaL_Reg *p = peeks; p->name; p++)
        if (!strcmp(key, p->name)) {
            lua_pushcfunction(L, p->func);
            return 1;
        }
    int kind = turbod_step_find(key);
    if (!kind)
        return luaL_error(L, "logits: there is no \"%s\"; there are topk, entropy, prob, %s", key,
                          turbod_step_names());
    lua_pushinteger(L, kind);
    lua_pushcclosure(L, tape_step, 1);
    return 1;
}

static int tape_fixed(lua_State *L)
{
    return luaL_error(L, "logits have no fields to set; call methods");
}

static void push_tape(lua_State *L)
{
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &key_tape) != LUA_TUSERDATA) {
        lua_pop(L, 1);
        lua_newuserdatauv(L, 0, 1);
        luaL_newmetatable(L, TAPE);
        lua_pushcfunction(L, tape_index);
        lua_setfield(L, -2, "__index");
        lua_pushcfunction(L, tape_fixed);
        lua_setfield(L, -2, "__newindex");
        lua_pushboolean(L, 0);
        lua_setfield(L, -2, "__metatable");
        lua_setmetatable(L, -2);
        lua_pushvalue(L, -1);
        lua_rawsetp(L, LUA_REGISTRYINDEX, &key_tape);
    }
    lua_newtable(L);
    lua_setiuservalue(L, -2, 1);
}

/* ---- hooks ---------------------------------------------------------------------------------- */

/* What a hook is called with. */
typedef struct hook_call {
    unsigned bit;
    const char *name;
    const turbod_event *ev;
    const char *text;
    size_t len;
} hook_call;

static void push_token(lua_State *L, const policy_run *r, const hook_call *c)
{
    lua_createtable(L, 0, 4);
    lua_pushinteger(L, c->ev->token);
    lua_setfield(L, -2, "id");
    lua_pushlstring(L, c->text, c->len);
    lua_setfield(L, -2, "text");
    lua_pushinteger(L, r->n_output);
    lua_setfield(L, -2, "index");
    if (r->now.n_logprobs >= 0) {
        lua_pushnumber(L, (double)c->ev->logprob);
        lua_setfield(L, -2, "logprob");
    }
}

static void push_end(lua_State *L, const policy_run *r, const turbod_event *ev)
{
    const char *reason = ev->kind == TURBOD_EV_ERROR
                             ? ev->status == TURBO_ECANCELLED ? "abort" : "error"
                         : ev->finish == TURBOD_FINISH_LENGTH ? "length"
                                                              : "stop";
    lua_createtable(L, 0, 2);
    lua_pushstring(L, reason);
    lua_setfield(L, -2, "reason");
    lua_pushinteger(L, r->n_output);
    lua_setfield(L, -2, "n_output");
}

static int call_hook(lua_State *L)
{
    const hook_call *c = lua_touserdata(L, 1);
    policy_run *r = turbod_run_of(L);
    lua_settop(L, 0);
    turbod_run_push_policy(L);
    lua_getfield(L, 1, c->name);
    turbod_request_push(L, r);
    if (c->bit == HOOK_LOGITS)
        push_tape(L);
    else if (c->bit == HOOK_TOKEN)
        push_token(L, r, c);
    else
        push_end(L, r, c->ev);
    lua_call(L, 2, 0);
    return 0;
}

/* OK also for a hook that does not exist, or of a policy that failed before and is skipped. */
static turbo_status call(policy_run *r, const hook_call *c, turbo_err *err)
{
    turbo_err why = {{0}};
    if (r->inert || !(r->policy->hooks & c->bit))
        return TURBO_OK;
    turbod_lua_clock(&r->lua, TURBOD_LUA_HOOK_MS);
    r->in_hook = c->bit;
    int64_t t0 = turbod_run_clock();
    turbo_status st =
        turbod_lua_protect(&r->lua, call_hook, (void *)(uintptr_t)c, &r->policy->script, &why);
    turbod_run_count(r->policy, t0, st != TURBO_OK);
    r->in_hook = 0;
    if (!st)
        return TURBO_OK;
    r->inert = true; /* one failure is enough; a request that goes on does so without it */
    r->n_tape = r->n_inject = 0;
    r->stop = false;
    if (r->lua.dead)
        turbod_run_note_timeout(r->policy);
    turbod_log(TURBO_LOG_WARN, "policy %s: %s: %s", r->policy->name, c->name, why.text);
    if (r->policy->skip)
        return TURBO_OK;
    return turbod_err(err, st == TURBO_ELIMIT ? TURBO_ELIMIT : TURBO_EINVAL, "%s", why.text);
}

/* The program of the token under way: the chain in force, then the tape, or a token that is put in. */
static turbo_status compose(policy_run *r, turbo_sample_params *p, turbo_err *err)
{
    turbo_sample_step force = {.size = sizeof force, .kind = TURBO_STEP_FORCE, .n_ids = 1};
    const turbo_sample_step *more = r->tape;
    int32_t n_more = r->n_tape;
    free(r->program);
    r->program = NULL;
    if (r->n_inject) {
        force.ids = &r->inject[r->next_inject];
        more = &force;
        n_more = 1;
        r->next_inject = (r->next_inject + 1) % MAX_INJECT;
        r->n_inject--;
    }
    p->program = r->base;
    p->n_program = r->n_base;
    if (!n_more)
        return TURBO_OK;
    r->program = turbod_program_copy(r->base, r->n_base, more, n_more);
    if (!r->program)
        return turbod_err(err, TURBO_ENOMEM, "no memory for a sampling program");
    p->program = r->program;
    p->n_program = r->n_base + n_more;
    return TURBO_OK;
}

static turbo_status steer_draw(turbod_steer *s, const float *logits, turbo_sample_params *p,
                               turbo_err *err)
{
    policy_run *r = run_of(s);
    const hook_call c = {.bit = HOOK_LOGITS, .name = "logits"};
    turbo_status st = TURBO_OK;
    r->n_tape = 0;
    if (!r->n_inject) { /* what is put in leaves nothing to steer */
        r->logits = logits;
        st = call(r, &c, err);
        r->logits = NULL;
    }
    return st ? st : compose(r, p, err);
}

static turbo_status steer_token(turbod_steer *s, const turbod_event *ev, const char *text,
                                size_t len, bool *stop, turbo_err *err)
{
    policy_run *r = run_of(s);
    const hook_call c = {.bit = HOOK_TOKEN, .name = "token", .ev = ev, .text = text, .len = len};
    r->n_output++;
    turbo_status st = call(r, &c, err);
    *stop = r->stop;
    return st;
}

static void steer_finish(turbod_steer *s, const turbod_event *ev)
{
    turbo_err err = {{0}};
    const hook_call c = {.bit = HOOK_FINISH, .name = "finish", .ev = ev};
    (void)call(run_of(s), &c, &err); /* the answer is over; the log has a line */
}

static void steer_free(turbod_steer *s)
{
    turbod_run_close(run_of(s));
}

void turbod_steer_init(turbod_steer *s)
{
    *s = (turbod_steer){.draw = steer_draw,
                        .token = steer_token,
                        .finish = steer_finish,
                        .free = steer_free};
}
