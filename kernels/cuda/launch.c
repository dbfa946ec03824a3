/* kernels/cuda/launch.c: see launch.h. */
#include "cuda/launch.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/images.h"
#include "internal.h"

#define PLAIN_SHARED (48 << 10) /* more has to be asked for, once a kernel */
#define FUSED_WIDTH 4096 /* below it, by measurement, norms are faster as kernels of their own */
#define LONG_KEYS 1024 /* by measurement, see doc/kernels.md */
#define TOGETHER 2
#define MOST_TOGETHER 4096
#define LEAST_MAJOR 8 /* the oldest capability there are kernels for */

static const struct {
    const char *name, *file;
} kernels[] = {
#define KERNEL(name, file) {#name, #file},
#define KERNEL_ACT(name, file) {#name "_f32", #file}, {#name "_f16", #file}, {#name "_bf16", #file},
#include "cuda/kernels.def"
#undef KERNEL
#undef KERNEL_ACT
    {NULL, NULL},
};

turbo_status turbok_cu_enter(turbok_cu *cu, turbo_err *err)
{
    return turbok_cu_result(&cu->drv, cu->drv.ctx_set(cu->ctx), "the CUDA context cannot be used",
                            err);
}

static turbo_status find_device(turbok_cu *cu, int ordinal, turbo_err *err)
{
    const turbok_cu_driver *d = &cu->drv;
    char name[64] = "";
    size_t total = 0;
    int n = 0, r = d->device_count(&n);
    if (!r && (ordinal < 0 || ordinal >= n))
        return turbok_fail(
            err, TURBO_EINVAL,
            "there is no cuda:%d, the driver sees %d device%s; use cuda:0 to cuda:%d", ordinal, n,
            n == 1 ? "" : "s", n - 1);
    if (!r)
        r = d->device_get(&cu->device, ordinal);
    if (!r)
        r = d->device_name(name, sizeof name, cu->device);
    if (!r)
        r = d->device_total_mem(&total, cu->device);
    const struct {
        int attribute, *to;
    } wanted[] = {
        {TURBOK_CU_ATTR_SM_COUNT, &cu->sm_count}, {TURBOK_CU_ATTR_MAJOR, &cu->major},
        {TURBOK_CU_ATTR_MINOR, &cu->minor},       {TURBOK_CU_ATTR_SHARED_OPTIN, &cu->shared_optin},
        {TURBOK_CU_ATTR_L2_BYTES, &cu->l2_bytes},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0] && !r; i++)
        r = d->device_attribute(wanted[i].to, wanted[i].attribute, cu->device);
    if (r)
        return turbok_cu_result(d, r, "the CUDA driver does not describe the device", err);
    if (cu->major < LEAST_MAJOR)
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "%s has compute capability %d.%d, %d.0 or later is needed", name,
                           cu->major, cu->minor, LEAST_MAJOR);
    cu->ordinal = ordinal;
    cu->total_bytes = total;
    snprintf(cu->name, sizeof cu->name, "cuda:%d %s, %d SMs, capability %d.%d", ordinal, name,
             cu->sm_count, cu->major, cu->minor);
    return TURBO_OK;
}

/* Is it a word of archs? */
static bool names(const char *archs, const char *arch)
{
    const size_t n = strlen(arch);
    for (const char *at = archs; (at = strstr(at, arch)); at += n)
        if ((at == archs || at[-1] == ' ') && (!at[n] || at[n] == ' '))
            return true;
    return false;
}

