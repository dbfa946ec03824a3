/* kernels/cuda/draw.c: sampling on the device: what it keeps of each sequence, and the draw at the end of a step.
 * Engine thread.
 *
 * A place has the state of one sequence, its counts of tokens, its mask of allowed ones and its lists. All of it
 * follows from parameters and tokens, so a sequence that comes back after a preemption gets a place anew. */
#include <stdlib.h>
#include <string.h>

#include "cuda/state.h"

#define PLACE_NUMBERS 4096 /* of all lists of a place together */

typedef struct layout { /* offsets: of the whole and, from counts on, inside a place */
    size_t sums, tokens, places;
    size_t counts, allowed, lists, place, total;
} layout;

static size_t whole(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static size_t mask_words(const turbok_steps *s)
{
    return ((size_t)s->vocab + 31) / 32;
}

static layout layout_of(const turbok_steps *s)
{
    size_t S = (size_t)s->max_seqs, V = (size_t)s->vocab;
    layout l;
    l.sums = whole(2 * S * sizeof(int32_t));
    l.tokens = l.sums + whole((size_t)turbok_cu_sample_bytes(s->max_seqs, s->vocab));
    l.places = l.tokens + whole((size_t)s->max_len * sizeof(int32_t));
    l.counts = whole(sizeof(turbok_cu_sample_state));
    l.allowed = l.counts + whole(V * sizeof(uint32_t));
    l.lists = l.allowed + whole(mask_words(s) * sizeof(uint32_t));
    l.place = l.lists + whole(PLACE_NUMBERS * sizeof(int32_t));
    l.total = l.places + S * l.place;
    return l;
}

size_t turbok_cuda_draw_bytes(const turbok_steps *s)
{
    return turbok_alloc_size(layout_of(s).total);
}

static size_t drawn_bytes(const turbok_cuda *s)
{
    return 2 * (size_t)s->steps.max_seqs * sizeof(int32_t);
}

bool turbok_cuda_draw_open(turbok_device *d)
{
    turbok_cuda *s = d->exec.self;
    size_t S = (size_t)s->steps.max_seqs;
    s->draw_bytes = turbok_cuda_draw_bytes(&s->steps);
    s->draw = turbok_alloc(d, TURBOK_MEM_SCRATCH, s->draw_bytes);
    for (int i = 0; i < AHEAD; i++)
        s->host_drawn[i] = turbok_pinned_new(d, drawn_bytes(s));
    s->asked = calloc(S, sizeof *s->asked);
    s->lists = calloc(PLACE_NUMBERS > mask_words(&s->steps) ? PLACE_NUMBERS : mask_words(&s->steps),
                      sizeof *s->lists);
    return s->draw && s->host_drawn[0] && s->host_drawn[1] && s->asked && s->lists;
}

void turbok_cuda_draw_close(turbok_device *d)
{
    turbok_cuda *s = d->exec.self;
    turbok_release(d, TURBOK_MEM_SCRATCH, s->draw, s->draw_bytes);
    for (int i = 0; i < AHEAD; i++)
        turbok_pinned_free(d, s->host_drawn[i], drawn_bytes(s));
    free(s->asked);
    free(s->lists);
}

/* Numbers in the lists of a request. */
static int64_t numbers(const turbo_sample_params *p)
{
    int64_t n = 2 * (int64_t)p->n_bias + p->n_stop + p->n_bad;
    for (int32_t i = 0; i < p->n_bad; i++)
        n += p->bad_len[i];
    return n;
}

bool turbok_cuda_draws(const turbok_device *d, const turbo_sample_params *p)
{
    (void)d;
    return p->n_logprobs < 0 && !p->n_program && numbers(p) <= PLACE_NUMBERS;
}

static bool differs(float a, float b)
{
    return a < b || a > b;
}

/* Copies n numbers of 32 bits behind the lists that are there, and says where they will be on the device. */
static const void *list(turbok_cuda *s, const char *device, size_t *at, const void *from, int32_t n)
{
    const char *to = device + *at * sizeof(int32_t);
    if (n)
        memcpy(s->lists + *at, from, (size_t)n * sizeof(int32_t));
    *at += (size_t)n;
    return to;
}

static void put_lists(turbok_device *d, const turbo_sample_params *p, char *device,
                      turbok_cu_sample_row *row)
{
    turbok_cuda *s = d->exec.self;
    size_t at = 0;
    int32_t n_bad = 0;
    for (int32_t i = 0; i < p->n_bad; i++)
        n_bad += p->bad_len[i];
    row->stop_ids = list(s, device, &at, p->stop_ids, p->n_stop);
    row->bad_ids = list(s, device, &at, p->bad_ids, n_bad);
    row->bad_len = list(s, device, &at, p->bad_len, p->n_bad);
    row->bias_ids = (const int32_t *)(const void *)(device + at * sizeof(int32_t));
    for (int32_t i = 0; i < p->n_bias; i++)
        (void)list(s, device, &at, &p->bias[i].id, 1);
    row->bias = (const float *)(const void *)(device + at * sizeof(int32_t));
    for (int32_t i = 0; i < p->n_bias; i++)
        (void)list(s, device, &at, &p->bias[i].bias, 1);
    turbok_cuda_upload(d, device, s->lists, at * sizeof(int32_t));
}

static void put_mask(turbok_device *d, const turbo_sample_params *p, uint32_t *device)
{
    turbok_cuda *s = d->exec.self;
    uint32_t *mask = (uint32_t *)s->lists;
    size_t bytes = mask_words(&s->steps) * sizeof *mask;
    memset(mask, 0, bytes);
    for (int32_t i = 0; i < p->n_allowed; i++)
        mask[p->allowed[i] / 32] |= 1u << (p->allowed[i] % 32);
    turbok_cuda_upload(d, device, mask, bytes);
}

turbo_status turbok_cuda_place_begin(turbok_device *d, int32_t place, const turbo_sample_params *p,
                                     const int32_t *tokens, int32_t n_prompt, int32_t n,
                                     turbo_err *err)
{
    turbok_cuda *s = d->exec.self;
    const layout l = layout_of(&s->steps);
    char *at = s->draw + l.places + (size_t)place * l.place;
    int32_t *seen = (int32_t *)(void *)(s->draw + l.tokens);
    bool counted = differs(p->repetition_penalty, 1) || differs(p->presence_penalty, 0) ||
                   differs(p->frequency_penalty, 0);
    if (place < 0 || place >= s->steps.max_seqs || n > s->steps.max_len)
        return turbok_fail(err, TURBO_EINTERNAL,
                           "place %d for %d tokens is beyond what steps were opened for", place, n);
    turbok_cu_sample_row *row = &s->asked[place];
    *row = (turbok_cu_sample_row){
        .seed = p->seed,
        .state = (turbok_cu_sample_state *)(void *)at,
        .counts = counted ? (uint32_t *)(void *)(at + l.counts) : NULL,
        .allowed = p->n_allowed ? (uint32_t *)(void *)(at + l.allowed) : NULL,
        .temperature = p->temperature,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition = p->repetition_penalty,
        .presence = p->presence_penalty,
        .frequency = p->frequency_penalty,
        .top_k = p->top_k,
        .min_tokens = p->min_tokens,
        .n_bias = p->n_bias,
        .n_stop = p->n_stop,
        .n_bad = p->n_bad,
    };
    turbok_cu_note(s->cu, s->cu->drv.ctx_set(s->cu->ctx), "the CUDA context cannot be used");
    put_lists(d, p, at + l.lists, row);
    if (p->n_allowed)
        put_mask(d, p, (uint32_t *)(void *)(at + l.allowed));
    turbok_cuda_upload(d, seen, tokens, (size_t)n * sizeof *tokens);
    turbok_cu_sample_tokens(s->cu, row->state, row->counts, seen, n_prompt, s->steps.vocab, true);
    if (n > n_prompt)
        turbok_cu_sample_tokens(s->cu, row->state, row->counts, seen + n_prompt, n - n_prompt,
                                s->steps.vocab, false);
    return turbok_cu_status(s->cu, err);
}

void turbok_cuda_draw_rows(turbok_cuda *s, const turbok_row *rows, int32_t n, int32_t R,
                           turbok_cu_sample_row *out)
{
    s->drawing = false;
    for (int32_t i = 0; i < R; i++) {
        bool draws = rows && i < n && rows[i].place >= 0;
        out[i] = draws ? s->asked[rows[i].place] : (turbok_cu_sample_row){0};
        out[i].index = draws ? i : -1;
        s->drawing = s->drawing || draws;
    }
}

const int32_t *turbok_cuda_drawn(const turbok_cuda *s)
{
    return (const int32_t *)(const void *)s->draw;
}

void turbok_cuda_draw(turbok_cuda *s, const turbok_cu_sample_row *rows, int32_t R, float *logits,
                      int32_t *host)
{
    const layout l = layout_of(&s->steps);
    int32_t *tokens = (int32_t *)(void *)s->draw, S = s->steps.max_seqs;
    turbok_cu_sample(s->cu, rows, R, s->steps.vocab, logits, s->draw + l.sums, tokens, tokens + S);
    turbok_cu_to_host(s->cu, host, turbok_cu_at(tokens), drawn_bytes(s));
}
