/* core/sched/pace.h: how many prompt tokens a step may take beside the streams that are decoding.
 *
 * A prompt that joins a step makes every stream in it wait longer for its next token. The pace learns what
 * a step costs that only decodes, and what a prompt token adds beside it. At ease prompts may add half of
 * the plain step. The more prompt tokens wait, the more they may add, up to `stretch` times the plain step:
 * a long queue costs more by waiting, and by small batches, than streams gain. It steers speed only, never
 * results. Engine thread. */
#ifndef TURBOD_PACE_H
#define TURBOD_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define TURBOD_PACE_EASE 0.5 /* of a plain step: what prompts add while few tokens wait */
/* They may add twice that when what waits would take so many plain steps, three times at twice as many ... */
#define TURBOD_PACE_PATIENCE 2000.0
#define TURBOD_PACE_OFF 1000.0 /* a stretch from which on nobody minds waiting */
#define TURBOD_PACE_UNSEEN_NS 100e3 /* what a prompt may always add to a step: nobody notices */

typedef struct turbod_pace {
    double stretch;
    double decode_ns[12]; /* of a step that only decodes, by log2 of its sequences; 0 not known */
    double token_ns; /* what one prompt token adds; 0 not known */
    bool
        mixed; /* token_ns was seen beside decodes, where a token costs more than in a large chunk */
} turbod_pace;

/* Prompt tokens for a step with n_decodes decoding sequences: 1 to `most`. backlog: prompt tokens that are
 * not computed yet, of all requests. */
int32_t turbod_pace_budget(const turbod_pace *p, int32_t n_decodes, int64_t backlog, int32_t most);
/* A step took ns. */
void turbod_pace_note(turbod_pace *p, int32_t n_decodes, int32_t n_prompt, int64_t ns);

#endif
