/* kernels/cuda/driver.c: see driver.h. */
#include "cuda/driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define OLDEST 12000 /* programmatic launch and updates of graphs as they are used here */

static turbo_status find_all(turbok_cu_driver *d, turbo_err *err)
{
    static const struct {
        const char *name;
        size_t offset;
    } functions[] = {
#define F(field, name, args) {name, offsetof(turbok_cu_driver, field)},
#include "cuda/driver.def"
#undef F
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *p = dlsym(d->library, functions[i].name);
        if (!p && functions[i].offset != offsetof(turbok_cu_driver, launch_ex) &&
            functions[i].offset != offsetof(turbok_cu_driver, tensor_map))
            return turbok_fail(err, TURBO_EUNSUPPORTED,
                               "the CUDA driver has no %s; update the NVIDIA driver",
                               functions[i].name);
        memcpy((char *)d + functions[i].offset, &p, sizeof p);
    }
    return TURBO_OK;
}

static turbo_status start(turbok_cu_driver *d, turbo_err *err)
{
    int n = 0, r = d->init(0);
    if (r == TURBOK_CU_NO_DEVICE)
        return turbok_fail(err, TURBO_EUNSUPPORTED, "the CUDA driver sees no device");
    if (r)
        return turbok_cu_result(d, r, "the CUDA driver does not start", err);
    r = d->driver_version(&d->version);
    if (r)
        return turbok_cu_result(d, r, "the CUDA driver does not tell its version", err);
    if (d->version < OLDEST)
        return turbok_fail(
            err, TURBO_EUNSUPPORTED,
            "the CUDA driver is for CUDA %d.%d, %d.%d or later is needed; update the "
            "NVIDIA driver",
            d->version / 1000, d->version % 1000 / 10, OLDEST / 1000, OLDEST % 1000 / 10);
    r = d->device_count(&n);
    if (r)
        return turbok_cu_result(d, r, "the CUDA driver does not count its devices", err);
    if (n < 1)
        return turbok_fail(err, TURBO_EUNSUPPORTED, "the CUDA driver sees no device");
    return TURBO_OK;
}

turbo_status turbok_cu_driver_open(turbok_cu_driver *d, turbo_err *err)
{
    const char *name = getenv("TURBO_CUDA_DRIVER");
    *d = (turbok_cu_driver){0};
    d->library = dlopen(name && *name ? name : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!d->library)
        return turbok_fail(err, TURBO_EUNSUPPORTED, "no CUDA driver");
    turbo_status st = find_all(d, err);
    if (!st)
        st = start(d, err);
    if (st)
        turbok_cu_driver_close(d);
    return st;
}

void turbok_cu_driver_close(turbok_cu_driver *d)
{
    if (d->library)
        dlclose(d->library);
    *d = (turbok_cu_driver){0};
}

turbo_status turbok_cu_result(const turbok_cu_driver *d, int result, const char *what,
                              turbo_err *err)
{
    const char *name = NULL, *text = NULL;
    if (!result)
        return TURBO_OK;
    if (d->error_name(result, &name) || !name)
        name = "unknown error";
    if (d->error_string(result, &text) || !text)
        text = "no description";
    if (result == TURBOK_CU_OUT_OF_MEMORY)
        return turbok_fail(err, TURBO_ENOMEM,
                           "%s: %s %d (%s); end what else uses the device, or use a smaller model",
                           what, name, result, text);
    return turbok_fail(err, TURBO_EINTERNAL, "%s: %s %d (%s)", what, name, result, text);
}
