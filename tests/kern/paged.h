/* tests/kern/paged.h: a random ragged batch over a KV pool, made alike on any device: sequences with a
 * history, shuffled blocks, a poisoned pool. */
#ifndef PAGED_H
#define PAGED_H

#include "kit.h"

#define PAGED_SEQS 5
#define PAGED_TOKENS 256 /* new tokens of a batch at most */

typedef struct paged_shape {
    int32_t S, H, K, D, layers, layer, block_tokens, dtype, layout, window;
    int32_t history[PAGED_SEQS], fresh[PAGED_SEQS], rope_len[PAGED_SEQS];
    bool rotate;
    float scale;
    turbo_rope_spec rope;
} paged_shape;

/* What the layer before would hand over: [history + fresh, (H+2K)*D] of each sequence. */
typedef struct paged_data {
    float *qkv[PAGED_SEQS];
} paged_data;

typedef struct paged {
    const paged_shape *shape;
    turbok_device *d;
    turbok_kv_pool *pool;
    turbok_kv_table table[PAGED_SEQS];
    turbok_kv_table *tables[PAGED_SEQS];
    turbo_rope *rope;
    struct turbo_kv kv;
    turbo_attn attn;
    turbo_batch batch;
    int32_t positions[PAGED_TOKENS], cu[PAGED_SEQS + 1];
    int32_t kv_lens[PAGED_SEQS], rope_lens[PAGED_SEQS];
} paged;

void paged_random(kit_rng *r, paged_shape *s);
/* Values of all tokens; from malloc. */
void paged_fill(kit_rng *r, const paged_shape *s, paged_data *data);
void paged_free(paged_data *data);
int32_t paged_row(const paged_shape *s); /* floats of a token in qkv */
int32_t paged_total(const paged_shape *s);
/* Pool (all bytes 0xff), tables with shuffled blocks, rope, history stored. */
void paged_open(paged *p, const paged_shape *s, const paged_data *data, turbok_device *d, kit_rng *r);
/* Sets up the batch that stores tokens [from[s], to[s]) of each sequence; qkv is filled, [T,row]. */
void paged_batch(paged *p, const paged_data *data, const int32_t *from, const int32_t *to,
                 float *qkv);
/* Fails the test when a block that no table holds has been written. */
void paged_verify(const paged *p);
void paged_close(paged *p);

#endif
