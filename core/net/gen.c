/* core/net/gen.c: from checked parameters to engine requests, and their events back into choices.
 * Start on a worker, events on the engine thread, replies on the daemon thread; exchange.mu guards. */
#include "net/gen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "net/sessions.h"
#include "util/err.h"

#define MAX_TEXT ((size_t)256 << 20)

turbod_gen *turbod_gen_new(turbod_exchange *x, int kind, int n_prompts)
{
    uint64_t r[2] = {0, 0};
    turbod_gen *g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->x = x;
    g->kind = kind;
    g->created = (int64_t)time(NULL);
    g->prompts = calloc((size_t)n_prompts, sizeof *g->prompts);
    g->n_prompts = n_prompts;
    if (getrandom(r, sizeof r, 0) != (ssize_t)sizeof r)
        r[0] = (uint64_t)(uintptr_t)g, r[1] = (uint64_t)turbod_ms();
    snprintf(g->id, sizeof g->id, "%s-%016llx%08llx", kind == FOR_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)r[0], (unsigned long long)(r[1] & 0xffffffffu));
    if (!g->prompts) {
        free(g);
        return NULL;
    }
    return g;
}

void turbod_gen_free(turbod_gen *g)
{
    if (!g)
        return;
    turbod_interactive_settle(g); /* it was never submitted */
    for (int i = 0; i < g->n_choices; i++) {
        turbod_choice *c = &g->choices[i];
        turbod_request_release(c->request);
        turbod_policy_result_free(&c->steered);
        turbod_buf_free(&c->text);
        turbod_buf_free(&c->records);
        turbod_buf_free(&c->tops);
        turbod_buf_free(&c->ids);
        turbod_detok_free(c->detok);
    }
    for (int i = 0; i < g->n_prompts; i++) {
        free(g->prompts[i].ids);
        turbod_slots_free(&g->prompts[i].slots);
    }
    turbod_buf_free(&g->prefix);
    turbod_params_free(&g->params);
    free(g->choices);
    free(g->prompts);
    free(g);
}

size_t turbod_choice_records(const turbod_choice *c)
{
    return c->records.len / sizeof(turbod_record);
}

bool turbod_gen_over(const turbod_gen *g)
{
    return g && (g->fail_status || (g->submitted && !g->n_open));
}

void turbod_gen_cancel_locked(turbod_gen *g)
{
    for (int i = 0; i < g->n_choices; i++)
        if (g->choices[i].request && !g->choices[i].done)
            turbod_request_cancel(g->choices[i].request);
}

void turbod_gen_fail_locked(turbod_gen *g, int status, const char *code, const char *text)
{
    if (turbod_gen_over(g) && !g->fail_status)
        return; /* the answer is complete already */
    if (!g->fail_status) {
        g->fail_status = status;
        g->fail_code = code;
        snprintf(g->fail_text, sizeof g->fail_text, "%s", text ? text : "the request failed");
        turbod_clean_message(g->fail_text);
    }
    turbod_gen_cancel_locked(g);
    if (g->x->job_done) {
        g->x->reply_ready = true;
        turbod_exchange_wake_locked(g->x);
    }
}

/* ---- events ------------------------------------------------------------------------------------------ */

static void keep_record(turbod_choice *c, const turbod_event *ev)
{
    turbod_record r = {.id = ev->token,
                       .logprob = ev->logprob,
                       .top = c->tops.len / sizeof(turbo_logprob),
                       .n_top = ev->n_top};
    if (ev->n_top)
        turbod_buf_add(&c->tops, ev->top, (size_t)ev->n_top * sizeof *ev->top);
    turbod_buf_add(&c->records, &r, sizeof r);
}

static void on_error(turbod_choice *c, const turbod_event *ev)
{
    turbod_gen *g = c->gen;
    switch (ev->status) {
    case TURBO_ECANCELLED:
        turbod_gen_fail_locked(g, 503, "request_cancelled", ev->message);
        break;
    case TURBO_EBUSY:
        turbod_gen_fail_locked(g, 503, "timeout", ev->message);
        break;
    case TURBO_EDATA:
        turbod_gen_fail_locked(g, 500, "numeric_error", ev->message);
        break;
    case TURBO_EINVAL: /* of a running request only its policy can be wrong or too slow */
        turbod_gen_fail_locked(g, 500, "script_error", ev->message);
        break;
    case TURBO_ELIMIT: turbod_gen_fail_locked(g, 500, "script_timeout", ev->message); break;
    default:
        turbod_gen_fail_locked(g, 503, "engine_error", ev->message);
    }
}

