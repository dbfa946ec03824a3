/* core/engine/device.c: the device that an engine's options name, and what a memory plan must know of it. Main
 * thread. Must not know how weights are read, or what a step does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/state.h"
#include "util/err.h"
#include "util/log.h"
#include "util/memory.h"

turbo_status turbod_engine_isa(const char *name, turbok_isa *isa, turbo_err *err)
{
    static const struct {
        const char *name;
        turbok_isa isa;
    } names[] = {
        {"auto", TURBOK_ISA_AUTO},     {"scalar", TURBOK_ISA_SCALAR}, {"avx2", TURBOK_ISA_AVX2},
        {"avx512", TURBOK_ISA_AVX512}, {"neon", TURBOK_ISA_NEON},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(name, names[i].name)) {
            *isa = names[i].isa;
            return TURBO_OK;
        }
    return turbod_err(err, TURBO_EINVAL, "isa is \"%s\"; use auto, scalar, avx2, avx512 or neon",
                      name);
}

/* "cpu", "cuda", "cuda:1"; *auto_: take the CPU when there is no card. */
static turbo_status device_of(const char *name, turbok_device_opts *dev, bool *auto_,
                              turbo_err *err)
{
    *auto_ = !strcmp(name, "auto");
    dev->on = !strcmp(name, "cpu") ? TURBOK_ON_CPU : TURBOK_ON_CUDA;
    if (!strcmp(name, "cpu") || *auto_ || !strcmp(name, "cuda"))
        return TURBO_OK;
    const char *digits = strncmp(name, "cuda:", 5) ? "" : name + 5;
    size_t n = strspn(digits, "0123456789");
    if (!n || n > 3 || digits[n])
        return turbod_err(err, TURBO_EINVAL, "device is \"%.32s\"; use auto, cpu, cuda or cuda:1",
                          name);
    dev->ordinal = (int)strtol(digits, NULL, 10);
    return TURBO_OK;
}

turbo_status turbod_engine_precision(const char *name, int32_t model, int32_t *act, turbo_err *err)
{
    static const struct {
        const char *name;
        int32_t act;
    } names[] = {{"f32", TURBO_F32}, {"f16", TURBO_F16}, {"bf16", TURBO_BF16}};
    *act = model;
    if (!strcmp(name, "auto"))
        return TURBO_OK;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(name, names[i].name)) {
            *act = names[i].act;
            return TURBO_OK;
        }
    return turbod_err(err, TURBO_EINVAL,
                      "device_precision is \"%.16s\"; use auto, bf16, f16 or f32", name);
}

turbo_status turbod_engine_open_device(const turbod_engine_opts *o, int32_t model_dtype,
                                       turbok_device **out, int32_t *place, turbo_err *err)
{
    turbok_device_opts dev = {
        .path = o->backend_path,
        .deterministic = o->deterministic,
        .threads = o->threads,
        .pin = o->pin,
        .spin_us = -1,
    };
    bool auto_ = false;
    turbo_status st = turbod_engine_isa(o->isa, &dev.isa, err);
    if (!st)
        st = device_of(o->device ? o->device : "cpu", &dev, &auto_, err);
    if (!st && dev.on == TURBOK_ON_CUDA)
        st = turbod_engine_precision(o->device_precision, model_dtype, &dev.act_dtype, err);
    if (st)
        return st;
    st = turbok_device_open(&dev, out, err);
    char why[192];
    snprintf(why, sizeof why, "%.*s", (int)sizeof why - 1, st ? err->text : "");
    if (st == TURBO_EUNSUPPORTED && auto_) { /* a damaged or full card is an error, none is not */
        dev.on = TURBOK_ON_CPU;
        st = turbok_device_open(&dev, out, err);
        if (!st && !place)
            turbod_log(TURBO_LOG_INFO, "backend: cpu (%s)", why);
    } else if (!st && !place && dev.on == TURBOK_ON_CUDA) {
        turbod_log(TURBO_LOG_INFO, "backend: %s", turbok_device_name(*out));
    }
    if (st == TURBO_EUNSUPPORTED && dev.on == TURBOK_ON_CUDA)
        st = turbod_err(err, st, "%s; device = \"cpu\" does without", why);
    if (!st && place)
        *place = dev.on == TURBOK_ON_CUDA ? dev.ordinal : TURBOD_PLAN_ON_HOST;
    return st;
}

turbok_steps turbod_engine_steps(const turbod_engine_opts *o, const turbo_model_info *m,
                                 const turbod_media_facts *media, bool quantised)
{
    return (turbok_steps){
        .max_tokens = o->max_step_tokens > o->max_batch ? o->max_step_tokens : o->max_batch,
        .max_seqs = o->max_batch,
        .max_len = o->session_len ? (int32_t)o->session_len : m->max_position,
        .n_heads = m->n_heads,
        .head_dim = m->head_dim,
        .embed_dim = m->embed_dim,
        .vocab = m->vocab,
        .block_tokens = o->block_tokens,
        .n_layers = m->n_layers,
        .quantised = quantised,
        .picture_bytes =
            media->n_rows ? (uint64_t)media->fit.width * 3 * (uint64_t)media->fit.height : 0,
    };
}

void turbod_engine_plan_device(turbok_device *d, const turbod_engine_opts *o,
                               const turbo_model_info *m, const turbod_media_facts *media,
                               bool quantised, turbod_plan_in *in)
{
    const turbok_steps steps = turbod_engine_steps(o, m, media, quantised);
    if (turbok_device_on_host(d))
        return;
    in->act_bytes = turbok_device_ops(d)->act_dtype == TURBO_F32 ? 4 : 2;
    in->steps = turbok_steps_bytes(d, &steps);
    in->later = turbok_later_bytes(d, &steps);
    in->context = turbok_device_context(d);
    in->images = turbod_media_device_bytes(d, media, m->embed_dim, o->image_bytes);
    if (!o->memory_free)
        in->vacant = turbok_device_vacant(d) + in->context;
}

turbok_kv_dims turbod_engine_kv(const turbod_engine_opts *o)
{
    return (turbok_kv_dims){.block_tokens = o->block_tokens, .dtype = o->kv_dtype};
}

void turbod_engine_plan_in(const turbod_engine_opts *o, turbod_plan_in *in)
{
    in->threads = turbok_threads(o->threads);
    in->vacant = o->memory_free ? o->memory_free : turbod_memory_free();
    in->session_len = o->session_len;
    in->cache_fraction = o->cache_fraction;
    in->cache_bytes = o->cache_bytes;
    in->swap = o->swap_bytes;
    in->kv = turbod_engine_kv(o);
    in->max_batch = o->max_batch;
    in->max_step_tokens = o->max_step_tokens;
    in->prefix_caching = o->prefix_caching;
}
