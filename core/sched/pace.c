/* core/sched/pace.c: see pace.h. */
#include "sched/pace.h"

#define BUCKETS ((int)(sizeof((turbod_pace *)0)->decode_ns / sizeof(double)))

static int bucket_of(int32_t n)
{
    int b = 0;
    while (n > 1 && b < BUCKETS - 1) {
        n /= 2;
        b++;
    }
    return b;
}

/* A moving average that a single late step, on a busy machine, does not move far. */
static void blend(double *mean, double v)
{
    if (*mean > 0 && v > 4 * *mean)
        v = 4 * *mean;
    *mean = *mean > 0 ? *mean + (v - *mean) / 8 : v;
}

/* The cost of a step of n decodes; from the nearest number of sequences that was seen. */
static double decode_cost(const turbod_pace *p, int32_t n)
{
    int b = bucket_of(n);
    for (int far = 0; far < BUCKETS; far++) {
        if (b - far >= 0 && p->decode_ns[b - far] > 0)
            return p->decode_ns[b - far];
        if (b + far < BUCKETS && p->decode_ns[b + far] > 0)
            return p->decode_ns[b + far];
    }
    return 0;
}

int32_t turbod_pace_budget(const turbod_pace *p, int32_t n_decodes, int64_t backlog, int32_t most)
{
    double decode = n_decodes ? decode_cost(p, n_decodes) : 0;
    if (p->stretch >= TURBOD_PACE_OFF)
        return most;
    if (decode <= 0 || p->token_ns <= 0)
        return most;
    double ease =
        TURBOD_PACE_EASE * (decode + (double)backlog * p->token_ns / TURBOD_PACE_PATIENCE);
    double allowed = (p->stretch - 1) * decode;
    allowed = ease < allowed ? ease : allowed;
    if (allowed < TURBOD_PACE_UNSEEN_NS)
        allowed = TURBOD_PACE_UNSEEN_NS;
    double n = allowed / p->token_ns;
    if (n < 1) /* a prompt must advance */
        n = 1;
    return n < most ? (int32_t)n : most;
}

void turbod_pace_note(turbod_pace *p, int32_t n_decodes, int32_t n_prompt, int64_t ns)
{
    if (!n_prompt) {
        blend(&p->decode_ns[bucket_of(n_decodes)], (double)ns);
        return;
    }
    if (p->mixed && !n_decodes)
        return;
    p->mixed = n_decodes > 0;
    /* Where decoding waits for memory the first prompt tokens cost nothing: then the estimate sinks until
     * the chunk is large enough to show. */
    double rest = (double)ns - (n_decodes ? decode_cost(p, n_decodes) : 0);
    blend(&p->token_ns, rest > 0 ? rest / n_prompt : 0);
}