/* Engine thread. A short copy under the lock; formatting is left to the daemon thread. */
static void on_event(void *ctx, const turbod_event *ev)
{
    turbod_choice *c = ctx;
    turbod_gen *g = c->gen;
    turbod_exchange *x = g->x;
    bool terminal = ev->kind != TURBOD_EV_TOKEN;
    pthread_mutex_lock(&x->mu);
    if (ev->text_len)
        turbod_buf_add(&c->text, ev->text, ev->text_len);
    if (!terminal) {
        if (!x->t_first)
            x->t_first = turbod_ms();
        c->n_tokens++;
        if (g->params.s.n_logprobs >= 0 || g->params.return_ids)
            keep_record(c, ev);
        if (g->kind == FOR_INTERACTIVE)
            turbod_buf_add(&c->ids, &ev->token, sizeof ev->token);
    } else {
        c->done = true;
        c->ended_well = ev->kind == TURBOD_EV_DONE;
        c->timings = ev->timings;
        c->finish = ev->finish;
        c->stop_index = ev->stop_index;
        c->stop_token = ev->stop_token;
        if (ev->kind == TURBOD_EV_ERROR)
            on_error(c, ev); /* while the answer still counts as open: a complete one cannot fail */
        g->n_open--;
    }
    if (c->text.failed || c->records.failed || c->tops.failed || c->ids.failed)
        turbod_gen_fail_locked(g, 503, "out_of_memory", "no memory for the answer");
    if (terminal)
        turbod_interactive_settle(g);
    if (x->job_done) {
        if (turbod_gen_over(g))
            x->reply_ready = true;
        if (x->reply_ready)
            turbod_exchange_wake_locked(x);
    }
    pthread_mutex_unlock(&x->mu);
    if (terminal)
        turbod_exchange_release(x);
}

/* ---- start ------------------------------------------------------------------------------------------- */

static bool check_lengths(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    const turbod_engine_facts *f = turbod_engine_facts_of(x->svc->engine);
    int64_t asked = g->params.max_tokens, most = f->session_len;
    size_t longest = 0;
    for (int i = 0; i < g->n_prompts; i++)
        longest = g->prompts[i].n > longest ? g->prompts[i].n : longest;
    if (longest >= (size_t)most || (asked && (int64_t)longest + asked > most)) {
        if (asked)
            turbod_reply_error(x, 400, "context_length_exceeded",
                               g->kind == FOR_CHAT ? "messages" : "prompt",
                               "this model's context is %lld tokens; the prompt has %zu and "
                               "max_tokens is %lld; shorten the prompt or lower max_tokens",
                               (long long)most, longest, (long long)asked);
        else
            turbod_reply_error(x, 400, "context_length_exceeded",
                               g->kind == FOR_CHAT ? "messages" : "prompt",
                               "this model's context is %lld tokens; the prompt has %zu; shorten it",
                               (long long)most, longest);
        return false;
    }
    if (asked && g->params.s.min_tokens > asked) {
        turbod_reply_error(x, 400, "invalid_value", "min_tokens",
                           "min_tokens is %d, max_tokens only %lld", g->params.s.min_tokens,
                           (long long)asked);
        return false;
    }
    g->max_tokens = (int32_t)asked;
    return true;
}

/* Seconds until a place in the queue is likely: what waits, times the mean time of a request. */
static int retry_after(turbod_engine *e)
{
    turbod_metrics *m = turbod_engine_metrics(e);
    uint64_t n = 0;
    for (int i = 0; i <= m->e2e.n; i++)
        n += atomic_load_explicit(&m->e2e.counts[i], memory_order_relaxed);
    double mean = n ? (double)atomic_load(&m->e2e.sum_nano) * 1e-9 / (double)n : 1;
    double running = (double)atomic_load(&m->running);
    double s = mean / (running > 1 ? running : 1) + 1;
    return s > 30 ? 30 : (int)s;
}

