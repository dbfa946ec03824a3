/* core/sched/request.h: one generation request, from submission to its terminal event.
 *
 * A request is made by any thread, lives in the queue and the scheduler, and is advanced by the
 * engine thread only. It is reference-counted: the submitter and the engine hold one each. Its
 * inputs are proven by whoever submits; the engine never meets an unchecked number.
 * Must not know: HTTP, JSON, files. */
#ifndef TURBOD_REQUEST_H
#define TURBOD_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "media/image.h"
#include "turbo/plugin.h"

#define TURBOD_MAX_STOPS 16
#define TURBOD_MAX_STOP_BYTES 256
#define TURBOD_MAX_PRIORITY 1000
#define TURBOD_MAX_SALT 256

typedef struct turbod_request turbod_request;
typedef struct turbod_steer turbod_steer; /* steer.h */

typedef enum {
    TURBOD_EV_TOKEN, /* one sampled token; text may be empty while it is held back */
    TURBOD_EV_DONE, /* terminal: finished by stop or length                       */
    TURBOD_EV_ERROR /* terminal: failed, cancelled or timed out                   */
} turbod_event_kind;

typedef enum { TURBOD_FINISH_STOP, TURBOD_FINISH_LENGTH } turbod_finish;

typedef struct turbod_timings {
    int32_t prompt_n; /* prompt tokens                                                       */
    int32_t cached_n; /* of them found in the cache                                          */
    int32_t predicted_n; /* sampled tokens, the one that ended the answer included              */
    double queue_ms; /* submission to first step                                            */
    double prompt_ms; /* first step to first token                                           */
    double predicted_ms; /* first token to last token                                           */
} turbod_timings;

typedef struct turbod_event {
    turbod_event_kind kind;
    /* TOKEN, DONE: text that may be shown now. Valid UTF-8; never part of a stop string. */
    const char *text;
    size_t text_len;
    /* TOKEN */
    int32_t token;
    float logprob; /* when params.n_logprobs >= 0 */
    const turbo_logprob *top; /* [n_top], best first */
    int32_t n_top;
    /* DONE */
    turbod_finish finish;
    int32_t stop_index; /* which stop string matched, -1 none */
    int32_t stop_token; /* which stop or eos id ended it, -1 none */
    turbod_timings timings; /* DONE and ERROR */
    /* ERROR */
    turbo_status status; /* ECANCELLED, ETIMEDOUT as EBUSY, EDATA numeric error, ... */
    const char *message;
} turbod_event;

/* Called on the engine thread; must not block, and must not call back into the engine except
 * turbod_request_cancel. Pointers inside the event are valid during the call only. Exactly one
 * terminal event comes for each request that was accepted; ctx must live until then. */
typedef void (*turbod_event_fn)(void *ctx, const turbod_event *ev);

/* Everything is copied by turbod_engine_submit. */
typedef struct turbod_request_spec {
    const int32_t *prompt; /* ids in 0..V-1 */
    int32_t n_prompt; /* 1..session_len-1 */
    const turbod_slot *images; /* [n_images] pictures in the prompt, by place, not overlapping */
    int32_t n_images;
    int32_t max_tokens; /* 1..; n_prompt + max_tokens <= session_len */
    turbo_sample_params params;
    const char *const *stops; /* n_stops strings of 1..256 bytes, valid UTF-8 */
    int32_t n_stops;
    const int32_t
        *stop_ids; /* stop_token_ids of the request; eos ids are added unless ignore_eos */
    int32_t n_stop_ids;
    bool ignore_eos;
    bool include_stop; /* keep the matched stop string in the text */
    bool keep_special; /* show special tokens by name (skip_special_tokens = false) */
    int64_t queue_timeout_ms; /* 0: none */
    int64_t timeout_ms; /* 0: none */
    const char *tenant; /* whose request it is; tenants share the engine fairly. NULL: "" */
    int32_t priority; /* -1000..1000; among a tenant's waiting requests smaller goes first */
    const char *cache_salt; /* only requests with the same salt share cached prefixes. NULL: "" */
    const char *id; /* for the log, or NULL */
    turbod_steer
        *steer; /* NULL, or what steers it: the request's from now on, whatever comes back */
    turbod_event_fn on_event;
    void *ctx;
} turbod_request_spec;

/* Asks the engine to end the request at the next step boundary; its terminal event says ECANCELLED
 * unless it finished first. Any thread, any number of times. */
void turbod_request_cancel(turbod_request *r);
/* Gives the submitter's reference back. Any thread. NULL allowed. */
void turbod_request_release(turbod_request *r);

/* Neutral sampling parameters (temperature 1, everything else off, n_logprobs -1). */
void turbod_sample_defaults(turbo_sample_params *p);

/* Did its first step come? Any thread that holds a reference. */
bool turbod_request_started(const turbod_request *r);

#endif
