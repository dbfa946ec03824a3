/* core/engine/stop.h: stop strings over a stream of text.
 *
 * Text that could be the beginning of a stop string is held back until it is decided, so a stop
 * string is found however tokens cut it, and nothing is shown and then regretted. One owner; all
 * memory is taken by turbod_stop_init. */
#ifndef TURBOD_STOP_H
#define TURBOD_STOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct turbod_stop {
    char *text;      /* [n] strings one after another */
    uint32_t *len;   /* [n] */
    int32_t n;
    char *hold;      /* [cap] text not yet shown; text of the last push lies before it is cut */
    size_t n_hold, cap;
    size_t shown;    /* bytes of hold that the caller took with the last push */
} turbod_stop;

/* Largest text of one push. */
#define TURBOD_STOP_PUSH 16384

bool turbod_stop_init(turbod_stop *s, const char *const *stops, int32_t n); /* false: no memory */
void turbod_stop_free(turbod_stop *s);

/* Adds text; *out, *out_len is what may be shown now (valid until the next call). Returns the index
 * of the stop string that was found (earliest match, the longest of those that start there), or -1.
 * After a match *out ends before the stop string, or behind it when include is set. */
int32_t turbod_stop_push(turbod_stop *s, const char *text, size_t len, bool include,
                         const char **out, size_t *out_len);
/* End of text: what is still held. */
void turbod_stop_flush(turbod_stop *s, const char **out, size_t *out_len);

#endif
