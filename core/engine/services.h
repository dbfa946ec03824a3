/* core/engine/services.h: the models of one process, each a service of its own: engine thread, KV pool,
 * template, policies. The first one is what a request without a model gets.
 *
 * One thread inits, loads and closes; between, the array does not change and any thread may read it. */
#ifndef TURBOD_SERVICES_H
#define TURBOD_SERVICES_H

#include "engine/service.h"

typedef struct turbod_services {
    turbod_service *at; /* [n] */
    size_t n;
} turbod_services;

/* One service an entry of conf->models, or the one of conf->model. Touches no model. EINVAL: two of the same
 * name. After a failure turbod_services_close is due all the same. */
turbo_status turbod_services_init(turbod_services *s, const turbod_conf *conf, turbo_err *err);
/* The error of two models of one name. */
turbo_status turbod_services_same_name(size_t a, size_t b, const char *name, turbo_err *err);
/* Loads one after the other; each is READY when its turn is over. Of several, the free memory is measured
 * once and divided before the first weight is read (plan/plan.h). progress tells bytes over all of them, may
 * be NULL. The first failure ends it; its text names the model when there are several. */
turbo_status turbod_services_load(turbod_services *s, void (*progress)(void *, uint64_t, uint64_t),
                                  void *ctx, turbo_err *err);
/* All that are READY are DRAINING from now on. */
void turbod_services_drain(turbod_services *s);
void turbod_services_close(turbod_services *s);

#endif
