/* kernels/cuda/hostrun/hostrun.cpp: the scheduler of hostrun.h. Each thread of a block is a fiber with a
 * stack of its own; it runs until it needs others (barrier, warp operation) and goes on when all of them
 * have come. Whoever comes last carries the warp operation out for all lanes. When nobody can run and
 * not all are done, somebody is missing, and the launch ends with a text that says who.
 * Must not know any kernel. */
#include "hostrun.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mutex>
#include <vector>

#include "device.h"
#include "fiber.h"

namespace
{
enum { MAX_THREADS = 1024, MAX_CLUSTER = 8, BARRIERS = 16 };
enum state { READY, AT_WARP, AT_BARRIER, AT_BULK, AT_CLUSTER, DONE };

struct copy {
    void *to;
    const void *from;
    size_t n, bytes; /* n are read, the rest of bytes becomes zero */
};

struct bulk { /* a copy on its way */
    void *to;
    const void *from;
    int bytes;
    hostrun::bulk_barrier *b;
    const hostrun_map *map; /* NULL: bytes as they are; else the tile that begins at */
    int column, row;
};

struct block_run;

struct fiber : hostrun::thread, hostrun::stack {
    block_run *home = nullptr;
    state st = DONE;
    unsigned mask = 0; /* of the warp operation it waits in */
    hostrun::warp_fn fn = nullptr;
    const char *what = "";
    void *arg = nullptr;
    int barrier = 0, line = 0;
    hostrun::bulk_barrier *bulk = nullptr; /* that it waits for */
    size_t met = 0; /* barriers of the cluster it came to */
    std::vector<std::vector<copy>> groups; /* of asynchronous copies, the last one open */
};

struct barrier {
    int arrived = 0, expected = 0, line = 0;
};

/* Who of a warp has come to an operation, as long as it is one for all of them. */
struct gathering {
    hostrun::warp_fn fn = nullptr;
    unsigned mask = 0, here = 0, gone = 0; /* gone: lanes that have left or do not exist */
    bool mixed = false; /* once lanes were in several: everyone looks at everyone */
};

struct shared_block {
    const void *key;
    char *p;
    size_t bytes;
};

/* Blocks of a cluster run beside each other, others one after another. */
struct block_run {
    hostrun::dims idx = {0, 0, 0};
    int rank = 0, done = 0;
    fiber *f[MAX_THREADS] = {};
    int seq[MAX_THREADS]; /* in which order they run */
    barrier bar[BARRIERS];
    gathering warps[MAX_THREADS / 32];
    std::vector<bulk> bulks;
    std::vector<shared_block> shared; /* [0] is the dynamic one */

