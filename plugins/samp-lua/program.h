/* plugins/samp-lua/program.h: the sampler "lua": programs of steps over one row of logits.
 *
 * A row goes the way of the standard sampler (plugins/samp-std/samp.h) with the program between the
 * penalties and temperature; doc/sampling.md defines each step. A token that a step takes away has the
 * logit -infinity afterwards, so each step sees what those before it left. Nothing allocates. */
#ifndef SAMP_LUA_PROGRAM_H
#define SAMP_LUA_PROGRAM_H

#include "samp.h"

#define PROGRAM_STEPS 64 /* at most, in one program */

/* Of the sampler: scratch beside the standard sampler's. */
typedef struct lua_samp {
    samp *std;
    float *row; /* [V] */
    int32_t *mark; /* [V] zero between two steps */
} lua_samp;

/* Of one sequence, in the core's memory: this struct, history [room], then a samp_state. */
typedef struct lua_state {
    double mu; /* mirostat: the largest surprise that is let through, in bits; 0: not begun */
    int32_t room, n; /* tokens of prompt and output that history can hold, and holds */
    int32_t n_prompt;
    int32_t mirostat; /* index of the step whose mu the next draw moves, -1 none; of this row */
    double z; /* mirostat: log of the sum of weights of what stood before the step; of this row */
    int32_t history[];
} lua_state;

/* Where a step works. */
typedef struct program_row {
    lua_samp *s;
    lua_state *st;
    float *l; /* [V] */
    uint64_t seed;
    uint32_t position, index; /* draws so far; number of the step in its program */
} program_row;

samp_state *lua_std_state(const lua_state *st);

/* program.c: what is wrong with a program; NULL: nothing. */
const char *program_check(const turbo_sample_params *p, int32_t vocab);
bool program_has(const turbo_sample_params *p, int32_t kind);
/* Runs all steps. TURBO_EINVAL: no token is left. */
turbo_status program_run(program_row *r, const turbo_sample_params *p);

/* filter.c: steps that take tokens away by their probability. False: no token has a finite logit. */
bool filter_top_k(program_row *r, int32_t k);
bool filter_top_p(program_row *r, double p);
bool filter_min_p(program_row *r, double p);
bool filter_typical(program_row *r, double mass);
bool filter_top_n_sigma(program_row *r, double n);
bool filter_xtc(program_row *r, double threshold, double probability);
bool filter_mirostat(program_row *r, double tau);
bool filter_greedy(program_row *r);

/* repeat.c: steps that look back at what was said. */
void repeat_penalize(program_row *r, const turbo_sample_step *s);
void repeat_ngram(program_row *r, int32_t n);
void repeat_dry(program_row *r, const turbo_sample_step *s);

#endif
