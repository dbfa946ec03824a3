/* core/sched/pace.h: how many prompt tokens a step may take beside the streams that are decoding.
 *
 * A prompt that joins a step makes every stream in it wait longer for its next token. The pace learns what
 * a step costs that only decodes, and what a prompt token adds, and allows as many as keep a mixed step
 * within `stretch` times a plain one. It steers speed only, never results. Engine thread. */
#ifndef TURBOD_PACE_H
#define TURBOD_PACE_H

#include <stdint.h>

#define TURBOD_PACE_LEAST 8         /* tokens a prompt always gets: it must advance */
#define TURBOD_PACE_UNSEEN_NS 500e3 /* what a prompt may always add to a step: nobody notices */

typedef struct turbod_pace {
    double stretch;
    double decode_ns[12]; /* of a step that only decodes, by log2 of its sequences; 0 not known */
    double token_ns;      /* what one prompt token adds; 0 not known */
} turbod_pace;

/* Prompt tokens for a step with n_decodes decoding sequences; at most `most`. */
int32_t turbod_pace_budget(const turbod_pace *p, int32_t n_decodes, int32_t most);
/* A step took ns. */
void turbod_pace_note(turbod_pace *p, int32_t n_decodes, int32_t n_prompt, int64_t ns);

#endif
