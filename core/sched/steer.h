/* core/sched/steer.h: what may steer a request from outside while it runs: a policy's hooks.
 *
 * Whoever submits a request may give it one; it belongs to the request from then on and is freed with it,
 * also when the submission fails. The engine knows nothing of what is behind it. Any slot but free may be
 * NULL. draw, token and finish run on the engine thread, between the model and the next step: they must be
 * short. A status other than TURBO_OK ends this request alone, with err as its message; EINVAL: it is
 * wrong, ELIMIT: it took too long or too much. */
#ifndef TURBOD_STEER_H
#define TURBOD_STEER_H

#include <stdbool.h>

#include "sched/request.h"

struct turbod_steer {
    /* Before a token is drawn. logits [V] are the model's, read only. May exchange p->program, whose
     * memory stays the steer's until its next call. */
    turbo_status (*draw)(turbod_steer *s, const float *logits, turbo_sample_params *p,
                         turbo_err *err);
    /* A token became part of the output; text [len] is what it adds, often part of a character or empty.
     * *stop: the answer ends with it. */
    turbo_status (*token)(turbod_steer *s, const turbod_event *ev, const char *text, size_t len,
                          bool *stop, turbo_err *err);
    void (*finish)(turbod_steer *s, const turbod_event *ev); /* the terminal event */
    void (*free)(turbod_steer *s);
};

#endif
