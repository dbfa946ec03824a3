/* core/plan/roof.h: the roofline of decoding: what a token costs in operations and bytes, and which of the
 * two a device runs out of first. Pure arithmetic and a table of datasheets; any thread.
 *
 * A decode step of B sequences that are n tokens long does two things. The linear layers read all W bytes
 * of weights once and multiply them B times, 2 N FLOP each; of experts those that some token chose, if
 * all are equally often chosen. Attention reads B n kv bytes and does
 * 4 L n H D FLOP for each sequence (q.k and the weighted sum of v). Each takes the longer of
 * FLOP / peak and bytes / bandwidth, and they follow one another. */
#ifndef TURBOD_ROOF_H
#define TURBOD_ROOF_H

#include <stddef.h>

typedef struct turbod_gpu {
    const char *id, *name;
    double memory; /* bytes that it has, and of them what opening it takes */
    double context;
    const char *memory_note; /* how these two are known */
    double bandwidth; /* bytes a second */
    double flops; /* dense 16-bit operations a second with fp32 sums, as the note says */
    const char *note; /* where these come from */
    int sm_count, capability; /* multiprocessors; 90 is 9.0 */
} turbod_gpu;
extern const turbod_gpu turbod_gpus[];
extern const size_t turbod_n_gpus;
const turbod_gpu *turbod_gpu_find(const char *id); /* NULL: not in the table */

typedef struct turbod_roof {
    double params; /* N: weights that each token is multiplied with */
    double weights; /* W: bytes of all weights */
    double idle; /* of W: bytes of experts that one token does not choose */
    double miss; /* how likely it is not to choose one of them */
    double kv_token; /* bytes of one token's keys and values */
    double heads; /* L H D: 4 of them times n is attention's FLOP */
    double flops, bandwidth; /* of the device */
} turbod_roof;

double turbod_roof_flop(const turbod_roof *r,
                        double n); /* of a token at length n: 2 N + 4 L n H D */
/* The lesson's convention, which counts one of the two products of attention: 2 N + 2 L n H D. */
double turbod_roof_flop_lesson(const turbod_roof *r, double n);

/* Bytes of weights that a step of batch sequences reads. */
double turbod_roof_read(const turbod_roof *r, double batch);

typedef struct turbod_step {
    double compute, memory; /* seconds that FLOP and bytes would take by themselves */
    double seconds; /* of the step: each of its two parts takes the longer of its own */
} turbod_step;
turbod_step turbod_roof_step(const turbod_roof *r, double batch, double n);
/* The batch from which the linear layers wait for arithmetic and not for memory: W / 2N * peak / bw. */
double turbod_roof_ridge(const turbod_roof *r);
/* The batch from which a whole step at length n has more arithmetic than reading; INFINITY when attention
 * reads faster than it computes at every batch. */
double turbod_roof_ridge_at(const turbod_roof *r, double n);

#endif