static void refuse_submit(turbod_gen *g, turbo_status st, const turbo_err *err)
{
    turbod_exchange *x = g->x;
    if (st == TURBO_EBUSY && !atomic_load(&x->http->quiet) &&
        turbod_engine_age(x->svc->engine) >= 0) {
        turbod_reply_status(x, st, NULL, err);
        x->reply.retry_after = retry_after(x->svc->engine);
    } else if (st == TURBO_EBUSY) {
        turbod_reply_error(x, 503, "shutting_down", NULL, "%s", err->text);
        x->reply.retry_after = 5;
    } else {
        turbod_reply_status(x, st, NULL, err);
    }
}

static bool submit_one(turbod_gen *g, turbod_choice *c, const char *const *stops)
{
    turbod_exchange *x = g->x;
    const turbod_params *p = &g->params;
    turbod_engine *e = x->svc->engine;
    const turbod_prompt *prompt = &g->prompts[c->prompt];
    turbo_err err = {{0}};
    turbod_request *r = NULL;
    turbod_request_spec spec = {
        .prompt = prompt->ids,
        .n_prompt = (int32_t)prompt->n,
        .images = prompt->slots.v,
        .n_images = (int32_t)prompt->slots.n,
        .max_tokens = g->max_tokens ? g->max_tokens
                                    : turbod_engine_facts_of(e)->session_len - (int32_t)prompt->n,
        .params = c->steered.params,
        .stops = stops,
        .n_stops = p->n_stops,
        .stop_ids = p->stop_ids,
        .n_stop_ids = p->n_stop_ids,
        .ignore_eos = p->ignore_eos,
        .include_stop = p->include_stop,
        .keep_special = p->keep_special,
        .queue_timeout_ms = x->rules->queue_ms,
        .timeout_ms = x->rules->request_ms,
        .tenant = x->label,
        .priority = p->priority,
        .cache_salt = p->cache_salt,
        .id = x->id,
        .steer = c->steered.steer,
        .on_event = on_event,
        .ctx = c,
    };
    c->steered.steer = NULL; /* the request's now */
    turbod_exchange_ref(x);
    pthread_mutex_lock(&x->mu);
    g->n_open++; /* its events may come before submit returns */
    pthread_mutex_unlock(&x->mu);
    turbo_status st = turbod_engine_submit(e, &spec, &r, &err);
    pthread_mutex_lock(&x->mu);
    if (st) {
        g->n_open--;
        bool full = st == TURBO_EBUSY;
        turbod_gen_fail_locked(g, full ? 429 : 503, full ? "rate_limit_exceeded" : "engine_error",
                               err.text); /* ends the ones before it */
    } else {
        c->request = r;
        if (g->session)
            turbod_session_runs(x->http, g->session, r);
        if (x->gone || g->fail_status)
            turbod_request_cancel(r);
    }
    pthread_mutex_unlock(&x->mu);
    if (!st)
        return true;
    turbod_exchange_release(x);
    refuse_submit(g, st, &err);
    return false;
}

static bool make_choices(turbod_gen *g)
{
    int n = (int)g->params.n * g->n_prompts;
    g->choices = calloc((size_t)n, sizeof *g->choices);
    if (!g->choices)
        return false;
    g->n_choices = n;
    for (int i = 0; i < n; i++) {
        turbod_choice *c = &g->choices[i];
        c->gen = g;
        c->index = i;
        c->prompt = i / (int)g->params.n;
        c->first_of_prompt = i % (int)g->params.n == 0;
        c->stop_index = c->stop_token = -1;
        turbod_buf_init(&c->text, MAX_TEXT);
        turbod_buf_init(&c->records, MAX_TEXT);
        turbod_buf_init(&c->tops, MAX_TEXT);
        turbod_buf_init(&c->ids, MAX_TEXT);
    }
    return true;
}

