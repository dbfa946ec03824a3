/* tests/cuda/on_gpu.h: what tests of the engine on a CUDA device share. One thread. */
#ifndef TESTS_CUDA_ON_GPU_H
#define TESTS_CUDA_ON_GPU_H

#include "../unit/engine_kit.h"

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

/* Every kind of memory is what was planned. */
static inline void as_planned(turbod_engine *e)
{
    const turbod_engine_facts *f = turbod_engine_facts_of(e);
    for (int k = 0; k < TURBOD_MEM_KINDS; k++)
        if (f->plan.bytes[k] != f->alloc[k])
            fail_msg("%s: planned %llu, taken %llu", turbod_mem_names[k],
                     (unsigned long long)f->plan.bytes[k], (unsigned long long)f->alloc[k]);
}

#endif
