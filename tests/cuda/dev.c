/* tests/cuda/dev.c: see dev.h. */
#include "dev.h"

#include <stdarg.h>

#include "cpu/half.h"

#define BAND 512
#define MAX_BUFFERS 64

turbok_cu *dev;
bool dev_real, dev_fast;
static struct {
    char *base;
    size_t bytes;
} buffers[MAX_BUFFERS];
static int n_buffers, failures, checks;
static uint64_t seed = 0x2545f4914f6cdd1du;

void dev_begin(const char *name)
{
    turbo_err err = {""};
    char path[4096];
    const char *top = getenv("top_builddir");
    const char *card = getenv("TURBO_CHECK_GPU");
    dev_real = card != NULL;
    dev_fast = card && strcmp(card, "small");
    snprintf(path, sizeof path, "%s/kernels/cuda/hostrun/.libs/fakecuda.so", top ? top : ".");
    if (!dev_real)
        setenv("TURBO_CUDA_DRIVER", path, 0);
    if (turbok_cu_open(0, &dev, &err)) {
        /* No card is a reason to skip; the driver of this build always opens. */
        printf("%s: %s: %s\n", dev_real ? "SKIP" : "FAIL", name, err.text);
        exit(dev_real ? 77 : 1);
    }
    printf("%s on %s\n", name, dev->name);
}

int dev_end(void)
{
    turbo_err err = {""};
    dev_drop();
    if (turbok_cu_wait(dev, &err))
        dev_fail("%s", err.text);
    turbok_cu_close(dev);
    printf("%d checks, %d failed\n", checks, failures);
    return failures || !checks ? 1 : 0;
}

uint32_t dev_next(void)
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)(seed * 0x2545f4914f6cdd1du >> 32);
}

int32_t dev_range(int32_t lo, int32_t hi)
{
    return lo + (int32_t)(dev_next() % (uint32_t)(hi - lo + 1));
}

float dev_float(void)
{
    float s = 0;
    for (int i = 0; i < 4; i++)
        s += (float)dev_next() / 4294967296.0f - 0.5f;
    return s * 1.7320508f;
}

static bool usable(void)
{
    turbo_err err = {""};
    if (!turbok_cu_wait(dev, &err))
        return true;
    dev_fail("the device is broken: %s", err.text);
    dev_end();
    exit(1); /* nothing after this would mean anything */
}

void *dev_new(size_t bytes, const void *host)
{
    turbok_cu_ptr p = 0;
    size_t all = bytes + 2 * BAND;
    if (n_buffers == MAX_BUFFERS || dev->drv.mem_alloc(&p, all)) {
        printf("no device memory for %zu bytes\n", all);
        exit(1);
    }
    turbok_cu_fill(dev, p, 0xff, all);
    if (host)
        turbok_cu_to_device(dev, p + BAND, host, bytes);
    usable();
    buffers[n_buffers].base = (char *)(uintptr_t)p;
    buffers[n_buffers++].bytes = bytes;
    return (char *)(uintptr_t)p + BAND;
}

float dev_round(int32_t dtype, float f)
{
    return dtype == TURBO_F32   ? f
           : dtype == TURBO_F16 ? turbok_f16_to_f32(turbok_f32_to_f16(f))
                                : turbok_bf16_to_f32(turbok_f32_to_bf16(f));
}

double dev_ulp(int32_t dtype, double f)
{
    f = fabs(f);
    if (dtype == TURBO_F32)
        return f * 0x1p-24 + 1e-42;
    return dtype == TURBO_F16 ? f * 0x1p-11 + 0x1p-25 : f * 0x1p-8;
}

void *dev_numbers(int32_t dtype, size_t n, float scale, float *values)
{
    size_t size = turbok_dtype_size(dtype);
    char *host = malloc(n * size + 1);
    for (size_t i = 0; i < n; i++)
        values[i] = dev_float() * scale;
    turbok_prim_scalar.narrow(dtype, values, (int64_t)n, host);
    turbok_prim_scalar.widen(dtype, host, (int64_t)n, values);
    void *p = dev_new(n * size, host);
    free(host);
    return p;
}

void dev_get(const void *p, void *out, size_t bytes)
{
    turbok_cu_to_host(dev, out, turbok_cu_at(p), bytes);
    usable();
}

void dev_get_numbers(int32_t dtype, const void *p, size_t n, float *out)
{
    char *host = malloc(n * 4 + 1);
    dev_get(p, host, n * turbok_dtype_size(dtype));
    turbok_prim_scalar.widen(dtype, host, (int64_t)n, out);
    free(host);
}

void dev_drop(void)
{
    unsigned char band[BAND];
    for (int i = 0; i < n_buffers; i++) {
        for (int side = 0; side < 2; side++) {
            dev_get(buffers[i].base + (side ? BAND + buffers[i].bytes : 0), band, BAND);
            for (int k = 0; k < BAND; k++)
                if (band[k] != 0xff) {
                    dev_fail("guard band %s buffer %d of %zu bytes was written at %d",
                             side ? "behind" : "before", i, buffers[i].bytes, k);
                    break;
                }
        }
        checks++;
        dev->drv.mem_free(turbok_cu_at(buffers[i].base));
    }
    n_buffers = 0;
}

int32_t dev_act(int i)
{
    static const int32_t types[] = {TURBO_BF16, TURBO_F16, TURBO_F32};
    return types[i % 3];
}

const char *dev_type(int32_t dtype)
{
    return turbok_kv_type_name(dtype);
}

void dev_fail(const char *fmt, ...)
{
    va_list ap;
    if (++failures > 20)
        return;
    va_start(ap, fmt);
    printf("FAILED: ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
}

void dev_near(const char *what, size_t at, double got, double want, double tol)
{
    checks++;
    if (!(fabs(got - want) <= tol))
        dev_fail("%s [%zu]: %.9g, expected %.9g within %.3g", what, at, got, want, tol);
}