    ~block_run()
    {
        for (fiber *t : f)
            delete t;
    }
};

struct machine {
    const hostrun_kernel *kernel = nullptr;
    const void *args = nullptr;
    int n = 0, crew = 1; /* threads of a block, blocks of a cluster */
    block_run blocks[MAX_CLUSTER];
    block_run *at = nullptr; /* that of `now` */
    fiber *now = nullptr;
    size_t shared_bytes = 0, launches = 0;
    size_t most_shared = 227 << 10; /* dynamic and static, of a block */
    size_t met = 0; /* barriers of this cluster that are over */
    int arrived = 0; /* threads at the next one */
    int order = 0;
    bool failed = false;
    char text[256] = "";
    hostrun::scheduler home;
} m;
std::mutex lock;
const hostrun_kernel *kernels;

void leave(bool for_good) /* from a fiber to the scheduler */
{
    fiber *me = m.now;
    hostrun::to_scheduler(m.home, *me, for_good);
    hostrun::self = me;
}

void enter(fiber *to) /* from the scheduler to a fiber, until it leaves */
{
    m.now = to;
    m.at = to->home;
    hostrun::self = to;
    hostrun::block_idx = m.at->idx;
    hostrun::to_fiber(m.home, *to);
}

void body()
{
    hostrun::begun(m.home);
    m.kernel->run(m.args);
    fiber *me = m.now;
    me->st = DONE;
    m.at->warps[me->index / 32].gone |= 1u << me->index % 32;
    m.at->done++;
    leave(true);
}

void prepare(fiber *f)
{
    if (!f->begin(body)) {
        fprintf(stderr, "hostrun: no memory for the stack of a thread\n");
        _exit(70);
    }
    f->st = READY;
    f->groups.assign(1, {});
    f->products.assign(1, {});
    f->products_fenced = f->copies_landed = false;
    f->met = 0;
}

void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void say(const char *fmt, ...)
{
    if (m.failed)
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(m.text, sizeof m.text, fmt, ap);
    va_end(ap);
    m.failed = true;
}

char *poisoned(block_run &b, const void *key, size_t bytes)
{
    void *p = nullptr;
    if (posix_memalign(&p, 1024, bytes ? bytes : 1)) {
        fprintf(stderr, "hostrun: no memory for %zu bytes of shared memory\n", bytes);
        _exit(70);
    }
    memset(p, 0xff, bytes);
    VALGRIND_MAKE_MEM_UNDEFINED(p, bytes);
    b.shared.push_back({key, static_cast<char *>(p), bytes});
    return static_cast<char *>(p);
}

void fail_missing(block_run &x) /* nobody can run */
{
    m.at = &x;
    fiber *w = nullptr, *b = nullptr, *gone = nullptr, *bulk = nullptr, *cluster = nullptr;
    for (int i = 0; i < m.n; i++) {
        fiber *f = x.f[i];
        if (f->st == AT_WARP && !w)
            w = f;
        if (f->st == AT_BARRIER && !b)
            b = f;
        if (f->st == AT_BULK && !bulk)
            bulk = f;
        if (f->st == AT_CLUSTER && !cluster)
            cluster = f;
        if (f->st == DONE && !gone)
            gone = f;
    }
    if (w) {
        for (int l = 0; l < 32; l++) {
            int i = w->index / 32 * 32 + l;
            fiber *f = i < m.n ? x.f[i] : nullptr;
            if (w->mask >> l & 1 && (!f || f->st != AT_WARP))
                return say("thread %d waits in %s for lane %d, which %s", w->index, w->what, l,
                           !f              ? "does not exist"
                           : f->st == DONE ? "has left"
                                           : "is at a barrier");
        }
        return say("thread %d waits in %s for lanes that wait in another operation", w->index,
                   w->what);
    }
    if (bulk && !b)
        return say("thread %d waits for copies: %d arrivals and %lld bytes are missing", bulk->index,
                   bulk->bulk->left, static_cast<long long>(bulk->bulk->bytes));
    if (cluster && !b)
        return say("thread %d waits at a barrier of the cluster, to which %d of %d threads came",
                   cluster->index, m.arrived, m.n * m.crew);
    if (!b) /* all have left; others of the cluster wait */
        return;
    say("thread %d waits at barrier %d (line %d) for %d threads, %d came%s", b->index,
        b->barrier, b->line, x.bar[b->barrier].expected, x.bar[b->barrier].arrived, gone ? "; others have left" : "");
}

void order_of(size_t block, int *seq)
{
    int how = m.order ? m.order : static_cast<int>((block + m.launches) % 3) + 1;
    for (int i = 0; i < m.n; i++)
        seq[i] = how == 2 ? m.n - 1 - i : i;
    if (how != 3)
        return;
    uint64_t s = 0x9e3779b97f4a7c15u * (block + m.launches + 1);
    for (int i = m.n - 1; i > 0; i--) {
        s ^= s >> 12;
        s ^= s << 25;
        s ^= s >> 27;
        int j = static_cast<int>((s * 0x2545f4914f6cdd1du >> 33) % static_cast<unsigned>(i + 1));
        int t = seq[i];
        seq[i] = seq[j];
        seq[j] = t;
    }
}

void begin_block(block_run &b, size_t number)
{
    order_of(number, b.seq);
    for (auto &x : b.bar)
        x = barrier();
    for (int i = 0; i < MAX_THREADS; i++) {
        if (i % 32 == 0)
            b.warps[i / 32] = gathering();
        b.warps[i / 32].gone |= (i >= m.n ? 1u : 0u) << i % 32;
    }
    b.done = 0;
    poisoned(b, nullptr, m.shared_bytes);
    for (int i = 0; i < m.n; i++)
        prepare(b.f[i]);
}

/* Runs those that can; false: nobody could. */
bool turn(block_run &b)
{
    bool ran = false;
    for (int i = 0; i < m.n && !m.failed; i++)
        if (b.f[b.seq[i]]->st == READY) {
            enter(b.f[b.seq[i]]);
            ran = true;
        }
    return ran;
}

void end_block(block_run &b)
{
    if (!b.bulks.empty())
        say("%zu copies were on their way when the block ended", b.bulks.size());
    b.bulks.clear();
    for (auto &s : b.shared)
        free(s.p);
    b.shared.clear();
}

void run_cluster(size_t number) /* of its first block */
{
    m.met = 0;
    m.arrived = 0;
    for (int k = 0; k < m.crew; k++)
        begin_block(m.blocks[k], number + static_cast<size_t>(k));
    for (bool left = true; left && !m.failed;) {
        bool ran = false;
        left = false;
        for (int i = 0; i < m.crew && !m.failed; i++) {
            /* the order of blocks changes too */
            block_run &b = m.blocks[(static_cast<size_t>(i) + number + m.launches) %
                                static_cast<size_t>(m.crew)];
            ran = turn(b) || ran;
            left = left || b.done < m.n;
        }
        for (int i = 0; i < m.crew && left && !ran && !m.failed; i++)
            fail_missing(m.blocks[i]);
    }
    for (int k = 0; k < m.crew; k++)
        end_block(m.blocks[k]);
}
} // namespace

