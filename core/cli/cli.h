/* core/cli/cli.h: what the subcommands of turbo share. Main thread, except where stated.
 *
 * A subcommand is one file and one row: its flags, its words and the keys of the option table that it
 * honours. Help, man page and refusal of everything else come from the row. */
#ifndef TURBOD_CLI_H
#define TURBOD_CLI_H

#include <stdbool.h>
#include <stdio.h>

#include "engine/service.h"
#include "util/buf.h"

#define CLI_USAGE 64
#define CLI_MAX_FLAGS 24
#define CLI_MAX_MULTI 16

typedef enum { CLI_SWITCH, CLI_TEXT, CLI_INT, CLI_NUM, CLI_MULTI } cli_kind;

typedef struct cli_flag {
    const char *name; /* without --; NULL ends the list */
    cli_kind kind;
    const char *meta, *help;
    double lo, hi; /* of INT and NUM */
} cli_flag;

typedef struct cli_cmd cli_cmd;

typedef struct cli_args {
    const cli_cmd *cmd;
    const char *text[CLI_MAX_FLAGS]; /* last value of each flag, "" for a switch, NULL: not given */
    const char *multi[CLI_MAX_MULTI];
    int n_multi;
    const char *words[16]; /* what is no flag, in order */
    int n_words;
    bool help;
    const char *unknown; /* the flag that nobody knew */
    turbo_err wrong; /* what is wrong with a flag that is known */
    turbod_conf *conf; /* owned; NULL when the command has no keys */
} cli_args;

struct cli_cmd {
    const char *name, *words, *summary; /* name: one word, or two with a blank between */
    const char *about; /* more for --help and the man page; lines of at most 96 characters */
    const cli_flag *flags;
    const char
        *keys; /* keys of the option table, separated by spaces, "engine" for that group; "" none */
    int min_words, max_words;
    int (*run)(cli_args *a); /* exit code */
};

extern const cli_cmd cli_run, cli_chat, cli_client, cli_tokenize, cli_detokenize, cli_eval,
    cli_bench_serve, cli_bench_offline, cli_bench_decode, cli_bench_prefill, cli_bench_turns,
    cli_plan_cmd, cli_plugin, cli_policy, cli_doctor;
extern const cli_cmd *const cli_cmds[]; /* NULL-terminated */

/* ---- args.c ---- */

/* Parses the words behind the subcommand. False: *code is the exit code, everything was said. */
bool cli_parse(const cli_cmd *cmd, int argc, char **argv, cli_args *a, int *code);
void cli_args_free(cli_args *a);
const char *cli_text(const cli_args *a, const char *flag); /* NULL: not given */
bool cli_given(const cli_args *a, const char *flag);
double cli_num(const cli_args *a, const char *flag, double dflt);
int64_t cli_int(const cli_args *a, const char *flag, int64_t dflt);
void cli_help(const cli_cmd *cmd, FILE *out);
bool cli_key_wanted(const cli_cmd *cmd, const char *section, const char *key);

/* ---- common.c ---- */

/* Prints the error, returns its exit code. */
int cli_fail(turbo_status st, const turbo_err *err);
int cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The model in this process, with a KV cache for one sequence unless the user asked for another. */
turbo_status cli_open_model(cli_args *a, turbod_service *s, bool need_chat, turbo_err *err);
/* The same with a KV cache for `tokens` tokens. */
turbo_status cli_open_model_for(cli_args *a, turbod_service *s, bool need_chat, int64_t tokens,
                                turbo_err *err);
/* "1,4,7" or "1 4 7". */
turbo_status cli_parse_ids(const char *text, int32_t **ids, size_t *n, turbo_err *err);
/* A file, or standard input when path is NULL or "-"; valid UTF-8 is demanded. */
turbo_status cli_read_text(const char *path, turbod_buf *out, turbo_err *err);
/* A picture as the model of s takes it; EUNSUPPORTED when it takes none. */
turbo_status cli_read_image(const turbod_service *s, const char *path, turbod_image **out,
                            turbo_err *err);
/* A number as JSON that reads back as the same float. */
void cli_put_float(FILE *out, float v);
void cli_put_json(FILE *out, const char *s, size_t n);

/* ---- stream.c: one request to the engine of this process, watched by the main thread ---- */

/* Flags that set sampling parameters; CLI_SAMPLING_FLAGS belongs at the head of a flag table. */
#define CLI_SAMPLING_FLAGS                                                                         \
    {"max-tokens", CLI_INT, "N", "Longest answer. Default: what the session length leaves.", 1,    \
     16777216},                                                                                    \
        {"temperature", CLI_NUM, "T", "0 is greedy. Default: the model's.", 0, 2},                 \
        {"top-p", CLI_NUM, "P", "Nucleus sampling. Default: the model's.", 1e-6, 1},               \
        {"top-k", CLI_INT, "K", "The K likeliest tokens only; 0 all.", 0, 2147483647},             \
        {"min-p", CLI_NUM, "P", "Tokens at least P times as likely as the likeliest.", 0, 1},      \
        {"repetition-penalty", CLI_NUM, "R", "Over prompt and answer; 1 is off.", 1e-3, 10},       \
    {                                                                                              \
        "seed", CLI_INT, "N", "Makes the answer repeatable. Default: random.", 0, 9007199254740992 \
    }

typedef struct cli_answer {
    turbod_buf text;
    int32_t *ids;
    size_t n_ids, cap_ids;
    bool cut; /* by a stop string or Ctrl-C: the text is not that of all ids */
    turbod_finish finish;
    turbod_timings timings;
    uint64_t seed;
} cli_answer;

/* spec's program points into steered, which is to be freed when the request was submitted. */
turbo_status cli_sampling(const cli_args *a, const turbod_service *s, turbod_request_spec *spec,
                          turbod_policy_result *steered, turbo_err *err);
/* Runs the request to its end; text goes to out as it comes (NULL: nowhere). Ctrl-C gives
 * ECANCELLED. The answer is filled as far as it came; cli_answer_free in any case. */
turbo_status cli_generate(turbod_service *s, turbod_request_spec *spec, FILE *out,
                          cli_answer *answer, turbo_err *err);
void cli_answer_free(cli_answer *answer);
double cli_rate(const turbod_timings *t); /* sampled tokens a second, prompt left out */

/* Ctrl-C since the last call. cli_catch_interrupts turns SIGINT into this. */
void cli_catch_interrupts(void);
bool cli_interrupted(void);
bool cli_interrupt_waits(void); /* the same, without taking it */

/* ---- dialog.c: the chat loop over any backend ---- */

typedef struct cli_backend {
    void *ctx;
    const char *where; /* shown at the start */
    /* Answers the messages, writes text to stdout as it comes, keeps it in answer. rate: tokens a
     * second, n: tokens of the answer. */
    turbo_status (*ask)(void *ctx, const turbod_message *msgs, size_t n_msgs, uint64_t round,
                        turbod_buf *answer, double *rate, int32_t *n, turbo_err *err);
    /* The picture in a file; NULL: this backend takes none. */
    turbo_status (*image)(void *ctx, const char *path, turbod_image **out, turbo_err *err);
} cli_backend;

int cli_dialog(const cli_backend *b, const char *system);

/* ---- man.c ---- */
void cli_man(const char *page, FILE *out); /* "turbo.1", "turbod.8", "turbo.conf.5" */

#endif
