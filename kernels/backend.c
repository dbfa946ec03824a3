/* kernels/backend.c: finding a backend's shared object, and the parts of turbok.h that are nothing but a
 * choice between the CPU and a backend. Caller's thread. */
#include "backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

turbo_status turbok_backend_load(const char *path, turbok_device *d, turbo_err *err)
{
    char file[4096];
    const char *from = path ? path : "";
    while (*from && !d->library) {
        size_t n = strcspn(from, ":");
        int len = snprintf(file, sizeof file, "%.*s/turbok-cuda.so", (int)n, from);
        if (len > 0 && (size_t)len < sizeof file && !access(file, F_OK)) {
            d->library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
            if (!d->library)
                return turbok_fail(err, TURBO_EABI, "%.220s", dlerror());
        }
        from += n + (from[n] == ':');
    }
    if (!d->library)
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "this build has no turbok-cuda.so; build with --with-cuda");
    turbok_backend_entry_fn entry = NULL;
    void *p = dlsym(d->library, TURBOK_BACKEND_ENTRY);
    memcpy(&entry, &p, sizeof entry);
    const turbok_backend *b = entry ? entry() : NULL;
    if (!b || strcmp(b->build, TURBOK_BUILD))
        return turbok_fail(
            err, TURBO_EABI,
            "turbok-cuda.so is not of the same build as this program; reinstall both");
    d->backend = b;
    return TURBO_OK;
}

bool turbok_device_on_host(const turbok_device *d)
{
    return !d->backend;
}

uint64_t turbok_device_vacant(turbok_device *d)
{
    return d->backend ? d->backend->vacant(d) : 0;
}

uint64_t turbok_device_context(const turbok_device *d)
{
    return d->backend ? d->backend->context(d) : 0;
}

turbo_status turbok_device_wait(turbok_device *d, turbo_err *err)
{
    return d->backend ? d->backend->wait(d, err) : TURBO_OK;
}

turbo_status turbok_device_enter(turbok_device *d, turbo_err *err)
{
    return d->backend ? d->backend->enter(d, err) : TURBO_OK;
}

turbo_status turbok_device_expect(turbok_device *d, uint64_t bytes, turbo_err *err)
{
    return d->backend ? d->backend->expect(d, bytes, err) : TURBO_OK;
}

turbok_copied turbok_device_copied(const turbok_device *d)
{
    return d->copied;
}

int32_t turbok_device_gaps(const turbok_device *d, const float **us)
{
    return d->backend ? d->backend->gaps(d, us) : 0;
}

void *turbok_space_new(turbok_device *d, uint64_t bytes)
{
    size_t size = turbok_alloc_size(bytes ? (size_t)bytes : 1);
    if (size < bytes)
        return NULL;
    if (d->backend)
        return d->backend->take(d, size);
    void *p = aligned_alloc(64, size);
    if (p)
        memset(p, 0, size);
    return p;
}

void turbok_space_free(turbok_device *d, void *p, uint64_t bytes)
{
    if (p && d->backend)
        d->backend->give(d, p, turbok_alloc_size(bytes ? (size_t)bytes : 1));
    else
        free(p);
}

void *turbok_pinned_new(turbok_device *d, uint64_t bytes)
{
    size_t size = turbok_alloc_size(bytes ? (size_t)bytes : 1);
    if (size < bytes)
        return NULL;
    void *p = d->backend ? d->backend->host_take(d, size) : aligned_alloc(64, size);
    if (p)
        memset(p, 0, size);
    return p;
}

void turbok_pinned_free(turbok_device *d, void *p, uint64_t bytes)
{
    if (p && d->backend)
        d->backend->host_give(d, p, turbok_alloc_size(bytes ? (size_t)bytes : 1));
    else
        free(p);
}

uint64_t turbok_steps_bytes(const turbok_device *d, const turbok_steps *s)
{
    return d->backend ? d->backend->steps_bytes(d, s) : 0;
}

uint64_t turbok_later_bytes(const turbok_device *d, const turbok_steps *s)
{
    return d->backend ? d->backend->later_bytes(d, s) : 0;
}

turbo_status turbok_steps_open(turbok_device *d, const turbok_steps *s, turbo_err *err)
{
    return d->backend ? d->backend->steps_open(d, s, err) : TURBO_OK;
}

const char *turbok_draws_as(const turbok_device *d)
{
    return d->backend ? d->backend->draws_as : NULL;
}

bool turbok_draws(const turbok_device *d, const turbo_sample_params *p)
{
    return d->backend && d->backend->draws(d, p);
}

turbo_status turbok_place_begin(turbok_device *d, int32_t place, const turbo_sample_params *p,
                                const int32_t *tokens, int32_t n_prompt, int32_t n, turbo_err *err)
{
    return d->backend ? d->backend->place_begin(d, place, p, tokens, n_prompt, n, err) : TURBO_OK;
}

turbo_status turbok_step_begin(turbok_device *d, const turbo_batch *b, const turbok_row *rows,
                               turbo_batch *as, bool *replay, turbo_err *err)
{
    *replay = false;
    if (d->backend)
        return d->backend->step_begin(d, b, rows, as, replay, err);
    *as = *b;
    return TURBO_OK;
}

turbo_status turbok_step_end(turbok_device *d, float *logits, turbok_row *rows, int32_t R,
                             float *host, turbo_err *err)
{
    return d->backend ? d->backend->step_end(d, logits, rows, R, host, err) : TURBO_OK;
}

void turbok_step_drop(turbok_device *d)
{
    if (d->backend)
        d->backend->step_drop(d);
}

turbo_status turbok_step_wait(turbok_device *d, turbok_row *rows, int32_t R, turbo_err *err)
{
    return d->backend ? d->backend->step_wait(d, rows, R, err) : TURBO_OK;
}