namespace hostrun
{
thread *self;
dims block_dim, grid_dim, block_idx;

void fail(const char *fmt, ...)
{
    va_list ap;
    char text[200];
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    say("thread %d: %s", m.now->index, text);
    leave(true); /* never taken up again */
}

void *shared(const void *key, size_t bytes)
{
    size_t all = bytes;
    for (auto &s : m.at->shared) {
        if (s.key == key)
            return s.p;
        all += s.bytes;
    }
    if (all > m.most_shared)
        fail("%zu bytes of shared memory; a block has %zu", all, m.most_shared);
    return poisoned(*m.at, key, bytes);
}

void warp_op(unsigned mask, const char *what, warp_fn fn, void *arg)
{
    fiber *me = m.now;
    void *args[32] = {};
    int first = me->index / 32 * 32;
    bool all = true;
    if (!(mask >> (me->index % 32) & 1))
        fail("%s with mask %08x, which does not name the caller", what, mask);
    me->mask = mask;
    me->fn = fn;
    me->what = what;
    me->arg = arg;
    me->st = AT_WARP;
    gathering &w = m.at->warps[first / 32];
    if (!w.here) {
        w.fn = fn;
        w.mask = mask;
    }
    w.mixed = w.mixed || w.fn != fn || w.mask != mask || mask & w.gone;
    w.here |= 1u << me->index % 32;
    if (!w.mixed && w.here != mask)
        return leave(false);
    for (int l = 0; l < 32; l++) {
        fiber *f = first + l < m.n ? m.at->f[first + l] : nullptr;
        if (!(mask >> l & 1))
            continue;
        if (!f || f->st == DONE)
            fail("%s waits for lane %d, which %s", what, l, f ? "has left" : "does not exist");
        if (f->st != AT_WARP) {
            all = false;
            continue;
        }
        if (f->fn != fn || f->mask != mask)
            fail("%s (mask %08x) while lane %d is in %s (mask %08x)", what, mask, l, f->what,
                 f->mask);
        args[l] = f->arg;
    }
    if (!all)
        return leave(false);
    w.here = 0;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1)
            m.at->f[first + l]->st = READY;
    fn(args, mask);
}

