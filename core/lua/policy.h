/* core/lua/policy.h: a sampling policy, a Lua script that sets or refuses what a request asks for.
 *
 * Loaded once; each request runs in a fresh sandboxed state, on the thread that asks, several at a
 * time. What a script sets is checked as if it had come over the network, and applied all or not at
 * all. doc/lua.md has the script's side. Must not know: HTTP, engine. */
#ifndef TURBOD_POLICY_H
#define TURBOD_POLICY_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "turbo/plugin.h"

#define TURBOD_POLICY_REJECT 256 /* bytes of a rejection's text, NUL included */

typedef struct turbod_policy turbod_policy;

/* Compiles the script, runs it and its init hook once. name is for messages and req.policy. [any] */
turbo_status turbod_policy_load(const char *path, const char *name, turbod_policy **out,
                                turbo_err *err);
void turbod_policy_free(turbod_policy *p); /* NULL allowed; no request may be running */
const char *turbod_policy_name(const turbod_policy *p);

/* Runs the chain and the request hook on *params; only its scalar fields may change. args: the JSON
 * object policy_args, or NULL. reject: room for TURBOD_POLICY_REJECT bytes; set to "" or, when the
 * script calls req:reject(text), to that text, and the result is TURBO_EINVAL with the same text in
 * err. Other results: EINVAL args do not fit the policy; EDATA the script is wrong; ELIMIT it ran
 * too long, or is switched off after five such runs within a minute; ENOMEM. A policy with
 * on_error = "skip" answers TURBO_OK to the last three, leaves *params alone and logs. [any] */
turbo_status turbod_policy_request(turbod_policy *p, turbo_sample_params *params,
                                   const cJSON *args, char *reject, turbo_err *err);

#endif
