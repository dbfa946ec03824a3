/* tests/kern/test_pool.c: the thread pool, devices and their limits, and the promise that no op takes
 * memory: the linker routes every allocation of the library through the counters below. */
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kit.h"
#include "nodes.h"

static _Atomic long allocations;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void *__real_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void *__wrap_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at);

void *__wrap_malloc(size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __real_aligned_alloc(align, n);
}

void *__wrap_mmap(void *p, size_t n, int prot, int flags, int fd, off_t at)
{
    atomic_fetch_add(&allocations, 1);
    return __real_mmap(p, n, prot, flags, fd, at);
}

/* ---- the pool ---- */

typedef struct marks {
    _Atomic int seen[1000];
    _Atomic int bad;
    int threads;
} marks;

static void mark(void *ctx, int64_t from, int64_t to, int thread)
{
    marks *m = ctx;
    if (thread < 0 || thread >= m->threads || from >= to)
        atomic_fetch_add(&m->bad, 1);
    for (int64_t i = from; i < to; i++)
        atomic_fetch_add(&m->seen[i], 1);
}

static void test_loops(void **state)
{
    static const int threads[] = {1, 2, 3, 7}, spins[] = {0, 50, 2000};
    static marks m;
    (void)state;
    for (size_t t = 0; t < 4; t++)
        for (size_t s = 0; s < 3; s++) {
            turbok_pool *p = NULL;
            turbo_err err;
            kit_rng r = {t + 1};
            assert_int_equal(turbok_pool_new(threads[t], s == 1, spins[s], &p, &err), 0);
            assert_int_equal(turbok_pool_threads(p), threads[t]);
            m.threads = threads[t];
            for (int round = 0; round < 300; round++) {
                int64_t n = kit_range(&r, 0, 1000), grain = kit_range(&r, 0, 50);
                for (int i = 0; i < 1000; i++)
                    atomic_store(&m.seen[i], 0);
                if (round % 50 == 49)
                    usleep(300); /* longer than a spin: workers are asleep */
                turbok_pool_for(p, n, grain, mark, &m);
                for (int i = 0; i < 1000; i++)
                    assert_int_equal(atomic_load(&m.seen[i]), i < n);
            }
            assert_int_equal(atomic_load(&m.bad), 0);
            turbok_pool_free(p);
        }
    turbok_pool_free(NULL);
}

/* Plain memory written in one loop by any thread is read in the next by another. */
static void add_left(void *ctx, int64_t from, int64_t to, int thread)
{
    int *v = ctx;
    (void)thread;
    for (int64_t i = from; i < to; i++)
        v[i + 1000] = v[i] + 1;
}

static void copy_back(void *ctx, int64_t from, int64_t to, int thread)
{
    int *v = ctx;
    (void)thread;
    for (int64_t i = from; i < to; i++)
        v[999 - i] = v[1000 + i];
}

static void test_order(void **state)
{
    turbok_pool *p = NULL;
    turbo_err err;
    static int v[2000];
    (void)state;
    assert_int_equal(turbok_pool_new(4, false, 20, &p, &err), 0);
    for (int round = 0; round < 200; round++) {
        turbok_pool_for(p, 1000, 37, add_left, v);
        turbok_pool_for(p, 1000, 41, copy_back, v);
    }
    for (int i = 0; i < 1000; i++)
        assert_int_equal(v[i], 200);
    turbok_pool_free(p);
}

/* ---- memory nodes ---- */

typedef struct meeting {
    _Atomic int by[100], done;
    int leave; /* thread 0 stays in its first item until so many others are done */
} meeting;

static void meet(void *ctx, int64_t from, int64_t to, int thread)
{
    meeting *m = ctx;
    assert_int_equal(to, from + 1);
    atomic_store(&m->by[from], thread);
    atomic_fetch_add(&m->done, 1);
    while (thread == 0 && atomic_load(&m->done) < m->leave)
        sched_yield();
}

