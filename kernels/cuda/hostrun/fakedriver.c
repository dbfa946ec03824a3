/* kernels/cuda/hostrun/fakedriver.c: the functions of driver.def as the fake driver has them. For tests only. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/hostrun/fakestate.h"

#define EXPORT __attribute__((visibility("default")))

#define ENTER(field, on_device)                                                                    \
    do {                                                                                           \
        int planted = fake_enter(CALL_##field, on_device);                                         \
        if (planted)                                                                               \
            return planted;                                                                        \
    } while (0)

static int enqueue(turbok_cu_function f, const unsigned grid[3], const unsigned block[3],
                   unsigned cluster, size_t shared, struct turbok_cu_stream *s, void **params)
{
    union {
        turbok_cu_function f;
        const hostrun_kernel *k;
    } u = {.f = f};
    work w = {.kernel = u.k, .cluster = cluster, .shared = shared};
    memcpy(w.grid, grid, sizeof w.grid);
    memcpy(w.block, block, sizeof w.block);
    if (grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[1] > 65535 || grid[2] > 65535 ||
        grid[0] > 0x7fffffff || block[0] * block[1] * block[2] > 1024)
        return TURBOK_CU_INVALID;
    return fake_append(s, &w, params[0], u.k->args_bytes);
}

static int copy_list(const work *from, struct turbok_cu_graph_exec *to)
{
    for (; from; from = from->next) {
        work *w = calloc(1, sizeof *w);
        size_t own = from->kernel ? from->kernel->args_bytes : from->bytes;
        if (!w)
            return TURBOK_CU_OUT_OF_MEMORY;
        *w = *from;
        w->next = NULL;
        if (from->own && !(w->own = fake_own(own))) {
            free(w);
            return TURBOK_CU_OUT_OF_MEMORY;
        }
        if (from->own)
            memcpy(w->own, from->own, own);
        *to->end = w;
        to->end = &w->next;
    }
    return 0;
}

/* "cuGraphLaunch:5:700" */
static void plant(const char *text)
{
    char name[64];
    long n;
    int result;
    if (text && sscanf(text, "%63[^:]:%ld:%d", name, &n, &result) == 3)
        fakecuda_fail(name, n, result, 1);
}

EXPORT int cuInit(unsigned flags);
int cuInit(unsigned flags)
{
    ENTER(init, false);
    (void)flags;
    const char *m = getenv("FAKECUDA_MEMORY"), *n = getenv("FAKECUDA_DEVICES");
    const char *c = getenv("FAKECUDA_CAPABILITY"), *v = getenv("FAKECUDA_VERSION");
    fake.memory = m ? (size_t)strtoull(m, NULL, 10) : (size_t)1 << 30;
    fake.devices = n ? (int)strtol(n, NULL, 10) : 1;
    const char *sms = getenv("FAKECUDA_SMS");
    fake.capability = c ? (int)strtol(c, NULL, 10) : 90;
    fake.sm_count = sms ? (int)strtol(sms, NULL, 10) : 4;
    fake.version = v ? (int)strtol(v, NULL, 10) : 13000;
    plant(getenv("FAKECUDA_FAIL"));
    return 0;
}

EXPORT int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version)
{
    ENTER(driver_version, false);
    *version = fake.version;
    return 0;
}

EXPORT int cuGetErrorName(int result, const char **text);
int cuGetErrorName(int result, const char **text)
{
    *text = result == TURBOK_CU_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_PLANTED";
    return 0;
}

EXPORT int cuGetErrorString(int result, const char **text);
int cuGetErrorString(int result, const char **text)
{
    (void)result;
    *text = fake.why[0] ? fake.why : "planted";
    return 0;
}

EXPORT int cuDeviceGetCount(int *n);
int cuDeviceGetCount(int *n)
{
    ENTER(device_count, false);
    *n = fake.devices;
    return 0;
}

EXPORT int cuDeviceGet(int *device, int ordinal);
int cuDeviceGet(int *device, int ordinal)
{
    ENTER(device_get, false);
    *device = ordinal;
    return ordinal < fake.devices ? 0 : TURBOK_CU_INVALID_DEVICE;
}

