/* tests/unit/engine_kit.h: what the engine's tests share: a tiny random model in an engine, requests whose
 * events are kept, and an allocator that counts and can be told to fail. */
#ifndef ENGINE_KIT_H
#define ENGINE_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "tiny_model.h"

/* Allocations of all threads so far. Not counted under sanitizers, which bring their own allocator. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
#endif
extern _Atomic long allocations;
/* The allocation of this thread that returns NULL, counted from 1; 0: none. It counts down. */
extern _Thread_local long fail_allocation;

extern turbod_registry *registry;
/* Opens the registry, runs, closes. */
int engine_kit_main(const struct CMUnitTest *tests, size_t n, CMFixtureFunction set_up,
                    CMFixtureFunction tear_down);

extern const tiny_model random_model; /* vocabulary 300, 512 positions */

turbod_engine_opts small(void); /* options for it: 4 MiB of KV, blocks of 16 tokens */
turbod_engine *open_engine(const char *folder, turbod_engine_opts o);

#define MOST_TOKENS 512
typedef struct result {
    pthread_mutex_t mu;
    pthread_cond_t done;
    int32_t ids[MOST_TOKENS];
    float logprobs[MOST_TOKENS];
    uint64_t tops; /* digest of all alternatives, their ids and log probabilities */
    int n, terminal;
    turbod_event end;
    char message[256];
    long marks[MOST_TOKENS]; /* allocations so far, at each token */
    _Atomic int first_at;    /* when its first token came, counted over all results */
    int began, ended; /* tokens of all results when its first one came, and when it ended */
    turbod_request *req;
} result;

/* A spec for n tokens of prompt, greedy, with max tokens of answer whatever the model says. */
turbod_request_spec ask(const int32_t *prompt, int32_t n, int32_t max);
turbo_sample_params greedy(void);
void on_event(void *ctx, const turbod_event *ev); /* ctx: a result */
/* While it is set the engine stands still at its next event. */
extern _Atomic bool gate;
void start_spec(turbod_engine *e, result *r, turbod_request_spec spec);
void start(turbod_engine *e, result *r, const int32_t *prompt, int32_t n, int32_t max,
           const turbo_sample_params *p);
void finish(result *r); /* waits for the end, at most a minute */
void make_prompt(int32_t *ids, int n, uint32_t seed, int vocab);
void same_answer(const result *a, const result *b); /* ids and logprobs, to the bit */
void nap_ms(int ms);
/* Waits until no block is in use; fails when that does not happen within seconds. */
void all_blocks_back(turbod_engine *e);

#endif
