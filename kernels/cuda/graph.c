/* kernels/cuda/graph.c: see graph.h. */
#include "cuda/graph.h"

#include <stdlib.h>
#include <string.h>

/* Many sequences wait for arithmetic, and padding costs as much as they do. The first BRIEF are for few sequences that are
 * short, all of them: attention then has another launch. */
enum { BRIEF = 2 };
static const int32_t sizes[BUCKETS] = {1,   2,   1,   2,   4,   8,   16,  32,  64,
                                       128, 192, 256, 320, 384, 448, 512, 768, 1024};

int32_t turbok_cuda_bucket_keys(const turbok_cuda *s, int bucket)
{
    const int32_t brief = turbok_cu_attention_brief(s->cu), len = s->steps.max_len;
    return bucket < BRIEF && brief < len ? brief : len;
}

int turbok_cuda_bucket(const turbok_cuda *s, const turbo_batch *b)
{
    int32_t most = 0;
    if (!s->graphs || b->n_tokens != b->n_seqs || b->n_rows != b->n_seqs || b->embed_rows)
        return -1;
    for (int32_t i = 0; i < b->n_seqs; i++)
        most = b->kv_lens[i] > most ? b->kv_lens[i] : most;
    int bucket = most <= turbok_cuda_bucket_keys(s, 0) && b->n_seqs <= sizes[BRIEF - 1] ? 0 : BRIEF;
    while (bucket < BUCKETS && sizes[bucket] < b->n_seqs)
        bucket++;
    return bucket < BUCKETS ? bucket : -1;
}

int32_t turbok_cuda_bucket_size(const turbok_cuda *s, int bucket)
{
    return sizes[bucket] < s->steps.max_seqs ? sizes[bucket] : s->steps.max_seqs;
}

/* On an H200 a recording of 24 layers took 0.66 MB and one of 32 layers 0.79 (bench-gpu memory): less than 3 KiB a
 * launch, taken in pieces of 2 MiB. Quantised matrices have launches that put rows in order. */
uint64_t turbok_cuda_graphs_bytes(const turbok_steps *s)
{
    enum { DENSE = 10, QUANTISED = 16, OTHER_LAUNCHES = 16, LAUNCH = 3 << 10, PIECE = 2 << 20 };
    const uint64_t of_layer = s->quantised ? QUANTISED : DENSE;
    uint64_t n = 0;
    for (int i = 0; i < BUCKETS; i++)
        n += i == 0 || i == BRIEF || sizes[i - 1] < s->max_seqs;
    n *= AHEAD * ((uint64_t)s->n_layers * of_layer + OTHER_LAUNCHES) * LAUNCH;
    return (n + PIECE - 1) / PIECE * PIECE;
}

static const int32_t *padded(int32_t **at, const int32_t *from, int32_t have, int32_t n)
{
    int32_t *to = *at;
    *at += n;
    memcpy(to, from, (size_t)have * sizeof *to);
    memset(to + have, 0, (size_t)(n - have) * sizeof *to);
    return to;
}

void turbok_cuda_pad(turbok_cuda *s, const turbo_batch *b, int32_t n, turbo_batch *as)
{
    int32_t *at = s->pad, have = b->n_seqs, *cu;
    *as = *b;
    as->n_tokens = as->n_seqs = as->n_rows = n;
    as->tokens = padded(&at, b->tokens, have, n);
    as->positions = padded(&at, b->positions, have, n);
    as->kv_lens = padded(&at, b->kv_lens, have, n);
    as->rope_lens = padded(&at, b->rope_lens, have, n);
    as->row_index = padded(&at, b->row_index, have, n);
    cu = at;
    as->cu_seqlens = cu;
    for (int32_t i = 0; i <= n; i++)
        cu[i] = i;
}

bool turbok_cuda_gaps_open(turbok_cuda *s)
{
    const char *asked = getenv("TURBO_CUDA_GAPS");
    if (!asked || strcmp(asked, "1"))
        return true;
    s->gaps = calloc(GAPS, sizeof *s->gaps);
    for (int i = 0; i < GAP_STEPS && s->gaps; i++) {
        turbok_cu_note(s->cu, s->cu->drv.event_create(&s->began[i], 0), "no event");
        turbok_cu_note(s->cu, s->cu->drv.event_create(&s->ended[i], 0), "no event");
    }
    return s->gaps;
}

