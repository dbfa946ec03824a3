/* core/lua/run.h: the inside of a policy and of one request's run of it, for core/lua only. */
#ifndef TURBOD_LUA_RUN_H
#define TURBOD_LUA_RUN_H

#include <pthread.h>
#include <stdatomic.h>

#include "lua/bind.h"
#include "sched/steer.h"

#define TURBOD_LUA_HOOK_MS 5 /* of each hook of a running request: it holds up everybody's step */
#define MAX_TIMEOUTS 5 /* of a policy ... */
#define TIMEOUT_WINDOW 60 /* ... within so many seconds switch it off */
#define MAX_INJECT 256 /* tokens that wait to be put into the output */

enum { HOOK_REQUEST = 1, HOOK_LOGITS = 2, HOOK_TOKEN = 4, HOOK_FINISH = 8 };
#define HOOKS_WHILE_RUNNING (HOOK_LOGITS | HOOK_TOKEN | HOOK_FINISH)

struct turbod_policy {
    _Atomic int refs;
    turbod_script script;
    turbod_policy_env env;
    char name[65];
    char *source; /* as it was loaded */
    size_t source_len;
    uint64_t generation;
    unsigned hooks;
    bool skip; /* on_error = "skip" */
    /* without hooks: what its chain makes of every request, see turbod_request_use */
    turbo_sample_params fixed;
    uint32_t fixed_which;
    turbo_sample_step *fixed_steps; /* [n_fixed], owned; NULL: no program */
    int32_t n_fixed;
    pthread_mutex_t mu; /* guards what follows */
    int64_t timeouts[MAX_TIMEOUTS]; /* seconds; a ring */
    unsigned n_timeouts;
    bool off;
    _Atomic uint64_t runs, errors, nano; /* for /metrics; not under mu */
};

/* One run of a policy: for a request hook alone it lives for the call, else as long as the request. */
typedef struct policy_run {
    turbod_steer steer; /* first: the engine's view of it */
    turbod_lua lua;
    turbod_policy *policy; /* a reference */
    /* What the caller asked for, and what the chain and the request hook made of it. Scalars only: the
     * arrays are the caller's. */
    turbo_sample_params asked, now;
    const cJSON *args; /* during the request hook */
    turbod_policy *loading; /* the policy under construction: its facts go there */
    uint64_t draws; /* of req:random() */
    bool args_wrong, is_rejected;
    char rejected[200];
    /* the chain in force when it is a program: steps in memory of their own */
    turbo_sample_step *base;
    int32_t n_base;
    /* while running */
    unsigned in_hook; /* HOOK_*, 0 between hooks */
    bool inert; /* it failed and the request goes on without it */
    bool stop;
    int32_t n_output;
    int32_t inject[MAX_INJECT]; /* a ring of ids to come */
    int32_t n_inject, next_inject;
    turbo_sample_step *program; /* of the token under way, when it is not base alone */
    /* the logits hook's tape */
    const float *logits; /* [vocab] during the hook */
    turbo_sample_step tape[MAX_STEPS];
    int32_t n_tape;
} policy_run;

policy_run *turbod_run_of(lua_State *L);
/* The policy's table, on the stack. */
void turbod_run_push_policy(lua_State *L);
/* A state with the script run and init called. On failure everything is given back. */
turbo_status turbod_run_open(policy_run *r, turbo_err *err);
void turbod_run_close(policy_run *r);
/* Notes a time-out; the fifth within the window switches the policy off. */
void turbod_run_note_timeout(turbod_policy *p);

/* Counts a run that began at t0 (turbod_run_clock). */
int64_t turbod_run_clock(void);
void turbod_run_count(turbod_policy *p, int64_t t0, bool error);

/* request.c: the request object, made at first use; and the methods that hooks call. */
void turbod_request_push(lua_State *L, policy_run *r);
/* Takes the chain's steps as the ones in force. Raises. */
void turbod_request_use(lua_State *L, policy_run *r, const chain *c);

/* hooks.c: what runs while the request does. */
void turbod_steer_init(turbod_steer *s);

#endif
