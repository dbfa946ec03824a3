/* core/lua/policies.h: the sampling policies of a server, by name: NAME.lua of a folder, and those that were
 * put while it runs, which stand before a file of the same name until they are deleted or the process ends.
 * Any thread; a short lock guards the table, none is held while a script runs. */
#ifndef TURBOD_POLICIES_H
#define TURBOD_POLICIES_H

#include "lua/policy.h"
#include "util/buf.h"

typedef struct turbod_policies turbod_policies;

/* dir "" or NULL: an empty set. A script that does not load makes the whole call fail, with its name. */
turbo_status turbod_policies_load(const char *dir, const turbod_policy_env *env,
                                  turbod_policies **out, turbo_err *err);
void turbod_policies_free(turbod_policies *p);
/* The files of `fresh` take the place of those of p; fresh is empty and freed afterwards. Cannot fail. */
void turbod_policies_adopt(turbod_policies *p, turbod_policies *fresh);

/* A reference, or NULL: no policy has that name. turbod_policy_free. */
turbod_policy *turbod_policies_find(turbod_policies *p, const char *name);
bool turbod_policies_name_ok(const char *name);
/* EINVAL: the conf's default_policy, unless it is empty, is none of them. */
turbo_status turbod_policies_default(turbod_policies *p, const char *name, turbo_err *err);
/* Compiles the source and gives it the name. Nothing changes when it does not load. */
turbo_status turbod_policies_put(turbod_policies *p, const char *name, const char *source,
                                 size_t len, bool *replaced, turbo_err *err);
/* ENOENT: no such policy. A file's comes back with the next reload. */
turbo_status turbod_policies_delete(turbod_policies *p, const char *name, turbo_err *err);
size_t turbod_policies_count(turbod_policies *p);
/* [{"name","hooks","generation","origin"}, ...], sorted by name; names_only: ["a", ...] */
void turbod_policies_json(turbod_policies *p, bool names_only, turbod_buf *out);

/* Calls fn for each policy, sorted by name, under the lock. */
void turbod_policies_each(turbod_policies *p, void (*fn)(void *ctx, const turbod_policy *policy),
                          void *ctx);

#endif
