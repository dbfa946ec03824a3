/* kernels/device.c: a CPU device: instruction set, thread pool, memory and the op table. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "internal.h"

turbo_status turbok_fail(turbo_err *err, turbo_status s, const char *fmt, ...)
{
    va_list ap;
    if (err) {
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return s;
}

#define HUGE_FROM (4u << 20)
#define LOADING_SPIN_US 2000
#define SCRATCH_LEAST TURBO_FULL_HEAD /* head size that the scratch of a new device is made for */

size_t turbok_alloc_size(size_t bytes)
{
    return bytes > SIZE_MAX - 63 ? 0 : (bytes + 63) / 64 * 64;
}

void *turbok_alloc(turbok_device *d, turbok_mem kind, size_t bytes)
{
    size_t rounded = turbok_alloc_size(bytes);
    if (rounded < bytes)
        return NULL;
    void *p;
    if (d->backend) {
        p = d->backend->take(d, rounded ? rounded : 64);
        if (!p)
            return NULL;
    } else if (rounded >= HUGE_FROM) {
        p = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return NULL;
        madvise(p, rounded, MADV_HUGEPAGE); /* advice: fewer TLB misses when it is taken */
    } else {
        p = aligned_alloc(64, rounded ? rounded : 64);
        if (!p)
            return NULL;
    }
    d->mem[kind] += rounded;
    return p;
}

void turbok_release(turbok_device *d, turbok_mem kind, void *p, size_t bytes)
{
    size_t rounded = turbok_alloc_size(bytes);
    if (!p)
        return;
    d->mem[kind] -= rounded;
    if (d->backend)
        d->backend->give(d, p, rounded ? rounded : 64);
    else if (rounded >= HUGE_FROM)
        munmap(p, rounded);
    else
        free(p);
}

#if defined(__x86_64__)
/* __builtin_cpu_supports knows no name for it before clang 16. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static bool has_isa(turbok_isa isa)
{
#if defined(__x86_64__)
    if (isa == TURBOK_ISA_AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (isa == TURBOK_ISA_AVX512)
        return has_isa(TURBOK_ISA_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
    if (isa == TURBOK_ISA_NEON)
        return true;
#endif
    return isa == TURBOK_ISA_SCALAR;
}

static const turbok_prim *prim_of(turbok_isa isa)
{
#if defined(__x86_64__)
    if (isa == TURBOK_ISA_AVX512)
        return __builtin_cpu_supports("avx512vnni") ? &turbok_prim_avx512_vnni
                                                    : &turbok_prim_avx512;
    if (isa == TURBOK_ISA_AVX2)
        return &turbok_prim_avx2;
#elif defined(__aarch64__)
    if (isa == TURBOK_ISA_NEON)
        return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? &turbok_prim_neon_dot : &turbok_prim_neon;
#endif
    return isa == TURBOK_ISA_SCALAR ? &turbok_prim_scalar : NULL;
}

/* What ops on the CPU work with. */
static turbo_status open_cpu(turbok_device *d, turbo_err *err)
{
    int threads = turbok_pool_threads(d->exec.pool);
    int nodes = turbok_pool_nodes(d->exec.pool);
    int n = snprintf(d->name, sizeof d->name, "cpu %s, %d thread%s", d->exec.prim->name, threads,
                     threads == 1 ? "" : "s");
    if (nodes > 1)
        snprintf(d->name + n, sizeof d->name - (size_t)n, " on %d memory nodes", nodes);
    d->exec.scratch = calloc((size_t)threads, sizeof *d->exec.scratch);
    if (!d->exec.scratch)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a device");
    turbo_status st = turbok_scratch_fit(d, SCRATCH_LEAST, err);
    if (!st && !(d->exec.acts = turbok_alloc(d, TURBOK_MEM_SCRATCH, TURBOK_ACT_BYTES)))
        st = turbok_fail(err, TURBO_ENOMEM, "no memory for the activations of a device");
    return st;
}

turbo_status turbok_device_open(const turbok_device_opts *o, turbok_device **out, turbo_err *err)
{
    turbok_isa isa = o->isa;
    if (isa == TURBOK_ISA_AUTO)
        isa = has_isa(TURBOK_ISA_AVX512) ? TURBOK_ISA_AVX512
              : has_isa(TURBOK_ISA_AVX2) ? TURBOK_ISA_AVX2
              : has_isa(TURBOK_ISA_NEON) ? TURBOK_ISA_NEON
                                         : TURBOK_ISA_SCALAR;
    if (!has_isa(isa))
        return turbok_fail(err, TURBO_EUNSUPPORTED,
                           "this CPU does not have the instruction set that isa asks for; use auto");
    if (o->threads < 0 || o->threads > 256)
        return turbok_fail(err, TURBO_EINVAL, "threads is %d; 0 to 256 are possible", o->threads);
    turbok_device *d = calloc(1, sizeof *d);
    if (!d)
        return turbok_fail(err, TURBO_ENOMEM, "no memory for a device");
    d->isa = isa;
    d->exact = o->exact;
    d->exec.prim = prim_of(isa);
    /* Beside a card the threads only load weights: between two pieces they wait for a copy, never for long. */
    int spin_us = o->on == TURBOK_ON_CUDA && o->spin_us < 0 ? LOADING_SPIN_US : o->spin_us;
    turbo_status st = turbok_pool_new(o->threads, o->pin, spin_us, &d->exec.pool, err);
    if (!st && o->on == TURBOK_ON_CUDA) {
        st = turbok_backend_load(o->path, d, err);
        if (!st)
            st = d->backend->open(d, o, err);
    } else if (!st) {
        st = open_cpu(d, err);
    }
    if (st) {
        turbok_device_close(d);
        return st;
    }
    *out = d;
    return TURBO_OK;
}