/* Two nodes: each has its half of a loop, and whoever is done helps. Thread 0 is the caller, bound to the first. */
static void test_nodes(void **state)
{
    cpu_set_t allowed, first;
    turbok_nodes nodes = {.n = 2};
    turbok_pool *p = NULL;
    turbo_err err;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    CPU_ZERO(&first);
    for (size_t cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed)) {
            CPU_SET(cpu, &nodes.cpus[seen % 2]);
            if (!seen++)
                CPU_SET(cpu, &first);
        }
    if (!CPU_COUNT(&nodes.cpus[1]))
        nodes.cpus[1] = nodes.cpus[0]; /* one CPU: the caller counts as on the first */
    assert_int_equal(sched_setaffinity(0, sizeof first, &first), 0);
    assert_int_equal(turbok_pool_new_on(&nodes, 2, true, 50, &p, &err), 0);
    assert_int_equal(turbok_pool_nodes(p), 2);
    for (int round = 0; round < 20; round++) {
        meeting own = {.leave = 2}, helped = {.leave = 100};
        turbok_pool_for(p, 2, 1, meet, &own);
        assert_int_equal(own.by[0], 0);
        assert_int_equal(own.by[1], 1);
        turbok_pool_for(p, 100, 1, meet, &helped);
        assert_int_equal(helped.done, 100);
        assert_int_equal(helped.by[0], 0);
        for (int i = 1; i < 100; i++)
            assert_int_equal(helped.by[i], 1);
    }
    turbok_pool_free(p);
    assert_int_equal(sched_setaffinity(0, sizeof allowed, &allowed), 0);
}

static void put_list(const char *root, int node, const char *list)
{
    char path[256];
    snprintf(path, sizeof path, "%s/node%d", root, node);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/node%d/cpulist", root, node);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(list, f);
    assert_int_equal(fclose(f), 0);
}

static void test_node_lists(void **state)
{
    char root[] = "/tmp/turbo-nodes-XXXXXX", command[64];
    cpu_set_t allowed;
    turbok_nodes nodes;
    (void)state;
    CPU_ZERO(&allowed);
    for (size_t cpu = 2; cpu < 12; cpu++)
        CPU_SET(cpu, &allowed);
    assert_non_null(mkdtemp(root));
    turbok_nodes_read(root, &allowed, &nodes);
    assert_int_equal(nodes.n, 1); /* nothing there */
    put_list(root, 10, "10-11\n");
    put_list(root, 2, "0-3,8-9\n");
    put_list(root, 3, "\n"); /* memory without CPUs */
    put_list(root, 4, "4-7\n");
    put_list(root, 5, "12-15\n"); /* none that may be used */
    turbok_nodes_read(root, &allowed, &nodes);
    assert_int_equal(nodes.n, 3);
    assert_int_equal(CPU_COUNT(&nodes.cpus[0]), 4);
    assert_true(CPU_ISSET(2, &nodes.cpus[0]) && CPU_ISSET(9, &nodes.cpus[0]));
    assert_int_equal(CPU_COUNT(&nodes.cpus[1]), 4);
    assert_int_equal(CPU_COUNT(&nodes.cpus[2]), 2);
    CPU_SET(20, &allowed); /* in no list */
    turbok_nodes_read(root, &allowed, &nodes);
    assert_int_equal(nodes.n, 1);
    assert_true(CPU_EQUAL(&nodes.cpus[0], &allowed));
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

static void note(void *ctx, int i, int n)
{
    _Atomic int *seen = ctx;
    atomic_fetch_add(&seen[i], n);
}

static void test_devices(void **state)
{
    turbok_device *d = NULL;
    turbo_err err = {{0}};
    cpu_set_t before, after;
    (void)state;
    turbok_device_opts o = {.threads = -1};
    assert_int_equal(turbok_device_open(&o, &d, &err), TURBO_EINVAL);
    o.threads = 257;
    assert_int_equal(turbok_device_open(&o, &d, &err), TURBO_EINVAL);
    assert_non_null(strstr(err.text, "257"));
    o = (turbok_device_opts){.isa = (turbok_isa)9, .threads = 1};
    assert_int_equal(turbok_device_open(&o, &d, &err), TURBO_EUNSUPPORTED);
    o.isa = kit_isas[1] == TURBOK_ISA_NEON ? TURBOK_ISA_AVX2
                                           : TURBOK_ISA_NEON; /* another kind of CPU */
    assert_int_equal(turbok_device_open(&o, &d, &err), TURBO_EUNSUPPORTED);
    assert_null(d);
    turbok_device_close(NULL);
    o = (turbok_device_opts){.threads = 0, .pin = true, .spin_us = -1};
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(turbok_device_open(&o, &d, &err), 0);
    assert_int_equal(turbok_device_threads(d), turbok_cpu_count());
    assert_non_null(strstr(turbok_device_name(d), "cpu "));
    assert_true(turbok_device_isa(d) != TURBOK_ISA_AUTO);
    _Atomic int seen[256] = {0};
    turbok_parallel(d, note, seen);
    for (int i = 0; i < turbok_device_threads(d); i++)
        assert_int_equal(atomic_load(&seen[i]), turbok_device_threads(d));
    turbok_device_close(d);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&before, &after)); /* the caller is never pinned */
}

