/* core/plan/model.c: what a plan must know of a model folder: dimensions, and what its weights take. Reads
 * config.json and headers, never a weight. Any thread. */
#include "plan/plan.h"
#include "plugin/host.h"
#include "weights/config.h"

turbo_status turbod_plan_model_count(const char *folder, const turbod_weights_opts *opts,
                                     turbod_plan_model *m, turbo_err *err)
{
    const turbo_host *host = turbod_host_table();
    turbo_weights *w = NULL;
    turbo_status st = turbod_weights_open(folder, opts, &w, err);
    m->from_config =
        st == TURBO_EUNSUPPORTED || st == TURBO_ENOENT || (!st && turbod_weights_absent(w));
    if (m->from_config) {
        turbod_weights_close(w);
        w = NULL;
        st =
            turbod_weights_expected(host, m->vtbl, m->config, folder, m->info.dtype, opts, &w, err);
    } else if (!st) {
        st = turbod_weights_check(w, host, m->vtbl, m->config, err);
    }
    if (!st)
        st = turbod_weights_count(w, host, m->vtbl, m->config, m->info.vocab, &m->weights, err);
    if (!st && m->from_config) {
        const bool as_stored = !opts->quantize || !*opts->quantize;
        m->config_bytes = as_stored ? m->weights.stored : turbod_weights_bytes(w);
        m->index_bytes = turbod_weights_said(w, folder, &m->index_more);
    }
    turbod_weights_close(w);
    return st;
}

turbo_status turbod_plan_model_open(const char *folder, const turbod_registry *registry,
                                    turbod_plan_model *out, turbo_err *err)
{
    *out = (turbod_plan_model){.info = {.size = sizeof out->info}};
    turbo_status st = turbod_config_open(folder, &out->config, err);
    if (!st)
        st = turbod_registry_model_for(registry, out->config, &out->vtbl, err);
    if (!st)
        st = out->vtbl->describe(turbod_host_table(), out->config, &out->info, err);
    if (st)
        turbod_plan_model_free(out);
    return st;
}

turbo_status turbod_plan_model_read(const char *folder, const turbod_registry *registry,
                                    const turbod_weights_opts *opts, turbod_plan_model *out,
                                    turbo_err *err)
{
    turbo_status st = turbod_plan_model_open(folder, registry, out, err);
    if (!st && (st = turbod_plan_model_count(folder, opts, out, err)))
        turbod_plan_model_free(out);
    return st;
}

void turbod_plan_model_free(turbod_plan_model *m)
{
    turbod_config_close(m->config);
    m->config = NULL;
}
