/* core/lua/policy.h: a sampling policy, written in Lua.
 *
 * This version runs the hook `request`: it sees a request's sampling parameters before the request is
 * queued, may change them within their documented ranges, may take a chain, may reject. A script that
 * defines a hook this version does not run is refused when it is loaded. Load on the main thread;
 * request from any thread. */
#ifndef TURBOD_POLICY_H
#define TURBOD_POLICY_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "turbo/plugin.h"

typedef struct turbod_policy turbod_policy;

turbo_status turbod_policy_load(const char *path, const char *name, turbod_policy **out,
                                turbo_err *err);
void turbod_policy_free(turbod_policy *p); /* NULL allowed */
const char *turbod_policy_name(const turbod_policy *p);

/* Runs the hook on p; args is the request's "policy_args" or NULL. TURBO_ECANCELLED: the script
 * rejected the request, err holds its words. Other errors: the script failed. */
turbo_status turbod_policy_request(const turbod_policy *policy, turbo_sample_params *p,
                                   const cJSON *args, turbo_err *err);

#endif
