/* core/cli/bench_stat.c: samples and their quantiles, random numbers, the clock. Any thread. Must not
 * know what is measured. */
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "cli/bench.h"
#include "util/checked.h"

void cli_samples_add(cli_samples *s, double v)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 256, bytes;
        double *p = turbod_mul(cap, sizeof *p, &bytes) ? realloc(s->v, bytes) : NULL;
        if (!p) {
            s->lost++;
            return;
        }
        s->v = p;
        s->cap = cap;
    }
    s->v[s->n++] = v;
    s->sorted = false;
}

void cli_samples_free(cli_samples *s)
{
    free(s->v);
    *s = (cli_samples){0};
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *v, size_t n, double q)
{
    double h = (double)(n - 1) * q, low = floor(h);
    size_t i = (size_t)low;
    return i + 1 < n ? v[i] + (v[i + 1] - v[i]) * (h - low) : v[n - 1];
}

double cli_samples_quantile(cli_samples *s, double q)
{
    if (!s->n)
        return 0;
    if (!s->sorted)
        qsort(s->v, s->n, sizeof *s->v, by_value);
    s->sorted = true;
    return quantile(s->v, s->n, q);
}

double cli_samples_mean(const cli_samples *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->n; i++)
        sum += s->v[i];
    return s->n ? sum / (double)s->n : 0;
}

double cli_median(double *v, size_t n)
{
    if (!n)
        return 0;
    qsort(v, n, sizeof *v, by_value);
    return quantile(v, n, 0.5);
}

uint64_t cli_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

uint64_t cli_random(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15u;
    return cli_mix(*state);
}

double cli_random_exp(uint64_t *state, double mean)
{
    /* 53 random bits: u in [0, 1), so 1 - u is never 0. */
    double u = (double)(cli_random(state) >> 11) * 0x1p-53;
    return -log1p(-u) * mean;
}

double cli_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}
