/* core/lua/policy.h: a sampling policy, written in Lua.
 *
 * This version runs a chain and the hooks `init` and `request`: they see a request's sampling
 * parameters before the request is queued, may change them within their documented ranges, may
 * reject. A script that defines a hook this version does not run is refused when it is loaded. Each
 * request has its own Lua state, so nothing passes from one to the next. Load on the main thread;
 * request from any thread. doc/lua.md has the script's side. */
#ifndef TURBOD_POLICY_H
#define TURBOD_POLICY_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "turbo/plugin.h"

typedef struct turbod_policy turbod_policy;

/* Compiles the script and runs it once, with its init hook. */
turbo_status turbod_policy_load(const char *path, const char *name, turbod_policy **out,
                                turbo_err *err);
void turbod_policy_free(turbod_policy *p); /* NULL allowed; no request may be running */
const char *turbod_policy_name(const turbod_policy *p);

/* Runs the policy on p; args is the request's "policy_args", an object, or NULL. *p changes only
 * when all went well. ECANCELLED: the script rejected the request, err holds its words. EINVAL:
 * args are not what the policy takes. The script failed: EDATA it is wrong; ELIMIT it ran too long
 * or took too much memory, or it is switched off because it ran too long five times within a
 * minute. A policy with on_error = "skip" turns the last three into TURBO_OK, unchanged parameters
 * and a line in the log. */
turbo_status turbod_policy_request(const turbod_policy *policy, turbo_sample_params *p,
                                   const cJSON *args, turbo_err *err);

/* What the runs of a policy cost so far. Any thread. */
typedef struct turbod_policy_stat {
    uint64_t runs, errors; /* errors: the script failed or ran too long; skipped ones count too */
    double seconds;
} turbod_policy_stat;
turbod_policy_stat turbod_policy_stat_of(const turbod_policy *p);

#endif
