/* core/engine/services.c: see services.h. */
#include "engine/services.h"

#include <stdlib.h>
#include <string.h>

#include "engine/media.h"
#include "util/err.h"

turbo_status turbod_services_same_name(size_t a, size_t b, const char *name, turbo_err *err)
{
    return turbod_err(
        err, TURBO_EINVAL,
        "models[%zu] and models[%zu] are both called \"%s\"; give one of them another "
        "model_name",
        a, b, name);
}

turbo_status turbod_services_init(turbod_services *s, const turbod_conf *conf, turbo_err *err)
{
    size_t n = conf->n_models ? conf->n_models : 1;
    *s = (turbod_services){.at = calloc(n, sizeof *s->at)};
    if (!s->at)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %zu models", n);
    for (size_t i = 0; i < n; i++) {
        const turbod_conf *c = conf->n_models ? conf->models[i] : conf;
        turbo_status st = turbod_service_init(&s->at[i], c, err);
        s->n = i + 1;
        for (size_t k = 0; !st && k < i; k++)
            if (!strcmp(s->at[k].name, s->at[i].name))
                st = turbod_services_same_name(k, i, s->at[i].name, err);
        if (st)
            return st;
    }
    return TURBO_OK;
}

/* A service, as far as memory has to be divided for it. */
typedef struct part {
    turbod_engine_opts o;
    turbod_plan_model model;
    turbod_media_facts media;
    turbok_device *device; /* all are open while the memory is divided, as they are later */
} part;

static turbo_status look_at(const turbod_service *s, part *p, turbod_plan_share *share,
                            turbo_err *err)
{
    turbo_status st = turbod_service_engine_opts(s->conf, &p->o, err);
    if (!st)
        st = turbod_plan_model_open(s->conf->model, s->registry, &p->model, err);
    if (!st)
        st = turbod_engine_open_device(&p->o, p->model.info.dtype, &p->device, &share->place, err);
    const turbod_weights_opts w = {.device = p->device,
                                   .model_format = s->conf->model_format,
                                   .quantize = s->conf->quantize};
    if (!st)
        st = turbod_plan_model_count(s->conf->model, &w, &p->model, err);
    if (!st)
        st = turbod_media_describe(s->registry, p->model.vtbl, p->model.config, p->model.info.vocab,
                                   &p->media, err);
    return st ? turbod_err_of(err, st, s->name) : TURBO_OK;
}

static void plan_part(const turbod_service *s, const part *p, turbod_plan_share *share)
{
    const int32_t place = share->place;
    *share = (turbod_plan_share){.in = {.info = &p->model.info,
                                        .vtbl = p->model.vtbl,
                                        .weights = &p->model.weights,
                                        .images = turbod_media_bytes(&p->media, p->o.image_bytes)},
                                 .place = place,
                                 .share = s->conf->kv_share};
    turbod_engine_plan_in(&p->o, &share->in);
    turbod_engine_plan_device(p->device, &p->o, &p->model.info, &p->media,
                              p->model.weights.quantised, &share->in);
}

/* Each service's part of the memory. */
static turbo_status divide(turbod_services *s, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    size_t which = s->n;
    part *parts = calloc(s->n, sizeof *parts);
    turbod_plan_share *shares = calloc(s->n, sizeof *shares);
    if (!parts || !shares)
        st = turbod_err(err, TURBO_ENOMEM, "no memory to plan %zu models", s->n);
    for (size_t i = 0; !st && i < s->n; i++)
        st = look_at(&s->at[i], &parts[i], &shares[i], err);
    for (size_t i = 0; !st && i < s->n; i++)
        plan_part(&s->at[i], &parts[i], &shares[i]);
    if (!st) {
        st = turbod_plan_divide_places(shares, s->n, &which, err);
        if (which < s->n)
            turbod_err_of(err, st, s->at[which].name);
    }
    for (size_t i = 0; !st && i < s->n; i++) {
        s->at[i].memory_free = shares[i].in.vacant;
        atomic_store(&s->at[i].load_total, parts[i].model.weights.stored);
    }
    for (size_t i = 0; parts && i < s->n; i++) {
        turbod_plan_model_free(&parts[i].model);
        turbok_device_close(parts[i].device);
    }
    free(parts);
    free(shares);
    return st;
}

typedef struct load_progress {
    turbod_services *s;
    turbod_service *now;
    void (*fn)(void *, uint64_t, uint64_t);
    void *ctx;
} load_progress;

static void on_progress(void *ctx, uint64_t done, uint64_t total)
{
    load_progress *p = ctx;
    uint64_t all_done = 0, all = 0;
    atomic_store(&p->now->load_total, total);
    atomic_store(&p->now->load_done, done);
    for (size_t i = 0; i < p->s->n; i++) {
        all_done += atomic_load(&p->s->at[i].load_done);
        all += atomic_load(&p->s->at[i].load_total);
    }
    if (p->fn)
        p->fn(p->ctx, all_done, all);
}

turbo_status turbod_services_load(turbod_services *s, void (*progress)(void *, uint64_t, uint64_t),
                                  void *ctx, turbo_err *err)
{
    turbo_status st = s->n > 1 ? divide(s, err) : TURBO_OK;
    for (size_t i = 0; !st && i < s->n; i++) {
        load_progress p = {.s = s, .now = &s->at[i], .fn = progress, .ctx = ctx};
        st = turbod_service_load(&s->at[i], true, on_progress, &p, err);
        if (s->n > 1)
            turbod_err_of(err, st, s->at[i].name);
    }
    return st;
}

void turbod_services_drain(turbod_services *s)
{
    for (size_t i = 0; i < s->n; i++) {
        int was = TURBOD_READY;
        atomic_compare_exchange_strong(&s->at[i].state, &was, TURBOD_DRAINING);
    }
}

void turbod_services_close(turbod_services *s)
{
    for (size_t i = 0; i < s->n; i++)
        turbod_service_close(&s->at[i]);
    free(s->at);
    *s = (turbod_services){0};
}