static turbo_status load_kernels(turbok_cu *cu, turbo_err *err)
{
    const turbok_cu_driver *d = &cu->drv;
    size_t n = 0;
    while (turbok_cu_images[n].file)
        n++;
    cu->modules = calloc(n + 1, sizeof *cu->modules);
    if (!cu->modules)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for kernels");
    /* What has warp groups is compiled for 9.0a where others are for 9.0 (cuda.am). Code for other cards, or from PTX, may be
     * that of 8.0. */
    cu->code_90 = cu->major == 9 && cu->minor == 0;
    for (size_t i = 0; i < n; i++) {
        const char *archs = turbok_cu_images[i].archs;
        const bool has_90 = names(archs, "90") || names(archs, "90a"),
                   ptx_90 = !strncmp(archs, "90", 2);
        cu->code_90 = cu->code_90 && has_90;
        cu->arch_900 = cu->arch_900 || (cu->major == 9 && has_90) || (cu->major > 9 && ptx_90);
        int r = d->module_load(&cu->modules[i], turbok_cu_images[i].image);
        if (r == TURBOK_CU_NO_BINARY || r == TURBOK_CU_BAD_PTX_VERSION)
            return turbok_fail(err, TURBO_EUNSUPPORTED,
                               "this build has no kernels for compute capability %d.%d with this "
                               "driver; update the NVIDIA driver",
                               cu->major, cu->minor);
        if (r)
            return turbok_cu_result(d, r, "the kernels cannot be loaded", err);
    }
    cu->warp_groups = cu->code_90;
    cu->long_keys = LONG_KEYS;
    cu->shared_keys = cu->sm_count / 2;
    for (int k = 0; k < TURBOK_CU_KERNELS; k++) {
        size_t i = 0;
        while (i < n && strcmp(turbok_cu_images[i].file, kernels[k].file))
            i++;
        int r = i < n ? d->module_function(&cu->functions[k], cu->modules[i], kernels[k].name)
                      : TURBOK_CU_NOT_FOUND;
        if (r == TURBOK_CU_NOT_FOUND)
            return turbok_fail(err, TURBO_EINTERNAL,
                               "kernel %s is not in this build; reinstall turbod", kernels[k].name);
        if (r)
            return turbok_cu_result(d, r, "the kernels cannot be loaded", err);
    }
    return TURBO_OK;
}

static turbo_status make_context(turbok_cu *cu, turbo_err *err)
{
    const turbok_cu_driver *d = &cu->drv;
    size_t vacant = 0, total = 0;
    unsigned flags;
    int shared = 0; /* with a device of this process that is open */
    int r = d->primary_state(cu->device, &flags, &shared);
    if (r)
        return turbok_cu_result(d, r, "no CUDA context", err);
    r = d->primary_retain(&cu->ctx, cu->device);
    if (r == TURBOK_CU_OUT_OF_MEMORY)
        return turbok_fail(err, TURBO_ENOMEM,
                           "%s is full: another process holds its memory; end it or choose another "
                           "device",
                           cu->name);
    if (r) {
        cu->ctx = NULL;
        return turbok_cu_result(d, r, "no CUDA context", err);
    }
    r = d->ctx_set(cu->ctx);
    if (!r && shared)
        r = d->mem_info(&vacant, &total);
    cu->held_before = total > vacant ? total - vacant : 0;
    if (!r)
        r = d->stream_create(&cu->stream, TURBOK_CU_STREAM_NON_BLOCKING);
    if (r)
        return turbok_cu_result(d, r, "no CUDA context", err);
    turbo_status st = load_kernels(cu, err);
    return st ? st : turbok_cu_measure(cu, err);
}

turbo_status turbok_cu_measure(turbok_cu *cu, turbo_err *err)
{
    size_t vacant = 0, total = 0;
    int r = cu->drv.mem_info(&vacant, &total);
    const uint64_t gone = total > vacant ? total - vacant : 0;
    cu->context_bytes = gone > cu->held_before ? gone - cu->held_before : 0;
    return turbok_cu_result(&cu->drv, r, "free memory is not known", err);
}

turbo_status turbok_cu_open(int ordinal, turbok_cu **out, turbo_err *err)
{
    turbok_cu *cu = calloc(1, sizeof *cu);
    if (!cu)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a device");
    const char *pdl = getenv("TURBO_CUDA_PDL"), *fuse = getenv("TURBO_CUDA_FUSE");
    const char *together = getenv("TURBO_CUDA_TOGETHER");
    cu->no_pdl = pdl && !strcmp(pdl, "0");
    const long units = together ? strtol(together, NULL, 10) : TOGETHER;
    cu->together = units < 0 ? 0 : units < MOST_TOGETHER ? (int)units : MOST_TOGETHER;
    cu->fused_width = fuse ? (int)strtol(fuse, NULL, 10) : FUSED_WIDTH;
    turbo_status st = turbok_cu_driver_open(&cu->drv, err);
    if (!st)
        st = find_device(cu, ordinal, err);
    if (!st)
        st = make_context(cu, err);
    if (!cu->code_90) /* without programmatic launches it was not measured */
        cu->fused_width = INT_MAX;
    if (st) {
        turbok_cu_close(cu);
        return st;
    }
    *out = cu;
    return TURBO_OK;
}

