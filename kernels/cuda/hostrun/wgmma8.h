/* kernels/cuda/hostrun/wgmma8.h: the products of prims_wgmma8.cuh on the host, in the queues of wgmma.h. */
#ifndef HOSTRUN_WGMMA8_H
#define HOSTRUN_WGMMA8_H

namespace hostrun
{
inline double number8(uint32_t v, int)
{
    return static_cast<int8_t>(v);
}
inline double number8(uint32_t v, float)
{
    static const e4m3_numbers numbers;
    return numbers.of[v & 255];
}
/* The warp's 16 rows of one product; the permutation of pieces follows the address, as on a device. */
template <class S> void multiply_group8(const product *const *lanes)
{
    double x[16][32], y[32][128];
    const int N = lanes[0]->columns;
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 16; i++)
            x[l / 4 + i / 4 % 2 * 8][i / 8 * 16 + l % 4 * 4 + i % 4] =
                number8(lanes[l]->a[i / 4] >> 8 * (i % 4), S());
    for (int n = 0; n < N; n++)
        for (int k = 0; k < 32; k++) {
            const uintptr_t at =
                reinterpret_cast<uintptr_t>(lanes[0]->b + n / 8 * lanes[0]->next + n % 8 * 128 + k);
            y[k][n] = number8(*reinterpret_cast<const uint8_t *>(at ^ (at >> 7 & 7) << 4), S());
        }
    for (int row = 0; row < 16; row++) {
        double sum[128] = {0};
        for (int k = 0; k < 32; k++)
            for (int n = 0; n < N; n++)
                sum[n] += x[row][k] * y[k][n];
        for (int n = 0; n < N; n++) {
            const product &g = *lanes[row % 8 * 4 + n % 8 / 2];
            float *c = g.c + (n / 8 * 4 + row / 8 * 2 + n % 2);
            S v = 0;
            if (g.add)
                memcpy(&v, c, sizeof v);
            v = static_cast<S>(static_cast<double>(v) + sum[n]);
            memcpy(c, &v, sizeof v);
        }
    }
}
} // namespace hostrun

template <int pending, int n> static inline void wgmma_wait(int (&)[n])
{
    float none[1];
    wgmma_wait<pending>(none);
}
template <class S, int n>
static inline void wgmma8(S (&c)[n], const uint32_t a[4], wgmma_b b, int add)
{
    static_assert(sizeof(S) == sizeof(float), "what a product keeps");
    hostrun::begin_product({hostrun::multiply_group8<S>, reinterpret_cast<float *>(&c), a, nullptr,
                            b.p, b.next, b.wide, 2 * n, false, add != 0});
}

#endif
