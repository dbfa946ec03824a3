/* core/net/interactive.c: POST /v1/chat/interactive: a dialogue whose history the server keeps. Workers;
 * the end of an answer runs on the engine thread, bytes on the daemon thread.
 *
 * The request and the answer have LMDeploy's names. A stream is one JSON object a line. */
#include <string.h>

#include "net/gen.h"
#include "net/sessions.h"
#include "util/json.h"

typedef struct ask {
    const cJSON *prompt;
    char id[TURBOD_SESSION_ID + 1]; /* "" none given */
    bool interactive, cancel, no_output;
} ask;

static bool bad(turbod_exchange *x, const char *name, const cJSON *v, const char *expected)
{
    char shown[32];
    turbod_reply_error(x, 400, "invalid_value", name, "%s is %s; give %s", name,
                       turbod_json_show(v, shown), expected);
    return false;
}

static bool read_id(turbod_exchange *x, const cJSON *v, ask *a)
{
    int64_t n;
    if (!v || cJSON_IsNull(v))
        return true;
    if (cJSON_IsString(v) && turbod_session_id_ok(v->valuestring)) {
        memcpy(a->id, v->valuestring, strlen(v->valuestring) + 1);
        return true;
    }
    if (!turbod_json_int(v, -1, TURBOD_SAFE_INT, &n))
        return bad(x, "session_id", v, "a whole number from 0 on, or 1 to 64 of A-Z a-z 0-9 . _ -");
    if (n >= 0)
        snprintf(a->id, sizeof a->id, "%lld", (long long)n);
    return true;
}

static bool read_flag(turbod_exchange *x, const cJSON *body, const char *name, bool *out)
{
    const cJSON *v = turbod_json_get(body, name);
    if (!v || cJSON_IsNull(v))
        return true;
    if (!cJSON_IsBool(v))
        return bad(x, name, v, "true or false");
    *out = cJSON_IsTrue(v);
    return true;
}

static bool read_ask(turbod_exchange *x, const cJSON *body, ask *a)
{
    const cJSON *len = turbod_json_get(body, "request_output_len");
    a->prompt = turbod_json_get(body, "prompt");
    a->no_output = cJSON_IsNumber(len) && len->valuedouble == 0;
    return read_id(x, turbod_json_get(body, "session_id"), a) &&
           read_flag(x, body, "interactive_mode", &a->interactive) &&
           read_flag(x, body, "cancel", &a->cancel);
}

/* A body without a question: cancel, or LMDeploy's way to end a session. */
static void answer_nothing(turbod_exchange *x, const ask *a)
{
    bool done = a->cancel ? turbod_session_cancel(x->http, x->label, a->id)
                          : turbod_session_end(x->http, x->label, a->id);
    if (!a->id[0] || !done) {
        turbod_reply_error(x, 404, "session_not_found", "session_id",
                           a->cancel ? "no answer is being made for this session"
                                     : "there is no session of this id");
        return;
    }
    x->reply.status = 200;
    turbod_buf_printf(&x->reply.body,
                      "{\"text\":\"\",\"tokens\":0,\"input_tokens\":0,\"history_tokens\":0,"
                      "\"finish_reason\":\"stop\",\"session_id\":\"%s\"}",
                      a->id);
}

/* ---- a turn ------------------------------------------------------------------------------------------------ */

static bool take_session(turbod_gen *g, const ask *a)
{
    turbod_exchange *x = g->x;
    char id[TURBOD_SESSION_ID + 1];
    memcpy(id, a->id, sizeof id);
    if (!id[0])
        turbod_session_new_id(x->http, x->label, id);
    switch (turbod_session_take(x->http, x->label, id, x->svc, true, &g->session)) {
    case SESSION_OK: break;
    case SESSION_BUSY:
        turbod_reply_error(x, 400, "session_busy", "session_id",
                           "an answer is being made for this session; wait for its end, cancel it, "
                           "or use another session_id");
        return false;
    case SESSION_OTHER_MODEL:
        turbod_reply_error(
            x, 400, "session_of_other_model", "session_id",
            "this session was begun with another model than \"%s\"; name that one in "
            "model, or use another session_id",
            x->svc->name);
        return false;
    case SESSION_NO_MEMORY:
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for a session");
        return false;
    default:
        turbod_reply_error(x, 429, "rate_limit_exceeded", "session_id",
                           "all %d sessions are in use; try again later", x->http->max_sessions);
        x->reply.retry_after = 2;
        return false;
    }
    g->turns_before = g->session->dialogue.n;
    g->history = g->session->dialogue.n_ids;
    g->end_session = !a->interactive;
    return true;
}

static bool add_prompt(turbod_gen *g, const cJSON *prompt)
{
    turbod_exchange *x = g->x;
    turbod_dialogue *d = &g->session->dialogue;
    turbod_messages m = {0};
    turbo_err err = {{0}};
    turbo_status st = TURBO_OK;
    if (cJSON_IsString(prompt) && prompt->valuestring[0]) {
        turbod_message one = {.role = "user",
                              .content = prompt->valuestring,
                              .content_len = strlen(prompt->valuestring)};
        st = turbod_dialogue_add(d, &one, &err);
    } else if (cJSON_IsArray(prompt)) {
        if (!turbod_messages_read(x, prompt, &g->params.warnings, &m)) {
            turbod_messages_free(&m);
            return false;
        }
        for (size_t i = 0; i < m.n && !st; i++)
            st = turbod_dialogue_add(d, &m.v[i], &err);
        turbod_messages_free(&m);
    } else {
        return bad(x, "prompt", prompt, "the next message, or a list of messages");
    }
    if (st)
        turbod_reply_status(x, st, "prompt", &err);
    return !st;
}

