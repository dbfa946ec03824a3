/* core/engine/sample.c: from logits to tokens, text and endings. Engine thread only.
 * Nothing here allocates; the text of a token reaches the caller through the stop matcher. */
#include "engine/state.h"
#include "sched/holding.h"
#include "sched/steer.h"

#include "util/err.h"
#include "util/log.h"

static turbod_event finish_event(const turbod_request *r, turbod_finish finish)
{
    return (turbod_event){
        .kind = TURBOD_EV_DONE,
        .finish = finish,
        .stop_index = -1,
        .stop_token = -1,
        .timings =
            {
                .prompt_n = r->n_prompt,
                .cached_n = r->cached,
                .predicted_n = r->n_tokens - r->n_prompt,
                .queue_ms = (double)(r->t_start - r->t_submit) * 1e-6,
                .prompt_ms = (double)(r->t_first - r->t_start) * 1e-6,
                .predicted_ms = (double)(r->t_last - r->t_first) * 1e-6,
            },
    };
}

static bool is_stop_id(const turbod_request *r, int32_t id)
{
    for (int32_t i = 0; i < r->params.n_stop; i++)
        if (r->params.stop_ids[i] == id)
            return true;
    return false;
}

/* Flushes what the detokeniser and the stop matcher still hold, and ends the request. The flushed
 * text passes the stop strings once more, because it may complete one. */
static void finish(turbod_engine *e, turbod_request *r, turbod_finish why, int32_t stop_token)
{
    turbod_event ev = finish_event(r, why);
    ev.stop_token = stop_token;
    const char *tail = "";
    size_t n_tail = 0;
    if (r->detok)
        turbod_detok_flush(r->detok, &tail, &n_tail);
    int32_t hit = turbod_stop_push(&r->stop, tail, n_tail, r->include_stop, &ev.text, &ev.text_len);
    if (hit >= 0) {
        ev.finish = TURBOD_FINISH_STOP;
        ev.stop_index = hit;
        ev.stop_token = -1;
    } else {
        /* push shows what is decided; the undecided rest follows it in the same buffer */
        const char *rest;
        size_t n_rest;
        turbod_stop_flush(&r->stop, &rest, &n_rest);
        ev.text_len += n_rest;
    }
    turbod_end(e, r, &ev, ev.finish == TURBOD_FINISH_STOP ? TURBOD_END_STOP : TURBOD_END_LENGTH);
}

static void note_time(turbod_engine *e, turbod_request *r)
{
    int64_t now = turbod_now();
    if (!r->t_first) {
        r->t_first = now;
        turbod_hist_add(&e->metrics.ttft, (double)(now - r->t_submit) * 1e-9);
    } else {
        turbod_hist_add(&e->metrics.itl, (double)(now - r->t_last) * 1e-9);
    }
    r->t_last = now;
    atomic_fetch_add_explicit(&e->metrics.generation_tokens, 1, memory_order_relaxed);
}

/* Nothing to draw from. False: the request has ended. */
static bool drawn(turbod_engine *e, turbod_request *r, const turbo_sample_row *row)
{
    if (row->status == TURBO_EINVAL) {
        turbod_fail(e, r, TURBO_EINVAL, "the policy bans every token");
        return false;
    }
    if (!row->status && row->token >= 0 && row->token < e->facts.model.vocab)
        return true;
    turbod_log(TURBO_LOG_ERROR, "request %s: numeric error at token %d", r->id,
               r->n_tokens - r->unknown - r->n_prompt);
    turbod_holding_taint(r, e->pool);
    turbod_fail(e, r, TURBO_EDATA, "numeric_error: the model's logits are not finite");
    return false;
}

