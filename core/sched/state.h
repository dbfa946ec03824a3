/* core/sched/state.h: the inside of a request, for the scheduler and the engine only.
 *
 * The states and the allowed moves are drawn in doc/engine.md; request.c has them as a table and moves.
 * There is no separate prefill state: `computed` tokens are in the KV cache, `n_tokens` are known; a
 * step runs some of the difference, and when it reaches n_tokens the next token is sampled.
 * Everything a request needs until its end is allocated when it is submitted. */
#ifndef TURBOD_SCHED_STATE_H
#define TURBOD_SCHED_STATE_H

#include <stdatomic.h>

#include "engine/stop.h"
#include "sched/request.h"
#include "turbok.h"

typedef enum {
    TURBOD_ARRIVING, /* submitted, not yet seen by the engine thread */
    TURBOD_WAITING, /* in its tenant's queue, owns no KV */
    TURBOD_RUNNING, /* in the running set, owns KV */
    TURBOD_ENDED
} turbod_phase;

/* A picture of a prompt: its rows stand for n_rows tokens from at on. */
typedef struct turbod_seen {
    int32_t at;
    int32_t n_rows;
    struct turbod_features *features;
} turbod_seen;

struct turbod_inbox;
struct turbod_media;
struct turbod_detok;
struct turbod_flow;

struct turbod_request {
    _Atomic int refs;
    _Atomic bool cancelled;
    struct turbod_inbox *inbox; /* to wake the engine; valid while phase != ENDED */

    /* fixed at submission */
    int32_t n_prompt, max_tokens;
    turbod_seen *seen; /* [n_seen] its pictures, by place; held in media */
    int32_t n_seen;
    struct turbod_media *media;
    turbo_sample_params params; /* its arrays are owned */
    void *param_arrays; /* one block that holds them */
    bool include_stop;
    int64_t queue_deadline, deadline; /* monotonic ns, 0 none */
    struct turbod_flow *flow; /* its tenant's queue */
    int32_t priority;
    turbod_event_fn on_event;
    void *ctx;
    char id[72];

    /* engine thread */
    turbod_phase phase;
    _Atomic bool started; /* its first step was counted; others may read it */
    int32_t *tokens; /* [n_prompt + max_tokens] */
    int32_t n_tokens; /* prompt and sampled so far, and with `unknown` one more */
    int32_t unknown; /* 1: the last token is being drawn: ~row of the step that draws it */
    int32_t computed; /* of them in the KV cache */
    uint64_t air_step; /* the last step it was started in: while that is in the air ... */
    int32_t air_new; /* ... its last tokens that are only being computed */
    int32_t cached; /* of the prompt found in the cache at first admission */
    int32_t rope_len; /* fixes a length-dependent RoPE base for the whole request */
    uint64_t order; /* number of its first admission: smaller is older; 0 before */
    uint64_t step; /* the last step it was planned for or passed over in */
    uint64_t prepaid; /* service its flow was charged for ahead of the work */
    int32_t preemptions;
    turbok_kv_key *keys; /* [blocks + 1] names of what its blocks hold, see turbok.h */
    int32_t n_keys; /* keys that are known */
    int32_t published; /* full blocks that others may find */
    int32_t announced; /* tokens it said it would compute */
    turbok_kv_table table;
    int32_t *slots; /* [table.cap] of the swap space; NULL: the engine has none */
    int32_t n_slots; /* in use: */
    int32_t kept; /* ... the KV of so many tokens lies there, while it waits */
    int32_t place; /* a number below max_batch of its own while it runs; else -1 */
    void *sampler_state;
    bool programs; /* drawn by the sampler that runs programs */
    bool by_device; /* drawn by the device ... */
    bool placed; /* ... which knows its tokens, at its place */
    turbod_steer *steer; /* owned; NULL: nothing steers it */
    struct turbod_detok *detok;
    turbod_stop stop;
    int64_t t_submit, t_start, t_first, t_last; /* monotonic ns */
    turbod_request *prev, *next; /* queue links */
};

int64_t turbod_now(void); /* CLOCK_MONOTONIC in ns */

/* Copies and checks a spec. vocab and eos come from the model. */
typedef struct turbod_request_limits {
    int32_t vocab, session_len, pool_tokens, n_eos;
    const int32_t *eos;
} turbod_request_limits;
turbo_status turbod_request_new(const turbod_request_spec *spec, const turbod_request_limits *lim,
                                turbod_request **out, turbo_err *err);
void turbod_request_ref(turbod_request *r);
/* The only way a request changes its phase; a move that the table does not allow is a defect: it ends a
 * debug build, and is logged and not made otherwise. Engine thread. */
bool turbod_request_move(turbod_request *r, turbod_phase to);

#endif