void barrier_op(int id, int count, bool wait, int line)
{
    fiber *me = m.now;
    if (id < 0 || id >= BARRIERS)
        fail("barrier %d; there are %d", id, BARRIERS);
    ::barrier &b = m.at->bar[id];
    if (!count)
        count = m.n;
    if (count < 1 || count > m.n || count % 32 != 0)
        fail("barrier %d for %d threads of %d", id, count, m.n);
    if (b.arrived && b.expected != count)
        fail("barrier %d for %d threads at line %d, for %d at line %d", id, count, line, b.expected,
             b.line);
    if (b.arrived && !id && b.line != line)
        fail("barrier of line %d while others are at that of line %d", line, b.line);
    b.expected = count;
    b.line = line;
    me->barrier = id;
    me->line = line;
    if (++b.arrived == count) {
        b.arrived = 0;
        for (int i = 0; i < m.n; i++)
            if (m.at->f[i]->st == AT_BARRIER && m.at->f[i]->barrier == id)
                m.at->f[i]->st = READY;
        return;
    }
    if (wait) {
        me->st = AT_BARRIER;
        leave(false);
    }
}

void copy_async(void *to, const void *from, size_t n, size_t bytes)
{
    m.now->groups.back().push_back({to, from, n, bytes});
}

void copy_commit()
{
    m.now->groups.emplace_back();
}

void copy_wait(int pending)
{
    auto &g = m.now->groups;
    while (static_cast<int>(g.size()) - 1 > pending) {
        for (auto &c : g.front()) {
            memcpy(c.to, c.from, c.n);
            memset(static_cast<char *>(c.to) + c.n, 0, c.bytes - c.n);
            m.now->copies_landed = true;
        }
        g.erase(g.begin());
    }
}

static void wake(bulk_barrier *b)
{
    for (int i = 0; i < m.n; i++)
        if (m.at->f[i]->st == AT_BULK && m.at->f[i]->bulk == b)
            m.at->f[i]->st = READY;
}

static void end_phase(bulk_barrier *b) /* if nothing is missing */
{
    if (b->left || b->bytes)
        return;
    b->left = b->arrivals;
    b->phase++;
    wake(b);
}

static void check_begun(const bulk_barrier *b)
{
    if (b->begun != BULK_BEGUN)
        fail("a barrier for copies that was not begun");
}

void arrive_bulk(bulk_barrier *b, int64_t bytes)
{
    check_begun(b);
    if (!b->left)
        fail("one arrival too many at a barrier for copies");
    b->bytes += bytes;
    b->left--;
    end_phase(b);
}

void copy_bulk(void *to, const void *from, int bytes, bulk_barrier *b)
{
    check_begun(b);
    m.at->bulks.push_back({to, from, bytes, b, nullptr, 0, 0});
    wake(b);
}

void copy_tile(void *to, const hostrun_map *map, int column, int row, bulk_barrier *b)
{
    check_begun(b);
    if (map->made != HOSTRUN_MAP)
        fail("a copy of a tile with something that is no map");
    m.at->bulks.push_back({to, nullptr, map->box_columns * map->box_rows * 2, b, map, column, row});
    wake(b);
}

void wait_bulk(bulk_barrier *b, int parity)
{
    check_begun(b);
    while (b->phase % 2 == parity) {
        for (size_t i = 0; i < m.at->bulks.size() && b->phase % 2 == parity;) {
            const bulk c = m.at->bulks[i];
            if (c.b != b) {
                i++;
                continue;
            }
            if (c.map)
                land_tile(c.to, *c.map, c.column, c.row);
            else
                memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
            m.at->bulks.erase(m.at->bulks.begin() + static_cast<long>(i));
            b->bytes -= c.bytes;
            end_phase(b);
        }
        if (b->phase % 2 != parity)
            return;
        m.now->bulk = b;
        m.now->st = AT_BULK;
        leave(false);
    }
}

unsigned cluster_size()
{
    return static_cast<unsigned>(m.crew);
}

unsigned cluster_rank()
{
    return static_cast<unsigned>(m.at->rank);
}

void cluster_arrive()
{
    fiber *me = m.now;
    if (me->met > m.met)
        fail("arrives twice at a barrier of the cluster");
    me->met++;
    if (++m.arrived < m.n * m.crew)
        return;
    m.arrived = 0;
    m.met++;
    for (int k = 0; k < m.crew; k++)
        for (int i = 0; i < m.n; i++)
            if (m.blocks[k].f[i]->st == AT_CLUSTER)
                m.blocks[k].f[i]->st = READY;
}

void cluster_wait()
{
    if (m.now->met <= m.met && !m.now->met)
        fail("waits at a barrier of the cluster and did not arrive");
    if (m.now->met <= m.met)
        return;
    m.now->st = AT_CLUSTER;
    leave(false);
}