static size_t scratch_floats(int32_t dim)
{
    size_t D = ((size_t)dim + 63) / 64 * 64;
    return (2 * TURBOK_CHUNK + 2 * TURBOK_QROWS + 1) * D + (TURBOK_CHUNK + 4) * TURBOK_QROWS +
           8 * TURBOK_CHUNK;
}

uint64_t turbok_scratch_bytes(int threads, int32_t head_dim)
{
    if (threads < 1 || head_dim < 1 || head_dim > 4096)
        return 0;
    int32_t dim = head_dim < SCRATCH_LEAST ? SCRATCH_LEAST : head_dim;
    return TURBOK_ACT_BYTES +
           (uint64_t)threads * turbok_alloc_size(scratch_floats(dim) * sizeof(float));
}

static void scratch_free(turbok_device *d)
{
    if (d->backend)
        return;
    int n = d->exec.pool ? turbok_pool_threads(d->exec.pool) : 0;
    for (int i = 0; i < n && d->exec.scratch; i++) {
        turbok_release(d, TURBOK_MEM_SCRATCH, d->exec.scratch[i].k,
                       scratch_floats(d->scratch_dim) * sizeof(float));
        d->exec.scratch[i].k = NULL;
    }
    d->scratch_dim = 0;
}

turbo_status turbok_scratch_fit(turbok_device *d, int32_t dim, turbo_err *err)
{
    if (dim <= d->scratch_dim || d->backend)
        return TURBO_OK;
    scratch_free(d);
    d->scratch_dim = dim;
    size_t D = ((size_t)dim + 63) / 64 * 64;
    for (int i = 0; i < turbok_pool_threads(d->exec.pool); i++) {
        turbok_scratch *s = &d->exec.scratch[i];
        float *p = turbok_alloc(d, TURBOK_MEM_SCRATCH, scratch_floats(dim) * sizeof(float));
        *s = (turbok_scratch){.k = p};
        if (!p) {
            scratch_free(d);
            return turbok_fail(err, TURBO_ENOMEM, "no memory for attention scratch");
        }
        s->v = p + TURBOK_CHUNK * D;
        s->q = s->v + TURBOK_CHUNK * D;
        s->acc = s->q + TURBOK_QROWS * D;
        s->s = s->acc + TURBOK_QROWS * D;
        s->m = s->s + TURBOK_QROWS * TURBOK_CHUNK;
        s->l = s->m + TURBOK_QROWS;
        s->z = s->l + TURBOK_QROWS;
        s->qsum = s->z + TURBOK_QROWS;
        s->par = s->qsum + TURBOK_QROWS;
        s->inv = s->par + 8 * TURBOK_CHUNK;
    }
    return TURBO_OK;
}

void turbok_device_close(turbok_device *d)
{
    if (!d)
        return;
    scratch_free(d);
    turbok_release(d, TURBOK_MEM_SCRATCH, d->exec.acts, TURBOK_ACT_BYTES);
    if (d->backend)
        d->backend->close(d);
    if (d->library)
        dlclose(d->library);
    turbok_pool_free(d->exec.pool);
    free(d->exec.scratch);
    free(d);
}

const char *turbok_device_name(const turbok_device *d)
{
    return d->name;
}

turbok_isa turbok_device_isa(const turbok_device *d)
{
    return d->isa;
}

int turbok_device_threads(const turbok_device *d)
{
    return turbok_pool_threads(d->exec.pool);
}

const turbo_ops *turbok_device_ops(const turbok_device *d)
{
    return d->backend ? d->backend->ops(d) : turbok_cpu_ops();
}

const turbo_ops *turbok_cpu_ops(void)
{
    static const turbo_ops ops = {
        .size = sizeof ops,
        .act_dtype = TURBO_F32,
#define OP(name, ret, args) .name = turbok_op_##name,
#include "ops.def"
#undef OP
    };
    return &ops;
}

int turbok_threads(int threads)
{
    return threads ? threads : turbok_cpu_count();
}

turbo_exec *turbok_device_exec(turbok_device *d)
{
    return &d->exec;
}

uint64_t turbok_device_alloc_bytes(const turbok_device *d)
{
    uint64_t sum = 0;
    for (int k = 0; k < TURBOK_MEM_KINDS; k++)
        sum += k == TURBOK_MEM_SCRATCH ? 0 : d->mem[k];
    return sum;
}

uint64_t turbok_device_mem(const turbok_device *d, turbok_mem kind)
{
    return d->mem[kind];
}

typedef struct split {
    turbok_task fn;
    void *ctx;
    int n;
} split;

static void run_split(void *ctx, int64_t from, int64_t to, int thread)
{
    split *s = ctx;
    (void)thread;
    for (int64_t i = from; i < to; i++)
        s->fn(s->ctx, (int)i, s->n);
}

void turbok_parallel(turbok_device *d, turbok_task fn, void *ctx)
{
    split s = {fn, ctx, turbok_pool_threads(d->exec.pool)};
    turbok_pool_for(d->exec.pool, s.n, 1, run_split, &s);
}
