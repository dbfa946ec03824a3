/* tests/cuda/q_kit.h: what the tests of quantised matrices, experts and sampling share: device buffers
 * between guard bands, poisoned, and random numbers. With TURBO_CUDA_DRIVER set the device is the fake
 * one, on which kernels run on the host: shapes are small there. No test library: the programs also run on
 * machines that have nothing but a driver. The first failure ends a program. */
#ifndef TURBO_TEST_Q_KIT_H
#define TURBO_TEST_Q_KIT_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "cuda/launch.h"

enum { GUARD = 4096, BUFFERS = 160 };

typedef struct buffer {
    turbok_cu_ptr base;
    size_t bytes;
} buffer;

static turbok_cu *cu;
static buffer buffers[BUFFERS];
static int n_buffers;
static uint64_t seed = 88172645463325252ull;

#define assert_true(x)                                                                             \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #x);                               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define assert_non_null(x) assert_true((x) != NULL)
#define assert_int_equal(a, b) assert_true((long long)(a) == (long long)(b))
#define assert_memory_equal(a, b, n) assert_true(!memcmp(a, b, n))
#define RUN(test) (test(), printf("%s: ok\n", #test), (void)fflush(stdout))

static inline uint32_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32);
}
static inline int between(int lo, int hi)
{
    return lo + (int)(rnd() % (uint32_t)(hi - lo + 1));
}
static inline float uniform(float lo, float hi)
{
    return lo + (hi - lo) * (float)(rnd() >> 8) * 0x1p-24f;
}
/* Is there time for more than small shapes? */
static inline bool on_a_card(void)
{
    const char *card = getenv("TURBO_CHECK_GPU");
    return card && strcmp(card, "small");
}
static inline void must(turbo_status st, const turbo_err *err)
{
    if (st)
        printf("status %d: %s\n", (int)st, err->text);
    assert_int_equal(st, TURBO_OK);
}

/* Device memory [bytes] of 0xff, between bands of 0xa5. */
static inline void *device_new(size_t bytes)
{
    assert_true(n_buffers < BUFFERS);
    buffer *b = &buffers[n_buffers++];
    b->bytes = (bytes + 255) / 256 * 256;
    assert_int_equal(cu->drv.mem_alloc(&b->base, b->bytes + 2 * GUARD), 0);
    turbok_cu_fill(cu, b->base, 0xa5, b->bytes + 2 * GUARD);
    turbok_cu_fill(cu, b->base + GUARD, 0xff, bytes);
    return (void *)(uintptr_t)(b->base + GUARD);
}
static inline void *device_put(const void *from, size_t bytes)
{
    void *p = device_new(bytes);
    turbok_cu_to_device(cu, turbok_cu_at(p), from, bytes);
    turbo_err err;
    must(turbok_cu_wait(cu, &err), &err);
    return p;
}
static inline void device_get(void *to, const void *p, size_t bytes)
{
    turbo_err err = {{0}};
    turbok_cu_to_host(cu, to, turbok_cu_at(p), bytes);
    must(turbok_cu_wait(cu, &err), &err);
}
/* Looks at the bands of all buffers and frees them. */
static inline void device_end(void)
{
    turbo_err err = {{0}};
    must(turbok_cu_wait(cu, &err), &err);
    for (int i = 0; i < n_buffers; i++) {
        static unsigned char band[GUARD];
        for (int side = 0; side < 2; side++) {
            turbok_cu_to_host(cu, band, buffers[i].base + (side ? GUARD + buffers[i].bytes : 0),
                              GUARD);
            must(turbok_cu_wait(cu, &err), &err);
            for (int k = 0; k < GUARD; k++)
                assert_int_equal(band[k], 0xa5);
        }
        assert_int_equal(cu->drv.mem_free(buffers[i].base), 0);
    }
    n_buffers = 0;
}

static inline float act_get(int32_t act, const void *p, int64_t i)
{
    if (act == TURBO_F32)
        return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return act == TURBO_F16 ? turbok_f16_to_f32(h) : turbok_bf16_to_f32(h);
}
static inline void act_put(int32_t act, void *p, int64_t i, float v)
{
    if (act == TURBO_F32)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = act == TURBO_F16 ? turbok_f32_to_f16(v) : turbok_f32_to_bf16(v);
}
static inline float act_round(int32_t act, float v)
{
    uint32_t room;
    act_put(act, &room, 0, v);
    return act_get(act, &room, 0);
}
static inline size_t act_size(int32_t act)
{
    return act == TURBO_F32 ? 4 : 2;
}
/* Half a unit in the last place of a number of that size. */
static inline double act_half(int32_t act, double v)
{
    double least = act == TURBO_F16 ? 0x1p-25 : 0x1p-150; /* of subnormal numbers */
    double e = fabs(v) * (act == TURBO_F32 ? 0x1p-24 : act == TURBO_F16 ? 0x1p-11 : 0x1p-8);
    return e > least ? e : least;
}

/* Opens the device for main; exits with 77 where there is no card. */
static inline void device_open(void)
{
    turbo_err err = {{0}};
    char path[4096];
    const char *top = getenv("top_builddir");
    snprintf(path, sizeof path, "%s/kernels/cuda/hostrun/.libs/fakecuda.so", top ? top : ".");
    if (!getenv("TURBO_CHECK_GPU"))
        setenv("TURBO_CUDA_DRIVER", path, 0);
    if (turbok_cu_open(0, &cu, &err)) {
        /* No card is a reason to skip; the driver of this build always opens. */
        printf("%s: %s\n", on_a_card() ? "SKIP" : "FAIL", err.text);
        exit(on_a_card() ? 77 : 1);
    }
}

#endif
