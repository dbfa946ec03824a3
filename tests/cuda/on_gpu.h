/* tests/cuda/on_gpu.h: what tests of the engine on a CUDA device share. One thread. */
#ifndef TESTS_CUDA_ON_GPU_H
#define TESTS_CUDA_ON_GPU_H

#include "../unit/engine_kit.h"

#include <math.h>

#include "conf/paths.h"
#include "gpu.h"

static fake_driver fake;

static inline turbod_engine_opts on_cuda(const char *precision)
{
    turbod_engine_opts o = small();
    o.device = "cuda";
    o.device_precision = precision;
    o.backend_path = turbod_backend_path();
    return o;
}

static inline void nothing_left(void)
{
    static const char *const kinds[] = {"device", "pinned",  "streams", "events",
                                        "graphs", "modules", "contexts"};
    for (size_t i = 0; fake.handle && i < sizeof kinds / sizeof kinds[0]; i++)
        if (fake.live(kinds[i]))
            fail_msg("%zu %s left behind", fake.live(kinds[i]), kinds[i]);
}

/* Of every kind of memory but one (TURBOD_MEM_KINDS: of all) as much is taken as p says. */
static inline void taken_as(const turbod_plan *p, turbod_engine *e, turbod_mem but)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(e);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++)
        if (k != (int)but && p->bytes[k] != f->alloc[k])
            fail_msg("%s: planned %llu, taken %llu", turbod_mem_names[k],
                     (unsigned long long)p->bytes[k], (unsigned long long)f->alloc[k]);
}

static inline void as_planned(turbod_engine *e)
{
    taken_as(&turbod_engine_facts_of(e)->plan, e, TURBOD_MEM_KINDS);
}

/* Options whose memory is unlike that of others. */
typedef struct shape {
    const char *precision, *quantize;
    int32_t kv, batch, step;
    double share;
} shape;

static inline turbod_engine_opts shaped(const shape *s)
{
    turbod_engine_opts o = on_cuda(s->precision);
    o.quantize = s->quantize;
    o.kv_dtype = s->kv;
    o.max_batch = s->batch;
    o.max_step_tokens = s->step;
    o.cache_bytes = 0;
    o.cache_fraction = s->share;
    return o;
}

/* The card of an engine, as it would be described. */
static inline turbok_card card_of(turbod_engine *e)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(e);
    turbok_card card = {
        .name = "described",
        .memory = f->plan.vacant,
        .context = f->plan.bytes[TURBOD_MEM_CONTEXT],
    };
    assert_int_equal(sscanf(strchr(f->device, ','), ", %d SMs, capability %d.%d", &card.sm_count,
                            &card.major, &card.minor),
                     3);
    return card;
}

/* What an engine like e, with its options and model, would take on that card, which need not be there. */
static inline void plan_on(const turbok_card *card, turbod_engine *e, const turbod_engine_opts *o,
                           turbod_plan *p)
{
    turbok_device_opts dev = {
        .on = TURBOK_ON_CUDA, .path = o->backend_path, .threads = 1, .spin_us = -1, .card = card};
    turbok_device *d = NULL;
    turbod_plan_model model;
    turbo_err err = {{0}};
    if (turbod_plan_model_open(o->model_dir, registry, &model, &err) ||
        turbod_engine_precision(o->device_precision, model.info.dtype, &dev.act_dtype, &err) ||
        turbok_device_open(&dev, &d, &err))
        fail_msg("%s", err.text);
    turbod_weights_opts w = {.device = d, .quantize = o->quantize};
    assert_int_equal(turbod_plan_model_count(o->model_dir, &w, &model, &err), 0);
    turbod_plan_in in = {.info = &model.info, .vtbl = model.vtbl, .weights = &model.weights};
    turbod_engine_plan_in(o, &in);
    turbod_engine_plan_device(d, o, &model.info, &turbod_engine_facts_of(e)->media,
                              model.weights.quantised, &in);
    assert_int_equal(turbod_plan_make(&in, p, &err), 0);
    turbod_plan_model_free(&model);
    turbok_device_close(d);
}

/* A device without an engine, whose steps take quantised matrices. */
static inline turbok_device *open_device(void)
{
    turbok_device_opts o = {.on = TURBOK_ON_CUDA,
                            .path = turbod_backend_path(),
                            .act_dtype = TURBO_F32,
                            .threads = 3,
                            .spin_us = -1};
    const turbok_steps steps = {.max_tokens = 16,
                                .max_seqs = 2,
                                .max_len = 64,
                                .n_heads = 2,
                                .head_dim = 16,
                                .embed_dim = 64,
                                .vocab = 64,
                                .block_tokens = 16,
                                .quantised = true};
    turbok_device *d = NULL;
    turbo_err err = {{0}};
    if (turbok_device_open(&o, &d, &err) || turbok_steps_open(d, &steps, &err))
        fail_msg("%s", err.text);
    assert_int_equal(turbok_device_mem(d, TURBOK_MEM_SCRATCH), turbok_steps_bytes(d, &steps));
    return d;
}

/* Logits [n,V] of a made-up prompt of n tokens, at most 64; steps of `chunk` tokens. */
static inline void logits_kept(const char *folder, turbod_engine_opts o, int32_t n, int32_t chunk,
                               int vocab, int32_t kv_dtype, float *out)
{
    int32_t ids[MOST_TOKENS];
    turbo_err err = {{0}};
    make_prompt(ids, n, 7, vocab);
    o.kv_dtype = kv_dtype;
    o.max_step_tokens = o.max_batch = chunk;
    turbod_engine *e = open_engine(folder, o);
    if (turbod_engine_logits(e, ids, n, true, out, &err))
        fail_msg("%s", err.text);
    as_planned(e);
    turbod_engine_close(e);
    nothing_left();
}
/* The same with a cache of fp32. */
static inline void logits_of(const char *folder, turbod_engine_opts o, int32_t n, int32_t chunk,
                             int vocab, float *out)
{
    logits_kept(folder, o, n, chunk, vocab, TURBO_F32, out);
}

/* Root mean square of the difference by that of the numbers. */
static inline double relative(const float *a, const float *b, size_t n)
{
    double d = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    assert_true(size > 0);
    return sqrt(d / size);
}

#endif
