/* kernels/cuda/bench/memory.c: bench-gpu's account of what is gone from a card before any weight is there, and what
 * launches, products of the library and recorded steps take of it later: the figures that core/plan/roof.c has of a
 * card. Nobody else may use the card meanwhile. */
#include "bench-gpu.h"

#include "cuda/images.h"
#include "cuda/state.h"

static const turbok_cu_driver *drv;
static uint64_t gone;

static void stage(const char *what)
{
    size_t vacant = 0, total = 0;
    if (drv->mem_info(&vacant, &total))
        return;
    uint64_t now = total - vacant;
    printf("memory  %-46s %14llu %+14lld\n", what, (unsigned long long)now,
           (long long)(now - gone));
    fflush(stdout);
    record("memory", what, 0, (double)(now - gone), 0, 0);
    gone = now;
}

/* What an open of the backend does, in its order and one by one; closed again. */
void bench_memory(void)
{
    turbok_cu_driver d;
    turbok_cu_context ctx;
    turbok_cu_stream stream = NULL;
    turbok_cu_module m[32] = {NULL};
    turbo_err err = {""};
    size_t vacant = 0, total = 0, n = 0;
    int device = 0;
    if (turbok_cu_driver_open(&d, &err))
        return; /* the open that follows says why */
    drv = &d;
    if (!d.device_get(&device, 0) && !d.primary_retain(&ctx, device)) {
        (void)d.ctx_set(ctx);
        if (!d.mem_info(&vacant, &total))
            printf("memory  total %zu\n", total);
        stage("context");
        if (!d.stream_create(&stream, TURBOK_CU_STREAM_NON_BLOCKING))
            stage("stream");
        while (turbok_cu_images[n].file && n < 32 &&
               !d.module_load(&m[n], turbok_cu_images[n].image))
            n++;
        stage("modules");
        while (n)
            (void)d.module_unload(m[--n]);
        (void)d.stream_destroy(stream);
        (void)d.primary_release(device);
    }
    turbok_cu_driver_close(&d);
}

void bench_memory_later(void)
{
    turbok_cuda s = {.cu = cu};
    turbo_err err = {""};
    drv = &cu->drv;
    stage("context, stream, modules, functions");
    if (turbok_cuda_stages_open(&s, &err))
        return;
    stage("pinned buffers");
    open_blas(); /* and a workspace of 32 MiB */
    stage("cuBLASLt and its workspace");
    graphs_in_memory(stage);
    turbok_cuda_stages_close(&s);
}