void turbok_cu_close(turbok_cu *cu)
{
    if (!cu)
        return;
    const turbok_cu_driver *d = &cu->drv;
    if (cu->ctx) {
        /* After an error of the device these fail too; there is nothing left to save then. */
        (void)d->ctx_set(cu->ctx);
        if (cu->stream) {
            (void)d->stream_synchronize(cu->stream);
            (void)d->stream_destroy(cu->stream);
        }
        for (size_t i = 0; cu->modules && cu->modules[i]; i++)
            (void)d->module_unload(cu->modules[i]);
        (void)d->primary_release(cu->device);
    }
    free(cu->modules);
    turbok_cu_driver_close(&cu->drv);
    free(cu);
}

void turbok_cu_note(turbok_cu *cu, int result, const char *what)
{
    if (!result || cu->result)
        return;
    cu->result = result;
    turbok_cu_result(&cu->drv, result, what, &cu->err);
}

turbo_status turbok_cu_status(const turbok_cu *cu, turbo_err *err)
{
    if (!cu->result)
        return TURBO_OK;
    if (err)
        *err = cu->err;
    return cu->result == TURBOK_CU_OUT_OF_MEMORY ? TURBO_ENOMEM : TURBO_EINTERNAL;
}

turbo_status turbok_cu_wait(turbok_cu *cu, turbo_err *err)
{
    if (!cu->result)
        turbok_cu_note(cu, cu->drv.stream_synchronize(cu->stream), "the device failed");
    return turbok_cu_status(cu, err);
}

static unsigned one(unsigned n)
{
    return n ? n : 1;
}

void turbok_cu_launch(turbok_cu *cu, int kernel, turbok_cu_dim grid, turbok_cu_dim block,
                      size_t shared, unsigned flags, const void *params)
{
    const turbok_cu_driver *d = &cu->drv;
    union {
        const void *in;
        void *out; /* the driver reads it only */
    } p = {.in = params};
    void *list[1] = {p.out};
    if (cu->result)
        return;
    if (shared > PLAIN_SHARED && (int)shared > cu->shared_set[kernel]) {
        turbok_cu_note(cu,
                       d->func_set(cu->functions[kernel], TURBOK_CU_FUNC_DYNAMIC_SHARED,
                                   (int)shared),
                       kernels[kernel].name);
        cu->shared_set[kernel] = (int)shared;
    }
    if (cu->result)
        return;
    turbok_cu_launch_attr attrs[2];
    unsigned n = 0;
    if (flags & TURBOK_CU_PDL && d->launch_ex && !cu->no_pdl && cu->code_90)
        attrs[n++] = (turbok_cu_launch_attr){.id = TURBOK_CU_LAUNCH_PROGRAMMATIC, .value.value = 1};
    if (flags >> 8 && d->launch_ex && cu->code_90)
        attrs[n++] = (turbok_cu_launch_attr){.id = TURBOK_CU_LAUNCH_CLUSTER,
                                             .value.cluster = {flags >> 8, 1, 1}};
    int r;
    if (n) {
        turbok_cu_launch_config c = {
            .grid_x = one(grid.x),
            .grid_y = one(grid.y),
            .grid_z = one(grid.z),
            .block_x = one(block.x),
            .block_y = one(block.y),
            .block_z = one(block.z),
            .shared_bytes = (unsigned)shared,
            .stream = cu->stream,
            .attrs = attrs,
            .n_attrs = n,
        };
        r = d->launch_ex(&c, cu->functions[kernel], list, NULL);
    } else {
        r = d->launch(cu->functions[kernel], one(grid.x), one(grid.y), one(grid.z), one(block.x),
                      one(block.y), one(block.z), (unsigned)shared, cu->stream, list, NULL);
    }
    turbok_cu_note(cu, r, kernels[kernel].name);
}

void turbok_cu_to_device(turbok_cu *cu, turbok_cu_ptr dst, const void *src, size_t bytes)
{
    if (!cu->result && bytes)
        turbok_cu_note(cu, cu->drv.copy_to_device(dst, src, bytes, cu->stream),
                       "copy to the device");
}

void turbok_cu_to_host(turbok_cu *cu, void *dst, turbok_cu_ptr src, size_t bytes)
{
    if (!cu->result && bytes)
        turbok_cu_note(cu, cu->drv.copy_to_host(dst, src, bytes, cu->stream),
                       "copy from the device");
}

void turbok_cu_fill(turbok_cu *cu, turbok_cu_ptr dst, int value, size_t bytes)
{
    if (!cu->result && bytes)
        turbok_cu_note(cu, cu->drv.set_bytes(dst, (unsigned char)value, bytes, cu->stream),
                       "filling device memory");
}
