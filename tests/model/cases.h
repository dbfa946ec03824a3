/* tests/model/cases.h: golden files of checkpoints that follow from names: a case is a config.json, a
 * prompt, some rows of logits and greedy ids, made by transformers in float32. Used under cmocka: what
 * does not fit fails the test. One thread. */
#ifndef TESTS_CASES_H
#define TESTS_CASES_H

#include "plugin/registry.h"
#include "runner.h"
#include "util/json.h"

/* Rounding in another order of additions; 5e-6 was measured. */
#define CASES_TOLERANCE 2e-5
#if defined(__aarch64__)
#define CASES_ISAS 2
#else
#define CASES_ISAS 3
#endif

extern const turbok_isa cases_isas[CASES_ISAS];

/* A file of tests/golden/FOLDER; NULL and a line when it cannot be read. */
cJSON *cases_load(const char *folder, const char *name);
/* Writes config.json and weights (see checkpoint_write) into a new folder, its name into folder [64]. */
void cases_write(const turbo_model_vtbl *vtbl, const cJSON *config, checkpoint_value value,
                 char *folder);
/* The same for a case, by the plugin of the registry that claims its config. */
const turbo_model_vtbl *cases_model(const turbod_registry *r, const cJSON *c, char *folder);
/* False when this machine lacks the instruction set. */
bool cases_open(runner *r, const turbo_model_vtbl *vtbl, const char *folder, turbok_isa isa,
                int32_t kv, int32_t max);
void cases_step(runner *r, const int32_t *ids, int32_t n, int32_t rope_len, int32_t rows,
                float *logits);
/* In chunks and in ragged batches the prompt gives the logits [n,V] of the whole. */
void cases_same_bits(runner *r, const int32_t *ids, int32_t n, const float *whole);
/* On every instruction set: logits and greedy ids; the same bits in chunks and in ragged batches. */
void cases_run(const turbo_model_vtbl *vtbl, const cJSON *c);

#endif
