/* core/lua/policy.h: a sampling policy, written in Lua.
 *
 * A policy has a chain, and hooks: `init`, `request` before the request is queued, and `logits`, `token`
 * and `finish` while it runs. A request whose policy has one of the last three keeps a Lua state of its own
 * until it ends, so nothing passes from one request to another. doc/lua.md has the script's side.
 * Policies are counted: a request keeps its own although another takes the name meanwhile. Any thread. */
#ifndef TURBOD_POLICY_H
#define TURBOD_POLICY_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "sched/request.h"
#include "turbo/plugin.h"

typedef struct turbod_policy turbod_policy;

/* What scripts may ask the tokenizer for. Outlives the policy. */
typedef struct turbod_policy_env {
    const turbo_tokenizer_vtbl *tok_vtbl; /* NULL: none */
    const void *tok;
    int32_t vocab; /* of the model; 0 unknown */
} turbod_policy_env;

/* Compiles the script and runs it once, with its init hook. *out has one reference. */
turbo_status turbod_policy_load(const char *path, const char *name, const turbod_policy_env *env,
                                turbod_policy **out, turbo_err *err);
turbo_status turbod_policy_compile(const char *source, size_t len, const char *name,
                                   const turbod_policy_env *env, turbod_policy **out,
                                   turbo_err *err);
turbod_policy *turbod_policy_ref(turbod_policy *p);
void turbod_policy_free(turbod_policy *p); /* gives a reference back; NULL allowed */
const char *turbod_policy_name(const turbod_policy *p);
const char *turbod_policy_source(const turbod_policy *p, size_t *len);
/* "request, token"; "chain" when there are no hooks. */
const char *turbod_policy_hooks(const turbod_policy *p, char text[64]);
uint64_t turbod_policy_generation(const turbod_policy *p); /* counts loads in this process */

/* The method of a chain that makes a TURBO_STEP_*, "?" for a number that is none. */
const char *turbod_policy_step_name(int32_t kind);

/* What a policy made of a request. */
typedef struct turbod_policy_result {
    turbo_sample_params params; /* program points into `program` */
    turbo_sample_step *program; /* owned; NULL: none */
    turbod_steer *steer; /* owned; for turbod_request_spec.steer, then set it to NULL here */
} turbod_policy_result;
void turbod_policy_result_free(turbod_policy_result *r);

/* Runs the policy on a request that asks for p; args is its "policy_args", an object, or NULL.
 * ECANCELLED: the script rejected the request, err holds its words. EINVAL: args are not what the policy
 * takes. The script failed: EDATA it is wrong; ELIMIT it ran too long or took too much memory, or it is
 * switched off because it ran too long five times within a minute. A policy with on_error = "skip" turns
 * the last three into TURBO_OK, unchanged parameters and a line in the log. *out is to be freed in any
 * case. */
turbo_status turbod_policy_request(turbod_policy *policy, const turbo_sample_params *p,
                                   const cJSON *args, turbod_policy_result *out, turbo_err *err);

/* What a policy cost so far; a run is one before a request is queued, or one hook of a running request.
 * Any thread. */
typedef struct turbod_policy_stat {
    uint64_t runs, errors; /* errors: the script failed or ran too long; skipped ones count too */
    double seconds;
} turbod_policy_stat;
turbod_policy_stat turbod_policy_stat_of(const turbod_policy *p);

#endif
