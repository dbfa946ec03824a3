/* core/net/gen.h: one answer of the model: n choices for each of some prompts.
 *
 * A worker makes it and submits its requests, the engine thread fills the choices, the daemon thread
 * turns them into bytes. Everything in it is guarded by exchange.mu once requests are submitted. */
#ifndef TURBOD_GEN_H
#define TURBOD_GEN_H

#include <cjson/cJSON.h>

#include "net/net.h"

#define TURBOD_MAX_N 16
#define TURBOD_MAX_PROMPTS 16
#define TURBOD_MAX_BIAS 1024
#define TURBOD_MAX_IDS 65536
#define TURBOD_SAFE_INT 9007199254740991ll /* what a JSON number holds exactly */

/* What a body asks for, checked. */
typedef struct turbod_params {
    turbo_sample_params s; /* its arrays are the ones below */
    turbo_logit_bias *bias;
    int32_t *allowed, *bad_ids, *bad_len;
    int32_t *stop_ids;
    int32_t n_stop_ids, n_user_stop_ids; /* those of the body come first */
    char stops[TURBOD_MAX_STOPS][TURBOD_MAX_STOP_BYTES + 1];
    int32_t n_stops;
    int64_t n, max_tokens, max_completion, seed; /* max_tokens 0: the rest of the context */
    int64_t top_logprobs;                        /* chat; -1 not given */
    bool stream, include_usage, continuous_usage, logprobs, echo, ignore_eos, include_stop,
        keep_special, spaces, return_ids, add_generation_prompt, continue_final, parallel;
    int32_t priority;
    char cache_salt[TURBOD_MAX_SALT + 1];
    char policy[65];
    bool policy_given;
    const cJSON *policy_args; /* inside the body, while it lives */
    turbod_policy *script; /* a reference; NULL: none */
    turbod_buf warnings;      /* JSON strings, comma-separated */
} turbod_params;

enum { FOR_CHAT = 1, FOR_COMPLETION = 2, FOR_INTERACTIVE = 4 };

/* Reads every member of the body. False: x->reply has the refusal. Lists of ids are checked against
 * the model's vocabulary. messages, prompt and other nouns of one route are left to it. */
bool turbod_params_read(turbod_exchange *x, const cJSON *body, int kind, turbod_params *p);
void turbod_params_free(turbod_params *p);
/* Finds the policy. False: x->reply has the refusal. */
bool turbod_params_policy(turbod_exchange *x, turbod_params *p);
/* What the policy, if any, makes of p->s for one answer. False: x->reply has the refusal. */
bool turbod_params_steer(turbod_exchange *x, const turbod_params *p, uint64_t seed,
                         turbod_policy_result *out);
/* Notes an unknown member, or refuses it under X-Turbo-Strict. */
bool turbod_unknown_field(turbod_exchange *x, turbod_buf *warnings, const char *where,
                          const char *name);
/* The body as a JSON object, or NULL with the refusal in x->reply. cJSON_Delete. */
cJSON *turbod_body_json(turbod_exchange *x);
/* x->svc by "model" of a body, before anything else of it is read. False: not served, or not now; the reply
 * has the refusal. */
bool turbod_choose_by_body(turbod_exchange *x, const cJSON *body);

/* Messages of a chat. */
typedef struct turbod_messages {
    turbod_message *v;
    size_t n;
    char **joined; /* [n] texts made of parts, or NULL entries */
    turbod_image **images; /* [n_images] of all messages, in order */
    size_t *image_at;
    size_t n_images;
} turbod_messages;
/* pictures.c: the picture of a part of type image_url. False: x->reply has the refusal. */
bool turbod_picture_read(turbod_exchange *x, const cJSON *part, const char *param,
                         turbod_buf *warnings, turbod_image **out);
bool turbod_messages_read(turbod_exchange *x, const cJSON *list, turbod_buf *warnings,
                          turbod_messages *out);
void turbod_messages_free(turbod_messages *m);

/* One sampled token, kept when log probabilities or ids are wanted. */
typedef struct turbod_record {
    int32_t id;
    float logprob;
    size_t top; /* first of its alternatives in choice.tops */
    int32_t n_top;
} turbod_record;