bool turbod_gen_start(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    const char *stops[TURBOD_MAX_STOPS];
    if (!check_lengths(g) || !turbod_params_policy(x, &g->params))
        return false;
    if (g->params.stream && !turbod_buf_reserve(&x->out, TURBOD_ERROR_EVENT)) {
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
        return false;
    }
    for (int i = 0; i < g->n_choices; i++) /* all before the first is submitted */
        if (!turbod_params_steer(x, &g->params, g->params.s.seed + (uint64_t)(i % (int)g->params.n),
                                 &g->choices[i].steered))
            return false;
    for (int i = 0; i < g->params.n_stops; i++)
        stops[i] = g->params.stops[i];
    for (int i = 0; i < g->n_choices; i++)
        if (!submit_one(g, &g->choices[i], stops))
            return false;
    pthread_mutex_lock(&x->mu);
    g->submitted = true;
    if (atomic_load(&x->http->ending))
        turbod_gen_fail_locked(g, 503, "shutting_down", "the server is shutting down");
    if (g->params.stream) {
        x->reply.status = 200;
        x->reply.stream = true;
        x->reply.type =
            g->kind == FOR_INTERACTIVE ? "application/x-ndjson" : "text/event-stream";
        x->last_out = turbod_ms();
    }
    pthread_mutex_unlock(&x->mu);
    return true;
}

/* Makes the choices and hands g to the exchange; from now on its owner frees it. */
bool turbod_gen_adopt(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    bool ok = make_choices(g);
    pthread_mutex_lock(&x->mu);
    x->gen = g;
    pthread_mutex_unlock(&x->mu);
    if (!ok)
        turbod_reply_error(x, 503, "out_of_memory", NULL, "no memory for this request");
    return ok;
}

/* ---- parts of answers ---------------------------------------------------------------------------------- */

void turbod_timings_json(turbod_buf *b, const turbod_timings *t)
{
    double decode_n = t->predicted_n > 1 ? t->predicted_n - 1 : 0;
    int32_t fresh = t->prompt_n - t->cached_n;
    turbod_buf_printf(b,
                      "{\"cache_n\":%d,\"prompt_n\":%d,\"prompt_ms\":%.3f,"
                      "\"prompt_per_second\":%.3f,\"predicted_n\":%d,\"predicted_ms\":%.3f,"
                      "\"predicted_per_second\":%.3f,\"queue_ms\":%.3f}",
                      t->cached_n, t->prompt_n, t->prompt_ms,
                      t->prompt_ms > 0 ? fresh * 1000.0 / t->prompt_ms : 0, t->predicted_n,
                      t->predicted_ms, t->predicted_ms > 0 ? decode_n * 1000.0 / t->predicted_ms : 0,
                      t->queue_ms);
}

void turbod_usage_json(turbod_buf *b, const turbod_gen *g)
{
    int64_t prompt = 0, cached = 0, out = 0;
    for (int i = 0; i < g->n_choices; i++) {
        const turbod_choice *c = &g->choices[i];
        prompt += c->first_of_prompt ? c->timings.prompt_n : 0;
        cached += c->first_of_prompt ? c->timings.cached_n : 0;
        out += c->timings.predicted_n;
    }
    turbod_buf_printf(b,
                      "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
                      "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
                      (long long)prompt, (long long)out, (long long)(prompt + out),
                      (long long)cached);
}

void turbod_usage_so_far_json(turbod_buf *b, const turbod_gen *g)
{
    int64_t prompt = 0, out = 0;
    for (int i = 0; i < g->n_choices; i++) {
        const turbod_choice *c = &g->choices[i];
        prompt += c->first_of_prompt ? (int64_t)g->prompts[c->prompt].n : 0;
        out += c->done ? c->timings.predicted_n : c->n_tokens;
    }
    turbod_buf_printf(b,
                      "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld}",
                      (long long)prompt, (long long)out, (long long)(prompt + out));
}

void turbod_choice_end_json(turbod_buf *b, const turbod_choice *c)
{
    const turbod_params *p = &c->gen->params;
    turbod_buf_printf(b, "\"finish_reason\":\"%s\",\"stop_reason\":",
                      c->finish == TURBOD_FINISH_LENGTH ? "length" : "stop");
    if (c->stop_index >= 0 && c->stop_index < p->n_stops) {
        const char *s = p->stops[c->stop_index];
        turbod_buf_str(b, "\"");
        turbod_buf_json(b, s, strlen(s));
        turbod_buf_str(b, "\"");
        return;
    }
    for (int32_t i = 0; i < p->n_user_stop_ids; i++)
        if (c->stop_token >= 0 && p->stop_ids[i] == c->stop_token) {
            turbod_buf_printf(b, "%d", c->stop_token);
            return;
        }
    turbod_buf_str(b, "null");
}

