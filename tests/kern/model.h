/* tests/kern/model.h: every op again, straight from its formula in double precision, together with a
 * bound on the error that fp32 arithmetic may add. Shares no code with the library. */
#ifndef MODEL_H
#define MODEL_H

#include "kit.h"

/* A value and how far an fp32 result may be from it. */
typedef struct bounded {
    double v, tol;
} bounded;

/* y [T,out] = x [T,in] w^T [out,in] + bias. The bound is the one of a chain of `in` fused
 * multiply-adds: (in + 2) u sum |x w|, u = 2^-24 (Higham, Accuracy and Stability, 3.1). */
void model_linear(const float *w, const float *bias, int64_t out, int64_t in, const float *x,
                  int64_t T, bounded *y);
double model_act(int32_t act, double x);
/* h [E] after the addition of delta; out [E]. */
void model_rmsnorm(const float *h, const float *w, double eps, int64_t E, bounded *out);
void model_gated_mlp(const float *gate, const float *up, const float *down, int32_t act, int64_t I,
                     int64_t E, const float *x, int64_t T, bounded *y);
/* One head rotated at pos with frequencies of base (docs: turbo_rope_spec); in, out [D]. */
void model_rope(const turbo_rope_spec *s, double base, int32_t pos, const float *in, int32_t D,
                bounded *out);
/* One query row q [D] over keys and values [n,D] (rows `stride` floats apart). coded: they come out of a
 * quantised cache, whose codes, scales and zeros are multiplied apart. */
void model_attention(const float *q, const float *k, const float *v, int64_t n, int64_t stride,
                     int32_t D, double scale, bool coded, bounded *out);

#endif