typedef struct turbod_choice {
    turbod_gen *gen;
    turbod_request *request;
    turbod_policy_result steered; /* what the policy made of the parameters */
    int index, prompt;
    bool first_of_prompt;
    bool done, ended_well; /* ended_well: by stop or length */
    turbod_finish finish;
    int32_t stop_index, stop_token;
    turbod_timings timings;
    turbod_buf text, records, tops;
    turbod_buf ids; /* int32_t of a session's answer, without the one that ended it */
    int32_t n_tokens;
    /* what was already written out */
    size_t text_sent, records_sent;
    bool role_sent, end_sent;
    turbod_detok *detok; /* offsets of tokens in the text (completions with logprobs) */
    size_t chars;
} turbod_choice;

typedef struct turbod_prompt {
    int32_t *ids;
    size_t n;
    turbod_slots slots; /* its pictures */
} turbod_prompt;

struct turbod_gen {
    turbod_exchange *x;
    int kind; /* FOR_... */
    turbod_params params;
    char id[40]; /* "chatcmpl-..." */
    int64_t created;
    turbod_prompt *prompts;
    int n_prompts;
    turbod_choice *choices;
    int n_choices, n_open; /* submitted and without a terminal event */
    int fail_status;       /* HTTP status of a failure, 0 none */
    const char *fail_code;
    char fail_text[256];
    int32_t max_tokens;
    turbod_buf prefix; /* of every chunk */
    bool submitted; /* all requests are in; none will follow */
    bool warnings_sent, usage_sent, stream_over;
    /* interactive.c */
    struct turbod_session *session; /* taken, until the answer ended */
    char session_id[65];
    size_t turns_before, history; /* messages, and tokens, of the session before this turn */
    bool end_session;
};

turbod_gen *turbod_gen_new(turbod_exchange *x, int kind, int n_prompts);
void turbod_gen_free(turbod_gen *g);
/* Makes the choices and hands g to the exchange, which frees it. False: x->reply has the refusal. */
bool turbod_gen_adopt(turbod_gen *g);
/* Checks lengths, runs the policy, submits all; afterwards the exchange's reply is ready or will be.
 * False: x->reply has the refusal. */
bool turbod_gen_start(turbod_gen *g);
/* Under x->mu: true when nothing more will come. NULL: false. */
bool turbod_gen_over(const turbod_gen *g);
/* Under x->mu: ends what runs. */
void turbod_gen_cancel_locked(turbod_gen *g);
void turbod_gen_fail_locked(turbod_gen *g, int status, const char *code, const char *text);
/* Under x->mu, when all choices ended: the whole answer into x->reply. */
void turbod_gen_reply_locked(turbod_gen *g);

/* Daemon thread: bytes of the stream. 0: suspended for now; MHD_CONTENT_READER_*. */
ssize_t turbod_stream_read(turbod_exchange *x, char *buf, size_t max);
/* sse.c, under x->mu: writes what is new to x->out. */
void turbod_sse_fill(turbod_gen *g);
/* The last event of a stream that failed; at most TURBOD_ERROR_EVENT bytes. */
#define TURBOD_ERROR_EVENT 2048
void turbod_sse_error(turbod_gen *g);
/* interactive.c, under x->mu. */
void turbod_interactive_settle(turbod_gen *g);
void turbod_interactive_reply(turbod_gen *g);
void turbod_interactive_fill(turbod_gen *g);
/* logprobs.c: records [from, to) of a choice as the value of "logprobs". */
void turbod_logprobs_json(turbod_buf *b, turbod_choice *c, size_t from, size_t to);

size_t turbod_choice_records(const turbod_choice *c);
void turbod_choice_end_json(turbod_buf *b, const turbod_choice *c); /* finish_reason, stop_reason */
void turbod_usage_json(turbod_buf *b, const turbod_gen *g);
/* The same of a stream that still runs, without what was cached. */
void turbod_usage_so_far_json(turbod_buf *b, const turbod_gen *g);
void turbod_timings_json(turbod_buf *b, const turbod_timings *t);
void turbod_ids_json(turbod_buf *b, const int32_t *ids, size_t n);
void turbod_choice_ids_json(turbod_buf *b, const turbod_choice *c, size_t from, size_t to);

#endif