EXPORT int cuDeviceGetName(char *name, int cap, int device);
int cuDeviceGetName(char *name, int cap, int device)
{
    ENTER(device_name, false);
    snprintf(name, (size_t)cap, "host run %d", device);
    return 0;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device);
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    ENTER(device_attribute, false);
    (void)device;
    switch (attribute) {
    case TURBOK_CU_ATTR_SM_COUNT: *value = fake.sm_count; return 0;
    case TURBOK_CU_ATTR_L2_BYTES: *value = 1 << 20; return 0;
    case TURBOK_CU_ATTR_MAJOR: *value = fake.capability / 10; return 0;
    case TURBOK_CU_ATTR_MINOR: *value = fake.capability % 10; return 0;
    case TURBOK_CU_ATTR_SHARED_OPTIN: *value = (int)fake_shared(); return 0;
    default: return TURBOK_CU_INVALID;
    }
}

EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device);
int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    ENTER(device_total_mem, false);
    (void)device;
    *bytes = fake.memory;
    return 0;
}

EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active);
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{
    ENTER(primary_state, false);
    (void)device;
    *flags = 0;
    *active = fake_live_contexts > 0;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRetain(turbok_cu_context *ctx, int device);
int cuDevicePrimaryCtxRetain(turbok_cu_context *ctx, int device)
{
    ENTER(primary_retain, false);
    (void)device;
    *ctx = (turbok_cu_context)(void *)&fake;
    fake_live_contexts++;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device);
int cuDevicePrimaryCtxRelease_v2(int device)
{
    int r = fake_enter(CALL_primary_release, true);
    (void)device;
    fake_live_contexts--;
    return r;
}

EXPORT int cuCtxSetCurrent(turbok_cu_context ctx);
int cuCtxSetCurrent(turbok_cu_context ctx)
{
    ENTER(ctx_set, true);
    (void)ctx;
    return 0;
}

EXPORT int cuCtxSynchronize(void);
int cuCtxSynchronize(void)
{
    ENTER(ctx_synchronize, true);
    return fake_flush_all();
}

EXPORT int cuMemGetInfo_v2(size_t *vacant, size_t *total);
int cuMemGetInfo_v2(size_t *vacant, size_t *total)
{
    ENTER(mem_info, true);
    *total = fake.memory;
    *vacant = fake.memory > fake_live_device ? fake.memory - fake_live_device : 0;
    return 0;
}

EXPORT int cuMemAlloc_v2(turbok_cu_ptr *p, size_t bytes);
int cuMemAlloc_v2(turbok_cu_ptr *p, size_t bytes)
{
    ENTER(mem_alloc, true);
    if (fake_live_device + bytes > fake.memory)
        return TURBOK_CU_OUT_OF_MEMORY;
    void *at = fake_take(bytes, false);
    *p = (turbok_cu_ptr)(uintptr_t)at;
    return at ? 0 : TURBOK_CU_OUT_OF_MEMORY;
}

EXPORT int cuMemFree_v2(turbok_cu_ptr p);
int cuMemFree_v2(turbok_cu_ptr p)
{
    int r = fake_enter(CALL_mem_free, true);
    fake_flush_all();
    int freed = fake_give((void *)(uintptr_t)p, false);
    return r ? r : freed;
}

EXPORT int cuMemHostAlloc(void **p, size_t bytes, unsigned flags);
int cuMemHostAlloc(void **p, size_t bytes, unsigned flags)
{
    ENTER(host_alloc, true);
    (void)flags;
    *p = fake_take(bytes, true);
    return *p ? 0 : TURBOK_CU_OUT_OF_MEMORY;
}

EXPORT int cuMemFreeHost(void *p);
int cuMemFreeHost(void *p)
{
    int r = fake_enter(CALL_host_free, true);
    fake_flush_all();
    int freed = fake_give(p, true);
    return r ? r : freed;
}

EXPORT int cuMemcpyHtoDAsync_v2(turbok_cu_ptr dst, const void *src, size_t bytes,
                                turbok_cu_stream s);
int cuMemcpyHtoDAsync_v2(turbok_cu_ptr dst, const void *src, size_t bytes, turbok_cu_stream s)
{
    ENTER(copy_to_device, true);
    if (!fake_inside((void *)(uintptr_t)dst, bytes, false))
        return TURBOK_CU_INVALID;
    bool pageable = !fake_inside(src, bytes, true);
    work w = {.to = (void *)(uintptr_t)dst, .from = src, .bytes = bytes};
    return fake_append(s, &w, pageable ? src : NULL, bytes);
}

EXPORT int cuMemcpyDtoHAsync_v2(void *dst, turbok_cu_ptr src, size_t bytes, turbok_cu_stream s);
int cuMemcpyDtoHAsync_v2(void *dst, turbok_cu_ptr src, size_t bytes, turbok_cu_stream s)
{
    ENTER(copy_to_host, true);
    if (!fake_inside((void *)(uintptr_t)src, bytes, false))
        return TURBOK_CU_INVALID;
    work w = {.to = dst, .from = (void *)(uintptr_t)src, .bytes = bytes};
    if (!fake_inside(dst, bytes, true)) { /* pageable: done when the call returns */
        int r = s->capture ? TURBOK_CU_INVALID : fake_append(s, &w, NULL, 0);
        return r ? r : fake_flush(s);
    }
    memset(dst, FAKE_POISON, bytes); /* nobody may look before it has waited */
    return fake_append(s, &w, NULL, 0);
}

EXPORT int cuMemcpyDtoDAsync_v2(turbok_cu_ptr dst, turbok_cu_ptr src, size_t bytes,
                                turbok_cu_stream s);
int cuMemcpyDtoDAsync_v2(turbok_cu_ptr dst, turbok_cu_ptr src, size_t bytes, turbok_cu_stream s)
{
    ENTER(copy_on_device, true);
    if (!fake_inside((void *)(uintptr_t)src, bytes, false) ||
        !fake_inside((void *)(uintptr_t)dst, bytes, false))
        return TURBOK_CU_INVALID;
    work w = {.to = (void *)(uintptr_t)dst, .from = (void *)(uintptr_t)src, .bytes = bytes};
    return fake_append(s, &w, NULL, 0);
}

EXPORT int cuMemsetD8Async(turbok_cu_ptr dst, unsigned char value, size_t bytes,
                           turbok_cu_stream s);
int cuMemsetD8Async(turbok_cu_ptr dst, unsigned char value, size_t bytes, turbok_cu_stream s)
{
    ENTER(set_bytes, true);
    if (!fake_inside((void *)(uintptr_t)dst, bytes, false))
        return TURBOK_CU_INVALID;
    work w = {.to = (void *)(uintptr_t)dst, .value = value, .bytes = bytes};
    return fake_append(s, &w, NULL, 0);
}

EXPORT int cuStreamCreate(turbok_cu_stream *s, unsigned flags);
int cuStreamCreate(turbok_cu_stream *s, unsigned flags)
{
    ENTER(stream_create, true);
    (void)flags;
    *s = calloc(1, sizeof **s);
    if (!*s)
        return TURBOK_CU_OUT_OF_MEMORY;
    (*s)->end = &(*s)->first;
    fake_live_streams++;
    for (int i = 0; i < FAKE_STREAMS; i++)
        if (!fake_streams[i]) {
            fake_streams[i] = *s;
            break;
        }
    return 0;
}

EXPORT int cuStreamDestroy_v2(turbok_cu_stream s);
int cuStreamDestroy_v2(turbok_cu_stream s)
{
    int r = fake_enter(CALL_stream_destroy, true);
    for (int i = 0; i < FAKE_STREAMS; i++)
        if (fake_streams[i] == s)
            fake_streams[i] = NULL;
    fake_drop(s->first);
    if (s->capture) {
        fake_drop(s->capture->first);
        free(s->capture);
        fake_live_graphs--;
    }
    free(s);
    fake_live_streams--;
    return r;
}

EXPORT int cuStreamSynchronize(turbok_cu_stream s);
int cuStreamSynchronize(turbok_cu_stream s)
{
    ENTER(stream_synchronize, true);
    return s->capture ? TURBOK_CU_INVALID : fake_flush(s);
}

EXPORT int cuStreamWaitEvent(turbok_cu_stream s, turbok_cu_event e, unsigned flags);
int cuStreamWaitEvent(turbok_cu_stream s, turbok_cu_event e, unsigned flags)
{
    ENTER(stream_wait, true);
    (void)s;
    (void)flags;
    return e->stream ? fake_flush(e->stream) : 0;
}

EXPORT int cuEventCreate(turbok_cu_event *e, unsigned flags);
int cuEventCreate(turbok_cu_event *e, unsigned flags)
{
    ENTER(event_create, true);
    (void)flags;
    *e = calloc(1, sizeof **e);
    fake_live_events += *e != NULL;
    return *e ? 0 : TURBOK_CU_OUT_OF_MEMORY;
}

EXPORT int cuEventDestroy_v2(turbok_cu_event e);
int cuEventDestroy_v2(turbok_cu_event e)
{
    int r = fake_enter(CALL_event_destroy, true);
    free(e);
    fake_live_events--;
    return r;
}

EXPORT int cuEventRecord(turbok_cu_event e, turbok_cu_stream s);
int cuEventRecord(turbok_cu_event e, turbok_cu_stream s)
{
    ENTER(event_record, true);
    e->stream = s;
    e->asked = false;
    return 0;
}

EXPORT int cuEventSynchronize(turbok_cu_event e);
int cuEventSynchronize(turbok_cu_event e)
{
    ENTER(event_synchronize, true);
    return e->stream ? fake_flush(e->stream) : 0;
}

/* Who asks first is told that it is not over, as on a card: the second to ask has waited. */
EXPORT int cuEventQuery(turbok_cu_event e);
int cuEventQuery(turbok_cu_event e)
{
    ENTER(event_query, true);
    if (e->stream && !e->asked) {
        e->asked = true;
        return TURBOK_CU_NOT_READY;
    }
    return e->stream ? fake_flush(e->stream) : 0;
}

EXPORT int cuEventElapsedTime(float *ms, turbok_cu_event from, turbok_cu_event to);
int cuEventElapsedTime(float *ms, turbok_cu_event from, turbok_cu_event to)
{
    ENTER(event_elapsed, true);
    (void)from;
    (void)to;
    *ms = 1;
    return 0;
}

EXPORT int cuModuleLoadData(turbok_cu_module *m, const void *image);
int cuModuleLoadData(turbok_cu_module *m, const void *image)
{
    ENTER(module_load, true);
    (void)image;
    *m = calloc(1, sizeof **m);
    fake_live_modules += *m != NULL;
    return *m ? 0 : TURBOK_CU_OUT_OF_MEMORY;
}

EXPORT int cuModuleUnload(turbok_cu_module m);
int cuModuleUnload(turbok_cu_module m)
{
    int r = fake_enter(CALL_module_unload, true);
    free(m);
    fake_live_modules--;
    return r;
}

EXPORT int cuModuleGetFunction(turbok_cu_function *f, turbok_cu_module m, const char *name);
int cuModuleGetFunction(turbok_cu_function *f, turbok_cu_module m, const char *name)
{
    ENTER(module_function, true);
    (void)m;
    union {
        const hostrun_kernel *k;
        turbok_cu_function f;
    } u = {.k = hostrun_find(name)};
    *f = u.f;
    return u.k ? 0 : TURBOK_CU_NOT_FOUND;
}

EXPORT int cuFuncSetAttribute(turbok_cu_function f, int attribute, int value);
int cuFuncSetAttribute(turbok_cu_function f, int attribute, int value)
{
    ENTER(func_set, true);
    (void)f;
    (void)attribute;
    return value > (int)fake_shared() ? TURBOK_CU_INVALID : 0;
}

EXPORT int cuLaunchKernel(turbok_cu_function f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                          unsigned by, unsigned bz, unsigned shared, turbok_cu_stream s,
                          void **params, void **extra);
int cuLaunchKernel(turbok_cu_function f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned shared, turbok_cu_stream s, void **params,
                   void **extra)
{
    ENTER(launch, true);
    (void)extra;
    return enqueue(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, 1, shared, s, params);
}

EXPORT int cuLaunchKernelEx(const turbok_cu_launch_config *config, turbok_cu_function f,
                            void **params, void **extra);
int cuLaunchKernelEx(const turbok_cu_launch_config *config, turbok_cu_function f, void **params,
                     void **extra)
{
    ENTER(launch_ex, true);
    (void)extra;
    unsigned cluster = 1;
    for (unsigned i = 0; i < config->n_attrs; i++) {
        const turbok_cu_launch_attr *a = &config->attrs[i];
        if (a->id != TURBOK_CU_LAUNCH_CLUSTER)
            continue;
        if (a->value.cluster[1] != 1 || a->value.cluster[2] != 1)
            return TURBOK_CU_INVALID;
        cluster = a->value.cluster[0];
    }
    return enqueue(f, (unsigned[]){config->grid_x, config->grid_y, config->grid_z},
                   (unsigned[]){config->block_x, config->block_y, config->block_z}, cluster,
                   config->shared_bytes, config->stream, params);
}

EXPORT int cuTensorMapEncodeTiled(void *map, int type, unsigned dims, void *base,
                                  const uint64_t *size, const uint64_t *pitch, const uint32_t *box,
                                  const uint32_t *step, int interleave, int swizzle, int promotion,
                                  int fill);
int cuTensorMapEncodeTiled(void *map, int type, unsigned dims, void *base, const uint64_t *size,
                           const uint64_t *pitch, const uint32_t *box, const uint32_t *step,
                           int interleave, int swizzle, int promotion, int fill)
{
    ENTER(tensor_map, true);
    (void)promotion;
    if ((uintptr_t)map % 64 || (uintptr_t)base % 16 || type != TURBOK_CU_MAP_16_BITS || dims != 2 ||
        !size[0] || !size[1] || size[0] >> 32 || size[1] >> 32 || pitch[0] % 16 || pitch[0] >> 40 ||
        pitch[0] < size[0] * 2 || box[0] * 2 != 128 || !box[1] || box[1] > 256 || step[0] != 1 ||
        step[1] != 1 || interleave || swizzle != TURBOK_CU_MAP_SWIZZLE_128 || fill)
        return TURBOK_CU_INVALID;
    hostrun_map m = {.made = HOSTRUN_MAP,
                     .base = base,
                     .columns = (int64_t)size[0],
                     .rows = (int64_t)size[1],
                     .pitch = (int64_t)pitch[0],
                     .box_columns = (int32_t)box[0],
                     .box_rows = (int32_t)box[1]};
    memset(map, 0, 128);
    memcpy(map, &m, sizeof m);
    return 0;
}

EXPORT int cuStreamBeginCapture_v2(turbok_cu_stream s, int mode);
int cuStreamBeginCapture_v2(turbok_cu_stream s, int mode)
{
    ENTER(capture_begin, true);
    (void)mode;
    if (s->capture)
        return TURBOK_CU_INVALID;
    fake_flush(s); /* what was queued is no part of the graph */
    s->capture = calloc(1, sizeof *s->capture);
    if (!s->capture)
        return TURBOK_CU_OUT_OF_MEMORY;
    s->capture->end = &s->capture->first;
    fake_live_graphs++;
    return fake.broken;
}

EXPORT int cuStreamEndCapture(turbok_cu_stream s, turbok_cu_graph *g);
int cuStreamEndCapture(turbok_cu_stream s, turbok_cu_graph *g)
{
    ENTER(capture_end, true);
    *g = s->capture;
    s->capture = NULL;
    return *g ? 0 : TURBOK_CU_INVALID;
}

EXPORT int cuGraphInstantiateWithFlags(turbok_cu_graph_exec *e, turbok_cu_graph g,
                                       unsigned long long flags);
int cuGraphInstantiateWithFlags(turbok_cu_graph_exec *e, turbok_cu_graph g,
                                unsigned long long flags)
{
    ENTER(graph_instantiate, true);
    (void)flags;
    *e = calloc(1, sizeof **e);
    if (!*e)
        return TURBOK_CU_OUT_OF_MEMORY;
    (*e)->end = &(*e)->first;
    fake_live_graphs++;
    return copy_list(g->first, *e);
}

EXPORT int cuGraphExecUpdate_v2(turbok_cu_graph_exec e, turbok_cu_graph g,
                                turbok_cu_update_info *info);
int cuGraphExecUpdate_v2(turbok_cu_graph_exec e, turbok_cu_graph g, turbok_cu_update_info *info)
{
    ENTER(graph_update, true);
    fake_drop(e->first);
    e->first = NULL;
    e->end = &e->first;
    *info = (turbok_cu_update_info){0};
    return copy_list(g->first, e);
}

EXPORT int cuGraphLaunch(turbok_cu_graph_exec e, turbok_cu_stream s);
int cuGraphLaunch(turbok_cu_graph_exec e, turbok_cu_stream s)
{
    ENTER(graph_launch, true);
    struct turbok_cu_graph_exec all = {0};
    all.end = &all.first;
    int r = copy_list(e->first, &all);
    *s->end = all.first;
    if (all.first)
        s->end = all.end;
    return r;
}

EXPORT int cuGraphExecDestroy(turbok_cu_graph_exec e);
int cuGraphExecDestroy(turbok_cu_graph_exec e)
{
    int r = fake_enter(CALL_graph_exec_destroy, true);
    fake_drop(e->first);
    free(e);
    fake_live_graphs--;
    return r;
}

EXPORT int cuGraphDestroy(turbok_cu_graph g);
int cuGraphDestroy(turbok_cu_graph g)
{
    int r = fake_enter(CALL_graph_destroy, true);
    fake_drop(g->first);
    free(g);
    fake_live_graphs--;
    return r;
}