void turbod_ids_json(turbod_buf *b, const int32_t *ids, size_t n)
{
    turbod_buf_str(b, "[");
    for (size_t i = 0; i < n; i++)
        turbod_buf_printf(b, i ? ",%d" : "%d", ids[i]);
    turbod_buf_str(b, "]");
}

void turbod_choice_ids_json(turbod_buf *b, const turbod_choice *c, size_t from, size_t to)
{
    turbod_buf_str(b, "[");
    for (size_t i = from; i < to; i++) {
        turbod_record r;
        memcpy(&r, c->records.ptr + i * sizeof r, sizeof r);
        turbod_buf_printf(b, i > from ? ",%d" : "%d", r.id);
    }
    turbod_buf_str(b, "]");
}

/* ---- whole answers -------------------------------------------------------------------------------------- */

static void choice_json(turbod_buf *b, turbod_choice *c)
{
    turbod_gen *g = c->gen;
    size_t n = turbod_choice_records(c);
    turbod_buf_printf(b, "{\"index\":%d,", c->index);
    turbod_buf_str(b, g->kind == FOR_CHAT
                          ? "\"message\":{\"role\":\"assistant\",\"content\":\""
                          : "\"text\":\"");
    turbod_buf_json(b, c->text.len ? c->text.ptr : "", c->text.len);
    turbod_buf_str(b, g->kind == FOR_CHAT ? "\"},\"logprobs\":" : "\",\"logprobs\":");
    if (g->params.s.n_logprobs >= 0)
        turbod_logprobs_json(b, c, 0, n);
    else
        turbod_buf_str(b, "null");
    turbod_buf_str(b, ",");
    turbod_choice_end_json(b, c);
    if (g->params.return_ids) {
        turbod_buf_str(b, ",\"token_ids\":");
        turbod_choice_ids_json(b, c, 0, n);
        turbod_buf_str(b, ",\"prompt_token_ids\":");
        turbod_ids_json(b, g->prompts[c->prompt].ids, g->prompts[c->prompt].n);
    }
    turbod_buf_str(b, "}");
}

/* Several choices count as one: tokens add up, times are those of the slowest. */
static turbod_timings all_timings(const turbod_gen *g)
{
    turbod_timings t = {0};
    for (int i = 0; i < g->n_choices; i++) {
        const turbod_timings *c = &g->choices[i].timings;
        t.prompt_n += g->choices[i].first_of_prompt ? c->prompt_n : 0;
        t.cached_n += g->choices[i].first_of_prompt ? c->cached_n : 0;
        t.predicted_n += c->predicted_n;
        t.queue_ms = c->queue_ms > t.queue_ms ? c->queue_ms : t.queue_ms;
        t.prompt_ms = c->prompt_ms > t.prompt_ms ? c->prompt_ms : t.prompt_ms;
        t.predicted_ms = c->predicted_ms > t.predicted_ms ? c->predicted_ms : t.predicted_ms;
    }
    return t;
}

void turbod_gen_reply_locked(turbod_gen *g)
{
    turbod_exchange *x = g->x;
    if (g->fail_status) {
        turbod_reply_error(x, g->fail_status, g->fail_code, NULL, "%s", g->fail_text);
        if (g->fail_status == 503)
            x->reply.retry_after = 2;
        return;
    }
    if (g->kind == FOR_INTERACTIVE) {
        turbod_interactive_reply(g);
        return;
    }
    turbod_buf *b = &x->reply.body;
    const char *model = x->svc->name;
    turbod_timings t = all_timings(g);
    x->reply.status = 200;
    turbod_buf_printf(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":\"", g->id,
                      g->kind == FOR_CHAT ? "chat.completion" : "text_completion",
                      (long long)g->created);
    turbod_buf_json(b, model, strlen(model));
    turbod_buf_str(b, "\",\"choices\":[");
    for (int i = 0; i < g->n_choices; i++) {
        if (i)
            turbod_buf_str(b, ",");
        choice_json(b, &g->choices[i]);
    }
    turbod_buf_str(b, "],\"usage\":");
    turbod_usage_json(b, g);
    turbod_buf_str(b, ",\"timings\":");
    turbod_timings_json(b, &t);
    if (g->params.warnings.len) {
        turbod_buf_str(b, ",\"warnings\":[");
        turbod_buf_add(b, g->params.warnings.ptr, g->params.warnings.len);
        turbod_buf_str(b, "]");
    }
    turbod_buf_str(b, "}");
}
