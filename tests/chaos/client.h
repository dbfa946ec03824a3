/* tests/chaos/client.h: many connections at once, each with one request after the other, some of which are
 * left in the middle; every answer is looked at. One thread, epoll. */
#ifndef CHAOS_CLIENT_H
#define CHAOS_CLIENT_H

#include "mix.h"

#define MOST_LIVE 64

typedef struct slot {
    int fd; /* -1 none */
    bool busy;
    shot s;
    uint64_t number;
    size_t sent;
    text in;
    double began, leave_at; /* leave_at: 0 not by time */
    bool half_closed;
} slot;

typedef struct tally {
    uint64_t asked, whole, refused, busy_session, too_long, witnesses, left[N_LEAVES];
    double longest;
} tally;

typedef struct storm {
    int port, epoll, n_live;
    uint64_t seed, next; /* next: number of the next request */
    slot slots[MOST_LIVE];
    text known[N_WITNESSES]; /* what each witness answers alone */
    tally t;
} storm;

void storm_init(storm *m, int port, uint64_t seed);
/* Keeps `live` requests under way for a while, or until `most` were asked in all. */
void storm_run(storm *m, int live, double seconds, uint64_t most);
/* Every client leaves, now; half of them by FIN. */
void storm_leave(storm *m);
/* Asks the witnesses one after another and keeps (learn) or compares what they say. */
void storm_witnesses(storm *m, bool learn);

#endif