static bool make_prompt(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    turbod_chat_kit kit;
    turbo_err err = {{0}};
    turbo_status st = turbod_service_chat_kit(x->svc, &kit, &err);
    if (st) {
        turbod_reply_error(x, 400, "no_chat_template", NULL,
                           "this model has no chat template; use POST /v1/completions");
        return false;
    }
    st = turbod_dialogue_prompt(&g->session->dialogue, &kit, &g->prompts[0].ids, &g->prompts[0].n,
                                &g->prompts[0].slots, &err);
    if (st)
        turbod_reply_status(x, st, "prompt", &err);
    return !st;
}

static bool start_turn(turbod_gen *g, const cJSON *body, const ask *a)
{
    return turbod_params_read(g->x, body, FOR_INTERACTIVE, &g->params) && take_session(g, a) &&
           add_prompt(g, a->prompt) && make_prompt(g) && turbod_gen_adopt(g) && turbod_gen_start(g);
}

void turbod_api_interactive(turbod_exchange *x)
{
    cJSON *body = turbod_body_json(x);
    ask a = {0};
    if (!body)
        return;
    if (turbod_choose_by_body(x, body) && read_ask(x, body, &a)) {
        bool empty = !a.prompt || cJSON_IsNull(a.prompt) ||
                     (cJSON_IsString(a.prompt) && !a.prompt->valuestring[0]);
        turbod_gen *g = NULL;
        if (a.cancel || (empty && (a.no_output || !a.interactive)))
            answer_nothing(x, &a);
        else if (!(g = turbod_gen_new(x, FOR_INTERACTIVE, 1)))
            turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        else if (!start_turn(g, body, &a)) {
            pthread_mutex_lock(&x->mu);
            turbod_interactive_settle(g); /* before the refusal goes out: the next try must find it free */
            pthread_mutex_unlock(&x->mu);
            if (!x->gen)
                turbod_gen_free(g);
        }
    }
    cJSON_Delete(body);
}

/* ---- the end of a turn --------------------------------------------------------------------------------------- */

/* Puts the session back: with the answer, or, when there is none, as it was before the question. Under
 * x->mu, once. */
void turbod_interactive_settle(turbod_gen *g)
{
    turbod_session *s = g->session;
    turbo_err err = {{0}};
    if (!s)
        return;
    g->session = NULL;
    turbod_choice *c = g->choices;
    bool answered = c && c->done && !g->fail_status && c->ended_well;
    if (answered) {
        memcpy(g->session_id, s->id, sizeof g->session_id);
        /* A stop string cut the text: it is not that of all ids, and will be encoded anew. */
        size_t n = c->stop_index >= 0 ? 0 : c->ids.len / sizeof(int32_t);
        if (turbod_dialogue_answer(&s->dialogue, g->prompts[0].ids, g->prompts[0].n,
                                   &g->prompts[0].slots, (const int32_t *)(const void *)c->ids.ptr,
                                   n, c->text.len ? c->text.ptr : "", c->text.len, &err)) {
            g->fail_status = 503;
            g->fail_code = "out_of_memory";
            snprintf(g->fail_text, sizeof g->fail_text, "no memory for the session");
        }
    }
    if (!answered || g->fail_status)
        turbod_dialogue_cut(&s->dialogue, g->turns_before);
    s->doomed = s->doomed || g->end_session;
    turbod_session_give(g->x->http, s);
}

/* ---- bytes ------------------------------------------------------------------------------------------------- */

static void object(turbod_buf *b, const turbod_gen *g, const char *text, size_t len, bool end)
{
    const turbod_choice *c = &g->choices[0];
    turbod_buf_str(b, "{\"text\":\"");
    turbod_buf_json(b, text, len);
    turbod_buf_printf(b, "\",\"tokens\":%d,\"input_tokens\":%zu,\"history_tokens\":%zu,",
                      end ? c->timings.predicted_n : c->n_tokens,
                      g->prompts[0].n - (g->history < g->prompts[0].n ? g->history : 0), g->history);
    if (!end) {
        turbod_buf_str(b, "\"finish_reason\":null}");
        return;
    }
    turbod_choice_end_json(b, c);
    turbod_buf_printf(b, ",\"session_id\":\"%s\",\"cached_tokens\":%d,\"timings\":", g->session_id,
                      c->timings.cached_n);
    turbod_timings_json(b, &c->timings);
    if (g->params.warnings.len) {
        turbod_buf_str(b, ",\"warnings\":[");
        turbod_buf_add(b, g->params.warnings.ptr, g->params.warnings.len);
        turbod_buf_str(b, "]");
    }
    turbod_buf_str(b, "}");
}

void turbod_interactive_reply(turbod_gen *g)
{
    turbod_choice *c = &g->choices[0];
    g->x->reply.status = 200;
    object(&g->x->reply.body, g, c->text.len ? c->text.ptr : "", c->text.len, true);
}

void turbod_interactive_fill(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    turbod_buf *o = &x->out;
    turbod_choice *c = &g->choices[0];
    if (g->stream_over)
        return;
    if (g->fail_status) {
        turbod_sse_error(g);
        return;
    }
    bool end = turbod_gen_over(g);
    if (c->text_sent < c->text.len || end) {
        object(o, g, c->text.len ? c->text.ptr + c->text_sent : "", c->text.len - c->text_sent, end);
        turbod_buf_str(o, "\n");
        c->text_sent = c->text.len;
        g->stream_over = end;
    } else if (x->ping) {
        turbod_buf_str(o, "\n"); /* an empty line, which clients skip */
    }
    x->ping = false;
}
