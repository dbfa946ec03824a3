/* tests/cuda/test_pictures.c: attention among all tokens of a picture, of every head size and type, against a softmax
 * in double precision; and that a picture's bits do not depend on those beside it. The other kernels of towers are in
 * test_rows.c. */
#include "dev.h"

typedef struct shape {
    int32_t N, T, H, D;
    int shift; /* numbers in front of the projection: rows that begin anywhere */
} shape;

static const float *row_of(const shape *s, const float *qkv, int32_t n, int32_t t, int which,
                           int32_t h)
{
    return qkv +
           (((size_t)(n * s->T + t) * 3 + (size_t)which) * (size_t)s->H + (size_t)h) * (size_t)s->D;
}

/* Every token's result where the shape is small, of a large one every 37th. */
static void compare(int32_t act, const shape *s, float scale, const float *qkv, const float *got)
{
    char what[96];
    size_t D = (size_t)s->D;
    double *p = malloc((size_t)s->T * sizeof *p);
    int32_t pace = s->T > 200 ? 37 : 1;
    snprintf(what, sizeof what, "attention_full %s N %d T %d H %d D %d", dev_type(act), s->N, s->T,
             s->H, s->D);
    for (int32_t n = 0; n < s->N; n++)
        for (int32_t t = 0; t < s->T; t++)
            for (int32_t h = 0; h < s->H && (t % pace == 0 || t == s->T - 1); h++) {
                double top = -1e300, sum = 0;
                const float *q = row_of(s, qkv, n, t, 0, h);
                for (int32_t j = 0; j < s->T; j++) {
                    const float *k = row_of(s, qkv, n, j, 1, h);
                    p[j] = 0;
                    for (size_t d = 0; d < D; d++)
                        p[j] += (double)q[d] * (double)k[d];
                    p[j] *= (double)scale;
                    top = fmax(top, p[j]);
                }
                for (int32_t j = 0; j < s->T; j++)
                    sum += p[j] = exp(p[j] - top);
                for (size_t d = 0; d < D; d++) {
                    double want = 0, mass = 0;
                    for (int32_t j = 0; j < s->T; j++) {
                        double v = (double)row_of(s, qkv, n, j, 2, h)[d];
                        want += p[j] / sum * v;
                        mass += p[j] / sum * fabs(v);
                    }
                    /* weights are rounded to 16 bits before they meet values; scores differ by fp32 sums */
                    double tol =
                        mass * (act == TURBO_F32 ? 4e-5 : 0x1.2p-8) + 1.01 * dev_ulp(act, want);
                    size_t at = ((size_t)(n * s->T + t) * (size_t)s->H + (size_t)h) * D + d;
                    dev_near(what, at, (double)got[at], want, tol);
                }
            }
    free(p);
}

static void check(int32_t act, const shape *s)
{
    size_t es = turbok_dtype_size(act), E = (size_t)s->H * (size_t)s->D, shift = (size_t)s->shift;
    size_t rows = (size_t)s->T, all = (size_t)s->N * rows;
    float *qkv = malloc((all * 3 * E + shift) * sizeof *qkv), *got = malloc(all * E * sizeof *got);
    float *alone = malloc(rows * E * sizeof *alone), scale = 1.3f / sqrtf((float)s->D);
    char *in = dev_numbers(act, all * 3 * E + shift, 1, qkv);
    void *out = dev_new(all * E * es, NULL), *one = dev_new(rows * E * es, NULL);
    in += shift * es;
    turbok_cu_attention_full(dev, act, in, s->N, s->T, s->H, s->D, scale, out);
    dev_get_numbers(act, out, all * E, got);
    compare(act, s, scale, qkv + shift, got);
    size_t last = (size_t)(s->N - 1) * rows;
    turbok_cu_attention_full(dev, act, in + last * 3 * E * es, 1, s->T, s->H, s->D, scale, one);
    dev_get_numbers(act, one, rows * E, alone);
    for (size_t i = 0; i < rows * E; i++)
        dev_near("a picture alone", i, (double)alone[i], (double)got[last * E + i], 0);
    free(qkv), free(got), free(alone);
    dev_drop();
}

int main(void)
{
    static const shape shapes[] = {
        {2, 17, 2, 64, 0}, {1, 64, 1, 64, 0}, {1, 65, 2, 64, 0},  {1, 130, 1, 72, 0},
        {3, 3, 1, 80, 0},  {1, 1, 2, 8, 0},   {2, 40, 1, 128, 0}, {1, 66, 1, 64, 8},
        {2, 9, 2, 64, 1},  {2, 20, 2, 33, 0}, {1, 67, 1, 136, 0}, {1, 5, 1, 256, 0},
    };
    static const shape large[] = {{2, 577, 16, 64, 0}, {1, 729, 16, 72, 0}, {1, 257, 16, 80, 0}};
    dev_begin("pictures");
    for (int i = 0; i < 3; i++) {
        for (size_t k = 0; k < sizeof shapes / sizeof shapes[0]; k++)
            if (dev_act(i) != TURBO_F16 || k % 3 == 1 || dev_fast) /* the host is slow */
                check(dev_act(i), &shapes[k]);
        for (size_t k = 0; k < sizeof large / sizeof large[0] && dev_fast; k++)
            check(dev_act(i), &large[k]);
    }
    return dev_end();
}
