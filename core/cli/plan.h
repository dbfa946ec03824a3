/* core/cli/plan.h: what the files of `turbo plan` share. Main thread. */
#ifndef CLI_PLAN_H
#define CLI_PLAN_H

#include "cli/cli.h"
#include "plan/roof.h"

typedef struct cli_plan {
    const turbod_plan_model *model; /* NULL: --params alone */
    const char *folder;
    turbod_plan plan;
    bool fits; /* else why says what is missing */
    turbo_err why;
    double nominal; /* --params, or 0 */
    char device[160], note[160];
    bool cpu;
    const turbod_gpu *gpu; /* or a card */
    turbok_device *card; /* which its backend describes; NULL: guess says why not */
    turbo_err guess; /* why bytes are an estimate from the CPU backend's; empty: they are exact */
    double memory; /* of the device, free before anything is taken */
    turbod_roof roof;
    int64_t batch, in, out;
} cli_plan;

#define CLI_PLAN_LENGTHS 20
/* Lengths worth a row: powers of 2 up to what the model was made for, and in + out among them. */
int cli_plan_lengths(const cli_plan *p, int64_t out[CLI_PLAN_LENGTHS]);
/* KV bytes of the asked batch if every query head had keys and values of its own. */
double cli_plan_full_heads(const cli_plan *p);

void cli_plan_text(const cli_plan *p, FILE *out);
void cli_plan_json(const cli_plan *p, FILE *out);
/* plan_svg.c: the memory bar and the roofline, as one picture. */
void cli_plan_svg(const cli_plan *p, FILE *out);

#endif