void turbok_cuda_gaps_close(turbok_cuda *s)
{
    for (int i = 0; i < GAP_STEPS; i++) {
        if (s->began[i])
            (void)s->cu->drv.event_destroy(s->began[i]);
        if (s->ended[i])
            (void)s->cu->drv.event_destroy(s->ended[i]);
    }
    free(s->gaps);
}

/* Step n is about to begin, so that steps n - 3 and n - 2 are over. */
static void note_gap(turbok_cuda *s, uint64_t n)
{
    float ms;
    int a = (int)((n + 1) % GAP_STEPS), b = (int)((n + 2) % GAP_STEPS);
    if (n < 3 || s->timed[a] != n - 2 || s->timed[b] != n - 1 || s->n_gaps == GAPS)
        return;
    turbok_cu_note(s->cu, s->cu->drv.event_elapsed(&ms, s->ended[a], s->began[b]),
                   "the time between steps cannot be read");
    s->gaps[s->n_gaps++] = ms * 1000;
}

static void start(turbok_cuda *s, turbok_cu_graph_exec step)
{
    turbok_cu *cu = s->cu;
    int at = (int)(s->begun % GAP_STEPS);
    if (turbok_cu_bad(cu))
        return;
    if (s->gaps) {
        note_gap(s, s->begun);
        turbok_cu_note(cu, cu->drv.event_record(s->began[at], cu->stream), "no mark");
        s->timed[at] = s->begun + 1;
    }
    turbok_cu_note(cu, cu->drv.graph_launch(step, cu->stream), "the recorded step does not start");
    if (s->gaps)
        turbok_cu_note(cu, cu->drv.event_record(s->ended[at], cu->stream), "no mark");
}

turbo_status turbok_cuda_graph_begin(turbok_cuda *s, int bucket, bool *replay, turbo_err *err)
{
    turbok_cu *cu = s->cu;
    turbok_cu_graph_exec have = s->recorded[bucket][s->begun % AHEAD];
    if (have) {
        *replay = true;
        start(s, have);
        return turbok_cu_status(cu, err);
    }
    turbok_cu_note(cu, cu->drv.capture_begin(cu->stream, TURBOK_CU_CAPTURE_THREAD_LOCAL),
                   "the step cannot be recorded");
    if (!turbok_cu_bad(cu))
        s->recording = bucket;
    return turbok_cu_status(cu, err);
}

turbo_status turbok_cuda_graph_end(turbok_cuda *s, turbo_err *err)
{
    turbok_cu *cu = s->cu;
    turbok_cu_graph g = NULL;
    turbok_cu_graph_exec *to = &s->recorded[s->recording][s->begun % AHEAD];
    int r = cu->drv.capture_end(cu->stream, &g);
    s->recording = -1;
    turbok_cu_note(cu, r, "the step cannot be recorded");
    if (!turbok_cu_bad(cu))
        turbok_cu_note(cu, cu->drv.graph_instantiate(to, g, 0), "the step cannot be recorded");
    if (g)
        (void)cu->drv.graph_destroy(g);
    start(s, *to);
    return turbok_cu_status(cu, err);
}

void turbok_cuda_graph_drop(turbok_cuda *s)
{
    turbok_cu_graph g = NULL;
    if (s->recording < 0)
        return;
    s->recording = -1;
    (void)s->cu->drv.capture_end(s->cu->stream, &g);
    if (g)
        (void)s->cu->drv.graph_destroy(g);
}

void turbok_cuda_graphs_free(turbok_cuda *s)
{
    for (int i = 0; i < BUCKETS * AHEAD; i++)
        if (s->recorded[i / AHEAD][i % AHEAD])
            (void)s->cu->drv.graph_exec_destroy(s->recorded[i / AHEAD][i % AHEAD]);
}