void *cluster_place(const void *p, unsigned rank)
{
    if (rank >= static_cast<unsigned>(m.crew))
        fail("block %u of a cluster of %d", rank, m.crew);
    block_run &to = m.blocks[rank];
    if (!m.met)
        fail("memory of another block, before the cluster has met: it may not have begun");
    if (to.done)
        fail("memory of block %u of the cluster, which is ending", rank);
    for (auto &s : m.at->shared) {
        const char *c = static_cast<const char *>(p);
        if (c < s.p || c >= s.p + s.bytes)
            continue;
        for (auto &t : to.shared)
            if (t.key == s.key)
                return t.p + (c - s.p);
        return poisoned(to, s.key, s.bytes) + (c - s.p);
    }
    fail("%p is not shared memory", p);
    gone();
}

kernel_entry::kernel_entry(const char *name, void (*run)(const void *), size_t bytes, int threads)
    : k{name, run, bytes, threads, kernels}
{
    kernels = &k;
}
} // namespace hostrun

const hostrun_kernel *hostrun_find(const char *name)
{
    for (const hostrun_kernel *k = kernels; k; k = k->next)
        if (!strcmp(k->name, name))
            return k;
    return nullptr;
}

void hostrun_order(int order)
{
    m.order = order;
}

void hostrun_shared(size_t bytes)
{
    m.most_shared = bytes;
}

int hostrun_launch(const hostrun_kernel *k, const unsigned grid[3], const unsigned block[3],
                   unsigned cluster, size_t shared_bytes, const void *args, char *err, size_t n)
{
    std::lock_guard<std::mutex> guard(lock);
    size_t threads = static_cast<size_t>(block[0]) * block[1] * block[2];
    size_t blocks = static_cast<size_t>(grid[0]) * grid[1] * grid[2];
    m.failed = false;
    if (!threads || threads > static_cast<size_t>(k->max_threads) || threads > MAX_THREADS)
        say("blocks of %zu threads; its launch bound is %d", threads, k->max_threads);
    else if (!blocks || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
        say("a grid of %u x %u x %u blocks is not possible", grid[0], grid[1], grid[2]);
    else if (shared_bytes > m.most_shared)
        say("%zu bytes of shared memory; a block has %zu", shared_bytes, m.most_shared);
    m.kernel = k;
    m.args = args;
    m.n = static_cast<int>(threads);
    m.shared_bytes = shared_bytes;
    m.launches++;
    hostrun::block_dim = {block[0], block[1], block[2]};
    hostrun::grid_dim = {grid[0], grid[1], grid[2]};
    m.crew = cluster ? static_cast<int>(cluster) : 1;
    m.at = m.blocks;
    if (!m.failed && (cluster > MAX_CLUSTER || grid[0] % static_cast<unsigned>(m.crew)))
        say("clusters of %u blocks; at most %d, and a divisor of %u", cluster, MAX_CLUSTER, grid[0]);
    for (int i = 0; i < m.n * m.crew && !m.failed; i++) {
        const unsigned u = static_cast<unsigned>(i % m.n);
        block_run &b = m.blocks[i / m.n];
        if (!b.f[u])
            b.f[u] = new fiber;
        b.rank = i / m.n;
        b.f[u]->home = &b;
        b.f[u]->index = i % m.n;
        b.f[u]->idx = {u % block[0], u / block[0] % block[1], u / block[0] / block[1]};
    }
    for (size_t b = 0; b < blocks && !m.failed; b += static_cast<size_t>(m.crew)) {
        for (size_t i = 0; i < static_cast<size_t>(m.crew); i++)
            m.blocks[i].idx = {static_cast<unsigned>((b + i) % grid[0]),
                               static_cast<unsigned>(b / grid[0] % grid[1]),
                               static_cast<unsigned>(b / grid[0] / grid[1])};
        run_cluster(b);
    }
    if (!m.failed)
        return 0;
    if (err && n)
        snprintf(err, n, "%s, block (%u,%u,%u): %s", k->name, m.at->idx.x, m.at->idx.y, m.at->idx.z,
                 m.text);
    return -1;
}
