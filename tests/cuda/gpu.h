/* tests/cuda/gpu.h: which driver a test of the CUDA backend runs on: the fake one of this build, unless
 * TURBO_CHECK_GPU is set, as it is in `make check-gpu`: then the machine's own. */
#ifndef TESTS_CUDA_GPU_H
#define TESTS_CUDA_GPU_H

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda/hostrun/fakecuda.h"

typedef struct fake_driver {
    void *handle; /* NULL: the real one runs */
    fakecuda_fail_fn plant;
    fakecuda_fired_fn fired;
    fakecuda_kernels_fn kernels;
    fakecuda_calls_fn calls;
    fakecuda_launched_fn launched;
    fakecuda_live_fn live;
    fakecuda_why_fn why;
} fake_driver;

static inline fake_driver fake_driver_open(void)
{
    fake_driver fake = {0};
    char path[4096];
    const char *top = getenv("top_builddir");
    if (getenv("TURBO_CHECK_GPU"))
        return fake;
    snprintf(path, sizeof path, "%s/kernels/cuda/hostrun/.libs/fakecuda.so", top ? top : ".");
    setenv("TURBO_CUDA_DRIVER", path, 1);
    fake.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!fake.handle) {
        fprintf(stderr, "%s\n", dlerror());
        abort();
    }
    *(void **)(void *)&fake.plant = dlsym(fake.handle, FAKECUDA_FAIL);
    *(void **)(void *)&fake.fired = dlsym(fake.handle, FAKECUDA_FIRED);
    *(void **)(void *)&fake.kernels = dlsym(fake.handle, FAKECUDA_KERNELS);
    *(void **)(void *)&fake.calls = dlsym(fake.handle, FAKECUDA_CALLS);
    *(void **)(void *)&fake.launched = dlsym(fake.handle, FAKECUDA_LAUNCHED);
    *(void **)(void *)&fake.live = dlsym(fake.handle, FAKECUDA_LIVE);
    *(void **)(void *)&fake.why = dlsym(fake.handle, FAKECUDA_WHY);
    return fake;
}

#endif
