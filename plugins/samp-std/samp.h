/* plugins/samp-std/samp.h: the parts of the standard sampler.
 *
 * Order of a draw: logprobs of the untouched logits; masks (allowed ids, bad words, stop ids before
 * min_tokens); logit_bias; repetition, presence and frequency penalties; temperature; top_k; top_p;
 * min_p; draw. doc/sampling.md says why. Nothing allocates while sampling. */
#ifndef SAMP_H
#define SAMP_H

#include <stdbool.h>
#include <stddef.h>

#include "turbo/plugin.h"

#define SAMP_RECENT 64 /* longest bad-word sequence */

typedef struct samp {
    int32_t vocab;
    int32_t reserved;
    int32_t *ids;  /* [V] scratch: candidates */
    double *prob;  /* [V] scratch: their weights, by candidate */
    float *values; /* [V] scratch: the untouched logits of a row */
} samp;

/* What a sequence has seen: an open-addressing table of token counts, and the latest tokens. */
typedef struct seen {
    int32_t id; /* id + 1; 0: empty */
    int32_t output;
} seen;

typedef struct samp_state {
    uint32_t position; /* tokens accepted: the counter of the generator */
    uint32_t mask;     /* table size - 1 */
    uint32_t n_recent;
    int32_t tracking; /* some penalty is on */
    int32_t recent[SAMP_RECENT];
    seen table[];
} samp_state;

/* philox.c: Philox-4x32-10 (Salmon et al., SC 2011), a pure function of key and counter. */
void samp_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* Uniform in [0,1) with 53 bits, of draw number `position` under seed. */
double samp_uniform(uint64_t seed, uint32_t position);

/* shape.c: everything up to the penalties, on the logits in place. */
turbo_status samp_logprobs(const samp *s, turbo_sample_row *row, double *log_z);
void samp_shape(samp *s, const turbo_sample_row *row);
/* draw.c: temperature, filters, draw. Returns the id. */
int32_t samp_draw(samp *s, const float *logits, const turbo_sample_params *p, uint32_t position);
int32_t samp_argmax(const float *logits, int32_t n); /* lowest id on ties; -1 when none is finite */

#endif
