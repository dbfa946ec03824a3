/* tests/chaos/mix.h: what the clients ask, and when they leave. All of it follows from a seed and a number. */
#ifndef CHAOS_MIX_H
#define CHAOS_MIX_H

#include "kit.h"

typedef enum {
    STAYS, /* to the end of the answer */
    LEAVES_BODY, /* having sent a part of the request */
    LEAVES_QUEUE, /* as soon as all is sent */
    LEAVES_PREFILL, /* some milliseconds later, having read nothing */
    LEAVES_DECODE, /* after some events, or milliseconds when the answer comes as a whole */
    LEAVES_BYTES, /* after any number of bytes of the answer */
    N_LEAVES
} leaving;
extern const char *const leaving_names[N_LEAVES];

typedef enum { BY_FIN, BY_RST, BY_HALF_CLOSE } way;

typedef struct shot {
    const char *path;
    text bytes; /* the whole HTTP request */
    bool stream, ndjson, bad, session, keep;
    int n; /* answers that must end */
    int witness; /* whose answer is known, -1 none */
    leaving leave;
    way how;
    uint32_t at; /* events, bytes or milliseconds */
} shot;

#define N_WITNESSES 5

/* Request `number` of a run; frees what *s had. */
void mix_shot(shot *s, uint64_t seed, uint64_t number);
void mix_witness(shot *s, int which);

#endif
