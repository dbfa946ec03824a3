/* core/cli/chat.c: turbo chat: a dialogue with a model in this process. Earlier turns are
 * kept as tokens and found in the KV cache, so each turn computes its own only. Main thread. */
#include <stdlib.h>

#include "cli/cli.h"
#include "util/err.h"

static const cli_flag flags[] = {
    CLI_SAMPLING_FLAGS,
    {"system", CLI_TEXT, "TEXT", "System message at the start.", 0, 0},
    {"stop", CLI_MULTI, "TEXT", "Ends an answer before this text; may be given several times.", 0,
     0},
    {NULL, CLI_SWITCH, NULL, NULL, 0, 0},
};

typedef struct local {
    cli_args *args;
    turbod_service *svc;
    turbod_dialogue dialogue;
} local;

/* The answer's ids go with its text, unless something cut the text. */
static void remember(local *l, const int32_t *ids, size_t n_ids, const turbod_slots *slots,
                     const cli_answer *an, const turbod_buf *text)
{
    turbo_err none;
    /* Without it the next turn is encoded anew: slower, not wrong. */
    if (text->len && turbod_dialogue_answer(&l->dialogue, ids, n_ids, slots, an->ids,
                                            an->cut ? 0 : an->n_ids, text->ptr, text->len, &none))
        turbod_dialogue_cut(&l->dialogue, 0);
}

static turbo_status ask(void *ctx, const turbod_message *msgs, size_t n_msgs, uint64_t round,
                        turbod_buf *text, double *rate, int32_t *n, turbo_err *err)
{
    local *l = ctx;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    cli_answer an = {0};
    turbod_chat_kit kit;
    turbod_slots slots = {0};
    turbo_status st = turbod_service_chat_kit(l->svc, &kit, err);
    if (!st)
        st = turbod_dialogue_set(&l->dialogue, msgs, n_msgs, err);
    if (!st)
        st = turbod_dialogue_prompt(&l->dialogue, &kit, &ids, &n_ids, &slots, err);
    if (st)
        return st;
    if (n_ids > INT32_MAX) {
        turbod_slots_free(&slots);
        free(ids);
        return turbod_err(err, TURBO_ELIMIT, "the dialogue is too long; /clear starts a new one");
    }
    turbod_request_spec spec = {.prompt = ids,
                                .n_prompt = (int32_t)n_ids,
                                .images = slots.v,
                                .n_images = (int32_t)slots.n,
                                .stop_ids = l->svc->stop_ids,
                                .n_stop_ids = l->svc->n_stop_ids};
    turbod_policy_result steered;
    st = cli_sampling(l->args, l->svc, &spec, &steered, err);
    if (cli_given(l->args, "seed"))
        spec.params.seed += round; /* repeatable, and /regen still says something else */
    if (!st) {
        st = cli_generate(l->svc, &spec, stdout, &an, err);
        turbod_buf_add(text, an.text.ptr, an.text.len);
        *rate = cli_rate(&an.timings);
        *n = an.timings.predicted_n;
        remember(l, ids, n_ids, &slots, &an, text);
        cli_answer_free(&an);
    }
    turbod_slots_free(&slots);
    turbod_policy_result_free(&steered);
    free(ids);
    return st;
}

static turbo_status image(void *ctx, const char *path, turbod_image **out, turbo_err *err)
{
    const local *l = ctx;
    return cli_read_image(l->svc, path, out, err);
}

static int run(cli_args *a)
{
    turbo_err err = {{0}};
    turbod_service s;
    local l = {.args = a, .svc = &s};
    turbo_status st = cli_open_model(a, &s, true, &err);
    int code = 0;
    if (st)
        return cli_fail(st, &err);
    if (!s.chat)
        st = turbod_err(&err, TURBO_EUNSUPPORTED, "no chat: %.200s", s.chat_reason);
    if (!st) {
        char where[256];
        snprintf(where, sizeof where, "%s on %s", s.name, turbod_engine_facts_of(s.engine)->device);
        cli_backend b = {.ctx = &l, .where = where, .ask = ask, .image = image};
        code = cli_dialog(&b, cli_text(a, "system"));
    }
    turbod_dialogue_free(&l.dialogue);
    turbod_service_close(&s);
    return st ? cli_fail(st, &err) : code;
}

const cli_cmd cli_chat = {
    .name = "chat",
    .words = "MODEL [flags]",
    .summary = "Talks with a model in this process.",
    .about = "A message ends with an empty line, so it may have several lines. Lines that begin "
             "with / are\n"
             "commands; /help lists them. Ctrl-C ends an answer, Ctrl-D the program.\n",
    .flags = flags,
    .keys =
        "model chat_template plugin_path policies default_policy log_level model_format quantize "
        "allow_nonfinite engine",
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
