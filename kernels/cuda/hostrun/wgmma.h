/* kernels/cuda/hostrun/wgmma.h: the products of warp groups of prims_wgmma.cuh on the host. Each thread keeps a queue of
 * the products that it has begun, with the addresses of their registers, and they are carried out when their group
 * is waited for: who touches sums, A or B before that gets other numbers than a device would. A product
 * without wgmma_fence() since the last wait, or after copies without proxy_fence(), ends the launch. */
#ifndef HOSTRUN_WGMMA_H
#define HOSTRUN_WGMMA_H

struct wgmma_b {
    const char *p;
    int next, wide;
};
static inline wgmma_b wgmma_tile(const void *p, int next, int wide)
{
    return {static_cast<const char *>(p), next, wide};
}
static inline void wgmma_fence()
{
    hostrun::self->products_fenced = true;
}
static inline void wgmma_commit()
{
    hostrun::self->products.emplace_back();
}
static inline void proxy_fence()
{
    hostrun::self->copies_landed = false;
}

namespace hostrun
{
/* The permutation of pieces follows the address itself, as on a device. */
inline uint16_t number_at(const char *p)
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    uint16_t v;
    memcpy(&v, reinterpret_cast<const void *>(at ^ (at >> 7 & 7) << 4), 2);
    return v;
}
/* Number (k, n) of B. */
inline uint16_t number_of(const product &g, int k, int n)
{
    return number_at(g.transposed
                         ? g.b + n / 64 * g.wide + k / 8 * g.next + k % 8 * 128 + n % 64 * 2
                         : g.b + n / 8 * g.next + n % 8 * 128 + k * 2);
}
template <class T> double number(uint16_t v)
{
    T t;
    t.x = v;
    return static_cast<double>(to_f(t));
}
/* The warp's 16 rows of one product. */
template <class T> void multiply_group(const product *const *lanes)
{
    double x[16][16], y[16][256];
    const int N = lanes[0]->columns;
    const char *rows = lanes[0]->rows;
    for (int r = 0; r < 16 && rows; r++)
        for (int k = 0; k < 16; k++)
            x[r][k] = number<T>(number_at(rows + r / 8 * lanes[0]->next + r % 8 * 128 + k * 2));
    for (int l = 0; l < 32 && !rows; l++)
        for (int i = 0; i < 8; i++)
            x[l / 4 + i / 2 % 2 * 8][i / 4 * 8 + l % 4 * 2 + i % 2] =
                number<T>(static_cast<uint16_t>(lanes[l]->a[i / 2] >> 16 * (i % 2)));
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < N; n++)
            y[k][n] = number<T>(number_of(*lanes[0], k, n));
    for (int row = 0; row < 16; row++) {
        double sum[256] = {0};
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < N; n++)
                sum[n] += x[row][k] * y[k][n];
        for (int n = 0; n < N; n++) {
            const product &g = *lanes[row % 8 * 4 + n % 8 / 2];
            float &c = g.c[n / 8 * 4 + row / 8 * 2 + n % 2];
            c = static_cast<float>((g.add ? static_cast<double>(c) : 0.0) + sum[n]);
        }
    }
}
/* The oldest groups of all lanes, until so many as lane 0 leaves are on their way. */
inline void multiply_groups(void *const *lanes, unsigned)
{
    auto of = [&](int l) -> std::vector<std::vector<product>> & {
        return static_cast<thread *>(lanes[l])->products;
    };
    const int pending = static_cast<thread *>(lanes[0])->products_pending;
    while (static_cast<int>(of(0).size()) - 1 > pending) {
        for (size_t i = 0; i < of(0).front().size(); i++) {
            const product *each[32];
            for (int l = 0; l < 32; l++) {
                if (of(l).size() != of(0).size() || of(l).front().size() != of(0).front().size())
                    return fail("wgmma: lane %d began other products than lane 0", l);
                each[l] = &of(l).front()[i];
                if (each[l]->b != each[0]->b || each[l]->rows != each[0]->rows)
                    return fail("wgmma: lane %d has other operands than lane 0", l);
            }
            each[0]->multiply(each);
        }
        for (int l = 0; l < 32; l++)
            of(l).erase(of(l).begin());
    }
}
} // namespace hostrun

template <int n> static inline void registers_fewer()
{
}
template <int n> static inline void registers_more()
{
}
template <int pending> static inline void wgmma_wait()
{
    hostrun::self->products_fenced = false;
    hostrun::self->products_pending = pending;
    hostrun::warp_op(FULL, "wgmma", hostrun::multiply_groups, hostrun::self);
}
template <int pending, int n> static inline void wgmma_wait(float (&)[n])
{
    wgmma_wait<pending>();
}
namespace hostrun
{
inline void begin_product(const product &g)
{
    if (!self->products_fenced)
        fail("wgmma without wgmma_fence()");
    if (self->copies_landed)
        fail("wgmma after copies without proxy_fence()");
    self->products.back().push_back(g);
}
} // namespace hostrun
template <int transposed, class T, int n>
static inline void wgmma(float (&c)[n], const uint32_t a[4], wgmma_b b, int add, T)
{
    hostrun::begin_product({hostrun::multiply_group<T>, c, a, nullptr, b.p, b.next, b.wide, 2 * n,
                            transposed != 0, add != 0});
}
/* Both operands in shared memory; a warp has 16 of the 64 rows. */
template <class T, int n> static inline void wgmma_tiles(float (&c)[n], wgmma_b a, wgmma_b b, T)
{
    const char *rows = a.p + hostrun::self->index / 32 % 4 * 2 * a.next;
    if (a.next != b.next)
        hostrun::fail("wgmma: other distances of A than of B");
    hostrun::begin_product(
        {hostrun::multiply_group<T>, c, nullptr, rows, b.p, b.next, b.wide, 2 * n, false, true});
}

#endif
