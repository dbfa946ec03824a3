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
#define SAMP_BUCKETS 16384 /* of candidates by logit, see draw.c */

typedef struct samp {
    int32_t vocab;
    int32_t last; /* the last bucket in use */
    int32_t *ids; /* [V] scratch: candidates, best first */
    int32_t *pool; /* [V] scratch: candidates in order of id */
    double *prob; /* [V] scratch: weights of ids */
    float *values; /* [V] scratch: the untouched logits of a row */
    int32_t end[SAMP_BUCKETS + 2]; /* scratch: where a bucket ends in ids */
} samp;

/* A token of the prompt or of the output. */
typedef struct seen {
    int32_t id;
    int32_t output; /* times it was put out */
} seen;

/* Of one sequence, in the core's memory: this struct, seen[room], then uint32_t slots[mask + 1]: an
 * open-addressing index of the seen tokens. Penalties walk the tokens seen, not the vocabulary. */
typedef struct samp_state {
    uint32_t position; /* tokens accepted: the counter of the generator */
    uint32_t mask; /* slots - 1 */
    uint32_t room, n_seen;
    uint32_t n_recent; /* tokens ever; the latest SAMP_RECENT stand in recent */
    int32_t tracking; /* some penalty is on */
    int32_t recent[SAMP_RECENT];
    seen list[];
} samp_state;

/* state.c. */
turbo_status samp_fail(turbo_err *err, turbo_status s, const char *text);
turbo_status samp_open(int32_t vocab, samp **out, turbo_err *err);
void samp_close(samp *s); /* NULL allowed */
uint64_t samp_state_bytes(const samp *s, int32_t max_tokens);
/* st: zeroed memory of samp_state_bytes(max_tokens). */
turbo_status samp_begin(const samp *s, samp_state *st, int32_t max_tokens,
                        const turbo_sample_params *par, const int32_t *prompt, int32_t n_prompt,
                        turbo_err *err);
void samp_accept(const samp *s, samp_state *st, int32_t token);

/* philox.c: Philox-4x32-10 (Salmon et al., SC 2011), a pure function of key and counter. */
void samp_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* Uniform in [0,1) with 53 bits, of draw number `position` under seed. Stream 0 draws tokens; steps
 * of a program that need chance have streams of their own. */
double samp_uniform(uint64_t seed, uint32_t position, uint32_t stream);

#define SAMP_DEPTH 60.0 /* temperatures below the best, see draw.c */
#define SAMP_NEAR 8.0 /* ... of those that are ordered first */
#define SAMP_BLOCK 64 /* entries whose weights are summed together, see vec.c */

/* vec.c: passes over the vocabulary. */
/* The largest logit's lowest id; EDATA when one is NaN or +inf, or none is finite. */
turbo_status samp_argmax(const float *logits, int32_t n, int32_t *best);
/* exp((logit - best) * inv_t), at most 1. */
double samp_weight(float logit, double best, double inv_t);
/* (top - x) * inv of the largest x among the SAMP_BLOCK entries from `at` on: no other there has less. */
double samp_depth(const float *key, int32_t n, int32_t at, double top, double inv);
/* sums[b]: weights exp((logit - best) * inv_t) of block b, n / SAMP_BLOCK blocks. Returns their sum. */
double samp_sums(const float *logits, int32_t n, double best, double inv_t, double *sums);
/* The first id of block b with which the weights, counted on `from`, exceed `to`. When rounding leaves
 * none, the last that weighs anything; -1 when none does. */
int32_t samp_in_block(const float *logits, int32_t n, int32_t b, double best, double inv_t,
                      double from, double to);

/* shape.c: everything up to the penalties, on the logits in place. */
/* Log-probabilities of the n_logprobs best into row->top; the logarithm of the sum in *log_z. */
void samp_logprobs(const samp *s, turbo_sample_row *row, float best, double *log_z);
/* False: nothing was asked for, and the logits are as they were. */
bool samp_shape(samp *s, const turbo_sample_row *row);
/* draw.c: an order of the vocabulary by a key, highest first, ties by lower id, computed only as far
 * as it is asked for. Entries 60 / inv and more below top do not take part. */
typedef struct samp_order {
    samp *s;
    const float *key; /* [V] */
    double top, inv;
    int32_t dealt; /* entries of s->ids, and ... */
    int32_t sorted; /* ... how many of them stand in their final place */
    int32_t bucket; /* the next one to sort */
    bool whole; /* all that take part are dealt */
} samp_order;
/* key must stay as it is while the order is asked. */
void samp_order_begin(samp_order *o, samp *s, const float *key, double top, double inv);
/* Do more than k entries take part? */
bool samp_order_has(samp_order *o, int32_t k);
/* The id of rank k, which there is. Ranks are asked for in order. */
int32_t samp_order_at(samp_order *o, int32_t k);
/* Temperature, filters, draw. best: what samp_argmax says of these logits. */
int32_t samp_draw(samp *s, const float *logits, const turbo_sample_params *p, uint32_t position,
                  int32_t best);

#endif
