/* core/cli/stream.c: one request to the engine of this process. The engine thread leaves events in a
 * buffer, the main thread prints them: a slow terminal never holds the engine. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cli/cli.h"
#include "util/err.h"

#define ANSWER_MAX ((size_t)64 << 20)
#define LOOK_MS 50 /* how often Ctrl-C is looked at */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

void cli_catch_interrupts(void)
{
    struct sigaction sa = {.sa_handler = on_interrupt}; /* no SA_RESTART: reads are to end */
    sigaction(SIGINT, &sa, NULL);
}

bool cli_interrupted(void)
{
    bool was = interrupted;
    interrupted = 0;
    return was;
}

bool cli_interrupt_waits(void)
{
    return interrupted;
}

typedef struct watch {
    pthread_mutex_t mu;
    pthread_cond_t cond;
    cli_answer *answer; /* guarded by mu */
    bool ended, failed;
    turbo_status status;
    turbo_err err;
} watch;

/* [engine thread] */
static void on_event(void *ctx, const turbod_event *ev)
{
    watch *w = ctx;
    cli_answer *a = w->answer;
    pthread_mutex_lock(&w->mu);
    if (ev->text_len)
        turbod_buf_add(&a->text, ev->text, ev->text_len);
    if (ev->kind == TURBOD_EV_TOKEN && a->n_ids < a->cap_ids)
        a->ids[a->n_ids++] = ev->token;
    if (ev->kind != TURBOD_EV_TOKEN) {
        a->finish = ev->finish;
        a->timings = ev->timings;
        a->cut = ev->kind == TURBOD_EV_ERROR || ev->stop_index >= 0;
        w->ended = true;
        if (ev->kind == TURBOD_EV_ERROR) {
            w->status = ev->status;
            turbod_err(&w->err, ev->status, "%s", ev->message ? ev->message : "the engine failed");
        }
    }
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mu);
}

static bool random_seed(uint64_t *seed)
{
    return getrandom(seed, sizeof *seed, 0) == (ssize_t)sizeof *seed;
}

turbo_status cli_sampling(const cli_args *a, const turbod_service *s, turbod_request_spec *spec,
                          turbod_policy_result *steered, turbo_err *err)
{
    *steered = (turbod_policy_result){0};
    const turbod_engine_facts *f = turbod_engine_facts_of(s->engine);
    turbo_sample_params *p = &spec->params;
    *p = s->defaults;
    p->temperature = (float)cli_num(a, "temperature", (double)p->temperature);
    p->top_p = (float)cli_num(a, "top-p", (double)p->top_p);
    p->top_k = (int32_t)cli_int(a, "top-k", p->top_k);
    p->min_p = (float)cli_num(a, "min-p", (double)p->min_p);
    p->repetition_penalty = (float)cli_num(a, "repetition-penalty", (double)p->repetition_penalty);
    if (cli_given(a, "seed"))
        p->seed = (uint64_t)cli_int(a, "seed", 0);
    else if (!random_seed(&p->seed))
        return turbod_err(err, TURBO_EINTERNAL, "no random numbers from the system; give --seed");
    spec->n_stops = a->n_multi;
    spec->stops = a->multi;
    int32_t room = f->session_len - spec->n_prompt;
    if (room < 1)
        return turbod_err(
            err, TURBO_ELIMIT,
            "the prompt has %d tokens; session_len is %d and an answer needs room too",
            spec->n_prompt, f->session_len);
    int64_t most = cli_int(a, "max-tokens", room);
    if (most > room)
        return turbod_err(
            err, TURBO_ELIMIT,
            "prompt %d + max-tokens %lld exceed session_len %d; lower --max-tokens to %d",
            spec->n_prompt, (long long)most, f->session_len, room);
    spec->max_tokens = (int32_t)most;
    turbod_policy *policy = *a->conf->default_policy
                                ? turbod_policies_find(s->policies, a->conf->default_policy)
                                : NULL;
    if (!policy)
        return TURBO_OK;
    turbo_status st = turbod_policy_request(policy, p, NULL, steered, err);
    turbod_policy_free(policy);
    *p = steered->params;
    spec->steer = steered->steer;
    steered->steer = NULL; /* the request's, as soon as it is submitted */
    return st;
}

/* Prints what came, until the terminal event. */
static void follow(watch *w, turbod_request *r, FILE *out)
{
    size_t shown = 0;
    bool ended = false;
    while (!ended) {
        char *part = NULL;
        size_t n = 0;
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_MS * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_mutex_lock(&w->mu);
        while (!w->ended && w->answer->text.len == shown)
            if (pthread_cond_timedwait(&w->cond, &w->mu, &until))
                break;
        ended = w->ended;
        n = w->answer->text.len - shown;
        if (n && out && (part = malloc(n)))
            memcpy(part, w->answer->text.ptr + shown, n);
        pthread_mutex_unlock(&w->mu);
        if (part) {
            fwrite(part, 1, n, out);
            fflush(out);
            free(part);
        }
        shown += n;
        if (cli_interrupted())
            turbod_request_cancel(r);
    }
}

turbo_status cli_generate(turbod_service *s, turbod_request_spec *spec, FILE *out,
                          cli_answer *answer, turbo_err *err)
{
    watch w = {.answer = answer};
    turbod_request *r = NULL;
    pthread_condattr_t monotonic;
    *answer = (cli_answer){.seed = spec->params.seed, .cap_ids = (size_t)spec->max_tokens};
    turbod_buf_init(&answer->text, ANSWER_MAX);
    turbod_buf_str(&answer->text, "");
    answer->ids = calloc(answer->cap_ids + 1, sizeof *answer->ids);
    if (!answer->ids)
        return turbod_err(err, TURBO_ENOMEM, "no memory for %d tokens", spec->max_tokens);
    pthread_mutex_init(&w.mu, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&w.cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    spec->on_event = on_event;
    spec->ctx = &w;
    (void)cli_interrupted(); /* an old Ctrl-C is not meant for this answer */
    turbo_status st = turbod_engine_submit(s->engine, spec, &r, err);
    if (!st) {
        follow(&w, r, out);
        turbod_request_release(r);
        st = w.status;
        if (st)
            *err = w.err;
    }
    pthread_cond_destroy(&w.cond);
    pthread_mutex_destroy(&w.mu);
    return st;
}

void cli_answer_free(cli_answer *answer)
{
    turbod_buf_free(&answer->text);
    free(answer->ids);
    answer->ids = NULL;
}

double cli_rate(const turbod_timings *t)
{
    return t->predicted_n > 1 && t->predicted_ms > 0
               ? (t->predicted_n - 1) * 1000.0 / t->predicted_ms
               : 0;
}
