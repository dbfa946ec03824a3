/* tests/kern/kit.c: see kit.h. */
#include "kit.h"

#include <math.h>

uint32_t kit_next(kit_rng *r)
{
    r->s ^= r->s >> 12;
    r->s ^= r->s << 25;
    r->s ^= r->s >> 27;
    return (uint32_t)((r->s * 0x2545f4914f6cdd1dull) >> 32);
}

int32_t kit_range(kit_rng *r, int32_t lo, int32_t hi)
{
    return lo + (int32_t)(kit_next(r) % (uint32_t)(hi - lo + 1));
}

float kit_float(kit_rng *r)
{
    float f = (float)(int32_t)kit_next(r) * 0x1p-31f;
    uint32_t k = kit_next(r) & 15;
    return k == 0 ? 0.0f : k == 1 ? f * 0x1p-12f : f;
}

void kit_floats(kit_rng *r, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = kit_float(r);
}

#define BAND 256 /* wider than the widest vector loop of the library stores at once */
#define MARK 0xa5

void *kit_new(kit_mem *m, size_t bytes)
{
    assert_in_range(m->n, 0, 47);
    if (!m->rng.s)
        m->rng.s = 88172645463325252ull;
    size_t lead = BAND + 4 * (size_t)kit_range(&m->rng, 0, 15);
    char *base = malloc(lead + bytes + BAND);
    assert_non_null(base);
    memset(base, MARK, lead + bytes + BAND);
    memset(base + lead, 0xff, bytes);
    m->block[m->n].base = base;
    m->block[m->n].lead = lead;
    m->block[m->n].bytes = bytes;
    m->block[m->n].copy = NULL;
    m->n++;
    return base + lead;
}

float *kit_new_floats(kit_mem *m, size_t n)
{
    return kit_new(m, n * sizeof(float));
}

void kit_freeze(kit_mem *m, const void *p)
{
    for (int i = 0; i < m->n; i++)
        if (m->block[i].base + m->block[i].lead == (const char *)p) {
            m->block[i].copy = malloc(m->block[i].bytes + 1);
            assert_non_null(m->block[i].copy);
            memcpy(m->block[i].copy, p, m->block[i].bytes);
            return;
        }
    fail_msg("kit_freeze: not a block of this kit");
}

void kit_verify(const kit_mem *m)
{
    for (int i = 0; i < m->n; i++) {
        const unsigned char *p = (const unsigned char *)m->block[i].base;
        size_t lead = m->block[i].lead, end = lead + m->block[i].bytes;
        for (size_t k = 0; k < lead; k++)
            if (p[k] != MARK)
                fail_msg("block %d: written %zu bytes before its begin", i, lead - k);
        for (size_t k = end; k < end + BAND; k++)
            if (p[k] != MARK)
                fail_msg("block %d: written %zu bytes behind its end", i, k - end);
        if (m->block[i].copy && memcmp(m->block[i].copy, p + lead, m->block[i].bytes))
            fail_msg("block %d: an input was changed", i);
    }
}

void kit_drop(kit_mem *m)
{
    for (int i = 0; i < m->n; i++) {
        free(m->block[i].base);
        free(m->block[i].copy);
    }
    m->n = 0;
}

#if defined(__aarch64__)
const turbok_isa kit_isas[KIT_ISAS] = {TURBOK_ISA_SCALAR, TURBOK_ISA_NEON};
#else
const turbok_isa kit_isas[KIT_ISAS] = {TURBOK_ISA_SCALAR, TURBOK_ISA_AVX2, TURBOK_ISA_AVX512};
#endif

static void open_one(kit_devices *k, turbok_isa isa, int threads)
{
    turbok_device_opts o = {.isa = isa, .threads = threads, .spin_us = 20};
    turbo_err err = {{0}};
    turbok_device *d = NULL;
    turbo_status st = turbok_device_open(&o, &d, &err);
    if (st == TURBO_EUNSUPPORTED && isa != TURBOK_ISA_SCALAR) {
        if (threads == 1)
            print_message("NOTE: this CPU lacks instruction set %d: not tested\n", isa);
        return;
    }
    if (st)
        fail_msg("turbok_device_open: %s", err.text);
    assert_in_range(k->n, 0, KIT_MAX_DEVICES - 1);
    k->d[k->n++] = d;
}

void kit_open(kit_devices *k, const int *threads, int n_threads)
{
    k->n = 0;
    open_one(k, TURBOK_ISA_SCALAR, 1);
    for (size_t i = 0; i < KIT_ISAS; i++)
        for (int t = 0; t < n_threads; t++)
            if (kit_isas[i] != TURBOK_ISA_SCALAR || threads[t] != 1)
                open_one(k, kit_isas[i], threads[t]);
}

void kit_close(kit_devices *k)
{
    for (int i = 0; i < k->n; i++) {
        assert_int_equal(turbok_device_alloc_bytes(k->d[i]), 0);
        turbok_device_close(k->d[i]);
    }
    k->n = 0;
}

/* bf16 by the definition: the nearest multiple of 2^(e-7), ties to the even one. */
static float round_bf16(float f)
{
    if (isnan(f) || isinf(f) || f == 0.0f)
        return f;
    int e;
    (void)frexp((double)f, &e);
    e = e - 8 < -133 ? -133 : e - 8; /* subnormals share the spacing 2^-133 */
    double q = nearbyint(ldexp((double)f, -e)); /* round to nearest even is the default mode */
    return (float)ldexp(q, e);
}

float kit_round(int32_t dtype, float f)
{
    if (dtype == TURBO_F16)
        return (float)(_Float16)f;
    return dtype == TURBO_BF16 ? round_bf16(f) : f;
}

void *kit_store(int32_t dtype, float *values, size_t n)
{
    char *p = malloc(n * 4 + 1);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) {
        values[i] = kit_round(dtype, values[i]);
        if (dtype == TURBO_F16) {
            _Float16 h = (_Float16)values[i];
            memcpy(p + 2 * i, &h, 2);
        } else if (dtype == TURBO_BF16) {
            uint32_t u;
            memcpy(&u, &values[i], 4);
            uint16_t h = (uint16_t)(u >> 16);
            memcpy(p + 2 * i, &h, 2);
        } else {
            memcpy(p + 4 * i, &values[i], 4);
        }
    }
    return p;
}

double kit_half_ulp(int32_t dtype, double f)
{
    if (dtype == TURBO_F32)
        return 0;
    double rel = dtype == TURBO_F16 ? 0x1p-11 : 0x1p-8, tiny = dtype == TURBO_F16 ? 0x1p-25 : 0;
    return fabs(f) * rel > tiny ? fabs(f) * rel : tiny;
}

void kit_near(const char *what, size_t at, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol)) /* a NaN fails too */
        fail_msg("%s[%zu]: %.9g, expected %.9g, off by %.3g, allowed %.3g", what, at, got, want,
                 got - want, tol);
}

void kit_equal(const char *what, const void *a, const void *b, size_t bytes)
{
    const unsigned char *p = a, *q = b;
    for (size_t i = 0; i < bytes; i++)
        if (p[i] != q[i])
            fail_msg("%s: byte %zu of %zu differs (%02x and %02x)", what, i, bytes, p[i], q[i]);
}