/* One sampled token of one request. */
static void advance(turbod_engine *e, turbod_request *r, const turbo_sample_row *row)
{
    int32_t at = r->n_tokens - r->unknown;
    if (!drawn(e, r, row))
        return;
    if (!r->by_device) {
        const struct turbod_sampler *s = &e->samplers[r->programs];
        s->vtbl->accept(s->self, r->sampler_state, &r->params, row->token);
    }
    r->tokens[at] = row->token;
    r->n_tokens = at + 1;
    r->unknown = 0;
    note_time(e, r);
    if (is_stop_id(r, row->token)) {
        finish(e, r, TURBOD_FINISH_STOP, row->token);
        return;
    }
    turbod_event ev = {
        .kind = TURBOD_EV_TOKEN,
        .text = "",
        .token = row->token,
        .logprob = row->logprob,
        .top = row->top,
        .n_top = row->n_top,
        .stop_index = -1,
        .stop_token = -1,
    };
    int32_t hit = -1;
    const char *text = "";
    size_t len = 0;
    if (r->detok) {
        turbod_detok_push(r->detok, row->token, &text, &len);
        hit = turbod_stop_push(&r->stop, text, len, r->include_stop, &ev.text, &ev.text_len);
    }
    turbo_err err = {{0}};
    bool stop = false;
    turbo_status st = r->steer && r->steer->token
                          ? r->steer->token(r->steer, &ev, text, len, &stop, &err)
                          : TURBO_OK;
    r->on_event(r->ctx, &ev);
    if (st) {
        turbod_fail(e, r, st, err.text);
    } else if (hit >= 0) {
        turbod_event done = finish_event(r, TURBOD_FINISH_STOP);
        done.stop_index = hit;
        done.text = "";
        turbod_end(e, r, &done, TURBOD_END_STOP);
    } else if (stop) {
        finish(e, r, TURBOD_FINISH_STOP, -1);
    } else if (r->n_tokens == r->n_prompt + r->max_tokens) {
        finish(e, r, TURBOD_FINISH_LENGTH, -1);
    }
}

/* Rows of the requests that one sampler draws for, into e->rows; returns how many. A request whose policy
 * fails now has ended and has no row. */
static int32_t gather_rows(turbod_engine *e, turbod_flight *f, bool programs)
{
    size_t V = (size_t)e->facts.model.vocab;
    int32_t n = 0;
    for (int32_t i = 0; i < f->n_rows; i++) {
        turbod_request *r = f->rows[i];
        if (!r || r->by_device || r->programs != programs)
            continue;
        float *logits = e->logits + (size_t)i * V;
        f->rows[i] = NULL;
        turbo_err err = {{0}};
        turbo_status st = r->steer && r->steer->draw
                              ? r->steer->draw(r->steer, logits, &r->params, &err)
                              : TURBO_OK;
        if (st) {
            turbod_fail(e, r, st, err.text);
            continue;
        }
        e->row_req[n] = r;
        e->rows[n] = (turbo_sample_row){
            .logits = logits,
            .state = r->sampler_state,
            .params = &r->params,
            .top = e->tops + (size_t)n * 20,
            .token = -1,
        };
        n++;
    }
    return n;
}

static void sample_some(turbod_engine *e, turbod_flight *f, bool programs)
{
    struct turbod_sampler *s = &e->samplers[programs];
    int32_t n = gather_rows(e, f, programs);
    if (!n)
        return;
    turbo_err err = {{0}};
    turbo_status st = s->vtbl->sample(s->self, e->rows, n, &err);
    for (int32_t i = 0; i < n; i++) {
        if (st)
            turbod_fail(e, e->row_req[i], TURBO_EINTERNAL, "the sampler failed");
        else
            advance(e, e->row_req[i], &e->rows[i]);
    }
    if (st)
        turbod_log(TURBO_LOG_ERROR, "sampler failed: %s", err.text);
}

/* Rows that the device has drawn. */
static void take_drawn(turbod_engine *e, turbod_flight *f)
{
    for (int32_t i = 0; i < f->n_rows; i++) {
        turbod_request *r = f->rows[i];
        const turbo_sample_row row = {.token = f->drawn[i].token, .status = f->drawn[i].status};
        if (!r || !r->by_device)
            continue;
        f->rows[i] = NULL;
        advance(e, r, &row);
    }
}

turbo_status turbod_place_rows(turbod_engine *e, turbod_flight *f, turbo_err *err)
{
    turbo_status st = TURBO_OK;
    f->n_rows = e->batch.b.n_rows;
    f->ahead = e->device_draws;
    for (int32_t i = 0; i < f->n_rows; i++) {
        turbod_request *r = f->rows[i] = e->batch.rows[i];
        f->drawn[i].place = r->by_device ? r->place : -1;
        f->ahead = f->ahead && r->by_device;
        if (r->by_device && !r->placed && !st)
            st = turbok_place_begin(e->device, r->place, &r->params, r->tokens, r->n_prompt,
                                    r->n_tokens, err);
        r->placed = true;
    }
    return st;
}

void turbod_expect_rows(turbod_flight *f)
{
    for (int32_t i = 0; i < f->n_rows; i++) {
        turbod_request *r = f->rows[i];
        if (!r)
            continue;
        r->tokens[r->n_tokens++] = ~i;
        r->unknown = 1;
    }
}

void turbod_sample_rows(turbod_engine *e, turbod_flight *f)
{
    take_drawn(e, f);
    sample_some(e, f, false);
    sample_some(e, f, true);
    f->n_rows = 0;
}