static void test_refused_weights(void **state)
{
    turbok_device_opts o = {.threads = 1};
    turbok_device *d = NULL;
    turbo_linear *w = NULL;
    turbo_vector *v = NULL;
    turbo_err err;
    float f[4] = {0};
    (void)state;
    assert_int_equal(turbok_device_open(&o, &d, &err), 0);
    static const struct {
        int32_t dtype, bias;
        int64_t out, in;
    } bad[] = {{TURBO_I8, 0, 2, 2}, {TURBO_F32, 0, 0, 2}, {TURBO_F32, 0, 2, -1},
               {TURBO_F32, 0, INT64_MAX, 2}, {TURBO_BF16, TURBO_I32, 2, 2}, {-1, 0, 2, 2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err.text[0] = 0;
        assert_int_equal(turbok_linear_new(d, bad[i].dtype, f, bad[i].out, bad[i].in,
                                           bad[i].bias ? f : NULL, bad[i].bias, 0, &w, &err),
                         TURBO_EINVAL);
        assert_null(w);
        assert_true(err.text[0] != 0);
    }
    assert_int_equal(turbok_linear_new(d, TURBO_F32, f, INT32_MAX, INT32_MAX, NULL, 0, 0, &w, &err),
                     TURBO_ENOMEM); /* 2^64 bytes less a few: fits a size_t and no machine */
    assert_int_equal(turbok_vector_new(d, TURBO_F32, f, 0, &v, &err), TURBO_EINVAL);
    assert_int_equal(turbok_vector_new(d, TURBO_U8, f, 4, &v, &err), TURBO_EINVAL);
    assert_int_equal(turbok_device_alloc_bytes(d), 0);
    turbok_device_close(d);
}

/* ---- no allocation ---- */

#define E 96
#define LONG 200

typedef struct tiny {
    turbok_device *d;
    turbo_linear *wqkv, *wo, *gate, *up, *down, *head, *router;
    turbo_experts *experts; /* four times gate, up and down */
    turbo_vector *norm, *head_norm;
    turbo_rope *rope;
} tiny;

static turbo_linear *weights(turbok_device *d, int32_t out, int32_t in)
{
    turbo_linear *w = NULL;
    turbo_err err;
    kit_rng r = {6};
    size_t n = (size_t)out * (size_t)in;
    float *f = malloc(n * sizeof *f);
    assert_non_null(f);
    kit_floats(&r, f, n);
    void *stored = kit_store(TURBO_BF16, f, n);
    assert_int_equal(turbok_linear_new(d, TURBO_BF16, stored, out, in, NULL, 0, TURBO_LINEAR_TABLE,
                                       &w, &err), 0);
    free(f);
    free(stored);
    return w;
}

static const turbo_moe four = {
    .size = sizeof four, .n_experts = 4, .n_chosen = 2, .inner = 2 * E, .width = E};

/* Two sequences, each one token longer every step: decode as the engine runs it. */
static void decode(const tiny *m, turbok_kv_pool *pool, turbok_kv_table *const *tables, int steps,
                   int from)
{
    static float h[2 * E], x[2 * E], qkv[2 * 3 * E], q[2 * E], s[4 * 2 * E], logits[2 * 300];
    static _Alignas(64) char scratch[32768];
    const turbo_ops *ops = turbok_device_ops(m->d);
    turbo_exec *ex = turbok_device_exec(m->d);
    struct turbo_kv kv = {pool, tables};
    const turbo_attn a = {.size = sizeof a, .n_heads = 4, .n_kv = 4, .head_dim = E / 4,
                          .scale = 0.2f, .rope = m->rope};
    assert_true(turbo_moe_scratch(&four, 2, 4) <= sizeof scratch);
    for (int i = 0; i < steps; i++) {
        int32_t pos = from + i % LONG, tokens[2] = {i % 300, 7}, positions[2] = {pos, pos};
        int32_t cu[3] = {0, 1, 2}, lens[2] = {pos + 1, pos + 1}, index[2] = {1, 0};
        const turbo_batch b = {.size = sizeof b, .n_tokens = 2, .n_seqs = 2, .n_rows = 2,
                               .tokens = tokens, .positions = positions, .cu_seqlens = cu,
                               .kv_lens = lens, .rope_lens = lens, .row_index = index, .kv = &kv};
        ops->embed(ex, m->head, &b, h);
        ops->rmsnorm(ex, h, NULL, m->norm, 1e-5f, 2, E, x);
        ops->linear(ex, m->wqkv, x, 2, qkv);
        ops->head_norm(ex, &a, m->head_norm, m->head_norm, 1e-5f, 2, qkv);
        ops->qkv_rope_store(ex, &a, &b, qkv, q);
        ops->attention(ex, &a, &b, q, x);
        ops->linear(ex, m->wo, x, 2, q);
        ops->rmsnorm(ex, h, q, m->norm, 1e-5f, 2, E, x);
        ops->gated_mlp(ex, m->gate, m->up, m->down, TURBO_ACT_SILU, x, 2, s, q);
        ops->moe(ex, m->router, m->experts, x, 2, scratch, h);
        ops->add_gated(ex, q, h, m->norm, x, 2, E);
        ops->gather(ex, q, index, 2, E, x);
        ops->logits(ex, m->head, x, 2, logits);
    }
}

static void test_no_allocation(void **state)
{
    (void)state;
    for (size_t i = 0; i < KIT_ISAS; i++) {
        turbok_device_opts o = {.isa = kit_isas[i], .threads = 2, .spin_us = 20};
        const turbo_rope_spec spec = {.size = sizeof spec, .scaling = TURBO_ROPE_DYNAMIC, .dim = E / 4,
                                      .max_position = 64, .factor = 2, .base = 1e4};
        const turbok_kv_dims dims = {1, 4, E / 4, 16, i == 1 ? TURBOK_KV_INT8 : TURBO_F16};
        tiny m = {0};
        turbok_kv_pool *pool = NULL;
        turbok_kv_table t[2], *tables[2] = {&t[0], &t[1]};
        turbo_err err;
        float ones[E];
        if (turbok_device_open(&o, &m.d, &err))
            continue;
        for (int k = 0; k < E; k++)
            ones[k] = 1;
        m.wqkv = weights(m.d, 3 * E, E);
        m.wo = weights(m.d, E, E);
        m.gate = weights(m.d, 2 * E, E);
        m.up = weights(m.d, 2 * E, E);
        m.down = weights(m.d, E, 2 * E);
        m.head = weights(m.d, 300, E);
        m.router = weights(m.d, 4, E);
        const turbo_linear *each[12];
        for (int k = 0; k < 12; k++)
            each[k] = k % 3 == 0 ? m.gate : k % 3 == 1 ? m.up : m.down;
        assert_int_equal(turbok_experts_new(m.d, &four, each, &m.experts, &err), 0);
        assert_int_equal(turbok_vector_new(m.d, TURBO_F32, ones, E / 4, &m.head_norm, &err), 0);
        assert_int_equal(turbok_vector_new(m.d, TURBO_F32, ones, E, &m.norm, &err), 0);
        assert_int_equal(turbok_rope_new(m.d, &spec, &m.rope, &err), 0);
        assert_int_equal(turbok_kv_pool_new(m.d, &dims, 64, &pool, &err), 0);
        for (int k = 0; k < 2; k++)
            assert_int_equal(turbok_kv_table_init(&t[k], pool, LONG, &err), 0);
        long before = atomic_load(&allocations);
        assert_true(before > 0); /* the counters do count */
        for (int k = 0; k < 2; k++)
            assert_true(turbok_kv_table_reserve(&t[k], pool, LONG));
        decode(&m, pool, tables, 1000, 0);
        turbok_kv_table_truncate(&t[0], pool, 10);
        assert_int_equal(atomic_load(&allocations) - before, 0);
        for (int k = 0; k < 2; k++)
            turbok_kv_table_free(&t[k], pool);
        turbo_linear *all[] = {m.wqkv, m.wo, m.gate, m.up, m.down, m.head, m.router};
        turbok_experts_free(m.d, m.experts);
        for (int k = 0; k < 7; k++)
            turbok_linear_free(m.d, all[k]);
        turbok_vector_free(m.d, m.norm);
        turbok_vector_free(m.d, m.head_norm);
        turbok_rope_free(m.d, m.rope);
        turbok_kv_pool_free(pool);
        assert_int_equal(turbok_device_alloc_bytes(m.d), 0);
        turbok_device_close(m.d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loops),         cmocka_unit_test(test_order),
        cmocka_unit_test(test_nodes),         cmocka_unit_test(test_node_lists),
        cmocka_unit_test(test_devices),       cmocka_unit_test(test_refused_weights),
        cmocka_unit_test(test_no_allocation),
    };
    return cmocka_run_group_tests_name("thread pool, devices, memory", tests, NULL, NULL);
}
