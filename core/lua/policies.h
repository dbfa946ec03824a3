/* core/lua/policies.h: the sampling policies of a folder, by name. NAME.lua is policy NAME.
 * Read-only after load; look-ups from any thread. */
#ifndef TURBOD_POLICIES_H
#define TURBOD_POLICIES_H

#include "lua/policy.h"

typedef struct turbod_policies turbod_policies;

/* dir "" or NULL: an empty set. A script that does not load makes the whole call fail, with its name. */
turbo_status turbod_policies_load(const char *dir, turbod_policies **out, turbo_err *err);
void turbod_policies_free(turbod_policies *p);
turbod_policy *turbod_policies_find(const turbod_policies *p, const char *name); /* NULL: none */
size_t turbod_policies_count(const turbod_policies *p);
const char *turbod_policies_name(const turbod_policies *p, size_t i); /* sorted */

#endif
